"""What each fault does to real gRPC calls."""

import asyncio
import os
import time
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import psutil
import pytest

from tests.faults.frames import Flag, Kind, frame
from tests.faults.proxy import FaultProxy
from tests.faults.raw import HELLO, PATIENCE_S, SETTINGS, SILENCE_S, connected, until
from tests.faults.unavailable import UnavailableServer
from tests.transport.scripted import ScriptedServer

pytestmark = pytest.mark.anyio

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
SIZES = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
OPTIONS = [*SIZES, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
BRISK = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]


async def echo(message):
    return message


class Gated:
    """An answer that comes when the test says so."""

    def __init__(self):
        self.arrived = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, message):
        self.arrived.set()
        await self.go.wait()
        return message


class Server(ScriptedServer):
    """Takes messages of any size."""

    async def __aenter__(self):
        self._server = grpc.aio.server(options=SIZES)
        self._server.add_generic_rpc_handlers((self,))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self


@asynccontextmanager
async def calls_to(url):
    """A function that sends a message over a channel and gives the call."""
    async with grpc.aio.insecure_channel(url, options=OPTIONS + BRISK) as channel:
        methods = {path: channel.unary_unary(path) for path in (INFER, LIVE)}

        def call(message=b"", path=INFER):
            return methods[path](message, timeout=PATIENCE_S)

        yield call


@pytest.fixture
def gated():
    return Gated()


@pytest.fixture
async def server(gated):
    async with Server(ModelInfer=gated, ServerLive=echo) as server:
        yield server


@pytest.fixture
async def proxy(server):
    async with FaultProxy(server.target) as proxy:
        yield proxy


@pytest.fixture
async def call(proxy):
    async with calls_to(proxy.url) as call:
        assert await call(b"a connection", LIVE) == b"a connection"
        yield call


async def is_silent(call):
    return not (await asyncio.wait({asyncio.ensure_future(watched(call))}, timeout=SILENCE_S))[0]


async def watched(call):
    # Awaiting a call cancels it with the one who awaits; its code does not.
    return await call.code()


async def soon(call, message):
    """Call until it goes well: the client may not know yet that its old connection is gone."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                assert await call(message, LIVE) == message
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            else:
                return


async def fails(call, details=""):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details in caught.value.details()


# --- no fault -------------------------------------------------------------------------------------


async def test_20_mb_pass_both_ways_unchanged():
    message = os.urandom(20 * 1024 * 1024)
    async with (
        Server(ModelInfer=echo) as server,
        FaultProxy(server.target) as proxy,
        calls_to(proxy.url) as call,
    ):
        began = time.monotonic()
        assert await call(message) == message
        assert time.monotonic() - began < 5
        assert proxy.requests == 1


async def test_calls_are_counted_by_path(proxy, call, gated):
    gated.go.set()
    await asyncio.gather(*[call() for _ in range(30)])
    async with calls_to(proxy.url) as other:
        await other()
        assert (proxy.connections, proxy.accepted) == (2, 2)
    assert proxy.requests == 32
    assert proxy.requests_by_path == {INFER: 31, LIVE: 1}
    await until(lambda: proxy.connections == 1)


async def test_headers_that_come_again_and_again_are_read(proxy):
    """Enough different ones to push old ones out of the compression's table."""
    async with grpc.aio.insecure_channel(proxy.url, options=OPTIONS) as channel:
        live = channel.unary_unary(LIVE)
        for number in range(200):
            await live(b"", metadata=(("key", f"{number:050}"), (f"key-{number}", "v")))
    assert proxy.requests_by_path == {LIVE: 200}


# --- faults ---------------------------------------------------------------------------------------


async def test_a_stall_is_survived_by_calls(proxy, call):
    proxy.stall()
    waiting = call(b"kept", LIVE)
    assert await is_silent(waiting)
    proxy.heal()
    assert await waiting == b"kept"
    assert proxy.accepted == 1


async def test_a_black_hole_answers_no_call_and_others_go_on(proxy, call, server, gated):
    before = call(b"before")
    await gated.arrived.wait()
    proxy.black_hole()
    gated.go.set()
    after = call(b"after", LIVE)
    async with FaultProxy(server.target) as second, calls_to(second.url) as other:
        assert await other(b"elsewhere", LIVE) == b"elsewhere"
    async with calls_to(proxy.url) as fresh:
        assert all(await asyncio.gather(*map(is_silent, (before, after, fresh(b"new", LIVE)))))
    assert [message for _, message, _ in server.received] == [
        b"a connection",
        b"before",
        b"elsewhere",
    ]
    assert server.cancelled == 0
    proxy.heal()
    await fails(before)
    await fails(after)
    await soon(call, b"healed")


async def test_half_open_calls_stay_silent_and_new_connections_work(proxy, call, server, gated):
    waiting = call()
    await gated.arrived.wait()
    proxy.half_open()
    assert await is_silent(waiting)
    await until(lambda: server.cancelled == 1)
    assert await is_silent(call(b"", LIVE))
    async with calls_to(proxy.url) as fresh:
        assert await fresh(b"new", LIVE) == b"new"
    proxy.heal()
    await fails(waiting)
    await soon(call, b"healed")


async def test_a_reset_fails_calls_at_once_and_the_next_goes_well(proxy, call, gated):
    waiting = call()
    await gated.arrived.wait()
    began = time.monotonic()
    proxy.reset()
    await fails(waiting)
    assert time.monotonic() - began < 1
    await soon(call, b"next")
    assert proxy.accepted == 2


async def test_calls_fail_while_connections_are_refused(proxy, call):
    proxy.refuse()
    await fails(call(b"", LIVE))
    assert proxy.connections == 0
    proxy.heal()
    await soon(call, b"healed")


async def test_a_goaway_fails_no_call_and_the_next_opens_a_connection(proxy, call, gated):
    waiting = call(b"in flight")
    await gated.arrived.wait()
    proxy.goaway()
    while proxy.accepted == 1:
        await soon(call, b"next")  # one may leave before the client has read the GOAWAY
    assert proxy.connections == 2
    gated.go.set()
    assert await waiting == b"in flight"
    del waiting
    await until(lambda: proxy.connections == 1)
    assert proxy.accepted == 2


async def test_goaways_amid_big_answers_break_none():
    message = os.urandom(4 * 1024 * 1024)
    async with (
        Server(ModelInfer=echo) as server,
        FaultProxy(server.target) as proxy,
        calls_to(proxy.url) as call,
    ):
        await call()
        proxy.bytes_per_s = 20_000_000
        waiting = [call(message) for _ in range(4)]
        await until(lambda: proxy.requests == 5)
        inserted = 0
        while not all(each.done() for each in waiting):
            proxy.goaway()
            inserted += 1
            await asyncio.sleep(0.01)
        assert inserted > 5
        for each in waiting:
            assert await each == message
        await call()
        assert proxy.accepted == 2


async def test_who_is_thrown_out_is_told_why(proxy, call, server, gated):
    waiting = call()
    await gated.arrived.wait()
    proxy.throw_out()
    await fails(waiting, "too_many_pings")
    await until(lambda: server.cancelled == 1)
    await soon(call, b"next")
    assert proxy.accepted == 2


async def test_latency_is_that_of_one_way_for_all_calls_at_once(proxy, call):
    proxy.latency_s = 0.2
    began = time.monotonic()
    await asyncio.gather(*[call(b"", LIVE) for _ in range(50)])
    assert 0.2 <= time.monotonic() - began < 2  # one after the other it would be 10 s


async def test_bandwidth_slows_a_message(proxy, call):
    proxy.bytes_per_s = 1_000_000
    message = os.urandom(300_000)
    began = time.monotonic()
    assert await call(message, LIVE) == message
    assert 0.5 < time.monotonic() - began < 5


# --- UNAVAILABLE ----------------------------------------------------------------------------------


async def test_every_call_is_answered_with_the_status_and_counted():
    async with UnavailableServer("100 % gone") as server, calls_to(server.url) as call:
        for _ in range(5):
            await fails(call(), "100 % gone")
        await asyncio.gather(*[fails(call(), "100 % gone") for _ in range(50)])
        assert server.requests == 55
        server.code, server.details = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "full"
        assert await call().code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_messages_that_nobody_wants_do_not_stop_the_connection():
    async with (
        UnavailableServer() as server,
        FaultProxy(server.url) as proxy,
        calls_to(proxy.url) as call,
    ):
        for _ in range(20):
            await fails(call(bytes(500_000)))
        assert (server.requests, proxy.requests, proxy.accepted) == (20, 20, 1)


async def test_settings_and_pings_are_acknowledged():
    ping = frame(Kind.PING, payload=b"12345678")
    async with UnavailableServer() as server, connected(server.url) as client:
        await client.send(HELLO + ping)
        answers = SETTINGS + frame(Kind.SETTINGS, flags=Flag.ACK)
        answers += frame(Kind.PING, flags=Flag.ACK, payload=b"12345678")
        assert await client.receive(len(answers)) == answers


async def test_a_server_can_be_replaced_by_an_unavailable_one_and_back(proxy, call, server):
    async with UnavailableServer() as unavailable:
        for url, moves in ((unavailable.url, proxy.goaway), (server.target, proxy.reset)):
            proxy.upstream, accepted = url, proxy.accepted
            moves()
            while proxy.accepted == accepted:
                await call(b"", LIVE).code()  # one may leave before the client knows
            if url == unavailable.url:
                await fails(call(b"", LIVE), "going down")
        await soon(call, b"back")


# --- nothing is left ------------------------------------------------------------------------------


def ends_at(url):
    """This process's sockets at an address, on either side."""
    port = int(url.rpartition(":")[2])
    connections = psutil.Process().net_connections()
    return [each for each in connections if port in (*each.laddr[1:], *each.raddr[1:])]


def carriers():
    """The tasks of proxies and servers of this folder; gRPC's server has others."""
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(("Connection.", "UnavailableServer."))]


@pytest.mark.parametrize("kind", [FaultProxy, UnavailableServer])
async def test_closing_under_calls_is_prompt_and_leaves_no_task_and_no_socket(server, kind):
    async with kind(server.target) as closing, calls_to(closing.url) as call:
        waiting = [call(os.urandom(1_000_000)) for _ in range(8)]
        await until(lambda: closing.requests >= 8)
        assert ends_at(closing.url)
        assert carriers()
        began = time.monotonic()
        await closing.aclose()
        assert time.monotonic() - began < 1
        assert not carriers()
        for each in waiting:
            assert await each.code() is grpc.StatusCode.UNAVAILABLE
    await until(lambda: not ends_at(closing.url))
