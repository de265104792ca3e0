"""The way to one server: its channels, its headers, and who is at the other end.

Owns: picking the channel that something is sent on, the headers it is sent with, when anything was
last heard, noticing a server that was restarted: what is sent on a channel that was connected and
is not any more goes out on a new connection (``lanes`` number them), and the first answer on that
one tells whoever watches that the server may be another one.

Refuses to know: calls, streams and who waits for them (``endpoint`` and ``streams`` share it).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
import grpc.aio

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    ConnectionLostError,
    PoolClosedError,
    QueueFullError,
    ServerError,
    ServerUnreachableError,
    Stage,
    TransportError,
    TritonError,
)
from tritonasync.transport.channel import HeaderSupply, Metadata, balanced
from tritonasync.transport.lanes import READY, Lane, Lanes
from tritonasync.transport.peer import Peer
from tritonasync.transport.status import error_from_status
from tritonasync.transport.versions import ServerFeatures

MAX_ABANDONED: Final = 10_000
"""Each takes its time on the server and some 17 kB here. Callers who give up sooner than the server
answers would heap them up: 1.7 GB after 100,000 calls with deadlines of 0.5 to 5 ms."""


class Link:
    """What calls and streams to one server have in common. Made in the running event loop.

    Args:
        target: The gRPC target, for messages.
        channels: Makes channels to it, or channels that are kept; see :class:`Lanes`. Owned.
        headers: The metadata of what is sent.
        ask_version: Asks the server for its version on a channel, so that what it can do is known;
            ``None`` to ask nothing. Not done on a ``dns:`` or ``xds:`` target, behind which the
            versions may be mixed.

    Attributes:
        target: The gRPC target.
        lanes: The channels.
        headers: The metadata of what is sent.
        answered_at: When anything was last heard, on the monotonic clock.
        closing: Whether nothing new is sent.
        removed: Whether the pool goes on without it, so that its calls may go elsewhere.
    """

    def __init__(
        self,
        target: str,
        channels: Callable[[], list[grpc.aio.Channel]] | list[grpc.aio.Channel],
        headers: HeaderSupply,
        *,
        ask_version: Callable[[Lane], Awaitable[bytes]] | None = None,
    ) -> None:
        self.target = target
        self.lanes: Lanes = Lanes(channels)
        self.headers = headers
        self._cancels = ask_version is not None and not balanced(target)
        self._peer = Peer(ask_version)
        self._asking = 0
        self.answered_at: float = -math.inf
        self.closing: bool = False
        self.removed = False

    # --- sending --------------------------------------------------------------------------------

    def admit(self, abandoned: int, model: str | None) -> None:
        """Refuse what cannot be sent now; so many requests are out that nobody waits for.

        Raises:
            PoolClosedError: The pool is closed or closing.
            ServerUnreachableError: The endpoint was removed.
            QueueFullError: Too many requests that nobody waits for are out.
        """
        if self.closing:
            raise self.closed(model)
        if abandoned >= MAX_ABANDONED:
            raise self.full(
                model,
                "too many abandoned requests are out",
                f"{MAX_ABANDONED} requests whose callers have left are still out, since the server "
                "is slower than calls are given up: call less, wait longer, or add endpoints",
            )

    async def ask_headers(self, deadline: Deadline, model: str | None) -> Metadata:
        """Ask the user's function, within the deadline: nothing is sent yet, so it may be cut.

        Raises:
            DeadlineExceededError: It took too long.
        """
        scope = asyncio.timeout(deadline.wait_s())
        self._asking += 1
        try:
            async with scope:
                return await self.headers.ask()
        except TimeoutError as error:
            raise deadline.error("headers", model=model, endpoint=self.target) from error
        finally:
            self._asking -= 1

    def lane(self, via: Lane | None = None) -> Lane:
        """Return the channel to send on: the one given if it is in use, or one with little out."""
        lanes = self.lanes.current
        if via is None or via.retired:
            lane = lanes[0] if len(lanes) == 1 else min(lanes, key=_load)
        else:
            lane = via
        if (lane.state() is READY) is not lane.ready:
            lane.turn()
        return lane

    def land(self, lane: Lane) -> None:
        """Take note that something sent on a channel is over."""
        lane.in_flight -= 1
        if lane.retired and not lane.in_flight:
            self.lanes.close(lane)

    @property
    def may_cancel(self) -> bool:
        """Whether what goes out now may be cancelled, as far as is known."""
        return self._cancels and self.features.cancelling

    def cancels(self, lane: Lane, connection: int) -> bool:
        """Return whether what went out on a connection may be cancelled, and is to be."""
        # On an older connection there may be an older server.
        return self._cancels and lane.features.cancelling and connection == lane.connection

    # --- what comes back ------------------------------------------------------------------------

    def answered(self, lane: Lane, connection: int) -> None:
        """Take note that something was heard on a connection."""
        self.answered_at = time.monotonic()
        if connection > lane.answered:
            self._peer.heard(lane, connection)

    def failure(
        self, failure: grpc.aio.AioRpcError, lane: Lane, connection: int, model: str | None
    ) -> ServerError | TransportError:
        """Return what a status means, and take note of what it tells of the connection."""
        code, details = failure.code().name, failure.details() or ""
        error = error_from_status(code, details, endpoint=self.target, model=model)
        if isinstance(error, ServerError):
            self.answered(lane, connection)
        elif isinstance(error, ConnectionError) and lane.ready:
            lane.lose(connection)
        return error

    def lost(self, model: str | None, message: str) -> ConnectionLostError:
        """Return the error for what was sent, and nothing more is known."""
        return ConnectionLostError(
            f"{self.subject(model)}: {message}", model=model, endpoint=self.target
        )

    def not_sent(self, model: str | None, reason: str) -> ServerUnreachableError:
        """Return the error for what was certainly not sent."""
        return ServerUnreachableError(
            f"{self.subject(model)}: not sent, since {reason}", model=model, endpoint=self.target
        )

    def closed(self, model: str | None) -> TritonError:
        """Return the error for what comes when nothing new is sent any more."""
        if self.removed:
            return ServerUnreachableError(
                f"{self.target} was removed from the pool", model=model, endpoint=self.target
            )
        return PoolClosedError(f"the pool is closed: {self.target}", endpoint=self.target)

    def full(self, model: str | None, details: str, reason: str) -> QueueFullError:
        """Return the error for what comes when too much is out already."""
        return QueueFullError(
            f"{self.subject(model)}: {reason}",
            code="RESOURCE_EXHAUSTED",
            details=details,
            model=model,
            endpoint=self.target,
        )

    def subject(self, model: str | None) -> str:
        """Return what a message is about."""
        return f"model {model!r} at {self.target}" if model else self.target

    # --- the server at the other end ------------------------------------------------------------

    def waits_for(self) -> Stage:
        """Return what calls that are out are waiting for, to be named when time is up."""
        if self._asking:
            return "headers"
        return "server" if any(lane.connected() for lane in self.lanes.current) else "connect"

    def watch_reconnections(self, callback: Callable[[], None]) -> None:
        """Have a function called when a connection made anew was first answered on.

        The server may be another process than before, with other models. One function is kept; it
        must not raise.
        """
        self._peer.on_reconnected = callback

    @property
    def reconnections(self) -> int:
        """How many connections made anew were answered on."""
        return self._peer.reconnections

    @property
    def server_version(self) -> str | None:
        """The version that the server gave; ``None`` while it is not known, or not asked for."""
        return self.lanes.version

    @property
    def features(self) -> ServerFeatures:
        """What the server can do, as far as its version is known."""
        return ServerFeatures.of(self.server_version)

    def close(self) -> None:
        """Send nothing new, and ask nothing more."""
        self.closing = True
        self._peer.stop()

    async def aclose(self) -> None:
        """Close all channels, and tear down what is out on them."""
        await self.lanes.aclose()
        await self._peer.wait_stopped()


def _load(lane: Lane) -> int:
    return lane.in_flight
