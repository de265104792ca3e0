"""Rows that may not run twice: whom they travel with, and what is tried again for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.batching.fakes import (
    Catalog,
    Stack,
    Stage,
    call,
    limited,
    line_to,
    nothing_left,
    spec,
    told,
    values,
)
from tests.batching.test_halving import refusing
from tritonasync.core.errors import InvalidRequestError, ModelFailedError

pytestmark = pytest.mark.anyio


def once(*rows, **options):
    return replace(call(*rows, **options), idempotent=False)


def refused(text):
    return InvalidRequestError(text, code="INVALID_ARGUMENT", details=text)


async def test_a_batch_that_ran_is_not_tried_by_halves():
    async with nothing_left():
        stage = Stage(refusing({3}))
        line = line_to(stage, limited(), Catalog(spec(64)))
        results = await told(*map(line.infer, [once(1), once(2), once(3)]))
        assert [type(result) for result in results] == [ModelFailedError] * 3
        assert stage.sent == [[1, 2, 3]]


async def test_a_batch_that_was_refused_before_it_ran_is_tried_by_halves():
    async with nothing_left():
        stage = Stage(refusing({3}, refused))
        line = line_to(stage, limited(), Catalog(spec(64)))
        one, two, three = await told(*map(line.infer, [once(1), once(2), once(3)]))
        assert one.outputs["OUT"].tolist() == [[10]]
        assert two.outputs["OUT"].tolist() == [[20]]
        assert isinstance(three, InvalidRequestError)
        assert all(not sent.idempotent for sent in stage.calls)


async def test_rows_that_may_run_twice_do_not_share_a_batch_with_those_that_may_not():
    async with nothing_left():
        stage = Stage()
        line = line_to(stage, limited(), Catalog(spec(64)))
        await told(*map(line.infer, [once(1), call(2), once(3), call(4)]))
        assert {(tuple(values(sent)), sent.idempotent) for sent in stage.calls} == {
            ((1, 3), False),
            ((2, 4), True),
        }


@pytest.mark.parametrize("options", [{}, {"parameters": (("priority", 1),)}])
@pytest.mark.parametrize("idempotent", [True, False])
async def test_the_call_of_a_batch_says_whether_its_rows_may_run_twice(options, idempotent):
    async with nothing_left():
        stage = Stage()
        line = line_to(stage, limited(), Catalog(spec(64)))
        sent = [replace(call(row, **options), idempotent=idempotent) for row in range(3)]
        await told(*map(line.infer, sent))
        assert [together.idempotent for together in stage.calls] == [idempotent]
        assert stage.sent == [[0, 1, 2]]


@pytest.mark.parametrize("batching", [True, False])
async def test_a_handle_says_so_on_every_way(batching):
    async with nothing_left():
        stack = Stack(Stage(), batching=batching)
        careful, usual = stack.model(idempotent=False), stack.model()
        item = np.zeros(1, np.int64)
        for handle, expected in ((careful, False), (usual, True)):
            stack.stage.calls.clear()
            await told(handle(A=item[None]))  # a batch
            await told(handle.one(A=item))  # the long way
            await told(handle.one(A=item))  # the short way, alone
            await told(handle.one(A=item), handle.one(A=item))  # and together
            await told(handle.one(A=item, timeout_s=7, priority=1))
            assert {sent.idempotent for sent in stack.stage.calls} == {expected}
            assert bool(handle._lanes.ways) is batching
