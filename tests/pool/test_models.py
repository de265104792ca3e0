"""Calls through the whole stack, from a handle to the real server and back."""

import asyncio

import ml_dtypes
import numpy as np
import pytest

from tritonasync.core.errors import (
    InvalidInputError,
    ModelFailedError,
    ModelNotFoundError,
    QueueTimeoutError,
    UsageError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.server]

CHANCE = np.random.default_rng(0)

TYPES = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": np.array([[0, 255], [1, 2]], np.uint8),
    "UINT16": np.array([[0, 65535], [1, 2]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1], [1, 2]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1], [1, 2]], np.uint64),
    "INT8": np.array([[-128, 127], [1, 2]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1], [1, 2]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1], [1, 2]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1], [1, 2]], np.int64),
    "FP16": np.array([[1.5, -np.inf], [65504, 0.1]], np.float16),
    "BF16": np.array([[1.5, -2.0], [3e38, 0.1]], ml_dtypes.bfloat16),
    "FP32": np.array([[1.5, np.inf], [3e38, 1e-45]], np.float32),
    "FP64": np.array([[1.5, -np.inf], [1e308, 5e-324]], np.float64),
    "BYTES": np.array([[b"", b"\x00\xff\x00"], ["grüße".encode(), b"x" * 300]], object),
}


@pytest.mark.parametrize("datatype", TYPES)
async def test_every_datatype_comes_back_as_it_went(pool, datatype):
    array = TYPES[datatype]
    outputs = await pool.model("every_type")({f"IN_{datatype}": array})
    back = outputs[f"OUT_{datatype}"]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("datatype", TYPES)
async def test_empty_tensors_of_every_datatype(pool, datatype):
    array = TYPES[datatype][:0]
    back = (await pool.model("every_type")({f"IN_{datatype}": array}))[f"OUT_{datatype}"]
    assert back.shape == (0, 2)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2, 1::3],
        lambda a: a.T,
        lambda a: a[::-1],
        lambda a: a.astype(">f4"),
        np.asfortranarray,
    ],
)
async def test_arrays_of_any_memory_layout(pool, view):
    array = view(CHANCE.random((12, 14), dtype=np.float32))
    back = (await pool.model("every_type")({"IN_FP32": array}))["OUT_FP32"]
    np.testing.assert_array_equal(back, array)


async def test_text_goes_as_utf8(pool):
    texts = [["grüße"], ["日本語"], [""]]
    back = (await pool.model("bytes_ident")(INPUT0=texts))["OUTPUT0"]
    assert [row[0].decode() for row in back] == ["grüße", "日本語", ""]


async def test_outputs_are_read_only_views(pool):
    back = (await pool.model("ident")(INPUT0=np.ones((2, 16), np.float32)))["OUTPUT0"]
    assert not back.flags.writeable
    assert not back.flags.owndata


async def test_named_inputs_and_chosen_outputs(pool):
    model = pool.model("two_inputs")
    a, b = np.full((3, 4), 5, np.float32), np.full((3, 1), 2, np.int32)
    outputs = await model({"A": a, "B": b})
    assert set(outputs) == {"SUM", "DIFF"}
    assert (outputs["SUM"] == 7).all()
    only = await model(A=a, B=b, outputs=["DIFF"])
    assert set(only) == {"DIFF"}
    assert (only["DIFF"] == 3).all()
    assert (only.model, only.version) == ("two_inputs", "1")


async def test_one_item_has_no_batch_axis(pool):
    item = CHANCE.random(16, dtype=np.float32)
    outputs = await pool.model("ident").one(INPUT0=item)
    np.testing.assert_array_equal(outputs["OUTPUT0"], item)
    rows = await pool.model("no_batch").one(INPUT0=np.zeros((5, 4), np.float32))
    assert rows["ROWS"].tolist() == [5]


async def test_many_callers_get_their_own_answers(pool):
    model = pool.model("ident")
    items = CHANCE.random((300, 16), dtype=np.float32)
    answers = await asyncio.gather(*(model.one(INPUT0=item) for item in items))
    np.testing.assert_array_equal([answer["OUTPUT0"] for answer in answers], items)


@pytest.mark.parametrize("rows", [1, 256, 257, 1000])
async def test_a_batch_above_the_models_limit_is_split_and_joined(pool, rows):
    batch = CHANCE.random((rows, 16), dtype=np.float32)
    before = pool.statistics().endpoints[0].succeeded
    back = (await pool.model("ident")(INPUT0=batch))["OUTPUT0"]
    np.testing.assert_array_equal(back, batch)
    sent = pool.statistics().endpoints[0].succeeded - before
    assert sent >= -(-rows // 256)


async def test_large_tensors(pool):
    batch = CHANCE.random((20, 3, 224, 224), dtype=np.float32)
    back = (await pool.model("ident_image")(INPUT0=batch))["OUTPUT0"]
    np.testing.assert_array_equal(back, batch)


async def test_many_strings(pool):
    texts = np.array([[f"text {i}" * (i % 7)] for i in range(64)], object)
    back = (await pool.model("bytes_ident")(INPUT0=np.tile(texts, (1, 3000))))["OUTPUT0"]
    assert back.shape == (64, 3000)
    assert back[63, 2999] == texts[63, 0].encode()


async def test_an_id_and_parameters_go_along(pool):
    row = np.ones((1, 16), np.float32)
    outputs = await pool.model("ident")(
        INPUT0=row,
        request_id="it was me",
        priority=1,
        parameters={"flag": True, "count": 3, "ratio": 0.5, "text": "x"},
    )
    assert outputs.request_id == "it was me"


async def test_the_servers_queue_limit_is_passed_on(pool):
    model = pool.model("impatient_queue")
    first = asyncio.create_task(model(DELAY_MS=np.full((1, 1), 500, np.float32)))
    await asyncio.sleep(0.1)
    with pytest.raises(QueueTimeoutError):
        await model(DELAY_MS=np.zeros((1, 1), np.float32), queue_timeout_us=50_000)
    await first


async def test_a_failing_row_fails_its_call(pool):
    model = pool.model("faulty")
    with pytest.raises(ModelFailedError, match="faulty.*negative") as caught:
        await model(INPUT0=np.array([[1], [-1]], np.float32))
    assert caught.value.model == "faulty"
    assert (await model(INPUT0=np.ones((1, 1), np.float32)))["OUTPUT0"] == 1


async def test_a_failing_part_fails_a_split_call_and_harms_nobody(pool):
    batch = np.ones((40, 1), np.float32)
    batch[21] = -1
    model = pool.model("faulty")
    with pytest.raises(ModelFailedError):
        await model(INPUT0=batch)
    assert ((await model(INPUT0=np.ones((40, 1), np.float32)))["OUTPUT0"] == 1).all()


async def test_a_version(pool):
    row = np.ones((1, 16), np.float32)
    assert (await pool.model("ident", "1")(INPUT0=row)).version == "1"
    with pytest.raises(ModelNotFoundError, match="ident.*version 9"):
        await pool.model("ident", "9")(INPUT0=row)


async def test_a_wrong_name_is_not_found(pool):
    with pytest.raises(ModelNotFoundError, match="nobody.*admin.index"):
        await pool.model("nobody")(X=np.ones((1, 1), np.float32))


WRONG = [
    ({}, "INPUT0"),
    ({"INPUT": np.ones((1, 16), np.float32)}, "did you mean 'INPUT0'"),
    ({"INPUT0": np.ones((1, 16), np.float32), "X": np.ones(1)}, "unknown input 'X'"),
    ({"INPUT0": np.ones((1, 16))}, "float64"),
    ({"INPUT0": np.ones((1, 16), np.int64)}, "int64"),
    ({"INPUT0": np.ones((1, 17), np.float32)}, r"\[batch, 16\].*\[1, 17\]"),
    ({"INPUT0": np.ones(16, np.float32)}, "without the batch axis"),
    ({"INPUT0": np.ones((1, 4, 4), np.float32)}, r"\[1, 4, 4\]"),
    ({"INPUT0": np.float32(1)}, "single value"),
    ({"INPUT0": np.ones((0, 16), np.float32)}, "empty batch"),
    ({"INPUT0": [[1.0] * 16, [1.0] * 15]}, "15"),
    ({"INPUT0": [["a"] * 16]}, "FP32"),
    ({"INPUT0": None}, "None"),
]


@pytest.mark.parametrize(("inputs", "says"), WRONG)
async def test_what_does_not_fit_is_refused_before_anything_is_sent(pool, inputs, says):
    (backend,) = pool._stages._backends.values()
    sent, exchange = [], backend.endpoint.exchange

    async def record(method, *args, **options):
        sent.append(method)
        return await exchange(method, *args, **options)

    backend.endpoint.exchange = record
    with pytest.raises(InvalidInputError, match=says) as caught:
        await pool.model("ident")(inputs)
    assert "model 'ident'" in str(caught.value)
    assert caught.value.model == "ident"
    assert "ModelInfer" not in sent
    await pool.model("ident")(INPUT0=np.ones((1, 16), np.float32))
    assert "ModelInfer" in sent


async def test_a_decoupled_model_is_refused_with_what_to_do(pool):
    with pytest.raises(UsageError, match="decoupled"):
        await pool.model("repeat")(COUNT=np.ones(1, np.int32))


async def test_a_classifier_on_the_server(pool):
    classifier = pool.classifier("classify4", labels=["ant", "bee", "cat", "dog"])
    result = await classifier(np.array([[0, 9, 0, 0], [0, 0, 0, 9]], np.float32))
    assert result.labels == ("bee", "dog")
    assert result.scores.shape == (2, 4)
    one = await classifier.one(np.array([0, 0, 9, 0], np.float32))
    assert one.label == "cat"


async def test_an_encoder_on_the_server(pool):
    vectors = await pool.encoder("ident", normalize=True)(np.ones((3, 16), np.float32))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
