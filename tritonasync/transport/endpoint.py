"""One server: its channels, and every call that is out on them.

Owns: the rule that a call which was sent is never cancelled. Triton 2.51 dies (SIGSEGV) of unary
calls that are cancelled, whose deadline expires, or whose channel closes while they are out, within
seconds under load; the fixes are spread over 2.53 to 2.59 (server issues #7368, #7472, #8034). So
the caller of a call waits on a bare future beside it (``flights``): a caller that leaves, or whose
time is up, drops the future, and the call goes on to its end.

Refuses to know: tensors and models' signatures; a message is bytes here.

Invariants: a message is sent once; a call is awaited only when its status is there, since awaiting
is what makes gRPC cancel it with its caller; :meth:`Endpoint.aclose` waits for all calls before a
channel is closed.
"""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

import grpc
import grpc.aio

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    PoolClosedError,
    Stage,
    TritonError,
)
from tritonasync.transport.channel import HeaderSupply, Metadata
from tritonasync.transport.flights import Flight, Flights, UnaryCall
from tritonasync.transport.status import error_from_status

_SERVICE: Final = "/inference.GRPCInferenceService/"

RPC_GRACE_S: Final = 300.0
"""How far gRPC's own deadline lies beyond the caller's: it expires on a dead server only."""

_RPC_LONGEST_S: Final = 86_400.0
"""gRPC's own deadline for a caller without one: a day. No deadline at all would never let go of a
call whose server is gone without a word."""


_TEARDOWN_S: Final = 0.05

_Method: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


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
        self.methods: dict[str, _Method] = {}

    def connected(self) -> bool:
        """Return whether there is a connection."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    def add_method(self, name: str) -> _Method:
        """Make the callable of a method, with identity serialisers: bytes in, bytes out."""
        made = cast("_Method", self.channel.unary_unary(_SERVICE + name))
        self.methods[name] = made
        return made


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
        self._flights = Flights(self._late, self._landed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking = 0
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
        flight = self._send(method, message, metadata, deadline, stage=stage, model=model)
        try:
            await flight.waiter
        except asyncio.CancelledError:
            if flight.call.done() and not flight.forsaken:
                self._abandon(flight)  # its answer was there, and its caller was about to wake
            raise
        try:
            answer = await flight.call
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as failure:
            self._failed += 1
            error = self._error(failure, model)
            if error is None:
                raise
            try:
                raise error from failure
            finally:
                del error  # which holds this frame, and with it the message, until a collection
        self._succeeded += 1
        return answer

    def _send(
        self,
        method: str,
        message: bytes,
        metadata: Metadata,
        deadline: Deadline,
        *,
        stage: Stage,
        model: str | None,
    ) -> Flight[_Lane]:
        if self._closing:
            raise PoolClosedError(f"the pool is closed: {self.target}", endpoint=self.target)
        left = deadline.remaining()
        if not left:
            raise deadline.error("send", model=model, endpoint=self.target)
        lane = self._lanes[0] if len(self._lanes) == 1 else min(self._lanes, key=_load)
        timeout = min(left + RPC_GRACE_S, _RPC_LONGEST_S)
        send = lane.methods.get(method) or lane.add_method(method)
        call = send(message, timeout=timeout, metadata=metadata or None)
        lane.in_flight += 1
        flight = Flight(call, lane, deadline, stage, model)
        self._flights.launch(flight)
        return flight

    def _error(
        self, failure: grpc.aio.AioRpcError | asyncio.CancelledError, model: str | None
    ) -> TritonError | None:
        """Return what a failed call means; ``None`` if it is the caller that was cancelled."""
        if isinstance(failure, grpc.aio.AioRpcError):
            return error_from_status(
                failure.code().name, failure.details() or "", endpoint=self.target, model=model
            )
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return None
        return ConnectionLostError(
            f"{self.target}: the call was torn down with its connection",
            model=model,
            endpoint=self.target,
        )

    def _landed(self, flight: Flight[_Lane]) -> None:
        flight.lane.in_flight -= 1
        if flight.forsaken:
            self._abandon(flight)

    def _abandon(self, flight: Flight[_Lane]) -> None:
        """Count a call that ended without a caller; gRPC tells what became of it to awaiters."""
        self._abandoned += 1
        task = asyncio.get_running_loop().create_task(self._see_off(flight.call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _see_off(self, call: UnaryCall) -> None:
        try:
            await call
            self._succeeded += 1
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            self._failed += 1

    def _late(self, flight: Flight[_Lane]) -> DeadlineExceededError:
        stage = flight.stage if flight.lane.connected() else "connect"
        return flight.deadline.error(stage, model=flight.model, endpoint=self.target)

    def waits_for(self) -> Stage:
        """Return what a question for a signature is waiting for, to be named when time is up."""
        stage = self.answers_by()
        return "metadata" if stage == "server" else stage

    def answers_by(self) -> Stage:
        """Return what calls that are out are waiting for, to be named when time is up."""
        if self._asking:
            return "headers"
        return "server" if any(lane.connected() for lane in self._lanes) else "connect"

    async def _ask_headers(self, deadline: Deadline, model: str | None) -> Metadata:
        """Ask the user's function, within the deadline: nothing is sent yet, so it may be cut."""
        scope = asyncio.timeout(deadline.wait_s())
        self._asking += 1
        try:
            async with scope:
                return await self._headers.ask()
        except TimeoutError as error:
            raise deadline.error("headers", model=model, endpoint=self.target) from error
        finally:
            self._asking -= 1

    def statistics(self) -> EndpointStatistics:
        """Return what this endpoint has done so far."""
        return EndpointStatistics(
            target=self.target,
            in_flight=sum(lane.in_flight for lane in self._lanes),
            succeeded=self._succeeded,
            failed=self._failed,
            abandoned=self._abandoned,
        )

    async def aclose(self, deadline: Deadline) -> None:
        """Refuse new calls, wait for those that are out, close the channels.

        Calls that are still out at the deadline are torn down with their channel and a
        ``ResourceWarning``: below Triton 2.59 that can crash the server.
        """
        self._closing = True
        await self._flights.wait_until_quiet(deadline)
        torn = len(self._flights)
        for lane in self._lanes:
            await lane.channel.close()
        self._flights.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not torn:
            return
        # gRPC reports the end of each torn call to this event loop a moment later; were the loop
        # closed by then, the report would be raised in another loop of the process.
        await asyncio.sleep(_TEARDOWN_S)
        warnings.warn(
            f"{self.target}: {torn} calls were still out when the pool's closing time of "
            f"{deadline.timeout_s:g} s was over; they were torn down",
            ResourceWarning,
            stacklevel=2,
        )


def _load(lane: _Lane) -> int:
    return lane.in_flight
