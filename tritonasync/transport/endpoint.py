"""One server: its channels, and every call that is out on them.

Owns: the rule that a call which was sent is never cancelled. Triton 2.51 dies (SIGSEGV) of unary
calls that are cancelled, whose deadline expires, or whose channel closes while they are out, within
seconds under load; the fixes are spread over 2.53 to 2.59 (server issues #7368, #7472, #8034). So
each call runs in a task of this endpoint's, and its caller waits on a bare future beside it: a
caller that leaves, or whose time is up, drops the future, and the call goes on to its end.

Refuses to know: tensors and models' signatures; a message is bytes here.

Invariants: a message is sent once; every task is in ``_running`` until it ends, and
:meth:`Endpoint.aclose` waits for all of them before a channel is closed. These tasks are plain
asyncio tasks and no task group's, because a task group would cancel them with the scope they were
started in.
"""

from __future__ import annotations

import asyncio
import math
import warnings
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

import grpc
import grpc.aio

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConnectionLostError, PoolClosedError, Stage, TritonError
from tritonasync.transport.channel import HeaderSupply, Metadata
from tritonasync.transport.status import error_from_status

_SERVICE: Final = "/inference.GRPCInferenceService/"

RPC_GRACE_S: Final = 300.0
"""How far gRPC's own deadline lies beyond the caller's: it expires on a dead server only."""

_RPC_LONGEST_S: Final = 86_400.0
"""gRPC's own deadline for a caller without one: a day. No deadline at all would never let go of a
call whose server is gone without a word."""


_Method: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
_Call: TypeAlias = "grpc.aio.UnaryUnaryCall[bytes, bytes]"


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """What an endpoint has done so far.

    Attributes:
        target: The gRPC target.
        in_flight: Calls sent and not yet ended, abandoned ones included.
        succeeded: Calls that ended with an answer.
        failed: Calls that ended with an error.
        abandoned: Calls whose caller had left, or run out of time, before they ended.
    """

    target: str
    in_flight: int
    succeeded: int
    failed: int
    abandoned: int


class _Lane:
    """A channel, its multicallables by method, and the number of calls out on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.in_flight = 0
        self._methods: dict[str, _Method] = {}

    def method(self, name: str) -> _Method:
        """Return the callable of a method, with identity serialisers: bytes in, bytes out."""
        found = self._methods.get(name)
        if found is None:
            found = cast("_Method", self.channel.unary_unary(_SERVICE + name))
            self._methods[name] = found
        return found


class Endpoint:
    """Sends messages to one server and gives back its answers, as bytes.

    Args:
        target: The gRPC target, for messages.
        channels: At least one channel to it, made in the running event loop. Owned from here on.
        headers: The metadata of each call.
    """

    def __init__(
        self, target: str, channels: list[grpc.aio.Channel], headers: HeaderSupply
    ) -> None:
        self.target = target
        self._lanes = [_Lane(channel) for channel in channels]
        self._headers = headers
        self._running: set[asyncio.Task[None]] = set()
        self._closing = False
        self._succeeded = 0
        self._failed = 0
        self._abandoned = 0

    async def exchange(
        self,
        method: str,
        message: bytes,
        deadline: Deadline,
        *,
        stage: Stage = "server",
        model: str | None = None,
    ) -> bytes:
        """Send a message and return the answer.

        Args:
            method: The method's name in Triton's gRPC service, such as ``"ModelInfer"``.
            message: The serialised request.
            deadline: When the caller stops waiting. The call itself goes on.
            stage: What the deadline's error shall name, once there is a connection.
            model: The model concerned, for errors.

        Raises:
            DeadlineExceededError: The deadline passed.
            PoolClosedError: The endpoint is closed or closing.
            ServerError: The server answered with an error.
            TransportError: Nobody answered.
            ConfigurationError: The function that gives headers gave one that is not allowed.
        """
        metadata = self._headers.fixed
        if metadata is None:
            metadata = await self._ask_headers(deadline, model)
        if self._closing:
            raise PoolClosedError(f"the pool is closed: {self.target}", endpoint=self.target)
        deadline.check(stage, model=model, endpoint=self.target)
        lane = self._lanes[0] if len(self._lanes) == 1 else min(self._lanes, key=_load)
        call = lane.method(method)(message, timeout=_rpc_timeout(deadline), metadata=metadata)
        waiter = self._follow(call, lane, model)
        if deadline.at == math.inf:
            return await waiter
        timer = asyncio.get_running_loop().call_later(
            deadline.remaining(), self._expire, waiter, lane, deadline, stage, model
        )
        try:
            return await waiter
        finally:
            timer.cancel()

    def _follow(self, call: _Call, lane: _Lane, model: str | None) -> asyncio.Future[bytes]:
        """Start the task that sees a call to its end; return the future its caller waits on."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bytes] = loop.create_future()
        task = loop.create_task(self._finish(call, lane, waiter, model))
        lane.in_flight += 1
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return waiter

    async def _finish(
        self, call: _Call, lane: _Lane, waiter: asyncio.Future[bytes], model: str | None
    ) -> None:
        """See a call to its end, whether or not its caller still waits."""
        error: TritonError | None = None
        answer = b""
        try:
            answer = await call
        except grpc.aio.AioRpcError as failure:
            error = error_from_status(
                failure.code().name, failure.details() or "", endpoint=self.target, model=model
            )
            error.__cause__ = failure
        except BaseException as failure:
            # Only the end of the event loop, or a failure within gRPC, comes here.
            error = ConnectionLostError(
                f"{self.target}: the call was torn down ({failure!r})", endpoint=self.target
            )
            error.__cause__ = failure
            if not isinstance(failure, Exception):
                raise
        finally:
            lane.in_flight -= 1
            self._settle(waiter, answer, error)

    def _settle(
        self, waiter: asyncio.Future[bytes], answer: bytes, error: TritonError | None
    ) -> None:
        """Count an ended call and wake its caller, unless that one has left."""
        if error is None:
            self._succeeded += 1
        else:
            self._failed += 1
        if waiter.done():
            self._abandoned += 1
        elif error is None:
            waiter.set_result(answer)
        else:
            waiter.set_exception(error)

    async def _ask_headers(self, deadline: Deadline, model: str | None) -> Metadata:
        """Ask the user's function, within the deadline: nothing is sent yet, so it may be cut."""
        left = deadline.remaining()
        scope = asyncio.timeout(None if left == math.inf else left)
        try:
            async with scope:
                return await self._headers.ask()
        except TimeoutError as error:
            if not scope.expired():  # the function's own
                raise
            raise deadline.error("headers", model=model, endpoint=self.target) from error

    def _expire(
        self,
        waiter: asyncio.Future[bytes],
        lane: _Lane,
        deadline: Deadline,
        stage: Stage,
        model: str | None,
    ) -> None:
        """Let the caller go; the call goes on."""
        if waiter.done():
            return
        connected = lane.channel.get_state() is grpc.ChannelConnectivity.READY
        waiter.set_exception(
            deadline.error(stage if connected else "connect", model=model, endpoint=self.target)
        )

    def statistics(self) -> EndpointStatistics:
        """Return what this endpoint has done so far."""
        return EndpointStatistics(
            target=self.target,
            in_flight=sum(lane.in_flight for lane in self._lanes),
            succeeded=self._succeeded,
            failed=self._failed,
            abandoned=self._abandoned,
        )

    def stop_taking(self) -> None:
        """Refuse new calls from now on; those that are out go on."""
        self._closing = True

    async def aclose(self, deadline: Deadline) -> None:
        """Refuse new calls, wait for those that are out, close the channels.

        Calls that are still out at the deadline are torn down with their channel and a
        ``ResourceWarning``: below Triton 2.59 that can crash the server.
        """
        self.stop_taking()
        try:
            await self._drain(deadline)
        finally:
            for lane in self._lanes:
                await lane.channel.close()

    async def _drain(self, deadline: Deadline) -> None:
        if self._running:
            left = deadline.remaining()
            await asyncio.wait(self._running, timeout=None if left == math.inf else left)
        if self._running:
            warnings.warn(
                f"{self.target}: {len(self._running)} calls were still out when the pool's closing "
                f"time of {deadline.timeout_s:g} s was over; they are torn down",
                ResourceWarning,
                stacklevel=2,
            )


def _load(lane: _Lane) -> int:
    return lane.in_flight


def _rpc_timeout(deadline: Deadline) -> float:
    return min(deadline.remaining() + RPC_GRACE_S, _RPC_LONGEST_S)
