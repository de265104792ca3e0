"""Who waits for what comes on a stream: one answer, or many that are kept within bounds."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.transport.scripted_streams import call, turns
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    DeadlineExceededError,
    DecoupledModelError,
    ModelFailedError,
    ResponseOverflowError,
    ServerError,
)
from tritonasync.core.policies import StreamPolicy
from tritonasync.transport.sinks import Feed, Single
from tritonasync.wire.stream import StreamResponse, read_stream_response

pytestmark = pytest.mark.anyio

FAILED = ModelFailedError("it failed", code="INTERNAL", details="it failed")


class FakePlace:
    """A place on no stream."""

    def __init__(self, stage="server"):
        self.surprised = 0
        self.sent = stage == "server"
        self.left = 0
        self.rooms = 0
        self._stage = stage

    def leave(self):
        self.left += 1

    def make_room(self):
        self.rooms += 1

    def stage(self):
        return self._stage

    def surprise(self):
        self.surprised += 1


def response(number=0, *, pad=0) -> StreamResponse:
    message = pb.ModelStreamInferResponse()
    message.infer_response.model_version = str(number)
    message.infer_response.outputs.add(name="OUT", datatype="UINT8", shape=[pad])
    message.infer_response.raw_output_contents.append(b"x" * pad)
    return read_stream_response(message.SerializeToString())


LAST = read_stream_response(
    pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id="1")).SerializeToString()
)


def number_of(given) -> int:
    return int(given.reply().version)


def single(*, place=None, **options) -> Single:
    made = Single(call(1, **options), "there", asyncio.get_running_loop())
    made.place = place
    return made


class Fed:
    """A feed, its place and what it expects."""

    def __init__(self, policy=None, *, stage="server", **options):
        self.place = FakePlace(stage)
        self.expected = []
        self.feed = Feed(
            call(1, **options), "there", policy or StreamPolicy(), self.expected.append
        )
        self.feed.place = self.place

    def deliver(self, *numbers, pad=0):
        return [self.feed.deliver(response(number, pad=pad)) for number in numbers]

    async def numbers(self, count):
        return [number_of(await self.feed.next()) for _ in range(count)]


# --- one answer ----------------------------------------------------------------------------------


async def test_one_answer_or_one_error_is_taken_and_nothing_after_it():
    answered, failed = single(), single()
    answered.finish(LAST)
    answered.fail(FAILED)
    failed.fail(FAILED)
    failed.finish(LAST)
    assert await answered.waiter is LAST
    with pytest.raises(ModelFailedError):
        await failed.waiter


@pytest.mark.parametrize("what", ["finish", "fail", "deliver", "late"])
async def test_whoever_has_left_is_told_nothing(what):
    left = single(place=FakePlace())
    left.waiter.cancel()
    {
        "finish": lambda: left.finish(LAST),
        "fail": lambda: left.fail(FAILED),
        "deliver": lambda: left.deliver(response()),
        "late": left.late,
    }[what]()
    assert left.waiter.cancelled()


async def test_a_response_that_is_not_the_last_tells_of_a_decoupled_model():
    place = FakePlace()
    waiting = single(place=place)
    assert waiting.deliver(response())
    with pytest.raises(DecoupledModelError, match=r"model 'm' at there.*handle\.stream") as caught:
        await waiting.waiter
    assert caught.value.endpoint == "there"
    assert place.left == 1


@pytest.mark.parametrize("stage", ["server", "connect"])
async def test_who_waits_for_one_answer_is_late_in_the_stage_where_it_is(stage):
    place = FakePlace(stage)
    waiting = single(place=place, deadline=Deadline.after(5))
    waiting.late()
    with pytest.raises(DeadlineExceededError, match="model 'm' at there") as caught:
        await waiting.waiter
    assert (caught.value.stage, caught.value.timeout_s) == (stage, 5)
    assert place.left == 1


async def test_what_has_no_place_yet_can_be_left():
    waiting = single()
    waiting.leave()
    waiting.late()
    assert not waiting.waiter.done()


async def test_only_what_does_no_harm_twice_is_repeatable():
    assert single().repeatable
    assert not single(idempotent=False).repeatable


# --- many ----------------------------------------------------------------------------------------


async def test_responses_are_given_out_in_order_and_then_the_end():
    fed = Fed()
    assert fed.deliver(0, 1) == [True, True]
    fed.feed.finish(response(2))
    assert await fed.numbers(3) == [0, 1, 2]
    assert await fed.feed.next() is None
    assert await fed.feed.next() is None


async def test_the_word_that_there_are_no_more_is_not_given_out():
    fed = Fed()
    fed.feed.finish(LAST)
    assert await fed.feed.next() is None


async def test_what_came_before_an_error_is_given_out_before_it_and_the_error_once():
    fed = Fed()
    fed.deliver(0, 1)
    fed.feed.fail(FAILED)
    fed.feed.fail(ServerError("another", code="INTERNAL", details=""))
    assert await fed.numbers(2) == [0, 1]
    with pytest.raises(ModelFailedError):
        await fed.feed.next()
    assert await fed.feed.next() is None


async def test_no_error_comes_after_the_end():
    fed = Fed()
    fed.feed.finish(LAST)
    fed.feed.fail(FAILED)
    assert await fed.feed.next() is None


@pytest.mark.parametrize("what", ["response", "end", "error", "drop"])
async def test_who_waits_is_woken_by_whatever_comes(what):
    fed = Fed()
    waiting = asyncio.create_task(fed.feed.next())
    await turns(2)
    {
        "response": lambda: fed.deliver(7),
        "end": lambda: fed.feed.finish(LAST),
        "error": lambda: fed.feed.fail(FAILED),
        "drop": fed.feed.drop,
    }[what]()
    (result,) = await asyncio.gather(waiting, return_exceptions=True)
    if what == "response":
        assert number_of(result) == 7
    elif what == "error":
        assert result is FAILED
    else:
        assert result is None


@pytest.mark.parametrize("order", ["cancelled first", "came first"])
async def test_who_is_cancelled_in_waiting_misses_nothing(order):
    fed = Fed()
    waiting = asyncio.create_task(fed.feed.next())
    await turns(2)
    if order == "cancelled first":
        waiting.cancel()
        fed.deliver(0)
    else:
        fed.deliver(0)
        waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert await fed.numbers(1) == [0]


async def test_what_is_dropped_is_forgotten():
    fed = Fed()
    fed.deliver(0, 1)
    fed.feed.fail(FAILED)
    fed.feed.drop()
    assert await fed.feed.next() is None
    assert fed.place.left == 1


# --- bounds --------------------------------------------------------------------------------------


async def test_it_is_full_at_its_bound_and_has_room_again_at_half_of_it():
    fed = Fed(StreamPolicy(max_buffered=4))
    assert fed.deliver(0, 1, 2, 3) == [True, True, True, False]
    assert await fed.numbers(1) == [0]
    assert fed.place.rooms == 0
    assert await fed.numbers(1) == [1]
    assert fed.place.rooms == 1
    assert await fed.numbers(2) == [2, 3]
    assert fed.place.rooms == 1


async def test_it_is_full_by_bytes_as_well():
    fed = Fed(StreamPolicy(max_buffered_nbytes=4_000))
    assert fed.deliver(0, 1, 2, pad=1_500) == [True, True, False]
    assert await fed.numbers(1) == [0]
    assert fed.place.rooms == 0
    assert await fed.numbers(1) == [1]
    assert fed.place.rooms == 1


async def test_what_comes_while_it_is_full_is_kept_up_to_the_overrun():
    fed = Fed(StreamPolicy(max_buffered=2, max_overrun=5))
    assert fed.deliver(*range(5)) == [True, False, False, False, False]
    assert fed.place.left == 0
    assert fed.deliver(5) == [True]  # nobody is full who has left
    assert fed.place.left == 1
    assert await fed.numbers(6) == list(range(6))
    with pytest.raises(ResponseOverflowError, match="model 'm' at there: 6 responses") as caught:
        await fed.feed.next()
    assert not caught.value.retriable
    assert caught.value.may_have_executed


async def test_the_overrun_has_a_bound_in_bytes():
    fed = Fed(StreamPolicy(max_buffered_nbytes=1_000, max_overrun_nbytes=10_000))
    fed.deliver(*range(9), pad=1_000)
    assert fed.place.left == 0
    fed.deliver(9, pad=1_000)
    assert fed.place.left == 1


# --- time ----------------------------------------------------------------------------------------


async def test_the_first_response_is_due_by_the_calls_deadline():
    deadline = Deadline.after(5)
    fed = Fed(deadline=deadline, idle_s=1, stage="connect")
    assert fed.feed.due_at == deadline.at
    fed.feed.late()
    with pytest.raises(DeadlineExceededError) as caught:
        await fed.feed.next()
    assert (caught.value.stage, caught.value.timeout_s) == ("connect", 5)
    assert fed.place.left == 1


async def test_a_later_one_is_due_when_it_was_waited_for_long_enough():
    fed = Fed(deadline=Deadline.after(5), idle_s=60)
    fed.deliver(0)
    assert fed.feed.due_at == math.inf
    await fed.feed.next()
    assert fed.feed.due_at == math.inf, "nobody waits"
    waiting = asyncio.create_task(fed.feed.next())
    await turns(2)
    assert fed.feed.due_at == pytest.approx(time.monotonic() + 60, abs=5)
    assert fed.expected[-1] == fed.feed.due_at
    fed.feed.late()
    with pytest.raises(DeadlineExceededError) as caught:
        await waiting
    assert (caught.value.stage, caught.value.timeout_s) == ("responses", 60)
    assert fed.feed.due_at == math.inf


@pytest.mark.parametrize("end", ["finish", "cancel"])
async def test_nothing_is_due_after_the_end_or_while_nobody_waits(end):
    fed = Fed(idle_s=60)
    fed.deliver(0)
    await fed.feed.next()
    waiting = asyncio.create_task(fed.feed.next())
    await turns(2)
    if end == "finish":
        fed.feed.finish(LAST)
    else:
        waiting.cancel()
    await asyncio.wait({waiting})
    assert fed.feed.due_at == math.inf


async def test_it_is_repeatable_until_the_first_response():
    assert not Fed(idempotent=False).feed.repeatable
    fed = Fed()
    assert fed.feed.repeatable
    fed.deliver(0)
    assert not fed.feed.repeatable


async def test_without_a_place_it_is_never_late():
    feed = Feed(call(1, deadline=NEVER), "there", StreamPolicy(), [].append)
    feed.late()
    feed.finish(response(3))
    assert number_of(await feed.next()) == 3
