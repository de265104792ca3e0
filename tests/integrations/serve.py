"""uvicorn on a free port, in the test's own event loop; and a client that may hang up anywhere."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import uvicorn


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.ended.wait()  # uvicorn's own looks every 0.1 s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # Ctrl-C is pytest's


@asynccontextmanager
async def serving(app, **options) -> AsyncIterator[str]:
    """Serve an application until the block is left; gives its address."""
    config = uvicorn.Config(app, port=0, log_config=None, ws="none", lifespan="on", **options)
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.wait({task}, timeout=0.01)
        if task.done():
            raise RuntimeError("the application did not start", task.exception())
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.ended.set()
        await task


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is cut off, without a word, when the block is left."""
    there = urlsplit(url)
    reader, writer = await asyncio.open_connection(there.hostname, there.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def asked(url: str, path: str, body: bytes) -> Any:
    """What a POST is answered with, from its JSON; much less work than any client's."""
    async with connected(url) as (reader, writer):
        writer.write(request("POST", path, length=len(body), close=True) + body)
        return json.loads((await reader.read()).partition(b"\r\n\r\n")[2])


def request(method: str, path: str, *, length: int | None = None, close: bool = False) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *["Connection: close"] * close]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


async def until(condition, limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)
