"""Classifiers: which tensors, what scores mean, labels; and the form of the results."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.errors import ConfigurationError, InvalidInputError, ProtocolError
from tritonasync.handles.classifier import Classification, Classifier
from tritonasync.processing.vectors import sigmoid, softmax

pytestmark = pytest.mark.anyio

DIGITS = spec([("X", "FP32", (-1, 4))], [("LOGITS", "FP32", (-1, 4))], name="digits")
LOGITS = np.array([[0, 3, 1, -1], [2, 0, 0, 0]], np.float32)


def classifier(served=DIGITS, model=lambda call: {"LOGITS": tensor(call, "X")}, **options):
    invoker = FakeInvoker(model)
    handle = Classifier(served.name, "", invoker, FakeCatalog(served), timeout_s=30.0, **options)
    handle.sent = invoker.calls
    return handle


# --- scores ---


@pytest.mark.parametrize(
    ("activation", "function"), [("softmax", softmax), ("sigmoid", sigmoid), ("none", np.array)]
)
async def test_scores_are_what_the_activation_makes_of_the_output(activation, function):
    result = await classifier(activation=activation)(LOGITS)
    assert result.scores.dtype == np.float32
    np.testing.assert_array_equal(result.scores, function(LOGITS))
    assert result.indices.tolist() == [1, 0]
    assert result.indices.dtype == np.int64
    assert (result.model, result.version) == ("digits", "1")


async def test_one_item_gives_one_classification():
    handle = classifier()
    result = await handle.one([0, 3, 1, -1])
    assert isinstance(result, Classification)
    assert (result.label, result.index) == ("1", 1)
    np.testing.assert_array_equal(result.scores, softmax(LOGITS[0]))
    assert result.score == pytest.approx(float(softmax(LOGITS[0]).max()))
    assert handle.sent[0].rows == 1


async def test_only_the_output_that_is_read_is_asked_for():
    served = spec(
        [("X", "FP32", (-1, 4))], [("LOGITS", "FP32", (-1, 4)), ("WHY", "BYTES", (-1, 1))]
    )
    handle = classifier(served)
    await handle(LOGITS)
    assert handle.sent[0].outputs == ("LOGITS",)


async def test_a_model_of_one_output_is_asked_as_every_handle_asks_it():
    handle = classifier()
    await handle(LOGITS)
    assert handle.sent[0].outputs == (), "or its rows would share no batch with those of others"


async def test_raw_scores_are_a_view_on_the_reply():
    output = LOGITS.copy()
    result = await classifier(activation="none", model=lambda call: {"LOGITS": output})(LOGITS)
    assert np.shares_memory(result.scores, output)


async def test_axes_of_length_one_behind_the_classes_do_not_matter():
    served = spec([("X", "FP32", (-1, 4))], [("LOGITS", "FP32", (-1, 4, 1, 1))])
    handle = classifier(served, lambda call: {"LOGITS": tensor(call, "X")[:, :, None, None]})
    assert (await handle(LOGITS)).scores.shape == (2, 4)


@pytest.mark.parametrize(
    ("datatype", "output"),
    [
        ("FP16", LOGITS.astype(np.float16)),
        ("FP64", LOGITS.astype(np.float64)),
        ("INT8", LOGITS.astype(np.int8)),
        ("BF16", LOGITS.astype(ml_dtypes.bfloat16)),
        ("BF16", LOGITS.astype(ml_dtypes.bfloat16).view(np.uint16)),
    ],
)
async def test_scores_are_float32_whatever_the_model_gives(datatype, output):
    served = spec([("X", "FP32", (-1, 4))], [("LOGITS", datatype, (-1, 4))])
    handle = classifier(served, lambda call: {"LOGITS": output}, activation="none")
    result = await handle(LOGITS)
    assert result.scores.dtype == np.float32
    np.testing.assert_array_equal(result.scores, LOGITS)


async def test_nan_in_the_input_goes_to_the_model_and_shows_in_the_scores():
    spoilt = LOGITS.copy()
    spoilt[0, 2] = np.nan
    handle = classifier()
    result = await handle(spoilt)
    np.testing.assert_array_equal(tensor(handle.sent[0], "X"), spoilt)
    assert np.isnan(result.scores[0]).all()
    assert result.indices.tolist() == [0, 0]
    np.testing.assert_array_equal(result.scores[1], softmax(LOGITS)[1])


async def test_many_scores_are_worked_on_too():
    served = spec([("X", "FP32", (-1, -1))], [("LOGITS", "FP32", (-1, -1))], max_batch_size=4096)
    logits = np.zeros((1000, 1000), np.float32)
    logits[:, 7] = 1
    result = await classifier(served)(logits)
    assert set(result.indices.tolist()) == {7}


async def test_conversions_are_those_of_any_model():
    with pytest.raises(
        InvalidInputError, match=r"model 'digits', input 'X': expected FP32 .*got f"
    ):
        await classifier()(LOGITS.astype(np.float64))
    result = await classifier(casting="same_kind")(LOGITS.astype(np.float64))
    assert result.indices.tolist() == [1, 0]


# --- labels ---


async def test_labels_name_the_classes():
    result = await classifier(labels=["zero", "one", "two", "three"])(LOGITS)
    assert result.labels == ("one", "zero")
    assert [row.label for row in result] == ["one", "zero"]
    assert result.classes == ("zero", "one", "two", "three")


async def test_without_labels_classes_are_named_by_number():
    assert (await classifier()(LOGITS)).labels == ("1", "0")


@pytest.mark.parametrize("labels", [["a", "b", "c"], list("abcde")])
async def test_labels_fewer_or_more_than_classes_are_refused_before_anything_is_sent(labels):
    handle = classifier(labels=labels)
    expected = f"classifier 'digits': expected 4 labels.*got {len(labels)}"
    with pytest.raises(ConfigurationError, match=expected):
        await handle(LOGITS)
    assert handle.sent == []


async def test_labels_are_counted_again_where_the_signature_leaves_the_classes_open():
    served = spec([("X", "FP32", (-1, 4))], [("LOGITS", "FP32", (-1, -1))])
    with pytest.raises(ConfigurationError, match=r"expected 4 labels.*got 3"):
        await classifier(served, labels=list("abc"))(LOGITS)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"labels": []}, "labels is a list of strings, one for each class, or the path of a file"),
        ({"activation": "relu"}, "activation is one of softmax, sigmoid, none, not 'relu'"),
        ({"top_k": 0}, "top_k is a whole number from 1 on, or None, not 0"),
        ({"top_k": True}, "top_k is a whole number from 1 on, or None, not True"),
        ({"top_k": 1.5}, "top_k is a whole number from 1 on, or None, not 1.5"),
        ({"threshold": 1.5}, "threshold is a number from 0 to 1, or None, not 1.5"),
        ({"threshold": "high"}, "threshold is a number from 0 to 1, or None, not 'high'"),
        ({"threshold": True}, "threshold is a number from 0 to 1, or None, not True"),
        ({"threshold": np.nan, "activation": "none"}, "threshold is a number, or None, not nan"),
        ({"image_sise": (4, 4)}, "unknown option 'image_sise' (did you mean 'image_size'?)"),
        ({"resize": "squeeze"}, "resize is "),
    ],
)
def test_options_that_make_no_sense_are_refused(options, reason):
    with pytest.raises(ConfigurationError) as caught:
        classifier(**options)
    assert str(caught.value).startswith(f"classifier 'digits': {reason}")


def test_a_threshold_on_raw_scores_may_be_any_number():
    assert classifier(activation="none", threshold=-3.5, top_k=2)


# --- which classes count ---


async def test_the_best_class_alone_counts_by_default():
    (first, second) = await classifier()(LOGITS)
    assert [[each.index for each in row.predictions] for row in (first, second)] == [[1], [0]]
    assert "predictions" not in first.to_dict()


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        ({"top_k": 2}, [[1, 2], [0, 1]]),
        ({"top_k": 9}, [[1, 2, 0, 3], [0, 1, 2, 3]]),
        ({"threshold": 0.5}, [[1, 2], [0]]),
        ({"threshold": 0.5, "top_k": 1}, [[1], [0]]),
        ({"threshold": 0.99}, [[], []]),
    ],
)
async def test_top_k_and_threshold_say_which_classes_count(options, indices):
    rows = await classifier(activation="sigmoid", **options)(LOGITS)
    assert [[each.index for each in row.predictions] for row in rows] == indices
    assert [[each["index"] for each in row.to_dict()["predictions"]] for row in rows] == indices
    assert rows[1:][0].predictions == rows[1].predictions
    assert (await classifier(activation="sigmoid", **options).one(LOGITS[0])).label == "1"


# --- which output ---


@pytest.mark.parametrize(
    ("datatype", "shape", "shown"),
    [
        ("BYTES", (-1, 4), "BYTES [batch, 4]"),
        ("FP32", (-1,), "FP32 [batch]"),
        ("FP32", (-1, 7, 4), "FP32 [batch, 7, 4]"),
    ],
)
async def test_an_output_that_is_no_scores_is_refused(datatype, shape, shown):
    served = spec([("X", "FP32", (-1, 4))], [("LOGITS", datatype, shape)])
    handle = classifier(served)
    with pytest.raises(ConfigurationError) as caught:
        await handle(LOGITS)
    assert "model 'net': expected an output of scores" in str(caught.value)
    assert f"got 'LOGITS' {shown}" in str(caught.value)
    assert handle.sent == []


async def test_the_only_output_of_scores_is_taken():
    served = spec(
        [("X", "FP32", (-1, 4))],
        [
            ("TEXT", "BYTES", (-1, 4)),
            ("MAP", "FP32", (-1, 7, 7)),
            ("LOGITS", "FP32", (-1, 4, 1, 1)),
            ("YES", "BOOL", (-1, 4)),
            ("COUNT", "INT64", (-1,)),
        ],
    )
    handle = classifier(served)
    assert (await handle(LOGITS)).indices.tolist() == [1, 0]
    assert handle.sent[0].outputs == ("LOGITS",)


async def test_several_outputs_of_scores_need_a_name():
    served = spec(
        [("X", "FP32", (-1, 4))],
        [("LOGITS", "FP32", (-1, 4)), ("TEXT", "BYTES", (-1, 4)), ("EMBEDDING", "FP32", (-1, 64))],
    )
    with pytest.raises(ConfigurationError) as caught:
        await classifier(served)(LOGITS)
    assert str(caught.value) == (
        "model 'net' has 3 outputs, 2 of them of scores: numbers of shape [batch, C]; say which "
        "one by output_name=…: 'LOGITS' FP32 [batch, 4]; 'EMBEDDING' FP32 [batch, 64]"
    )
    result = await classifier(served, output_name="LOGITS")(LOGITS)
    assert result.indices.tolist() == [1, 0]


# --- models without a batch axis of their own ---


async def test_a_free_first_axis_is_the_batch():
    served = spec([("X", "FP32", (-1, 4))], [("LOGITS", "FP32", (-1, 4))], max_batch_size=0)
    handle = classifier(served)
    assert (await handle(LOGITS)).indices.tolist() == [1, 0]
    assert (await handle.one(LOGITS[0])).index == 1
    assert [call.rows for call in handle.sent] == [0, 0]
    assert [call.inputs[0].shape for call in handle.sent] == [(2, 4), (1, 4)]


async def test_a_first_axis_of_length_one_takes_one_row():
    served = spec([("X", "FP32", (1, 4))], [("LOGITS", "FP32", (1, 4))], max_batch_size=0)
    handle = classifier(served)
    assert (await handle.one(LOGITS[0])).index == 1
    with pytest.raises(InvalidInputError, match=r"input 'X': expected 1 row\(s\) a call.* got 2"):
        await handle(LOGITS)


async def test_a_model_without_an_axis_for_a_batch_takes_one_item():
    served = spec([("X", "FP32", (4,))], [("LOGITS", "FP32", (4,))], max_batch_size=0)
    handle = classifier(served)
    assert (await handle.one(LOGITS[0])).index == 1
    assert (await handle(LOGITS[:1])).scores.shape == (1, 4)
    assert [call.inputs[0].shape for call in handle.sent] == [(4,), (4,)]
    with pytest.raises(InvalidInputError, match=r"'X': expected one item a call.* got 2; make a"):
        await handle(LOGITS)


# --- answers that are none ---


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        ({"OTHER": LOGITS}, "expected 2 rows, got no such output"),
        ({"LOGITS": LOGITS[:1]}, r"expected 2 rows, got shape \[1, 4\]"),
        ({"LOGITS": LOGITS[:, 0]}, r"expected scores \[batch, C\], got \[2\]"),
        ({"LOGITS": np.zeros((2, 4, 4), np.float32)}, r"expected scores .* got \[2, 4, 4\]"),
        ({"LOGITS": np.zeros((2, 0), np.float32)}, r"expected scores .* got \[2, 0\]"),
    ],
)
async def test_an_answer_that_is_no_scores_is_an_error(answer, got):
    served = spec([("X", "FP32", (-1, 4))], [("LOGITS", "FP32", (-1, -1))])
    with pytest.raises(ProtocolError, match=f"model 'net', output 'LOGITS': {got}"):
        await classifier(served, lambda call: answer)(LOGITS)
