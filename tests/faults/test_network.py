"""The network breaks in every way that the proxy knows; callers do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from tests.faults.load import Load
from tests.faults.unavailable import UnavailableServer
from tritonasync import BatchPolicy, RetryPolicy, TritonPool
from tritonasync.core.errors import ServerNotReadyError
from tritonasync.core.resilience import HealthPolicy

pytestmark = [pytest.mark.anyio, pytest.mark.server]

BRISK = HealthPolicy(ejection_s=0.2, slow_start_s=0.5)

batched = pytest.mark.parametrize("batching", [BatchPolicy(), None], ids=["batched", "alone"])


SHUTTING_DOWN = "GRPC server is shutting down"


def pool_on(proxies, **options):
    options = {"health": BRISK, "close_timeout_s": 2.0, **options}
    return TritonPool([proxy.url for proxy in proxies], **options)


@batched
async def test_connections_are_reset(proxies, batching):
    async with pool_on(proxies, batching=batching) as pool:
        async with Load(pool) as load:
            await asyncio.sleep(1)  # calls that pay for the retries
            for proxy in proxies:
                proxy.reset()
                await asyncio.sleep(0.5)
        load.tally.check()


@batched
@pytest.mark.parametrize("how", ["goaway", "throw_out"])
async def test_connections_are_told_to_go_away(proxies, batching, how):
    async with pool_on(proxies, batching=batching) as pool:
        async with Load(pool) as load:
            await asyncio.sleep(1)  # calls that pay for the retries
            for proxy in proxies:
                getattr(proxy, how)()
                await asyncio.sleep(0.5)
        load.tally.check()


@batched
async def test_a_host_refuses_and_comes_back(proxies, batching):
    async with pool_on(proxies, batching=batching) as pool:
        async with Load(pool) as load:
            for proxy in proxies:
                await asyncio.sleep(0.2)
                proxy.refuse()
                await asyncio.sleep(0.5)
                proxy.heal()
                await asyncio.sleep(1)
        load.tally.check()


@batched
async def test_a_black_hole_costs_two_seconds(proxies, batching):
    """At least 60 % of full throughput again within 2 s, and nobody waits for much longer."""
    async with pool_on(proxies, batching=batching) as pool:
        async with Load(pool) as load:
            await asyncio.sleep(0.5)
            full = await load.rate(1.5)
            proxies[0].black_hole()
            began = time.monotonic()
            while await load.rate(0.25) < 0.6 * full:
                assert time.monotonic() - began < 2.0, "it has not recovered"
            await asyncio.sleep(2.5)
            after = await load.rate(1.0)
        proxies[0].heal()  # what is out on its old connections ends, so that closing is quick
        load.tally.check()
        assert after >= 0.6 * full, (after, full)
        assert load.tally.slowest_s < 5
        assert pool.statistics().routing.endpoints[0].ejections >= 1


@batched
async def test_connections_are_half_open(proxies, batching):
    """The host vanished without a word: a new connection works, the old one says nothing."""
    async with pool_on(proxies, batching=batching) as pool:
        async with Load(pool) as load:
            await asyncio.sleep(0.3)
            proxies[1].half_open()
            await asyncio.sleep(4)
            before = proxies[1].requests
            await asyncio.sleep(1)
            assert proxies[1].requests > before  # it is back, over a new connection
        proxies[1].reset()  # what is out on its old connections ends, so that closing is quick
        load.tally.check()
        assert load.tally.slowest_s < 5


@batched
async def test_a_slow_endpoint_gets_less_and_slows_nobody_else(proxies, batching):
    """500 ms of latency on one of three."""
    async with pool_on(proxies, batching=batching) as pool:
        async with Load(pool) as load:
            await asyncio.sleep(0.3)
            full = await load.rate(1.0)
            counts = [proxy.requests for proxy in proxies]
            proxies[2].latency_s = 0.5
            await asyncio.sleep(1.0)
            slowed = await load.rate(2.0)
            gained = [proxy.requests - count for proxy, count in zip(proxies, counts, strict=True)]
        load.tally.check()
        assert gained[2] < min(gained[:2])
        assert slowed > 0.3 * full, (slowed, full)
        states = {health.state for health in pool.statistics().routing.endpoints}
        assert states == {"healthy"}  # slow is not dead


async def test_hedging_cuts_the_tail_of_a_slow_endpoint(proxies):
    retry = RetryPolicy(hedge_after_s=0.05, budget=1.0)
    async with pool_on(proxies, batching=None, retry=retry) as pool:
        proxies[2].latency_s = 0.5
        async with Load(pool, callers=20, pause_s=0.01) as load:
            await asyncio.sleep(3)
        load.tally.check()
        assert load.tally.slowest_s < 0.45
        assert pool.statistics().routing.hedge_wins > 0


async def test_little_bandwidth_fails_nothing(proxies):
    async with pool_on(proxies) as pool:
        for proxy in proxies:
            proxy.bytes_per_s = 200_000
        async with Load(pool, callers=100) as load:
            await asyncio.sleep(2)
        for proxy in proxies:
            proxy.bytes_per_s = float("inf")
        load.tally.check()


async def test_a_frozen_server_goes_on_where_it_stopped(proxies):
    async with pool_on(proxies) as pool:
        async with Load(pool) as load:
            await asyncio.sleep(0.3)
            proxies[0].stall()
            await asyncio.sleep(3)
            proxies[0].heal()
            await asyncio.sleep(1)
        load.tally.check()


@pytest.mark.parametrize("callers", [1, 100])
async def test_a_retry_storm_stays_within_the_budget(callers):
    """Every server says UNAVAILABLE: attempts are counted where they arrive."""
    calls = 1000
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(UnavailableServer(SHUTTING_DOWN)) for _ in range(3)
        ]
        retry = RetryPolicy(budget=0.2, min_retries_per_s=10, backoff_s=0.001, max_backoff_s=0.001)
        pool = await stack.enter_async_context(
            TritonPool(
                [server.url for server in servers],
                retry=retry,
                health=HealthPolicy(probe_interval_s=None),
            )
        )
        names = map(str, range(calls))  # a question for each: callers share those for one model
        began = time.monotonic()

        async def caller():
            for _ in range(calls // callers):
                with pytest.raises(ServerNotReadyError):
                    await pool.model(next(names)).spec()

        await asyncio.gather(*[caller() for _ in range(callers)])
        windows = 1 + (time.monotonic() - began) / 10
        sent = sum(server.requests for server in servers)
        statistics = pool.statistics().routing
        assert sent <= calls * 1.2 + 100 * windows
        assert statistics.retries > 100
        assert statistics.over_budget > 0
