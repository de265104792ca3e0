"""The long campaign: ``nox -s soak``, or ``python -m tests.faults.soak [part …]``.

Each part prints what it found and fails by raising. What takes seconds in ``tests/faults`` takes
minutes here: servers die and come back for a while, also under 100,000 calls by shared memory,
200,000 calls are abandoned, and as many requests on streams, and a million answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import inspect
import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np
import psutil
from anyio import to_thread

from tests.faults import shared
from tests.faults.load import Load, server, until_healthy
from tests.faults.test_streams import abandon, ident, repeat, serve
from tritonasync import BatchPolicy, TritonPool
from tritonasync.core.errors import DeadlineExceededError
from tritonasync.core.resilience import HealthPolicy
from tritonasync.serving import EmbeddedTriton

ROW = np.ones((1, 16), np.float32)
MEGABYTE = 1 << 20
MOST_GROWTH_MB = 3.0
"""Of memory, over a million calls; its error, too, must be below, or it would say nothing."""

BACKLOG = 2_000
"""Calls left behind until the server has caught up; beyond 10,000 the pool refuses more."""


# --- parts ----------------------------------------------------------------------------------------


async def deaths(seconds: float = 240) -> None:
    """Three servers are killed and restarted in turn under 200 callers; nothing is lost.

    Each kill waits until all endpoints are healthy again, so that never two are dead together.
    """
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(server()) for _ in range(3)]
        for batching in (BatchPolicy(), None):
            await _deaths(servers, batching, seconds / 2)


async def _deaths(servers: list[EmbeddedTriton], batching: BatchPolicy | None, seconds: float):
    chance = random.Random(4)
    urls = [triton.grpc_url for triton in servers]
    health = HealthPolicy(ejection_s=0.2, slow_start_s=0.5)
    deaths = 0
    async with TritonPool(urls, batching=batching, health=health) as pool:
        while not all(endpoint.succeeded for endpoint in pool.statistics().endpoints):
            async with Load(pool, most=200) as warm:  # connects to each
                await warm.finished()
        before = _resources()
        async with Load(pool, remember=batching is None) as load:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for triton in servers:
                    await asyncio.sleep(chance.uniform(0.1, 0.6))
                    await to_thread.run_sync(triton.kill)
                    await asyncio.sleep(chance.uniform(0, 0.6))
                    await to_thread.run_sync(triton.start)
                    deaths += 1
                    await until_healthy(pool)
        load.tally.check()
        routing = pool.statistics().routing
        print(
            f"  {'batched' if batching else 'alone'}: {load.tally.sent:,} calls over {deaths} "
            f"deaths, all answered, rightly; slowest {load.tally.slowest_s:.2f} s; "
            f"{routing.retries:,} retries, {routing.over_budget} over the budget"
        )
        await _settle(before, "deaths", slack=40)


async def sharing(calls: int = 100_000) -> None:
    """Two servers are killed in turn under calls by shared memory: no wrong byte, nothing left."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(shared.server()) for _ in range(2)]
        for batching, insisted in ((BatchPolicy(), False), (None, True)):
            await _sharing(servers, batching, calls // 2, insisted=insisted)


async def _sharing(
    servers: list[EmbeddedTriton], batching: BatchPolicy | None, calls: int, *, insisted: bool
):
    chance = random.Random(6)
    urls = [triton.grpc_url for triton in servers]
    health = HealthPolicy(ejection_s=0.2, slow_start_s=0.5)
    way = "system" if insisted else "auto"
    before: dict[str, float] = {}
    async with shared.sharing_pool(
        urls, batching=batching, health=health, shared_memory=way
    ) as pool:
        async with shared.SharedLoad(pool, remember=False, most=calls // 20) as warm:
            await warm.finished()
        before = _resources()
        async with shared.SharedLoad(pool, remember=False, most=calls) as load:
            deaths = await _kill_until(lambda: load.tally.sent >= calls, servers, pool, chance)
            await load.finished()
        load.tally.check()
        await shared.until_empty(pool)
        kept = [name for url in urls for name in await shared.names_on(url)]
        assert len(kept) <= len(urls) * shared.system(pool).regions
        memory = shared.system(pool)
        print(
            f"  {'insisted' if insisted else 'batched'}: {load.tally.sent:,} calls over {deaths} "
            f"deaths, all answered, rightly; slowest {load.tally.slowest_s:.2f} s; "
            f"{sum(shared.placed(pool)):,} requests by shared memory, {memory.takes:,} slots of "
            f"{memory.regions} regions"
        )
        await _settle(before, "sharing", slack=100)
    assert shared.own_files() == []
    for url in urls:
        assert await shared.names_on(url) == []


async def _kill_until(
    over: Callable[[], bool],
    servers: list[EmbeddedTriton],
    pool: TritonPool,
    chance: random.Random,
) -> int:
    """Kill one server after the other until it is over; return how often."""
    for deaths in itertools.count():
        if over():
            return deaths
        triton = servers[deaths % len(servers)]
        await asyncio.sleep(chance.uniform(0.1, 0.6))
        await to_thread.run_sync(triton.kill)
        await asyncio.sleep(chance.uniform(0, 0.6))
        await to_thread.run_sync(triton.start)
        await until_healthy(pool)
    raise AssertionError


async def abandonment(calls: int = 100_000) -> None:
    """Calls with deadlines of 0.5 to 5 ms, and cancelled ones; server 2.51 lives."""
    chance = random.Random(1)
    with server() as triton:
        async with TritonPool(triton.grpc_url, batching=None, close_timeout_s=60) as pool:
            model = pool.model("ident")
            await model(INPUT0=ROW)
            await _quiet(pool)
            before = _resources()
            expired = cancelled = 0
            for made in range(0, calls, 100):
                expired += await _expire(model, chance)
                if made % BACKLOG == 0:
                    await _quiet(pool)
            await _quiet(pool)
            for made in range(0, calls, 100):
                cancelled += await _cancel(model, chance)
                if made % BACKLOG == 0:
                    await _quiet(pool)
            await _quiet(pool)
            assert triton.running, triton.log_tail()
            np.testing.assert_array_equal((await model(INPUT0=ROW))["OUTPUT0"], ROW)
            endpoint = pool.statistics().endpoints[0]
            assert endpoint.failed == 0
            print(
                f"  {calls:,} calls with short deadlines, {expired:,} expired; {calls:,} to be "
                f"cancelled, {cancelled:,} were; {endpoint.abandoned:,} abandoned; the server lives"
            )
            await _settle(before, "abandonment", slack=100)


async def _expire(model, chance: random.Random) -> int:
    calls = [model(INPUT0=ROW, timeout_s=chance.uniform(0.0005, 0.005)) for _ in range(100)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    return sum(isinstance(result, DeadlineExceededError) for result in results)


async def _cancel(model, chance: random.Random) -> int:
    loop = asyncio.get_running_loop()
    calls = [asyncio.create_task(model(INPUT0=ROW)) for _ in range(100)]
    for call in calls:
        loop.call_later(chance.uniform(0, 0.004), call.cancel)
    await asyncio.wait(calls)
    return sum(call.cancelled() for call in calls)


async def streams(calls: int = 100_000) -> None:
    """Requests on streams, left at once, late or half-read; server 2.51 lives.

    Those of one kind of model after those of the other: it does not bear them together.
    """
    for call in (ident, repeat):
        chance = random.Random(1)
        given_up: Counter[type[BaseException]] = Counter()
        with serve("ident", "repeat") as triton:
            async with TritonPool(
                triton.grpc_url, batching=None, transport="stream", close_timeout_s=60
            ) as pool:
                before: dict[str, float] = {}
                for made in range(0, calls, 100):
                    given_up += await abandon(pool, call, chance)
                    if made % BACKLOG == 0:
                        await _quiet(pool)
                    if made == calls // 5:  # what is allocated once is
                        before = _resources()
                await _quiet(pool)
                assert triton.running, triton.log_tail()
                (endpoint,) = pool.statistics().endpoints
                assert endpoint.failed == 0
                expired, cancelled = (
                    given_up[kind] for kind in (DeadlineExceededError, asyncio.CancelledError)
                )
                print(
                    f"  {call.__name__}: {calls:,} requests, {expired:,} expired, {cancelled:,} "
                    f"cancelled; {endpoint.abandoned:,} abandoned on streams; the server lives"
                )
                await _settle(before, "streams", slack=20)


async def million(calls: int = 1_000_000) -> None:
    """A million answered calls; memory, tasks and descriptors stay where they are."""
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(server()).grpc_url for _ in range(3)]
        async with TritonPool(urls) as pool:
            async with Load(pool, callers=256, remember=False, most=calls // 5) as warm:
                await warm.finished()
            before = _resources()
            samples: list[tuple[int, float]] = []
            async with Load(pool, callers=256, remember=False, most=calls) as load:
                sampling = asyncio.create_task(_sample(load, samples))
                await load.finished()
                sampling.cancel()
            load.tally.check()
            slope, error = _slope(samples)
            print(
                f"  {load.tally.sent:,} calls answered; memory grows by {slope * 1e6:.2f} MB a "
                f"million calls, give or take {2 * error * 1e6:.2f}, over {len(samples)} samples"
            )
            assert error * 1e6 < MOST_GROWTH_MB, "memory was too unsteady to say whether it grows"
            assert slope * 1e6 < max(2 * error * 1e6, MOST_GROWTH_MB), "memory grows"
            await _settle(before, "million", slack=20)


async def _sample(load: Load, samples: list[tuple[int, float]]) -> None:
    process = psutil.Process()
    while True:
        samples.append((load.tally.count, process.memory_info().rss / MEGABYTE))
        await asyncio.sleep(0.25)


def _slope(samples: list[tuple[int, float]]) -> tuple[float, float]:
    """Return the slope of the second half by least squares, and its standard error."""
    half = samples[len(samples) // 2 :]
    xs, ys = [float(x) for x, _ in half], [y for _, y in half]
    slope, at_zero = statistics.linear_regression(xs, ys)
    residuals = [y - (at_zero + slope * x) for x, y in zip(xs, ys, strict=True)]
    mean = statistics.fmean(xs)
    spread = sum((x - mean) ** 2 for x in xs)
    variance = sum(r * r for r in residuals) / max(1, len(xs) - 2)
    return slope, (variance / spread) ** 0.5


# --- what must not grow ---------------------------------------------------------------------------


def _resources() -> dict[str, float]:
    gc.collect()
    process = psutil.Process()
    return {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "MB": process.memory_info().rss / MEGABYTE,
    }


async def _settle(before: dict[str, float], part: str, *, slack: float) -> None:
    """Fail unless tasks and descriptors come back to what they were, and memory nearly."""
    limit = time.monotonic() + 20
    while True:
        after = _resources()
        grown = {
            name: after[name] - before[name]
            for name in ("tasks", "descriptors")
            if after[name] > before[name]
        }
        if not grown or time.monotonic() > limit:
            break
        await asyncio.sleep(0.2)
    print("  " + ", ".join(f"{name} {before[name]:.0f} → {after[name]:.0f}" for name in before))
    assert not grown, (part, grown)
    assert after["MB"] - before["MB"] < slack, (part, before, after)


async def _quiet(pool: TritonPool) -> None:
    async with asyncio.timeout(120):
        while any(endpoint.in_flight for endpoint in pool.statistics().endpoints):
            await asyncio.sleep(0.01)


PARTS: dict[str, Callable[[], Awaitable[None]]] = {
    "deaths": deaths,
    "sharing": sharing,
    "abandonment": abandonment,
    "streams": streams,
    "million": million,
}


def main() -> None:
    """Run the parts named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="part", default=[])
    for name in parser.parse_args().parts or PARTS:
        print(f"{name}: {inspect.getdoc(PARTS[name])}", flush=True)
        began = time.monotonic()
        asyncio.run(PARTS[name]())
        print(f"  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
