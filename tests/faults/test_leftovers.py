"""Proxies that are closed amid traffic: promptly, and nothing is left."""

import asyncio
import socket
import time

import psutil
import pytest

from tests.faults.frames import Kind, frame
from tests.faults.proxy import FaultProxy
from tests.faults.raw import RawServer, address, connected, exchange, until

pytestmark = pytest.mark.anyio

FAULTS = {
    "none": lambda proxy: None,
    "stall": FaultProxy.stall,
    "black_hole": FaultProxy.black_hole,
    "half_open": FaultProxy.half_open,
    "reset": FaultProxy.reset,
    "refuse": FaultProxy.refuse,
    "goaway": FaultProxy.goaway,
    "throw_out": FaultProxy.throw_out,
    "latency": lambda proxy: setattr(proxy, "latency_s", 60),
    "bandwidth": lambda proxy: setattr(proxy, "bytes_per_s", 1000),
}


@pytest.fixture
async def server():
    async with RawServer() as server:
        yield server


def held():
    return psutil.Process().num_fds(), asyncio.all_tasks()


def nothing_more_than(before):
    # What gRPC leaves in other tests may go meanwhile.
    return all(now <= then for now, then in zip(held(), before, strict=True))


@pytest.mark.parametrize("fault", FAULTS)
async def test_closing_amid_traffic_is_prompt_and_leaves_nothing(server, fault):
    before = held()
    async with FaultProxy(server.url) as proxy:
        async with connected(proxy.url) as client:
            behind = await server.next()
            await exchange(client, behind)
            for end in (client, behind):
                end.writer.write(frame(Kind.DATA, payload=bytes(2**24 - 1)) * 2)
            await client.receive(1000)
            FAULTS[fault](proxy)
            for _ in range(20):
                await asyncio.sleep(0)
            began = time.monotonic()
            await proxy.aclose()
            assert time.monotonic() - began < 1
            assert proxy.connections == 0
        behind.writer.transport.abort()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address(proxy.url))
    await until(lambda: nothing_more_than(before))


async def test_a_connection_that_is_reset_as_it_comes_is_closed(server):
    proxy = await FaultProxy(server.url).__aenter__()
    before = held()
    with socket.create_connection(address(proxy.url)):
        while not proxy.accepted:
            await asyncio.sleep(0)
        proxy.reset()  # its task may not have begun
        await until(lambda: held()[0] <= before[0] + 1)
    await until(lambda: nothing_more_than(before))
    await proxy.aclose()


async def test_a_closed_proxy_can_be_closed_again(server):
    async with FaultProxy(server.url) as proxy:
        await proxy.aclose()
