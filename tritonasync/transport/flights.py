"""Calls that are out: who waits for each, until when, and when all are over.

Owns: the futures that callers wait on, one timer for all their deadlines, waiting for the end of
all. Refuses to know: what a message is, what an answer or an error means.

Invariants: a call is in the set until its status is there; a waiter that is done (answered, late,
cancelled) is never touched again; the call itself is never cancelled here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeAlias, TypeVar

import grpc.aio

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import Stage
from tritonasync.core.watch import Watch

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
        # No rest: a caller is let go a pause late at most.
        self._watch = Watch(asyncio.get_running_loop(), self._look, rest=0)
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
        self._watch.expect(flight.deadline.at)

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

    def _look(self, now: float) -> float:
        """Let those callers go whose time is up; return when the next one's is."""
        waiting = [flight for flight in self._out if not flight.waiter.done()]
        for flight in waiting:
            if flight.deadline.expired(now):
                flight.waiter.set_exception(self._late(flight))
        return min((f.deadline.at for f in waiting if not f.waiter.done()), default=math.inf)

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
        self._watch.close()
