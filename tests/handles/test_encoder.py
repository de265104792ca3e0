"""Encoders: texts and arrays in, vectors out."""

from __future__ import annotations

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.errors import ConfigurationError, InvalidInputError, ProtocolError
from tritonasync.handles.encoder import Encoder

pytestmark = pytest.mark.anyio

FORMS = {
    "a column": spec([("TEXT", "BYTES", (-1, 1))], [("VECTOR", "FP32", (-1, 3))]),
    "a free column": spec([("TEXT", "BYTES", (-1, -1))], [("VECTOR", "FP32", (-1, 3))]),
    "a list": spec([("TEXT", "BYTES", (-1,))], [("VECTOR", "FP32", (-1, 3))], max_batch_size=0),
}
NUMBERS = spec([("X", "FP32", (-1, 3))], [("VECTOR", "FP32", (-1, 3))])
TEXTS = ["a", "bb", "ccc"]


def lengths(call):
    texts = tensor(call, "TEXT").ravel()
    return {"VECTOR": np.array([[len(text), 0, 0] for text in texts], np.float32)}


def encoder(served, model=lengths, **options):
    invoker = FakeInvoker(model)
    handle = Encoder("net", "", invoker, FakeCatalog(served), timeout_s=30.0, **options)
    handle.sent = invoker.calls
    return handle


def same(call):
    return {"VECTOR": tensor(call, "X")}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "batch",
    [
        TEXTS,
        tuple(TEXTS),
        [text.encode() for text in TEXTS],
        np.array(TEXTS),
        np.array(TEXTS, object),
        np.array(TEXTS, "S"),
    ],
    ids=["list", "tuple", "bytes", "str array", "object array", "bytes array"],
)
async def test_texts_take_the_form_of_the_models_input(form, batch):
    handle = encoder(FORMS[form])
    vectors = await handle(batch)
    assert vectors[:, 0].tolist() == [1, 2, 3]
    assert vectors.dtype == np.float32
    expected = (3,) if form == "a list" else (3, 1)
    assert handle.sent[0].inputs[0].shape == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("item", ["four", b"four", np.str_("four")])
async def test_one_text_gives_one_vector(form, item):
    handle = encoder(FORMS[form])
    vector = await handle.one(item)
    assert vector.tolist() == [4, 0, 0]
    assert handle.sent[0].rows == (0 if form == "a list" else 1)


async def test_a_column_of_texts_is_taken_as_it_is():
    handle = encoder(FORMS["a column"])
    for batch in ([["a"], ["bb"]], np.array([["a"], ["bb"]])):
        assert (await handle(batch))[:, 0].tolist() == [1, 2]
    assert (await handle.one(["abc"]))[0] == 3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["abc", b"abc"])
async def test_a_text_in_place_of_a_list_is_recognised(form, text):
    handle = encoder(FORMS[form])
    with pytest.raises(InvalidInputError) as caught:
        await handle(text)
    kind = type(text).__name__
    assert str(caught.value) == (
        "model 'net', input 'TEXT': expected a list of texts, got a single "
        f"{kind}; use handle.one(text)"
    )
    assert handle.sent == []


@pytest.mark.parametrize("form", FORMS)
async def test_no_texts_are_an_empty_batch(form):
    with pytest.raises(InvalidInputError, match="empty batch"):
        await encoder(FORMS[form])([])


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (["a", None], "NoneType"),
        ([1, 2], "int"),
        (np.zeros(3, np.float32), "float32"),
        ({"a"}, "set"),
    ],
)
async def test_what_is_no_text_is_refused(batch, got):
    handle = encoder(FORMS["a column"])
    with pytest.raises(
        InvalidInputError, match=rf"model 'net', input 'TEXT': expected .*got .*{got}"
    ):
        await handle(batch)
    assert handle.sent == []


async def test_arrays_are_checked_as_any_models():
    handle = encoder(NUMBERS, same)
    batch = np.arange(6, dtype=np.float32).reshape(2, 3)
    vectors = await handle(batch)
    np.testing.assert_array_equal(vectors, batch)
    np.testing.assert_array_equal(await handle.one(batch[1]), batch[1])
    with pytest.raises(
        InvalidInputError, match=r"input 'X': expected shape \[batch, 3\], got \[3\]"
    ):
        await handle(batch[0])


async def test_vectors_are_a_view_on_the_reply_unless_they_are_normalised():
    output = np.array([[3, 4, 0], [0, 0, 0]], np.float32)
    batch = np.zeros((2, 3), np.float32)
    plain = await encoder(NUMBERS, lambda call: {"VECTOR": output})(batch)
    assert np.shares_memory(plain, output)
    unit = await encoder(NUMBERS, lambda call: {"VECTOR": output}, normalize=True)(batch)
    assert not np.shares_memory(unit, output)
    np.testing.assert_allclose(unit, [[0.6, 0.8, 0], [0, 0, 0]], rtol=1e-6)


async def test_other_float_types_become_float32():
    served = spec([("X", "FP32", (-1, 3))], [("VECTOR", "FP16", (-1, 3))])
    handle = encoder(served, lambda call: {"VECTOR": tensor(call, "X").astype(np.float16)})
    vectors = await handle([[1, 2, 3]])
    assert vectors.dtype == np.float32


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (("VECTOR", "FP32", (-1, -1, 384)), r"'VECTOR' FP32 \[batch, any, 384\]"),
        (("VECTOR", "FP32", (-1,)), r"'VECTOR' FP32 \[batch\]"),
        (("VECTOR", "BYTES", (-1, 1)), r"'VECTOR' BYTES \[batch, 1\]"),
    ],
)
async def test_an_output_that_is_no_vector_a_row_is_refused_with_its_shape(output, shown):
    handle = encoder(spec([("TEXT", "BYTES", (-1, 1))], [output]))
    expected = rf"model 'net': expected an output of one vector a row.*\[batch, D\], got {shown}"
    with pytest.raises(ConfigurationError, match=expected):
        await handle(TEXTS)
    assert handle.sent == []


async def test_an_answer_of_another_rank_is_an_error():
    handle = encoder(NUMBERS, lambda call: {"VECTOR": np.zeros((1, 3, 3), np.float32)})
    with pytest.raises(
        ProtocolError, match=r"output 'VECTOR': expected \[batch, D\], got \[1, 3, 3\]"
    ):
        await handle([[1, 2, 3]])


async def test_outputs_are_chosen_by_name():
    served = spec(
        [("X", "FP32", (-1, 3))], [("TOKENS", "FP32", (-1, -1, 3)), ("VECTOR", "FP32", (-1, 3))]
    )
    handle = encoder(served, same, output_name="VECTOR")
    assert (await handle([[1, 2, 3]])).shape == (1, 3)
    assert handle.sent[0].outputs == ("VECTOR",)


async def test_many_vectors_are_worked_on_too():
    rows = np.ones((100_000, 3), np.float32)
    unit = await encoder(NUMBERS, same, normalize=True)(rows)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
