"""What exactly comes through the proxy, byte by byte and frame by frame."""

import asyncio
import os
import socket
import time

import pytest

from tests.faults.frames import Kind, frame
from tests.faults.proxy import FaultProxy
from tests.faults.raw import (
    HELLO,
    SETTINGS,
    RawServer,
    address,
    connected,
    exchange,
    request,
    until,
)

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


# --- forwarding -----------------------------------------------------------------------------------


async def test_bytes_and_ends_pass_both_ways(client, behind):
    up = HELLO + frame(Kind.DATA, stream=1, payload=os.urandom(3 * MEGABYTE))
    down = frame(Kind.DATA, stream=1, payload=os.urandom(3 * MEGABYTE))
    _, received = await asyncio.gather(client.send(up), behind.receive(len(up)))
    assert received == up
    client.writer.write_eof()
    assert await behind.receive_all() == b""
    _, received = await asyncio.gather(behind.send(down), client.receive(len(down)))
    assert received == down
    behind.writer.close()
    assert await client.receive_all() == b""


async def test_a_connection_counts_until_both_sides_ended_it(proxy, client, behind):
    assert (proxy.connections, proxy.accepted) == (1, 1)
    client.writer.close()
    await behind.receive_all()
    assert proxy.connections == 1
    behind.writer.close()
    await until(lambda: not proxy.connections)
    assert proxy.accepted == 1


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_reset_passes_from_either_side(proxy, client, behind, side):
    await exchange(client, behind)
    gone, other = (client, behind) if side == "client" else (behind, client)
    gone.reset()
    with pytest.raises(ConnectionResetError):
        await other.receive_all()
    await until(lambda: not proxy.connections)


async def test_a_server_that_is_not_there_shows_as_a_reset(proxy):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        proxy.upstream = f"127.0.0.1:{closed.getsockname()[1]}"
    async with connected(proxy.url) as client:
        with pytest.raises(ConnectionResetError):
            await client.receive_all()
    await until(lambda: not proxy.connections)


async def test_an_end_cuts_off_no_last_bytes():
    """The connection has ended for the proxy before the client reads what it was sent."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        async with FaultProxy("{}:{}".format(*listening.getsockname())) as proxy:
            client = await loop.run_in_executor(None, socket.create_connection, address(proxy.url))
            with client:
                client.setblocking(False)
                client.shutdown(socket.SHUT_WR)
                behind, _ = await loop.sock_accept(listening)
                with behind:
                    await loop.sock_sendall(behind, bytes(500_000))
                await until(lambda: not proxy.connections)
                received = 0
                while data := await loop.sock_recv(client, 2**16):
                    received += len(data)
                assert received == 500_000


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_sender_is_held_back_by_a_receiver_that_does_not_read(direction):
    """Both ends are plain sockets here, since streams read ahead."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        async with FaultProxy("{}:{}".format(*listening.getsockname())) as proxy:
            client = await loop.run_in_executor(None, socket.create_connection, address(proxy.url))
            behind, _ = await loop.sock_accept(listening)
            with client, behind:
                client.setblocking(False)
                sender, first = (client, HELLO) if direction == "up" else (behind, SETTINGS)
                data = first + frame(Kind.DATA, payload=bytes(2**24 - 1)) * 4
                sending = asyncio.ensure_future(loop.sock_sendall(sender, data))
                done, _ = await asyncio.wait({sending}, timeout=1)
                assert not done, "64 MiB were taken for a receiver that took none"
                sending.cancel()


async def test_requests_are_counted_by_path_over_all_connections(proxy, server):
    async with connected(proxy.url) as one, connected(proxy.url) as two:
        await one.send(HELLO + request(1, b"/a") + request(3, b"/b"))
        await two.send(HELLO + request(1, b"/a")[:12])
        await until(lambda: proxy.requests == 2)
        await two.send(request(1, b"/a")[12:])
        await until(lambda: proxy.requests == 3)
        assert proxy.requests_by_path == {"/a": 2, "/b": 1}


async def test_who_does_not_speak_http2_is_cut_off_and_reported():
    async with RawServer() as server:
        proxy = await FaultProxy(server.url).__aenter__()
        async with connected(proxy.url) as client:
            await client.send(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                await client.receive_all()
        with pytest.raises(ExceptionGroup, match="connections through the proxy failed"):
            await proxy.aclose()


# --- faults ---------------------------------------------------------------------------------------


async def test_a_stall_keeps_every_byte(proxy, client, behind):
    await exchange(client, behind)
    proxy.stall()
    ping = frame(Kind.PING, payload=b"12345678")
    await client.send(ping)
    await behind.send(ping)
    assert await client.is_silent()
    assert await behind.is_silent()
    proxy.heal()
    assert await client.receive(len(ping)) == ping
    assert await behind.receive(len(ping)) == ping


async def test_a_stall_reads_nothing_more(proxy, client, behind):
    await exchange(client, behind)
    proxy.stall()
    await client.send(request(1))  # a read was waiting when the stall came
    await until(lambda: proxy.requests == 1)
    await client.send(request(3))
    assert await behind.is_silent()
    assert proxy.requests == 1
    proxy.heal()
    await until(lambda: proxy.requests == 2)


async def test_a_stalled_sender_is_held_back(proxy, client, behind):
    await exchange(client, behind)
    proxy.stall()
    big = frame(Kind.DATA, payload=bytes(2**24 - 1)) * 3
    sending = asyncio.ensure_future(client.send(big))
    done, _ = await asyncio.wait({sending}, timeout=0.3)
    assert not done
    proxy.heal()
    assert len(await behind.receive(len(big))) == len(big)
    await sending


async def test_what_connects_during_a_stall_is_served_after_it(proxy, server):
    proxy.stall()
    async with connected(proxy.url) as client:
        await client.send(HELLO)
        await until(lambda: proxy.accepted == 1)
        assert await client.is_silent()
        assert (server.accepted, proxy.requests) == (0, 0)
        proxy.heal()
        assert await (await server.next()).receive(len(HELLO)) == HELLO


async def test_a_black_hole_takes_everything_and_gives_nothing(proxy, client, behind):
    await exchange(client, behind)
    proxy.black_hole()
    big = frame(Kind.DATA, payload=bytes(2**24 - 1)) * 3
    await client.send(big + request(1))
    await behind.send(big)
    await until(lambda: proxy.requests == 1)  # what is swallowed counts as an attempt, too
    assert await client.is_silent()
    assert await behind.is_silent()
    proxy.heal()
    for end in (client, behind):
        with pytest.raises(ConnectionResetError):
            await end.receive_all()


async def test_a_black_hole_swallows_what_is_under_way(proxy, client, behind):
    await exchange(client, behind)
    proxy.latency_s = 0.1
    await behind.send(frame(Kind.PING, payload=bytes(8)))
    proxy.black_hole()
    assert await client.is_silent()


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_black_hole_swallows_that_a_side_has_left(proxy, client, behind, how):
    await exchange(client, behind)
    proxy.black_hole()
    if how == "fin":
        client.writer.close()
    else:
        client.reset()
    assert await behind.is_silent()
    assert proxy.connections == 1
    behind.writer.close()
    await until(lambda: proxy.connections == 0)


async def test_a_black_hole_accepts_and_reads_and_tells_the_server_nothing(proxy, server):
    proxy.black_hole()
    async with connected(proxy.url) as client:
        await client.send(HELLO + request(1) + frame(Kind.DATA, payload=bytes(2**23)))
        await until(lambda: proxy.requests == 1)
        assert await client.is_silent()
        assert server.accepted == 0
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            await client.receive_all()


async def test_a_firewall_may_forget_what_fell_into_a_black_hole(proxy, client, behind, server):
    await exchange(client, behind)
    proxy.black_hole()
    proxy.heal(forget=True)
    await client.send(request(1))
    assert await client.is_silent()
    assert await behind.is_silent()
    async with connected(proxy.url) as other:
        await exchange(other, await server.next())


async def test_half_open_ends_it_for_the_server_only(proxy, client, behind, server):
    await exchange(client, behind)
    proxy.half_open()
    with pytest.raises(ConnectionResetError):
        await behind.receive_all()
    await client.send(request(1))
    assert await client.is_silent()
    assert proxy.connections == 1
    async with connected(proxy.url) as other:
        await exchange(other, await server.next())
        client.writer.close()
        await until(lambda: proxy.connections == 1)


async def test_a_reset_reaches_both_sides(proxy, client, behind, server):
    await exchange(client, behind)
    proxy.reset()
    assert proxy.connections == 0
    for end in (client, behind):
        with pytest.raises(ConnectionResetError):
            await end.receive_all()
    async with connected(proxy.url) as other:
        await exchange(other, await server.next())


async def test_who_refuses_keeps_the_port_and_listens_there_again(proxy, client, behind, server):
    await exchange(client, behind)
    url = proxy.url
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        await client.receive_all()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address(proxy.url))
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind(address(proxy.url))
    proxy.heal()
    assert proxy.url == url
    async with connected(url) as other:
        await exchange(other, await server.next())


# --- latency and bandwidth ------------------------------------------------------------------------


async def test_latency_is_added_once_and_costs_no_throughput(proxy, client, behind):
    await exchange(client, behind)
    proxy.latency_s = 0.2
    big = frame(Kind.DATA, payload=bytes(MEGABYTE)) * 10
    began = time.monotonic()
    sending = asyncio.ensure_future(behind.send(big))
    await client.receive(1)
    assert time.monotonic() - began >= 0.2
    await client.receive(len(big) - 1)
    await sending
    assert time.monotonic() - began < 3  # chunk by chunk it would be half a minute


async def test_latency_is_of_the_answers_only(proxy, client, behind):
    await exchange(client, behind)
    proxy.latency_s = 60
    await client.send(request(1))
    await behind.receive(len(request(1)))


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_bandwidth_is_limited_in_each_direction(proxy, client, behind, direction):
    await exchange(client, behind)
    proxy.bytes_per_s = MEGABYTE
    sender, receiver = (client, behind) if direction == "up" else (behind, client)
    data = frame(Kind.DATA, payload=bytes(MEGABYTE // 2))
    began = time.monotonic()
    sending = asyncio.ensure_future(sender.send(data))
    await receiver.receive(len(data))
    await sending
    assert 0.45 < time.monotonic() - began < 3


async def test_a_limit_that_is_lifted_holds_nothing_up(proxy, client, behind):
    await exchange(client, behind)
    proxy.bytes_per_s = 20_000
    data = frame(Kind.DATA, payload=bytes(MEGABYTE))
    began = time.monotonic()
    sending = asyncio.ensure_future(behind.send(data))
    await client.receive(500)
    proxy.bytes_per_s = float("inf")
    await client.receive(len(data) - 500)
    await sending
    assert time.monotonic() - began < 2  # it would be 50 s, and 3 s for what was read at first
