"""Which values become which arrays unasked, and what the refusals say."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.handles.fakes import spec
from tritonasync.core.errors import InvalidInputError
from tritonasync.core.values import DATATYPES, TensorSpec
from tritonasync.handles.conversion import to_array
from tritonasync.handles.slot import InputSlot
from tritonasync.wire.dtypes import numpy_dtype

NUMBERS = [name for name in DATATYPES if name != "BYTES"]
GIVEN = ["?", *"bhilqBHILQ", "e", "f", "d", "g", "F", "M8[s]", "m8[s]", "S3", "U3", "O", "V4"]


def slot(datatype, casting="safe"):
    tensor = TensorSpec("x", datatype, (-1, 4))
    return InputSlot.of(spec([tensor]), tensor, casting)


def refusal(value, datatype, casting="safe"):
    with pytest.raises(InvalidInputError) as caught:
        to_array(value, slot(datatype, casting))
    assert caught.value.model == "net"
    assert str(caught.value).startswith("model 'net', input 'x': ")
    return str(caught.value)


# --- arrays have a dtype of their own ---


@pytest.mark.parametrize("datatype", NUMBERS)
def test_an_array_of_the_right_dtype_is_passed_on_itself(datatype):
    array = np.zeros((2, 3), numpy_dtype(datatype))
    assert to_array(array, slot(datatype)) is array


@pytest.mark.parametrize("datatype", ["INT16", "FP32", "UINT64"])
def test_the_other_byte_order_is_left_to_the_wire(datatype):
    array = np.arange(3, dtype=numpy_dtype(datatype).newbyteorder(">"))
    assert to_array(array, slot(datatype)) is array


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("code", GIVEN)
@pytest.mark.parametrize("casting", ["safe", "same_kind"])
def test_numbers_are_converted_where_numpy_says_so_and_nothing_else_is(code, datatype, casting):
    array, target = np.zeros(3, code), numpy_dtype(datatype)
    number = array.dtype.kind in "biuf"
    if number and np.can_cast(array.dtype, target, casting):
        assert to_array(array, slot(datatype, casting)).dtype == target
    else:
        message = refusal(array, datatype, casting)
        assert f"expected {datatype} (" in message
        assert f"got {array.dtype}" in message


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(code) for code in "?bhiBHIef"]),
        3,
    )
)
def test_a_safe_conversion_keeps_every_value(array):
    for datatype in NUMBERS:
        try:
            converted = to_array(array, slot(datatype))
        except InvalidInputError:
            continue
        np.testing.assert_array_equal(converted.astype(np.float64), array.astype(np.float64))


def test_a_refusal_says_how_to_convert():
    assert refusal(np.zeros(3), "FP32") == (
        "model 'net', input 'x': expected FP32 (float32), got float64; convert it with "
        'array.astype(numpy.float32), or make the handle with casting="same_kind"'
    )


def test_a_conversion_of_another_kind_is_not_offered_as_an_option():
    assert refusal(np.zeros(3), "INT32") == (
        "model 'net', input 'x': expected INT32 (int32), got float64; convert it with "
        "array.astype(numpy.int32) if that is what you mean"
    )
    assert "array.astype(numpy.bool_)" in refusal(np.zeros(3), "BOOL")


def test_same_kind_narrows_without_a_warning():
    array = np.array([1e300, 0.5])
    assert to_array(array, slot("FP32", "same_kind")).tolist() == [np.inf, 0.5]


def test_a_view_of_a_subclass_shares_its_memory():
    matrix = np.arange(4, dtype=np.float32).reshape(2, 2).view(np.matrix)
    array = to_array(matrix, slot("FP32"))
    assert type(array) is np.ndarray
    assert np.shares_memory(array, matrix)


def test_a_masked_array_is_refused():
    message = refusal(np.ma.masked_array(np.zeros(3, np.float32), mask=[0, 1, 0]), "FP32")
    assert "masked" in message
    assert "filled" in message


def test_a_pillow_image_is_an_array():
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    array = to_array(image, slot("FP32"))
    assert array.dtype == np.float32
    assert array[0, 0].tolist() == [1, 2, 3]


class OnGpu:
    """As torch and CuPy refuse to come to the host unasked."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class OnCpu:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_what_knows_how_to_be_an_array_is_one_without_a_copy():
    array = np.zeros(3, np.float32)
    assert to_array(OnCpu(array), slot("FP32")) is array


def test_what_cannot_come_to_the_host_says_so():
    assert "cuda:0 device" in refusal(OnGpu(), "FP32")


@pytest.mark.parametrize("value", [None, {"a": 1}, {1, 2}, object(), 1 + 2j, (x for x in "ab")])
def test_what_is_no_array_is_refused(value):
    message = refusal(value, "FP32")
    assert "expected an array of FP32 (float32), got " in message
    assert type(value).__name__ in message


# --- BF16 ---


def test_bfloat16_takes_what_numpy_casts_to_it_safely():
    array = to_array(np.array([1, 2], np.uint8), slot("BF16"))
    assert array.dtype == ml_dtypes.bfloat16
    assert "array.astype(ml_dtypes.bfloat16)" in refusal(np.zeros(2, np.float32), "BF16")
    assert "array.view(ml_dtypes.bfloat16)" in refusal(np.zeros(2, np.uint16), "BF16")
    assert to_array(np.zeros(2, ml_dtypes.bfloat16), slot("FP32")).dtype == np.float32
    assert to_array([1, 0.5], slot("BF16")).astype(np.float32).tolist() == [1, 0.5]


def test_without_ml_dtypes_only_raw_bits_go_into_bfloat16():
    raw = replace(slot("BF16"), dtype=np.dtype("<u2"))
    bits = np.array([0x3F80], np.uint16)
    assert to_array(bits, raw) is bits
    for value in (np.zeros(2, np.uint8), np.zeros(2, np.float32), [1, 2], [1.5]):
        with pytest.raises(InvalidInputError, match=r"expected BF16 .*pip install ml_dtypes"):
            to_array(value, raw)


# --- BYTES ---


@pytest.mark.parametrize(
    "array",
    [np.array(["a", b"b"], object), np.array([b"a", b"bc"]), np.array(["a", "bc"])],
    ids=["object", "bytes", "str"],
)
def test_string_arrays_go_to_bytes_as_they_are(array):
    assert to_array(array, slot("BYTES")) is array


def test_lists_of_strings_become_object_arrays():
    array = to_array([["a", b"b"], ["c\0", "é"]], slot("BYTES"))
    assert array.dtype == object
    assert array.tolist() == [["a", b"b"], ["c\0", "é"]]
    assert to_array("abc", slot("BYTES")).tolist() == "abc"
    assert to_array(["a", np.str_("b")], slot("BYTES")).tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.zeros(3, np.float32), "got float32"),
        ([1, 2], "got a list of Python's int"),
        (["a", 1.5], "got a list of Python's float"),
        (["a", None], "got a list with NoneType in it"),
    ],
)
def test_other_things_are_no_strings(value, got):
    message = refusal(value, "BYTES")
    assert "expected " in message
    assert "BYTES (str or bytes)" in message
    assert got in message


def test_strings_are_no_numbers():
    assert "expected FP32 (float32), got a list of Python's str" in refusal(["1", "2"], "FP32")
    assert "expected FP32 (float32), got <U1" in refusal(np.array(["1"]), "FP32")


# --- Python's own numbers take the model's dtype ---

LISTS = {"BOOL": [True, False], "INT8": [-128, 127], "UINT64": [0, 2**64 - 1], "INT64": [-(2**63)]}


@pytest.mark.parametrize("datatype", NUMBERS)
def test_whole_numbers_in_lists_take_the_dtype_of_the_model(datatype):
    values = LISTS.get(datatype, [0, 1, 2])
    array = to_array(values, slot(datatype))
    assert array.dtype == numpy_dtype(datatype)
    assert array.tolist() == values


@given(st.lists(st.integers(-(2**65), 2**65) | st.integers(-300, 300), min_size=1))
def test_whole_numbers_are_taken_if_and_only_if_they_fit(values):
    for datatype in ("INT8", "UINT8", "INT32", "INT64", "UINT64"):
        limits = np.iinfo(numpy_dtype(datatype))
        if limits.min <= min(values) and max(values) <= limits.max:
            array = to_array(values, slot(datatype))
            assert array.dtype == numpy_dtype(datatype)
            assert array.tolist() == values
        else:
            message = refusal(values, datatype)
            assert f"is out of range for {datatype}" in message
            assert f"which holds {limits.min} to {limits.max}" in message


@given(st.lists(st.floats(width=32) | st.integers(-9, 9) | st.booleans(), min_size=1))
def test_floats_ints_and_bools_go_into_floats(values):
    for datatype in ("FP32", "FP64"):
        array = to_array(values, slot(datatype))
        assert array.dtype == numpy_dtype(datatype)
        np.testing.assert_array_equal(array, np.array(values, np.float64))


@pytest.mark.parametrize(
    ("values", "datatype", "shown"),
    [
        ([0.5, 70000.0], "FP16", "70000.0 is out of range for FP16"),
        ([1e39], "FP32", "1e+39 is out of range for FP32"),
        ([10**400], "FP64", "an integer of 1329 bits is out of range for FP64"),
        ([1e39], "BF16", "1e+39 is out of range for BF16"),
    ],
)
def test_floats_that_would_become_infinite_are_refused(values, datatype, shown):
    assert shown in refusal(values, datatype)


def test_infinity_and_nan_are_floats_like_others():
    array = to_array([np.inf.__float__(), float("nan")], slot("FP16"))
    assert np.isinf(array[0])
    assert np.isnan(array[1])


@pytest.mark.parametrize(
    ("values", "datatype", "got"),
    [
        ([1.0, 2.0], "INT32", "float"),
        ([1, 2], "BOOL", "int"),
        ([True, "a"], "INT8", "str"),
    ],
)
def test_another_kind_of_python_value_is_refused(values, datatype, got):
    message = refusal(values, datatype)
    assert f"expected {datatype} (" in message
    assert f"got a list of Python's {got}" in message


def test_subclasses_of_pythons_numbers_are_pythons_numbers():
    class Count(int):
        pass

    assert to_array([Count(3)], slot("INT8")).tolist() == [3]


def test_numpy_scalars_bring_their_dtype_into_a_list():
    assert "got float64" in refusal([np.float64(1), 2.0], "FP32")
    assert to_array([np.float32(1), np.float32(2)], slot("FP32")).dtype == np.float32


def test_lists_of_arrays_are_stacked():
    rows = [np.zeros(4, np.float32), np.ones(4, np.float32)]
    np.testing.assert_array_equal(to_array(rows, slot("FP32")), np.stack(rows))
    assert "got float64" in refusal([np.zeros(4)], "FP32")


@given(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
def test_nested_lists_have_the_shape_that_numpy_gives_them(shape):
    nested = np.zeros(shape).tolist()
    assert to_array(nested, slot("FP32")).shape == np.array(nested).shape


# --- ragged ---


@pytest.mark.parametrize(
    ("value", "datatype", "lengths"),
    [
        ([[1.0, 2.0], [3.0]], "FP32", "2 (row 0), 1 (row 1);"),
        ([[1], [], [2, 3], []], "FP32", "1 (row 0), 0 (row 1), 2 (row 2);"),
        ([["a"], ["b", "c"]], "BYTES", "1 (row 0), 2 (row 1);"),
        (
            [np.zeros(3, np.float32), np.zeros(2, np.float32)],
            "FP32",
            "[3] (row 0), [2] (row 1);",
        ),
        ([[0]] * 80 + [[0, 0]] * 5, "INT8", "1 (row 0), 2 (row 80);"),
        ([[0] * size for size in range(9)], "INT8", "7 (row 7), …;"),
    ],
)
def test_ragged_lists_are_refused_with_their_lengths(value, datatype, lengths):
    message = refusal(value, datatype)
    assert "ragged: its rows differ in length: " in message
    assert lengths in message


def test_values_beside_lists_are_ragged():
    assert "ragged" in refusal([1.0, [2.0]], "FP32")
