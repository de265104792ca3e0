"""Who waits for what comes of a request on a stream.

Owns: the future of a caller who wants one answer, the bounded buffer of one who reads many, until
when each waits. Refuses to know: gRPC, which stream a request is on, what a response says.

Invariants: nobody is told anything after an error or the end; what came before an error is given
out before it; a buffer has a bound in responses and in bytes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    DecoupledModelError,
    ResponseOverflowError,
    Stage,
    TritonError,
)
from tritonasync.core.policies import StreamPolicy
from tritonasync.core.values import Call
from tritonasync.wire.stream import StreamResponse


class Place(Protocol):
    """Where a request is: on a stream."""

    def leave(self) -> None:
        """Take note that nobody waits for it any more."""
        ...

    def make_room(self) -> None:
        """Take note that who waits has room for more again."""
        ...

    def stage(self) -> Stage:
        """Return what the request is waiting for."""
        ...

    @property
    def sent(self) -> bool:
        """Whether it was sent, so that it may run."""
        ...

    def surprise(self) -> None:
        """Take note that its model is decoupled, and was not known to be."""
        ...


class Single:
    """A caller who wants one answer.

    Args:
        call: What was asked.
        target: The gRPC target, for errors.
        loop: The running event loop.

    Attributes:
        model: The model called.
        place: Where the request is, once it is there.
        sent_at: When it was put there, on the monotonic clock.
        due_at: Until when the caller waits, on the monotonic clock.
        repeatable: Whether the caller may be let go to send the request again.
        waiter: Resolved with the answer, or failed.
    """

    __slots__ = ("_call", "_target", "due_at", "model", "place", "repeatable", "sent_at", "waiter")

    def __init__(self, call: Call, target: str, loop: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._target = target
        self.model: str = call.model
        self.place: Place | None = None
        self.sent_at: float = math.inf
        self.due_at: float = call.deadline.at
        self.repeatable: bool = call.idempotent
        self.waiter: asyncio.Future[StreamResponse] = loop.create_future()

    def deliver(self, response: StreamResponse) -> bool:
        """Refuse a response that is not the last: who waits wants one answer."""
        del response
        if self.place is not None:
            self.place.surprise()
        self.fail(
            DecoupledModelError(
                f"model {self.model!r} at {self._target}: it is decoupled and gives many responses "
                "to a request: iterate over handle.stream(...)",
                code="UNIMPLEMENTED",
                details="a response that is not the last",
                model=self.model,
                endpoint=self._target,
            )
        )
        self.leave()
        return True

    def finish(self, response: StreamResponse) -> None:
        """Take the answer."""
        if not self.waiter.done():
            self.waiter.set_result(response)

    def fail(self, error: TritonError) -> None:
        """Take the error."""
        if not self.waiter.done():
            self.waiter.set_exception(error)

    def late(self) -> None:
        """Let the caller go: time is up."""
        if self.place is not None:
            self.fail(_time_is_up(self._call.deadline, self.place, self.model, self._target))
            self.leave()

    def leave(self) -> None:
        """Take note that the caller has left."""
        if self.place is not None:
            self.place.leave()


class Feed:
    """A caller who reads many responses, one after the other.

    Args:
        call: What was asked.
        target: The gRPC target, for errors.
        policy: How many responses are kept for a reader who is slow.
        expect: Has :meth:`late` called at a time on the monotonic clock, if it is still due then.

    Attributes:
        model: The model called.
        place: Where the request is, once it is there.
        sent_at: When it was put there, on the monotonic clock.
        due_at: Until when the reader waits; infinity while nobody waits.
        repeatable: Whether the reader may be let go to send the request again: not after the first
            response.
    """

    def __init__(
        self, call: Call, target: str, policy: StreamPolicy, expect: Callable[[float], None]
    ) -> None:
        self._call = call
        self._target = target
        self._policy = policy
        self._expect = expect
        self._loop = asyncio.get_running_loop()
        self._kept: deque[StreamResponse] = deque()
        self._kept_nbytes = 0
        self._full = False
        self._waiter: asyncio.Future[None] | None = None
        self._error: TritonError | None = None
        self._over = False
        self._begun = False
        self.model: str = call.model
        self.place: Place | None = None
        self.sent_at: float = math.inf
        self.due_at: float = call.deadline.at
        self.repeatable: bool = call.idempotent

    # --- what comes -----------------------------------------------------------------------------

    def deliver(self, response: StreamResponse) -> bool:
        """Keep a response; return whether there is room for more."""
        policy = self._policy
        self._keep(response)
        kept, nbytes = len(self._kept), self._kept_nbytes
        if kept > policy.max_overrun or nbytes > policy.max_overrun_nbytes:
            self._overflow(kept, nbytes)
            return True
        self._full = kept >= policy.max_buffered or nbytes >= policy.max_buffered_nbytes
        return not self._full

    def _keep(self, response: StreamResponse) -> None:
        self._kept.append(response)
        self._kept_nbytes += response.nbytes
        self._begun = True
        self.repeatable = False
        self._wake()

    def _overflow(self, kept: int, nbytes: int) -> None:
        self.fail(
            ResponseOverflowError(
                f"model {self.model!r} at {self._target}: {kept} responses ({nbytes:,} bytes) came "
                "and were not read, while others were waited for on the same stream: read faster, "
                "or give StreamPolicy more room",
                model=self.model,
                endpoint=self._target,
            )
        )
        self.leave()

    def finish(self, response: StreamResponse) -> None:
        """Keep the last response, if it is more than the word that there are no more."""
        if not response.empty:
            self._keep(response)
        self._over = True
        self._wake()

    def fail(self, error: TritonError) -> None:
        """Keep the error, for after what has come."""
        if not self._over:
            self._over = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        self.due_at = math.inf
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- who reads ------------------------------------------------------------------------------

    async def next(self) -> StreamResponse | None:
        """Return the next response, ``None`` if there is none.

        Raises:
            TritonError: It failed, or time is up.
        """
        while not self._kept:
            if self._over:
                if self._error is None:
                    return None
                error, self._error = self._error, None
                try:
                    raise error
                finally:
                    del error
            await self._wait()
        response = self._kept.popleft()
        self._kept_nbytes -= response.nbytes
        policy = self._policy
        if (
            self._full
            and len(self._kept) <= policy.max_buffered // 2
            and self._kept_nbytes <= policy.max_buffered_nbytes // 2
        ):
            self._full = False
            if self.place is not None:
                self.place.make_room()
        return response

    async def _wait(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        if self._begun:
            self.due_at = time.monotonic() + self._call.idle_s
        self._expect(self.due_at)
        try:
            await waiter
        finally:
            if self._begun:
                self.due_at = math.inf

    def late(self) -> None:
        """Let the reader go: time is up."""
        if self.place is None:
            return
        if self._begun:
            idle = Deadline(0.0, self._call.idle_s)
            error: TritonError = idle.error("responses", model=self.model, endpoint=self._target)
        else:
            error = _time_is_up(self._call.deadline, self.place, self.model, self._target)
        self.fail(error)
        self.leave()

    def leave(self) -> None:
        """Take note that the reader has left: nothing more is kept."""
        self._over = True
        if self.place is not None:
            self.place.leave()

    def drop(self) -> None:
        """Forget what was kept."""
        self.leave()
        self._kept.clear()
        self._error = None
        self._wake()


def _time_is_up(deadline: Deadline, place: Place, model: str, target: str) -> TritonError:
    error = deadline.error(place.stage(), model=model, endpoint=target)
    error.may_have_executed = place.sent
    return error
