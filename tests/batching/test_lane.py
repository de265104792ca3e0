"""The short way of single items: the same answers as the long way, and the same refusals."""

from __future__ import annotations

import asyncio
import math
import threading

import numpy as np
import pytest

from tests.batching.fakes import (
    A,
    Catalog,
    Stack,
    Stage,
    call,
    failed,
    limited,
    nothing_left,
    spec,
    start,
    told,
    turns,
    values,
    whole,
    with_lane,
)
from tritonasync.core.deadline import NEVER
from tritonasync.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
    PoolClosedError,
    ProtocolError,
    QueueFullError,
    WrongContextError,
)
from tritonasync.core.values import Reply, TensorSpec

pytestmark = pytest.mark.anyio

B = TensorSpec("B", "FP32", (-1, 2))
TEXT = TensorSpec("TEXT", "BYTES", (-1, 1))
FREE = TensorSpec("A", "INT64", (-1, -1))


@pytest.fixture(autouse=True)
async def clean():
    async with nothing_left():
        yield


def item(number, dtype=np.int64):
    return {"A": np.array([number], dtype)}


def firsts(results):
    return [result["OUT"].tolist() for result in results]


async def busy(stack):
    """Have the one place in flight taken by a full batch, until the stage is opened."""
    stack.stage.hold = True
    (task,) = start(stack.gate.infer(call(*range(8))))
    await stack.stage.until_calls(1)
    return task


async def test_items_of_one_turn_share_a_batch():
    stack = Stack(Stage())
    model = await with_lane(stack)
    results = await told(*[model.one(item(number)) for number in range(8)])
    assert firsts(results) == [[number * 10] for number in range(8)]
    assert stack.stage.sent == [[*range(8)]]
    (sent,) = stack.stage.calls
    assert (sent.rows, sent.inputs[0].shape, sent.deadline) == (8, (8, 1), NEVER)


async def test_no_item_is_copied_on_its_way():
    stack = Stack(Stage())
    model = await with_lane(stack)
    items = [item(number) for number in range(4)]
    await told(*map(model.one, items))
    parts = stack.stage.calls[0].inputs[0].parts
    assert all(part is one["A"] for part, one in zip(parts, items, strict=True))


async def test_more_items_than_a_batch_holds_are_answered_in_several():
    stack = Stack(Stage())
    model = await with_lane(stack)
    results = await told(*[model.one(item(number)) for number in range(21)])
    assert firsts(results) == [[number * 10] for number in range(21)]
    assert sorted(map(len, stack.stage.sent)) == [5, 8, 8]


async def test_items_by_name_and_in_a_mapping_share_a_batch():
    stack = Stack(Stage())
    model = await with_lane(stack)
    results = await told(model.one(item(1)), model.one(**item(2)), model.one(A=np.array([3])))
    assert firsts(results) == [[10], [20], [30]]
    assert stack.stage.sent == [[1, 2, 3]]


async def test_a_lone_item_is_carried_by_its_caller():
    carried_by = []
    stage = Stage()
    stack = Stack(stage)
    model = await with_lane(stack)
    answer = stage.answer
    stage.answer = lambda sent: (carried_by.append(asyncio.current_task()), answer(sent))[1]
    result = await model.one(item(5))
    assert result["OUT"].tolist() == [50]
    assert carried_by == [asyncio.current_task()]


async def test_two_inputs_of_an_item_stay_together():
    def answer(sent):
        a, b = sent.inputs
        assert (a.name, b.name) == ("A", "B")
        return Reply("net", "1", {"OUT": whole(a) + whole(b)})

    stack = Stack(Stage(answer), catalog=Catalog(spec(inputs=(A, B))))
    model = stack.model()

    def pair(number):
        b = np.array([number, number + 0.5], np.float32)
        return {"A": np.array([number * 100]), "B": b}

    await told(model.one(pair(0)))
    assert model._lanes.ways
    backwards = dict(reversed(pair(4).items()))
    wrong = {**pair(5), "B": np.zeros(3, np.float32)}
    arrays = [pair(1), pair(2), {"A": pair(3)["A"]}, backwards, wrong, pair(6)]
    results = await told(*map(model.one, arrays))
    assert [type(results[index]) for index in (2, 4)] == [InvalidInputError] * 2
    right = [(number, results[number - 1]["OUT"].tolist()) for number in (1, 2, 4, 6)]
    assert all(got == [number * 101, number * 101 + 0.5] for number, got in right)


async def test_several_handles_share_batches():
    stack = Stack(Stage())
    models = [await with_lane(stack) for _ in range(4)]
    results = await told(*[models[number % 4].one(item(number)) for number in range(8)])
    assert firsts(results) == [[number * 10] for number in range(8)]
    assert sorted(stack.stage.sent[0]) == [*range(8)]
    assert len(stack.stage.sent) == 1


async def test_items_and_calls_are_sent_in_the_order_in_which_they_came():
    stack = Stack(Stage())
    model = await with_lane(stack)
    calls = [
        model.one(item(0)),
        model.one(item(1)),
        model({"A": np.array([[2], [3]])}),
        model.one(item(4)),
        model.one(item(5), timeout_s=60.0),
        model.one(item(6)),
    ]
    results = await told(*calls)
    assert stack.stage.sent == [[*range(7)]]
    assert results[2]["OUT"].tolist() == [[20], [30]]
    assert firsts(results[3:]) == [[40], [50], [60]]


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 5.0},
        {"outputs": ["OUT"]},
        {"parameters": {"p": 1}},
        {"request_id": "mine"},
        {"priority": 1},
        {"queue_timeout_us": 5},
    ],
    ids=str,
)
async def test_an_item_with_options_is_sent_with_them(options):
    stack = Stack(Stage())
    model = await with_lane(stack)
    results = await told(model.one(item(1)), model.one(item(2), **options), model.one(item(3)))
    assert firsts(results) == [[10], [20], [30]]
    if "timeout_s" not in options:
        assert [1, 3] in stack.stage.sent
        (sent,) = [sent for sent in stack.stage.calls if values(sent) == [2]]
        assert sent.outputs or sent.parameters or sent.request_id


async def test_models_with_strings_or_free_axes_have_no_trap_on_the_short_way():
    text = Stack(Stage(), catalog=Catalog(spec(inputs=(TEXT,)))).model()
    results = await told(*[text.one(TEXT=np.array([word], object)) for word in ("a", "b")])
    assert not text._lanes.ways
    assert len(results) == 2
    free = Stack(Stage(), limited(4), Catalog(spec(inputs=(FREE,)))).model()
    sizes = [1, 2, 1, 3, 2]
    results = await told(*[free.one(A=np.full(size, size)) for size in sizes])
    assert [len(result["OUT"]) for result in results] == sizes


async def test_a_failed_row_is_that_of_the_item_that_caused_it():
    stack = Stack(Stage())
    model = await with_lane(stack)
    answer = stack.stage.answer

    def refuse(sent):
        if 3 in values(sent):
            raise failed()
        return answer(sent)

    stack.stage.answer = refuse
    results = await told(*[model.one(item(number)) for number in range(6)])
    assert isinstance(results.pop(3), ModelFailedError)
    assert firsts(results) == [[0], [10], [20], [40], [50]]


@pytest.mark.parametrize("shape", [(3, 1), (), (0, 1)], ids=str)
@pytest.mark.parametrize("count", [1, 2])
async def test_a_reply_of_other_rows_is_refused_as_without_batching(shape, count):
    stack = Stack(Stage())
    model = await with_lane(stack)
    first = await busy(stack)
    tasks = start(*[model.one(item(number)) for number in range(count)])
    await turns(2)
    stack.stage.release()
    await told(first)
    stack.stage.answer = lambda sent: Reply("net", "1", {"OUT": np.zeros(shape)})
    stack.stage.open()
    assert [type(result) for result in await told(*tasks)] == [ProtocolError] * count


async def test_items_whose_time_is_up_are_told_so():
    stack = Stack(Stage())
    model = await with_lane(stack, timeout_s=0.004)
    first = await busy(stack)
    errors = await told(*[model.one(item(number)) for number in range(3)])
    assert [type(error) for error in errors] == [DeadlineExceededError] * 3
    assert [error.stage for error in errors] == ["queue"] * 3
    assert len({id(error) for error in errors}) == 3
    stack.stage.open()
    await told(first)
    assert len(stack.stage.sent) == 1


async def test_items_beyond_the_bound_are_refused():
    stack = Stack(Stage(), limited(max_queued_rows=8))
    model = await with_lane(stack)
    first = await busy(stack)
    tasks = start(*[model.one(item(number)) for number in range(12)])
    await turns(3)
    stack.stage.open()
    _, *results = await told(first, *tasks)
    assert firsts(results[:8]) == [[number * 10] for number in range(8)]
    assert [type(result) for result in results[8:]] == [QueueFullError] * 4


async def test_items_beyond_the_bound_are_refused_whichever_handle_they_come_by():
    stack = Stack(Stage(), limited(max_queued_rows=4, max_rows=4))
    models = [await with_lane(stack, timeout_s=seconds) for seconds in (math.inf, 60.0, 61.0)]
    first = start(stack.gate.infer(call(*range(4))))
    stack.stage.hold = True
    await stack.stage.until_calls(1)
    tasks = start(*[models[number % 3].one(item(number)) for number in range(9)])
    await turns(3)
    (line,) = stack.batcher.statistics()
    stack.stage.open()
    results = await told(*first, *tasks)
    assert line.queued_rows <= 4
    refused = [result for result in results if isinstance(result, QueueFullError)]
    assert len(refused) == line.rejected_rows == 5


async def test_another_event_loop_is_refused():
    stack = Stack(Stage())
    model = await with_lane(stack)
    errors = []

    async def elsewhere():
        errors.extend(await told(*[model.one(item(number)) for number in range(2)]))

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.001)
    thread.join()
    assert [type(error) for error in errors] == [WrongContextError] * 2
    assert firsts(await told(model.one(item(1)), model.one(item(2)))) == [[10], [20]]


async def test_items_that_wait_for_lone_items_at_the_end_are_answered():
    stack = Stack(Stage())
    model = await with_lane(stack)
    stack.stage.hold = True

    async def close():
        await stack.stage.came.wait()  # the first went alone: nobody else was there to run
        waiting = start(model.one(item(2)), model.one(item(3)))
        await turns(3)
        stack.batcher.hasten()
        await stack.gate.close(NEVER)
        asyncio.get_running_loop().call_later(0.002, stack.stage.open)
        await stack.batcher.drain(NEVER)
        return await told(*waiting)

    closing = asyncio.ensure_future(close())
    await turns(1)
    first = await model.one(item(1))
    assert firsts([first, *await closing]) == [[10], [20], [30]]


async def test_items_that_came_before_the_end_are_answered_and_later_ones_refused():
    stack = Stack(Stage())
    model = await with_lane(stack)
    tasks = start(*[model.one(item(number)) for number in range(20)])
    await turns(1)
    stack.batcher.hasten()
    (closing,) = start(stack.gate.close(NEVER))
    await turns(1)
    late = await told(model.one(item(1)), model.one(item(2)))
    assert [type(error) for error in late] == [PoolClosedError] * 2
    await told(closing, stack.batcher.drain(NEVER))
    assert firsts(await told(*tasks)) == [[number * 10] for number in range(20)]
    await stack.batcher.aclose()


async def test_an_item_that_comes_after_closing_began_is_refused_even_in_the_same_turn():
    stack = Stack(Stage())
    model = await with_lane(stack)

    async def close():
        stack.batcher.hasten()
        await stack.gate.close(NEVER)
        await stack.batcher.drain(NEVER)

    results = await told(model.one(item(1)), model.one(item(2)), close(), model.one(item(3)))
    assert firsts(results[:2]) == [[10], [20]]
    assert isinstance(results[3], PoolClosedError)
