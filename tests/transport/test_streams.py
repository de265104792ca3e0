"""The streams to one server: which one is taken, when there is another, and how all are closed."""

from __future__ import annotations

import asyncio
import socket
import time

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.transport.scripted import of_version
from tests.transport.scripted_streams import (
    Client,
    StreamServer,
    call,
    count_up,
    echo,
    negated,
    turns,
    until,
    value_of,
)
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    PoolClosedError,
    QueueFullError,
    TritonError,
)
from tritonasync.core.policies import StreamPolicy
from tritonasync.core.values import Call, InputTensor, SequenceStep
from tritonasync.transport import streams as streams_module
from tritonasync.transport.choosing import GROW_AT

pytestmark = pytest.mark.anyio

ONE = StreamPolicy(max_streams=1)


async def failed(task: asyncio.Task) -> TritonError:
    """Return the error that a caller was told."""
    with pytest.raises(TritonError) as caught:
        await task
    return caught.value


def answer_all(server: StreamServer) -> None:
    for stream in server.streams:
        for asked in list(stream.asked):
            stream.answer(asked)
        stream.asked.clear()


def total(server: StreamServer) -> int:
    return sum(map(len, server.asked()))


# --- which stream --------------------------------------------------------------------------------


async def test_another_stream_is_opened_when_each_has_enough_to_do_up_to_the_most():
    async with StreamServer() as server, Client(server.target) as client:
        callers = []
        for streams in range(1, 5):
            callers += [client.call(n) for n in range(GROW_AT)]
            await until(lambda: total(server) == GROW_AT * streams)  # noqa: B023 - at once
            assert len(server.streams) == streams
        callers += [client.call(n) for n in range(3 * GROW_AT)]
        await until(lambda: total(server) == len(callers))
        assert len(server.streams) == 4
        loads = [len(asked) for asked in server.asked()]
        assert max(loads) - min(loads) <= 1
        assert client.backend.statistics().streams == 4
        assert client.backend.statistics().in_flight == len(callers)
        answer_all(server)
        await asyncio.gather(*callers)


async def test_there_are_never_more_than_the_policy_allows():
    policy = StreamPolicy(max_streams=2)
    async with StreamServer(echo) as server, Client(server.target, policy) as client:
        callers = [client.call(n, model=f"m{n % 7}") for n in range(300)]
        assert await asyncio.gather(*callers) == list(range(300))
        assert len(server.streams) == 2


async def test_an_answer_in_turn_does_not_wait_for_another_models():
    async with StreamServer() as server, Client(server.target) as client:
        slow = client.call(1, model="slow")
        (await (await server.stream()).take())
        quick = [client.call(n, model="quick") for n in (2, 3)]
        stream = await server.stream(1)
        for asked in await stream.take(2):
            stream.answer(asked)
        assert await asyncio.gather(*quick) == [2, 3]
        assert server.asked() == [[1], [2, 3]]
        answer_all(server)
        assert await slow == 1


async def test_each_decoupled_model_has_streams_of_its_own():
    """A refusal of one that is not there kills the server beside responses on the same stream."""
    async with StreamServer() as server, Client(server.target) as client:
        keys = [("m", ""), ("m", "9"), ("n", "")]
        readers = [client.read(n, model=keys[n % 3][0], version=keys[n % 3][1]) for n in range(9)]
        await until(lambda: total(server) == 9)
        assert sorted(server.asked()) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
        answer_all(server)
        await asyncio.gather(*readers)
        again = client.read(9)
        await until(lambda: total(server) == 1)
        assert len(server.streams) == 3
        answer_all(server)
        await again


async def test_each_decoupled_model_has_as_many_streams_as_the_policy_allows():
    policy = StreamPolicy(max_streams=2)
    async with StreamServer() as server, Client(server.target, policy) as client:
        readers = [client.read(n, model="mn"[n % 2]) for n in range(40)]
        await until(lambda: total(server) == 40)
        assert [len(asked) for asked in server.asked()] == [10] * 4
        answer_all(server)
        await asyncio.gather(*readers)


async def test_without_room_for_another_stream_a_request_goes_where_least_is_out():
    policy = StreamPolicy(max_streams=2)
    async with StreamServer() as server, Client(server.target, policy) as client:
        callers = [client.call(n, model="a") for n in range(2)]
        await (await server.stream()).take(2)
        callers.append(client.call(2, model="b"))
        await (await server.stream(1)).take()
        callers.append(client.call(3, model="c"))
        await server.streams[1].take(2)
        assert server.asked() == [[0, 1], [2, 3]]
        answer_all(server)
        await asyncio.gather(*callers)


async def test_a_stream_with_a_slow_reader_is_left_to_him():
    policy = StreamPolicy(max_streams=1, max_buffered=4)
    async with StreamServer() as server, Client(server.target, policy) as client:
        slow = client.responses(1)
        first = client.first(slow)
        stream = await server.stream()
        (asked,) = await stream.take()
        for value in range(8):
            stream.answer(asked, value, final=False)
        assert await first == 0
        await until(lambda: client.streams._streams[0].requests.crowded)
        quick = client.read(2)
        other = await server.stream(1)
        other.answer(*(await other.take()))
        assert await quick == [2]
        stream.close(asked)
        assert [await client.first(slow) for _ in range(8)] == [1, 2, 3, 4, 5, 6, 7, None]
        again = client.read(3)
        await until(lambda: total(server) == 3)
        answer_all(server)
        await again


async def test_a_stream_that_is_stuck_takes_no_more(monkeypatch):
    monkeypatch.setattr(streams_module, "STUCK_S", 0.2)
    monkeypatch.setattr(streams_module, "SWEEP_S", 0.05)
    async with StreamServer() as server, Client(server.target, ONE) as client:
        stuck = client.call(1, deadline=Deadline.after(0.1))
        waiting = client.call(2)
        stream = await server.stream()
        assert isinstance(await failed(stuck), DeadlineExceededError)
        await asyncio.wait_for(stream.half_closed.wait(), 9)
        quick = client.call(3)
        other = await server.stream(1)
        other.answer(*(await other.take()))
        assert await quick == 3
        assert not waiting.done()
        for asked in stream.asked:
            stream.answer(asked)
        assert await waiting == 2
        await stream.over.wait()


async def test_a_slow_answer_that_is_waited_for_is_not_stuck(monkeypatch):
    monkeypatch.setattr(streams_module, "STUCK_S", 0.05)
    monkeypatch.setattr(streams_module, "SWEEP_S", 0.02)
    async with StreamServer() as server, Client(server.target, ONE) as client:
        slow = client.call(1)
        stream = await server.stream()
        await asyncio.sleep(0.3)
        assert not stream.half_closed.is_set()
        stream.answer(*(await stream.take()))
        assert await slow == 1


async def test_a_stream_with_nothing_to_do_is_closed_after_a_while(monkeypatch):
    monkeypatch.setattr(streams_module, "SWEEP_S", 0.02)
    policy = StreamPolicy(idle_close_s=0.2)
    async with StreamServer(echo) as server, Client(server.target, policy) as client:
        began = time.monotonic()
        assert await client.call(1) == 1
        stream = await server.stream()
        await asyncio.wait_for(stream.over.wait(), 9)
        assert time.monotonic() - began >= 0.2
        await until(lambda: not client.streams.open)
        assert await client.call(2) == 2
        assert len(server.streams) == 2
        assert server.cut == 0


async def test_a_stream_with_something_out_is_not_closed_for_being_idle(monkeypatch):
    monkeypatch.setattr(streams_module, "SWEEP_S", 0.02)
    policy = StreamPolicy(idle_close_s=0.05)
    async with StreamServer() as server, Client(server.target, policy) as client:
        caller = client.call(1)
        stream = await server.stream()
        await asyncio.sleep(0.3)
        assert not stream.half_closed.is_set()
        stream.answer(*(await stream.take()))
        assert await caller == 1


async def test_too_many_that_are_not_sent_are_refused(monkeypatch):
    monkeypatch.setattr(streams_module, "MAX_QUEUED", 5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client("{}:{}".format(*silent.getsockname()), ONE)
        callers = [client.call(n) for n in range(5)]
        await turns(3)
        error = await failed(client.call(5))
        assert isinstance(error, QueueFullError)
        assert "5 requests wait to be sent" in str(error)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
    await client.backend.aclose(Deadline.after(9))


async def test_too_many_that_nobody_waits_for_are_refused(monkeypatch):
    monkeypatch.setattr("tritonasync.transport.link.MAX_ABANDONED", 5)
    async with StreamServer() as server, Client(server.target, ONE) as client:
        callers = [client.call(n) for n in range(5)]
        stream = await server.stream()
        await stream.take(5)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        error = await failed(client.call(6))
        assert isinstance(error, QueueFullError)
        stream.answer(stream.asked[0])
        await until(lambda: client.streams.in_flight == 4)
        late = client.call(7)
        await stream.take(6)
        for asked in stream.asked[1:]:
            stream.answer(asked)
        assert await late == 7


async def test_a_sequence_has_a_stream_of_its_own_up_to_a_number(monkeypatch):
    monkeypatch.setattr(streams_module, "MAX_SEQUENCES", 2)
    async with StreamServer(echo, ModelInfer=negated) as server, Client(server.target) as client:

        def step(n, **flags):
            return client.call(n, sequence=SequenceStep(n, **flags))

        assert [await step(n, start=True) for n in (1, 2, 3)] == [1, 2, -3]
        assert await step(1, end=True) == 1
        await until(lambda: client.streams.open == 1)
        assert server.asked() == [[1, 1], [2]]


async def test_steps_of_decoupled_models_have_a_stream_to_themselves(monkeypatch):
    monkeypatch.setattr(streams_module, "MAX_SEQUENCES", 1)
    async with StreamServer() as server, Client(server.target) as client:
        steps = [client.read(n, sequence=SequenceStep(n, start=True)) for n in (1, 2, 3)]
        await until(lambda: total(server) == 3)
        assert sorted(server.asked()) == [[1], [2], [3]]
        answer_all(server)
        assert await asyncio.gather(*steps) == [[1], [2], [3]]


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoupled", [False, True])
async def test_the_first_response_is_waited_for_until_the_deadline(decoupled):
    async with StreamServer() as server, Client(server.target) as client:
        start = client.read if decoupled else client.call
        began = time.monotonic()
        error = await failed(start(1, deadline=Deadline.after(0.2)))
        assert isinstance(error, DeadlineExceededError)
        assert (error.stage, error.timeout_s, error.model) == ("server", 0.2, "m")
        assert 0.15 < time.monotonic() - began < 5
        assert client.backend.statistics().in_flight == 1
        stream = await server.stream()
        stream.answer(*(await stream.take()))
        await until(lambda: client.backend.statistics().in_flight == 0)
        assert client.backend.statistics().abandoned == 1
        assert client.backend.statistics().succeeded == 1
        assert server.cut == 0


async def test_a_deadline_while_there_is_no_connection_names_it():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client("{}:{}".format(*silent.getsockname()))
        error = await failed(client.call(1, deadline=Deadline.after(0.2)))
        assert (type(error), error.stage) == (DeadlineExceededError, "connect")
        assert client.backend.statistics().in_flight == 0
    await client.backend.aclose(Deadline.after(9))


@pytest.mark.parametrize("decoupled", [False, True])
async def test_a_deadline_that_has_passed_sends_nothing(decoupled):
    async with StreamServer(echo) as server, Client(server.target) as client:
        start = client.read if decoupled else client.call
        error = await failed(start(1, deadline=Deadline.after(0)))
        assert (type(error), error.stage) == (DeadlineExceededError, "send")
        assert not error.may_have_executed
        assert server.streams == []


async def test_a_later_response_is_waited_for_as_long_as_a_reader_may_idle():
    async with StreamServer() as server, Client(server.target) as client:
        responses = client.responses(1, deadline=Deadline.after(60), idle_s=0.2)
        first = client.first(responses)
        stream = await server.stream()
        (asked,) = await stream.take()
        stream.answer(asked, final=False)
        assert await first == 1
        await asyncio.sleep(0.4)  # nobody waits
        stream.answer(asked, final=False)
        assert await client.first(responses) == 1
        error = await failed(client.first(responses))
        assert (type(error), error.stage) == (DeadlineExceededError, "responses")
        assert error.timeout_s == 0.2
        assert await client.first(responses) is None
        stream.close(asked)


async def test_later_responses_do_not_meet_the_deadline_of_the_first():
    async with StreamServer() as server, Client(server.target) as client:
        responses = client.responses(1, deadline=Deadline.after(0.3))
        first = client.first(responses)
        stream = await server.stream()
        (asked,) = await stream.take()
        stream.answer(asked, final=False)
        assert await first == 1
        second = client.first(responses)
        await asyncio.sleep(0.5)
        stream.answer(asked, 2, final=False)
        assert await second == 2
        stream.close(asked)


def long_strings(asked) -> pb.ModelStreamInferResponse:
    """A response with strings that are read in a worker thread."""
    message = pb.ModelStreamInferResponse()
    response = message.infer_response
    response.id, response.model_name = asked.id, asked.model
    response.outputs.add(name="TEXT", datatype="BYTES", shape=[20_000])
    response.raw_output_contents.append(b"\x05\0\0\0words" * 20_000)
    response.parameters["triton_final_response"].bool_param = False
    return message


async def test_long_strings_that_come_later_do_not_meet_the_deadline_of_the_first():
    async with StreamServer() as server, Client(server.target) as client:
        responses = client.responses(1, deadline=Deadline.after(0.2))
        first = client.first(responses)
        stream = await server.stream()
        (asked,) = await stream.take()
        stream.answer(asked, final=False)
        assert await first == 1
        await asyncio.sleep(0.3)
        stream.say(long_strings(asked))
        reply = await anext(responses)
        assert len(reply.outputs["TEXT"]) == 20_000
        stream.close(asked)


@pytest.mark.parametrize("turn", range(6))
async def test_a_reader_cancelled_while_long_strings_are_read_misses_nothing(turn):
    async with StreamServer() as server, Client(server.target) as client:
        responses = client.responses(1)
        first = client.first(responses)
        stream = await server.stream()
        (asked,) = await stream.take()
        stream.answer(asked, final=False)
        assert await first == 1
        stream.say(long_strings(asked))
        stream.close(asked)
        await until(lambda: not client.streams.in_flight)
        reading = asyncio.ensure_future(anext(responses))
        await turns(turn)
        reading.cancel()
        await asyncio.wait({reading})
        if reading.cancelled():
            assert len((await anext(responses)).outputs["TEXT"]) == 20_000
        assert await client.first(responses) is None


async def test_a_function_for_headers_that_is_slow_meets_the_deadline_and_is_asked_once_a_stream():
    async def supply():
        nonlocal count
        count += 1
        await asyncio.sleep(0.1 if count > 1 else 60)
        return {"x-token": str(count)}

    count = 0
    async with StreamServer(echo) as server, Client(server.target, ONE, headers=supply) as client:
        error = await failed(client.call(1, deadline=Deadline.after(0.2)))
        assert (type(error), error.stage) == (DeadlineExceededError, "headers")
        assert server.streams == []
        assert await client.call(2) == 2
        assert await asyncio.gather(*[client.call(n) for n in range(20)]) == list(range(20))
        assert [stream.metadata["x-token"] for stream in server.streams] == ["2"]
        assert count == 2


async def test_those_who_ask_for_headers_together_share_a_stream():
    async def supply():
        await asyncio.sleep(0.05)
        return {}

    async with StreamServer(echo) as server, Client(server.target, ONE, headers=supply) as client:
        assert await asyncio.gather(*[client.call(n) for n in range(50)]) == list(range(50))
        assert len(server.streams) == 1


async def test_what_is_built_in_a_worker_holds_up_nobody_else():
    async with StreamServer(echo) as server, Client(server.target, ONE) as client:
        large = [client.call(n, pad=3 << 20) for n in range(4)]
        await turns(1)
        assert await client.call(9) == 9
        assert await asyncio.gather(*large) == list(range(4))


async def test_building_that_takes_too_long_meets_the_deadline():
    async with StreamServer(echo) as server, Client(server.target) as client:
        # Many small rows take long to be put together.
        parts = tuple(np.zeros((1, 8), np.int32) for _ in range(100_000))
        tensor = InputTensor("VALUE", "INT32", (100_000, 8), parts)
        asked = Call("m", "", (tensor,), rows=100_000, deadline=Deadline.after(0.001))
        with pytest.raises(DeadlineExceededError) as caught:
            await client.backend.infer(asked)
        assert caught.value.stage in {"encode", "send"}
        assert server.streams == []


# --- silence -------------------------------------------------------------------------------------


async def test_silence_begins_with_the_oldest_request_or_the_last_word():
    async with StreamServer() as server, Client(server.target, ONE) as client:
        assert client.backend.silent_since() == float("inf")
        before = time.monotonic()
        callers = [client.call(n) for n in range(2)]
        stream = await server.stream()
        asked = await stream.take(2)
        sent = client.backend.silent_since()
        assert before <= sent <= time.monotonic()
        await asyncio.sleep(0.05)
        stream.answer(asked[0])
        assert await callers[0] == 0
        assert client.backend.silent_since() >= sent + 0.04
        stream.answer(asked[1])
        assert await callers[1] == 1
        assert client.backend.silent_since() == float("inf")


async def test_those_who_are_let_go_are_told_and_the_streams_take_no_more():
    async with StreamServer() as server:
        async with Client(server.target) as client:
            once, twice = client.call(1, idempotent=False), client.call(2)
            flowing = client.responses(3, idempotent=True, model="n")
            callers = [once, twice]
            await (await server.stream()).take(2)
            client.backend.let_go("no word for a while")
            error = await failed(twice)
            assert isinstance(error, ConnectionLostError)
            assert "no word for a while" in str(error)
            await asyncio.wait_for(server.streams[0].half_closed.wait(), 9)
            new = client.call(4)
            stream = await server.stream(1)
            stream.answer(*(await stream.take()))
            assert await new == 4
            answer_all(server)
            assert await once == 1
            assert callers
            flowing.leave()
        assert server.cut == 0


async def test_a_reader_who_has_begun_is_not_let_go():
    async with StreamServer() as server, Client(server.target) as client:
        begun, waiting = client.responses(1), client.responses(2)
        first, other = client.first(begun), client.first(waiting)
        stream = await server.stream()
        asked = await stream.take(2)
        stream.answer(asked[0], final=False)
        assert await first == 1
        client.backend.let_go("no word")
        assert isinstance(await failed(other), ConnectionLostError)
        stream.answer(asked[0], 7)
        assert await client.first(begun) == 7
        stream.close(asked[1])


# --- plain and decoupled -------------------------------------------------------------------------


async def test_the_first_of_a_decoupled_model_waits_for_plain_answers_and_then_plain_goes_alone():
    async with StreamServer(ModelInfer=negated) as server, Client(server.target) as client:
        plain = [client.call(n) for n in range(3)]
        stream = await server.stream()
        asked = await stream.take(3)
        readers = [client.read(10 + n) for n in range(3)]
        await until(lambda: not client.streams.plain)
        assert await client.call(7) == -7, "it goes out as a call of its own from here on"
        for one in asked:
            await asyncio.sleep(0.05)
            assert total(server) == 3, "nothing decoupled is sent beside a plain one"
            stream.answer(one)
        assert await asyncio.gather(*plain) == [0, 1, 2]
        other = await server.stream(1)
        for one in await other.take(3):
            other.answer(one)
        assert await asyncio.gather(*readers) == [[10], [11], [12]]
        assert await stream.over.wait()
        assert await client.call(8) == -8
        assert server.count("ModelInfer") == 2


async def test_decoupled_without_plain_before_waits_for_nothing():
    async with StreamServer(count_up) as server, Client(server.target) as client:
        began = time.monotonic()
        assert await client.read(2) == [0, 1]
        assert time.monotonic() - began < streams_module.SETTLING_S
        assert len(server.streams) == 1


async def test_a_plain_request_that_is_never_answered_holds_up_decoupled_ones_not_for_ever(
    monkeypatch,
):
    monkeypatch.setattr(streams_module, "STUCK_S", 0.3)
    async with StreamServer() as server, Client(server.target) as client:
        stuck = client.call(1)
        stream = await server.stream()
        await stream.take()
        stuck.cancel()
        reader = client.read(2)
        other = await server.stream(1)
        other.answer(*(await other.take()))
        assert await reader == [2]
        stream.answer(*stream.asked)


async def test_a_decoupled_one_whose_time_is_up_before_plain_is_answered_was_not_sent():
    async with StreamServer() as server, Client(server.target) as client:
        plain = client.call(1)
        stream = await server.stream()
        (asked,) = await stream.take()
        error = await failed(client.read(2, deadline=Deadline.after(0.1)))
        assert (type(error), error.stage) == (DeadlineExceededError, "send")
        assert not error.may_have_executed
        stream.answer(asked)
        assert await plain == 1
        assert total(server) == 1


async def test_a_decoupled_one_who_leaves_while_plain_is_waited_for_harms_nobody():
    async with StreamServer() as server, Client(server.target) as client:
        plain = client.call(1)
        stream = await server.stream()
        (asked,) = await stream.take()
        leaving, staying = client.read(2), client.read(3)
        await until(lambda: not client.streams.plain)
        leaving.cancel()
        await asyncio.wait({leaving})
        stream.answer(asked)
        assert await plain == 1
        other = await server.stream(1)
        other.answer(*(await other.take()))
        assert await staying == [3]
        assert server.asked() == [[1], [3]]


async def test_closing_while_plain_is_waited_for_refuses_the_decoupled_one():
    async with StreamServer() as server:
        async with Client(server.target) as client:
            plain = client.call(1)
            stream = await server.stream()
            (asked,) = await stream.take()
            reader = client.read(2)
            await until(lambda: not client.streams.plain)
            closing = asyncio.create_task(client.backend.aclose(Deadline.after(9)))
            assert isinstance(await failed(reader), PoolClosedError)
            stream.answer(asked)
            assert await plain == 1
            await closing
        assert total(server) == 1


@pytest.mark.parametrize("slow", ["encode", "headers"])
async def test_a_plain_one_overtaken_by_a_decoupled_one_goes_out_alone(slow):
    """It had looked before, and was being built, or waited for headers."""

    async def supply():
        await asyncio.sleep(0.05)
        return {}

    headers = supply if slow == "headers" else None
    server = StreamServer(count_up, ModelInfer=negated)
    async with server, Client(server.target, headers=headers) as client:
        plain = client.call(5, pad=(3 << 20) if slow == "encode" else 0)
        await turns(2)
        assert client.streams.plain
        reader = client.read(3)
        assert await plain == -5
        assert await reader == [0, 1, 2]
        assert server.asked() == [[3]]


async def test_no_plain_and_decoupled_ones_are_ever_on_streams_together():
    """Whatever their order: the server counts."""
    out = {"plain": 0, "decoupled": 0}
    both = 0

    def script(stream, asked):
        nonlocal both
        kind = "plain" if asked.model == "p" else "decoupled"
        out[kind] += 1
        both += bool(out["plain"] and out["decoupled"])

        def answer():
            out[kind] -= 1
            stream.answer(asked)

        asyncio.get_running_loop().call_later(0.01, answer)

    server = StreamServer(script, ModelInfer=negated)
    async with server, Client(server.target) as client:
        callers = []
        for n in range(100):
            if n % 10 == 9:
                callers.append(client.read(n, model="d"))
            else:
                callers.append(client.call(n, model="p", pad=(2 << 20) if n % 4 == 1 else 0))
            await asyncio.sleep(0.002)
        await asyncio.gather(*callers)
    assert both == 0


# --- cancelling on the server --------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.51.0", "2.58.0", "2.59.0"])
async def test_one_who_leaves_has_his_own_stream_cancelled_where_the_server_lives_through_it(
    version,
):
    methods = {"ServerMetadata": of_version(version), "ModelInfer": negated}
    server = StreamServer(count_up_half, **methods)
    async with server, Client(server.target, cancel_on_server=True) as client:
        assert await client.read(0) == []
        await until(lambda: client.backend.statistics().server_version == version)
        before = len(server.streams)
        leaving, staying = client.responses(5), client.responses(5)
        assert [await client.first(leaving), await client.first(staying)] == [0, 0]
        assert await client.read(0) == []
        leaving.leave()
        cancels = version == "2.59.0"
        assert len(server.streams) - before == (3 if cancels else 0)
        if cancels:
            await until(lambda: server.cut == 1)
            await until(lambda: client.backend.statistics().in_flight == 1)
        for stream in server.streams:
            for asked in stream.asked:
                if asked.value == 5 and not stream.over.is_set():
                    stream.answer(asked, 99)
        assert await client.first(staying) == 99
        await until(lambda: not client.streams.in_flight)
        assert server.cut == cancels
        statistics = client.backend.statistics()
        assert statistics.abandoned == 1
        assert statistics.failed == cancels


def count_up_half(stream, asked):
    if asked.value:
        stream.answer(asked, 0, final=False)
    else:
        stream.close(asked)


@pytest.mark.parametrize("turn", range(6))
async def test_a_stream_of_ones_own_is_cancelled_at_any_turn_and_ends(turn):
    server = StreamServer(count_up_half, ServerMetadata=of_version("2.60.0"))
    async with server:
        async with Client(server.target, cancel_on_server=True) as client:
            assert await client.read(0) == []
            await until(lambda: client.backend.statistics().server_version == "2.60.0")
            reader = client.read(5)
            await turns(turn)
            reader.cancel()
            await asyncio.wait({reader})
            # But for the first, opened before that was known, and what was withdrawn and is free.
            await until(lambda: client.streams.open - len(client.streams._spares) == 1)
        assert client.backend.statistics().in_flight == 0


# --- closing -------------------------------------------------------------------------------------


async def test_what_is_not_answered_in_the_time_for_closing_is_torn_down_with_a_warning():
    async with StreamServer() as server:
        client = Client(server.target)
        callers = [client.call(n) for n in range(3)]
        await (await server.stream()).take(3)
        with pytest.warns(ResourceWarning, match="3 requests were still out on streams"):
            await client.backend.aclose(Deadline.after(0.1))
        for caller in callers:
            error = await failed(caller)
            assert isinstance(error, ConnectionLostError)
            assert "time for closing was over" in str(error)
        assert client.streams.open == 0
        assert client.backend.statistics().failed == 3


async def test_a_stream_that_was_torn_down_with_a_full_reader_is_over_too():
    policy = StreamPolicy(max_streams=1, max_buffered=2)
    async with StreamServer() as server:
        client = Client(server.target, policy)
        responses = client.responses(1)
        first = client.first(responses)
        stream = await server.stream()
        (asked,) = await stream.take()
        for value in range(6):
            stream.answer(asked, value, final=False)
        assert await first == 0
        with pytest.warns(ResourceWarning, match="1 requests were still out on streams"):
            await asyncio.wait_for(client.backend.aclose(Deadline.after(0.1)), 9)
        assert [await client.first(responses) for _ in range(5)] == [1, 2, 3, 4, 5]
        assert isinstance(await failed(client.first(responses)), ConnectionLostError)


@pytest.mark.parametrize("decoupled", [False, True])
async def test_after_closing_everything_is_refused(decoupled):
    async with StreamServer(echo) as server, Client(server.target) as client:
        await client.backend.aclose(NEVER)
        start = client.read if decoupled else client.call
        assert isinstance(await failed(start(1)), PoolClosedError)
        assert server.streams == []


async def test_no_task_is_left_after_closing():
    before = asyncio.all_tasks()
    async with StreamServer(echo) as server:
        client = Client(server.target)
        for timeout_s in (0.0002, 0.001, 0.01, 9):
            await asyncio.gather(
                *[client.call(n, deadline=Deadline.after(timeout_s)) for n in range(30)],
                *[client.read(n, deadline=Deadline.after(timeout_s)) for n in range(30)],
                return_exceptions=True,
            )
        await client.backend.aclose(NEVER)
        assert server.cut == 0
        left = {task for task in asyncio.all_tasks() - before if "grpc" not in repr(task)}
        assert {task for task in left if "cripted" not in repr(task)} == set()
        statistics = client.backend.statistics()
        assert statistics.in_flight == statistics.streams == 0


async def test_a_connection_that_is_renewed_takes_new_requests_on_new_streams():
    async with StreamServer() as server, Client(server.target, ONE) as client:
        old = client.call(1)
        stream = await server.stream()
        await stream.take()
        client.backend.endpoint.link.lanes.renew(time.monotonic())
        new = client.call(2)
        other = await server.stream(1)
        other.answer(*(await other.take()))
        assert await new == 2
        stream.answer(*stream.asked)
        assert await old == 1
        await stream.over.wait()
        await until(lambda: not client.streams._streams[1:])
        assert server.cut == 0


async def test_a_server_that_is_gone_breaks_its_streams_and_the_next_one_is_found():
    server = StreamServer()
    async with server:
        client = Client(server.target)
        answered, caller = client.call(1), client.call(2)
        stream = await server.stream()
        stream.answer((await stream.take(2))[0])
        assert await answered == 1
    assert isinstance(await failed(caller), ConnectionLostError)
    async with StreamServer(echo, server.target):
        async with asyncio.timeout(20):
            while True:
                try:
                    assert value_of(await client.backend.infer(call(3))) == 3
                except ConnectionError:
                    await asyncio.sleep(0.05)
                else:
                    break
        assert client.backend.statistics().reconnections == 1
        await client.backend.aclose(Deadline.after(9))
