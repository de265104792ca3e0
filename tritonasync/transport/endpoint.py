"""One server, and every unary call that is out on its channels.

Owns: the rule that a call which was sent is never cancelled. Triton 2.51 dies (SIGSEGV) of unary
calls that are cancelled, whose deadline expires, or whose channel closes while they are out, within
seconds under load; the fixes are spread over 2.53 to 2.59 (server issues #7368, #7472, #8034). So
the caller of a call waits on a bare future beside it (``flights``): a caller that leaves, or whose
time is up, drops the future, and the call goes on to its end. It is cancelled only on request, and
on a connection whose server gave a version that lives through it.

Refuses to know: tensors and models' signatures (a message is bytes here), and what is told of the
server by its connection (``link`` does).

Invariants: a message is sent once; a call is awaited only when its status is there, since awaiting
is what makes gRPC cancel it with its caller; a channel is closed when no call is out on it, or when
the time of :meth:`Endpoint.aclose` is over.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable
from typing import Final

import grpc
import grpc.aio

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ServerError,
    ServerUnreachableError,
    Stage,
    TritonError,
)
from tritonasync.transport.channel import HeaderSupply, Metadata
from tritonasync.transport.flights import Flight, Flights
from tritonasync.transport.lanes import Lane
from tritonasync.transport.link import Link
from tritonasync.transport.statistics import EndpointStatistics

RPC_GRACE_S: Final = 300.0
"""How far gRPC's own deadline lies beyond the caller's: it expires on a dead server only."""

_RPC_LONGEST_S: Final = 86_400.0
"""gRPC's own deadline for a caller without one: a day. No deadline at all would never let go of a
call whose server is gone without a word."""

TEARDOWN_S: Final = 0.05
"""gRPC reports the end of each torn call to its event loop a moment later; were the loop closed by
then, the report would be raised in another loop of the process."""


class Endpoint:
    """Sends messages to one server and gives back its answers, as bytes.

    Args:
        target: The gRPC target, for messages.
        channels: Makes channels to it, at least one, in the running event loop: now, and when the
            endpoint is to connect anew. (A list of channels is kept: :meth:`let_go` makes no
            others.) Owned from here on.
        headers: The metadata of each call.
        cancel_on_server: Whether a call whose caller leaves, or runs out of time, is cancelled on
            the server, too. Done only where that is known to do no harm: the server is asked for
            its version on each new connection. Never on a ``dns:`` or ``xds:`` target, behind which
            the versions may be mixed.

    Attributes:
        target: The gRPC target.
        link: The way to the server. Streams share it.
    """

    def __init__(
        self,
        target: str,
        channels: Callable[[], list[grpc.aio.Channel]] | list[grpc.aio.Channel],
        headers: HeaderSupply,
        *,
        cancel_on_server: bool = False,
    ) -> None:
        self.target = target
        self.link: Link = Link(
            target, channels, headers, ask_version=self._ask_version if cancel_on_server else None
        )
        self._flights = Flights(self._late, self._landed)
        self._tasks: set[asyncio.Task[None]] = set()
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
        repeatable: bool = False,
        via: Lane | None = None,
        over: Callable[[bool], None] | None = None,
    ) -> bytes:
        """Send a message and return the answer.

        Args:
            method: The method's name in Triton's gRPC service, such as ``"ModelInfer"``.
            message: The serialised request.
            deadline: When the caller stops waiting. The call itself goes on.
            stage: What the deadline's error shall name, once there is a connection.
            model: The model concerned, for errors.
            repeatable: Whether it does no harm to send it again, so that :meth:`let_go` may let
                the caller go.
            via: The channel to send it on; ``None`` for the one with the fewest calls out.
            over: Called once, whoever has left meanwhile, when the call has ended or will not be
                made: with whether the server is surely done with it. Must not raise.

        Raises:
            ConnectionLostError: The connection broke, or the caller was let go.
            DeadlineExceededError: The deadline passed.
            PoolClosedError: The endpoint is closed or closing.
            QueueFullError: Too many requests that nobody waits for are out.
            ServerError: The server answered with an error.
            TransportError: Nobody answered.
            ConfigurationError: The function that gives headers gave one that is not allowed.
        """
        try:
            metadata = self.link.headers.fixed
            if metadata is None:
                metadata = await self.link.ask_headers(deadline, model)
            flight = self._send(method, message, metadata, deadline, stage, model, repeatable, via)
        except BaseException:
            if over is not None:
                over(True)  # noqa: FBT003 - nothing was sent
            raise
        flight.over = over
        try:
            await flight.waiter
        except asyncio.CancelledError:
            if flight.call.done() and not flight.forsaken:
                self._abandon(flight)  # its answer was there, and its caller was about to wake
            self._flights.leave(flight)
            self._cancel(flight)
            raise
        except TritonError as error:
            if isinstance(error, DeadlineExceededError):
                self._cancel(flight)
            del flight  # which holds the error, which holds this frame, and with it the message
            raise
        try:
            answer = await flight.call
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as failure:
            self._failed += 1
            meant = self._error(failure, flight)
            flight.end(done=_settled(meant))
            if meant is None:
                raise
            try:
                raise meant from failure
            finally:
                del meant  # which holds this frame, and with it the message, until a collection
        self._succeeded += 1
        flight.end(done=True)
        self.link.answered(flight.lane, flight.connection)
        return answer

    def _send(  # noqa: PLR0917 - keywords would cost 0.1 µs of each call
        self,
        method: str,
        message: bytes,
        metadata: Metadata,
        deadline: Deadline,
        stage: Stage,
        model: str | None,
        repeatable: bool,  # noqa: FBT001
        via: Lane | None,
    ) -> Flight:
        self.link.admit(self._flights.abandoned, model)
        now = time.monotonic()
        left = deadline.at - now
        if left <= 0:
            raise deadline.error("send", model=model, endpoint=self.target)
        lane = self.link.lane(via)
        timeout = min(left + RPC_GRACE_S, _RPC_LONGEST_S)
        send = lane.methods.get(method) or lane.add_method(method)
        call = send(message, timeout=timeout, metadata=metadata or None)
        lane.in_flight += 1
        flight = Flight(call, lane, now, deadline, stage, model, repeatable)
        self._flights.launch(flight)
        return flight

    def _error(
        self, failure: grpc.aio.AioRpcError | asyncio.CancelledError, flight: Flight
    ) -> TritonError | None:
        """Return what a failed call means; ``None`` if it is the caller that was cancelled."""
        if isinstance(failure, grpc.aio.AioRpcError):
            return self.link.failure(failure, flight.lane, flight.connection, flight.model)
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return None
        why = "; the pool's time for closing was over" if self.link.closing else ""
        return self.link.lost(flight.model, f"the call was torn down with its connection{why}")

    def _landed(self, flight: Flight) -> None:
        self.link.land(flight.lane)
        if flight.forsaken:
            self._abandon(flight)

    def _abandon(self, flight: Flight) -> None:
        """Count a call that ended without a caller; gRPC tells what became of it to awaiters."""
        self._abandoned += 1
        task = asyncio.get_running_loop().create_task(self._see_off(flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _see_off(self, flight: Flight) -> None:
        try:
            await flight.call
        except grpc.aio.AioRpcError as failure:
            self._failed += 1
            meant = self.link.failure(failure, flight.lane, flight.connection, flight.model)
            flight.end(done=_settled(meant))
            del meant
        except asyncio.CancelledError:
            self._failed += 1
            flight.end(done=False)
        else:
            self._succeeded += 1
            flight.end(done=True)
            self.link.answered(flight.lane, flight.connection)

    # --- the server at the other end ------------------------------------------------------------

    async def _ask_version(self, lane: Lane) -> bytes:
        return await self.exchange("ServerMetadata", b"", NEVER, repeatable=True, via=lane)

    def _cancel(self, flight: Flight) -> None:
        """Cancel a call whose caller is gone, if the server is known to live through it."""
        if self.link.cancels(flight.lane, flight.connection):
            flight.call.cancel()

    # --- silence --------------------------------------------------------------------------------

    def silent_since(self) -> float:
        """Return since when calls are out and nothing was answered, on the monotonic clock.

        Infinity while nothing is out. What is out on retired channels counts while its caller
        waits.
        """
        return max(self.link.answered_at, self._flights.oldest())

    def let_go(self, reason: str) -> None:
        """Let the callers of repeatable calls go with a ``ConnectionLostError``, and reconnect.

        The calls go on, and the callers of the others go on waiting for theirs. What is sent from
        now on goes out on fresh channels, unless they were renewed within the last second: a
        connection may be dead without a word (half-open). ``reason`` is for the errors.
        """
        message = f"its caller was let go: {reason}"
        self._flights.let_go(lambda flight: self.link.lost(flight.model, message))
        if not self.link.closing:
            self.link.lanes.renew(time.monotonic())

    # --- what is waited for ---------------------------------------------------------------------

    def _late(self, flight: Flight) -> DeadlineExceededError:
        stage = flight.stage if flight.lane.connected() else "connect"
        return flight.deadline.error(stage, model=flight.model, endpoint=self.target)

    def statistics(self) -> EndpointStatistics:
        """Return what this endpoint has done so far."""
        return EndpointStatistics(
            target=self.target,
            in_flight=len(self._flights),
            succeeded=self._succeeded,
            failed=self._failed,
            abandoned=self._abandoned,
            reconnections=self.link.reconnections,
            server_version=self.link.server_version,
        )

    async def aclose(self, deadline: Deadline) -> None:
        """Refuse new calls, wait for those that are out, close the channels.

        Calls that are still out at the deadline are torn down with their channel and a
        ``ResourceWarning``: below Triton 2.59 that can crash the server.
        """
        self.link.close()
        await self._flights.wait_until_quiet(deadline)
        torn = len(self._flights)
        await self.link.aclose()
        self._flights.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not torn:
            return
        await asyncio.sleep(TEARDOWN_S)
        warnings.warn(
            f"{self.target}: {torn} calls were still out when the pool's closing time of "
            f"{deadline.timeout_s:g} s was over; they were torn down",
            ResourceWarning,
            stacklevel=2,
        )


def _settled(error: TritonError | None) -> bool:
    """Return whether a server is surely done with a call that ended so.

    It answered, or never had it. After a lost connection it may go on with the call.
    """
    return isinstance(error, ServerError | ServerUnreachableError | MessageTooLargeError)
