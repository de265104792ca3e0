"""Both ends of a connection as plain bytes, for tests that look at what exactly comes through."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

from tests.faults.frames import PREFACE, Flag, Kind, frame, literal

SETTINGS: Final = frame(Kind.SETTINGS)
HELLO: Final = PREFACE + SETTINGS

PATIENCE_S: Final = 20.0
"""How long a test waits for what must come."""

SILENCE_S: Final = 0.3
"""How long it waits for what must not come."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a TCP connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def receive(self, nbytes: int) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readexactly(nbytes)

    async def receive_all(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            await self.writer.drain()

    def reset(self) -> None:
        """End the connection with an RST."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def is_silent(self) -> bool:
        """Whether neither bytes nor an end come for a while."""
        try:
            async with asyncio.timeout(SILENCE_S):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False


class RawServer:
    """Accepts connections and hands them out in their order."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[End] = asyncio.Queue()
        self._ends: list[End] = []
        self._server: asyncio.Server | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0, limit=2**24)
        self.url = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for end in self._ends:
            await _close(end)
        await self._server.wait_closed()

    @property
    def accepted(self) -> int:
        return len(self._ends)

    async def next(self) -> End:
        async with asyncio.timeout(PATIENCE_S):
            return await self._arrived.get()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.append(End(reader, writer))
        self._arrived.put_nowait(self._ends[-1])


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[End, None]:
    """Connect to ``url`` and close the connection in the end."""
    end = End(*await asyncio.open_connection(*address(url), limit=2**24))
    try:
        yield end
    finally:
        await _close(end)


async def exchange(client: End, server: End) -> None:
    """Send a little each way, so that the connection is known to stand."""
    await client.send(HELLO)
    assert await server.receive(len(HELLO)) == HELLO
    await server.send(SETTINGS)
    assert await client.receive(len(SETTINGS)) == SETTINGS


def request(stream: int, path: bytes = b"/a") -> bytes:
    """Return the HEADERS that open a stream."""
    payload = literal(b":path", path)
    return frame(Kind.HEADERS, flags=Flag.END_HEADERS, stream=stream, payload=payload)


def address(url: str) -> tuple[str, int]:
    """Return a URL as sockets want it."""
    host, _, port = url.rpartition(":")
    return host, int(port)


async def until(condition: Callable[[], object]) -> None:
    """Wait until something else in the loop has made ``condition`` true."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


async def _close(end: End) -> None:
    end.writer.transport.abort()  # close() would wait for a peer that reads nothing any more
    try:
        await end.writer.wait_closed()
    except ConnectionError:  # the other end had reset it
        return
