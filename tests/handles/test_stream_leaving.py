"""Who may wait for a stream, leaving it, and what is left of it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from tests.handles.fakes import END, FakeCatalog, FakeInvoker
from tests.handles.streaming import ROWS, SERVED, ask, begun, drained, failed, numbers, out, turns
from tritonasync.core.errors import ModelFailedError, UsageError
from tritonasync.core.values import Reply
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.stream import ResponseStream

pytestmark = pytest.mark.anyio


@pytest.fixture
def catalog():
    return FakeCatalog(SERVED)


@pytest.fixture
def invoker():
    return FakeInvoker()


@pytest.fixture
def model(invoker, catalog):
    return ModelHandle("net", "", invoker, catalog, timeout_s=30.0, streamer=invoker)


# --- who may wait ---


@pytest.mark.parametrize("later", [False, True])
async def test_one_task_at_a_time_may_wait(model, invoker, later):
    stream = (await begun(model, invoker))[0] if later else model.stream(X=ROWS)
    waiting = ask(stream)
    await turns()
    with pytest.raises(UsageError, match="another task is waiting"):
        await anext(stream)
    invoker.streams[0].tell(out(7))
    assert (await waiting)["OUT"] == [7]  # which lost nothing


async def test_cancelling_who_waits_for_the_first_is_to_leave(model, invoker):
    stream = model.stream(X=ROWS)
    waiting = ask(stream)
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert invoker.streams[0].left == 1
    with pytest.raises(UsageError, match="'net': .*cancelled before its first response, which is"):
        await anext(stream)  # or else it would look like one without responses
    assert await anext(stream, None) is None


async def test_who_closes_a_stream_that_was_cancelled_at_its_first_response_knows(model):
    async with model.stream(X=ROWS) as stream:
        waiting = ask(stream)
        await turns()
        waiting.cancel()
        await turns()
    assert await anext(stream, None) is None


async def test_cancelling_who_waits_for_a_later_one_loses_nothing(model, invoker):
    stream, responses = await begun(model, invoker)
    for _ in range(2):
        waiting = ask(stream)
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    responses.tell(out(1), out(2), END)
    assert numbers([output async for output in stream]) == [1, 2]
    assert responses.left <= 1  # at the end, and not before


async def test_a_time_limit_of_the_caller_s_own_loses_nothing(model, invoker):
    stream, responses = await begun(model, invoker)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await anext(stream)
    responses.tell(out(1), END)
    assert numbers([output async for output in stream]) == [1]


# --- leaving ---


async def test_breaking_out_of_the_loop_lets_go(model, invoker):
    invoker.script = [out(1), out(2), END]
    async for _ in model.stream(X=ROWS):
        break
    await turns()
    assert invoker.streams[0].left == 1


async def test_an_error_in_the_loop_lets_go(model, invoker):
    async def loop():
        async for _ in model.stream(X=ROWS):
            raise ValueError

    invoker.script = [out(1), out(2), END]
    with pytest.raises(ValueError):
        await loop()
    await turns()
    assert invoker.streams[0].left == 1


async def test_a_stream_that_ended_is_not_left_again(model, invoker):
    invoker.script = [out(1), END]
    stream = model.stream(X=ROWS)
    assert [output async for output in stream]
    left = invoker.streams[0].left
    await stream.aclose()
    del stream
    await turns()
    assert invoker.streams[0].left == left <= 1


async def test_the_end_of_the_block_lets_go_whatever_refers_to_the_stream(model, invoker):
    async def block():
        async with responses:
            async for _ in responses:
                raise ValueError

    invoker.script = [out(1), out(2), END]
    responses = model.stream(X=ROWS)
    with pytest.raises(ValueError):
        await block()
    assert invoker.streams[0].left == 1
    assert await anext(responses, None) is None
    await responses.aclose()
    assert invoker.streams[0].left == 1


@pytest.mark.parametrize("later", [False, True])
async def test_closing_ends_who_waits(model, invoker, later):
    stream = (await begun(model, invoker))[0] if later else model.stream(X=ROWS)
    waiting = ask(stream)
    await turns()
    await stream.aclose()
    await turns(20)
    assert waiting.done()
    assert waiting.result() is None
    assert invoker.streams[0].left == 1
    assert await anext(stream, None) is None


async def test_closing_when_the_first_has_just_come_lets_go_of_the_others(invoker):
    async def begin():
        responses = invoker.stream(None)
        await stream.aclose()
        return responses, Reply("net", "1", {})

    stream = ResponseStream("net", begin, lambda reply: reply)
    assert await anext(stream, None) is None
    assert invoker.streams[0].left == 1


async def test_a_response_that_comes_when_the_stream_was_closed_is_not_given_out(model, invoker):
    stream, responses = await begun(model, invoker)
    responses.leave = lambda: responses.tell(out(1))
    waiting = ask(stream)
    await turns()
    await stream.aclose()
    assert await waiting is None


async def test_a_stream_dropped_in_another_thread_is_left_in_its_own(model, invoker):
    stream, responses = await begun(model, invoker)
    threads = []
    leave = responses.leave
    responses.leave = lambda: (threads.append(threading.get_ident()), leave())
    held = [stream]
    del stream
    await asyncio.to_thread(held.clear)
    await turns()
    assert threads == [threading.get_ident()]


def test_a_stream_dropped_after_its_loop_does_nothing(catalog):
    invoker = FakeInvoker(script=[out(1), out(2)])
    model = ModelHandle("net", "", invoker, catalog, timeout_s=30.0, streamer=invoker)
    kept = [model.stream(X=ROWS)]

    async def first():
        return await anext(kept[0])

    assert numbers([asyncio.run(first())]) == [1]
    kept.clear()
    gc.collect()
    assert invoker.streams[0].left == 0


async def test_a_stream_dropped_by_the_garbage_collector_is_left_a_turn_later(model, invoker):
    stream, responses = await begun(model, invoker)
    stream.itself = stream
    del stream
    gc.collect()
    assert responses.left == 0  # the collector may strike in the midst of anything
    await turns()
    assert responses.left == 1


# --- memory ---


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_inputs_are_let_go_of_when_they_are_sent(model, invoker, no_collector):
    array = ROWS.copy()
    inputs = weakref.ref(array)
    stream = model.stream(X=array)
    del array
    waiting = ask(stream)
    await turns()
    invoker.streams[0].call = None  # the fake's own
    invoker.streams[0].tell(Reply("net", "1", out(1)))
    await waiting
    assert inputs() is None
    await stream.aclose()


@pytest.mark.parametrize("before", [[], [out(1)]])
async def test_a_stream_that_failed_is_gone_with_its_error(model, invoker, no_collector, before):
    invoker.script = [*before, failed()]
    stream = model.stream(X=ROWS)
    gone = weakref.ref(stream)
    with pytest.raises(ModelFailedError) as caught:
        await drained(stream, [])
    assert gone() is not None
    invoker.script = ()
    invoker.streams.clear()
    del stream, caught
    assert gone() is None
