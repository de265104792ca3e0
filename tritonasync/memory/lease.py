"""A slot in shared memory while somebody has it: its states, and who holds it.

Owns: the states of one slot, as a table; its bounds; the count of who holds it. Refuses to know:
where the slot came from, servers, names of regions, event loops.

::

    FREE ─take─► FILLING ─fill─► READY ─send─► INFLIGHT ─lose─► RETIRED
                    │              │ ▲          ▲    │             │
                    │              │ └─fill─┐   │    │land         │confirm
                    │              │        │  send  ▼             │
                    │              │        └── LEASED ◄───────────┘
                    │release       │release       │release
                    ▼              ▼              ▼
                    └───────────► DRAINING ◄──────┘        DRAINING ─drain─► FREE

``TRANSITIONS`` is all of this, and the only place that says so. Whatever is not in it is a mistake
of the caller's and raises a ``RuntimeError``, since the next one might get foreign bytes.

A slot is held by its taker until :meth:`Lease.release`, by each array viewing it that is alive, by
a write at work, by each RPC that is out (a *flight*), and by each that ended without a word of the
server's (a *stray*), until the server is known to be done with it. It is let go when the last of
them is gone, in whatever order.

Invariants: a slot is never written, nor let go, while a server may read or write it; it is let go
once. A lease is used once: the next one on the same slot is another object, so that who kept an old
one does no harm.

Threads: all of it belongs to the thread of its lessor, except :meth:`Lease.write` (a long copy is
made in a worker thread), :meth:`Lease.release`, and the death of views, which may happen anywhere,
in the garbage collector, too. These only leave a note for the lessor.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final

import numpy as np

from tritonasync.core.ports import Block, Completion, Region
from tritonasync.core.values import Array


class LeaseState(StrEnum):
    """What is going on with a slot."""

    FREE = "free"
    FILLING = "filling"
    READY = "ready"
    INFLIGHT = "inflight"
    LEASED = "leased"
    RETIRED = "retired"
    DRAINING = "draining"


class LeaseEvent(StrEnum):
    """What can happen to a slot."""

    TAKE = "somebody takes it"
    FILL = "its bytes are all there"
    SEND = "an RPC goes out that names it"
    LAND = "the last RPC out has ended, and the server is done with it"
    LOSE = "the last RPC out has ended, and a server may still be at it"
    CONFIRM = "the server is done with it for certain"
    RELEASE = "nobody holds it any more"
    DRAIN = "the work on it that was enqueued is done"


_FREE, _FILLING, _READY = LeaseState.FREE, LeaseState.FILLING, LeaseState.READY
_INFLIGHT, _LEASED = LeaseState.INFLIGHT, LeaseState.LEASED
_RETIRED, _DRAINING = LeaseState.RETIRED, LeaseState.DRAINING

TRANSITIONS: Final[dict[tuple[LeaseState, LeaseEvent], LeaseState]] = {
    (_FREE, LeaseEvent.TAKE): _FILLING,
    (_FILLING, LeaseEvent.FILL): _READY,
    (_LEASED, LeaseEvent.FILL): _READY,  # lent to a user, who wrote into it again
    (_READY, LeaseEvent.SEND): _INFLIGHT,
    (_INFLIGHT, LeaseEvent.SEND): _INFLIGHT,  # another attempt, or a hedge
    (_LEASED, LeaseEvent.SEND): _INFLIGHT,
    (_INFLIGHT, LeaseEvent.LAND): _LEASED,
    (_INFLIGHT, LeaseEvent.LOSE): _RETIRED,
    (_RETIRED, LeaseEvent.CONFIRM): _LEASED,
    (_FILLING, LeaseEvent.RELEASE): _DRAINING,
    (_READY, LeaseEvent.RELEASE): _DRAINING,
    (_LEASED, LeaseEvent.RELEASE): _DRAINING,
    (_DRAINING, LeaseEvent.DRAIN): _FREE,
}
"""The state after an event, by the state before it."""

_TAKEN: Final = TRANSITIONS[_FREE, LeaseEvent.TAKE]
_ONES_OWN: Final = frozenset({_FILLING, _LEASED})
"""Nobody else reads or writes it, and nobody was told that the bytes are all there."""
_AT_REST: Final = frozenset({_FILLING, _READY, _LEASED})
"""No server reads or writes it; it may be let go."""
_GONE: Final = frozenset({_FREE, _DRAINING})


class Lessor(ABC):
    """Whose slots they are: what a lease tells, and whom.

    It is made in the thread that its leases belong to.

    Attributes:
        notes: What other threads and finalizers leave behind, to be called in the lessor's thread.
        wanted: Whether somebody waits for what the notes may bring, so that the lessor is woken.
    """

    def __init__(self) -> None:
        self.notes: deque[Callable[[], None]] = deque()
        self.wanted: bool = False
        self.thread_id: int = threading.get_ident()

    def leave_note(self, note: Callable[[], None]) -> None:
        """Have something done later in the lessor's thread; to be called in any thread.

        ``wanted`` is read after the note was left, as the lessor reads the notes after it set
        ``wanted``: so one of the two sees what the other did.
        """
        self.notes.append(note)
        if self.wanted:
            self.wake()

    @abstractmethod
    def wake(self) -> None:
        """Have the notes read soon; called in any thread, and in the garbage collector."""

    @abstractmethod
    def let_go(self, lease: Lease) -> None:
        """Take a slot back, which is draining; :meth:`Lease.drained` is to be called in the end."""

    @abstractmethod
    def note_copy(self, nbytes: int) -> None:
        """Take note that so many bytes were copied into a slot; called in any thread."""


class Lease:
    """A slot that was taken.

    Args:
        lessor: Told when it is let go.
        block: The slot; it may be larger than what was asked for.
        nbytes: What was asked for: nothing beyond can be reached.
        purpose: What it is for, to be named by who reports.
        since: When it was taken, in seconds on the monotonic clock.

    Attributes:
        region: Whose part it is.
        offset: Where it begins in its region, in bytes.
        nbytes: What was asked for.
        purpose: What it is for.
        since: When it was taken.
        block: The slot as it was taken.
        state: What is going on with it.
        flights: How many RPCs are out that name it.
        strays: How many RPCs ended without a word of the server's, which may still be at it.
        pending: What was enqueued on a device to fill it, and was not said to be done.
    """

    __slots__ = (
        "_lessor",
        "_released",
        "_views",
        "_writers",
        "block",
        "flights",
        "nbytes",
        "offset",
        "pending",
        "purpose",
        "region",
        "since",
        "state",
        "strays",
    )

    def __init__(
        self, lessor: Lessor, block: Block, nbytes: int, purpose: str, *, since: float = 0.0
    ) -> None:
        self.block: Block = block
        self.region: Region = block.region
        self.offset: int = block.offset
        self.nbytes: int = nbytes
        self.purpose: str = purpose
        self.since: float = since
        self.state: LeaseState = _TAKEN
        self.flights: int = 0
        self.strays: int = 0
        self.pending: list[Completion] = []
        self._lessor = lessor
        self._released = False
        self._views = 0
        self._writers: list[None] = []  # counts; append and pop are atomic, += is not

    def __repr__(self) -> str:
        return (
            f"<Lease {self.purpose!r} {self.nbytes} B at {self.offset} of {self.region.name} "
            f"{self.state} views={self._views} flights={self.flights} strays={self.strays}>"
        )

    @property
    def released(self) -> bool:
        """Whether its taker let go of it; views and flights may still hold it."""
        return self._released

    @property
    def views(self) -> int:
        """How many chains of views hold it, as far as the lessor has heard."""
        return self._views

    # --- bytes ----------------------------------------------------------------------------------

    def write(self, at: int, parts: Sequence[Array]) -> Completion | None:
        """Copy arrays into it, one behind the other, from ``at`` bytes into the slot on.

        May be called in a worker thread; the slot is not let go before it has returned.

        Returns:
            What tells when the bytes are there; ``None`` if they are. Call :meth:`filled` when the
            bytes of all writes are there.

        Raises:
            ValueError: They do not fit into what was asked for.
            RuntimeError: It was let go, or a server may be reading it.
        """
        nbytes = sum([part.nbytes for part in parts])
        self._check_bounds(at, nbytes)
        # First counted, then looked at, as release() first sets its mark and then looks here.
        self._writers.append(None)
        try:
            if self._released or self.state not in _ONES_OWN:
                raise self._misused("written")
            completion = self.region.write(self.offset + at, parts)
            if completion is not None:
                self.pending.append(completion)
        finally:
            self._writers.pop()
            if self._released:
                self._lessor.leave_note(self._settle)
        self._lessor.note_copy(nbytes)
        return completion

    def filled(self) -> None:
        """Take note that its bytes are all there, and will not be written before it is sent."""
        self._apply(LeaseEvent.FILL)
        self.pending.clear()

    def view(
        self, at: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, writable: bool = False
    ) -> Array:
        """Return an array on a part of it, ``at`` bytes into the slot; it holds the slot.

        So does whatever is derived from the array without a copy.

        Raises:
            ValueError: It does not lie within what was asked for.
            RuntimeError: It was let go; or ``writable``, and a server may be at it.
        """
        self._check_bounds(at, math.prod(shape) * dtype.itemsize)
        if self.state in _GONE or (writable and self.state not in _AT_REST):
            raise self._misused("viewed for writing" if writable else "viewed")
        self._views += 1
        owner = _Hold(
            self._lessor, self._view_died
        )  # its death takes the count back, even if there will be no view
        return self.region.view(self.offset + at, shape, dtype, owner, writable=writable)

    # --- the server -----------------------------------------------------------------------------

    def sent(self) -> None:
        """Take note that an RPC goes out that names it: one more flight."""
        self._apply(LeaseEvent.SEND)
        self.flights += 1

    def landed(self) -> None:
        """Take note that a flight ended with an answer: this server is done with it."""
        self._end_flight(0, LeaseEvent.LAND)

    def lost(self) -> None:
        """Take note that a flight ended without a word of the server's: one more stray."""
        self._end_flight(1, LeaseEvent.LOSE)

    def confirm(self) -> None:
        """Take note that the server of one stray is done with it for certain.

        To be called once for each time :meth:`lost` was: they may have been different servers.
        """
        if not self.strays:
            raise self._mistake(LeaseEvent.CONFIRM)
        self.strays -= 1
        if not self.strays and not self.flights:
            self._apply(LeaseEvent.CONFIRM)
            self._settle()

    def _end_flight(self, strays: int, event: LeaseEvent) -> None:
        if not self.flights:
            raise self._mistake(event)
        self.flights -= 1
        self.strays += strays
        if not self.flights:
            self._apply(LeaseEvent.LOSE if self.strays else LeaseEvent.LAND)
            self._settle()

    # --- letting go -----------------------------------------------------------------------------

    def release(self) -> None:
        """Drop the taker's own hold; may be repeated, and called in any thread."""
        if self._released:
            return
        self._released = True
        if threading.get_ident() == self._lessor.thread_id:
            self._settle()
        else:
            self._lessor.leave_note(self._settle)

    def drained(self) -> None:
        """Take note that the work on it that was enqueued is done: called by the lessor."""
        self._apply(LeaseEvent.DRAIN)

    def _view_died(self) -> None:
        self._views -= 1
        self._settle()

    def _settle(self) -> None:
        """Let go of it if nobody holds it; without effect if that was done already."""
        held = self._views or self._writers or not self._released
        if not held and self.state in _AT_REST:
            self._apply(LeaseEvent.RELEASE)
            self._lessor.let_go(self)

    # --- mistakes -------------------------------------------------------------------------------

    def _apply(self, event: LeaseEvent) -> None:
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            raise self._mistake(event)
        self.state = after

    def _check_bounds(self, at: int, nbytes: int) -> None:
        if at < 0 or nbytes < 0 or at + nbytes > self.nbytes:
            raise ValueError(
                f"{self.purpose}: {nbytes} bytes at {at} are not within a slot of {self.nbytes}"
            )

    def _mistake(self, event: LeaseEvent) -> RuntimeError:
        return RuntimeError(
            f"{self.purpose}: {event.name} ({event}) cannot happen to a slot that is {self.state}"
        )

    def _misused(self, what: str) -> RuntimeError:
        released = " and was released" if self._released else ""
        return RuntimeError(
            f"{self.purpose}: a slot that is {self.state}{released} is not to be {what}"
        )


class _Hold:
    """Kept alive by a chain of views; its death is theirs."""

    __slots__ = ("__weakref__", "_lessor", "_note")

    def __init__(self, lessor: Lessor, note: Callable[[], None]) -> None:
        self._lessor = lessor
        self._note = note

    def __del__(self) -> None:
        self._lessor.leave_note(self._note)
