"""One client's connection through the proxy, and the connection to the server behind it.

Owns: the bytes of one connection in both directions, and the tasks that carry them. Refuses to
know: other connections, and why a fault is wanted.

Invariants: what either side receives is a beginning of what the other sent, with at most one GOAWAY
between two frames, and never with a hole: a connection that dropped a byte is ``lost`` and forwards
nothing any more. Every byte that the client sent is looked at for requests, the dropped ones too.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.frames import FrameReader
from tests.faults.pipe import MOST_AT_ONCE, Pacer, Pipe, sleep_until, slice_bytes
from tests.faults.requests import RequestReader
from tests.faults.sockets import connect, reset_on_close, unconnected


@dataclass(slots=True)
class Network:
    """What all connections of a proxy have in common; may change under them.

    Attributes:
        upstream: Where new connections lead.
        latency_s: How long bytes take from the server to the client.
        bytes_per_s: The bandwidth of each direction.
        flows: While it is not set, nothing is read, and nothing that was read is passed on.
        up: The direction from client to server.
        down: The direction from server to client.
        requests: Requests seen, by path.
    """

    upstream: str
    latency_s: float = 0.0
    bytes_per_s: float = math.inf
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    up: Pacer = field(default_factory=Pacer)
    down: Pacer = field(default_factory=Pacer)
    requests: Counter[str] = field(default_factory=Counter[str])


class Connection:
    """Carries bytes between a client and the server until both are done or one is gone.

    Args:
        client: The client's connection. Owned from here on, closed by ``close``.
        network: What it goes through.
    """

    def __init__(self, client: socket.socket, network: Network) -> None:
        self._client = client
        self._network = network
        self._up = Pipe()
        self._down = Pipe()
        self._requests = RequestReader()
        self._answers = FrameReader()
        self._farewell: tuple[bytes, bool] | None = None
        self._to_client: asyncio.Task[None] | None = None
        self._to_server: asyncio.Task[None] | None = None
        self._server_side: asyncio.Task[None] | None = None
        self._ended_well = False
        self.lost = False

    async def run(self) -> None:
        """Carry bytes until the connection has ended. An end by a reset is no error."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive_requests())
                if not self.lost:
                    self._to_client = tasks.create_task(self._send(self._down, self._client))
                    self._server_side = tasks.create_task(self._hold_server())
            self._ended_well = True
        except* OSError:  # one side is gone: close() tells the client so by a reset
            pass

    def close(self) -> None:
        """Close the client's connection, once ``run`` has ended or will not begin."""
        if not self._ended_well:
            reset_on_close(self._client)
        self._client.close()

    def lose(self) -> None:
        """Drop what is under way, and from now on all that either side sends."""
        self.lost = True
        self._up.cut()
        self._down.cut()
        for task in (self._to_client, self._to_server or self._server_side):
            if task is not None:
                task.cancel()

    def sever(self) -> None:
        """Lose the connection, and end it for the server alone."""
        self.lose()
        if self._server_side is not None:
            self._server_side.cancel()

    def say_goodbye(self, frame: bytes, *, final: bool) -> None:
        """Put a frame between two of the server's, at the first place where that is allowed.

        Args:
            frame: The frame.
            final: Whether the client's connection ends with it, and the server's at that moment.
        """
        self._farewell = (frame, final)
        if self._answers.may_insert:
            self._part()

    async def _receive_requests(self) -> None:
        while chunk := await self._receive(self._client):
            self._network.requests.update(self._requests.feed(chunk))
            await self._trickle(chunk, self._network.up, self._put_up)
            await self._up.room()
        self._put_up(b"")

    async def _hold_server(self) -> None:
        await self._network.flows.wait()
        with unconnected() as server:
            try:
                await connect(server, self._network.upstream)
                async with asyncio.TaskGroup() as tasks:
                    self._to_server = tasks.create_task(self._send(self._up, server))
                    tasks.create_task(self._receive_answers(server))
            except BaseException:
                reset_on_close(server)
                raise

    async def _receive_answers(self, server: socket.socket) -> None:
        while chunk := await self._receive(server):
            await self._trickle(chunk, self._network.down, self._pass_on)
            await self._down.room()
        self._put_down(b"")

    def _pass_on(self, chunk: bytes) -> None:
        """Put a chunk of the server's down, with the farewell in it if it has a place for it."""
        ends = [frame.end for frame in self._answers.feed(chunk) if not frame.leaves_block_open]
        if self._farewell is not None and ends:
            self._put_down(chunk[: ends[0]])
            self._part()
            chunk = chunk[ends[0] :]
        if chunk:  # an empty one is the end
            self._put_down(chunk)

    def _part(self) -> None:
        assert self._farewell is not None
        (frame, final), self._farewell = self._farewell, None
        self._put_down(frame)
        if final:
            self._put_down(b"")
            self.lost = True
            self._up.cut()
            if self._server_side is not None:
                self._server_side.cancel()

    def _put_up(self, chunk: bytes) -> None:
        self._up.put(chunk, due=0.0)

    def _put_down(self, chunk: bytes) -> None:
        now = asyncio.get_running_loop().time()
        self._down.put(chunk, due=now + self._network.latency_s)

    async def _receive(self, side: socket.socket) -> bytes:
        """Return the next bytes; none at the end, or when a side of a lost connection goes."""
        await self._network.flows.wait()
        try:
            return await asyncio.get_running_loop().sock_recv(side, MOST_AT_ONCE)
        except OSError:
            if self.lost:
                return b""
            raise

    async def _send(self, pipe: Pipe, side: socket.socket) -> None:
        while chunk := await pipe.take():
            await self._network.flows.wait()
            await asyncio.get_running_loop().sock_sendall(side, chunk)
        side.shutdown(socket.SHUT_WR)

    async def _trickle(self, chunk: bytes, pacer: Pacer, put: Callable[[bytes], None]) -> None:
        """Put a chunk on its way at the network's bandwidth, which may change meanwhile."""
        while chunk:
            rate = self._network.bytes_per_s
            part, chunk = chunk[: slice_bytes(rate)], chunk[slice_bytes(rate) :]
            now = asyncio.get_running_loop().time()
            await sleep_until(pacer.reserve(len(part), now=now, bytes_per_s=rate))
            put(part)
