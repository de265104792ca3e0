"""Which way is faster for the calls of one model and size: a call of its own, or a stream.

Owns: the decision, by trial. Pure: ``now`` is an argument, nothing is sent here. Refuses to know:
how a call is sent either way, and whether it may go on a stream at all (``auto`` does).

The way in use is measured against the other one now and then: a block of calls that way, a block
this way, and the same again, so that a change in load speaks against neither. What counts is how
long calls take: with so many callers as there are, that is the inverse of how many are answered.
Only those calls count that began when none was out the other way, for they share the server.

Invariants: but for the first trial, at most one call in :data:`SHARE` goes the way that is not in
use (one in :data:`RARE_SHARE` where that one was much slower) until :data:`LATEST` comes; the way
in use changes only after two trials in a row in which the other one was faster by :data:`MARGIN`
in every block.

Measured on two shared cores (Triton 2.51, 64 B rows, unbatched): one caller waits 0.7 to 0.9 times
as long on a stream as by calls of its own, 64 callers on four streams 0.7 to 0.95 times as long;
other machines and sizes differ, both ways.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class Way(Enum):
    """How a call is sent."""

    UNARY = "unary"
    STREAM = "stream"


FIRST_AFTER: Final = 256
"""Calls before the first trial: a short program never tries."""

BLOCK: Final = 24
"""Calls that count in a block."""

SHARE: Final = 64
RARE_SHARE: Final = 512
MUCH: Final = 1.5

MARGIN: Final = 0.95
PATIENCE_S: Final = 1.0
MUCH_LONGER: Final = 4.0
"""A trial is lost when calls of a block are out and none ends for so long: a second, or so many
times what a call usually takes; and when its first calls take that many times as long. Calls the
other way that are out for longer do not count any more."""

FIRST_CALLS: Final = 3

MOST_OUT: Final = 128
"""With more calls out at once nothing is tried: each block would wait for the end of all."""

LATEST: Final = 100_000
"""The next trial is so many calls off at the most."""

LEAST_S: Final = 1e-3
"""No call counts as one left over before."""

NEWS: Final = 0.05
"""Weight of the newest call in what a call usually takes."""

_ORDER: Final = (True, False, True, False)
"""The blocks of a trial: whether each goes the way that is not in use."""


@dataclass(slots=True)
class _Block:
    """Calls that go the same way, one after the other.

    Attributes:
        other: Whether they go the way that is not in use.
        moved_at: When a call last ended, or the only one that is out began.
        count: Calls that count.
        out: Those that are out.
        took_s: How long they took, together.
    """

    other: bool
    moved_at: float
    count: int = 0
    out: int = 0
    took_s: float = 0.0

    @property
    def mean_s(self) -> float:
        return self.took_s / self.count


@dataclass(slots=True)
class Ticket:
    """A call on its way.

    Attributes:
        way: The way.
        began: When, on the monotonic clock.
        block: The block in which it counts, if it does.
    """

    way: Way
    began: float
    block: _Block | None


@dataclass(slots=True)
class Choice:
    """The decision for the calls of one model and size.

    Attributes:
        using: The way in use.
        calls: Calls so far.
        trials: Trials that were finished.
        mean_s: How long calls took each way in the last trial, on average, in seconds.
    """

    using: Way = Way.UNARY
    calls: int = 0
    trials: int = 0
    mean_s: dict[Way, float] = field(default_factory=dict[Way, float])
    _out: dict[Way, int] = field(default_factory=lambda: dict.fromkeys(Way, 0))
    _last: dict[Way, float] = field(default_factory=lambda: dict.fromkeys(Way, -math.inf))
    _usual_s: float = 0.0
    _blocks: list[_Block] = field(default_factory=list[_Block])
    _wins: int = 0
    _due_at: int = FIRST_AFTER
    _other_calls: int = 0

    def begin(self, now: float, *, may_stream: bool) -> Ticket:
        """Return the way of the next call.

        Args:
            now: The time, on the monotonic clock.
            may_stream: Whether it may go on a stream. If not, it goes the other way, and says
                nothing.
        """
        self.calls += 1
        if not may_stream:
            if self._blocks:
                self._lose(rarely=False)
            way, block = Way.UNARY, None
        else:
            block = self._block(now)
            way = self.using if block is None or not block.other else _other(self.using)
            if block is not None and self._disturbs(_other(way), now):
                block = None  # those share the server with it
        if block is not None:
            if not block.out:
                block.moved_at = now
            block.out += 1
        self._out[way] += 1
        self._last[way] = now
        return Ticket(way, now, block)

    def _patience_s(self) -> float:
        return max(PATIENCE_S, MUCH_LONGER * self._usual_s)

    def _disturbs(self, way: Way, now: float) -> bool:
        """Return whether calls are out some way that are not just slow ones left over."""
        window_s = max(LEAST_S, MUCH_LONGER * self._usual_s)
        return self._out[way] > 0 and now - self._last[way] < window_s

    def _block(self, now: float) -> _Block | None:
        """Return the block that a call begun now is in, if a trial runs or is due."""
        blocks = self._blocks
        if not blocks:
            if self.calls < self._due_at or sum(self._out.values()) > MOST_OUT:
                return None
            if not self._wins:  # those of a trial that is being confirmed count, too
                self._other_calls = 0
            blocks.append(_Block(_ORDER[0], now))
        block = blocks[-1]
        if block.out and now - block.moved_at > self._patience_s():
            self._lose(rarely=block.other)
            return None
        self._other_calls += block.other
        return block

    def end(self, ticket: Ticket, now: float, *, well: bool) -> None:
        """Take note of the end of a call: answered, or failed or left."""
        self._out[ticket.way] -= 1
        took_s = now - ticket.began
        if well and ticket.way is self.using:
            self._usual_s += NEWS * (took_s - self._usual_s) if self._usual_s else took_s
        block = ticket.block
        if block is None or not self._blocks or block is not self._blocks[-1]:
            return
        block.out -= 1
        block.moved_at = now
        if not well:
            if block.other:
                self._lose(rarely=False)
            return
        block.count += 1
        block.took_s += took_s
        hopeless = block.count >= FIRST_CALLS and block.mean_s > MUCH_LONGER * self._usual_s
        if block.other and hopeless:
            self._lose(rarely=True)
            return
        if block.count < BLOCK:
            return
        if len(self._blocks) < len(_ORDER):
            self._blocks.append(_Block(_ORDER[len(self._blocks)], now))
        else:
            self._judge()

    def _judge(self) -> None:
        """Decide at the end of a trial."""
        blocks, self._blocks = self._blocks, []
        self.trials += 1
        tried = [block.mean_s for block in blocks if block.other]
        used = [block.mean_s for block in blocks if not block.other]
        other = _other(self.using)
        self.mean_s = {other: sum(tried) / len(tried), self.using: sum(used) / len(used)}
        if max(tried) < MARGIN * min(used):
            self._wins += 1
            if self._wins >= 2:
                self.using, self._wins = other, 0
        else:
            self._wins = 0
        self._plan(rarely=self.mean_s[other] > MUCH * self.mean_s[_other(other)])

    def _plan(self, *, rarely: bool) -> None:
        """Fix when the next trial is, so that few calls go the way that is not in use."""
        share = RARE_SHARE if rarely else SHARE
        if self._wins:
            share = 1  # to confirm what it found, at once
        wait = max(FIRST_AFTER, share * self._other_calls)
        self._due_at = self.calls + min(wait, LATEST)

    def _lose(self, *, rarely: bool) -> None:
        """End a trial that the other way has lost."""
        self._blocks = []
        self._wins = 0
        self._plan(rarely=rarely)


def _other(way: Way) -> Way:
    return Way.STREAM if way is Way.UNARY else Way.UNARY


def size_class(nbytes: int) -> int:
    """Return the class of a message's size: each has four times the bytes of the one before."""
    return (max(nbytes, 1).bit_length() + 1) // 2


@dataclass(frozen=True, slots=True)
class TransportChoice:
    """How the calls of a model with messages of about one size are sent, and why.

    Attributes:
        model: The model's name.
        version: The version asked for.
        up_to_nbytes: The most bytes of input tensors of a message of this class.
        using: ``"unary"`` or ``"stream"``.
        why: What decided it, in words.
        calls: Calls so far.
        unary_s: Seconds that calls of their own took in the last trial; NaN before it.
        stream_s: Seconds that calls on streams took in it.
    """

    model: str
    version: str
    up_to_nbytes: int
    using: str
    why: str
    calls: int
    unary_s: float = math.nan
    stream_s: float = math.nan
