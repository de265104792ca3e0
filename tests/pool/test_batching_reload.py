"""Batching while the model changes behind the pool's back, on the real server."""

import asyncio
import json

import numpy as np
import pytest

from tritonasync import TritonPool

pytestmark = [pytest.mark.anyio, pytest.mark.server]


def config(*, rows: int = 256, datatype: str = "TYPE_FP32") -> str:
    tensor = {"data_type": datatype, "dims": [16]}
    return json.dumps(
        {
            "name": "ident",
            "backend": "python",
            "max_batch_size": rows,
            "input": [{"name": "INPUT0", **tensor}],
            "output": [{"name": "OUTPUT0", **tensor}],
        }
    )


@pytest.fixture
async def pools(explicit_server):
    """Two pools: one that calls, and one that changes the model without telling it."""
    async with (
        TritonPool(explicit_server.grpc_url) as pool,
        TritonPool(explicit_server.grpc_url) as other,
    ):
        await other.admin.load("ident", config=config())
        yield pool, other
        await other.admin.load("ident", config=config())


async def many(model, rows):
    return await asyncio.gather(
        *[model.one({"INPUT0": row}) for row in rows], return_exceptions=True
    )


@pytest.mark.parametrize("callers", [1, 64])
async def test_items_find_the_new_dtype(pools, callers):
    pool, other = pools
    model = pool.model("ident")
    rows = np.arange(callers * 16, dtype=np.float32).reshape(callers, 16)
    for _ in range(3):
        await many(model, rows)
    await other.admin.load("ident", config=config(datatype="TYPE_FP64"))
    await many(model, rows)  # these may fail: the server is the first to know
    answers = await many(model, rows)
    np.testing.assert_array_equal([answer["OUTPUT0"] for answer in answers], rows)
    assert answers[0]["OUTPUT0"].dtype == np.float64


async def test_items_find_out_that_there_is_no_batch_axis_any_more(pools):
    pool, other = pools
    model = pool.model("ident")
    row = np.ones(16, np.float32)
    await many(model, [row] * 8)
    await other.admin.load("ident", config=config(rows=0))
    await many(model, [row] * 8)
    for answer in await many(model, [row] * 8):
        np.testing.assert_array_equal(answer["OUTPUT0"], row)


async def test_a_smaller_batch_is_learned_and_nobody_notices(pools):
    pool, other = pools
    model = pool.model("ident")
    rows = np.arange(128 * 16, dtype=np.float32).reshape(128, 16)
    await many(model, rows)
    await other.admin.load("ident", config=config(rows=8))
    for _ in range(3):
        answers = await many(model, rows)
        np.testing.assert_array_equal([answer["OUTPUT0"] for answer in answers], rows)
    (before,) = pool.statistics().batching
    await many(model, rows)
    (after,) = pool.statistics().batching
    assert after.halved_batches == before.halved_batches
    assert after.batches - before.batches == 16


async def test_items_take_the_short_way_again_after_a_reload_that_changed_nothing(pools):
    pool, _ = pools
    model = pool.model("ident")
    rows = np.ones((4, 16), np.float32)
    for _ in range(2):
        await many(model, rows)
    await pool.admin.load("ident", config=config())  # this pool's own: it forgets the signature
    for _ in range(3):
        await many(model, rows)
    (lane,) = model._lanes.ways.values()
    assert lane.valid
