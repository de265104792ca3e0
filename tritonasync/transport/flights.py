"""Calls that are out: who waits for each, until when, and when all are over.

Owns: the futures that callers wait on, one timer for all their deadlines, letting callers go,
waiting for the end of all. Refuses to know: what a message is, what an answer or an error means.

Invariants: a call is in the set until its status is there; a waiter that is done (answered, late,
cancelled) is never touched again; the call itself is never cancelled here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import grpc.aio

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import Stage
from tritonasync.core.watch import Watch
from tritonasync.transport.lanes import Lane

UnaryCall: TypeAlias = "grpc.aio.UnaryUnaryCall[bytes, bytes]"


class Flight:
    """One call that is out.

    Attributes:
        call: The call.
        lane: What it went out on.
        connection: The number of the lane's connection when it was sent.
        sent_at: When it was sent, on the monotonic clock.
        deadline: When its caller stops waiting.
        stage: What the deadline's error names.
        model: The model called, if one is.
        repeatable: Whether its caller may be let go to send it again.
        forsaken: Whether its caller had left when it was over.
        counted: Whether it is among the abandoned.
        over: Told, once, when it has ended, with whether the server is surely done with it.
        waiter: Resolved when the status of the call is there, failed at the deadline or when the
            caller is let go, cancelled with the caller.
    """

    __slots__ = (
        "call",
        "connection",
        "counted",
        "deadline",
        "forsaken",
        "lane",
        "model",
        "over",
        "repeatable",
        "sent_at",
        "stage",
        "waiter",
    )

    def __init__(  # noqa: PLR0917 - keywords would cost 0.1 µs of each call
        self,
        call: UnaryCall,
        lane: Lane,
        sent_at: float,
        deadline: Deadline,
        stage: Stage,
        model: str | None,
        repeatable: bool,  # noqa: FBT001
    ) -> None:
        self.call: UnaryCall = call
        self.lane: Lane = lane
        self.connection: int = lane.connection
        self.sent_at: float = sent_at
        self.deadline: Deadline = deadline
        self.stage: Stage = stage
        self.model: str | None = model
        self.repeatable: bool = repeatable
        self.forsaken: bool = False
        self.counted: bool = False
        self.over: Callable[[bool], None] | None = None
        self.waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, *, done: bool) -> None:
        """Tell whoever is to know that it has ended; ``done``: the server surely is, too."""
        over, self.over = self.over, None
        if over is not None:
            over(done)


class Flights:
    """The calls that are out.

    Args:
        late: Makes the error of a caller whose deadline passed.
        landed: Told of each call that is over.

    Attributes:
        abandoned: Calls that are out and nobody waits for.
    """

    def __init__(
        self, late: Callable[[Flight], Exception], landed: Callable[[Flight], None]
    ) -> None:
        self._late = late
        self._landed = landed
        self._out: dict[Flight, None] = {}  # the oldest first
        self.abandoned: int = 0
        # No rest: a caller is let go a pause late at most.
        self._watch = Watch(asyncio.get_running_loop(), self._look, rest=0)
        self._quiet: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._out)

    def launch(self, flight: Flight) -> None:
        """Take note of a call that was sent."""
        self._out[flight] = None
        # gRPC runs this when the status is there, and the call's own task ends in the same turn of
        # the loop: a caller that is woken by it finds the answer in the next turn. A task of ours
        # that awaited the call would cost one turn more, some 40 µs of a call's 300.
        flight.call.add_done_callback(partial(self._land, flight))
        self._watch.expect(flight.deadline.at)

    def _land(self, flight: Flight, call: UnaryCall) -> None:
        del call  # the flight's own
        self._out.pop(flight, None)
        if flight.waiter.done():
            flight.forsaken = True
            self.abandoned -= flight.counted
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
                self.leave(flight)
        return min((f.deadline.at for f in waiting if not f.waiter.done()), default=math.inf)

    def oldest(self) -> float:
        """Return when the oldest call was sent whose silence says something; infinity if none is.

        What nobody waits for says nothing of the present connections where it went out on another.
        """
        return next(
            (f.sent_at for f in self._out if not (f.lane.retired and f.waiter.done())), math.inf
        )

    def let_go(self, error: Callable[[Flight], Exception]) -> None:
        """Give the callers of repeatable calls an error each; the calls go on."""
        for flight in self._out:
            if flight.repeatable and not flight.waiter.done():
                flight.waiter.set_exception(error(flight))
                self.leave(flight)
                # A silent connection may not end it for minutes, and who holds memory for it has
                # better ways to find out when the server is done.
                flight.end(done=False)

    def leave(self, flight: Flight) -> None:
        """Take note that nobody waits for a call any more."""
        if not flight.counted and flight in self._out:
            flight.counted = True
            self.abandoned += 1

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
