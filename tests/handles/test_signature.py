"""Names, shapes, the batch axis and rows: what is bound, and what the refusals say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.handles.fakes import spec
from tritonasync.core.errors import InvalidInputError
from tritonasync.core.values import TensorSpec
from tritonasync.handles.signature import signature_of

IMAGE = ("IMAGE", "FP32", (-1, 3, 8, 8))
MASK = TensorSpec("MASK", "INT32", (-1, -1), optional=True)
SIGNATURE = signature_of(spec([IMAGE, MASK]), "safe")
UNBATCHED = signature_of(spec([("X", "FP32", (-1, 4))], max_batch_size=0), "safe")


def image(*shape):
    return np.zeros(shape, np.float32)


def refusal(signature, inputs, *, item=False):
    with pytest.raises(InvalidInputError) as caught:
        signature.bind(inputs, item=item)
    assert caught.value.model == "net"
    return str(caught.value)


# --- what is bound ---


def test_tensors_share_memory_with_what_was_given():
    batch = image(2, 3, 8, 8)
    (tensor,), rows = SIGNATURE.bind({"IMAGE": batch})
    assert rows == 2
    assert (tensor.name, tensor.datatype, tensor.shape) == ("IMAGE", "FP32", (2, 3, 8, 8))
    assert tensor.parts[0] is batch


def test_an_item_gets_its_batch_axis_as_a_view():
    item = image(3, 8, 8)
    (tensor,), rows = SIGNATURE.bind({"IMAGE": item}, item=True)
    assert rows == 1
    assert tensor.shape == (1, 3, 8, 8)
    assert np.shares_memory(tensor.parts[0], item)


def test_tensors_come_in_the_order_of_the_model():
    inputs = {"MASK": np.zeros((2, 7), np.int32), "IMAGE": image(2, 3, 8, 8)}
    tensors, _ = SIGNATURE.bind(inputs)
    assert [tensor.name for tensor in tensors] == ["IMAGE", "MASK"]


@pytest.mark.parametrize("item", [False, True])
def test_without_a_batch_axis_arrays_pass_unchanged(item):
    array = image(5, 4)
    (tensor,), rows = UNBATCHED.bind({"X": array}, item=item)
    assert rows == 0
    assert tensor.parts[0] is array


def test_rows_of_no_length_are_no_business_of_ours():
    (_, tensor), rows = SIGNATURE.bind(
        {"IMAGE": image(2, 3, 8, 8), "MASK": np.zeros((2, 0), np.int32)}
    )
    assert rows == 2
    assert tensor.shape == (2, 0)


@given(
    st.lists(st.integers(-1, 3).filter(bool), max_size=3).map(tuple),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=3),
    st.booleans(),
)
def test_a_shape_is_taken_if_and_only_if_it_fits(axes, shape, item):
    signature = signature_of(spec([("X", "FP32", (-1, *axes))]), "safe")
    item_shape = shape if item else shape[1:]
    fits = (
        (item or len(shape) > 0)
        and len(item_shape) == len(axes)
        and all(want in (-1, got) for want, got in zip(axes, item_shape, strict=True))
    )
    try:
        (tensor,), rows = signature.bind({"X": image(*shape)}, item=item)
    except InvalidInputError:
        assert not fits
    else:
        assert fits
        assert tensor.shape == ((1, *shape) if item else shape)
        assert rows == tensor.shape[0]


def test_equal_signatures_are_compiled_once():
    assert signature_of(spec([IMAGE]), "safe") is signature_of(spec([IMAGE]), "safe")


# --- the short way, where each input is an array of the very dtype and all axes are fixed ---

SIMPLE = signature_of(spec([("A", "FP32", (-1, 4)), ("B", "FP32", (-1, 2))]), "safe")


def test_the_short_way_passes_arrays_on_themselves():
    a, b = image(3, 4), image(3, 2)
    assert SIMPLE.ready({"B": b, "A": a}, item=False) == SIMPLE.bind({"B": b, "A": a})
    (first, second), rows = SIMPLE.bind({"B": b, "A": a})
    assert first.parts[0] is a
    assert second.parts[0] is b
    assert rows == 3


def test_the_short_way_gives_an_item_its_batch_axis_as_a_view():
    a, b = image(4), image(2)
    (first, second), rows = SIMPLE.bind({"A": a, "B": b}, item=True)
    assert rows == 1
    assert (first.shape, second.shape) == ((1, 4), (1, 2))
    assert np.shares_memory(first.parts[0], a)
    assert np.shares_memory(second.parts[0], b)


@pytest.mark.parametrize(
    ("inputs", "item", "reason"),
    [
        ({"A": image(3, 4), "B": image(2, 2)}, False, "'A' has 3, 'B' has 2"),
        ({"A": image(0, 4), "B": image(0, 2)}, False, "empty batch"),
        ({"A": image(3, 4), "B": image(3, 3)}, False, "expected shape [batch, 2], got [3, 3]"),
        ({"A": image(3, 4), "C": image(3, 2)}, False, "unknown input 'C'"),
        ({"A": image(3, 4), "B": np.ma.masked_array(image(3, 2))}, False, "masked array"),
        ({"A": image(3, 4), "B": np.zeros((3, 2))}, False, "got float64"),
        ({"A": image(4), "B": image(1, 2)}, True, "expected shape [2], got [1, 2]"),
    ],
)
def test_the_short_way_takes_nothing_wrong(inputs, item, reason):
    assert SIMPLE.ready(inputs, item=item) is None
    assert reason in refusal(SIMPLE, inputs, item=item)


def test_free_axes_and_optional_inputs_go_the_long_way_and_arrive():
    assert SIGNATURE.ready({"IMAGE": image(2, 3, 8, 8)}, item=False) is None
    assert UNBATCHED.ready({"X": image(2, 4)}, item=False) is None


# --- names ---


def test_a_wrong_name_is_refused_with_a_suggestion_and_the_inputs():
    assert refusal(SIGNATURE, {"image": image(2, 3, 8, 8)}) == (
        "model 'net': unknown input 'image' (did you mean 'IMAGE'?) and missing input 'IMAGE'; "
        "the model takes 'IMAGE' FP32 [batch, 3, 8, 8]; 'MASK' INT32 [batch, any] (optional)"
    )


def test_names_far_off_get_no_suggestion():
    inputs = {"IMAGE": image(1, 3, 8, 8), "tokens": [1], "zebra": [2]}
    message = refusal(SIGNATURE, inputs)
    assert "unknown inputs 'tokens', 'zebra'; the model takes" in message


def test_a_missing_input_is_named():
    message = refusal(SIGNATURE, {"MASK": np.zeros((2, 7), np.int32)})
    assert "model 'net': missing input 'IMAGE'; the model takes 'IMAGE' FP32" in message


def test_several_missing_inputs_are_named():
    signature = signature_of(spec([("A", "FP32", (-1, 1)), ("B", "FP32", (-1, 1))]), "safe")
    assert "missing inputs 'A', 'B'; the model takes" in refusal(signature, {})


def test_nothing_at_all_is_refused_even_where_all_is_optional():
    assert "no input at all" in refusal(signature_of(spec([MASK]), "safe"), {})


# --- shapes ---


@pytest.mark.parametrize(
    "shape", [(2, 3, 8, 9), (2, 3, 8), (2, 3, 8, 8, 1), (2, 192), (2,)], ids=str
)
def test_a_wrong_shape_or_rank_is_refused(shape):
    got = ", ".join(map(str, shape))
    assert refusal(SIGNATURE, {"IMAGE": image(*shape)}) == (
        f"model 'net', input 'IMAGE': expected shape [batch, 3, 8, 8], got [{got}]"
    )


def test_free_axes_are_shown_as_any():
    inputs = {"IMAGE": image(2, 3, 8, 8), "MASK": np.zeros((2, 7, 7), np.int32)}
    assert "input 'MASK': expected shape [batch, any], got [2, 7, 7]" in refusal(SIGNATURE, inputs)


def test_one_item_in_place_of_a_batch_is_recognised():
    assert refusal(SIGNATURE, {"IMAGE": image(3, 8, 8)}) == (
        "model 'net', input 'IMAGE': expected shape [batch, 3, 8, 8], got [3, 8, 8]: one item "
        "without the batch axis; use handle.one(...), or array[None]"
    )


def test_a_batch_in_place_of_one_item_is_recognised():
    message = refusal(SIGNATURE, {"IMAGE": image(1, 3, 8, 8)}, item=True)
    assert "expected shape [3, 8, 8], got [1, 3, 8, 8]: a batch; call the handle itself" in message


@pytest.mark.parametrize("signature", [SIGNATURE, UNBATCHED], ids=["batched", "unbatched"])
def test_a_single_value_is_refused(signature):
    name = "X" if signature is UNBATCHED else "IMAGE"
    message = refusal(signature, {name: np.float32(1)})
    assert f"input '{name}': expected shape [" in message
    assert "got [], a single value" in message


def test_without_a_batch_axis_the_shape_is_shown_as_it_is():
    assert refusal(UNBATCHED, {"X": image(2, 3)}) == (
        "model 'net', input 'X': expected shape [any, 4], got [2, 3]"
    )


@pytest.mark.parametrize("empty", [image(0, 3, 8, 8), []], ids=["array", "list"])
def test_an_empty_batch_is_refused(empty):
    message = refusal(SIGNATURE, {"IMAGE": empty})
    assert message.startswith("model 'net'")
    assert "'IMAGE'" in message
    assert "empty batch" in message
    assert "expected" in message
    assert "got" in message


def test_all_inputs_must_have_the_same_rows():
    inputs = {"IMAGE": image(2, 3, 8, 8), "MASK": np.zeros((3, 7), np.int32)}
    message = refusal(SIGNATURE, inputs)
    assert "same number of rows (axis 0), but 'IMAGE' has 2, 'MASK' has 3" in message


# --- outputs ---

GIVES = signature_of(
    spec([IMAGE], [("SCORES", "FP32", (-1, 4)), ("BOXES", "FP32", (-1, 4))]), "safe"
)


def test_outputs_are_asked_for_by_name():
    assert GIVES.outputs(None) == ()
    assert GIVES.outputs(["BOXES"]) == ("BOXES",)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["SCORE"], "unknown output 'SCORE' (did you mean 'SCORES'?); the model gives 'SCORES', "),
        (["BOXES", "BOXES"], "an output is asked for twice: 'BOXES', 'BOXES'"),
        ("BOXES", "outputs is a list of names, not the string 'BOXES'"),
    ],
)
def test_wrong_outputs_are_refused(names, reason):
    with pytest.raises(InvalidInputError) as caught:
        GIVES.outputs(names)
    assert f"model 'net': {reason}" in str(caught.value)


# --- how long it will take ---


def test_only_what_is_converted_counts_as_work():
    def work(value):
        return SIGNATURE.conversion_nbytes({"IMAGE": value})

    assert work(image(2, 3, 8, 8)) == 0
    assert work(np.zeros((2, 3, 8, 8), np.uint8)) == 2 * 3 * 8 * 8 * 4
    assert work([image(3, 8, 8)] * 5) == 5 * 3 * 8 * 8 * 4
    assert work([[1.0]]) == 0
    assert work(None) == 0
