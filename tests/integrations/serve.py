"""uvicorn on a free port, in the test's own event loop; and a client that may hang up anywhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import uvicorn


class _Server(uvicorn.Server):
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
        server.should_exit = True
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


def request(method: str, path: str, *, length: int | None = None) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


async def until(condition, limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)
