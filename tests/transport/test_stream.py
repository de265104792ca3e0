"""One stream, many requests: each gets its own, whoever leaves, however the stream ends."""

from __future__ import annotations

import asyncio
import gc
import random
import socket

import grpc
import pytest

from tests.transport.scripted import RefusalError
from tests.transport.scripted_streams import (
    Client,
    StreamServer,
    answer_to,
    call,
    count_up,
    echo,
    turns,
    until,
    value_of,
)
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    ConnectionLostError,
    DecoupledModelError,
    InvalidRequestError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    PoolClosedError,
    ProtocolError,
    ResponseOverflowError,
    ServerNotReadyError,
    ServerUnreachableError,
    TritonError,
)
from tritonasync.core.policies import StreamPolicy
from tritonasync.core.values import SequenceStep
from tritonasync.transport import choosing
from tritonasync.transport.sinks import Feed, Single

pytestmark = pytest.mark.anyio

ONE = StreamPolicy(max_streams=1)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def failed(task: asyncio.Task) -> TritonError:
    """Return the error that a caller was told."""
    with pytest.raises(TritonError) as caught:
        await task
    return caught.value


async def collect(responses, into: list[int]) -> None:
    """Read all, one after the other."""
    async for reply in responses:
        into.append(value_of(reply))


# --- each its own --------------------------------------------------------------------------------


async def test_many_requests_on_one_stream_are_each_answered_with_their_own():
    async with StreamServer(echo) as server, Client(server.target, ONE) as client:
        assert await asyncio.gather(*[client.call(n) for n in range(500)]) == list(range(500))
        assert len(server.streams) == 1
        assert client.backend.statistics().succeeded == 500


async def test_responses_that_come_in_any_order_reach_their_callers_in_their_own_order():
    chance = random.Random(1)
    async with StreamServer() as server, Client(server.target, ONE) as client:
        readers = [client.read(n) for n in range(30)]
        stream = await server.stream()
        asked = await stream.take(30)
        left = dict.fromkeys(asked, 0)
        while left:
            one = chance.choice(list(left))
            if left[one] == 5:
                stream.close(one)
                del left[one]
            else:
                stream.answer(one, one.value * 100 + left[one], final=False)
                left[one] += 1
        for n, got in enumerate(await asyncio.gather(*readers)):
            assert got == [100 * n + place for place in range(5)]
        assert client.backend.statistics().succeeded == 30


async def test_the_last_response_may_bring_something_or_nothing():
    async with StreamServer() as server, Client(server.target) as client:
        full, empty, none = client.read(1), client.read(2), client.read(3)
        stream = await server.stream()
        by_value = {asked.value: asked for asked in await stream.take(3)}
        stream.answer(by_value[1], 11, final=True)
        stream.answer(by_value[2], 21, final=False)
        stream.close(by_value[2])
        stream.close(by_value[3])
        assert [await full, await empty, await none] == [[11], [21], []]


async def test_errors_reach_those_they_are_about_and_the_stream_goes_on():
    def script(stream, asked):
        if asked.value % 3 == 1:
            stream.refuse(asked, "[request id: x] unexpected shape for input 'VALUE'")
        elif asked.value % 3 == 2:
            stream.refuse(asked, "Request for unknown model: 'm' is not found")
        else:
            stream.answer(asked)

    async with StreamServer(script) as server, Client(server.target, ONE) as client:
        results = await asyncio.gather(*[client.call(n) for n in range(99)], return_exceptions=True)
        for n, result in enumerate(results):
            if n % 3 == 0:
                assert result == n
            else:
                assert type(result) is (InvalidRequestError, ModelNotFoundError)[n % 3 - 1]
                assert (result.model, result.endpoint) == ("m", server.target)
        assert len(server.streams) == 1
        assert client.backend.statistics().succeeded == 33
        assert client.backend.statistics().failed == 66


async def test_a_models_own_error_comes_after_its_responses_and_what_follows_is_dropped():
    async with StreamServer() as server, Client(server.target) as client:
        responses = client.responses()
        first = client.first(responses)
        stream = await server.stream()
        (asked,) = await stream.take()
        for value in range(3):
            stream.answer(asked, value, final=False)
        stream.refuse(asked, "out of words", final=False)
        stream.answer(asked, 9, final=False)
        stream.close(asked)
        assert [await first, *[await client.first(responses) for _ in range(2)]] == [0, 1, 2]
        error = await failed(client.first(responses))
        assert isinstance(error, ModelFailedError)
        assert await client.first(responses) is None
        await until(lambda: client.streams.in_flight == 0)
        assert client.backend.statistics().failed == 1
        assert client.backend.statistics().abandoned == 0


async def test_a_call_of_a_decoupled_model_is_told_so_and_what_it_gives_is_dropped():
    async with StreamServer() as server, Client(server.target) as client:
        caller = client.call(1)
        stream = await server.stream()
        (asked,) = await stream.take()
        stream.answer(asked, final=False)
        assert isinstance(await failed(caller), DecoupledModelError)
        stream.answer(asked, final=False)
        stream.close(asked)
        await until(lambda: client.streams.in_flight == 0)


async def test_the_callers_own_id_comes_back_and_two_callers_may_have_the_same():
    async with StreamServer(echo) as server, Client(server.target) as client:
        made = [client.backend.infer(call(n, request_id="mine")) for n in range(2)]
        replies = await asyncio.gather(*made)
        assert [(reply.request_id, value_of(reply)) for reply in replies] == [
            ("mine", 0),
            ("mine", 1),
        ]
        names = {asked.id for stream in server.streams for asked in stream.asked}
        assert len(names) == 2
        assert all(name.startswith("mine#") for name in names)


async def test_messages_about_nobody_are_dropped():
    def script(stream, asked):
        other = type(asked)("nobody", "m", 0)
        stream.answer(other)
        stream.refuse(other, "it is nobody's")
        stream.answer(asked)
        stream.answer(asked, 99)

    async with StreamServer(script) as server, Client(server.target, ONE) as client:
        assert [await client.call(n) for n in range(5)] == list(range(5))
        assert client.backend.statistics().failed == 0


# --- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("turn", range(8))
async def test_a_caller_cancelled_at_any_turn_never_cancels_the_stream(turn, decoupled):
    async with StreamServer() as server:
        async with Client(server.target) as client:
            await client.backend.endpoint.link.lanes.current[0].channel.channel_ready()
            start = client.read if decoupled else client.call
            neighbour, caller = start(1), start(2)
            await turns(turn)
            caller.cancel()
            await asyncio.wait({caller})
            assert caller.cancelled()
            stream = await server.stream()
            await stream.take()
            last = start(3)  # sent after all else
            await until(lambda: any(asked.value == 3 for asked in stream.asked))
            for asked in stream.asked:
                stream.answer(asked)
            wanted = [1] if decoupled else 1
            assert await neighbour == wanted
            await last
            values = [asked.value for asked in stream.asked]
        assert server.cut == 0
        assert client.backend.statistics().succeeded == len(values)
        assert client.backend.statistics().abandoned == len(values) - 2


async def test_callers_cancelled_while_answers_arrive_harm_nobody():
    async with StreamServer(echo) as server, Client(server.target, ONE) as client:
        for turn in range(60):
            leaving, neighbour = client.call(turn), client.call(-turn)
            await turns(turn)
            leaving.cancel()
            await asyncio.wait({leaving})
            assert await neighbour == -turn
        assert server.cut == 0
        assert len(server.streams) == 1


@pytest.mark.parametrize("turn", range(0, 24, 3))
async def test_a_reader_who_leaves_at_any_turn_harms_nobody(turn):
    async with StreamServer(count_up) as server, Client(server.target, ONE) as client:
        for offset in range(3):
            leaving, neighbour = client.read(50), client.read(20)
            await turns(turn + offset)
            leaving.cancel()
            await asyncio.wait({leaving})
            assert await neighbour == list(range(20))
        await until(lambda: client.streams.in_flight == 0)
        assert server.cut == 0


async def test_what_is_left_before_it_was_sent_is_not_sent():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = "{}:{}".format(*silent.getsockname())
        client = Client(at)
        callers = [client.call(n) for n in range(3)]
        await turns(3)
        callers[1].cancel()
        await asyncio.wait({callers[1]})
    async with StreamServer(echo, at), client:
        results = await asyncio.gather(*callers, return_exceptions=True)
        # The first connection may be refused before there is a server.
        assert [type(result) for result in results[::2]] in (
            [int, int],
            [ServerUnreachableError] * 2,
            [ConnectionLostError] * 2,
        )
        assert client.backend.statistics().abandoned == 0


async def test_a_reader_cancelled_later_misses_nothing_and_may_go_on():
    async with StreamServer() as server, Client(server.target) as client:
        responses = client.responses()
        first = client.first(responses)
        stream = await server.stream()
        (asked,) = await stream.take()
        stream.answer(asked, 0, final=False)
        assert await first == 0
        for value in range(1, 4):
            waiting = client.first(responses)
            await turns(value)
            waiting.cancel()
            await asyncio.wait({waiting})
            stream.answer(asked, value, final=False)
            assert await client.first(responses) == value
        stream.close(asked)
        assert await client.first(responses) is None


async def test_a_reader_who_leaves_waits_no_longer():
    async with StreamServer() as server, Client(server.target) as client:
        responses = client.responses()
        first = client.first(responses)
        stream = await server.stream()
        (asked,) = await stream.take()
        responses.leave()
        assert await first is None
        assert await client.first(responses) is None
        responses.leave()
        stream.close(asked)


async def test_nothing_is_sent_for_what_is_left_before_it_is_read():
    async with StreamServer(echo) as server, Client(server.target) as client:
        responses = client.responses()
        responses.leave()
        assert await client.first(responses) is None
        assert server.streams == []


# --- breaks --------------------------------------------------------------------------------------


async def test_a_refused_connection_is_told_as_such_and_nothing_ran():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        target = "{}:{}".format(*closed.getsockname())
    async with Client(target) as client:
        for caller in (client.call(1), client.read(2)):
            error = await failed(caller)
            assert isinstance(error, ServerUnreachableError)
            assert not error.may_have_executed
            assert (error.model, error.endpoint) == ("m", target)
        assert client.backend.statistics().failed == 2
    assert client.streams.open == 0


ENDS = {
    "status": lambda stream: stream.break_off(UNAVAILABLE, "the wire was cut"),
    "ok": lambda stream: stream.end(),
}


BIG, MANY = 1_000_000, 64


async def until_stuck(stream) -> int:
    """Wait until nothing more is sent; return how many requests are not."""
    before = -1
    while stream.queued != before:
        before = stream.queued
        await asyncio.sleep(0.3)
    return before


@pytest.mark.parametrize("end", ENDS)
async def test_a_break_is_told_to_each_as_far_as_it_had_come(end):
    async with StreamServer() as server, Client(server.target, ONE) as client:
        out, left = client.read(1), client.read(2)
        responses = client.responses(3)
        flowing = client.first(responses)
        stream = await server.stream()
        asked = await stream.take(3)
        stream.reads.clear()
        left.cancel()
        for value in range(2):
            stream.answer(asked[2], value, final=False)
        assert await flowing == 0
        big = [client.read(9, pad=BIG) for _ in range(MANY)]  # more than the wire takes unread
        queued = await until_stuck(client.streams._streams[0])
        assert 0 < queued < MANY
        ENDS[end](stream)
        error = await failed(out)
        assert type(error) is ConnectionLostError
        assert error.may_have_executed
        assert await client.first(responses) == 1
        assert type(await failed(client.first(responses))) is ConnectionLostError
        errors = [await failed(caller) for caller in big]
        unsent = [error for error in errors if not error.may_have_executed]
        assert {type(error) for error in unsent} == {ServerUnreachableError}
        # Those that were being sent when the stream broke count as sent.
        assert queued - 2 <= len(unsent) <= queued
        assert {type(error) for error in errors[: -len(unsent)]} == {ConnectionLostError}
        assert len({id(error) for error in errors}) == MANY
        statistics = client.backend.statistics()
        assert (statistics.failed, statistics.abandoned, statistics.in_flight) == (MANY + 3, 1, 0)


@pytest.mark.parametrize("end", ENDS)
async def test_the_next_request_after_a_break_opens_another_stream(end):
    async with StreamServer() as server, Client(server.target) as client:
        for place in range(3):
            caller = client.call(place)
            stream = await server.stream(place)
            await stream.take()
            ENDS[end](stream)
            assert isinstance(await failed(caller), ConnectionLostError)
        caller = client.call(7)
        stream = await server.stream(3)
        stream.answer(*(await stream.take()))
        assert await caller == 7


async def test_a_stream_that_is_refused_at_once_says_so():
    def script(stream, asked):
        stream.break_off(grpc.StatusCode.UNAUTHENTICATED, "who are you")

    async with StreamServer(script) as server, Client(server.target) as client:
        error = await failed(client.call(1))
        assert error.code == "UNAUTHENTICATED"
        assert not error.may_have_executed


async def test_a_break_while_something_is_written_is_not_the_models_failure():
    """gRPC's word for it is INTERNAL, and comes before the status."""
    async with StreamServer() as server, Client(server.target, ONE) as client:
        callers = [client.read(n, pad=BIG) for n in range(MANY)]
        stream = await server.stream()
        stream.reads.clear()
        await until_stuck(client.streams._streams[0])
        stream.break_off(grpc.StatusCode.INTERNAL, "Internal error from Core")
        errors = [await failed(caller) for caller in callers]
        kinds = {type(error) for error in errors}
        assert kinds == {ConnectionLostError, ServerUnreachableError}


async def test_a_server_that_says_that_it_goes_down_is_told_to_each():
    def script(stream, asked):
        stream.break_off(UNAVAILABLE, "GRPC server is shutting down and has stopped accepting")

    async with StreamServer(script) as server, Client(server.target) as client:
        error = await failed(client.call(1))
        assert isinstance(error, ConnectionLostError)
        assert "shutting down" in str(error)
        assert error.may_have_executed  # it was sent, and this is about the stream


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\x03no!"])
async def test_a_message_that_is_nobodys_is_told_to_all_and_the_stream_is_given_up(garbage):
    async with StreamServer() as server:
        async with Client(server.target, ONE) as client:
            callers = [client.call(n) for n in range(3)]
            stream = await server.stream()
            asked = await stream.take(3)
            stream.say(garbage)
            for caller in callers:
                error = await failed(caller)
                assert isinstance(error, ProtocolError)
                assert error.model == "m"
            await stream.half_closed.wait()
            another = client.call(5)
            (await server.stream(1)).answer(*(await (await server.stream(1)).take()))
            assert await another == 5
            assert not stream.over.is_set()
            for one in asked:
                stream.answer(one)
            await stream.over.wait()
        assert server.cut == 0
        assert client.backend.statistics().failed == 3


async def test_a_message_that_contradicts_itself_is_told_to_its_owner_alone():
    async with StreamServer() as server, Client(server.target, ONE) as client:
        broken, whole = client.call(1), client.call(2)
        stream = await server.stream()
        asked = await stream.take(2)
        message = answer_to(asked[0], 1)
        message.infer_response.outputs[0].shape[0] = 77
        stream.say(message)
        stream.done(asked[0])
        stream.answer(asked[1])
        assert isinstance(await failed(broken), ProtocolError)
        assert await whole == 2


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ("Request for unknown model: 'm' has no available versions", ModelNotReadyError),
        ("Server exiting", ServerNotReadyError),
    ],
)
@pytest.mark.parametrize("left", [False, True])
async def test_a_server_that_goes_down_gets_its_stream_closed(details, kind, left):
    async with StreamServer() as server, Client(server.target) as client:
        caller, slow = client.call(1), client.call(2)
        stream = await server.stream()
        asked = await stream.take(2)
        if left:
            caller.cancel()
            await asyncio.wait({caller})
        stream.refuse(asked[0], details)
        if not left:
            assert isinstance(await failed(caller), kind)
        await asyncio.wait_for(stream.half_closed.wait(), 9)
        stream.answer(asked[1])
        assert await slow == 2
        await asyncio.wait_for(stream.over.wait(), 9)


async def test_other_errors_leave_the_stream_open():
    def script(stream, asked):
        stream.refuse(asked, "Request for unknown model: 'm' is not found")

    async with StreamServer(script) as server, Client(server.target) as client:
        for _ in range(3):
            assert isinstance(await failed(client.call(1)), ModelNotFoundError)
        assert len(server.streams) == 1


# --- slow readers --------------------------------------------------------------------------------

PAD = 1 << 16
SLOW = StreamPolicy(max_streams=1, max_buffered=4)
IN_THE_WIRE = 400
"""Responses of that size that gRPC and the kernel keep at the most, where none is read."""


async def flood(stream, asked, count=2_000):
    for value in range(count):
        stream.answer(asked, value, final=False, pad=PAD)
    stream.close(asked)


async def until_still(stream) -> int:
    """Wait until nothing more is taken from the server; return how much was."""
    before = -1
    while stream.sent != before:
        before = stream.sent
        await asyncio.sleep(0.3)
    return before


async def test_a_server_is_held_back_when_nobody_has_room_and_goes_on_when_somebody_has():
    async with StreamServer() as server, Client(server.target, SLOW) as client:
        responses = client.responses()
        first = client.first(responses)
        stream = await server.stream()
        (asked,) = await stream.take()
        await flood(stream, asked)
        assert await first == 0
        held = await until_still(stream)
        assert held < IN_THE_WIRE
        for value in range(1, 2_000):
            assert await client.first(responses) == value
        assert await client.first(responses) is None


async def test_whoever_comes_new_has_what_is_held_back_read_on(monkeypatch):
    monkeypatch.setattr(choosing, "MAX_CROWDED", 1)  # so that he comes here
    async with StreamServer() as server, Client(server.target, SLOW) as client:
        responses = client.responses(1)
        first = client.first(responses)
        stream = await server.stream()
        (slow,) = await stream.take()
        await flood(stream, slow, 900)
        assert await first == 0
        assert await until_still(stream) < IN_THE_WIRE
        other = client.read(2)
        asked = await stream.take(2)
        stream.answer(asked[1], 22)
        assert await other == [22]
        assert stream.sent > 900
        assert len(server.streams) == 1
        assert [await client.first(responses) for _ in range(899)] == list(range(1, 900))


async def test_one_who_leaves_has_the_rest_read_and_dropped():
    async with StreamServer() as server, Client(server.target, SLOW) as client:
        responses = client.responses(1)
        first = client.first(responses)
        stream = await server.stream()
        (slow,) = await stream.take()
        await flood(stream, slow, 900)
        assert await first == 0
        assert await until_still(stream) < IN_THE_WIRE
        responses.leave()
        await until(lambda: client.streams.in_flight == 0)
        assert stream.sent == 901


async def test_one_who_is_overrun_is_told_after_what_came_and_others_go_on():
    policy = StreamPolicy(max_streams=1, max_buffered=4, max_overrun=50)
    async with StreamServer() as server, Client(server.target, policy) as client:
        slow = client.responses(1)
        first = client.first(slow)
        stream = await server.stream()
        await stream.take()
        fast = client.read(2)
        asked = await stream.take(2)
        for value in range(200):
            stream.answer(asked[0], value, final=False)
            stream.answer(asked[-1], value, final=False)
        stream.close(asked[0])
        stream.close(asked[-1])
        assert await fast == list(range(200))
        assert await first == 0
        got: list[int] = []
        with pytest.raises(ResponseOverflowError):
            await collect(slow, got)
        assert got == list(range(1, len(got) + 1))
        assert len(got) == 51
        with pytest.raises(StopAsyncIteration):
            await anext(slow)


@pytest.mark.parametrize("reads_on", [True, False])
async def test_closing_with_a_reader_who_is_full_ends(reads_on):
    async with StreamServer() as server:
        async with Client(server.target, SLOW) as client:
            responses = client.responses(1)
            first = client.first(responses)
            stream = await server.stream()
            (slow,) = await stream.take()
            await flood(stream, slow, 900)
            assert await first == 0
            assert await until_still(stream) < IN_THE_WIRE
        assert server.cut == 0
        assert client.streams.open == 0
        if reads_on:
            assert [await client.first(responses) for _ in range(899)] == list(range(1, 900))
            assert await client.first(responses) is None


# --- the end -------------------------------------------------------------------------------------


async def test_closing_half_closes_and_reads_all_that_is_still_to_come():
    async with StreamServer() as server:
        client = Client(server.target)
        responses = client.responses(1)
        first = client.first(responses)
        stream = await server.stream()
        (asked,) = await stream.take()
        stream.answer(asked, 0, final=False)
        assert await first == 0
        closing = asyncio.create_task(client.__aexit__())
        await asyncio.wait_for(stream.half_closed.wait(), 9)
        assert not closing.done()
        with pytest.raises(PoolClosedError):
            await client.call(2)
        stream.answer(asked, 1, final=False)
        assert await client.first(responses) == 1
        stream.answer(asked, 2)
        await closing
        assert await client.first(responses) == 2
        assert await client.first(responses) is None
        assert server.cut == 0


def answered_all(server, client) -> bool:
    """Answer what has come, which may come late; say whether all is over."""
    for stream in server.streams:
        while stream.asked:
            stream.answer(stream.asked.pop())
    return not client.streams.in_flight


def sinks() -> int:
    """How many who wait, or have waited, are in memory."""
    return sum(issubclass(type(thing), Single | Feed) for thing in gc.get_objects())


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("end", ["answer", "refusal", "cancelled", "late", "broken", "withdrawn"])
async def test_no_cycle_keeps_a_request_in_memory_however_it_ended(end, decoupled):
    def script(stream, asked):
        if end == "answer":
            stream.answer(asked)
        elif end == "refusal":
            stream.refuse(asked, "no")
        elif end == "broken":
            stream.break_off(UNAVAILABLE, "cut")

    async with StreamServer(script) as server, Client(server.target) as client:
        start = client.read if decoupled else client.call
        gc.collect()
        before = sinks()
        gc.disable()
        try:
            for _ in range(3):
                deadline = Deadline.after(0.05 if end == "late" else 9)
                caller = start(1, deadline=deadline)
                if end == "cancelled":
                    await asyncio.sleep(0.05)
                if end in {"cancelled", "withdrawn"}:
                    await turns(1)
                    caller.cancel()
                await asyncio.wait({caller})
                assert caller.cancelled() or bool(caller.exception()) is (end != "answer")
                del caller
            if end in {"cancelled", "late", "withdrawn"}:
                await until(lambda: answered_all(server, client))
            await until(lambda: not client.streams.in_flight)
            await until(lambda: not any(stream.queued for stream in client.streams._streams))
            await until(lambda: sinks() <= before)  # without the collector
        finally:
            gc.enable()


async def test_a_status_of_a_unary_call_does_not_touch_the_streams():
    async def refuse(message):
        raise RefusalError(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm'")

    async with StreamServer(echo, ModelInfer=refuse) as server, Client(server.target) as client:
        assert await client.read(1) == [1]
        assert isinstance(await failed(client.call(2)), ModelNotFoundError)  # not plain any more
        assert await client.read(3) == [3]
        assert len(server.streams) == 1


async def test_a_step_of_a_sequence_is_a_request_like_others():
    async with StreamServer(echo) as server, Client(server.target) as client:
        step = SequenceStep(7, start=True)
        assert await client.call(4, sequence=step) == 4
        assert server.asked() == [[4]]
