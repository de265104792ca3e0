"""Load for a web application: requests that are always so many at once, for so long.

Owns: the two ways to ask, by ASGI within the process and by HTTP over loopback; checking answers.
Refuses to know: what is served.

Every request that was begun is waited for, and counts, as do its seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

WARM_S = 0.5

Message = MutableMapping[str, Any]
ASGIApp = Callable[..., Awaitable[None]]
Ask = Callable[[bytes], Awaitable[bytes]]
"""Sends a body, returns the answer's; raises what is no answer with 200."""


class AnswerError(Exception):
    """An answer is not what it should be."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a round gave.

    Attributes:
        requests: How many were answered.
        seconds: From the first to the last.
        labels: What each body was taken for.
    """

    requests: int
    seconds: float
    labels: tuple[str, ...]

    @property
    def us_per_request(self) -> float:
        """Microseconds of the clock, all requests together."""
        return self.seconds / self.requests * 1e6


async def measure(asks: Sequence[Ask], bodies: Sequence[bytes], seconds: float) -> Load:
    """Have each of ``asks`` ask again and again, after some time to warm up."""
    await _ask_for(asks, bodies, min(WARM_S, seconds))
    return await _ask_for(asks, bodies, seconds)


async def _ask_for(asks: Sequence[Ask], bodies: Sequence[bytes], seconds: float) -> Load:
    began = time.perf_counter()
    done = 0
    labels = [""] * len(bodies)

    async def keep_asking(place: int, ask: Ask) -> None:
        nonlocal done
        index = place % len(bodies)
        while True:
            answer = await ask(bodies[index])
            done += 1
            if time.perf_counter() >= began + seconds:
                break
        labels[index] = json.loads(answer)["label"]

    async with asyncio.TaskGroup() as tasks:
        for place, ask in enumerate(asks):
            tasks.create_task(keep_asking(place, ask))
    return Load(done, time.perf_counter() - began, tuple(labels))


# --- within the process ---------------------------------------------------------------------------


async def by_asgi(app: ASGIApp, clients: int, bodies: Sequence[bytes], seconds: float) -> Load:
    """Ask an application by calling it: what HTTP costs is left out."""
    lifespan = _Lifespan(app)
    await lifespan.start()
    try:
        return await measure([_asgi_ask(app)] * clients, bodies, seconds)
    finally:
        await lifespan.stop()


def _asgi_ask(app: ASGIApp) -> Ask:
    async def ask(body: bytes) -> bytes:
        gone = asyncio.get_running_loop().create_future()
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        status, parts = 0, []

        async def receive() -> Message:
            if given:
                return given.pop()
            await gone
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message["body"])

        await app(_scope(body), receive, send)
        if status != 200:
            raise AnswerError(f"{status}: {b''.join(parts)!r}")
        return b"".join(parts)

    return ask


def _scope(body: bytes) -> Message:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": "POST", "scheme": "http", "path": "/", "raw_path": b"/", "query_string": b"",
        "root_path": "", "headers": [(b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip


class _Lifespan:
    """Starts and stops an application as a server does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._came: asyncio.Queue[Message] = asyncio.Queue()
        self._went: asyncio.Queue[Message] = asyncio.Queue()

    async def start(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        app = self._app(scope, self._came.get, self._went.put)
        self._task = asyncio.ensure_future(app)
        await self._tell("startup")

    async def stop(self) -> None:
        await self._tell("shutdown")
        await self._task

    async def _tell(self, what: str) -> None:
        await self._came.put({"type": f"lifespan.{what}"})
        answer = await self._went.get()
        if answer["type"] != f"lifespan.{what}.complete":
            raise AnswerError(f"{what}: {answer.get('message', '')}")


# --- over HTTP ------------------------------------------------------------------------------------


async def by_http(url: str, clients: int, bodies: Sequence[bytes], seconds: float) -> Load:
    """Ask a server over so many connections, which are kept."""
    async with AsyncExitStack() as stack:
        connections = [await _Connection.to(url) for _ in range(clients)]
        for connection in connections:
            stack.callback(connection.writer.close)
        return await measure([connection.ask for connection in connections], bodies, seconds)


class _Connection:
    """Just enough of HTTP/1.1: a client of more would be what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, url: str) -> _Connection:
        there = urlsplit(url)
        return cls(*await asyncio.open_connection(there.hostname, there.port))

    async def ask(self, body: bytes) -> bytes:
        head = f"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self.writer.write(head + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length: ")[2].partition(b"\r")[0])
        content = await self._reader.readexactly(length)
        if not answer.startswith(b"http/1.1 200 "):
            line = answer.partition(b"\r")[0]
            raise AnswerError(f"{line!r}: {content!r}")
        return content
