"""Attempts: which endpoint, how often, and what the caller is told in the end."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections import Counter

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
    ConfigurationError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidInputError,
    InvalidRequestError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    QueueFullError,
    ServerNotReadyError,
    ServerUnreachableError,
)
from tritonasync.core.resilience import RetryPolicy

pytestmark = pytest.mark.anyio


async def many(route, count=60, **options):
    return await asyncio.gather(*[route.infer(call(**options)) for _ in range(count)])


async def test_calls_are_spread_over_all_endpoints():
    servers = [Server(name) for name in "abc"]
    route = router(*servers)
    await many(route, 300)
    assert all(60 < len(server.calls) < 140 for server in servers)
    assert [member.load for member in route.fleet.members] == [0, 0, 0]


async def test_the_endpoint_with_fewer_rows_in_flight_gets_the_next():
    slow, quick = Server("slow", hold=True), Server("quick")
    route = router(slow, quick)
    async with nothing_left():
        tasks = [asyncio.ensure_future(route.infer(call(100))) for _ in range(2)]
        await until(lambda: len(slow.waiting) == 1)
        await asyncio.sleep(0.01)
        await many(route, 50)
        assert len(slow.calls) == 1
        slow.release()
        await asyncio.gather(*tasks)


async def test_weights_are_shares():
    heavy, light = Server("heavy"), Server("light")
    route = router(heavy, light, weights=(3.0, 1.0))
    for _ in range(400):
        await route.infer(call())
    # One at a time there is no load to compare, so the draw is what is seen.
    assert 2 < len(heavy.calls) / len(light.calls) < 20


async def test_a_near_endpoint_comes_first_as_long_as_it_is_well():
    near, far = Server("127.0.0.1"), Server("far")
    route = router(near, far, prefer_near=True)
    await many(route)
    assert not far.calls
    near.error = unreachable
    await many(route)
    assert len(far.calls) == 60


@pytest.mark.parametrize("failure", [unreachable, lost, answered(ServerNotReadyError)])
async def test_what_fails_here_is_answered_there(failure):
    bad, good = Server("bad", error=failure), Server("good")
    route = router(bad, good)
    replies = await many(route)
    assert {reply.request_id for reply in replies} == {"good:1"}
    assert len(good.calls) == 60
    assert route.statistics().retries == len(bad.calls) > 0


async def test_the_last_error_has_the_history_of_attempts():
    route = router(Server("a", error=unreachable), Server("b", error=unreachable))
    with pytest.raises(ServerUnreachableError) as caught:
        await route.infer(call())
    attempts = caught.value.attempts
    assert len(attempts) == 4
    assert {attempt.endpoint for attempt in attempts[:2]} == {"a:1", "b:1"}
    assert {attempt.error for attempt in attempts} == {"ServerUnreachableError"}
    assert [attempt.began_s for attempt in attempts] == sorted(a.began_s for a in attempts)
    assert all(attempt.took_s >= 0 and not attempt.hedge for attempt in attempts)
    assert "4 attempts: " in str(caught.value)


async def test_an_error_may_have_executed_if_any_attempt_may_have():
    alone = Server("a", error=in_turn(lost, unreachable, unreachable, unreachable))
    with pytest.raises(ServerUnreachableError) as caught:
        await router(alone).infer(call())
    assert caught.value.may_have_executed
    assert not ServerUnreachableError("another").may_have_executed


async def test_a_lone_endpoint_is_tried_again():
    alone = Server("a", error=in_turn(unreachable, lost, answered(ModelNotReadyError), None))
    assert (await router(alone).infer(call())).request_id == "a:1"
    assert len(alone.calls) == 4


@pytest.mark.parametrize(
    "failure",
    [
        answered(InvalidRequestError),
        answered(ModelFailedError),
        lambda: InvalidInputError("yours"),
        lambda: Deadline.after(0).error("server"),
    ],
)
async def test_what_another_attempt_cannot_mend_is_not_tried_again(failure):
    servers = [Server(name, error=failure) for name in "ab"]
    with pytest.raises(type(failure())) as caught:
        await router(*servers).infer(call())
    assert sum(len(server.calls) for server in servers) == 1
    assert caught.value.attempts == ()


async def test_what_may_not_run_twice_is_sent_again_only_if_it_did_not_run():
    servers = [Server(name, error=lost) for name in "ab"]
    with pytest.raises(ConnectionLostError):
        await router(*servers).infer(call(idempotent=False))
    assert sum(len(server.calls) for server in servers) == 1
    servers = [Server("a", error=unreachable), Server("b", error=unreachable)]
    with pytest.raises(ServerUnreachableError):
        await router(*servers).infer(call(idempotent=False))
    assert sum(len(server.calls) for server in servers) == 4


@pytest.mark.parametrize("failure", [not_found, answered(QueueFullError)])
async def test_a_full_queue_and_a_missing_model_are_tried_elsewhere_only(failure):
    alone = Server("a", error=failure)
    with pytest.raises(type(failure())):
        await router(alone).infer(call())
    assert len(alone.calls) == 1
    servers = [Server("a", error=failure), Server("b", error=failure)]
    with pytest.raises(type(failure())):
        await router(*servers).infer(call())
    assert [len(server.calls) for server in servers] == [1, 1]
    good = Server("good")
    assert (await many(router(servers[0], good)))[-1].request_id == "good:1"


async def test_a_model_that_is_missing_here_is_called_there_and_others_are_called_here():
    bad, good = Server("bad"), Server("good")
    original = bad.infer

    async def infer(sent):
        bad.error = not_found if sent.model == "net" else None
        return await original(sent)

    bad.infer = infer
    route = router(bad, good)
    for _ in range(40):
        assert (await route.infer(call())).request_id == "good:1"
    assert len([sent for sent in bad.calls if sent.model == "net"]) == 1
    for _ in range(40):
        await route.infer(call(model="other"))
    assert len(bad.calls) > 5
    (health, _) = route.statistics().endpoints
    assert health.state == "healthy"
    assert health.ejected_models == (("net", ""),)


async def test_after_failures_in_a_row_an_endpoint_is_left_out():
    bad, good = Server("bad", error=unreachable), Server("good")
    route = router(bad, good)
    for _ in range(100):
        await route.infer(call())
    assert len(bad.calls) == 3
    assert [health.state for health in route.statistics().endpoints] == ["ejected", "healthy"]


async def test_if_nobody_is_well_everybody_is_tried():
    servers = [Server(name, error=unreachable) for name in "ab"]
    route = router(*servers, retry=RetryPolicy(attempts=1))
    for _ in range(20):
        with pytest.raises(ServerUnreachableError):
            await route.infer(call())
    before = [len(server.calls) for server in servers]
    for server in servers:
        server.error = None
    await many(route)
    assert all(len(server.calls) > count for server, count in zip(servers, before, strict=True))


async def test_no_retry_begins_after_the_deadline():
    alone = Server("a", error=unreachable)
    route = router(alone, retry=RetryPolicy(attempts=50, backoff_s=5, max_backoff_s=5))
    began = time.monotonic()
    with pytest.raises(ServerUnreachableError) as caught:
        await route.infer(call(deadline=Deadline.after(0.05)))
    assert time.monotonic() - began < 2
    assert len(alone.calls) <= 3
    assert len(caught.value.attempts) in (0, 2, 3)


async def test_a_deadline_that_passes_in_a_later_attempt_surfaces_with_the_history():
    late = Deadline.after(0).error("server")
    alone = Server("a", error=in_turn(unreachable, late.copy))
    with pytest.raises(DeadlineExceededError) as caught:
        await router(alone).infer(call(deadline=Deadline.after(60)))
    assert [attempt.error for attempt in caught.value.attempts] == [
        "ServerUnreachableError",
        "DeadlineExceededError",
    ]


async def test_retries_stay_within_the_budget():
    servers = [Server(name, error=answered(ServerNotReadyError)) for name in "abc"]
    policy = RetryPolicy(budget=0.1, min_retries_per_s=1, backoff_s=0, max_backoff_s=0)
    route = router(*servers, retry=policy)
    for _ in range(500):
        with pytest.raises(ServerNotReadyError):
            await route.infer(call())
    sent = sum(len(server.calls) for server in servers)
    assert 500 + 10 <= sent <= 500 * 1.1 + 10
    assert route.statistics().over_budget > 300
    assert route.statistics().retries == sent - 500


async def test_without_a_budget_nothing_is_retried():
    alone = Server("a", error=unreachable)
    with pytest.raises(ServerUnreachableError):
        await router(alone, retry=RetryPolicy(budget=0, min_retries_per_s=0)).infer(call())
    assert len(alone.calls) == 1


async def test_a_caller_that_leaves_unloads_its_endpoint():
    slow = Server("a", hold=True)
    route = router(slow)
    async with nothing_left():
        task = asyncio.ensure_future(route.infer(call(7)))
        await until(lambda: bool(slow.waiting))
        (member,) = route.fleet.members
        assert member.load == 7
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert member.load == 0
        assert member.health.state.value == "healthy"


async def test_a_caller_that_leaves_during_a_pause_leaves_nothing():
    alone = Server("a", error=unreachable)
    route = router(alone, retry=RetryPolicy(backoff_s=30, max_backoff_s=30))
    async with nothing_left():
        task = asyncio.ensure_future(route.infer(call()))
        await until(lambda: bool(alone.calls))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert route.fleet.members[0].load == 0


async def test_a_signature_comes_from_an_endpoint_that_has_it():
    route = router(Server("a", error=not_found), Server("b"), Server("c", error=unreachable))
    for _ in range(20):
        spec = await route.describe("net", "", Deadline.after(5))
        assert spec.name == "net"
    with pytest.raises(ModelNotFoundError):
        await router(Server("a", error=not_found)).describe("net", "", Deadline.after(5))


def test_the_healthy_path_never_imports_tenacity():
    program = """
import asyncio, sys
from tests.routing.fakes import Server, call, router

async def main():
    route = router(Server("a"), Server("b"))
    for _ in range(100):
        await route.infer(call())

asyncio.run(main())
assert "tenacity" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- sequences ------------------------------------------------------------------------------------


async def test_all_steps_of_a_sequence_go_to_one_endpoint():
    servers = [Server(name) for name in "abc"]
    route = router(*servers)
    homes = Counter()
    for number in range(1, 31):
        replies = [await route.infer(step(number, start=True))]
        replies += [await route.infer(step(number)) for _ in range(4)]
        replies += [await route.infer(step(number, end=True))]
        (home,) = {reply.request_id for reply in replies}
        homes[home] += 1
    assert len(homes) == 3
    assert route.statistics().sequences == 0


async def test_a_step_is_never_sent_twice_nor_elsewhere():
    servers = [Server(name) for name in "ab"]
    route = router(*servers)
    home = (await route.infer(step("x", start=True))).request_id
    (server,) = [server for server in servers if server.target == home]
    for failure in (unreachable, lost):
        server.error = failure
        with pytest.raises(type(failure())):
            await route.infer(step("x"))
    assert len(server.calls) == 3
    assert not any(server.calls for server in servers if server.target != home)
    assert not any(sent.idempotent for sent in server.calls)


async def test_the_first_step_may_go_elsewhere_if_it_did_not_run():
    bad, good = Server("bad", error=unreachable), Server("good")
    route = router(bad, good)
    for number in range(1, 20):
        await route.infer(step(number, start=True))
        assert (await route.infer(step(number))).request_id == "good:1"
    bad.error = lost
    with pytest.raises(ConnectionLostError):
        await router(bad).infer(step(1, start=True))


async def test_a_step_on_the_heels_of_the_first_goes_where_that_went():
    servers = [Server(name, hold=True) for name in "abcd"]
    route = router(*servers)
    tasks = [
        asyncio.ensure_future(route.infer(step(7, start=index == 0, end=index == 5)))
        for index in range(6)
    ]
    await until(lambda: sum(len(server.waiting) for server in servers) == 6)
    assert sorted(len(server.waiting) for server in servers) == [0, 0, 0, 6]
    for server in servers:
        server.release()
    await asyncio.gather(*tasks)


# --- endpoints that come and go -------------------------------------------------------------------


async def test_an_endpoint_that_is_added_gets_calls():
    first, second = Server("a"), Server("b")
    route = router(first)
    await many(route, 10)
    route.fleet.add(second, weight=1)
    await many(route, 40)
    assert len(second.calls) > 5


async def test_an_endpoint_that_is_removed_gets_nothing_new_and_finishes_what_it_has():
    first, second = Server("a", hold=True), Server("b")
    route = router(first)
    async with nothing_left():
        out = asyncio.ensure_future(route.infer(call()))
        await until(lambda: bool(first.waiting))
        route.fleet.add(second, weight=1)
        removing = asyncio.ensure_future(remove(route, "a:1", Deadline.after(30)))
        await asyncio.sleep(0)
        await many(route)
        assert len(first.calls) == 1
        assert not removing.done()
        assert [health.draining for health in route.statistics().endpoints] == [True, False]
        first.release()
        assert await removing is first
        assert (await out).request_id == "a:1"
        assert [member.target for member in route.fleet.members] == ["b:1"]


async def test_removing_waits_for_sequences_whose_state_is_there():
    first, second = Server("a"), Server("b")
    route = router(first)
    await route.infer(step(5, start=True))
    route.fleet.add(second, weight=1)
    removing = asyncio.ensure_future(remove(route, "a:1", Deadline.after(30)))
    await asyncio.sleep(0)
    assert (await route.infer(step(5))).request_id == "a:1"
    assert not removing.done()
    assert (await route.infer(step(5, end=True))).request_id == "a:1"
    assert await removing is first


async def test_removing_gives_up_waiting_at_its_deadline():
    first, second = Server("a", hold=True), Server("b")
    route = router(first, second)
    second.error = unreachable
    out = asyncio.ensure_future(route.infer(call()))
    await until(lambda: bool(first.waiting))
    assert await remove(route, "a:1", Deadline.after(0.02)) is first
    assert [member.target for member in route.fleet.members] == ["b:1"]
    first.release()
    await out


async def test_the_last_endpoint_cannot_be_removed():
    route = router(Server("a"))
    with pytest.raises(ConfigurationError, match="last endpoint"):
        await remove(route, "a:1", Deadline.after(1))
    with pytest.raises(ConfigurationError, match="is no endpoint of this pool, only: a:1"):
        await remove(route, "b:1", Deadline.after(1))
    with pytest.raises(ConfigurationError, match="already"):
        route.fleet.add(Server("a"), weight=1)
    await route.infer(call())


async def test_two_endpoints_removed_at_once_leave_the_third():
    servers = [Server(name, hold=True) for name in "abc"]
    route = router(*servers)
    tasks = [asyncio.ensure_future(route.infer(call())) for _ in range(9)]
    await until(lambda: all(server.waiting for server in servers))
    removing = [
        asyncio.ensure_future(remove(route, target, Deadline.after(30)))
        for target in ("a:1", "b:1")
    ]
    await asyncio.sleep(0)
    with pytest.raises(ConfigurationError, match="being removed"):
        await remove(route, "a:1", Deadline.after(1))
    with pytest.raises(ConfigurationError, match="last"):
        await remove(route, "c:1", Deadline.after(1))
    for server in servers:
        server.release()
    await asyncio.gather(*removing, *tasks)
    assert [member.target for member in route.fleet.members] == ["c:1"]


# --- endpoints that are slow ----------------------------------------------------------------------


async def test_an_endpoint_that_lets_every_deadline_pass_gets_few_calls():
    """Its health answers are good, and it fails nobody: it just does not answer."""
    hung, good = Server("hung", hold=True), Server("good")
    route = router(hung, good)
    async with nothing_left():
        for _ in range(200):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await route.infer(call())
        assert len(hung.calls) < 20  # half of them, if nothing were learned


async def test_an_endpoint_that_was_slow_is_tried_again_after_some_seconds():
    slow, quick = Server("slow"), Server("quick")
    route = router(slow, quick)
    (member, other) = route.fleet.members
    member.latency_s, other.latency_s = 0.5, 0.001
    now = time.monotonic()
    route.fleet.refresh(now)
    paces = []
    for _ in range(60):
        now += 0.25
        other.heard = True
        route.fleet.refresh(now)
        paces.append(member.pace)
    assert paces == sorted(paces)
    assert paces[0] < 0.05
    assert paces[-1] == 1.0
