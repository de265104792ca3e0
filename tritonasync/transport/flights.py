"""Calls that are out: who waits for each, until when, and when all are over.

Owns: the futures that callers wait on, one timer for all their deadlines, waiting for the end of
all. Refuses to know: what a message is, what an answer or an error means.

Invariants: a call is in the set until its status is there; a waiter that is done (answered, late,
cancelled) is never touched again; the call itself is never cancelled here.

A timer for each call would cost 20 µs of a call's 300 (a heap push, a cancelled handle to be
cleaned up later, a select with a time limit), to fire almost never. The one timer stands at the
earliest deadline seen; when it fires it looks through the calls that are out and sets itself anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Generic, TypeAlias, TypeVar

import grpc.aio

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import Stage

_SWEEP_PAUSE_S: Final = 0.002
"""The least time between two sweeps, and so how late a caller is let go at most. A sweep looks at
all calls: with thousands of deadlines in a row, one for each would be quadratic."""

_L = TypeVar("_L")

UnaryCall: TypeAlias = "grpc.aio.UnaryUnaryCall[bytes, bytes]"


class Flight(Generic[_L]):
    """One call that is out.

    Attributes:
        call: The call.
        lane: What it went out on.
        deadline: When its caller stops waiting.
        stage: What the deadline's error names.
        model: The model called, if one is.
        forsaken: Whether its caller had left when it was over.
        waiter: Resolved when the status of the call is there, failed at the deadline, cancelled
            with the caller.
    """

    __slots__ = ("call", "deadline", "forsaken", "lane", "model", "stage", "waiter")

    def __init__(
        self,
        call: UnaryCall,
        lane: _L,
        deadline: Deadline,
        stage: Stage,
        model: str | None,
    ) -> None:
        self.call = call
        self.lane = lane
        self.deadline = deadline
        self.stage: Stage = stage
        self.model = model
        self.forsaken = False
        self.waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Flights(Generic[_L]):
    """The calls that are out.

    Args:
        late: Makes the error of a caller whose deadline passed.
        landed: Told of each call that is over.
    """

    def __init__(
        self, late: Callable[[Flight[_L]], Exception], landed: Callable[[Flight[_L]], None]
    ) -> None:
        self._late = late
        self._landed = landed
        self._out: set[Flight[_L]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._quiet: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._out)

    def launch(self, flight: Flight[_L]) -> None:
        """Take note of a call that was sent."""
        self._out.add(flight)
        # gRPC runs this when the status is there, and the call's own task ends in the same turn of
        # the loop: a caller that is woken by it finds the answer in the next turn. A task of ours
        # that awaited the call would cost one turn more, some 40 µs of a call's 300.
        flight.call.add_done_callback(partial(self._land, flight))
        if flight.deadline.at < self._due:
            self._set_timer(flight.deadline.at)

    def _land(self, flight: Flight[_L], call: UnaryCall) -> None:
        del call  # the flight's own
        self._out.discard(flight)
        if flight.waiter.done():
            flight.forsaken = True
        else:
            flight.waiter.set_result(None)
        self._landed(flight)
        if self._quiet is not None and not self._out:
            self._quiet.set()

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        # Relative, since a loop's clock need not be the monotonic one.
        delay = Deadline(due, math.inf).remaining()
        self._timer = asyncio.get_running_loop().call_later(delay, self._sweep)

    def _sweep(self) -> None:
        """Let those callers go whose time is up, and wait for the next."""
        self._timer, self._due = None, math.inf
        now = time.monotonic()
        waiting = [flight for flight in self._out if not flight.waiter.done()]
        for flight in waiting:
            if flight.deadline.expired(now):
                flight.waiter.set_exception(self._late(flight))
        due = min((f.deadline.at for f in waiting if not f.waiter.done()), default=math.inf)
        if due < math.inf:
            self._set_timer(max(due, now + _SWEEP_PAUSE_S))

    async def wait_until_quiet(self, deadline: Deadline) -> None:
        """Return when no call is out, or at the deadline."""
        if not self._out:
            return
        self._quiet = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline.wait_s()):
                await self._quiet.wait()

    def close(self) -> None:
        """Stop the timer. Nobody may wait any more."""
        if self._timer is not None:
            self._timer.cancel()
