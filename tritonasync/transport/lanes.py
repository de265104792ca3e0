"""The channels to one server: which one a call goes out on, and which connection that is.

gRPC connects a channel lazily and again and again: a channel outlives the connections it has, and
the process at the other end of the next one need not be that of the last.

Owns: numbering the connections of each channel; fresh channels in place of those whose connection
may be dead without a word; closing the old ones. Refuses to know: calls and who waits for them.

Invariants: a retired channel is closed when the last call out on it has ended, never before, but
for :meth:`Lanes.aclose`; fresh channels are made once a second at most.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final, TypeAlias, cast

import grpc
import grpc.aio

from tritonasync.core.errors import ConfigurationError
from tritonasync.transport.channel import Metadata
from tritonasync.transport.versions import UNKNOWN, ServerFeatures

_SERVICE: Final = "/inference.GRPCInferenceService/"
_STREAM: Final = "ModelStreamInfer"

READY: Final = grpc.ChannelConnectivity.READY

RENEWAL_PAUSE_S: Final = 1.0
"""The least time between two generations of channels: connecting costs a server something."""

Method: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
StreamCall: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
_StreamMethod: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"


class Lane:
    """A channel, its multicallables by method, and the calls out on it.

    Attributes:
        channel: The channel.
        state: Its connectivity; 0.06 µs.
        methods: The callables that were used.
        in_flight: Calls out on it.
        connection: The number of its present connection, or of the one being made; 1 is the first.
        answered: The number of the last connection on which anything was answered.
        ready: Whether the present connection was seen, so that its absence is its loss.
        version: The version that the server at the other end of this connection gave.
        features: What that version can do.
        retired: Whether nothing is sent on it any more.
    """

    __slots__ = (
        "_open_stream",
        "answered",
        "channel",
        "connection",
        "features",
        "in_flight",
        "methods",
        "ready",
        "retired",
        "state",
        "version",
    )

    def __init__(self, channel: grpc.aio.Channel, connection: int = 1) -> None:
        self.channel: grpc.aio.Channel = channel
        self.state: Callable[[], grpc.ChannelConnectivity] = channel.get_state
        self.methods: dict[str, Method] = {}
        self._open_stream: _StreamMethod | None = None
        self.in_flight: int = 0
        self.connection: int = connection
        self.answered: int = 0
        self.ready: bool = False
        self.version: str | None = None
        self.features: ServerFeatures = UNKNOWN
        self.retired: bool = False

    def connected(self) -> bool:
        """Return whether there is a connection."""
        return self.state() is READY

    def add_method(self, name: str) -> Method:
        """Make the callable of a method, with identity serialisers: bytes in, bytes out."""
        made = cast("Method", self.channel.unary_unary(_SERVICE + name))
        self.methods[name] = made
        return made

    def open_stream(self, metadata: Metadata) -> StreamCall:
        """Open a stream, bytes in and bytes out. It has no deadline: it is to last."""
        opened = self._open_stream
        if opened is None:
            opened = cast("_StreamMethod", self.channel.stream_stream(_SERVICE + _STREAM))
            self._open_stream = opened
        return opened(metadata=metadata or None)

    @property
    def used(self) -> bool:
        """Whether anything was sent on it."""
        return bool(self.methods) or self._open_stream is not None

    def turn(self) -> None:
        """Take note that the channel is connected now and was not before, or the other way round.

        What is sent on a channel that lost its connection makes it connect again.
        """
        if self.ready:
            self.lose(self.connection)
        else:
            self.ready = True

    def lose(self, connection: int) -> None:
        """Take note that a connection is lost, if it is the present one."""
        if connection != self.connection:
            return
        self.connection += 1
        self.ready = False
        self.version, self.features = None, UNKNOWN

    def hear(self, connection: int) -> None:
        """Take note of the first answer on a connection."""
        self.answered = connection
        if connection == self.connection:
            self.ready = True

    def learn(self, version: str | None, connection: int) -> None:
        """Take note of the version of a connection's server, if it is the present one's."""
        if connection == self.connection:
            self.version, self.features = version, ServerFeatures.of(version)


class Lanes:
    """The channels to one server. Must be made in the running event loop.

    Args:
        channels: Makes channels, at least one; or channels, which then cannot be renewed. Owned
            from here on.

    Attributes:
        current: The channels that calls go out on.
    """

    def __init__(
        self, channels: Callable[[], list[grpc.aio.Channel]] | list[grpc.aio.Channel]
    ) -> None:
        self._make = channels if callable(channels) else None
        made = channels() if callable(channels) else channels
        self.current: list[Lane] = [Lane(channel) for channel in made]
        self._retired: set[Lane] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._renewed_at = -math.inf

    @property
    def version(self) -> str | None:
        """The version of the server, if all channels in use were told the same one."""
        versions = {lane.version for lane in self.current if lane.used}
        return versions.pop() if len(versions) == 1 else None

    def renew(self, now: float) -> None:
        """Have new calls go out on fresh channels, unless the present ones are fresh enough."""
        old = self.current
        if self._make is None or now < self._renewed_at + RENEWAL_PAUSE_S:
            return
        if not any(lane.used for lane in old):
            return  # nothing was sent on them yet
        self._renewed_at = now
        connection = max(lane.connection for lane in old) + 1
        try:
            made = self._make()
        except ConfigurationError:
            return  # a certificate's file that is gone by now: what there is must do
        self.current = [Lane(channel, connection) for channel in made]
        for lane in old:
            lane.retired = True
            self._retired.add(lane)
            if not lane.in_flight:
                self.close(lane)

    def close(self, lane: Lane) -> None:
        """Close a retired channel on which no call is out."""
        if lane not in self._retired:
            return
        self._retired.discard(lane)
        task = asyncio.get_running_loop().create_task(lane.channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close all channels, and tear down what is out on them."""
        retired, self._retired = self._retired, set()
        for lane in (*self.current, *retired):
            await lane.channel.close()
        await asyncio.gather(*self._closing)
