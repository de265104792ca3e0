"""Classifiers: which tensors, what scores mean, labels; and the form of the results."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.errors import ConfigurationError, InvalidInputError, ProtocolError
from tritonasync.core.values import TensorSpec
from tritonasync.handles.classifier import Classification, Classifications, Classifier
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
    handle = classifier()
    await handle(LOGITS)
    assert handle.sent[0].outputs == ("LOGITS",)


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


@pytest.mark.parametrize("labels", ["abcd", [], ["a", 1, "b", "c"]])
def test_labels_that_are_no_list_of_strings_are_refused(labels):
    with pytest.raises(ConfigurationError, match="labels is a list of strings"):
        classifier(labels=labels)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ConfigurationError, match=r"softmax, sigmoid, none, not 'relu'"):
        classifier(activation="relu")


# --- which input and output ---

MANY = spec(
    [("X", "FP32", (-1, 4)), TensorSpec("HINT", "FP32", (-1, 1), optional=True)],
    [("LOGITS", "FP32", (-1, 4)), ("EMBEDDING", "FP32", (-1, 64))],
    name="many",
)


async def test_several_outputs_need_a_name_and_are_listed():
    with pytest.raises(ConfigurationError) as caught:
        await classifier(MANY)(LOGITS)
    assert str(caught.value) == (
        "model 'many' has 2 outputs; say which one by output_name=…: 'LOGITS' FP32 [batch, 4]; "
        "'EMBEDDING' FP32 [batch, 64]"
    )


async def test_outputs_and_inputs_are_chosen_by_name():
    result = await classifier(MANY, output_name="LOGITS", input_name="X")(LOGITS)
    assert result.indices.tolist() == [1, 0]


async def test_optional_inputs_are_no_candidates_unless_named():
    handle = classifier(MANY, output_name="LOGITS")
    await handle(LOGITS)
    assert [t.name for t in handle.sent[0].inputs] == ["X"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"input_name": "Y"}, "has no input 'Y'; it has 'X' FP32 [batch, 4]; 'HINT' FP32"),
        ({"output_name": "Y"}, "has no output 'Y'; it has 'LOGITS' FP32 [batch, 4]; 'EMB"),
        ({"input_name": "HINT"}, "needs more inputs than 'HINT': 'X' FP32 [batch, 4]; call it by"),
    ],
)
async def test_wrong_names_are_refused_with_the_candidates(options, reason):
    with pytest.raises(ConfigurationError) as caught:
        await classifier(MANY, **{"output_name": "LOGITS", **options})(LOGITS)
    assert f"model 'many' {reason}" in str(caught.value)


async def test_two_inputs_that_must_be_given_are_too_many():
    served = spec([("A", "FP32", (-1, 4)), ("B", "FP32", (-1, 4))], [("LOGITS", "FP32", (-1, 4))])
    with pytest.raises(
        ConfigurationError, match=r"has 2 inputs; say which one by input_name=…: 'A'"
    ):
        await classifier(served)(LOGITS)


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


async def test_no_axis_for_a_batch_is_an_error():
    served = spec([("X", "FP32", (4, 4))], [("LOGITS", "FP32", (4,))], max_batch_size=0)
    with pytest.raises(
        ConfigurationError, match=r"no axis for a batch.*'X' FP32 \[4, 4\]; 'LOGITS'"
    ):
        await classifier(served)(np.zeros((4, 4), np.float32))


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


# --- the results ---


@pytest.fixture
def results():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], np.float32)
    return Classifications(scores, ("a", "b", "c"), model="digits", version="1")


def test_classifications_are_a_sequence(results):
    assert len(results) == 3
    assert [row.label for row in results] == ["b", "a", "c"]
    assert results[-1].index == 2
    with pytest.raises(IndexError):
        results[3]


def test_slices_are_classifications(results):
    tail = results[1:]
    assert isinstance(tail, Classifications)
    assert tail.labels == ("a", "c")
    assert (tail.model, tail.version, tail.classes) == ("digits", "1", ("a", "b", "c"))
    assert np.shares_memory(tail.scores, results.scores)


def test_top_gives_the_best_classes_best_first(results):
    top = results[1].top(2)
    assert [(c.label, c.index, c.score) for c in top] == [("a", 0, 0.5), ("b", 1, 0.25)]
    assert len(results[0].top(9)) == 3
    with pytest.raises(ValueError, match="k must be 1 or more"):
        results[0].top(0)


def test_results_are_ready_for_json(results):
    as_json = json.loads(json.dumps(results.to_dict()))
    assert as_json["model"] == "digits"
    assert as_json["version"] == "1"
    assert as_json["classifications"][1] == {"label": "a", "index": 0, "score": 0.5}


def test_results_show_themselves(results):
    assert repr(results) == "<Classifications of 'digits', 3 rows: b 0.7, a 0.5, c 1>"
    assert repr(results[0]) == "Classification(label='b', index=1, score=0.699999988079071)"


@given(hnp.arrays(np.float32, (3, 4), elements=st.sampled_from([0.0, 0.25, 0.5, np.inf, np.nan])))
def test_the_best_class_is_the_first_of_the_top(scores):
    results = Classifications(scores, ("a", "b", "c", "d"))
    for row, values in zip(results, scores.tolist(), strict=True):
        assert row.top(1)[0].index == row.index
        numbers = [value for value in values if not np.isnan(value)]
        best = values.index(max(numbers)) if numbers else 0
        assert row.index == best
    assert results.indices.tolist() == [row.index for row in results]
