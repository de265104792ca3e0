"""Where a GOAWAY is put into what the server sends."""

import asyncio
import os

import pytest

from tests.faults.frames import ENHANCE_YOUR_CALM, Flag, FrameReader, Kind, frame, goaway
from tests.faults.proxy import FaultProxy
from tests.faults.raw import SETTINGS, RawServer, connected, exchange, until

pytestmark = pytest.mark.anyio

MEGABYTE = 1024 * 1024


@pytest.fixture
async def server():
    async with RawServer() as server:
        yield server


@pytest.fixture
async def proxy(server):
    async with FaultProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy):
    async with connected(proxy.url) as client:
        yield client


@pytest.fixture
async def behind(server, client):
    """The server's end of the client's connection."""
    return await server.next()


async def test_a_goaway_comes_at_once_between_frames_and_not_before_the_settings(
    proxy, client, behind
):
    proxy.goaway()
    assert await client.is_silent()
    await behind.send(SETTINGS)
    assert await client.receive(len(SETTINGS + goaway())) == SETTINGS + goaway()
    proxy.goaway()
    assert await client.receive(len(goaway())) == goaway()
    await behind.send(SETTINGS)
    assert await client.receive(len(SETTINGS)) == SETTINGS


@pytest.mark.parametrize("cut", [3, 9, 40])
async def test_a_goaway_waits_for_the_end_of_a_frame(proxy, client, behind, cut):
    data = frame(Kind.DATA, stream=1, payload=os.urandom(100))
    await behind.send(SETTINGS + data[:cut])
    await client.receive(len(SETTINGS) + cut)
    proxy.goaway()
    await behind.send(data[cut:-1])
    assert await client.receive(len(data) - cut - 1) == data[cut:-1]
    await behind.send(data[-1:] + data)
    rest = data[-1:] + goaway() + data
    assert await client.receive(len(rest)) == rest


@pytest.mark.parametrize("cut", [5, 10])
async def test_a_goaway_waits_for_the_end_of_a_header_block(proxy, client, behind, cut):
    begun = frame(Kind.HEADERS, stream=1, payload=b"\x88")
    ended = frame(Kind.CONTINUATION, flags=Flag.END_HEADERS, stream=1, payload=b"\x88")
    await behind.send(SETTINGS + begun[:cut])
    await client.receive(len(SETTINGS) + cut)
    proxy.goaway()
    await behind.send(begun[cut:])
    assert await client.receive(len(begun) - cut) == begun[cut:]
    assert await client.is_silent()
    await behind.send(ended)
    assert await client.receive(len(ended + goaway())) == ended + goaway()


async def test_a_goaway_keeps_its_place_among_bytes_under_way(proxy, client, behind):
    await exchange(client, behind)
    proxy.latency_s = 0.05
    data = frame(Kind.DATA, stream=1, payload=os.urandom(3 * MEGABYTE))
    sending = asyncio.ensure_future(behind.send(data * 3))
    assert await client.receive(MEGABYTE) == data[:MEGABYTE]
    proxy.goaway()
    rest = await client.receive(len(data) * 3 + len(goaway()) - MEGABYTE)
    await sending
    assert (data[:MEGABYTE] + rest).replace(goaway(), b"") == data * 3
    seen = FrameReader().feed(data[:MEGABYTE] + rest)
    assert sorted(each.kind for each in seen) == [Kind.DATA] * 3 + [Kind.GOAWAY]


async def test_who_is_thrown_out_hears_why_and_then_the_end(proxy, client, behind):
    await exchange(client, behind)
    proxy.throw_out(last_stream=3, details="too_many_pings")
    farewell = goaway(3, ENHANCE_YOUR_CALM, b"too_many_pings")
    assert await client.receive_all() == farewell
    with pytest.raises(ConnectionResetError):
        await behind.receive_all()
    await client.send(frame(Kind.DATA, payload=bytes(2**24 - 1)) * 3)  # nobody stops it
    client.writer.close()
    await until(lambda: not proxy.connections)


async def test_nothing_follows_a_final_goaway(proxy, client, behind):
    data = frame(Kind.DATA, stream=1, payload=os.urandom(100))
    await behind.send(SETTINGS + data[:50])
    await client.receive(len(SETTINGS) + 50)
    proxy.throw_out()
    await behind.send(data[50:] + data)
    farewell = goaway(0, ENHANCE_YOUR_CALM, b"too_many_pings")
    assert await client.receive_all() == data[50:] + farewell
