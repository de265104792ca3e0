"""Steps that say themselves what they are: one endpoint for all, lost with it, never repeated."""

from __future__ import annotations

import asyncio

import pytest

from tests.routing.fakes import Server, answered, call, lost, remove, router, unreachable, until
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelFailedError,
    SequenceLostError,
    SequenceNotFoundError,
    ServerUnreachableError,
)
from tritonasync.core.resilience import RetryPolicy
from tritonasync.core.values import Call, Reply, SequenceStep

pytestmark = pytest.mark.anyio


class StreamingServer(Server):
    """Gives two responses to each call, then ``breaks``, if it does."""

    breaks: Exception | None = None

    def stream(self, sent: Call):
        return Two(self, sent)


class Two:
    def __init__(self, server: StreamingServer, sent: Call) -> None:
        self.server = server
        self.sent = sent
        self.given = 0
        self.left = False

    def __aiter__(self):
        return self

    async def __anext__(self) -> Reply:
        reply = await self.server.infer(self.sent) if not self.given else None
        if self.given == 2:
            if self.server.breaks is not None:
                raise self.server.breaks
            raise StopAsyncIteration
        self.given += 1
        return reply or Reply(self.sent.model, "1", {}, request_id=self.server.target)

    def leave(self) -> None:
        self.left = True


def step(number: int | str = 7, *, start=False, end=False, deadline=None) -> Call:
    plain = call(deadline=deadline) if deadline else call()
    return Call(
        plain.model,
        "",
        plain.inputs,
        plain.rows,
        deadline=plain.deadline,
        sequence=SequenceStep(number, start=start, end=end),
    )


async def infer(route, sent):
    return [(await route.infer(sent)).request_id]


async def stream(route, sent):
    return [reply.request_id async for reply in route.stream(sent)]


def late():
    return DeadlineExceededError("late", stage="server", timeout_s=1.0)


WAYS = pytest.mark.parametrize("way", [infer, stream])


@pytest.fixture
def servers():
    return [StreamingServer(name) for name in "abc"]


@WAYS
async def test_all_steps_go_to_the_endpoint_of_the_first(servers, way):
    route = router(*servers)
    homes = set()
    for number in [*range(1, 16), *map(str, range(1, 16))]:
        steps = [step(number, start=True), step(number), step(number), step(number, end=True)]
        answers = [name for sent in steps for name in await way(route, sent)]
        assert len(set(answers)) == 1
        homes |= set(answers)
    assert len(homes) == 3
    assert route.statistics().sequences == 0
    assert all(member.load == 0 for member in route.fleet.members)


async def test_the_steps_of_a_sequence_may_be_streams_and_calls_by_turns(servers):
    route = router(*servers)
    (home,) = await infer(route, step(start=True))
    assert await stream(route, step()) == [home, home]
    assert await infer(route, step(end=True)) == [home]


@WAYS
@pytest.mark.parametrize("end", [False, True])
async def test_a_step_of_a_sequence_that_is_not_known_is_not_sent(servers, way, end):
    route = router(*servers)
    with pytest.raises(SequenceLostError, match="model 'net', sequence 7.*begin a new") as caught:
        await way(route, step(end=end))
    assert caught.value.model == "net"
    assert not any(server.calls for server in servers)
    assert route.statistics().sequences == 0


@WAYS
async def test_a_step_after_the_endpoint_was_removed_is_lost_and_not_begun_elsewhere(servers, way):
    route = router(*servers)
    (home,) = await infer(route, step(start=True))
    await remove(route, home, Deadline.after(0.0))
    with pytest.raises(SequenceLostError):
        await way(route, step())
    assert sum(len(server.calls) for server in servers) == 1


async def test_removing_an_endpoint_waits_for_the_last_step(servers, monkeypatch):
    monkeypatch.setattr("tritonasync.routing.router._DRAIN_STEP_S", 60.0)
    route = router(*servers)
    (home,) = await infer(route, step(start=True))
    removal = asyncio.create_task(remove(route, home, Deadline.after(30.0)))
    await asyncio.sleep(0.01)
    assert not removal.done()
    assert await stream(route, step()) == [home, home]
    assert await infer(route, step(end=True)) == [home]
    await asyncio.wait_for(removal, 5)


@WAYS
@pytest.mark.parametrize("failure", [unreachable, lost, answered(ModelFailedError, "INTERNAL")])
async def test_a_step_that_failed_is_not_sent_again_and_the_sequence_stays(servers, way, failure):
    route = router(*servers)
    (home,) = await infer(route, step(start=True))
    (server,) = [server for server in servers if server.target == home]
    server.error = failure
    with pytest.raises(type(failure())):
        await way(route, step())
    assert len(server.calls) == 2
    assert not any(sent.idempotent for sent in server.calls)
    assert sum(len(server.calls) for server in servers) == 2
    server.error = None
    assert set(await way(route, step())) == {home}


@WAYS
async def test_a_first_step_that_did_not_run_goes_elsewhere_and_the_others_follow(way):
    bad, good = StreamingServer("bad", error=unreachable), StreamingServer("good")
    route = router(bad, good)
    for number in range(1, 15):
        assert set(await way(route, step(number, start=True))) == {"good:1"}
        assert set(await way(route, step(number))) == {"good:1"}
    assert bad.calls


@WAYS
@pytest.mark.parametrize("failure", [lost, late, answered(ModelFailedError, "INTERNAL")])
async def test_a_first_step_that_may_have_run_is_not_repeated_and_can_be_closed(
    servers, way, failure
):
    for server in servers:
        server.error = failure
    route = router(*servers)
    with pytest.raises(type(failure())):
        await way(route, step(start=True))
    (home,) = [server for server in servers if server.calls]
    assert len(home.calls) == 1
    assert route.statistics().sequences == 1
    home.error = None
    assert set(await way(route, step(end=True))) == {home.target}
    assert route.statistics().sequences == 0


@WAYS
@pytest.mark.parametrize("failure", [unreachable, answered(InvalidRequestError, "INVALID")])
async def test_a_first_step_that_did_not_run_anywhere_begins_nothing(servers, way, failure):
    for server in servers:
        server.error = failure
    route = router(*servers)
    with pytest.raises(type(failure())):
        await way(route, step(start=True))
    assert route.statistics().sequences == 0
    with pytest.raises(SequenceLostError):
        await way(route, step())


async def test_a_sequence_that_is_over_is_forgotten_and_holds_up_no_removal(servers, monkeypatch):
    monkeypatch.setattr("tritonasync.routing.router._DRAIN_STEP_S", 60.0)
    route = router(*servers)
    (home,) = await infer(route, step(start=True))
    await infer(route, step("7", start=True))
    removal = asyncio.create_task(remove(route, home, Deadline.after(30.0)))
    await asyncio.sleep(0.01)
    route.forget_sequence("net", "1", 7)
    route.forget_sequence("net", "", 8)
    assert route.statistics().sequences == 2
    route.forget_sequence("net", "", "7")
    route.forget_sequence("net", "", 7)
    assert route.statistics().sequences == 0
    await asyncio.wait_for(removal, 5)
    with pytest.raises(SequenceLostError):
        await infer(route, step())


@pytest.mark.parametrize("failure", [lost, answered(SequenceNotFoundError, "INVALID_ARGUMENT")])
async def test_a_last_step_that_failed_ends_the_sequence(servers, failure):
    route = router(*servers)
    (home,) = await infer(route, step(start=True))
    (server,) = [server for server in servers if server.target == home]
    server.error = failure
    with pytest.raises(type(failure())):
        await route.infer(step(end=True))
    assert route.statistics().sequences == 0


async def test_steps_are_never_hedged(servers):
    policy = RetryPolicy(hedge_after_s=0.0, min_retries_per_s=1000.0)
    for server in servers:
        server.hold = True
    route = router(*servers, retry=policy)
    task = asyncio.create_task(route.infer(step(start=True)))
    await until(lambda: sum(len(server.waiting) for server in servers) == 1)
    await asyncio.sleep(0.05)
    assert sum(len(server.waiting) for server in servers) == 1
    for server in servers:
        server.release()
    await task


async def test_a_cancelled_first_step_leaves_the_sequence_to_be_closed(servers):
    for server in servers:
        server.hold = True
    route = router(*servers)
    task = asyncio.create_task(route.infer(step(start=True)))
    await until(lambda: sum(len(server.waiting) for server in servers) == 1)
    (home,) = [server.target for server in servers if server.waiting]
    task.cancel()
    await asyncio.wait({task})
    for server in servers:
        server.release()
    assert await infer(route, step(end=True)) == [home]
    assert route.statistics().sequences == 0


async def test_responses_that_break_off_are_raised_and_leave_the_sequence_where_it_is(servers):
    route = router(*servers)
    (home,) = await infer(route, step(start=True))
    (server,) = [server for server in servers if server.target == home]
    server.breaks = ServerUnreachableError("broke in the middle")
    responses = route.stream(step())
    assert [(await anext(responses)).request_id for _ in range(2)] == [home, home]
    with pytest.raises(ServerUnreachableError):
        await anext(responses)
    assert all(member.load == 0 for member in route.fleet.members)
    assert await infer(route, step(end=True)) == [home]
