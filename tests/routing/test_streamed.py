"""Responses by way of an endpoint: another one until the first, and this one alone after it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

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
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    ConnectionLostError,
    InvalidRequestError,
    ModelFailedError,
    QueueFullError,
    SequenceLostError,
    ServerNotReadyError,
    ServerUnreachableError,
    TritonError,
)
from tritonasync.core.resilience import RetryPolicy
from tritonasync.core.values import Call, SequenceStep

pytestmark = pytest.mark.anyio

KEY = ("net", "")


def giving(name, responses=3, **options) -> Server:
    server = Server(name, **options)
    server.responses = responses
    return server


def loads(route) -> list[int]:
    return [member.load for member in route.fleet.members]


def indexes(replies) -> list[int]:
    return [dict(reply.parameters)["index"] for reply in replies]


async def read(route, made=None) -> list[str]:
    """Who gave the responses to a call."""
    return [reply.request_id async for reply in route.stream(made or call())]


def later(error):
    """Fails after the first response."""
    return in_turn(None, error)


def begun(coroutine) -> asyncio.Task:
    return asyncio.ensure_future(coroutine)


# --- to the end ----------------------------------------------------------------------------------


async def test_responses_come_in_order_and_from_one_endpoint():
    servers = [giving(name, 5) for name in "ab"]
    route = router(*servers)
    for _ in range(20):
        replies = [reply async for reply in route.stream(call())]
        assert indexes(replies) == [0, 1, 2, 3, 4]
        assert len({reply.request_id for reply in replies}) == 1
    assert all(server.calls for server in servers)
    assert loads(route) == [0, 0]


async def test_nothing_is_sent_before_the_first_is_asked_for():
    server = giving("a")
    route = router(server)
    responses = route.stream(call())
    assert aiter(responses) is responses
    await asyncio.sleep(0)
    assert not server.streams
    assert loads(route) == [0]


async def test_a_call_without_responses_ends_at_once_and_lets_go_of_the_endpoint():
    server = giving("a", 0)
    route = router(server)
    responses = route.stream(call())
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(responses)
        assert loads(route) == [0]
    assert len(server.calls) == 1
    assert route.fleet.members[0].heard  # it was an answer


async def test_after_the_end_there_is_nothing_more():
    route = router(giving("a", 1))
    responses = route.stream(call())
    assert len([reply async for reply in responses]) == 1
    assert [reply async for reply in responses] == []
    responses.leave()
    assert loads(route) == [0]


# --- another endpoint ----------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [unreachable, lost, answered(ServerNotReadyError), not_found])
async def test_what_fails_before_the_first_response_is_begun_elsewhere(failure):
    bad, good = giving("bad", error=failure), giving("good")
    route = router(bad, good)
    for _ in range(60):
        assert await read(route) == ["good:1"] * 3
    assert route.statistics().retries == len(bad.calls) > 0
    assert all(given.over for given in bad.streams)
    assert loads(route) == [0, 0]


async def test_a_lone_endpoint_is_asked_again_before_the_first_response():
    alone = giving("a", 1, error=in_turn(unreachable, lost, None, None))
    assert await read(router(alone)) == ["a:1"]
    assert len(alone.calls) == 3


async def test_the_last_error_has_the_history_of_attempts():
    route = router(giving("a", error=unreachable), giving("b", error=unreachable))
    responses = route.stream(call())
    with pytest.raises(ServerUnreachableError) as caught:
        await anext(responses)
    assert len(caught.value.attempts) == 4
    assert loads(route) == [0, 0]
    with pytest.raises(StopAsyncIteration):
        await anext(responses)


@pytest.mark.parametrize(
    ("failure", "options"),
    [
        (answered(InvalidRequestError), {}),
        (answered(ModelFailedError), {}),
        (lost, {"idempotent": False}),
        (lambda: Deadline.after(0).error("server"), {}),
    ],
)
async def test_what_another_attempt_cannot_mend_is_raised(failure, options):
    servers = [giving(name, error=failure) for name in "ab"]
    route = router(*servers)
    with pytest.raises(type(failure())):
        await read(route, call(**options))
    assert sum(len(server.calls) for server in servers) == 1
    assert loads(route) == [0, 0]


@pytest.mark.parametrize(
    "failure", [unreachable, lost, answered(QueueFullError), answered(ModelFailedError)]
)
async def test_what_fails_after_the_first_response_is_raised_after_it_and_never_begun_again(
    failure,
):
    servers = [giving(name, error=later(failure)) for name in "ab"]
    route = router(*servers)
    responses = route.stream(call())
    assert indexes([await anext(responses)]) == [0]
    with pytest.raises(type(failure())) as caught:
        await anext(responses)
    assert caught.value.attempts == ()
    assert caught.value.may_have_executed  # whatever its class says: it has answered
    assert sum(len(server.calls) for server in servers) == 1
    assert route.statistics().retries == 0
    with pytest.raises(StopAsyncIteration):
        await anext(responses)


async def test_a_stream_is_not_hedged():
    slow, other = giving("slow", 1, hold=True), giving("other", 1)
    route = router(slow, other, retry=RetryPolicy(hedge_after_s=0))
    other.error = unreachable
    async with nothing_left():
        reading = begun(read(route))
        await until(lambda: bool(slow.waiting))
        other.error = None
        await asyncio.sleep(0.01)
        slow.release()
        assert await reading == ["slow:1"]
        assert route.statistics().hedges == 0
        await route.aclose()


class Forgetful(list):
    def append(self, _):
        pass


@pytest.mark.parametrize(
    "failure",
    [answered(InvalidRequestError), unreachable, later(lost)],
    ids=["not retried", "retried", "in mid-stream"],
)
async def test_a_failed_stream_is_gone_with_its_error(failure):
    """What it sent may be 100 MB: it does not wait for the garbage collector."""
    server = giving("a", error=failure)
    server.calls, server.streams = Forgetful(), Forgetful()
    route = router(server)
    sent = call()
    gone = weakref.ref(sent.inputs[0].parts[0])
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(TritonError):
            await read(route, sent)
        del sent
        for _ in range(5):
            await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


# --- the load ------------------------------------------------------------------------------------


async def test_the_load_is_the_calls_rows_from_the_first_question_to_the_end():
    server = giving("a", 2, hold=True)
    route = router(server)
    async with nothing_left():
        first = begun(anext(responses := route.stream(call(5))))
        await until(lambda: bool(server.waiting))
        assert loads(route) == [5]
        server.release()
        await first
        assert loads(route) == [5]
        await anext(responses)
        assert loads(route) == [5]
        with pytest.raises(StopAsyncIteration):
            await anext(responses)
        assert loads(route) == [0]


async def test_a_call_without_rows_counts_as_one():
    route = router(giving("a"))
    responses = route.stream(Call("net", "", ()))
    await anext(responses)
    assert loads(route) == [1]
    responses.leave()
    assert loads(route) == [0]


async def test_the_load_ends_with_an_error():
    route = router(giving("a", error=later(lost)))
    responses = route.stream(call(5))
    await anext(responses)
    assert loads(route) == [5]
    with pytest.raises(ConnectionLostError):
        await anext(responses)
    assert loads(route) == [0]


async def test_leaving_ends_the_load_once_and_lets_go_of_the_responses():
    server = giving("a")
    route = router(server)
    responses = route.stream(call(5))
    await anext(responses)
    for _ in range(2):
        responses.leave()
        assert loads(route) == [0]
    assert server.streams[0].left
    with pytest.raises(StopAsyncIteration):
        await anext(responses)


async def test_an_endpoint_with_a_stream_out_gets_less():
    busy, free = giving("busy"), giving("free")
    route = router(busy)
    responses = route.stream(call(100))
    await anext(responses)
    route.fleet.add(free, weight=1)
    for _ in range(30):
        await route.infer(call())
    assert len(free.calls) == 30
    responses.leave()


# --- leaving and cancelling ----------------------------------------------------------------------


async def test_who_leaves_before_the_first_question_sends_nothing():
    server = giving("a")
    responses = router(server).stream(call())
    responses.leave()
    with pytest.raises(StopAsyncIteration):
        await anext(responses)
    assert not server.streams


async def test_left_by_another_task_while_the_first_is_awaited_ends_it():
    server = giving("a", hold=True)
    route = router(server)
    responses = route.stream(call(5))
    async with nothing_left():
        first = begun(anext(responses, "the end"))
        await until(lambda: bool(server.waiting))
        responses.leave()
        server.release()
        assert await first == "the end"
        assert server.streams[0].left
        assert loads(route) == [0]


async def test_to_cancel_the_first_question_is_to_leave():
    server = giving("a", hold=True)
    route = router(server)
    responses = route.stream(call(5))
    async with nothing_left():
        first = begun(anext(responses))
        await until(lambda: bool(server.waiting))
        first.cancel()
        await asyncio.wait({first})
        assert first.cancelled()
        assert server.streams[0].left
        assert loads(route) == [0]
        with pytest.raises(StopAsyncIteration):
            await anext(responses)
    assert len(server.calls) == 1


async def test_to_cancel_during_the_pause_before_another_attempt_is_to_leave():
    server = giving("a", error=unreachable)
    route = router(server, retry=RetryPolicy(backoff_s=60, max_backoff_s=60))
    responses = route.stream(call(5))
    async with nothing_left():
        first = begun(anext(responses))
        await until(lambda: bool(server.streams) and server.streams[0].over)
        first.cancel()
        await asyncio.wait({first})
        assert loads(route) == [0]
        assert [reply async for reply in responses] == []
    assert len(server.calls) == 1


async def test_to_cancel_a_later_question_takes_nothing_away():
    server = giving("a")
    route = router(server)
    responses = route.stream(call(5))
    await anext(responses)
    server.hold = True
    async with nothing_left():
        second = begun(anext(responses))
        await until(lambda: bool(server.waiting))
        second.cancel()
        await asyncio.wait({second})
        assert second.cancelled()
        assert loads(route) == [5]
        server.release()
        assert indexes([reply async for reply in responses]) == [1, 2]
    assert loads(route) == [0]
    assert len(server.calls) == 1


# --- an endpoint that is removed -----------------------------------------------------------------


async def finish(responses, server):
    async for _ in responses:
        pass


async def fail(responses, server):
    server.error = lost
    with pytest.raises(ConnectionLostError):
        await anext(responses)


async def leave(responses, server):
    responses.leave()


@pytest.mark.parametrize("end", [finish, fail, leave])
async def test_removing_an_endpoint_waits_for_its_streams(end):
    first, second = giving("a"), giving("b")
    route = router(first)
    responses = route.stream(call())
    await anext(responses)
    route.fleet.add(second, weight=1)
    async with nothing_left():
        removing = begun(remove(route, "a:1", Deadline.after(30)))
        await asyncio.sleep(0)
        assert await read(route) == ["b:1"] * 3
        assert not removing.done()
        await end(responses, first)
        async with asyncio.timeout(0.5):  # at once, and not at the next look
            assert await removing is first


async def test_removing_an_endpoint_whose_first_response_is_awaited_waits_for_all_of_them():
    first, second = giving("a", hold=True), giving("b")
    route = router(first)
    async with nothing_left():
        responses = route.stream(call())
        question = begun(anext(responses))
        await until(lambda: bool(first.waiting))
        route.fleet.add(second, weight=1)
        removing = begun(remove(route, "a:1", Deadline.after(30)))
        await asyncio.sleep(0)
        first.release()
        await question
        await asyncio.sleep(0)
        assert not removing.done()
        assert indexes([reply async for reply in responses]) == [1, 2]
        assert await removing is first


async def test_removing_gives_up_on_a_stream_at_its_deadline():
    first, second = giving("a"), giving("b")
    route = router(first)
    responses = route.stream(call())
    await anext(responses)
    route.fleet.add(second, weight=1)
    assert await remove(route, "a:1", Deadline.after(0.02)) is first
    assert indexes([reply async for reply in responses]) == [1, 2]


# --- what an endpoint's health is told -----------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "counts"),
    [
        (lost, 1),
        (answered(ModelFailedError), 1),
        (answered(InvalidRequestError), 0),
        (lambda: Deadline.after(0).error("responses"), 0),
    ],
)
async def test_a_break_in_mid_stream_is_told_and_what_is_nobodys_fault_is_not(failure, counts):
    route = router(giving("a", error=later(failure)))
    with pytest.raises(TritonError):
        await read(route)
    (member,) = route.fleet.members
    assert member.failures == counts
    assert member.attempts == 1


async def test_an_endpoint_whose_streams_break_is_left_out():
    bad, good = giving("bad", error=in_turn(*[None, lost] * 100)), giving("good")
    route = router(bad, good)
    broken = 0
    for _ in range(100):
        try:
            await read(route)
        except ConnectionLostError:
            broken += 1
    assert broken == len(bad.calls) == 10  # half of 20: each began, and then broke
    assert route.statistics().endpoints[0].state == "ejected"


async def test_the_latency_is_that_of_the_first_response():
    route = router(giving("a"))
    for _ in range(2):  # it is the quicker of two
        responses = route.stream(call())
        await anext(responses)
        (health,) = route.statistics().endpoints
        await asyncio.sleep(0.02)
        assert len([reply async for reply in responses]) == 2
        assert route.statistics().endpoints[0].latency_s == health.latency_s
    assert health.latency_s > 0


# --- sequences -----------------------------------------------------------------------------------


def own(number, *, start=False, end=False) -> Call:
    """A step that says so itself, and not in its parameters."""
    return Call("net", "", (), sequence=SequenceStep(number, start=start, end=end))


@pytest.mark.parametrize("made", [step, own])
async def test_the_steps_of_a_sequence_go_where_it_began_streamed_or_not(made):
    servers = [giving(name) for name in "abc"]
    route = router(*servers)
    for number in range(1, 25):
        (where,) = set(await read(route, made(number, start=True)))
        assert await read(route, made(number)) == [where] * 3
        assert (await route.infer(made(number))).request_id == where
        assert route.statistics().sequences == 1
        assert set(await read(route, made(number, end=True))) == {where}
        assert route.statistics().sequences == 0
    assert all(server.calls for server in servers)


async def test_a_sequence_begun_by_a_call_goes_on_in_a_stream():
    route = router(*(giving(name) for name in "abc"))
    for number in range(1, 25):
        where = (await route.infer(own(number, start=True))).request_id
        assert set(await read(route, own(number))) == {where}


async def test_a_step_may_follow_before_the_first_response_to_the_one_before_it():
    servers = [giving(name, hold=True) for name in "ab"]
    route = router(*servers)
    async with nothing_left():
        first = begun(read(route, own(7, start=True)))
        await until(lambda: any(server.waiting for server in servers))
        second = begun(read(route, own(7)))
        await until(lambda: sum(len(server.waiting) for server in servers) == 2)
        assert sorted(len(server.calls) for server in servers) == [0, 2]
        for server in servers:
            server.release()
        assert await first == await second


async def test_only_a_first_step_that_certainly_did_not_run_is_begun_elsewhere():
    bad, good = giving("bad", error=unreachable), giving("good")
    route = router(bad, good)
    for number in range(1, 25):
        assert set(await read(route, own(number, start=True))) == {"good:1"}
        assert set(await read(route, own(number))) == {"good:1"}
    assert bad.calls


async def test_a_first_step_whose_outcome_is_open_leaves_the_sequence_to_be_closed():
    servers = [giving(name, error=lost) for name in "ab"]
    route = router(*servers)
    with pytest.raises(ConnectionLostError):
        await read(route, own(7, start=True))
    (home,) = [server for server in servers if server.calls]
    home.error = None
    assert set(await read(route, own(7, end=True))) == {home.target}
    assert route.statistics().sequences == 0


@pytest.mark.parametrize("failure", [unreachable, lost])
async def test_a_later_step_is_never_sent_twice(failure):
    servers = [giving(name) for name in "ab"]
    route = router(*servers)
    (where,) = set(await read(route, own(7, start=True)))
    for server in servers:
        server.error = failure
    with pytest.raises(type(failure())):
        await read(route, own(7))
    assert [len(s.calls) for s in servers if s.target == where] == [2]
    assert not any(sent.idempotent for server in servers for sent in server.calls)
    assert [len(s.calls) for s in servers if s.target != where] == [0]


async def test_a_step_of_a_sequence_whose_endpoint_was_removed_says_that_it_is_lost():
    servers = [giving(name) for name in "ab"]
    route = router(*servers)
    (where,) = set(await read(route, own(7, start=True)))
    await remove(route, where, Deadline.after(0.02))
    responses = route.stream(own(7))
    with pytest.raises(SequenceLostError, match="begin a new sequence"):
        await anext(responses)
    with pytest.raises(StopAsyncIteration):
        await anext(responses)


async def test_removing_waits_for_the_responses_to_the_last_step():
    first, second = giving("a"), giving("b")
    route = router(first)
    await read(route, own(7, start=True))
    route.fleet.add(second, weight=1)
    responses = route.stream(own(7, end=True))
    await anext(responses)
    async with nothing_left():
        removing = begun(remove(route, "a:1", NEVER))
        await asyncio.sleep(0.01)
        assert not removing.done()
        assert indexes([reply async for reply in responses]) == [1, 2]
        assert await removing is first
