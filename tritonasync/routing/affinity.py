"""Which endpoint holds the state of a sequence.

Owns: the pins, each from a sequence to the member that has its state on the server, and what in a
call's parameters says to which sequence it belongs. Refuses to know: how a member is chosen, what a
member is (anything hashable), and clocks; ``now`` is an argument.

A sequence without its end flag would be remembered for ever, so pins are dropped that were not used
for a time: Triton drops idle sequences, too (``max_sequence_idle_microseconds``).

Invariants: pins are in the order of their last use, so that to drop the idle ones looks at no
others; there are never more than ``most``; the members' counts add up to the number of pins.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeAlias, TypeVar

from tritonasync.core.values import Call, SequenceStep

SequenceKey: TypeAlias = tuple[str, str, int | str]
"""Model, version and sequence id. The id 1 and the id "1" are two sequences, as on the server."""

M = TypeVar("M", bound=Hashable)


class Pins(Generic[M]):
    """Remembers the members that sequences are pinned to.

    Args:
        idle_s: Seconds after its last use when a pin is dropped.
        most: The most pins; beyond it, those go that were not used for longest.
    """

    __slots__ = ("_counts", "_idle_s", "_most", "_pins")

    def __init__(self, *, idle_s: float = 3600.0, most: int = 100_000) -> None:
        self._idle_s = idle_s
        self._most = most
        # By last use: the member, and when the pin is dropped. (A plain dict looks through what was
        # deleted at its front each time it is asked for the first.)
        self._pins: OrderedDict[SequenceKey, tuple[M, float]] = OrderedDict()
        self._counts: dict[M, int] = {}

    def __len__(self) -> int:
        return len(self._pins)

    def find(self, key: SequenceKey, now: float) -> M | None:
        """Return the member that a sequence is pinned to, if any. This counts as a use."""
        self.expire(now)
        pin = self._pins.get(key)
        if pin is None:
            return None
        self._pins[key] = pin[0], now + self._idle_s
        self._pins.move_to_end(key)
        return pin[0]

    def pin(self, key: SequenceKey, member: M, now: float) -> None:
        """Pin a sequence to a member, instead of the one before if there was one."""
        self.expire(now)
        self.release(key)
        self._pins[key] = member, now + self._idle_s
        self._counts[member] = self._counts.get(member, 0) + 1
        while len(self._pins) > self._most:
            self.release(next(iter(self._pins)))

    def release(self, key: SequenceKey) -> None:
        """Forget a sequence, if it is known: it has ended."""
        pin = self._pins.pop(key, None)
        if pin is None:
            return
        left = self._counts[pin[0]] - 1
        if left:
            self._counts[pin[0]] = left
        else:
            del self._counts[pin[0]]  # so that members that are gone are not kept

    def lost(self, member: M) -> int:
        """Forget all sequences of a member that is gone; return how many there were."""
        count = self._counts.pop(member, 0)
        if count:
            for key in [key for key, pin in self._pins.items() if pin[0] == member]:
                del self._pins[key]
        return count

    def count(self, member: M) -> int:
        """Return how many sequences are pinned to a member.

        Idle ones are among them until something is found or pinned, or :meth:`expire` is called.
        """
        return self._counts.get(member, 0)

    def expire(self, now: float) -> None:
        """Drop the pins that were not used for ``idle_s``."""
        pins = self._pins
        while pins and pins[key := next(iter(pins))][1] <= now:
            self.release(key)


def sequence_of(call: Call) -> SequenceStep | None:
    """Return which step of which sequence a call is, by its own word or by its parameters.

    ``None`` if it belongs to none: without the parameter ``sequence_id``, or where that is 0 or
    empty (Triton's words for none) or neither a whole number nor a string (which Triton refuses).
    """
    if call.sequence is not None or not call.parameters:
        return call.sequence
    parameters = dict(call.parameters)
    given = parameters.get("sequence_id")
    if not given or not isinstance(given, int | str) or given is True:
        return None
    return SequenceStep(
        given,
        start=parameters.get("sequence_start") is True,
        end=parameters.get("sequence_end") is True,
    )


def key_of(call: Call, step: SequenceStep) -> SequenceKey:
    """Return what a sequence is known by.

    The version is as it was asked for: a sequence must not ask for it by number in one call, and
    leave it to the server in another.
    """
    return call.model, call.version, step.id
