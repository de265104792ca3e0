"""The same options give the same handle: one made for each call knows what the last one knew."""

import asyncio

import numpy as np
import pytest

from tritonasync import ClassifierConfig, TritonPool
from tritonasync.core.errors import ConfigurationError

pytestmark = pytest.mark.anyio

LABELS = ["ant", "bee", "cat", "dog"]


def unopened() -> TritonPool:
    return TritonPool("localhost:1")


@pytest.mark.parametrize("kind", ["model", "classifier", "detector", "encoder"])
def test_the_same_options_give_the_same_handle(kind):
    pool = unopened()
    make = getattr(pool, kind)
    assert make("x") is make("x")
    assert make("x") is not make("y")
    assert make("x") is not make("x", "2")
    assert make("x") is not getattr(unopened(), kind)("x"), "a pool keeps its own"


def test_labels_are_compared_by_what_they_are():
    pool = unopened()
    labels = list(LABELS)
    first = pool.classifier("x", labels=labels)
    assert pool.classifier("x", labels=list(LABELS)) is first
    labels[0] = "wasp"
    assert pool.classifier("x", labels=labels) is not first


def test_options_that_are_equal_and_not_the_same_are_told_apart():
    pool = unopened()
    pool.classifier("x", top_k=1)
    with pytest.raises(ConfigurationError, match="top_k is a whole number"):
        pool.classifier("x", top_k=True)


def test_options_that_are_no_keys_are_taken_all_the_same():
    pool = unopened()
    thresholds = {"*": 0.5}
    first = pool.detector("x", score_threshold=thresholds)
    assert pool.detector("x", score_threshold=thresholds) is not first


def test_options_that_make_no_sense_are_refused_each_time():
    pool = unopened()
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            pool.classifier("x", activation="loud")


def test_no_more_are_kept_than_a_service_has_use_of():
    pool = unopened()
    first = pool.model("0")
    for number in range(1, 300):
        pool.model(str(number))
    assert len(pool._handles) == 256
    assert pool.model("299") is pool.model("299")
    assert pool.model("0") is not first


async def test_items_of_handles_made_for_each_call_share_requests(pool):
    item = np.array([0.1, 2.0, 0.3, 0.0], np.float32)
    await pool.classifier("classify4", labels=LABELS).one(item)
    items = np.random.default_rng(3).random((600, 4), np.float32)

    found = await asyncio.gather(
        *[pool.classifier("classify4", labels=LABELS).one(each) for each in items]
    )

    together = await pool.classifier("classify4", labels=LABELS)(items)
    np.testing.assert_allclose([each.scores for each in found], together.scores, rtol=1e-6)
    assert [each.label for each in found] == list(together.labels)
    (batching,) = [each for each in pool.statistics().batching if each.model == "classify4"]
    assert batching.mean_rows > 7, "of the 8 that the model takes"


async def test_a_handle_of_a_config_takes_the_short_way_as_well(pool):
    handle = pool.create(ClassifierConfig(name="classify4"))
    item = np.array([0.1, 2.0, 0.3, 0.0], np.float32)
    first = await handle.one(item)
    assert handle._lanes.ways
    assert await handle.one(item) == first
