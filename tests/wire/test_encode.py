import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.wire import reference
from tests.wire.strategies import FIXED_SIZE, tensors
from tritonasync.core.errors import MessageTooLargeError
from tritonasync.core.values import Call, InputTensor, SequenceStep
from tritonasync.wire import plan
from tritonasync.wire.dtypes import numpy_dtype
from tritonasync.wire.encode import (
    STRING_WEIGHT_NBYTES,
    encode_request,
    encode_small,
    request_nbytes,
)


def parsed(call: Call) -> pb.ModelInferRequest:
    return pb.ModelInferRequest.FromString(encode_request(call))


def tensor(array, datatype="FP32", *, name="IN", parts=None) -> InputTensor:
    return InputTensor(name, datatype, array.shape, (array,) if parts is None else parts)


def call(*inputs: InputTensor, **fields) -> Call:
    return Call("m", "", inputs, **fields)


@given(st.data())
def test_any_call_is_field_for_field_what_tritonclient_sends(data):
    count = data.draw(st.integers(0, 3))
    drawn = [data.draw(tensors(f"IN{index}")) for index in range(count)]
    outputs = tuple(data.draw(st.lists(st.text("xyz"), max_size=2, unique=True)))
    request_id = data.draw(st.text("0123é", max_size=200))
    version = data.draw(st.sampled_from(["", "1", "12"]))
    made = Call(
        "m",
        version,
        tuple(tensor for tensor, _ in drawn),
        outputs=outputs,
        parameters=(("key", 1.5), ("other", "é"), ("third", -7)),
        request_id=request_id,
    )
    assert parsed(made) == reference.request(
        {tensor.name: (array, tensor.datatype) for tensor, array in drawn},
        version=version,
        outputs=outputs,
        request_id=request_id,
        parameters={"key": 1.5, "other": "é", "third": -7},
    )


@pytest.mark.parametrize("datatype", FIXED_SIZE)
@pytest.mark.parametrize("layout", ["rows", "columns", "swapped", "unpickled"])
def test_row_parts_of_every_datatype_make_the_message_of_the_whole(datatype, layout):
    dtype = numpy_dtype(datatype)
    bits = np.random.default_rng(3).integers(0, 2, (64, 6 * dtype.itemsize), np.uint8)
    array = bits.view(dtype)
    match layout:
        case "columns":
            array = array[:, ::2]
        case "swapped" if dtype.kind in "iuf":
            array = array.astype(dtype.newbyteorder(">"))
        case "unpickled":
            array = array.view(dtype.newbyteorder("S").newbyteorder("S"))
    rows = tuple(array[i : i + 1] for i in range(64))
    message = parsed(call(tensor(array, datatype, parts=rows)))
    assert message == reference.request({"IN": (array, datatype)})


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
@pytest.mark.parametrize("item", [(), (4,), (2, 3)])
def test_rows_without_the_batch_axis_make_the_message_of_their_stack(item, datatype):
    array = np.arange(3 * int(np.prod(item))).reshape((3, *item))
    array = array.astype({"FP32": np.float32, "BYTES": "S2"}[datatype])
    stacked = encode_request(call(tensor(array, datatype)))
    parts = tuple(array[row, ...] for row in range(3))
    assert encode_request(call(tensor(array, datatype, parts=parts))) == stacked


def test_bf16_of_small_parts_and_of_one_large_part_are_the_same_bytes():
    array = np.arange(64 * 4096, dtype=np.uint16).reshape(64, 4096).view(numpy_dtype("BF16"))
    rows = tuple(array[i : i + 1, ::64] for i in range(64))
    small = parsed(call(tensor(array[:, ::64], "BF16", parts=rows)))
    assert small.raw_input_contents[0] == array[:, ::64].tobytes()
    assert parsed(call(tensor(array, "BF16"))).raw_input_contents[0] == array.tobytes()


def test_bf16_is_sent_from_raw_uint16_where_ml_dtypes_is_missing():
    array = np.arange(6, dtype=np.uint16).reshape(2, 3)
    with reference.without_ml_dtypes():
        message = parsed(call(tensor(array, "BF16")))
    assert message.inputs[0].datatype == "BF16"
    assert message.raw_input_contents[0] == array.tobytes()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BF16"])
def test_an_empty_tensor_has_an_empty_raw_content(shape, datatype):
    message = parsed(call(tensor(np.empty(shape, numpy_dtype(datatype)), datatype)))
    assert tuple(message.inputs[0].shape) == shape
    assert list(message.raw_input_contents) == [b""]


def test_a_tensor_without_rows_may_have_no_parts():
    message = parsed(
        call(InputTensor("IN", "FP32", (0, 3), ()), InputTensor("S", "BYTES", (0,), ()))
    )
    assert list(message.raw_input_contents) == [b"", b""]


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="numpy 2's StringDType")
def test_variable_width_strings_are_sent():
    array = np.array(["a", "bé", ""], np.dtypes.StringDType())
    assert parsed(call(tensor(array, "BYTES"))) == reference.request({"IN": (array, "BYTES")})


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (True, "bool_param"),
        (False, "bool_param"),
        (1, "int64_param"),
        (0, "int64_param"),
        (-(2**63), "int64_param"),
        (2**63 - 1, "int64_param"),
        (2**63, "uint64_param"),
        (2**64 - 1, "uint64_param"),
        (1.0, "double_param"),
        (np.float64(2.5), "double_param"),
        ("", "string_param"),
        ("é", "string_param"),
    ],
)
def test_a_parameter_goes_into_the_field_of_its_type(value, field):
    parameter = parsed(call(parameters=(("key", value),))).parameters["key"]
    assert parameter.WhichOneof("parameter_choice") == field
    assert getattr(parameter, field) == value


@pytest.mark.parametrize("number", [7, -1, 2**63 - 1, "7", "é"])
@pytest.mark.parametrize("flags", [(), ("start",), ("end",), ("start", "end")])
def test_a_step_of_a_sequence_says_which_in_parameters(number, flags):
    step = SequenceStep(number, start="start" in flags, end="end" in flags)
    array = np.ones((1, 4), np.float32)
    message = parsed(call(tensor(array), sequence=step, parameters=(("beam", 4),), request_id="r1"))
    field = "string_param" if isinstance(number, str) else "int64_param"
    assert message.parameters.pop("sequence_id") == pb.InferParameter(**{field: number})
    for flag in flags:
        parameter = message.parameters.pop(f"sequence_{flag}")
        assert parameter == pb.InferParameter(bool_param=True)
    assert message == parsed(call(tensor(array), parameters=(("beam", 4),), request_id="r1"))


def test_parameters_that_are_equal_as_keys_are_not_mixed_up():
    fields = [
        parsed(call(parameters=(("key", value),))).parameters["key"].WhichOneof("parameter_choice")
        for value in (True, 1, 1.0, True)
    ]
    assert fields == ["bool_param", "int64_param", "double_param", "bool_param"]


def test_ids_and_parameters_differ_while_the_head_comes_from_the_cache():
    array = np.zeros((1, 4), np.float32)
    plan._plan.cache_clear()
    messages = [
        parsed(call(tensor(array), request_id=str(index), parameters=(("index", index),)))
        for index in range(5)
    ]
    assert [message.id for message in messages] == list("01234")
    assert [message.parameters["index"].int64_param for message in messages] == [0, 1, 2, 3, 4]
    assert plan._plan.cache_info()[:2] == (4, 1)


def test_the_cache_of_heads_is_bounded():
    array = np.zeros((1, 4), np.float32)
    limit = plan._plan.cache_info().maxsize
    for index in range(limit + 10):
        encode_request(Call(f"model {index}", "", (tensor(array),)))
    assert plan._plan.cache_info().currsize == limit


@pytest.mark.parametrize("datatype", ["FP32", "BF16"])
def test_a_contiguous_part_is_copied_once(datatype):
    array = np.zeros((4, 1 << 20), numpy_dtype(datatype))
    made = call(tensor(array, datatype, parts=(array[:2], array[2:])))
    encode_request(made)
    tracemalloc.start()
    try:
        message = encode_request(made)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(message) + 100_000


def test_the_parts_are_left_as_they_were():
    array = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::-1]
    before = array.copy()
    encode_request(call(tensor(array)))
    assert array.dtype == np.dtype(">f4")
    assert (array == before).all()


def test_request_nbytes_is_the_size_of_a_message_without_strings_parameters_and_id():
    made = call(tensor(np.zeros((7, 300), np.float32)), tensor(np.zeros(3, bool), "BOOL"))
    assert request_nbytes(made) == len(encode_request(made))


@given(st.data())
def test_request_nbytes_of_fixed_size_tensors_is_exact(data):
    drawn, _ = data.draw(tensors("IN").filter(lambda pair: pair[0].datatype != "BYTES"))
    assert request_nbytes(call(drawn)) == len(encode_request(call(drawn)))


@pytest.mark.parametrize("parts", [1, 10, 1000])
def test_request_nbytes_estimates_strings_from_a_sample_and_counts_their_number(parts):
    array = np.array([b"x" * (index % 21) for index in range(10_000)], object)
    pieces = tuple(np.split(array, parts))
    estimate = request_nbytes(call(tensor(array, "BYTES", parts=pieces)))
    exact = 10_000 * (10 + STRING_WEIGHT_NBYTES)
    assert 0.8 * exact < estimate < 1.2 * exact


@pytest.mark.parametrize(
    "array", [np.empty((0, 3), object), np.array([None, 1], object), np.array(["abc"])]
)
def test_request_nbytes_takes_any_strings(array):
    assert 0 < request_nbytes(call(tensor(array, "BYTES"))) < 200


def test_request_nbytes_of_a_tensor_without_parts():
    assert request_nbytes(call(InputTensor("IN", "BYTES", (0,), ()))) < 100


@pytest.mark.parametrize(
    ("array", "datatype"), [(np.ones((2, 3), np.float32), "FP32"), (np.array(["a"]), "BYTES")]
)
def test_encode_small_is_encode_request_below_a_size_and_nothing_from_it_on(array, datatype):
    made = call(tensor(array, datatype))
    nbytes = request_nbytes(made)
    assert encode_small(made, nbytes + 1) == encode_request(made)
    assert encode_small(made, nbytes) is None


def test_more_strings_than_a_message_can_hold_are_refused_before_any_is_touched():
    many = np.broadcast_to(np.array(["x"], object), (2**30,))
    with pytest.raises(MessageTooLargeError, match="or more, over the limit"):
        encode_request(call(tensor(many, "BYTES")))


# --- on a stream ---------------------------------------------------------------------------------


def test_on_a_stream_the_streams_id_goes_in_place_of_the_calls_own():
    made = call(tensor(np.ones((1, 4), np.float32)), request_id="mine", parameters=(("key", 1),))
    message = pb.ModelInferRequest.FromString(encode_request(made, stream_id="17"))
    assert message.id == "17"
    assert message.parameters["triton_enable_empty_final_response"].bool_param
    del message.parameters["triton_enable_empty_final_response"]
    message.id = "mine"
    assert message == parsed(made)


def test_off_a_stream_the_end_of_responses_is_not_asked_for():
    assert not parsed(call(request_id="mine")).parameters


@pytest.mark.parametrize("stream_id", ["17", "é" * 100])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_the_limit_counts_what_a_stream_adds_to_a_message(datatype, stream_id):
    array = np.zeros((1, 4), {"FP32": np.float32, "BYTES": "S3"}[datatype])
    made = call(tensor(array, datatype))
    message = encode_request(made, stream_id=stream_id)
    assert encode_request(made, limit=len(message), stream_id=stream_id) == message
    with pytest.raises(MessageTooLargeError, match=f"is {len(message):,} bytes"):
        encode_request(made, limit=len(message) - 1, stream_id=stream_id)


def test_a_small_message_of_a_stream_is_that_of_any_other():
    made = call(tensor(np.zeros((1, 4), np.float32)), request_id="mine")
    assert encode_small(made, 1 << 20, "17") == encode_request(made, stream_id="17")
    assert encode_small(made, 1, "17") is None
