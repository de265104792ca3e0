"""Rows of different lengths in one batch, on the real server."""

import asyncio

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tritonasync import BatchPolicy, ConfigurationError, InvalidInputError, Padding, TritonPool

pytestmark = [pytest.mark.anyio, pytest.mark.server]

PADDING = Padding(inputs={"IDS": 7}, mask="MASK")


def ids(length: int) -> np.ndarray:
    return np.arange(1, length + 1, dtype=np.int64)


def assert_own(answer, length: int) -> None:
    np.testing.assert_array_equal(answer["TWICE"], ids(length) * 2)
    assert answer["SUM"] == [ids(length).sum()]
    assert answer["SEEN"][2] == length


async def test_rows_are_filled_up_to_the_longest_and_cut_back(pool):
    model = pool.model("ragged", padding=PADDING)
    await model.spec()
    lengths = [3, 9, 1, 5]
    answers = await asyncio.gather(*[model.one({"IDS": ids(length)}) for length in lengths])
    for length, answer in zip(lengths, answers, strict=True):
        assert_own(answer, length)
        assert list(answer["SEEN"][:2]) == [4, 9]


async def test_rows_go_with_those_of_their_bucket(pool):
    model = pool.model("ragged", padding=Padding(inputs={"IDS": 0}, mask="MASK", buckets=(4, 16)))
    await model.spec()
    lengths = [3, 9, 1, 16, 4]
    answers = await asyncio.gather(*[model.one({"IDS": ids(length)}) for length in lengths])
    for length, answer in zip(lengths, answers, strict=True):
        assert_own(answer, length)
    seen = [tuple(answer["SEEN"][:2]) for answer in answers]
    assert seen == [(3, 4), (2, 16), (3, 4), (2, 16), (3, 4)]


async def test_batches_of_one_length_are_filled_up_too(pool):
    model = pool.model("ragged", padding=PADDING)
    await model.spec()
    short = np.stack([ids(2), ids(2)])
    long, both = await asyncio.gather(model.one({"IDS": ids(6)}), model({"IDS": short}))
    assert_own(long, 6)
    np.testing.assert_array_equal(both["TWICE"], short * 2)
    np.testing.assert_array_equal(both["SUM"], [[3], [3]])
    np.testing.assert_array_equal(both["SEEN"], [[3, 6, 2]] * 2)


async def test_a_mask_of_the_users_own_is_kept(pool):
    model = pool.model("ragged", padding=PADDING)
    mask = np.array([1, 0, 1], np.int32)
    answers = await asyncio.gather(
        model.one({"IDS": ids(3), "MASK": mask}), model.one({"IDS": [1, 2, 3, 4]})
    )
    assert answers[0]["SUM"] == [4]
    assert answers[1]["SUM"] == [10]


async def test_outputs_named_by_the_user_are_cut_back_and_no_others(pool):
    model = pool.model("ragged", padding=Padding(inputs={"IDS": 0}, mask="MASK", outputs=[]))
    await model.spec()
    answer, _ = await asyncio.gather(model.one({"IDS": ids(2)}), model.one({"IDS": ids(5)}))
    assert list(answer["TWICE"]) == [2, 4, 0, 0, 0]


async def test_a_batch_of_filled_up_rows_is_within_the_byte_limit(server):
    async with TritonPool(server.grpc_url, batching=BatchPolicy(max_nbytes=100_000)) as pool:
        model = pool.model("ragged", padding=PADDING)
        await model.spec()
        lengths = [5000, *[2] * 12]
        answers = await asyncio.gather(*[model.one({"IDS": ids(length)}) for length in lengths])
        for length, answer in zip(lengths, answers, strict=True):
            assert_own(answer, length)
            assert np.prod(answer["SEEN"][:2]) * 12 <= 100_000


async def test_large_rows_are_filled_up_off_the_event_loop(pool):
    model = pool.model("ragged", padding=PADDING)
    await model.spec()
    lengths = [60_000, 50_000, 3]
    answers = await asyncio.gather(*[model.one({"IDS": ids(length)}) for length in lengths])
    for length, answer in zip(lengths, answers, strict=True):
        assert_own(answer, length)
    bucketed = pool.model(
        "ragged", padding=Padding(inputs={"IDS": 0}, mask="MASK", buckets=(200_000,))
    )
    assert_own(await bucketed.one({"IDS": ids(1000)}), 1000)


async def test_rows_of_several_lengths_in_one_call_are_refused_with_the_way_out(pool):
    with pytest.raises(InvalidInputError, match=r"handle\.one"):
        await pool.model("ragged", padding=PADDING)({"IDS": [[1, 2], [3]]})


async def test_without_batching_buckets_still_apply(server):
    async with TritonPool(server.grpc_url, batching=None) as pool:
        model = pool.model("ragged", padding=Padding(inputs={"IDS": 0}, mask="MASK", buckets=[8]))
        answer = await model.one({"IDS": ids(3)})
        assert_own(answer, 3)
        assert list(answer["SEEN"][:2]) == [1, 8]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_row_comes_back_as_if_it_were_alone(pool, lengths):
    model = pool.model("ragged", padding=PADDING)
    answers = await asyncio.gather(*[model.one({"IDS": ids(length)}) for length in lengths])
    for length, answer in zip(lengths, answers, strict=True):
        assert_own(answer, length)


async def test_what_cannot_be_filled_up_is_refused_and_harms_nobody(pool):
    model = pool.model("ragged", padding=Padding(inputs={"IDS": 0}, mask="MASK", buckets=(4,)))
    await model.spec()
    long, unlike, good = await asyncio.gather(
        model.one({"IDS": ids(5)}),
        model.one({"IDS": ids(3), "MASK": np.ones(2, np.int32)}),
        model.one({"IDS": ids(2)}),
        return_exceptions=True,
    )
    assert isinstance(long, InvalidInputError)
    assert "longer than the last bucket, 4" in str(long)
    assert isinstance(unlike, InvalidInputError)
    assert "'IDS' has 3, 'MASK' has 2" in str(unlike)
    assert_own(good, 2)


@pytest.mark.parametrize(
    ("model", "padding", "reason"),
    [
        ("ident", Padding(inputs={"INPUT0": 0}), "is not free"),
        ("ragged", Padding(inputs={"TOKENS": 0}), "no input 'TOKENS'"),
        ("ragged", Padding(inputs={"IDS": 0.5}, mask="MASK"), "0.5 is no INT64"),
        ("ragged", Padding(inputs={"IDS": float("nan")}, mask="MASK"), "nan is no INT64"),
        ("ragged", Padding(inputs={"IDS": 2**70}, mask="MASK"), "is no INT64"),
        ("ragged", Padding(inputs={"IDS": "x"}, mask="MASK"), "'x' is no INT64"),
        ("ragged", Padding(inputs={"IDS": 0}, mask="MASKS"), "no input 'MASKS'"),
        ("ragged", Padding(inputs={"IDS": 0}, mask="MASK", outputs=("X",)), "no output 'X'"),
        ("ragged", Padding(inputs={"IDS": 0}, mask="MASK", axis=1), "is not free"),
        ("every_type", Padding(inputs={"IN_FP32": 0}), "max_batch_size is 0"),
    ],
)
async def test_a_padding_that_does_not_fit_the_model_is_refused(pool, model, padding, reason):
    arrays = {name: np.ones(16, np.float32) for name in ("INPUT0", "IDS") if model != "every_type"}
    with pytest.raises(ConfigurationError, match=reason):
        await pool.model(model, padding=padding).one(arrays or {"IN_FP32": np.ones((1, 1))})


def test_a_padding_is_a_padding():
    with pytest.raises(ConfigurationError, match="padding is a Padding"):
        TritonPool("localhost:1").model("m", padding={"IDS": 0})
