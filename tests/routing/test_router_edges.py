"""What is easily got wrong: cycles, closing in a pause, trials, failed sequences, late retries."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import weakref
from dataclasses import replace

import pytest

from tests.batching.fakes import nothing_left
from tests.routing.fakes import (
    Server,
    answered,
    call,
    in_turn,
    lost,
    not_found,
    remove,
    router,
    step,
    unreachable,
    until,
)
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    ConnectionLostError,
    InvalidRequestError,
    ModelNotReadyError,
    PoolClosedError,
    QueueFullError,
    ServerUnreachableError,
    TritonError,
)
from tritonasync.core.resilience import HealthPolicy, RetryPolicy
from tritonasync.routing.health import HealthState

pytestmark = pytest.mark.anyio

QUICK = {"backoff_s": 0.001, "max_backoff_s": 0.002}


@pytest.mark.parametrize(
    ("failure", "policy"),
    [
        (answered(InvalidRequestError), RetryPolicy(**QUICK)),
        (unreachable, RetryPolicy(**QUICK)),
        (unreachable, RetryPolicy(**QUICK, budget=0, min_retries_per_s=0)),
        (unreachable, RetryPolicy(**QUICK, hedge_after_s=0)),
        (answered(InvalidRequestError), RetryPolicy(**QUICK, hedge_after_s=5)),
    ],
    ids=["not retried", "retried", "over budget", "hedged", "hedged, not retried"],
)
async def test_a_failed_call_is_gone_with_its_error(failure, policy):
    """What it sent may be 100 MB: it does not wait for the garbage collector."""
    route = router(Server("a", error=failure), Server("b", error=failure), retry=policy)
    for server in route.fleet.members:
        server.backend.calls = _Forgetful()
    sent = call()
    gone = weakref.ref(sent.inputs[0].parts[0])
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(TritonError):
            await route.infer(sent)
        del sent
        for _ in range(5):
            await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


class _Forgetful(list):
    def append(self, _):
        pass


async def test_closing_ends_a_pause_at_once_and_nothing_is_sent_again():
    alone = Server("a", error=unreachable)
    route = router(alone, retry=RetryPolicy(backoff_s=60, max_backoff_s=60))
    async with nothing_left():
        tasks = [asyncio.ensure_future(route.infer(call())) for _ in range(5)]
        await until(lambda: len(alone.calls) == 5)
        await asyncio.sleep(0.01)
        began = time.monotonic()
        await route.stop()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - began < 5
        assert {type(result) for result in results} <= {PoolClosedError, ServerUnreachableError}
        assert any(isinstance(result, PoolClosedError) for result in results)
        assert len(alone.calls) == 5
        with pytest.raises(ServerUnreachableError):  # and what fails later is not retried
            await route.infer(call())
        assert len(alone.calls) == 6


async def test_no_attempt_begins_when_nobody_waits_any_more():
    """A batch keeps its place for some seconds after its last caller's deadline."""
    alone = Server("a", error=unreachable)
    route = router(alone, retry=RetryPolicy(attempts=1000, backoff_s=0.01, max_backoff_s=0.01))
    now = time.monotonic()
    batch = replace(call(deadline=Deadline.after(30)), wanted_until=now + 0.1)
    with pytest.raises(ServerUnreachableError):
        await route.infer(batch)
    assert time.monotonic() - now < 5
    with pytest.raises(ServerUnreachableError) as caught:
        await route.infer(replace(batch, wanted_until=time.monotonic() - 1))
    assert len(caught.value.attempts) == 0


async def test_the_message_says_that_the_budget_is_used_up():
    route = router(Server("a", error=unreachable), retry=RetryPolicy(budget=0, min_retries_per_s=0))
    with pytest.raises(ServerUnreachableError, match="the retry budget is used up"):
        await route.infer(call())


# --- trials ---------------------------------------------------------------------------------------


def half_open(route, server):
    """Bring an endpoint to where one call is to find out whether it is back."""
    (member,) = [member for member in route.fleet.members if member.backend is server]
    now = time.monotonic()
    for _ in range(3):
        member.failed(("net", ""), unreachable(), now, 0)
    while member.health.state is not HealthState.HALF_OPEN:
        route.fleet.refresh(time.monotonic() + 1)
    return member


async def test_a_trial_is_one_call_whoever_else_leaves():
    dead, good = Server("dead", hold=True), Server("good", hold=True)
    route = router(
        dead, good, health=HealthPolicy(probe_interval_s=None, ejection_s=0.01, slow_start_s=0)
    )
    async with nothing_left():
        tasks = [asyncio.ensure_future(route.infer(call())) for _ in range(6)]
        await until(lambda: dead.waiting and good.waiting)
        half_open(route, dead)
        before = len(dead.calls)
        trial = asyncio.ensure_future(route.infer(call()))
        await until(lambda: len(dead.calls) == before + 1)
        for task in tasks:  # some of them are out on the endpoint on trial
            task.cancel()
        await asyncio.wait(tasks)
        others = [asyncio.ensure_future(route.infer(call())) for _ in range(6)]
        await until(lambda: len(good.waiting) == 6)
        assert len(dead.calls) == before + 1
        trial.cancel()  # it learned nothing, so that another may find out
        await asyncio.wait([trial])
        others.append(asyncio.ensure_future(route.infer(call())))
        await until(lambda: len(dead.calls) == before + 2)
        dead.release()
        good.release()
        await asyncio.gather(*others)


async def test_a_question_for_a_signature_does_not_heal_a_model():
    bad, good = Server("bad"), Server("good")
    route = router(bad, good, health=HealthPolicy(probe_interval_s=None, ejection_s=0.01))
    member = route.fleet.members[0]
    member.failed(("net", ""), not_found(), time.monotonic(), 0)
    route.fleet.refresh(time.monotonic() + 1)
    for _ in range(20):
        await route.describe("net", "", Deadline.after(5))
    assert member.models["net", ""].state is HealthState.HALF_OPEN


async def test_no_hedge_goes_to_an_endpoint_that_lacks_the_model():
    slow, lacking = Server("slow", hold=True), Server("lacking", error=not_found)
    route = router(slow, lacking, retry=RetryPolicy(hedge_after_s=0, **QUICK))
    route.fleet.members[1].failed(("net", ""), not_found(), time.monotonic(), 0)
    async with nothing_left():
        task = asyncio.ensure_future(route.infer(call()))
        await until(lambda: bool(slow.waiting))
        await asyncio.sleep(0.01)
        assert not lacking.calls
        assert route.statistics().hedges == 0
        slow.release()
        await task


async def test_no_hedge_goes_to_an_endpoint_that_is_left_out():
    slow, dead = Server("slow", hold=True), Server("dead")
    route = router(slow, dead, retry=RetryPolicy(hedge_after_s=0.03, **QUICK))
    async with nothing_left():
        while not slow.waiting:
            task = asyncio.ensure_future(route.infer(call()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        answered_by_dead = len(dead.calls)
        for _ in range(3):  # after the race has begun
            route.fleet.members[1].failed(("net", ""), unreachable(), time.monotonic(), 0)
        await asyncio.sleep(0.1)
        assert len(dead.calls) == answered_by_dead
        assert not task.done()
        slow.release()
        await task


# --- sequences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [answered(InvalidRequestError), unreachable])
async def test_a_sequence_whose_first_step_did_not_run_is_none(failure):
    first, second = Server("a", error=failure), Server("b", error=failure)
    route = router(first, second)
    with pytest.raises(type(failure())):
        await route.infer(step(3, start=True))
    assert route.statistics().sequences == 0
    began = time.monotonic()
    await remove(route, "a:1", Deadline.after(30))
    assert time.monotonic() - began < 5


async def test_a_step_whose_caller_left_leaves_the_sequence_where_it_is():
    servers = [Server(name) for name in "abc"]
    route = router(*servers)
    home = (await route.infer(step(3, start=True))).request_id
    (server,) = [server for server in servers if server.target == home]
    server.hold = True
    task = asyncio.ensure_future(route.infer(step(3)))
    await until(lambda: bool(server.waiting))
    task.cancel()
    await asyncio.wait([task])
    server.release()
    assert (await route.infer(step(3))).request_id == home
    assert route.statistics().sequences == 1


async def test_a_last_step_that_fails_ends_the_sequence_all_the_same():
    alone = Server("a")
    route = router(alone)
    await route.infer(step(3, start=True))
    alone.error = lost
    with pytest.raises(ConnectionLostError):
        await route.infer(step(3))
    assert route.statistics().sequences == 1
    with pytest.raises(ConnectionLostError):
        await route.infer(step(3, end=True))
    assert route.statistics().sequences == 0


async def test_the_steps_of_a_sequence_begun_elsewhere_go_to_one_endpoint():
    route = router(*[Server(name) for name in "abc"])
    for number in range(1, 20):
        replies = [await route.infer(step(number)) for _ in range(5)]
        assert len({reply.request_id for reply in replies}) == 1


@pytest.mark.parametrize("how", ["stop", "expire"])
async def test_removing_does_not_wait_for_sequences_that_nobody_goes_on_with(monkeypatch, how):
    monkeypatch.setattr("tritonasync.routing.router._DRAIN_STEP_S", 0.01)
    route = router(Server("a"), Server("b"))
    homes = [(await route.infer(step(number, start=True))).request_id for number in range(1, 9)]
    removing = asyncio.ensure_future(remove(route, homes[0], Deadline.after(None)))
    await asyncio.sleep(0.05)
    assert not removing.done()
    if how == "stop":
        await route.stop()
    else:
        later = time.monotonic() + 10_000
        monkeypatch.setattr("tritonasync.routing.router.time.monotonic", lambda: later)
    async with asyncio.timeout(10):
        await removing


# --- elsewhere only -------------------------------------------------------------------------------


async def test_a_step_of_an_ensemble_that_is_refused_has_run_what_came_before():
    def full():
        error = answered(QueueFullError)()
        error.may_have_executed = True
        return error

    servers = [Server(name, error=full) for name in "ab"]
    with pytest.raises(QueueFullError):
        await router(*servers).infer(call(idempotent=False))
    assert sum(len(server.calls) for server in servers) == 1
    with pytest.raises(QueueFullError):
        await router(*servers).infer(call())
    assert sum(len(server.calls) for server in servers) == 3


async def test_a_mixed_history_is_told_in_order():
    first = Server("a", error=in_turn(answered(ModelNotReadyError), unreachable, lost, unreachable))
    with contextlib.suppress(ServerUnreachableError):
        await router(first).infer(call())
    assert len(first.calls) == 4
