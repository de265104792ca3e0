"""A batch that fails as one row can make it fail: exactly the bad rows fail."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.batching.fakes import (
    Catalog,
    Stage,
    busy,
    call,
    failed,
    limited,
    line_to,
    nothing_left,
    spec,
    start,
    tenfold,
    told,
    turns,
    until,
    values,
)
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidInputError,
    InvalidRequestError,
    MessageTooLargeError,
    ModelFailedError,
    ModelUnhealthyError,
    QueueFullError,
)

pytestmark = pytest.mark.anyio


def refusing(bad, error=failed):
    """A model that fails for these rows."""

    def answer(sent):
        culprits = bad & set(values(sent))
        if culprits:
            raise error(f"bad: {sorted(culprits)}")
        return tenfold(sent)

    return answer


async def outcome(counts, bad):
    """Send calls of so many rows in one batch, the bad ones with a bad row; check everything."""
    async with nothing_left():
        calls, culprits, first = [], set(), 0
        for index, rows in enumerate(counts):
            calls.append(call(*range(first, first + rows)))
            if index in bad:
                culprits.add(first + rows - 1)
            first += rows
        stage = Stage(refusing(culprits))
        line = line_to(stage, limited(), Catalog(spec(64)))
        results = await told(*map(line.infer, calls))
        for index, (sent, got) in enumerate(zip(calls, results, strict=True)):
            own = values(sent)
            if index in bad:
                assert isinstance(got, ModelFailedError)
                assert str(got) == f"bad: [{own[-1]}]"
            else:
                assert got.outputs["OUT"][:, 0].tolist() == [value * 10 for value in own]
        return stage, line.statistics()


SUBSETS = list(product([False, True], repeat=5))


@pytest.mark.parametrize("bad", SUBSETS, ids=lambda bad: "".join("-x"[one] for one in bad))
async def test_exactly_the_bad_rows_fail_wherever_they_are(bad):
    stage, numbers = await outcome([1] * 5, {index for index in range(5) if bad[index]})
    assert stage.sent[0] == [0, 1, 2, 3, 4]
    assert len(stage.sent) <= 2 * 5 - 1
    assert numbers.halved_batches == sum(
        1 for rows in stage.sent if len(rows) > 1 and any(bad[row] for row in rows)
    )
    assert numbers.batches == len(stage.sent)
    assert (numbers.rows_in_flight, numbers.batches_in_flight, numbers.queued_rows) == (0, 0, 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=8), st.data())
def test_calls_of_several_rows_fail_whole_and_alone(counts, data):
    bad = data.draw(st.sets(st.integers(0, len(counts) - 1)))
    stage, _ = asyncio.run(outcome(counts, bad))
    assert len(stage.sent) <= 2 * len(counts) - 1
    if not bad:
        assert len(stage.sent) == 1


async def test_the_good_rows_of_one_bad_one_take_few_requests():
    stage, _ = await outcome([1] * 8, {5})
    assert stage.sent == [[*range(8)], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [6, 7]]


def server_error(kind):
    return lambda text: kind(text, code="UNKNOWN", details=text, model="net")


@pytest.mark.parametrize(
    "error",
    [InvalidInputError, MessageTooLargeError, server_error(InvalidRequestError), failed],
    ids=["input", "size", "request", "model"],
)
async def test_what_one_row_can_cause_is_tried_by_halves(error):
    stage = Stage(refusing({2}, error))
    line = line_to(stage)
    results = await told(*[line.infer(call(number)) for number in range(4)])
    assert [isinstance(result, Exception) for result in results] == [False, False, True, False]
    assert type(results[2]) is type(error("x"))


@pytest.mark.parametrize(
    "error",
    [
        server_error(ModelUnhealthyError),
        server_error(AccessDeniedError),
        server_error(QueueFullError),
        ConnectionLostError,
        ValueError,
    ],
    ids=["unhealthy", "denied", "full", "lost", "value"],
)
async def test_what_no_row_can_cause_is_told_to_all_at_once(error):
    stage = Stage(refusing({2}, error))
    line = line_to(stage)
    results = await told(*[line.infer(call(number)) for number in range(4)])
    assert stage.sent == [[0, 1, 2, 3]]
    assert [type(result) for result in results] == [type(error("x"))] * 4
    assert len({id(result) for result in results}) == 4
    assert line.statistics().halved_batches == 0


async def test_a_half_that_fails_for_another_reason_harms_the_other_half_not():
    def answer(sent):
        rows = values(sent)
        if len(rows) == 4:
            raise failed()
        if 0 in rows:
            raise ConnectionLostError("gone")
        return tenfold(sent)

    line = line_to(Stage(answer))
    results = await told(*[line.infer(call(number)) for number in range(4)])
    assert [type(result) for result in results[:2]] == [ConnectionLostError] * 2
    assert [result.outputs["OUT"].tolist() for result in results[2:]] == [[[20]], [[30]]]


async def test_a_call_of_its_own_is_not_tried_again():
    stage = Stage(refusing({1}))
    (error,) = await told(line_to(stage).infer(call(0, 1, 2)))
    assert isinstance(error, ModelFailedError)
    assert len(stage.calls) == 1


async def test_each_bad_row_has_an_error_of_its_own():
    error = failed()

    def answer(sent):
        raise error from KeyError("cause")

    line = line_to(Stage(answer))
    errors = await told(*[line.infer(call(number)) for number in range(4)])
    assert len({id(one) for one in (*errors, error)}) == 5
    assert [repr(one.__cause__) for one in errors] == ["KeyError('cause')"] * 4


async def test_who_left_before_the_failure_is_not_tried_again():
    stage = Stage(refusing({3}), hold=True)
    line = line_to(stage)
    async with nothing_left():
        tasks = start(*[line.infer(call(number)) for number in range(4)])
        await stage.until_calls(1)
        for index in (0, 1, 2):
            tasks[index].cancel()
        await turns(1)
        stage.open()
        results = await told(*tasks)
    assert isinstance(results[3], ModelFailedError)
    assert stage.sent == [[0, 1, 2, 3], [3]]


async def test_who_leaves_while_the_other_half_is_tried_is_not_sent_again():
    stage = Stage(refusing({0}), hold=True)
    line = line_to(stage)
    async with nothing_left():
        tasks = start(*[line.infer(call(number)) for number in range(4)])
        await stage.until_calls(1)
        stage.release()
        await stage.until_calls(2)
        tasks[2].cancel()
        tasks[3].cancel()
        await turns(1)
        stage.open()
        first, second, *_ = await told(*tasks)
        await until(lambda: not line.statistics().batches_in_flight)
    assert isinstance(first, ModelFailedError)
    assert second.outputs["OUT"].tolist() == [[10]]
    assert stage.sent == [[0, 1, 2, 3], [0, 1], [0], [1]]


async def test_whose_time_is_up_while_halves_are_tried_is_told_and_not_sent_again():
    stage = Stage(refusing({0}), hold=True)
    line = line_to(stage)
    async with nothing_left():
        late = call(3, deadline=Deadline.after(0.02))
        tasks = start(*[line.infer(call(number)) for number in range(3)], line.infer(late))
        await stage.until_calls(1)
        stage.release()
        await stage.until_calls(2)
        (error,) = await told(tasks[3])
        stage.open()
        results = await told(*tasks[:3])
    assert isinstance(error, DeadlineExceededError)
    assert error.stage == "server"
    assert isinstance(results[0], ModelFailedError)
    assert [result.outputs["OUT"].tolist() for result in results[1:]] == [[[10]], [[20]]]
    assert not [rows for rows in stage.sent[1:] if 3 in rows]


async def test_a_batch_in_halves_holds_one_place_in_flight():
    stage = Stage(refusing({0}))
    line = line_to(stage)
    first = await busy(line, stage)
    failing = start(*[line.infer(call(number)) for number in range(2)])
    waiting = start(line.infer(call(*range(10, 17))))
    await turns(2)
    stage.open()
    await told(first, *failing, *waiting)
    assert stage.sent == [[900], [0, 1], [0], [1], [*range(10, 17)]]
