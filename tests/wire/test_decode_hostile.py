"""Messages that no server should send: an error that says what is wrong, and nothing worse."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.wire import reference
from tests.wire.strategies import arrays
from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import Reply
from tritonasync.wire.decode import decode_response


def message(datatype="FP32", shape=(2,), raw=(bytes(8),), **contents) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="resnet", raw_output_contents=raw)
    response.outputs.add(name="SCORES", datatype=datatype, shape=shape, contents=contents or None)
    return response


def refusal(response: pb.ModelInferResponse) -> str:
    with pytest.raises(ProtocolError) as caught:
        decode_response(response.SerializeToString())
    return str(caught.value)


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (message(raw=[bytes(7)]), ["8 bytes, but has 7", "(2,)", "float32"]),
        (message(raw=[bytes(9)]), ["8 bytes, but has 9"]),
        (message(raw=[b""]), ["8 bytes, but has 0"]),
        (message(shape=(2**40,)), [str(2**42)]),
        (message(shape=(2**62, 2**62)), ["but has 8"]),
        (message(shape=(-2,)), ["impossible shape (-2,)"]),
        (message(shape=(-1, -2)), ["impossible shape"]),
        (message(shape=(0, 2**62, 2**62), raw=[b""]), ["impossible shape"]),
        (message("BYTES", shape=(0, 2**62, 2**62), raw=[b""]), ["impossible shape"]),
        (message(shape=(0, 2**62, 2**62), raw=[]), ["impossible shape"]),
        (message(shape=(1,) * 65 + (2,)), ["impossible shape"]),
        (message("BYTES", shape=(1,) * 65, raw=[bytes(4)]), ["impossible shape"]),
        (message("FP8"), ["unknown datatype 'FP8'"]),
        (message(""), ["unknown datatype ''"]),
        (message(raw=[]), ["has no contents"]),
        (message("BYTES", raw=[]), ["has no contents"]),
        (message(raw=[bytes(8)], fp32_contents=[1, 2]), ["typed contents and raw ones"]),
        (message(raw=[], fp32_contents=[1]), ["(2,) has 1 values"]),
        (message(raw=[], int_contents=[1, 2]), ["(2,) has 0 values"]),
        (message("INT8", raw=[], int_contents=[1, 128]), ["do not fit INT8"]),
        (message("INT16", raw=[], int_contents=[1, -(2**15) - 1]), ["do not fit INT16"]),
        (message("UINT8", raw=[], uint_contents=[1, 256]), ["do not fit UINT8"]),
        (message("FP16", raw=[], fp32_contents=[1, 2]), ["'FP16' has no typed contents"]),
        (message("FP8", raw=[], fp32_contents=[1, 2]), ["'FP8' has no typed contents"]),
        (message("BYTES", raw=[b"\xff\xff\xff\xffabcd"]), ["begins after the message"]),
        (message("BYTES", raw=[bytes(7)]), ["7 bytes cannot hold 2 elements"]),
        (message("BYTES", shape=(2**40,), raw=[bytes(8)]), ["8 bytes cannot hold"]),
        (message("BYTES", shape=(0,), raw=[bytes(8)]), ["8 bytes are left over"]),
    ],
)
def test_a_response_that_contradicts_itself_is_refused_with_the_reason(response, words):
    text = refusal(response)
    assert all(word in text for word in ["not a valid response", "SCORES", *words]), text


def test_the_error_names_the_model_once_it_is_known():
    with pytest.raises(ProtocolError, match="the answer of model 'resnet'") as caught:
        decode_response(message(raw=[b"x"]).SerializeToString())
    assert caught.value.model == "resnet"
    with pytest.raises(ProtocolError, match="the answer is not") as caught:
        decode_response(b"\x0a\x05abc")
    assert caught.value.model is None


@pytest.mark.parametrize(("outputs", "contents"), [(1, 2), (2, 1), (0, 1)])
def test_raw_contents_that_are_not_one_for_each_output_are_refused(outputs, contents):
    response = pb.ModelInferResponse(raw_output_contents=[bytes(8)] * contents)
    for index in range(outputs):
        response.outputs.add(name=f"OUT{index}", datatype="FP32", shape=[2])
    assert f"{outputs} outputs have {contents} raw contents" in refusal(response)


def test_two_outputs_of_one_name_are_refused():
    response = message()
    response.outputs.add(name="SCORES", datatype="FP32", shape=[2])
    response.raw_output_contents.append(bytes(8))
    assert "two outputs have one name" in refusal(response)


@pytest.mark.parametrize("data", [b"\x0a\x01\xff", b"\x1a\x01\xff", b"\x02\x00", b"\x2a\x01\xff"])
def test_what_protobuf_cannot_parse_is_refused(data):
    with pytest.raises(ProtocolError, match="not a valid response"):
        decode_response(data)


@pytest.mark.parametrize("data", [b"garbage", b"\0" * 50, b"\xff" * 50, b"HTTP/1.1 502 Bad"])
def test_garbage_is_refused(data):
    with pytest.raises(ProtocolError, match="not a valid response"):
        decode_response(data)


def test_an_empty_message_is_an_empty_reply():
    assert decode_response(b"") == Reply(model="", version="", outputs={})


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid message with a few things wrong with it."""
    outputs = {f"OUT{index}": draw(arrays()) for index in range(draw(st.integers(1, 2)))}
    data = bytearray(reference.response(outputs, request_id="17").SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, min(len(data), at + 9)))
        match draw(st.sampled_from(["cut", "overwrite", "insert", "repeat", "remove"])):
            case "cut":
                del data[at:]
            case "overwrite":
                data[at:to] = draw(st.binary(min_size=to - at, max_size=to - at))
            case "insert":
                data[at:at] = draw(st.binary(max_size=6))
            case "repeat":
                data[at:at] = data[at:to]
            case "remove":
                del data[at:to]
    return bytes(data)


def decoded_or_refused(data: bytes) -> None:
    """Whatever the bytes: a reply that protobuf agrees with, or an error, and in little memory."""
    tracemalloc.start()
    try:
        reply = decode_response(data)
    except ProtocolError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200_000 + 50 * len(data)
    parsed = pb.ModelInferResponse.FromString(data)
    assert (reply.model, reply.version, reply.request_id) == (
        parsed.model_name,
        parsed.model_version,
        parsed.id,
    )
    for output in parsed.outputs:
        if output.name in reply.outputs:
            assert reply.outputs[output.name].shape == tuple(output.shape)


@given(mutated())
@settings(max_examples=400)
def test_a_damaged_message_is_decoded_or_refused(data):
    decoded_or_refused(data)


@given(st.binary(max_size=200))
@settings(max_examples=400)
@example(b"")
def test_arbitrary_bytes_are_decoded_or_refused(data):
    decoded_or_refused(data)


def test_every_beginning_of_a_message_is_decoded_or_refused():
    outputs = {
        "A": (np.arange(6, dtype=np.float32), "FP32"),
        "B": (np.array([b"x", b"yz"], object), "BYTES"),
    }
    data = reference.response(outputs, request_id="17").SerializeToString()
    for end in range(len(data)):
        decoded_or_refused(data[:end])
