"""Messages of a stream: whose each one is, what it says, and what is wrong with it."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.wire import reference
from tests.wire.strategies import arrays, texts
from tritonasync.core.errors import ProtocolError
from tritonasync.wire.framing import field_prefix, split_stream_response
from tritonasync.wire.stream import StreamResponse, read_stream_response

FP32 = np.arange(6, dtype=np.float32).reshape(2, 3)
WORDS = np.array([b"x", b"", b"yz"], object)


def streamed(
    outputs=None, *, request_id="17", error="", final: bool | None = True, **parameters
) -> pb.ModelStreamInferResponse:
    """The message that Triton puts on a stream."""
    response = reference.response(outputs or {}, model="resnet", request_id=request_id)
    if final is not None:
        response.parameters["triton_final_response"].bool_param = final
    for name, value in parameters.items():
        response.parameters[name].string_param = value
    return pb.ModelStreamInferResponse(error_message=error, infer_response=response)


def read(message: pb.ModelStreamInferResponse) -> StreamResponse:
    return read_stream_response(message.SerializeToString())


# --- what it says --------------------------------------------------------------------------------


@given(st.data())
@settings(deadline=None)
def test_any_response_is_what_protobuf_and_tritonclient_read(data):
    outputs = {f"OUT{index}": data.draw(arrays()) for index in range(data.draw(st.integers(0, 3)))}
    final = data.draw(st.sampled_from([None, True, False]))
    message = streamed(
        outputs,
        request_id=data.draw(texts),
        error=data.draw(st.one_of(st.just(""), texts)),
        final=final,
        key="value",
    )
    response = read(message)
    assert response.request_id == message.infer_response.id
    assert response.error == message.error_message
    assert response.final is final
    assert response.empty is (not outputs)
    reply = response.reply(request_id="mine")
    assert (reply.model, reply.version, reply.request_id) == ("resnet", "1", "mine")
    assert reply.parameters == (("key", "value"),)
    assert list(reply.outputs) == list(outputs)
    for name, array in reply.outputs.items():
        assert reference.same_bits(array, reference.as_numpy(message.infer_response, name))


def test_whether_it_is_the_last_is_no_parameter_of_the_models():
    assert read(streamed(final=True)).reply().parameters == ()
    assert read(streamed(key="value")).reply().parameters == (("key", "value"),)


def test_a_response_that_is_the_last_and_one_that_is_not_are_not_mixed_up():
    finals = [read(streamed({"A": (FP32, "FP32")}, final=f)).final for f in (True, False, True)]
    assert finals == [True, False, True]


def test_what_is_no_truth_value_does_not_say_whether_it_is_the_last():
    message = streamed(final=None, triton_final_response="yes")
    assert read(message).final is None
    assert read(message).reply().parameters == ()


def test_the_end_without_a_response_of_its_own_has_no_outputs():
    assert read(streamed()).empty
    assert not read(streamed({"A": (np.empty(0, np.float32), "FP32")})).empty


def test_a_refusal_says_who_it_is_for_and_not_whether_it_is_the_last():
    message = pb.ModelStreamInferResponse(error_message="no", infer_response={"id": "17"})
    response = read(message)
    assert (response.request_id, response.error, response.final) == ("17", "no", None)


def test_a_reply_has_the_id_that_the_caller_gave_and_not_that_of_the_stream():
    assert read(streamed()).reply().request_id == ""


def test_an_empty_message_is_an_answer_to_nobody():
    response = read_stream_response(b"")
    assert (response.request_id, response.error, response.final, response.empty) == (
        "",
        "",
        None,
        True,
    )


def test_an_error_in_bytes_that_are_no_text_is_told_all_the_same():
    assert read_stream_response(field_prefix(0x0A, 2) + b"\xff!").error == "\ufffd!"


# --- in any order, and more than once ------------------------------------------------------------


def fields(message: pb.ModelStreamInferResponse) -> tuple[bytes, bytes]:
    """The error message and the response as they are on the wire."""
    error = pb.ModelStreamInferResponse(error_message=message.error_message)
    response = message.infer_response.SerializeToString()
    return error.SerializeToString(), field_prefix(0x12, len(response)) + response


@pytest.mark.parametrize("unknown", [b"", b"\x98\x06\x96\x01" + b"\xa1\x06" + bytes(8)])
@pytest.mark.parametrize("order", [1, -1])
def test_error_and_response_may_come_in_either_order_and_among_unknown_fields(order, unknown):
    error, response = fields(streamed({"A": (FP32, "FP32")}, error="no"))
    data = unknown.join([unknown, *(error, response)[::order], unknown])
    both = read_stream_response(data)
    assert (both.request_id, both.error, both.final) == ("17", "no", True)
    assert (both.reply().outputs["A"] == FP32).all()


def test_of_two_errors_and_of_two_responses_the_last_one_counts():
    first = fields(streamed({"A": (FP32, "FP32")}, request_id="1", error="one"))
    second = fields(streamed({"A": (-FP32, "FP32")}, request_id="2", error="two"))
    last = read_stream_response(b"".join([*first, *second]))
    assert (last.request_id, last.error) == ("2", "two")
    assert (last.reply().outputs["A"] == -FP32).all()


# --- without copies ------------------------------------------------------------------------------


def test_outputs_are_read_only_views_on_the_message_and_keep_it_alive():
    data = streamed({"A": (FP32, "FP32"), "B": (FP32, "FP32")}).SerializeToString()
    whole = np.frombuffer(data, np.uint8)
    for array in read_stream_response(data).reply().outputs.values():
        assert np.shares_memory(array, whole)
        assert array.base is data
        assert not array.flags.writeable


@pytest.mark.parametrize("data", [b"", streamed().SerializeToString()])
def test_what_it_keeps_alive_is_the_whole_message(data):
    assert read_stream_response(data).nbytes == len(data)


def test_a_large_response_is_not_copied():
    large = np.zeros(1 << 20, np.float64)
    data = streamed({"A": (large, "FP64")}).SerializeToString()
    tracemalloc.start()
    try:
        reply = read_stream_response(data).reply()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reply.outputs["A"].size == large.size
    assert peak < 100_000


@pytest.mark.parametrize(
    ("outputs", "nbytes"),
    [
        ({}, 0),
        ({"A": (FP32, "FP32")}, 0),
        ({"S": (WORDS, "BYTES")}, 3 * 4 + 3),
        ({"A": (FP32, "FP32"), "S": (WORDS, "BYTES"), "T": (WORDS[:1], "BYTES")}, 15 + 5),
    ],
)
def test_the_bytes_of_strings_are_counted_and_no_others(outputs, nbytes):
    assert read(streamed(outputs)).strings_nbytes == nbytes


# --- what no server should send ------------------------------------------------------------------

BROKEN = {
    "an unknown datatype": {"name": "A", "datatype": "FP8", "shape": [6]},
    "an impossible shape": {"name": "A", "datatype": "FP32", "shape": [-6]},
}


def broken(output, *, error="") -> bytes:
    response = {"id": "17", "outputs": [output], "raw_output_contents": [bytes(24)]}
    return pb.ModelStreamInferResponse(
        infer_response=response, error_message=error
    ).SerializeToString()


def too_short() -> bytes:
    message = streamed({"A": (FP32, "FP32")})
    message.infer_response.raw_output_contents[0] = bytes(23)
    return message.SerializeToString()


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_broken_is_raised_to_its_owner_and_is_the_last_for_him(fault):
    response = read_stream_response(broken(BROKEN[fault]))
    assert (response.request_id, response.final, response.strings_nbytes) == ("17", True, 0)
    with pytest.raises(ProtocolError, match=fault.removeprefix("an ")):
        response.reply()


def test_an_error_beside_what_is_broken_is_told():
    assert read_stream_response(broken(BROKEN["an unknown datatype"], error="no")).error == "no"


def test_a_response_that_contradicts_itself_is_raised_to_its_owner():
    response = read_stream_response(too_short())
    assert response.request_id == "17"
    error = refused(response)
    assert "24 bytes, but has 23" in str(error)
    assert error.model == "resnet"


@pytest.mark.parametrize(
    "data", [broken(BROKEN["an unknown datatype"]), too_short()], ids=["head", "contents"]
)
def test_an_error_of_a_broken_response_is_a_new_one_each_time_and_in_no_cycle(data):
    response = read_stream_response(data)
    first, second = (refused(response) for _ in range(2))
    assert first is not second
    assert str(first) == str(second)
    gone = weakref.ref(first)
    gc.disable()
    try:
        del first, response
        assert gone() is None
    finally:
        gc.enable()


def refused(response: StreamResponse) -> ProtocolError:
    # Without pytest.raises, whose frames hold the error.
    try:
        response.reply()
    except ProtocolError as error:
        return error
    raise AssertionError("it was not refused")


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"\xff" * 50,
        b"HTTP/1.1 502 Bad",
        b"\x12",
        b"\x12\x05abc",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x12\x03\x32\xff\x7f",  # a raw content that is longer than all of it
        b"\x12\x02\x1a\x04" + b"17..",  # an id that ends outside of the response
        b"\x12\x01\x32\x00",  # a length outside of the response
        b"\x12\x03\x1a\x01\xff",  # an id that is no text
        b"\x12\x02\x0b\x0c",
        b"\x0a\x00" * (1 << 16),
        b"\x12\x80\x80\x08" + b"\x32\x00" * (1 << 16),
    ],
)
def test_what_nobody_can_be_told_of_is_refused_at_once(data):
    with pytest.raises(ProtocolError, match="the answer is not a valid response"):
        read_stream_response(data)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid message with a few things wrong with it."""
    outputs = {f"OUT{index}": draw(arrays()) for index in range(draw(st.integers(0, 2)))}
    message = streamed(
        outputs,
        error=draw(st.sampled_from(["", "no"])),
        final=draw(st.sampled_from([None, True, False])),
    )
    data = bytearray(message.SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, min(len(data), at + 9)))
        match draw(st.sampled_from(["cut", "overwrite", "insert", "repeat", "remove", "flip"])):
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
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def read_or_refused(data: bytes) -> None:
    """Whatever the bytes: an answer that protobuf agrees with, or an error; in little memory."""
    tracemalloc.start()
    try:
        response = read_stream_response(data)
        reply = response.reply()
        assert response.strings_nbytes <= len(data)
    except ProtocolError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200_000 + 50 * len(data)
    start, end = split_stream_response(data)[1]
    parsed = pb.ModelInferResponse.FromString(data[start:end])
    assert response.request_id == parsed.id
    assert response.empty is (not parsed.outputs)
    assert (reply.model, reply.version) == (parsed.model_name, parsed.model_version)
    assert [(name, array.shape) for name, array in reply.outputs.items()] == [
        (output.name, tuple(output.shape)) for output in parsed.outputs
    ]


@given(damaged())
@settings(max_examples=400, deadline=None)
def test_a_damaged_message_is_read_or_refused(data):
    read_or_refused(data)


@given(st.binary(max_size=200))
@settings(max_examples=400, deadline=None)
@example(b"")
def test_arbitrary_bytes_are_read_or_refused(data):
    read_or_refused(data)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_arbitrary_bytes_for_a_response_are_read_or_refused(data):
    read_or_refused(field_prefix(0x12, len(data)) + data)


def test_every_beginning_and_every_flipped_bit_of_a_message_is_read_or_refused():
    data = streamed({"A": (FP32, "FP32"), "S": (WORDS, "BYTES")}, error="no").SerializeToString()
    for end in range(len(data)):
        read_or_refused(data[:end])
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        read_or_refused(bytes(flipped))
