"""The site that tells a text as it is generated, and browsers that do not stay."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit

import pytest

from examples.sse.site import Site
from tritonasync import TritonPool

pytestmark = [pytest.mark.anyio, pytest.mark.server]

PROMPT = "the song of the river & the sea"


@pytest.fixture
async def pool(server):
    async with TritonPool(server.grpc_url) as pool:
        yield pool


@asynccontextmanager
async def browser(url, path):
    """Ask for a page; gives what is read and the way to hang up."""
    there = urlsplit(url)
    reader, writer = await asyncio.open_connection(there.hostname, there.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {there.netloc}\r\n\r\n".encode())
    try:
        yield reader, writer
    finally:
        writer.close()


async def page(url, path):
    async with browser(url, path) as (reader, _):
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        return head, body


def events(body):
    """The name and data of each event."""
    lines = [event.split("\n") for event in body.split("\n\n")[:-1]]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in lines
    ]


async def until(condition, limit_s=30.0):
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_browser_is_told_the_text_piece_by_piece(pool):
    generator = pool.generator("tokens", inputs={"MAX_TOKENS": 100})
    site = Site(generator)
    async with site.serve() as url:
        head, body = await page(url, f"/events?prompt={quote(PROMPT)}")
    assert "Content-Type: text/event-stream" in head
    *pieces, end = events(body)
    assert end == ("end", "")
    assert {name for name, _ in pieces} == {"piece"}
    assert len(pieces) > 10
    assert "".join(data for _, data in pieces) == await generator.text(PROMPT, STREAM=False)
    assert site.telling == 0


async def test_a_browser_that_hangs_up_ends_the_loop_over_its_text(pool):
    # 6 s at least, if it were told to the end.
    site = Site(pool.generator("tokens", inputs={"MAX_TOKENS": 600, "DELAY_MS": 10}))
    async with site.serve() as url:
        async with browser(url, "/events?prompt=x") as (reader, _):
            await reader.readuntil(b"event: piece\n")
            began = time.monotonic()
            assert site.telling == 1
        await until(lambda: not site.telling)
        assert time.monotonic() - began < 4
        assert (await page(url, "/"))[0].startswith("HTTP/1.1 200 OK")


async def test_many_browsers_at_once_each_get_their_text(pool):
    generator = pool.generator("tokens", inputs={"MAX_TOKENS": 30})
    async with Site(generator).serve() as url:
        pages = await asyncio.gather(*[page(url, f"/events?prompt=x{n}") for n in range(50)])
    texts = ["".join(data for _, data in events(body)) for _, body in pages]
    assert texts == [await generator.text(f"x{n}") for n in range(50)]


async def test_a_model_that_fails_is_told_after_its_pieces(pool):
    site = Site(pool.generator("tokens", inputs={"MAX_TOKENS": -3}))
    async with site.serve() as url:
        _, body = await page(url, "/events?prompt=x")
    *pieces, (name, data) = events(body)
    assert pieces
    assert name == "failure"
    assert "out of words" in data


async def test_other_pages(pool):
    async with Site(pool.generator("tokens")).serve() as url:
        assert "EventSource" in (await page(url, "/"))[1]
        assert (await page(url, "/nothing"))[0].startswith("HTTP/1.1 404")


@pytest.mark.parametrize(
    "head", ["", "GET", "GET\r\nHost: here", " ", "GET http://[ HTTP/1.1", "\x00\xff"]
)
async def test_a_request_that_makes_no_sense_is_refused_and_the_site_goes_on(pool, head):
    async with Site(pool.generator("tokens")).serve() as url:
        there = urlsplit(url)
        reader, writer = await asyncio.open_connection(there.hostname, there.port)
        writer.write(head.encode("latin-1") + b"\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        writer.close()
        assert (await page(url, "/"))[0].startswith("HTTP/1.1 200 OK")


async def test_closing_the_site_ends_what_is_told(pool):
    site = Site(pool.generator("tokens", inputs={"MAX_TOKENS": 300, "DELAY_MS": 10}))
    async with site.serve() as url:
        connecting = browser(url, "/events?prompt=x")
        reader, _ = await connecting.__aenter__()
        await reader.readuntil(b"event: piece\n")
    assert site.telling == 0
    assert b"event: end" not in await reader.read()
    await connecting.__aexit__(None, None, None)
