"""A server restarted behind the same address is noticed, at the latest by the next answer."""

import asyncio

import anyio.to_thread
import grpc
import pytest

from tests.faults.proxy import FaultProxy
from tests.transport.scripted import Gated, RefusalError, ScriptedServer, echo, make_endpoint
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConnectionLostError, ModelNotFoundError, TransportError
from tritonasync.serving import EmbeddedTriton
from tritonasync.transport.backend import EndpointBackend
from tritonasync.transport.channel import open_channels
from tritonasync.transport.lanes import Lane

pytestmark = pytest.mark.anyio


def watched(endpoint):
    """The list that grows with each reconnection the endpoint tells of."""
    told = []
    endpoint.link.watch_reconnections(lambda: told.append(endpoint.statistics().reconnections))
    return told


async def reach(endpoint, method="ModelInfer"):
    """Call until a server is there again."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await endpoint.exchange(method, b"", Deadline.after(20))
            except TransportError:
                await asyncio.sleep(0.02)


async def unconnected(endpoint):
    async with asyncio.timeout(10):
        while any(lane.connected() for lane in endpoint.link.lanes.current):
            await asyncio.sleep(0.005)


async def test_the_first_connection_is_no_reconnection():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target, channels=3)
        told = watched(endpoint)
        await asyncio.gather(*(endpoint.exchange("ModelInfer", b"", NEVER) for _ in range(30)))
        assert len(server.peers) == 3
        assert endpoint.statistics().reconnections == 0
        assert told == []
        await endpoint.aclose(NEVER)


async def test_a_server_that_is_late_to_come_up_is_connected_to_for_the_first_time():
    async with ScriptedServer(ModelInfer=echo) as server:
        target = server.target
    endpoint = make_endpoint(target)
    for _ in range(3):
        with pytest.raises(TransportError):
            await endpoint.exchange("ModelInfer", b"", NEVER)
    async with ScriptedServer(target, ModelInfer=echo):
        await reach(endpoint)
        assert endpoint.statistics().reconnections == 0
        await endpoint.aclose(NEVER)


@pytest.mark.parametrize("calls", [1, 5])
async def test_a_restart_while_idle_is_noticed_by_the_next_call(calls):
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        told = watched(endpoint)
        for _ in range(calls):
            await endpoint.exchange("ModelInfer", b"", NEVER)
    await unconnected(endpoint)
    for restarts in (1, 2, 3):
        async with ScriptedServer(server.target, ModelInfer=echo):
            await endpoint.exchange("ModelInfer", b"", Deadline.after(20))
            assert endpoint.statistics().reconnections == restarts
            for _ in range(3):
                await endpoint.exchange("ModelInfer", b"", NEVER)
        assert told == [*range(1, restarts + 1)]
        await unconnected(endpoint)
    await endpoint.aclose(NEVER)


async def test_a_restart_under_load_is_noticed_once():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated, ServerReady=echo) as server:
        endpoint = make_endpoint(server.target)
        told = watched(endpoint)
        await endpoint.exchange("ServerReady", b"", NEVER)
        callers = [
            asyncio.create_task(endpoint.exchange("ModelInfer", b"", NEVER)) for _ in range(20)
        ]
        for _ in callers:
            await gated.arrived.acquire()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ConnectionLostError}
    async with ScriptedServer(server.target, ModelInfer=echo):
        await reach(endpoint)
        await asyncio.gather(*(endpoint.exchange("ModelInfer", b"", NEVER) for _ in range(20)))
        assert told == [1]
        await endpoint.aclose(NEVER)


async def test_a_refusal_by_the_new_server_is_an_answer_of_its_own():
    async def refuse(message):
        raise RefusalError(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm'")

    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        await endpoint.exchange("ModelInfer", b"", NEVER)
    await unconnected(endpoint)
    async with ScriptedServer(server.target, ModelInfer=refuse):
        with pytest.raises(ModelNotFoundError):
            await endpoint.exchange("ModelInfer", b"", Deadline.after(20))
        assert endpoint.statistics().reconnections == 1
        await endpoint.aclose(NEVER)


async def test_calls_that_end_on_the_old_connection_do_not_count_as_the_new_ones():
    gated = Gated()
    async with (
        ScriptedServer(ModelInfer=gated, ServerReady=echo) as server,
        FaultProxy(server.target) as proxy,
    ):
        endpoint = make_endpoint(proxy.url)
        told = watched(endpoint)
        await endpoint.exchange("ServerReady", b"", NEVER)
        early = asyncio.create_task(endpoint.exchange("ModelInfer", b"", NEVER))
        await gated.arrived.acquire()
        proxy.goaway()  # calls that are out end well; new ones connect anew
        await unconnected(endpoint)
        late = asyncio.create_task(endpoint.exchange("ModelInfer", b"", NEVER))
        await gated.arrived.acquire()
        assert proxy.accepted == 2
        assert told == []
        gated.go.set()
        await asyncio.gather(early, late)
        assert told == [1]
        await endpoint.exchange("ServerReady", b"", NEVER)
        assert told == [1]
        await endpoint.aclose(NEVER)


async def test_what_fails_on_the_old_connection_says_nothing_of_the_new_one():
    gated = Gated()
    async with (
        ScriptedServer(ModelInfer=gated, ServerReady=echo) as old,
        ScriptedServer(ServerReady=echo) as new,
        FaultProxy(old.target) as proxy,
    ):
        endpoint = make_endpoint(proxy.url)
        told = watched(endpoint)
        await endpoint.exchange("ServerReady", b"", NEVER)
        early = asyncio.create_task(endpoint.exchange("ModelInfer", b"", NEVER))
        await gated.arrived.acquire()
        proxy.upstream = new.target
        proxy.goaway()
        await unconnected(endpoint)
        await endpoint.exchange("ServerReady", b"", Deadline.after(20))
        await old.__aexit__()
        with pytest.raises(ConnectionLostError):
            await early
        await endpoint.exchange("ServerReady", b"", NEVER)
        assert told == [1]
        await endpoint.aclose(NEVER)


async def test_a_late_answer_on_a_lost_connection_does_not_make_the_next_one_seen():
    (channel,) = open_channels("127.0.0.1:1", count=1, tls=None)
    lane = Lane(channel)
    lane.turn()  # connected
    lane.turn()  # not any more
    lane.hear(1)
    assert not lane.ready
    lane.hear(2)
    assert lane.ready
    await channel.close()


async def test_an_answer_after_a_lost_connection_counts_though_the_channel_stayed_connected():
    """As behind a proxy that lost its server, or one of a name's servers that died."""

    async def lose(message):
        raise RefusalError(grpc.StatusCode.UNAVAILABLE, "upstream connect error or disconnect")

    async with ScriptedServer(ModelInfer=lose, ServerReady=echo) as server:
        endpoint = make_endpoint(server.target)
        told = watched(endpoint)
        for _ in range(2):
            await endpoint.exchange("ServerReady", b"", NEVER)
        calls = [endpoint.exchange("ModelInfer", b"", NEVER) for _ in range(5)]
        await asyncio.gather(*calls, return_exceptions=True)
        assert told == []
        for _ in range(3):
            await endpoint.exchange("ServerReady", b"", NEVER)
        assert told == [1]
        await endpoint.aclose(NEVER)


@pytest.mark.server
async def test_the_real_server_restarted_while_idle_is_noticed_by_the_next_call():
    with EmbeddedTriton("tests/models", model_control="explicit", load_models=["ident"]) as triton:
        backend = EndpointBackend(make_endpoint(triton.grpc_url, cancel_on_server=True))
        told = []
        backend.watch_reconnections(lambda: told.append(True))
        assert await backend.ready(Deadline.after(20))
        await anyio.to_thread.run_sync(triton.restart)
        assert await backend.model_ready("ident", "", Deadline.after(20))
        assert told == [True]
        async with asyncio.timeout(10):
            while backend.statistics().server_version is None:
                await asyncio.sleep(0.01)
        metadata = await backend.control.server_metadata(Deadline.after(20))
        assert backend.statistics().server_version == metadata.version
        await backend.aclose(Deadline.after(20))
