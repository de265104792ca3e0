"""Pipelines and maps through the whole stack, on the real server."""

import asyncio

import numpy as np
import pytest

from tritonasync import TritonPool
from tritonasync.core.errors import DeadlineExceededError, InvalidInputError
from tritonasync.handles.flow.pipeline import Pipeline

pytestmark = [pytest.mark.anyio, pytest.mark.server]

LABELS = ["ant", "bee", "cat", "dog"]


def rows(count):
    """As many rows as told, of which each is surest of its number modulo 4."""
    return list(np.eye(4, dtype=np.float32)[np.arange(count) % 4])


def mean_rows(pool, model):
    return {each.model: each.mean_rows for each in pool.statistics().batching}[model]


async def test_items_of_different_requests_share_batches(server):
    async with TritonPool(server.grpc_url) as pool:
        classifier = pool.classifier("classify4", labels=LABELS)
        pipeline = Pipeline(rows).each(classifier)
        answers = await asyncio.gather(*[pipeline.one(3) for _ in range(100)])
        for answer in answers:
            assert [row.label for row in answer] == LABELS[:3]
        assert mean_rows(pool, "classify4") > 3


async def test_an_encoder_after_a_classifier(pool):
    encoder = pool.encoder("ident")

    def vector(classification):
        return np.full(16, classification.index, np.float32)

    pipeline = (
        Pipeline(pool.classifier("classify4"))
        .with_input()
        .then(Pipeline(lambda pair: pair[1]).then(vector).then(encoder))
    )
    row = np.eye(4, dtype=np.float32)[2]
    assert (await pipeline.one(row)).tolist() == [2] * 16


async def test_the_time_is_for_all_stages_together(pool):
    slow = pool.model("slow_batch")  # 20 ms a batch

    def again(outputs):
        return {"INPUT0": outputs["OUTPUT0"]}

    pipeline = Pipeline(slow)
    for _ in range(9):
        pipeline = pipeline.then(again).then(slow)
    item = {"INPUT0": np.ones(1, np.float32)}
    assert (await pipeline.one(item, timeout_s=10))["OUTPUT0"].tolist() == [1]
    with pytest.raises(DeadlineExceededError) as caught:
        await pipeline.one(item, timeout_s=0.1)
    assert "all stages together had 0.1 s" in caught.value.__notes__[0]


async def test_an_error_of_a_handle_names_the_stage(pool):
    pipeline = Pipeline(rows).each(pool.classifier("classify4")).each(pool.encoder("ident"))
    with pytest.raises(InvalidInputError, match="model 'ident'") as caught:
        await pipeline.one(1)
    assert caught.value.__notes__[-1] == "in stage 3 of 3 of a pipeline: each encoder 'ident'"


async def test_a_map_fills_batches_and_leaves_nothing_behind(server):
    async with TritonPool(server.grpc_url) as pool:
        model = pool.model("ident")
        stream = model.map({"INPUT0": np.full(16, item, np.float32)} for item in range(3000))
        values = [int(out["OUTPUT0"][0]) async for out in stream]
        assert values == list(range(3000))
        assert mean_rows(pool, "ident") > 4
        async for _ in model.map({"INPUT0": np.ones(16, np.float32)} for _ in range(3000)):
            break
        await asyncio.sleep(0)
    # Closing has waited for what was out: none was cancelled.


async def test_a_bad_item_among_good_ones(pool):
    items = [rows(1)[0], [1.0], rows(2)[1]]
    stream = pool.classifier("classify4", labels=LABELS).map(items, errors="collect")
    ant, failed, bee = [result async for result in stream]
    assert (ant.label, bee.label) == ("ant", "bee")
    assert isinstance(failed.error, InvalidInputError)
    assert failed.item == [1.0]
