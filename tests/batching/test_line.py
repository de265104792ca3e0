"""A model's queue: deadlines, the bound of what waits, the numbers, the end."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.batching.fakes import (
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
    values,
)
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import DeadlineExceededError, PoolClosedError, QueueFullError

pytestmark = pytest.mark.anyio

PASSED = Deadline(time.monotonic() - 1.0, 0.5)


@pytest.fixture(autouse=True)
async def clean():
    async with nothing_left():
        yield


def answers(replies):
    return [reply.outputs["OUT"][:, 0].tolist() for reply in replies]


def soon(seconds=0.02):
    return Deadline.after(seconds)


# --- deadlines ------------------------------------------------------------------------------------


async def test_what_comes_too_late_is_not_sent_and_harms_nobody():
    stage = Stage()
    line = line_to(stage)
    calls = [call(0), call(1, 2, deadline=PASSED), call(3)]
    first, late, last = await told(*map(line.infer, calls))
    assert isinstance(late, DeadlineExceededError)
    assert (late.stage, late.timeout_s, late.model) == ("queue", 0.5, "net")
    assert answers([first, last]) == [[0], [30]]
    assert stage.sent == [[0, 3]]
    assert line.statistics().expired_rows == 2


async def test_what_comes_too_late_is_told_so_even_where_there_is_no_room():
    stage = Stage()
    line = line_to(stage, limited(max_queued_rows=1))
    first = await busy(line, stage)
    waiting = start(line.infer(call(1)))
    await turns(2)
    (late,) = await told(line.infer(call(2, deadline=PASSED)))
    assert isinstance(late, DeadlineExceededError)
    stage.open()
    await told(first, *waiting)


async def test_a_lone_call_that_comes_too_late_is_not_sent():
    stage = Stage()
    line = line_to(stage)
    (late,) = await told(line.infer(call(1, deadline=PASSED)))
    assert stage.sent == []
    assert isinstance(late, DeadlineExceededError)
    assert late.stage == "queue"
    assert line.statistics().expired_rows == 1


async def test_a_row_whose_time_is_up_in_the_queue_is_told_at_once_and_never_sent():
    stage = Stage()
    line = line_to(stage)
    first = await busy(line, stage)
    before, late, after = start(*map(line.infer, [call(1), call(2, deadline=soon()), call(3)]))
    (error,) = await told(late)  # while the others wait
    assert isinstance(error, DeadlineExceededError)
    assert error.stage == "queue"
    assert line.statistics().queued_rows == 2
    stage.open()
    assert answers(await told(first, before, after)) == [[9000], [10], [30]]
    assert stage.sent == [[900], [1, 3]]


async def test_a_row_whose_time_is_up_is_not_sent_though_nobody_could_tell_it_yet():
    """The loop was held up: the batch comes back in the same turn as the timer is due."""
    stage = Stage()
    line = line_to(stage)
    first = await busy(line, stage)
    late, good = start(line.infer(call(1, deadline=soon(0.001))), line.infer(call(2)))
    await turns(2)
    stage.open()
    held_up(0.002)
    _, error, reply = await told(first, late, good)
    assert isinstance(error, DeadlineExceededError)
    assert answers([reply]) == [[20]]
    assert stage.sent == [[900], [2]]


def held_up(seconds):
    time.sleep(seconds)


async def test_a_row_whose_time_is_up_in_flight_leaves_and_the_batch_goes_on():
    stage = Stage(hold=True)
    line = line_to(stage)
    stage.name = "connect"
    late, good = start(line.infer(call(1, deadline=soon(0.1))), line.infer(call(2)))
    (error,) = await told(late)
    assert isinstance(error, DeadlineExceededError)
    assert error.stage == "connect"
    assert line.statistics().batches_in_flight == 1
    stage.open()
    assert answers(await told(good)) == [[20]]
    assert stage.sent == [[1, 2]]
    assert line.statistics().expired_rows == 0  # of those that were dropped unsent


async def test_each_leaves_at_its_own_time():
    stage = Stage(hold=True)
    line = line_to(stage)
    deadlines = [soon(0.02 + 0.004 * number) for number in (2, 0, 1)]
    tasks = start(*[line.infer(call(1, deadline=deadline)) for deadline in deadlines])
    at = {}
    for task in tasks:
        task.add_done_callback(lambda task: at.setdefault(task, time.monotonic()))
    errors = await told(*tasks)
    assert [error.stage for error in errors] == ["server"] * 3
    assert all(at[task] >= deadline.at for task, deadline in zip(tasks, deadlines, strict=True))
    stage.open()


async def test_a_batch_keeps_its_place_for_a_while_beyond_its_last_deadline():
    stage = Stage()
    line = line_to(stage)
    deadlines = [Deadline.after(seconds) for seconds in (1.0, 3.0, 2.0)]
    await told(*[line.infer(call(1, deadline=deadline)) for deadline in deadlines])
    assert stage.calls[0].deadline.at > deadlines[1].at
    await told(line.infer(call(1, deadline=deadlines[0])), line.infer(call(2)))
    assert stage.calls[1].deadline is NEVER


# --- the bound ------------------------------------------------------------------------------------


async def test_a_call_beyond_the_bound_is_refused_with_the_numbers():
    stage = Stage()
    line = line_to(stage, limited(max_queued_rows=5))
    first = await busy(line, stage)
    waiting = start(line.infer(call(0, 1, 2)))
    await turns(2)
    (error,) = await told(line.infer(call(3, 4, 5)))
    assert isinstance(error, QueueFullError)
    assert "3 rows wait for a batch, and 3 more are over the limit of 5" in str(error)
    assert "max_queued_rows" in str(error)
    assert (error.code, error.model, error.retriable) == ("RESOURCE_EXHAUSTED", "net", True)
    waiting += start(line.infer(call(6, 7)))
    await turns(2)
    stage.open()
    assert answers(await told(first, *waiting)) == [[9000], [0, 10, 20], [60, 70]]
    assert line.statistics().rejected_rows == 3


async def test_a_call_that_the_queue_could_never_hold_is_refused_as_such():
    stage = Stage()
    line = line_to(stage, limited(max_queued_rows=2))
    first = await busy(line, stage)
    (error,) = await told(line.infer(call(1, 2, 3)))
    assert isinstance(error, QueueFullError)
    assert "a call of 3 rows is more than the queue may hold, 2" in str(error)
    stage.open()
    await told(first)


async def test_those_who_left_make_room():
    stage = Stage()
    line = line_to(stage, limited(max_queued_rows=2))
    first = await busy(line, stage)
    gone, kept = start(line.infer(call(1)), line.infer(call(2)))
    await turns(2)
    gone.cancel()
    await turns(1)
    (more,) = start(line.infer(call(3)))
    await turns(2)
    stage.open()
    assert answers(await told(first, kept, more)) == [[9000], [20], [30]]
    assert line.statistics().cancelled_rows == 1


async def test_those_whose_time_is_up_make_room():
    stage = Stage()
    line = line_to(stage, limited(max_queued_rows=2))
    first = await busy(line, stage)
    late, kept = start(line.infer(call(1, deadline=soon(0.001))), line.infer(call(2)))
    await turns(2)
    held_up(0.002)  # the timer has had no turn yet
    (more,) = start(line.infer(call(3)))
    _, error = await told(turns(1), late)
    assert isinstance(error, DeadlineExceededError)
    stage.open()
    assert answers(await told(first, kept, more)) == [[9000], [20], [30]]


# --- numbers --------------------------------------------------------------------------------------


async def test_the_numbers_of_calls_and_batches_add_up():
    stage = Stage()
    line = line_to(stage, limited(max_queued_rows=8))
    await line.infer(call(1))
    first = await busy(line, stage)
    waiting = start(*[line.infer(call(number)) for number in range(5)])
    gone, late = start(line.infer(call(7)), line.infer(call(8, deadline=soon())))
    await turns(2)
    await told(line.infer(call(*range(8))))
    gone.cancel()
    await told(late)
    during = line.statistics()
    # The one who left counts until its row's turn comes.
    assert (during.queued_rows, during.rows_in_flight, during.batches_in_flight) == (6, 1, 1)
    stage.open()
    await told(first, *waiting)
    after = line.statistics()
    assert (after.model, after.version) == ("net", "")
    assert (after.batches, after.rows, after.mean_rows) == (3, 7, 7 / 3)
    assert dict(after.batch_rows) == {1: 2, 8: 1}
    assert (after.queued_rows, after.rows_in_flight, after.batches_in_flight) == (0, 0, 0)
    assert (after.cancelled_rows, after.expired_rows, after.rejected_rows) == (1, 1, 8)
    assert after.inflight_limit == 1
    assert after.queue.count == 7
    assert after.queue.total_s > 0.0


async def test_rows_that_are_tried_again_have_left_the_queue_once():
    def answer(sent):
        if 3 in values(sent):
            raise failed()
        return tenfold(sent)

    line = line_to(Stage(answer))
    await told(*[line.infer(call(number)) for number in range(4)])
    numbers = line.statistics()
    assert numbers.halved_batches == 2
    assert (numbers.batches, numbers.rows_in_flight) == (5, 0)
    assert numbers.queue.count == 4


@pytest.mark.parametrize(
    ("rows", "bound"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)], ids=str
)
async def test_batches_are_counted_by_the_power_of_two_that_holds_them(rows, bound):
    line = line_to(Stage())
    await told(line.infer(call(*range(rows))))
    assert dict(line.statistics().batch_rows) == {bound: 1}


# --- the end --------------------------------------------------------------------------------------


async def test_what_waits_at_the_end_is_sent():
    stage = Stage()
    line = line_to(stage)
    tasks = start(*[line.infer(call(number)) for number in range(30)])
    await turns(3)
    line.hasten()
    await line.drain(NEVER)
    await line.aclose()
    assert answers(await told(*tasks)) == [[number * 10] for number in range(30)]


async def test_what_lingers_at_the_end_is_sent_at_once():
    stage = Stage()
    line = line_to(stage, limited(linger_s=60.0))
    tasks = start(line.infer(call(1)), line.infer(call(2)))
    await turns(3)
    assert stage.sent == []
    line.hasten()
    await line.drain(NEVER)
    assert answers(await told(*tasks)) == [[10], [20]]
    await line.aclose()


async def test_what_waits_when_the_time_is_over_is_told_so():
    stage = Stage()
    line = line_to(stage)
    out = start(line.infer(call(1)), line.infer(call(2)))
    stage.hold = True
    await stage.until_calls(1)
    waiting = start(*[line.infer(call(number)) for number in range(3)])
    await turns(2)
    line.hasten()
    await line.drain(Deadline.after(0.002))
    errors = await told(*waiting)
    assert [type(error) for error in errors] == [PoolClosedError] * 3
    assert len({id(error) for error in errors}) == 3
    assert "nothing was sent" in str(errors[0])
    stage.open()
    await line.aclose()
    assert answers(await told(*out)) == [[10], [20]]
    assert stage.sent == [[1, 2]]


async def test_what_waits_for_a_call_that_its_caller_carries_is_sent_before_the_deadline():
    stage = Stage(hold=True)
    line = line_to(stage)
    first = start(line.infer(call(*range(8))))  # a full batch, so that its caller carries it
    await stage.until_calls(1)
    waiting = start(line.infer(call(8)))
    await turns(2)
    line.hasten()
    end = start(line.drain(Deadline.after(1.0)))
    await turns(3)
    stage.open()
    assert answers(await told(*first, *waiting)) == [[*range(0, 80, 10)], [80]]
    await told(*end)


async def test_no_batch_is_left_at_the_end_though_a_caller_came_after_the_deadline():
    """One that was let in before closing began, and asked for the signature meanwhile."""
    stage = Stage(hold=True)
    line = line_to(stage)
    out = start(line.infer(call(1)), line.infer(call(2)))
    await stage.until_calls(1)
    line.hasten()
    await line.drain(PASSED)
    straggler = start(line.infer(call(3)))
    await turns(2)
    stage.open()  # as when the stage below ends all calls
    await line.aclose()
    assert line.statistics().batches_in_flight == 0
    assert len(await told(*out, *straggler)) == 3


async def test_an_idle_line_ends_at_once():
    line = line_to(Stage())
    line.hasten()
    await line.drain(NEVER)
    await line.aclose()


async def test_nobody_waits_for_ever_for_a_batch_that_could_not_be_carried():
    loop = asyncio.get_running_loop()
    line = line_to(Stage())
    tasks = start(*[line.infer(call(n, deadline=Deadline.after(5))) for n in range(3)])
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context["exception"]))

    def refuse(*args, **options):
        raise RuntimeError("no more tasks")

    loop.set_task_factory(refuse)
    try:
        await asyncio.wait(tasks, timeout=1)
    finally:
        loop.set_task_factory(None)
        loop.set_exception_handler(None)
    errors = await told(*tasks)
    assert [type(error) for error in errors] == [PoolClosedError] * 3
    assert "no more tasks" in str(errors[0])
    assert [str(error) for error in complaints] == ["no more tasks"]
    assert line.statistics().batches_in_flight == 0
    assert not any(isinstance(error, DeadlineExceededError) for error in errors)
