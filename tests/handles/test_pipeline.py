"""Stages one after the other: values, time, errors, cancelling."""

import asyncio
import gc
import math
import threading
import time
import weakref
from contextlib import suppress
from functools import partial

import anyio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.batching.fakes import nothing_left, until
from tests.handles.fakes import FakeCatalog, FakeInvoker, spec
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
)
from tritonasync.handles.flow.bulk import Mappable
from tritonasync.handles.flow.pipeline import Pipeline
from tritonasync.handles.generator import Generator
from tritonasync.handles.model import ModelHandle

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def clean():
    async with nothing_left():
        yield


class Handle(Mappable):
    """Adds one; keeps the time it was given, and how many were out at once."""

    def __init__(self, *, takes_s=None, fails=()):
        self.takes_s, self.fails = takes_s, set(fails)
        self.timeouts, self.begun, self.cancelled = [], [], []
        self.out = self.most = 0

    def __repr__(self):
        return "handle"

    async def one(self, item, /, *, timeout_s=None):
        self.timeouts.append(timeout_s)
        self.begun.append(item)
        self.out += 1
        self.most = max(self.most, self.out)
        try:
            await asyncio.sleep(0)
            if self.takes_s is not None:
                await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            self.out -= 1
        if item in self.fails:
            raise ModelFailedError(f"no {item}", code="INTERNAL", details="", model="net")
        return item + 1


async def twice(value):
    await asyncio.sleep(0)
    return value * 2


def upto(value):
    return range(value)


def in_which(value):
    return threading.current_thread() is threading.main_thread()


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [Handle(), lambda value: value + 1, Pipeline(Handle())])
async def test_a_stage_is_a_handle_a_function_or_a_pipeline(stage):
    pipeline = Pipeline(stage).then(twice)
    assert await pipeline.one(3) == 8
    assert await pipeline([1, 2, 3]) == [4, 6, 8]
    assert [result async for result in pipeline.map(range(100))] == [
        2 * (number + 1) for number in range(100)
    ]


async def test_each_runs_on_every_item_in_order():
    assert await Pipeline(upto).each(Handle()).one(5) == [1, 2, 3, 4, 5]
    assert await Pipeline(upto).each(twice).each(str).one(3) == ["0", "2", "4"]


async def test_no_items_give_an_empty_list():
    handle = Handle()
    assert await Pipeline(upto).each(handle).one(0) == []
    assert await Pipeline(handle)([]) == []
    assert handle.begun == []


async def test_the_input_goes_along():
    pipeline = Pipeline(Handle()).with_input().then(lambda pair: pair)
    assert await pipeline.one(3) == (3, 4)
    nested = (
        Pipeline(upto).with_input().then(Pipeline(lambda pair: pair[1]).each(twice).with_input())
    )
    assert await nested.one(2) == ((2, range(2)), [0, 2])


async def test_a_pipeline_is_never_changed():
    first = Pipeline(Handle())
    second = first.then(twice)
    assert (await first.one(1), await second.one(1)) == (2, 4)
    assert repr(second.each(upto).with_input()) == (
        "<Pipeline handle → twice → each upto → with its input>"
    )


async def test_functions_run_in_a_thread_if_told():
    assert await Pipeline(in_which).one(0) is True
    assert await Pipeline(in_which, in_thread=True).one(0) is False
    assert await Pipeline(upto).each(in_which, in_thread=True).one(2) == [False, False]


async def test_a_function_that_gives_something_to_await_is_awaited():
    assert await Pipeline(partial(twice)).one(2) == 4


@pytest.mark.parametrize("most", [1, 3])
async def test_no_more_items_are_out_at_once_than_told(most):
    handle = Handle()
    results = await Pipeline(upto).each(handle, max_in_flight=most).one(20)
    assert results == list(range(1, 21))
    assert handle.most == most
    handle = Handle()
    await Pipeline(handle)(range(20), max_in_flight=most)
    assert handle.most == most


async def test_as_many_are_out_at_once_as_fill_the_batches_of_the_largest_model():
    small, large = spec([("A", "FP32", (-1, 1))]), spec([("A", "FP32", (-1, 1))], max_batch_size=99)
    models = [
        ModelHandle("net", "", FakeInvoker(), FakeCatalog(each), timeout_s=5)
        for each in (small, large)
    ]
    pipeline = Pipeline(models[0]).then(twice).each(models[1])
    stream = pipeline.map([])
    assert [result async for result in stream] == []
    assert stream._run.ledger.max_in_flight == 4 * 99


# --- time -----------------------------------------------------------------------------------------


async def test_each_handle_has_what_those_before_it_left():
    slow, handle = Handle(takes_s=0.03), Handle()
    await Pipeline(slow).then(handle).one(1, timeout_s=5)
    (first,), (second,) = slow.timeouts, handle.timeouts
    assert 4.9 < first <= 5
    assert second <= first - 0.03


async def test_without_a_time_each_handle_has_its_own():
    handle = Handle()
    await Pipeline(handle).then(Pipeline(handle)).one(1)
    assert handle.timeouts == [None, None]
    await Pipeline(handle, timeout_s=7).then(twice).one(1)
    assert 6.9 < handle.timeouts[-1] <= 7


async def test_no_limit_at_all_goes_to_each_handle():
    handle = Handle()
    pipeline = Pipeline(handle, timeout_s=7).then(Pipeline(handle))
    await pipeline.one(1, timeout_s=math.inf)
    await pipeline([1], timeout_s=math.inf)
    await Pipeline(handle, timeout_s=math.inf).one(1)
    assert handle.timeouts == [math.inf] * 5


async def test_a_nested_pipeline_has_what_is_left():
    handle = Handle()
    await Pipeline(upto).each(Pipeline(handle)).one(2, timeout_s=5)
    assert all(4.9 < given <= 5 for given in handle.timeouts)


def sleeps(value):
    time.sleep(0.05)
    return value


async def forever(value):
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("pipeline", "name"),
    [
        (Pipeline(forever), "forever"),
        (Pipeline(sleeps).then(Handle()), "handle"),
        (Pipeline(sleeps).then(upto), "upto"),
        (Pipeline(sleeps, in_thread=True).then(upto, in_thread=True), "upto"),
    ],
)
async def test_time_that_runs_out_says_where(pipeline, name):
    with pytest.raises(DeadlineExceededError) as caught:
        await pipeline.one(1, timeout_s=0.02)
    assert str(caught.value) == f"pipeline: the time of 0.02 s ran out at {name}"
    (note,) = caught.value.__notes__
    assert note.endswith(f"of a pipeline: {name}; all stages together had 0.02 s")


async def test_the_time_of_several_items_is_one():
    handle = Handle(takes_s=0.03)
    with pytest.raises(DeadlineExceededError):
        await Pipeline(handle)(range(9), max_in_flight=1, timeout_s=0.05)
    assert len(handle.begun) <= 3


# --- errors ---------------------------------------------------------------------------------------


async def test_an_error_is_what_it_is_and_says_which_stage_and_item():
    handle = Handle(fails=[2])
    pipeline = Pipeline(upto).each(handle).then(str)
    with pytest.raises(ModelFailedError, match="no 2") as caught:
        await pipeline.one(4)
    assert caught.value.__notes__ == [
        "at item 2 (from 0) of 4",
        "in stage 2 of 3 of a pipeline: each handle",
    ]
    assert caught.value.model == "net"


async def test_an_error_of_one_of_several_says_which():
    with pytest.raises(ModelFailedError) as caught:
        await Pipeline(Handle(fails=[7])).with_input()([5, 6, 7])
    assert caught.value.__notes__ == [
        "in stage 1 of 1 of a pipeline: handle",
        "at item 2 (from 0) of 3",
    ]


async def test_the_others_are_left_and_have_ended_when_an_error_is_raised():
    handle = Handle(takes_s=5)

    async def fails(value):
        if value == 1:
            await until(lambda: len(handle.begun) == 2)
            raise KeyError(value)
        return await handle.one(value)

    with pytest.raises(KeyError):
        await Pipeline(upto).each(fails).one(3)
    assert sorted(handle.cancelled) == [0, 2]


async def test_when_two_fail_one_is_raised_and_no_group():
    async def fails(value):
        await asyncio.sleep(0)
        raise KeyError(value)

    with pytest.raises(KeyError) as caught:
        await Pipeline(upto).each(fails).one(5)
    assert caught.value.args == (0,)


@pytest.mark.parametrize("value", [3, "abc", {"A": 1}, None, np.zeros(())])
async def test_what_each_cannot_go_over_is_refused(value):
    with pytest.raises(InvalidInputError) as caught:
        await Pipeline(lambda _: value).each(twice).one(0)
    kind = type(value).__name__
    assert str(caught.value) == (
        f"pipeline, each twice: expected an iterable of items from the stage before, got {kind}"
    )


async def test_wrong_stages_and_options_are_refused_at_once():
    pipeline = Pipeline(upto)
    with pytest.raises(ConfigurationError, match=r"a stage with one\(item\), or a function"):
        pipeline.then(3)
    generator = Generator("tokens", "", None, FakeCatalog(spec([])), None, timeout_s=1)
    with pytest.raises(
        ConfigurationError, match=r"generator 'tokens'; .* \.then\(generator.text\)"
    ):
        pipeline.then(generator)
    for awaited in (twice, Handle()):
        with pytest.raises(ConfigurationError, match="is awaited: leave it out"):
            pipeline.then(awaited, in_thread=True)
    with pytest.raises(ConfigurationError, match="max_in_flight is a whole number"):
        pipeline.each(twice, max_in_flight=0)
    with pytest.raises(ConfigurationError, match="max_in_flight is a whole number"):
        await pipeline([1], max_in_flight=0)
    with pytest.raises(ConfigurationError, match="in_thread is True or False"):
        pipeline.then(upto, in_thread="yes")
    with pytest.raises(ConfigurationError, match="timeout_s"):
        Pipeline(upto, timeout_s=-1)
    with pytest.raises(InvalidInputError, match=r"got int; a single item goes to one"):
        await pipeline(3)


async def test_what_is_awaited_in_a_thread_is_refused_also_if_that_shows_only_then():
    class Awaited:
        async def __call__(self, value):
            raise AssertionError

        def __repr__(self):
            return "awaited"

    with pytest.raises(ConfigurationError) as caught:
        await Pipeline(Awaited(), in_thread=True).one(1)
    assert str(caught.value) == (
        "pipeline: in_thread is for plain functions, and awaited is awaited: leave it out"
    )


async def test_an_error_holds_nothing_of_the_call():
    class Value:
        pass

    async def fails(value):
        await asyncio.sleep(0)
        raise KeyError

    value = Value()
    gone = weakref.ref(value)
    gc.disable()
    try:
        with suppress(KeyError):
            await Pipeline(lambda value: [value] * 3).each(fails).one(value)
        del value
        for _ in range(5):
            await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


# --- cancelling -----------------------------------------------------------------------------------


async def test_cancelled_at_any_turn_it_leaves_nothing():
    for turn in range(40):
        handle = Handle()
        pipeline = Pipeline(upto).each(handle, max_in_flight=3).then(twice).each(Pipeline(handle))
        task = asyncio.create_task(pipeline([3, 2, 1], max_in_flight=2))
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert handle.out == 0  # all have ended by now
        else:
            assert turn > 10


async def test_a_cancelled_scope_leaves_nothing():
    handle = Handle(takes_s=5)
    with anyio.move_on_after(0.01):
        await Pipeline(upto).each(handle).one(4)
    assert sorted(handle.cancelled) == [0, 1, 2, 3]


async def test_a_stage_whose_task_is_cancelled_by_others_is_not_taken_for_done():
    async def cancels(value):
        if value == 1:
            asyncio.current_task().cancel()
        await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await Pipeline(upto).each(cancels).one(3)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 6), max_size=8),
    st.integers(1, 4),
    st.lists(st.integers(0, 4), min_size=7, max_size=7),
)
async def test_results_are_in_order_whatever_takes_how_long(sizes, most, turns):
    async def takes(value):
        for _ in range(turns[value]):
            await asyncio.sleep(0)
        return -value

    pipeline = Pipeline(upto).each(takes, max_in_flight=most)
    results = await pipeline(sizes, max_in_flight=most)
    assert results == [[-value for value in range(size)] for size in sizes]
