"""A client and a server of ASGI, played: what comes is put in by the test, what goes is kept."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from tritonasync.integrations.asgi import CancelOnDisconnect

BODY = [(b"content-length", b"4")]


class Client:
    """One request's ``receive`` and ``send``, as uvicorn's behave."""

    def __init__(
        self, method: str = "GET", headers: Iterable[tuple[bytes, bytes]] = (), version: str = "1.1"
    ) -> None:
        self.scope = {
            "type": "http", "method": method, "path": "/", "http_version": version,
            "headers": list(headers),
        }  # fmt: skip
        self.sent: list[dict] = []
        self.receives = 0
        self._waiting = 0
        self._incoming: asyncio.Queue[dict] = asyncio.Queue()
        self._left = asyncio.Event()

    def puts(self, body: bytes, *, more: bool = False) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leaves(self) -> None:
        self._left.set()

    async def receive(self) -> dict:
        self.receives += 1
        self._waiting += 1
        assert self._waiting == 1, "two receives at a time"
        try:
            if self._incoming.empty() and self._left.is_set():
                return {"type": "http.disconnect"}
            waits = [
                asyncio.ensure_future(self._incoming.get()),
                asyncio.ensure_future(self._left.wait()),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if waits[0].done():
                    return waits[0].result()
                return {"type": "http.disconnect"}
            finally:
                for wait in waits:
                    wait.cancel()
        finally:
            self._waiting -= 1

    async def send(self, message: dict) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._left.set()  # as uvicorn: after the response, whoever receives is told of the end

    async def asks(self, app: Callable[..., Awaitable[None]]) -> None:
        await app(self.scope, self.receive, self.send)

    @property
    def status(self) -> int | None:
        return next((m["status"] for m in self.sent if m["type"] == "http.response.start"), None)


async def answer(send: Callable[[dict], Awaitable[None]], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"done", "more_body": False})


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Handler:
    """An application that reads its body, works for ever, and notes how it ended."""

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.body = b""
        self.ended = ""
        self.working = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        try:
            while self.reads:
                message = await receive()
                self.body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            self.working.set()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise


async def running(client, handler) -> asyncio.Task:
    task = asyncio.create_task(client.asks(CancelOnDisconnect(handler, after_s=0)))
    async with asyncio.timeout(5):
        await handler.working.wait()
    return task
