import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.wire import reference
from tests.wire.strategies import FIXED_SIZE, arrays
from tritonasync.core.errors import ProtocolError
from tritonasync.wire import decode
from tritonasync.wire.decode import View, decode_response
from tritonasync.wire.dtypes import numpy_dtype


def typed(datatype: str, shape: tuple[int, ...], **contents) -> pb.ModelInferResponse:
    message = pb.ModelInferResponse(model_name="m")
    message.outputs.add(name="OUT", datatype=datatype, shape=shape, contents=contents)
    return message


@given(st.lists(arrays(), max_size=3), st.text("0123é", max_size=200))
def test_any_response_is_read_as_by_tritonclient(drawn, request_id):
    outputs = {f"OUT{index}": pair for index, pair in enumerate(drawn)}
    message = reference.response(outputs, request_id=request_id)
    reply = decode_response(message.SerializeToString())
    assert (reply.model, reply.version, reply.request_id) == ("m", "1", request_id)
    assert list(reply.outputs) == list(outputs)
    for name, output in reply.outputs.items():
        assert reference.same_bits(output, reference.as_numpy(message, name))


@pytest.mark.parametrize("datatype", FIXED_SIZE)
@pytest.mark.parametrize("name", ["O", "OU", "OUT", "OUTP"])  # at four alignments
def test_fixed_size_outputs_are_read_only_views_on_the_message(datatype, name):
    array = np.arange(24, dtype=np.uint8).view(numpy_dtype(datatype))
    array = array.reshape(-1, 3 if len(array) % 3 == 0 else 1)
    data = reference.response({name: (array, datatype)}).SerializeToString()
    output = decode_response(data).outputs[name]
    assert reference.same_bits(output, array)
    assert np.shares_memory(output.view(np.uint8), np.frombuffer(data, np.uint8))
    assert not output.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        output.flags.writeable = True


def test_views_keep_the_message_alive():
    array = np.arange(1000, dtype=np.int64)
    output = decode_response(reference.response({"OUT": (array, "INT64")}).SerializeToString())
    assert (output.outputs["OUT"][::-1] == array[::-1]).all()


def test_strings_are_an_array_of_their_own():
    array = np.array([b"a", b"b"], object)
    data = reference.response({"OUT": (array, "BYTES")}).SerializeToString()
    first, second = (decode_response(data).outputs["OUT"] for _ in range(2))
    first[0] = b"changed"
    assert second.tolist() == [b"a", b"b"]


def test_bf16_is_a_view_of_raw_uint16_where_ml_dtypes_is_missing():
    array = np.arange(4, dtype=np.uint16)
    message = pb.ModelInferResponse(raw_output_contents=[array.tobytes()])
    message.outputs.add(name="OUT", datatype="BF16", shape=[4])
    with reference.without_ml_dtypes():
        output = decode_response(message.SerializeToString()).outputs["OUT"]
    assert reference.same_bits(output, array)


def test_fp16_and_bf16_have_the_values_that_were_sent():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = [0.5, -2.0, 1024.0]
    for datatype, dtype in (("FP16", np.float16), ("BF16", ml_dtypes.bfloat16)):
        message = reference.response({"OUT": (np.array(values, dtype), datatype)})
        output = decode_response(message.SerializeToString()).outputs["OUT"]
        assert output.astype(float).tolist() == values


def test_an_output_of_no_axis_is_read():
    message = pb.ModelInferResponse(raw_output_contents=[b"\x05\0\0\0"])
    message.outputs.add(name="OUT", datatype="INT32")
    output = decode_response(message.SerializeToString()).outputs["OUT"]
    assert (output.shape, output[()]) == ((), 5)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, float("inf")]),
        ("FP64", "fp64_contents", [0.1, -0.0]),
        ("BYTES", "bytes_contents", [b"", b"a\0"]),
    ],
)
def test_typed_contents_are_read_in_the_width_of_the_datatype(datatype, field, values):
    data = typed(datatype, (2, 1), **{field: values}).SerializeToString()
    output = decode_response(data).outputs["OUT"]
    assert output.dtype == numpy_dtype(datatype)
    assert output.tolist() == [[values[0]], [values[1]]]


def test_typed_contents_from_the_cache_are_not_shared_between_replies():
    data = typed("INT32", (2,), int_contents=[1, 2]).SerializeToString()
    first, second = (decode_response(data).outputs["OUT"] for _ in range(2))
    first[:] = 0
    assert second.tolist() == [1, 2]


@pytest.mark.parametrize(("shape", "datatype"), [((0,), "FP32"), ((2, 0), "BYTES")])
def test_an_empty_output_needs_no_contents_at_all(shape, datatype):
    message = pb.ModelInferResponse()
    message.outputs.add(name="OUT", datatype=datatype, shape=shape)
    output = decode_response(message.SerializeToString()).outputs["OUT"]
    assert output.shape == shape
    assert output.dtype == numpy_dtype(datatype)


def test_response_parameters_of_every_type_come_by_name_in_order():
    message = pb.ModelInferResponse()
    message.parameters["b"].bool_param = True
    message.parameters["c"].int64_param = -5
    message.parameters["u"].uint64_param = 2**64 - 1
    message.parameters["d"].double_param = 0.5
    message.parameters["s"].string_param = "é"
    message.parameters["of a type yet unknown"].SetInParent()
    reply = decode_response(message.SerializeToString())
    assert reply.outputs == {}
    assert reply.parameters == (
        ("b", True),
        ("c", -5),
        ("d", 0.5),
        ("s", "é"),
        ("u", 2**64 - 1),
    )


def placed_response() -> bytes:
    message = reference.response(
        {
            "A": (np.arange(2, dtype=np.float32), "FP32"),
            "B": (np.zeros(0, np.float32), "FP32"),
            "C": (np.zeros(0, np.int16), "INT16"),
            "D": (np.arange(3, dtype=np.int8), "INT8"),
        }
    )
    message.outputs[1].shape[:] = [100]
    message.outputs[2].shape[:] = [50]
    return message.SerializeToString()


def place(*names: str) -> dict[str, View]:
    """Return places that hold a count from 0 on."""

    def view(shape, dtype):
        return np.arange(math.prod(shape), dtype=dtype).reshape(shape)

    return dict.fromkeys(names, view)


def test_outputs_placed_in_regions_are_seen_there():
    reply = decode_response(placed_response(), placed=place("B", "C"))
    assert {name: array.tolist() for name, array in reply.outputs.items()} == {
        "A": [0, 1],
        "B": list(range(100)),
        "C": list(range(50)),
        "D": [0, 1, 2],
    }
    assert reply.outputs["B"].dtype == np.float32
    assert reply.outputs["C"].dtype == np.int16


@pytest.mark.parametrize("placed", [(), ("B",), ("C",)])
def test_an_output_without_contents_that_was_not_placed_is_refused(placed):
    with pytest.raises(ProtocolError):
        decode_response(placed_response(), placed=place(*placed))


def test_an_output_that_does_not_fit_its_place_is_refused():
    def view(shape, dtype):
        raise ValueError("400 bytes do not lie within 256")

    with pytest.raises(ProtocolError, match="output 'B': 400 bytes do not lie within 256"):
        decode_response(placed_response(), placed={**place("C"), "B": view})


def test_strings_in_a_place_are_refused():
    message = reference.response({"OUT": (np.zeros(0, object), "BYTES")})
    message.outputs[0].shape[:] = [100]
    with pytest.raises(ProtocolError, match="'OUT' has strings in a place for fixed sizes"):
        decode_response(message.SerializeToString(), placed=place("OUT"))


def test_a_placed_output_that_was_sent_all_the_same_is_read():
    everything = place("B", "C", "A", "D", "one that does not exist")
    outputs = decode_response(placed_response(), placed=everything).outputs
    assert list(outputs) == ["A", "B", "C", "D"]
    assert not outputs["A"].flags.writeable  # a view on the message
    empty = reference.response({"OUT": (np.zeros((0, 3), np.float32), "FP32")})
    data = empty.SerializeToString()
    assert decode_response(data, placed=place("OUT")).outputs["OUT"].shape == (0, 3)
    data = typed("INT32", (1,), int_contents=[4]).SerializeToString()
    assert decode_response(data, placed=place("OUT")).outputs["OUT"].tolist() == [4]


def test_placed_outputs_beside_typed_contents_are_seen_in_their_places():
    message = typed("INT32", (1,), int_contents=[4])
    message.outputs.add(name="B", datatype="FP32", shape=[100])
    reply = decode_response(message.SerializeToString(), placed=place("B"))
    assert reply.outputs["OUT"].tolist() == [4]
    assert reply.outputs["B"].tolist() == list(range(100))


def test_heads_come_from_the_cache_whatever_the_id_and_the_data():
    decode._head.cache_clear()
    for index in range(5):
        array = np.full((2, 3), index, np.float32)
        message = reference.response({"OUT": (array, "FP32")}, request_id=f"id {index}")
        reply = decode_response(message.SerializeToString())
        assert reply.request_id == f"id {index}"
        assert (reply.outputs["OUT"] == array).all()
    assert decode._head.cache_info()[:2] == (4, 1)


def test_the_cache_of_heads_is_bounded_and_takes_no_large_ones():
    limit = decode._head.cache_info().maxsize
    for index in range(limit + 10):
        decode_response(pb.ModelInferResponse(model_name=f"m{index}").SerializeToString())
    assert decode._head.cache_info().currsize == limit
    before = decode._head.cache_info()
    large = typed("INT64", (5000,), int64_contents=range(5000)).SerializeToString()
    assert decode_response(large).outputs["OUT"].tolist() == list(range(5000))
    assert decode._head.cache_info() == before


def one_output(array: np.ndarray, datatype: str = "FP32", **fields: str) -> bytes:
    return reference.response({"OUT": (array, datatype)}, **fields).SerializeToString()


def test_an_answer_of_a_known_layout_is_read_as_the_first_was():
    decode._layouts.clear()
    first, second = (np.full((2, 3), value, np.float32) for value in (1, 2))
    for array in (first, second, first):
        reply = decode_response(one_output(array))
        assert (reply.outputs["OUT"] == array).all()
        assert (reply.model, reply.version, reply.request_id) == ("m", "1", "")
        assert not reply.outputs["OUT"].flags.writeable
    assert len(decode._layouts) == 1


@given(arrays(), arrays())
def test_answers_of_one_length_are_not_taken_for_one_another(one, other):
    decode._layouts.clear()
    for array, datatype in (one, other, one):
        message = reference.response({"OUT": (array, datatype)}).SerializeToString()
        back = decode_response(message).outputs["OUT"]
        theirs = reference.as_numpy(pb.ModelInferResponse.FromString(message), "OUT")
        assert reference.same_bits(back, theirs)


def test_equal_lengths_with_another_head_are_read_anew():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert decode_response(one_output(array)).outputs["OUT"].shape == (2, 3)
    assert decode_response(one_output(array.T)).outputs["OUT"].shape == (3, 2)
    turned = decode_response(one_output(array.view(np.int32), "INT32")).outputs["OUT"]
    assert turned.dtype == np.int32


def test_layouts_are_bounded():
    decode._layouts.clear()
    for length in range(decode.MAX_LAYOUTS + 1):
        decode_response(one_output(np.zeros(length + 1, np.float32)))
    assert len(decode._layouts) == 1
