"""Encoders: texts and arrays in, vectors out."""

from __future__ import annotations

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.errors import ConfigurationError, InvalidInputError, ProtocolError
from tritonasync.handles.architecture import Plug
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


# --- pooling without a mask --------------------------------------------------------------------

PATCHES = spec([("X", "FP32", (-1, 3))], [("PATCHES", "FP32", (-1, -1, 2))])


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [2, 3]), ("cls", [0, 1]), ("last", [4, 5])]
)
async def test_all_vectors_of_a_row_count_where_nothing_is_filled_up(pooling, expected):
    hidden = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    handle = encoder(PATCHES, lambda call: {"PATCHES": hidden}, pooling=pooling)
    assert (await handle([[1, 2, 3]])).tolist() == [expected]
    none = encoder(PATCHES, lambda call: {"PATCHES": hidden[:, :0]}, pooling=pooling)
    with pytest.raises(ProtocolError, match=r"expected \[batch, 1 tokens or more, D\], got \[1, 0"):
        await none([[1, 2, 3]])


async def test_a_pooling_takes_the_output_that_it_fits():
    served = spec(
        [("X", "FP32", (-1, 3))], [("TOKENS", "FP32", (-1, -1, 3)), ("VECTOR", "FP32", (-1, 3))]
    )
    await encoder(served, same, pooling="none")([[1, 2, 3]])
    handle = encoder(served, lambda call: {"TOKENS": np.ones((1, 2, 3), np.float32)}, pooling="cls")
    await handle([[1, 2, 3]])
    assert handle.sent[0].outputs == ("TOKENS",)
    with pytest.raises(ConfigurationError, match="has 2 outputs, 2 of them of vectors"):
        await encoder(served, same)([[1, 2, 3]])


async def test_axes_of_one_after_the_vector_are_dropped():
    served = spec([("X", "FP32", (-1, 3))], [("VECTOR", "FP32", (-1, 3, 1, 1))])
    handle = encoder(served, lambda call: {"VECTOR": tensor(call, "X")[:, :, None, None]})
    assert (await handle([[1, 2, 3]])).tolist() == [[1, 2, 3]]


# --- images ------------------------------------------------------------------------------------

PICTURES = spec([("IMAGE", "FP32", (-1, 3, 4, 6))], [("VECTOR", "FP32", (-1, 3))])


def colours(call):
    return {"VECTOR": tensor(call, "IMAGE").mean(axis=(2, 3))}


async def test_images_of_any_size_are_stretched_to_the_models():
    handle = encoder(PICTURES, colours)
    red = np.zeros((9, 5, 3), np.uint8)
    red[..., 0] = 255
    vectors = await handle([red, np.full((20, 20), 51, np.uint8)])
    np.testing.assert_allclose(vectors, [[1, 0, 0], [0.2, 0.2, 0.2]], atol=1e-6)
    assert handle.sent[0].inputs[0].shape == (2, 3, 4, 6)
    np.testing.assert_array_equal(await handle.one(red), vectors[0])


async def test_encoded_images_are_taken_and_options_heeded(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "blue.png"
    image.new("RGB", (7, 3), (0, 0, 255)).save(path)
    handle = encoder(PICTURES, colours, scaling="symmetric", channel_order="bgr")
    for given in (path, str(path), path.read_bytes()):
        np.testing.assert_allclose(await handle.one(given), [1, -1, -1], atol=1e-6)
    np.testing.assert_allclose(await handle([path, path]), [[1, -1, -1]] * 2, atol=1e-6)


async def test_a_tensor_of_the_models_shape_goes_as_it_is():
    tensors = np.full((2, 3, 4, 6), 7, np.float32)
    handle = encoder(PICTURES, colours)
    assert (await handle(tensors)).tolist() == [[7] * 3] * 2
    assert handle.sent[0].inputs[0].parts[0] is tensors
    assert (await handle.one(tensors[0])).tolist() == [7] * 3


async def test_a_misspelt_option_is_refused():
    with pytest.raises(ConfigurationError, match="resize"):
        encoder(PICTURES, colours, resizing="crop")


# --- architectures -----------------------------------------------------------------------------


def plugged(made, *, served=NUMBERS, preprocess=np.asarray, **options):
    plug = Plug("architecture 'mine'", preprocess, lambda outputs: made(outputs["VECTOR"]))
    return encoder(served, same, plug=plug, **options)


@pytest.mark.parametrize(
    "made",
    [lambda v: v * 2, lambda v: (v * 2).tolist(), lambda v: (v * 2).astype(np.float64)],
    ids=["array", "lists", "float64"],
)
async def test_what_an_architecture_makes_are_the_vectors(made):
    handle = plugged(made)
    rows = np.array([[1, 2, 3], [3, 4, 0]], np.float32)
    vectors = await handle(rows)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, rows * 2)
    np.testing.assert_array_equal(await handle.one(rows[0]), rows[0] * 2)
    unit = await plugged(made, normalize=True)(rows)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("made", "got"),
    [
        (lambda v: v[:1], r"float32 \[1, 3\]"),
        (lambda v: v[0], r"float32 \[3\]"),
        (lambda v: None, r"object \[\]"),
        (lambda v: [["a"], ["b"]], r"<U1 \[2, 1\]"),
        (lambda v: v > 0, r"bool \[2, 3\]"),
        (lambda v: [[1, 2], [3]], "list: "),
    ],
)
async def test_what_is_no_vector_for_each_item_is_refused(made, got):
    with pytest.raises(
        ConfigurationError,
        match=r"model 'net': expected the postprocess of architecture 'mine' to return numbers of "
        rf"shape \[2, D\], one vector for each item, got {got}",
    ):
        await plugged(made)(np.ones((2, 3), np.float32))


async def test_a_preprocess_alone_must_give_a_row_for_each_item():
    plug = Plug("architecture 'mine'", lambda items: np.zeros((3, 3), np.float32), None)
    handle = encoder(NUMBERS, same, plug=plug)
    with pytest.raises(
        ConfigurationError,
        match=r"expected the preprocess of architecture 'mine' to give as many rows as items, 1, "
        r"got 3",
    ):
        await handle.one(np.zeros(3, np.float32))
