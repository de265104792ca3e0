import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.core.errors import InvalidInputError, MessageTooLargeError
from tritonasync.core.values import Call, InputTensor
from tritonasync.wire.dtypes import numpy_dtype
from tritonasync.wire.encode import MAX_MESSAGE_NBYTES, encode_request


def call(*parts, shape, datatype="FP32", **fields) -> Call:
    return Call("resnet", "", (InputTensor("IMAGE", datatype, shape, parts),), **fields)


def refusal(made: Call) -> str:
    with pytest.raises(InvalidInputError) as caught:
        encode_request(made)
    assert caught.value.model == "resnet"
    return str(caught.value)


def assert_names(text: str, *words: str) -> None:
    for word in ("resnet", *words):
        assert word in text


def test_a_0d_tensor_is_refused_with_the_way_out():
    text = refusal(call(np.array(1, np.float32), shape=()))
    assert_names(text, "IMAGE", "0-d", "reshape it to (1,)")


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
@pytest.mark.parametrize("part", [[1.0], (b"x",), b"abcd", None])
def test_a_part_that_is_no_array_is_refused(part, datatype):
    text = refusal(call(part, shape=(1,), datatype=datatype))
    assert_names(text, "IMAGE", "part 0", type(part).__name__, "numpy array")


@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [
        (np.float64, "FP32"),
        (np.float32, "FP64"),
        (np.int32, "FP32"),
        (np.uint16, "BF16"),
        (np.int64, "UINT64"),
        (np.uint8, "BOOL"),
        (object, "FP32"),
        (np.float32, "BYTES"),
        ([("a", "f4")], "FP32"),
    ],
)
def test_a_part_of_another_dtype_is_refused_with_both_named(dtype, datatype):
    pytest.importorskip("ml_dtypes")  # without it uint16 *is* BF16
    good = np.zeros(1, object if datatype == "BYTES" else "f4")
    text = refusal(call(good, np.zeros(1, dtype), shape=(2,), datatype=datatype))
    assert_names(text, "IMAGE", datatype)
    assert str(np.dtype(dtype)) in text or "part 0" in text


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
@pytest.mark.parametrize(
    ("parts", "shape"),
    [
        ([(1, 4)], (2, 4)),
        ([(3, 4)], (2, 4)),
        ([(1, 4), (1, 3)], (2, 4)),
        ([], (2, 4)),
        ([(0, 4)] * 6, (2, 4)),
        ([(1, 4)], (0, 4)),
    ],
)
def test_parts_that_do_not_make_up_the_shape_are_refused(parts, shape, datatype):
    dtype = {"FP32": np.float32, "BYTES": "S1"}[datatype]
    arrays = [np.ones(part, dtype) for part in parts]
    text = refusal(call(*arrays, shape=shape, datatype=datatype))
    assert_names(text, "IMAGE", f"{len(parts)} parts", str(shape))


@given(st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=4))
def test_a_message_leaves_only_if_the_elements_add_up(shapes):
    made = call(*(np.zeros(shape, np.float32) for shape in shapes), shape=(3, 2))
    if sum(int(np.prod(shape)) for shape in shapes) == 6:
        encode_request(made)
    else:
        refusal(made)


def test_too_much_in_one_input_does_not_make_up_for_too_little_in_another():
    inputs = (
        InputTensor("A", "FP32", (2, 2), (np.zeros((2, 3), np.float32),)),
        InputTensor("B", "FP32", (2, 2), (np.zeros((2, 1), np.float32),)),
    )
    assert_names(refusal(Call("resnet", "", inputs)), "'A'")


@pytest.mark.parametrize("shape", [(-1, 4), (2, -2), (-1, -4)])
def test_a_negative_axis_is_refused(shape):
    assert_names(refusal(call(np.zeros(4, np.float32), shape=shape)), "IMAGE", "negative")


@pytest.mark.parametrize(
    "element", [None, 7, 1.5, bytearray(b"x"), memoryview(b"x"), ["a"], object]
)
@pytest.mark.parametrize("count", [3, 300])
@pytest.mark.parametrize("others", [b"bytes", "text"])
def test_an_object_that_is_no_string_is_refused_with_index_and_type(element, count, others):
    array = np.empty(count, object)
    array[:] = others
    array[2] = element
    text = refusal(call(array[:1], array[1:], shape=(count,), datatype="BYTES"))
    assert_names(text, "IMAGE", "element 2", f"is a {type(element).__name__}")


@pytest.mark.parametrize("count", [3, 300])
def test_a_string_that_utf8_cannot_encode_is_refused_with_its_index(count):
    array = np.array(["fine"] * count, object)
    array[1] = "\ud800"
    text = refusal(call(array, shape=(count,), datatype="BYTES"))
    assert_names(text, "IMAGE", "element 1", "UTF-8")


def test_an_unknown_datatype_is_refused():
    with pytest.raises(InvalidInputError, match="FP8"):
        encode_request(call(np.zeros(1, np.uint8), shape=(1,), datatype="FP8"))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, None, b"bytes", np.int64(1), "\ud800", [1]])
def test_a_parameter_that_no_field_can_hold_is_refused(value):
    made = call(np.zeros(1, np.float32), shape=(1,), parameters=(("speed", value),))
    assert_names(refusal(made), "speed")


@pytest.mark.parametrize("key", ["\ud800", 7])
def test_a_parameter_key_that_is_no_text_is_refused(key):
    made = call(np.zeros(1, np.float32), shape=(1,), parameters=((key, 1),))
    assert_names(refusal(made), repr(key))


def test_an_id_that_utf8_cannot_encode_is_refused():
    assert_names(refusal(call(np.zeros(1, np.float32), shape=(1,), request_id="\ud800")), "id")


@pytest.mark.parametrize(
    "made",
    [
        Call("\ud800", "", ()),
        Call("m", "\ud800", ()),
        Call("m", "", (), outputs=("\ud800",)),
        Call("m", "", (), outputs=(5,)),  # type: ignore[arg-type]
        Call("m", "", (InputTensor("\ud800", "FP32", (1,), (np.zeros(1, "f4"),)),)),
        Call("m", "", (InputTensor("IN", "FP32", (2**63, 0), (np.zeros((1, 0), "f4"),)),)),
    ],
)
def test_names_and_shapes_that_protobuf_cannot_hold_are_refused(made):
    with pytest.raises(InvalidInputError, match="do not fit a request"):
        encode_request(made)


def test_a_message_over_2_gib_is_refused_before_anything_is_copied():
    array = np.broadcast_to(np.zeros(1, np.uint8), (2**31,))
    with pytest.raises(MessageTooLargeError, match=r"2,147,483,6\d\d bytes") as caught:
        encode_request(call(array, shape=array.shape, datatype="UINT8"))
    assert caught.value.model == "resnet"
    assert MAX_MESSAGE_NBYTES == 2**31 - 1


@pytest.mark.parametrize("datatype", ["FP32", "BF16"])
def test_parts_that_would_have_to_be_put_in_order_are_not_if_the_message_is_too_large(datatype):
    dtype = numpy_dtype(datatype)
    array = np.zeros((4, 1 << 20), dtype.newbyteorder(">") if datatype == "FP32" else dtype)
    made = call(array, shape=array.shape, datatype=datatype)
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLargeError):
            encode_request(made, limit=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("fields", [{}, {"request_id": "x" * 50}, {"parameters": (("k", "v"),)}])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_the_limit_is_the_size_of_the_whole_message(datatype, fields):
    array = np.zeros(100, np.float32) if datatype == "FP32" else np.array(["abc"] * 100)
    made = call(array, shape=(100,), datatype=datatype, **fields)
    message = encode_request(made)
    assert encode_request(made, limit=len(message)) == message
    with pytest.raises(MessageTooLargeError, match=f"{len(message):,} bytes"):
        encode_request(made, limit=len(message) - 1)


@pytest.mark.parametrize("request_id", [None, 5, b"abc", ["l"], 0])
@pytest.mark.parametrize("stream_id", [None, "1"])
def test_a_request_id_is_a_string(request_id, stream_id):
    with pytest.raises(InvalidInputError, match="a request id is a string"):
        encode_request(replace(Call("m", "", ()), request_id=request_id), stream_id=stream_id)


@pytest.mark.parametrize("stream_id", [None, "a\0b#1"])
def test_a_request_id_has_no_nul_where_the_server_would_end_it(stream_id):
    with pytest.raises(InvalidInputError, match="NUL"):
        encode_request(Call("m", "", (), request_id="a\0b"), stream_id=stream_id)
