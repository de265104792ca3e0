"""A web site with two pages: a form, and the events of a text.

Owns: HTTP as far as it takes, the events, browsers that hang up. Refuses to know: which model it
is, and where. Nothing but anyio is needed; with a web framework, ``Site._tell`` is the body of an
endpoint that streams.

Invariant: a browser that is gone ends the loop over its text, whichever way it went.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import SplitResult, parse_qs, urlsplit

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from tritonasync import Generator, TritonError

GONE = anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError
LONGEST_HEAD = 16_384

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Text as it comes</title>
<form><input name="prompt" value="the song of the river"> <button>Go on</button></form>
<p></p>
<script>
  let events
  document.forms[0].onsubmit = (submitted) => {
    submitted.preventDefault()
    const text = document.querySelector("p")
    const prompt = new FormData(document.forms[0]).get("prompt")
    text.textContent = prompt
    events?.close()
    events = new EventSource("/events?prompt=" + encodeURIComponent(prompt))
    events.addEventListener("piece", (event) => { text.textContent += JSON.parse(event.data) })
    events.addEventListener("end", () => events.close())
    events.addEventListener("failure", (event) => { events.close(); alert(event.data) })
  }
</script>
"""


class Site:
    """Tells what a model generates to whoever asks.

    Args:
        generator: The model.

    Attributes:
        telling: Texts that are underway.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.telling = 0

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[str]:
        """Serve on this machine; gives the address."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
        host, port = listener.extra(anyio.abc.SocketAttribute.local_address)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self._answer)
            yield f"http://{host}:{port}/"
            tasks.cancel_scope.cancel()

    async def _answer(self, browser: SocketStream) -> None:
        async with browser:
            with suppress(*GONE, anyio.IncompleteRead, anyio.DelimiterNotFound):
                incoming = BufferedByteReceiveStream(browser)
                head = await incoming.receive_until(b"\r\n\r\n", LONGEST_HEAD)
                url = _address(head)
                if url is None:
                    await browser.send(
                        _head("400 Bad Request", "text/plain") + b"This is no request for a page."
                    )
                elif url.path == "/":
                    await browser.send(_head("200 OK", "text/html") + PAGE.encode())
                elif url.path == "/events":
                    prompt = parse_qs(url.query).get("prompt", [""])[0]
                    await self._tell_until_gone(browser, prompt)
                else:
                    await browser.send(
                        _head("404 Not Found", "text/plain") + b"There is no such page."
                    )

    async def _tell_until_gone(self, browser: SocketStream, prompt: str) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, browser, tasks.cancel_scope)
            try:
                with suppress(*GONE):
                    await self._tell(browser, prompt)
            finally:
                tasks.cancel_scope.cancel()

    async def _tell(self, browser: SocketStream, prompt: str) -> None:
        await browser.send(_head("200 OK", "text/event-stream"))
        self.telling += 1
        try:
            async with self._generator(prompt) as pieces:
                async for piece in pieces:
                    await browser.send(_event("piece", piece))
            await browser.send(_event("end", ""))
        except TritonError as error:
            await browser.send(_event("failure", error.message))
        finally:
            self.telling -= 1


async def _watch(browser: SocketStream, scope: anyio.CancelScope) -> None:
    """Cancel a scope when the browser hangs up: it has nothing more to say before that."""
    with suppress(*GONE):
        while True:
            await browser.receive()
    scope.cancel()


def _address(head: bytes) -> SplitResult | None:
    """Return what a request asks for; ``None`` if its first line makes no sense."""
    line = head.split(b"\r\n", 1)[0].decode("latin-1")
    try:
        return urlsplit(line.split()[1])
    except (IndexError, ValueError):
        return None


def _head(status: str, kind: str) -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode()


def _event(name: str, data: str) -> bytes:
    # As JSON, since a line break would end the data.
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
