"""A server that answers every request at once with the same error: what a retry storm runs against.

Owns: as much of HTTP/2's server side as gRPC's core needs to take the answer for one. No window is
ever widened: messages stop coming after 64 KiB, and HEADERS, which no window holds up, still come.
Refuses to know: messages, deadlines, methods.

Put behind a ``FaultProxy`` (set ``upstream``, then ``reset`` or ``goaway``), it takes a real
server's place while the client's address stays.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Self

from tests.faults.frames import (
    PREFACE,
    Frame,
    FrameReader,
    Kind,
    acknowledgement,
    frame,
    status_only,
)
from tests.faults.pipe import MOST_AT_ONCE
from tests.faults.sockets import Listener

UNAVAILABLE = 14


class UnavailableServer:
    """Ends each call with a status, without reading its message.

    Use as an async context manager.

    Args:
        details: The status's message. May be changed.
        code: The status's code. May be changed.
    """

    def __init__(self, details: str = "the server is going down", code: int = UNAVAILABLE) -> None:
        self.details = details
        self.code = code
        self.requests = 0
        self._listener = Listener(self._take)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """``"127.0.0.1:port"`` for the client."""
        return self._listener.url

    async def __aenter__(self) -> Self:
        self._listener.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections, give the port away and wait for all tasks."""
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)  # for the callbacks that close what a task had

    def _take(self, client: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: client.close())

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = FrameReader(PREFACE)
        try:
            await loop.sock_sendall(client, frame(Kind.SETTINGS))
            while chunk := await loop.sock_recv(client, MOST_AT_ONCE):
                answers = b"".join(self._answer(each) for each in reader.feed(chunk))
                await loop.sock_sendall(client, answers)
        except OSError:  # the client is gone
            return

    def _answer(self, asked: Frame) -> bytes:
        # A gRPC client sends no trailers, so each HEADERS opens a stream.
        if asked.kind == Kind.HEADERS:
            self.requests += 1
            return status_only(asked.stream, self.code, self.details)
        return acknowledgement(asked) or b""
