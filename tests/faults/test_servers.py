"""Real servers are killed, restarted and reloaded under load; callers do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import shutil

import numpy as np
import pytest
from anyio import to_thread

from tests.faults.load import Load, until_healthy
from tests.transport.scripted import Gated, ScriptedServer, echo
from tritonasync import BatchPolicy, TritonPool
from tritonasync.core.resilience import HealthPolicy
from tritonasync.serving import EmbeddedTriton

pytestmark = [pytest.mark.anyio, pytest.mark.server]

BRISK = HealthPolicy(ejection_s=0.2, slow_start_s=0.5)
UNPROBED = HealthPolicy(probe_interval_s=None)

batched = pytest.mark.parametrize("batching", [BatchPolicy(), None], ids=["batched", "alone"])


def urls(servers):
    return [server.grpc_url for server in servers]


@batched
async def test_servers_are_killed_and_restarted_in_turn(three_servers, batching):
    async with TritonPool(urls(three_servers), batching=batching, health=BRISK) as pool:
        async with Load(pool, callers=200) as load:
            for server in three_servers:
                await asyncio.sleep(0.5)
                await to_thread.run_sync(server.kill)
                await asyncio.sleep(0.5)
                await to_thread.run_sync(server.start)
                await until_healthy(pool)
        load.tally.check()
        assert load.tally.sent > 1000
        assert all(endpoint.reconnections for endpoint in pool.statistics().endpoints)


@batched
async def test_a_rolling_reload_fails_no_call(three_servers, batching):
    async with TritonPool(urls(three_servers), batching=batching) as pool:
        asked = [pool.admin.at(url) for url in urls(three_servers)]
        config = dict((await asked[0].config("ident")).document)
        async with Load(pool, callers=200) as load:
            for generation in ("1", "2", "3"):
                # A model whose files and configuration are as before would not be loaded anew.
                config["parameters"] = {"generation": {"string_value": f"{batching} {generation}"}}
                await pool.admin.load("ident", config=config)
        load.tally.check()
        assert load.tally.sent > 1000
        for one in asked:
            loaded = (await one.config("ident")).document
            assert loaded["parameters"]["generation"]["string_value"] == f"{batching} 3"


async def test_a_rolling_reload_goes_from_one_server_to_the_next():
    """On servers that are loaded when the test says so."""
    loading = [Gated() for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                ScriptedServer(RepositoryModelLoad=gate, ServerLive=echo)
            )
            for gate in loading
        ]
        targets = [server.target for server in servers]
        pool = await stack.enter_async_context(TritonPool(targets, health=UNPROBED))
        stack.callback(lambda: [gate.go.set() for gate in loading])  # whatever comes, it ends
        task = asyncio.ensure_future(pool.admin.load("ident", timeout_s=30))
        for place, gate in enumerate(loading):
            async with asyncio.timeout(10):
                await gate.arrived.acquire()
            await pool.admin.at(servers[-1].target).live()  # time for others to be asked, too
            asked = [server.count("RepositoryModelLoad") for server in servers]
            assert asked == [1] * (place + 1) + [0] * (2 - place)
            assert not task.done()
            gate.go.set()
        await task


@batched
async def test_unloading_and_loading_one_server_after_the_other_fails_no_call(
    three_servers, batching
):
    async with (
        TritonPool(urls(three_servers), batching=batching, health=BRISK) as pool,
        Load(pool, callers=200) as load,
    ):
        for url in urls(three_servers):
            one = pool.admin.at(url)
            await one.unload("ident")
            await one.load("ident")
            await until_served(pool)
    load.tally.check()


async def until_served(pool):
    async with asyncio.timeout(30):
        while any(health.ejected_models for health in pool.statistics().routing.endpoints):
            await asyncio.sleep(0.05)


async def test_a_server_that_comes_back_with_another_signature_is_asked_anew(tmp_path):
    repository = tmp_path / "models"
    shutil.copytree("tests/models/ident", repository / "ident")
    with EmbeddedTriton(repository, metrics=False) as triton:
        async with TritonPool(triton.grpc_url) as pool:
            model = pool.model("ident")
            row = np.ones((1, 16), np.float32)
            await model(INPUT0=row)
            assert (await model.spec()).max_batch_size == 256
            await to_thread.run_sync(triton.stop)
            config = repository / "ident/config.pbtxt"
            config.write_text(config.read_text().replace("256", "8"))
            await to_thread.run_sync(triton.start)
            await model(INPUT0=row)  # over a new connection, noticed by its answer
            async with asyncio.timeout(10):
                while (await model.spec()).max_batch_size != 8:
                    await asyncio.sleep(0.01)
            assert pool.statistics().endpoints[0].reconnections == 1
            await model(INPUT0=np.ones((20, 16), np.float32))  # split by the new limit


async def test_endpoints_come_and_go_under_load(three_servers):
    first, second, third = urls(three_servers)
    async with TritonPool([first]) as pool, Load(pool, callers=100) as load:
        for come, go in ((second, first), (third, second), (first, third)) * 3:
            await pool.add_endpoint(come)
            await asyncio.sleep(0.1)
            await pool.remove_endpoint(go)
            await asyncio.sleep(0.1)
            assert [endpoint.target for endpoint in pool.statistics().endpoints] == [come]
    load.tally.check()


async def test_a_server_that_stops_in_order_fails_no_call(three_servers):
    async with TritonPool(urls(three_servers), health=BRISK) as pool:
        async with Load(pool, callers=200) as load:
            for server in three_servers:
                await asyncio.sleep(0.3)
                await to_thread.run_sync(server.stop)
                await to_thread.run_sync(server.start)
                await until_healthy(pool)
        load.tally.check()
