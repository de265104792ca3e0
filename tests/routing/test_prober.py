"""Silence is noticed, the dead come back, and slow health answers kill nobody."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.batching.fakes import nothing_left
from tests.routing.fakes import Server, call, not_found, remove, router, unreachable, until
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConnectionLostError, ServerUnreachableError
from tritonasync.core.resilience import HealthPolicy, RetryPolicy

pytestmark = pytest.mark.anyio

BRISK = {
    "ejection_s": 0.02,
    "max_ejection_s": 0.04,
    "slow_start_s": 0,
    "probe_timeout_s": 0.05,
    "silence_s": 0.02,
}


def watched(*servers, probe_interval_s=30.0, retry=None, **options):
    return router(
        *servers,
        retry=retry,
        health=HealthPolicy(probe_interval_s=probe_interval_s, **{**BRISK, **options}),
    )


def states(route):
    return [health.state for health in route.statistics().endpoints]


async def never():
    await asyncio.get_running_loop().create_future()


def eject(route, server):
    """Leave an endpoint out, as failures in a row would."""
    (member,) = [member for member in route.fleet.members if member.backend is server]
    for _ in range(3):
        member.failed(("net", ""), unreachable(), time.monotonic(), 0)


async def test_a_silent_endpoint_is_left_out_and_its_callers_are_answered_elsewhere():
    silent, good = Server("silent", hold=True, ready=never), Server("good")
    route = watched(silent, good)
    async with nothing_left():
        replies = await asyncio.gather(*[route.infer(call()) for _ in range(20)])
        assert {reply.request_id for reply in replies} == {"good:1"}
        assert silent.let_go_for
        assert "answered nothing" in silent.let_go_for[0]
        assert states(route)[1] == "healthy"
        await route.stop()


async def test_what_may_not_run_twice_goes_on_waiting_for_a_silent_endpoint():
    silent, good = Server("silent", hold=True, ready=never), Server("good")
    route = watched(silent, good, ejection_s=30, max_ejection_s=30)
    async with nothing_left():
        tasks = [asyncio.ensure_future(route.infer(call(idempotent=False))) for _ in range(20)]
        await until(lambda: bool(silent.let_go_for))
        await asyncio.sleep(0.02)
        assert 0 < len(silent.waiting) == 20 - sum(task.done() for task in tasks)
        silent.release()
        replies = await asyncio.gather(*tasks)
        assert {reply.request_id for reply in replies} == {"silent:1", "good:1"}
        assert len(silent.calls) + len(good.calls) == 20  # none was sent twice
        await route.stop()


async def test_a_probe_that_was_out_before_counts_only_with_silence_of_its_own_length():
    """Calls take longer than ``silence_s``, health answers even longer, and both come."""
    servers = [Server(name, ready=never) for name in "ab"]
    route = watched(*servers, probe_interval_s=0.01, silence_s=0.02, probe_timeout_s=0.3)
    async with nothing_left():
        for _ in range(10):
            for server in servers:
                server.hold = True
            tasks = [asyncio.ensure_future(route.infer(call())) for _ in range(8)]
            await asyncio.sleep(0.06)
            for server in servers:
                server.release()
            await asyncio.gather(*tasks)
        assert [server.let_go_for for server in servers] == [[], []]
        await route.stop()


async def test_an_endpoint_whose_model_is_slow_answers_its_probe_and_stays():
    slow, good = Server("slow", hold=True), Server("good", hold=True)
    route = watched(slow, good)
    async with nothing_left():
        tasks = [asyncio.ensure_future(route.infer(call())) for _ in range(4)]
        await until(lambda: slow.asked >= 3 and good.asked >= 3)
        assert states(route) == ["healthy", "healthy"]
        assert not slow.let_go_for
        slow.release()
        good.release()
        await asyncio.gather(*tasks)
        await route.stop()


async def test_a_slow_health_answer_alone_is_not_death():
    busy, other = Server("busy", ready=never), Server("other")
    route = watched(busy, other, probe_interval_s=0.01)
    async with nothing_left():
        limit = time.monotonic() + 0.4
        while time.monotonic() < limit:
            await asyncio.gather(*[route.infer(call()) for _ in range(4)])
            await asyncio.sleep(0.002)
        assert busy.asked >= 1
        assert states(route) == ["healthy", "healthy"]
        await route.stop()


async def test_if_nobody_else_is_well_callers_are_left_to_wait():
    silent, dead = Server("silent", hold=True, ready=never), Server("dead", error=unreachable)
    route = watched(silent, dead, ejection_s=30, max_ejection_s=30)
    eject(route, dead)
    async with nothing_left():
        task = asyncio.ensure_future(route.infer(call()))
        await until(lambda: silent.asked == 1)
        await asyncio.sleep(0.2)
        assert not task.done()
        assert not silent.let_go_for
        silent.release()
        await task
        await route.stop()


async def test_a_lone_endpoint_is_asked_nothing():
    alone = Server("a", hold=True, ready=never)
    route = watched(alone, probe_interval_s=0.01)
    async with nothing_left():
        task = asyncio.ensure_future(route.infer(call()))
        await asyncio.sleep(0.15)
        assert alone.asked == 0
        alone.release()
        await task
        await route.stop()


async def test_nothing_is_asked_before_the_first_call():
    servers = [Server("a"), Server("b")]
    route = watched(*servers, probe_interval_s=0.01)
    await asyncio.sleep(0.05)
    assert [server.asked for server in servers] == [0, 0]
    await route.infer(call())
    await until(lambda: all(server.asked for server in servers))
    await route.stop()


async def test_every_endpoint_is_asked_at_its_interval_even_when_no_call_is_out():
    servers = [Server("a"), Server("b")]
    route = watched(*servers, probe_interval_s=0.02)
    await route.infer(call())
    await until(lambda: all(server.asked >= 5 for server in servers))
    await route.stop()


async def test_without_probes_nothing_is_asked_but_silence_is_noticed():
    silent, good = Server("silent", hold=True, ready=never), Server("good")
    route = watched(silent, good, probe_interval_s=None)
    async with nothing_left():
        replies = await asyncio.gather(*[route.infer(call()) for _ in range(20)])
        assert {reply.request_id for reply in replies} == {"good:1"}
        assert good.asked == 0
        await route.stop()


async def test_an_endpoint_comes_back_when_it_says_that_it_is_ready():
    dead, good = Server("dead", error=unreachable, ready=unready), Server("good")
    route = watched(dead, good, probe_interval_s=0.02)
    async with nothing_left():
        while "ejected" not in states(route):
            await route.infer(call())
        await until(lambda: dead.asked >= 2)
        sent = len(dead.calls)
        for _ in range(10):
            await route.infer(call())
        assert len(dead.calls) == sent  # no caller was used to find out
        dead.error, dead.is_ready = None, True
        await until(lambda: states(route) == ["healthy", "healthy"])
        for _ in range(50):
            await route.infer(call())
        assert len(dead.calls) > sent
        await route.stop()


def unready():
    raise ServerUnreachableError("nobody there")


async def test_without_probes_one_call_finds_out_whether_an_endpoint_is_back():
    dead, good = Server("dead", error=unreachable), Server("good")
    route = watched(dead, good, probe_interval_s=None, ejection_s=0.05, max_ejection_s=0.05)
    while "ejected" not in states(route):
        await route.infer(call())
    sent = len(dead.calls)
    await until(lambda: states(route)[0] == "half_open")
    await asyncio.gather(*[route.infer(call()) for _ in range(20)])
    assert len(dead.calls) == sent + 1
    dead.error = None
    await until(lambda: states(route)[0] == "half_open")
    await route.infer(call())
    assert states(route) == ["healthy", "healthy"]
    await route.stop()


async def test_an_endpoint_that_came_back_gets_a_growing_share():
    dead, good = Server("dead"), Server("good")
    route = watched(dead, good, probe_interval_s=0.02, slow_start_s=0.3)
    eject(route, dead)
    await route.infer(call())
    await until(lambda: states(route)[0] == "recovering")
    shares = []
    while states(route)[0] == "recovering":
        shares.append(route.statistics().endpoints[0].share)
        await asyncio.sleep(0.01)
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    assert route.statistics().endpoints[0].share == 1
    await route.stop()


async def test_a_model_comes_back_when_its_endpoint_says_that_it_is_ready():
    first, second = Server("a", ready=lambda: first.error is None), Server("b")
    first.error = not_found
    route = watched(first, second, probe_interval_s=0.02)
    while not route.statistics().endpoints[0].ejected_models:
        await route.infer(call())
    await until(lambda: len(first.asked_models) >= 2)
    assert set(first.asked_models) == {"net"}
    first.error = None
    await until(lambda: not route.statistics().endpoints[0].ejected_models)
    sent = len(first.calls)
    for _ in range(50):
        await route.infer(call())
    assert len(first.calls) > sent
    await route.stop()


async def test_stopping_ends_the_questions_that_are_out():
    servers = [Server("a", ready=never), Server("b", ready=never)]
    route = watched(*servers, probe_interval_s=0.01, probe_timeout_s=30)
    async with nothing_left():
        await route.infer(call())
        await until(lambda: all(server.asked for server in servers))
        await route.stop()
        await route.aclose()


async def test_an_endpoint_that_was_removed_is_asked_no_more():
    servers = [Server("a"), Server("b"), Server("c")]
    route = watched(*servers, probe_interval_s=0.01)
    await route.infer(call())
    await until(lambda: all(server.asked for server in servers))
    await remove(route, "a:1", Deadline.after(5))
    asked = servers[0].asked
    before = servers[1].asked
    await until(lambda: servers[1].asked > before + 3)
    assert servers[0].asked <= asked + 1
    await route.stop()


async def test_a_silent_endpoint_costs_a_retry_and_no_more_than_the_policy_allows():
    silent, good = Server("silent", hold=True, ready=never), Server("good")
    policy = RetryPolicy(attempts=1)
    route = watched(silent, good, retry=policy)
    async with nothing_left():
        results = await asyncio.gather(
            *[route.infer(call()) for _ in range(20)], return_exceptions=True
        )
        assert any(isinstance(result, ConnectionLostError) for result in results)
        assert len(good.calls) + len(silent.calls) == 20
        await route.stop()


async def test_one_failing_look_does_not_end_the_watch(monkeypatch):
    silent, good = Server("silent", hold=True, ready=never), Server("good")
    route = watched(silent, good, ejection_s=30, max_ejection_s=30)
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    def broken(reason):
        silent.let_go_for.append(reason)
        raise RuntimeError("no fresh channel")

    monkeypatch.setattr(silent, "let_go", broken)
    tasks = [asyncio.ensure_future(route.infer(call())) for _ in range(20)]
    await until(lambda: bool(silent.let_go_for))
    asked = good.asked
    good.hold = True
    tasks += [asyncio.ensure_future(route.infer(call())) for _ in range(4)]
    await until(lambda: good.asked > asked)  # it goes on watching
    silent.release()
    good.release()
    await asyncio.gather(*tasks)
    await route.stop()
    assert len(complaints) == 1


async def test_a_look_after_the_event_loop_stood_still_condemns_nobody():
    """What was answered meanwhile is not seen yet."""
    servers = [Server("a", ready=never), Server("b", ready=never)]
    route = watched(*servers, probe_interval_s=0.01)
    async with nothing_left():
        for _ in range(5):
            for server in servers:
                server.hold = True
            tasks = [asyncio.ensure_future(route.infer(call())) for _ in range(8)]
            await asyncio.sleep(0.015)
            time.sleep(0.2)  # noqa: ASYNC251 - the user's own code
            for server in servers:
                server.release()
            await asyncio.gather(*tasks)
        assert [server.let_go_for for server in servers] == [[], []]
        await route.stop()
