"""A second attempt beside a slow first one."""

from __future__ import annotations

import asyncio

import pytest

from tests.batching.fakes import nothing_left
from tests.routing.fakes import Server, call, lost, router, step, unreachable, until
from tritonasync.core.errors import ConfigurationError, ServerUnreachableError
from tritonasync.core.resilience import RetryPolicy

pytestmark = pytest.mark.anyio

QUICK = {"backoff_s": 0.001, "max_backoff_s": 0.002}


def hedging(*servers, hedge_after_s=0.02, **options):
    return router(*servers, retry=RetryPolicy(hedge_after_s=hedge_after_s, **QUICK, **options))


async def to_slow(route, slow, **options):
    """Send calls until one waits on the slow endpoint."""
    while True:
        task = asyncio.ensure_future(route.infer(call(**options)))
        for _ in range(5):
            await asyncio.sleep(0)
        if slow.waiting:
            return task
        await task


async def test_the_second_answers_where_the_first_is_slow_and_the_first_is_abandoned():
    slow, quick = Server("slow", hold=True), Server("quick")
    route = hedging(slow, quick)
    async with nothing_left():
        reply = await (await to_slow(route, slow))
        assert reply.request_id == "quick:1"
        assert slow.abandoned == 1
        statistics = route.statistics()
        assert (statistics.hedges, statistics.hedge_wins, statistics.retries) == (1, 1, 0)
        assert [health.rows_in_flight for health in statistics.endpoints] == [0, 0]


async def test_a_first_answer_in_time_sends_no_second():
    servers = [Server("a"), Server("b")]
    route = hedging(*servers, hedge_after_s=5)
    await asyncio.gather(*[route.infer(call()) for _ in range(20)])
    assert sum(len(server.calls) for server in servers) == 20
    assert route.statistics().hedges == 0


async def test_the_first_may_still_win():
    slow, slower = Server("slow", hold=True), Server("slower", hold=True)
    route = hedging(slow, slower)
    async with nothing_left():
        task = asyncio.ensure_future(route.infer(call()))
        await until(lambda: bool(slow.waiting and slower.waiting))
        first = min((slow, slower), key=lambda server: server.since)
        first.release()
        assert (await task).request_id == first.target
        assert (route.statistics().hedges, route.statistics().hedge_wins) == (1, 0)


async def test_a_first_that_fails_leaves_the_second_to_answer():
    slow, slower = Server("slow", hold=True), Server("slower", hold=True)
    route = hedging(slow, slower)
    async with nothing_left():
        task = asyncio.ensure_future(route.infer(call()))
        await until(lambda: bool(slow.waiting and slower.waiting))
        first, second = sorted((slow, slower), key=lambda server: server.since)
        first.error = lost
        first.release()
        await asyncio.sleep(0.005)
        assert not task.done()
        second.release()
        assert (await task).request_id == second.target


async def test_if_both_fail_the_call_is_retried_within_its_attempts():
    slow, slower = Server("slow", hold=True), Server("slower", hold=True)
    route = hedging(slow, slower, attempts=4)
    async with nothing_left():
        task = asyncio.ensure_future(route.infer(call()))
        await until(lambda: bool(slow.waiting and slower.waiting))
        for server in (slow, slower):
            server.error = unreachable
            server.release()
        with pytest.raises(ServerUnreachableError) as caught:
            await task
        assert len(caught.value.attempts) == 4
        assert [attempt.hedge for attempt in caught.value.attempts].count(True) == 1
        assert route.statistics().retries == 2


async def test_a_failure_before_the_hedge_is_retried_as_usual():
    bad, good = Server("bad", error=unreachable), Server("good")
    route = hedging(bad, good, hedge_after_s=5)
    for _ in range(10):
        assert (await route.infer(call())).request_id == "good:1"
    assert route.statistics().hedges == 0


async def test_what_may_not_run_twice_is_not_hedged():
    slow, quick = Server("slow", hold=True), Server("quick")
    route = hedging(slow, quick, hedge_after_s=0)
    async with nothing_left():
        task = await to_slow(route, slow, idempotent=False)
        await asyncio.sleep(0.01)
        assert not task.done()
        slow.release()
        assert (await task).request_id == "slow:1"
        assert route.statistics().hedges == 0


async def test_a_step_of_a_sequence_is_not_hedged():
    slow, other = Server("slow", hold=True), Server("other", hold=True)
    route = hedging(slow, other, hedge_after_s=0)
    task = asyncio.ensure_future(route.infer(step(1, start=True)))
    await until(lambda: bool(slow.waiting or other.waiting))
    await asyncio.sleep(0.01)
    assert len(slow.waiting) + len(other.waiting) == 1
    slow.release()
    other.release()
    await task


async def test_hedges_stay_within_the_budget():
    slow, quick = Server("slow", hold=True), Server("quick")
    route = hedging(slow, quick, hedge_after_s=0, budget=0, min_retries_per_s=0.2)
    async with nothing_left():
        # Two in ten seconds, of which hedges may use one.
        assert (await (await to_slow(route, slow))).request_id == "quick:1"
        task = await to_slow(route, slow)
        await asyncio.sleep(0.01)
        assert not task.done()
        assert route.statistics().over_budget >= 1
        slow.release()
        await task


async def test_hedges_leave_part_of_the_budget_for_calls_that_fail():
    slow, quick = Server("slow", hold=True), Server("quick")
    route = hedging(slow, quick, hedge_after_s=0, budget=0, min_retries_per_s=0.2)
    async with nothing_left():
        assert (await (await to_slow(route, slow))).request_id == "quick:1"  # the hedges' part
        slow.hold, slow.error = False, lost
        slow.release()
        while not route.statistics().retries:
            assert (await route.infer(call())).request_id == "quick:1"


async def test_a_lone_endpoint_is_not_hedged():
    alone = Server("a", hold=True)
    route = hedging(alone, hedge_after_s=0)
    async with nothing_left():
        task = asyncio.ensure_future(route.infer(call()))
        await until(lambda: bool(alone.waiting))
        await asyncio.sleep(0.01)
        assert len(alone.calls) == 1
        alone.release()
        await task


@pytest.mark.parametrize("both", [False, True])
async def test_a_caller_that_leaves_ends_all_attempts(both):
    slow, slower = Server("slow", hold=True), Server("slower", hold=True)
    route = hedging(slow, slower, hedge_after_s=0.001 if both else 30)
    async with nothing_left():
        task = asyncio.ensure_future(route.infer(call()))
        await until(lambda: len(slow.waiting) + len(slower.waiting) == 1 + both)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slow.abandoned + slower.abandoned == 1 + both
        assert [member.load for member in route.fleet.members] == [0, 0]


async def test_the_delay_is_learned_from_traffic():
    slow, quick = Server("slow"), Server("quick")
    policy = RetryPolicy(hedge_percentile=0.9, **QUICK)
    route = router(slow, quick, retry=policy)
    async with nothing_left():
        slow.hold = True
        first = await to_slow(route, slow)
        await asyncio.sleep(0.02)
        assert not first.done()  # nothing is known yet, so nothing is hedged
        slow.release()
        await first
        for _ in range(150):
            await route.infer(call())
        slow.hold = True
        assert (await (await to_slow(route, slow))).request_id == "quick:1"


def test_a_hedge_is_an_attempt():
    with pytest.raises(ConfigurationError, match="a hedge is an attempt"):
        RetryPolicy(attempts=1, hedge_after_s=1)
