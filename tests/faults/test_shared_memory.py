"""Servers die, networks break and clients are killed while tensors lie in shared memory.

Every answer is checked, and looked at again while its caller still has it. In the end nothing is
left: no slot that is out, no file, no name on a server.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from anyio import to_thread

from tests.faults.load import until_healthy
from tests.faults.shared import (
    MODEL,
    WIDTHS,
    SharedLoad,
    check,
    check_nothing_is_left,
    content,
    files_of,
    learned,
    living,
    names_on,
    placed,
    server,
    sharing_pool,
    slow,
    system,
    until,
    until_empty,
)
from tritonasync import BatchPolicy
from tritonasync.core.errors import DeadlineExceededError, TransportError
from tritonasync.core.resilience import HealthPolicy
from tritonasync.memory.guard import guard_of

pytestmark = [pytest.mark.anyio, pytest.mark.server]

BRISK = HealthPolicy(ejection_s=0.2, slow_start_s=0.5)


@pytest.fixture(scope="module")
def three_servers():
    """Those behind ``proxies`` here: two, that negate, and may be killed."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server()) for _ in range(2)]


@pytest.fixture
def two(three_servers):
    return three_servers


@pytest.fixture
def one(two):
    return two[0]


@pytest.fixture(autouse=True)
async def nothing_is_left(two):
    yield
    await check_nothing_is_left(two)


def urls(servers):
    return [server.grpc_url for server in servers]


# --- servers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batching", "sharing"),
    [(BatchPolicy(), "auto"), (None, "system")],
    ids=["batched", "alone, insisted"],
)
async def test_servers_are_killed_and_restarted_under_load(two, batching, sharing):
    async with sharing_pool(
        urls(two), batching=batching, health=BRISK, shared_memory=sharing
    ) as pool:
        async with SharedLoad(pool) as load:
            for triton in two:
                await until(lambda: all(placed(pool)))
                named = await names_on(triton.grpc_url)
                await asyncio.sleep(0.2)
                await to_thread.run_sync(triton.kill)
                await asyncio.sleep(0.2)
                await to_thread.run_sync(triton.start)
                assert await names_on(triton.grpc_url) != named
                await until_healthy(pool)
            await until(lambda: load.tally.count >= 5000, 60)
        load.tally.check()
        assert all(endpoint.reconnections for endpoint in pool.statistics().endpoints)
        await until_empty(pool)


async def test_the_only_server_is_killed_and_its_next_self_knows_nothing_of_before(one):
    """The connection tells of it; the regions are registered anew, under other names."""
    async with sharing_pool(one.grpc_url, health=BRISK) as pool:
        model = await learned(pool)
        before = set(await names_on(one.grpc_url))
        kept = [await check(model, number) for number in range(8)]
        for _ in range(2):
            await to_thread.run_sync(one.restart)
            later = [await check(model, number) for number in range(100, 140)]
            after = set(await names_on(one.grpc_url))
            assert after
            assert not after & before
            before |= after
        for number, answer in enumerate(kept):
            assert (answer == -content(number)).all()
        del kept, later, answer
        await until_empty(pool)


async def test_a_call_that_insists_does_not_wait_for_a_dead_server(one):
    """Its slots stay retired, and their region does not come back before the server does."""
    async with sharing_pool(
        one.grpc_url, batching=None, health=BRISK, shared_memory="system", timeout_s=20
    ) as pool:
        model = await learned(pool)
        call = asyncio.create_task(model(slow(1, 500)))
        await until(lambda: system(pool).in_use == 2)
        await asyncio.sleep(0.1)  # for the server to begin
        await to_thread.run_sync(one.kill)
        async with asyncio.timeout(10):
            with pytest.raises(TransportError, match="failed to connect"):
                await call
        assert system(pool).retired == 2
        await to_thread.run_sync(one.start)
        await until_healthy(pool)
        await until(lambda: not system(pool).retired)
        await check(model, 2)
        del call
        await until_empty(pool)


async def test_more_is_asked_for_by_several_callers_at_once(one):
    """Each had too little room, and each is asked again, though the first has taught it all."""
    async with sharing_pool(one.grpc_url, batching=None) as pool:
        model = await learned(pool)
        # Inputs of nearly the same size, of which no larger outputs are known.
        await asyncio.gather(*[check(model, number, width=WIDTHS[1]) for number in range(8)])


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "sharing"),
    [("reset", "auto"), ("reset", "system"), ("black_hole", "auto"), ("half_open", "system")],
)
async def test_connections_break_under_load(proxies, how, sharing):
    async with sharing_pool(
        [proxy.url for proxy in proxies],
        health=BRISK,
        shared_memory=sharing,
        close_timeout_s=5.0,
    ) as pool:
        async with SharedLoad(pool) as load:
            await until(lambda: all(placed(pool)))
            for proxy in proxies:
                await asyncio.sleep(0.3)
                getattr(proxy, how)()
                enough = load.tally.count + 200
                await until(lambda enough=enough: load.tally.count > enough)
                proxy.heal()
                await until_healthy(pool)
        for proxy in proxies:
            proxy.reset()  # what is out on connections that are silent for ever ends
        load.tally.check()
        assert load.tally.slowest_s < 10
        await until_empty(pool)


@pytest.mark.parametrize("sharing", ["auto", "system"])
async def test_a_slot_is_retired_until_the_server_has_let_go_of_it(proxies, two, sharing):
    """Two calls are at work on the server when their connection is lost.

    Meanwhile others go on the wire or, if they must not, wait until the region can be used again.
    """
    (proxy, _), (triton, _) = proxies, two
    async with sharing_pool(
        proxy.url, batching=None, shared_memory=sharing, close_timeout_s=5.0
    ) as pool:
        model = await learned(pool)
        named = set(await names_on(triton.grpc_url))
        calls = [asyncio.create_task(model(slow(number, 600), timeout_s=0.3)) for number in (1, 2)]
        await until(lambda: system(pool).in_use == 4)
        await asyncio.sleep(0.1)  # for the server to begin
        proxy.reset()
        await until(lambda: system(pool).retired == 4)
        assert set(await names_on(triton.grpc_url)) >= named  # it is at work, and has it in use
        for call in calls:
            with pytest.raises(DeadlineExceededError):
                await call
        held = [await check(model, number) for number in range(10, 20)]
        (sharing_report,) = [endpoint.sharing for endpoint in pool.statistics().endpoints]
        assert (sharing_report.on_wire > 0) is (sharing == "auto")
        await until(lambda: not system(pool).retired)
        assert named - set(await names_on(triton.grpc_url))  # that was the proof
        for number, answer in enumerate(held, 10):
            assert (answer == -content(number)).all()
        del held, answer
        await until_empty(pool)
        before = placed(pool)
        await check(model, 30)
        assert placed(pool) == [before[0] + 1]


# --- clients that die -----------------------------------------------------------------------------


async def test_what_a_killed_client_has_left_is_removed_by_the_next(one):
    async with living(one.grpc_url) as alive, living(one.grpc_url) as dying:
        names = await names_on(one.grpc_url)
        theirs = [name for name in names if name.startswith(alive.guard)]
        left = [name for name in names if name.startswith(dying.guard)]
        assert theirs
        assert left
        dying.kill()
        assert files_of(dying.guard)
        async with sharing_pool(one.grpc_url) as pool:
            await learned(pool)
            assert files_of(dying.guard) == []
            async with asyncio.timeout(20):
                while set(left) & set(names := await names_on(one.grpc_url)):
                    await asyncio.sleep(0.05)
            assert set(theirs) < set(names)
            assert files_of(alive.guard)
            assert await alive.call() == "right"
    assert files_of(alive.guard) == []


async def test_pools_and_processes_share_a_server_without_sharing_names(one):
    async with (
        living(one.grpc_url) as other,
        sharing_pool(one.grpc_url) as first,
        sharing_pool(one.grpc_url) as second,
    ):
        async with SharedLoad(first, callers=8) as load, SharedLoad(second, callers=8) as more:
            assert {await other.call() for _ in range(3)} == {"right"}
            await until(lambda: load.tally.count > 200 < more.tally.count)
            names = set(await names_on(one.grpc_url))
            ours = {name for name in names if name.startswith(guard_of().name)}
            theirs = {name for name in names if name.startswith(other.guard)}
            assert len(ours) >= 2
            assert theirs
            assert ours | theirs == names
        for tally in (load.tally, more.tally):
            tally.check()
        await first.aclose()
        left = set(await names_on(one.grpc_url))
        assert theirs < left < names
        before = placed(second)
        await check(second.model(MODEL), 1)
        assert placed(second) == [before[0] + 1]
        assert await other.call() == "right"
