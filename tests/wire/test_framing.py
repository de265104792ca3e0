import pytest
from google.protobuf.internal.encoder import _VarintBytes
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tritonasync.wire.framing import (
    MAX_FIELDS,
    REQUEST_ID_TAG,
    REQUEST_RAW_TAG,
    RESPONSE_ID_TAG,
    RESPONSE_RAW_TAG,
    STREAM_ERROR_TAG,
    STREAM_RESPONSE_TAG,
    MalformedError,
    field_prefix,
    split_response,
    split_stream_response,
)


@pytest.mark.parametrize(
    ("message", "field", "tag"),
    [
        (pb.ModelInferRequest, "id", REQUEST_ID_TAG),
        (pb.ModelInferRequest, "raw_input_contents", REQUEST_RAW_TAG),
        (pb.ModelInferResponse, "id", RESPONSE_ID_TAG),
        (pb.ModelInferResponse, "raw_output_contents", RESPONSE_RAW_TAG),
        (pb.ModelStreamInferResponse, "error_message", STREAM_ERROR_TAG),
        (pb.ModelStreamInferResponse, "infer_response", STREAM_RESPONSE_TAG),
    ],
)
def test_tags_are_those_of_the_generated_messages(message, field, tag):
    assert message.DESCRIPTOR.fields_by_name[field].number << 3 | 2 == tag


@given(st.one_of(st.integers(0, 300), st.integers(0, 2**31 - 1)))
def test_a_prefix_is_what_protobuf_writes(nbytes):
    assert field_prefix(0x3A, nbytes) == b"\x3a" + _VarintBytes(nbytes)


@given(st.text("mé", max_size=200), st.text("12", max_size=200), st.lists(st.binary(max_size=300)))
def test_a_response_is_cut_into_head_id_and_places(model, request_id, contents):
    message = pb.ModelInferResponse(model_name=model, id=request_id, raw_output_contents=contents)
    message.parameters["p"].double_param = 1.5
    data = message.SerializeToString()
    head, found_id, spans = split_response(data)
    assert found_id.decode() == request_id
    assert [data[start:end] for start, end in spans] == contents
    message.ClearField("id")
    message.ClearField("raw_output_contents")
    assert head == message.SerializeToString()


def test_fields_in_another_order_and_of_unknown_numbers_are_kept_in_the_head():
    unknown = b"\x98\x06\x96\x01" + b"\xa1\x06" + b"8 bytes!" + b"\xad\x06" + b"four"
    raw, name, request_id = b"\x32\x02ab", b"\x0a\x01m", b"\x1a\x017"
    head, found_id, spans = split_response(raw + unknown + name + raw + request_id)
    assert head == unknown + name
    assert found_id == b"7"
    assert spans == [(2, 4), (len(unknown) + 9, len(unknown) + 11)]


def test_tags_and_lengths_written_longer_than_need_be_are_understood():
    assert split_response(b"\xb2\x80\x00\x82\x80\x00ab") == (b"", b"", [(6, 8)])


def test_of_two_ids_the_last_one_counts():
    assert split_response(b"\x1a\x01a\x1a\x01b")[1] == b"b"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x32", "has no end"),
        (b"\x32\x80", "has no end"),
        (b"\x32\x05abc", "ends 2 bytes after"),
        (b"\x32\xff\xff\xff\xff\x0f", "after the message"),
        (b"\x32" + b"\xff" * 9 + b"\x7f", "after the message"),
        (b"\x32" + b"\x80" * 11 + b"\x00", "has no end"),
        (b"\x80" * 20, "has no end"),
        (b"\x08", "has no end"),
        (b"\x09abc", "after the message"),
        (b"\x0dabc", "after the message"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x0c", "wire type 4"),
        (b"\x0e", "wire type 6"),
        (b"\x0f", "wire type 7"),
    ],
)
def test_bytes_that_are_no_fields_are_malformed(data, reason):
    for before in (b"", b"\x0a\x05model"):
        with pytest.raises(MalformedError, match=reason):
            split_response(before + data)


def test_the_walk_over_a_message_of_tiny_fields_stops():
    assert len(split_response(b"\x32\x00" * (MAX_FIELDS - 1))[2]) == MAX_FIELDS - 1
    with pytest.raises(MalformedError, match=f"{MAX_FIELDS} fields or more"):
        split_response(b"\x32\x00" * MAX_FIELDS)


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_cut_up_without_a_rest_or_are_malformed(data):
    try:
        head, request_id, spans = split_response(data)
    except MalformedError:
        return
    assert len(head) + len(request_id) + sum(end - start for start, end in spans) <= len(data)
    assert all(start <= end <= len(data) for start, end in spans)


# --- within another message ----------------------------------------------------------------------


SOME_FIELDS = st.sampled_from(
    [b"\x32\x02ab", b"\x0a\x01m", b"\x1a\x017", b"\x32", b"\x32\x80", b"\x00", b"\x08\x01", b"\x0d"]
)


@given(
    st.binary(max_size=9),
    st.one_of(st.binary(max_size=40), st.lists(SOME_FIELDS, max_size=5).map(b"".join)),
    st.binary(max_size=20),
)
def test_a_response_within_other_bytes_is_cut_as_one_of_its_own(before, data, after):
    bounds = len(before), len(before) + len(data)
    try:
        head, request_id, spans = split_response(data)
    except MalformedError:
        with pytest.raises(MalformedError):
            split_response(before + data + after, *bounds)
        return
    shifted = [(start + len(before), end + len(before)) for start, end in spans]
    assert split_response(before + data + after, *bounds) == (head, request_id, shifted)


@pytest.mark.parametrize(
    "data", [b"\x32", b"\x32\x80", b"\x32\x02a", b"\x08", b"\x08\x80", b"\xb2"]
)
def test_a_field_that_reaches_out_of_its_message_is_malformed(data):
    after = b"\x00" * 9
    with pytest.raises(MalformedError):
        split_response(data + after, 0, len(data))


# --- messages of a stream ------------------------------------------------------------------------


@given(st.text("mé", max_size=200), st.binary(max_size=300))
def test_a_message_of_a_stream_is_cut_into_error_and_response(error, content):
    message = pb.ModelStreamInferResponse(
        error_message=error, infer_response={"raw_output_contents": [content]}
    )
    data = message.SerializeToString()
    found, (start, end) = split_stream_response(data)
    assert found.decode() == error
    assert data[start:end] == message.infer_response.SerializeToString()


def test_what_a_message_of_a_stream_does_not_have_is_empty():
    assert split_stream_response(b"") == (b"", (0, 0))
    assert split_stream_response(b"\x0a\x02no") == (b"no", (0, 0))
    assert split_stream_response(b"\x12\x00") == (b"", (2, 2))


def test_other_fields_of_a_message_of_a_stream_are_passed_over():
    unknown = b"\x98\x06\x96\x01" + b"\xa1\x06" + b"8 bytes!" + b"\x0d" + b"four" + b"\x10\x01"
    data = unknown + b"\x0a\x02no" + unknown + b"\x12\x01." + unknown
    error, (start, end) = split_stream_response(data)
    assert (error, data[start:end]) == (b"no", b".")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x12", "has no end"),
        (b"\x12\x80", "has no end"),
        (b"\x12\x05abc", "ends 2 bytes after"),
        (b"\x0a\xff\xff\xff\xff\x0f", "after the message"),
        (b"\x12" + b"\xff" * 9 + b"\x7f", "after the message"),
        (b"\x0b", "wire type 3"),
        (b"\x12\x00" * MAX_FIELDS, f"{MAX_FIELDS} fields or more"),
    ],
)
def test_a_malformed_message_of_a_stream_is_refused(data, reason):
    with pytest.raises(MalformedError, match=reason):
        split_stream_response(data)


def test_a_message_of_a_stream_may_have_many_fields():
    data = b"\x12\x00" * (MAX_FIELDS - 2) + b"\x12\x01."
    assert split_stream_response(data)[1] == (len(data) - 1, len(data))
