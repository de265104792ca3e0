"""Requests with tensors in shared memory; the real server's answers to them: tests/transport."""

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tritonasync.core.errors import InvalidInputError
from tritonasync.core.values import Call, InputTensor, SequenceStep
from tritonasync.wire import placed
from tritonasync.wire.messages import Place
from tritonasync.wire.placed import contents, encode_placed, fixed_nbytes, placeable

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
WORDS = np.array([b"a", b"bcd"], object)


def call(**fields) -> Call:
    inputs = (
        InputTensor("A", "FP32", (2, 3), (ROWS,)),
        InputTensor("S", "BYTES", (2,), (WORDS,)),
        InputTensor("B", "FP32", (4, 3), (ROWS, ROWS)),
    )
    return Call("m", "1", inputs, 2, **fields)


def parsed(*args, **kwargs):
    return pb.ModelInferRequest.FromString(encode_placed(*args, **kwargs))


def where(tensor):
    return {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in tensor.parameters.items()
    }


def test_placed_inputs_are_named_and_the_others_carried_in_their_order():
    request = parsed(call(), {"A": Place("r", 256, 24)}, {})
    assert [tensor.name for tensor in request.inputs] == ["A", "S", "B"]
    assert where(request.inputs[0]) == {
        "shared_memory_region": "r",
        "shared_memory_offset": 256,
        "shared_memory_byte_size": 24,
    }
    assert not request.inputs[1].parameters
    assert list(request.raw_input_contents) == [
        b"\x01\0\0\0a\x03\0\0\0bcd",
        ROWS.tobytes() * 2,
    ]


def test_no_offset_is_sent_where_a_tensor_is_at_the_beginning():
    request = parsed(call(), {"A": Place("r", 0, 24)}, {})
    assert where(request.inputs[0]) == {"shared_memory_region": "r", "shared_memory_byte_size": 24}


def test_placed_outputs_are_asked_for_with_their_room():
    request = parsed(call(), {}, {"X": Place("r", 512, 100), "Y": Place("q", 0, 8)})
    assert [(tensor.name, where(tensor)["shared_memory_region"]) for tensor in request.outputs] == [
        ("X", "r"),
        ("Y", "q"),
    ]
    assert where(request.outputs[0])["shared_memory_byte_size"] == 100
    assert len(request.raw_input_contents) == 3


def test_the_outputs_of_the_call_are_asked_for_wherever_they_go():
    request = parsed(call(outputs=("X", "Z")), {}, {"X": Place("r", 0, 8), "Y": Place("r", 256, 8)})
    assert [tensor.name for tensor in request.outputs] == ["X", "Z"]
    assert not request.outputs[1].parameters


def test_the_rest_of_the_call_is_sent_as_ever():
    step = SequenceStep(7, start=True)
    made = call(parameters=(("p", 3),), request_id="id", sequence=step)
    request = parsed(made, {"A": Place("r", 0, 24), "B": Place("r", 256, 48)}, {})
    assert request.id == "id"
    assert request.model_name == "m"
    assert request.model_version == "1"
    assert request.parameters["p"].int64_param == 3
    assert request.parameters["sequence_id"].int64_param == 7
    assert len(request.raw_input_contents) == 1


def test_the_same_places_again_come_from_the_cache():
    placed._placed_plan.cache_clear()
    for _ in range(3):
        encode_placed(call(), {"A": Place("r", 256, 24)}, {})
    encode_placed(call(), {"A": Place("r", 512, 24)}, {})
    assert placed._placed_plan.cache_info()[:2] == (2, 2)


def test_strings_and_what_has_no_elements_cannot_be_placed():
    assert placeable(call()) == {"A": 24, "B": 48}
    empty = InputTensor("E", "FP32", (0, 3), (np.zeros((0, 3), np.float32),))
    assert not placeable(Call("m", "", (empty,)))


def test_the_size_of_a_call_is_that_of_its_fixed_inputs_and_head():
    assert 72 < fixed_nbytes(call()) < 200


def test_parts_are_given_in_the_order_and_layout_of_the_wire():
    made = call()
    assert [part is ROWS for part in contents(made.inputs[2], made)] == [True, True]
    swapped = InputTensor("A", "FP32", (2, 3), (ROWS.astype(">f4"),))
    (part,) = contents(swapped, made)
    assert part.dtype == np.dtype("<f4")
    assert (part == ROWS).all()


def test_parts_that_do_not_add_up_are_refused():
    with pytest.raises(InvalidInputError, match="do not make up"):
        contents(InputTensor("A", "FP32", (3, 3), (ROWS,)), call())
