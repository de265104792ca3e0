"""A model that is loaded anew with another signature, while its rows wait or none do."""

from __future__ import annotations

import numpy as np
import pytest

from tests.batching.fakes import (
    Catalog,
    Stack,
    Stage,
    busy,
    call,
    limited,
    line_to,
    nothing_left,
    spec,
    start,
    tenfold,
    told,
    turns,
    with_lane,
)
from tritonasync.core.errors import InvalidInputError, InvalidRequestError
from tritonasync.core.values import TensorSpec

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def clean():
    async with nothing_left():
        yield


async def test_a_newer_signature_counts_from_the_next_batch_on():
    stage, catalog = Stage(), Catalog(spec(8))
    stack = Stack(stage, catalog=catalog)
    await told(*[stack.gate.infer(call(number)) for number in range(8)])
    catalog.spec = spec(2)
    await told(*[stack.gate.infer(call(number)) for number in range(5)])
    assert [len(rows) for rows in stage.sent] == [8, 2, 2, 1]


async def test_a_newer_signature_counts_for_rows_that_wait():
    stage, catalog = Stage(), Catalog(spec(8))
    line = line_to(stage, limited(), catalog)
    first = await busy(line, stage)
    waiting = start(*[line.infer(call(number)) for number in range(12)])
    await turns(2)
    catalog.spec = spec(2)
    stage.open()
    await told(first, *waiting)
    assert [len(rows) for rows in stage.sent] == [1, 8, 2, 2]


@pytest.mark.timeout(5)
async def test_rows_that_wait_are_answered_though_the_model_has_no_batch_axis_any_more():
    stage, catalog = Stage(), Catalog(spec(8))
    line = line_to(stage, limited(), catalog)
    first = await busy(line, stage)
    waiting = start(*[line.infer(call(number)) for number in range(12)])
    await turns(2)
    catalog.spec = spec(0)
    stage.open()
    assert len(await told(first, *waiting)) == 13


@pytest.mark.parametrize("kind", ["stateful", "decoupled"])
async def test_a_model_that_cannot_be_batched_any_more_is_not(kind):
    stage, catalog = Stage(), Catalog()
    stack = Stack(stage, catalog=catalog)
    first = await busy(stack.gate, stage)
    waiting = start(*[stack.gate.infer(call(number)) for number in range(2)])
    await turns(2)
    catalog.spec = spec(8, **{kind: True})  # the batch that leaves next learns of it
    stage.open()
    await told(first, *waiting)
    stage.calls.clear()
    calls = [call(number) for number in range(3)]
    await told(*map(stack.gate.infer, calls))
    assert [sent.rows for sent in stage.calls] == [1, 1, 1]


async def test_items_find_the_new_signature_after_the_model_was_loaded_anew():
    catalog = Catalog()
    stack = Stack(Stage(), catalog=catalog)
    model = await with_lane(stack)
    catalog.spec = spec(2, inputs=(TensorSpec("A", "INT64", (-1, 2)),))

    def answer(sent):
        if sent.inputs[0].shape[1] != 2:
            raise InvalidRequestError("no", code="INVALID_ARGUMENT", details="no", model="net")
        return tenfold(sent)

    stack.stage.answer = answer
    new = [{"A": np.array([number, number])} for number in range(4)]
    results = await told(*map(model.one, [*new, {"A": np.array([9])}]))
    assert isinstance(results.pop(), InvalidInputError | InvalidRequestError)
    assert [result["OUT"].tolist() for result in results] == [
        [number * 10] * 2 for number in range(4)
    ]
    assert all(len(rows) <= 2 for rows in stack.stage.sent)
