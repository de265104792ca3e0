"""A caller that leaves, at every turn of its life, harms nobody."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.batching.fakes import (
    Stack,
    Stage,
    busy,
    call,
    failed,
    limited,
    line_to,
    nothing_left,
    start,
    tenfold,
    told,
    turns,
    until,
    values,
    with_lane,
)
from tritonasync.core.errors import ModelFailedError

pytestmark = pytest.mark.anyio

TURNS = range(10)
"""From before a caller's first step to after its last: a shared batch is told in the eighth."""

VICTIMS = [{0}, {1}, {3}, {1, 2}, {0, 1, 2, 3}]


@pytest.fixture(autouse=True)
async def clean():
    async with nothing_left():
        yield


def is_right(result, number):
    return result.outputs["OUT"].tolist() == [[number * 10]]


async def check(tasks, victims, line):
    """Each got its own answer or has left, and the line is as good as new."""
    for number, result in enumerate(await told(*tasks)):
        if isinstance(result, asyncio.CancelledError):
            assert number in victims
        else:
            assert is_right(result, number)
    await until(lambda: not line.statistics().batches_in_flight)
    numbers = line.statistics()
    assert (numbers.queued_rows, numbers.rows_in_flight) == (0, 0)
    for task in start(*[line.infer(call(number)) for number in range(3)]):
        assert await told(task)
    later = await told(*[line.infer(call(number)) for number in range(3)])
    assert all(map(is_right, later, range(3)))


def idle_steps(after, action):
    """Act after so many turns, by callbacks alone: nothing else is ready in between."""
    loop = asyncio.get_running_loop()
    if after:
        loop.call_soon(idle_steps, after - 1, action)
    else:
        action()


@pytest.mark.parametrize("turn", TURNS)
async def test_a_caller_that_carries_its_own_call(turn):
    carried_by = []
    stage = Stage(lambda sent: (carried_by.append(asyncio.current_task()), tenfold(sent))[1])
    line = line_to(stage, limited(2))
    full = call(*range(8))  # so that it is carried by its caller, whoever else is ready to run
    tasks = start(line.infer(full), line.infer(call(8)))
    idle_steps(turn, tasks[0].cancel)
    first, second = await told(*tasks)
    assert is_right(second, 8)
    if isinstance(first, asyncio.CancelledError):
        assert tasks[0] not in carried_by
    else:
        assert first.outputs["OUT"][:, 0].tolist() == [*range(0, 80, 10)]
    await check(start(line.infer(call(0))), set(), line)


async def test_a_caller_that_left_its_own_call_does_not_heap_up_requests():
    """Its place is free at once, though the server works on: the next calls go by the queue."""
    stage = Stage(hold=True)
    line = line_to(stage)
    (task,) = start(line.infer(call(*range(8))))
    await stage.until_calls(1)
    task.cancel()
    await told(task)
    carried_by = []
    stage.answer = lambda sent: (carried_by.append(asyncio.current_task()), tenfold(sent))[1]
    stage.hold = False
    (next_task,) = start(line.infer(call(1)))
    (result,) = await told(next_task)
    assert is_right(result, 1)
    assert next_task not in carried_by


@pytest.mark.parametrize("victims", VICTIMS, ids=str)
@pytest.mark.parametrize("turn", TURNS)
async def test_callers_that_share_a_batch(turn, victims):
    stage = Stage(turns=4)
    line = line_to(stage)
    tasks = start(*[line.infer(call(number)) for number in range(4)])
    idle_steps(turn, lambda: [tasks[number].cancel() for number in victims])
    await check(tasks, victims, line)


@pytest.mark.parametrize("victims", VICTIMS, ids=str)
@pytest.mark.parametrize("turn", TURNS)
async def test_callers_that_wait_for_a_place(turn, victims):
    stage = Stage()
    line = line_to(stage)
    first = await busy(line, stage)
    tasks = start(*[line.infer(call(number)) for number in range(4)])
    idle_steps(turn, lambda: [tasks[number].cancel() for number in victims])
    idle_steps(4, stage.open)
    await check(tasks, victims, line)
    assert is_right(await first, 900)


@pytest.mark.parametrize("victims", VICTIMS, ids=str)
@pytest.mark.parametrize("order", ["before", "after"])
async def test_callers_that_leave_in_the_very_turn_of_the_answer(order, victims):
    stage = Stage(hold=True)
    line = line_to(stage)
    tasks = start(*[line.infer(call(number)) for number in range(4)])
    await stage.until_calls(1)
    if order == "after":
        stage.open()
    for number in victims:
        tasks[number].cancel()
    stage.open()
    await check(tasks, victims, line)


@pytest.mark.parametrize("victims", VICTIMS, ids=str)
async def test_callers_that_leave_when_they_were_told_and_have_not_heard(victims):
    """The answer is in their futures, and they are to run in the next turn."""
    tasks = []

    def answer(sent):
        asyncio.get_running_loop().call_soon(lambda: [tasks[number].cancel() for number in victims])
        return tenfold(sent)

    line = line_to(Stage(answer))
    tasks += start(*[line.infer(call(number)) for number in range(4)])
    await check(tasks, victims, line)


@pytest.mark.parametrize("victims", [{0}, {1}, {2}, {1, 2}, {0, 1, 2, 3}], ids=str)
@pytest.mark.parametrize("turn", range(16))
async def test_callers_whose_batch_is_tried_by_halves(turn, victims):
    def answer(sent):
        if 1 in values(sent):
            raise failed()
        return tenfold(sent)

    line = line_to(Stage(answer))
    tasks = start(*[line.infer(call(number)) for number in range(4)])
    idle_steps(turn, lambda: [tasks[number].cancel() for number in victims])
    for number, result in enumerate(await told(*tasks)):
        if isinstance(result, asyncio.CancelledError):
            assert number in victims
        elif number == 1:
            assert isinstance(result, ModelFailedError)
        else:
            assert is_right(result, number)
    await until(lambda: not line.statistics().batches_in_flight)
    assert line.statistics().rows_in_flight == 0
    assert is_right((await told(line.infer(call(0))))[0], 0)


@pytest.mark.parametrize("error", [failed(), ValueError("no")], ids=["by halves", "at once"])
@pytest.mark.parametrize("victims", VICTIMS, ids=str)
@pytest.mark.parametrize("turn", TURNS)
async def test_callers_that_are_told_of_an_error(turn, victims, error):
    """Nobody may look at the error of one that left; asyncio must not complain of that."""

    def answer(sent):
        raise error

    line = line_to(Stage(answer))
    tasks = start(*[line.infer(call(number)) for number in range(4)])
    idle_steps(turn, lambda: [tasks[number].cancel() for number in victims])
    for number, result in enumerate(await told(*tasks)):
        left = isinstance(result, asyncio.CancelledError)
        assert number in victims if left else type(result) is type(error)
    await until(lambda: not line.statistics().batches_in_flight)


def item(number):
    return {"A": np.array([number], np.int64)}


@pytest.mark.parametrize("victims", VICTIMS, ids=str)
@pytest.mark.parametrize("turn", TURNS)
async def test_callers_of_single_items(turn, victims):
    stack = Stack(Stage())
    model = await with_lane(stack)
    (line,) = stack.batcher._lines.values()
    tasks = start(*[model.one(item(number)) for number in range(4)])
    idle_steps(turn, lambda: [tasks[number].cancel() for number in victims])
    for number, result in enumerate(await told(*tasks)):
        if isinstance(result, asyncio.CancelledError):
            assert number in victims
        else:
            assert result["OUT"].tolist() == [number * 10]
    await until(lambda: not line.statistics().batches_in_flight)
    assert line.statistics().rows_in_flight == 0
    results = await told(*[model.one(item(number)) for number in range(3)])
    assert [result["OUT"].tolist() for result in results] == [[0], [10], [20]]


@pytest.mark.parametrize("victims", [{0}, {1}, {0, 1, 2}], ids=str)
@pytest.mark.parametrize("turn", TURNS)
async def test_callers_of_single_items_of_which_one_goes_the_long_way(turn, victims):
    stack = Stack(Stage())
    model = await with_lane(stack)
    (line,) = stack.batcher._lines.values()
    items = [item(0), {"A": [1]}, item(2)]
    tasks = start(*map(model.one, items))
    idle_steps(turn, lambda: [tasks[number].cancel() for number in victims])
    for number, result in enumerate(await told(*tasks)):
        if isinstance(result, asyncio.CancelledError):
            assert number in victims
        else:
            assert result["OUT"].tolist() == [number * 10]
    await until(lambda: not line.statistics().batches_in_flight)
    assert (line.statistics().rows_in_flight, line.statistics().queued_rows) == (0, 0)


async def test_all_who_waited_left_and_nothing_is_sent_for_them():
    stage = Stage()
    line = line_to(stage)
    first = await busy(line, stage)
    tasks = start(*[line.infer(call(number)) for number in range(20)])
    await turns(2)
    for task in tasks:
        task.cancel()
    stage.open()
    await told(first, *tasks)
    assert stage.sent == [[900]]
    assert line.statistics().cancelled_rows == 20
    assert line.statistics().queued_rows == 0
