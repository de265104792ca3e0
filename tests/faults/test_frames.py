"""Frames, header blocks and requests, however the bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.frames import (
    ENHANCE_YOUR_CALM,
    LAST_OF_ALL,
    PREFACE,
    Flag,
    FrameReader,
    Kind,
    NotHttp2Error,
    acknowledgement,
    frame,
    goaway,
    literal,
    status_only,
)
from tests.faults.hpack import HeaderTable, UnreadableHeadersError
from tests.faults.requests import UNREADABLE, RequestReader

# PUSH_PROMISE included, and a type nobody knows.
plain_frames = st.fixed_dictionaries(
    {
        "kind": st.one_of(st.sampled_from(Kind), st.just(0xFA)),
        "flags": st.integers(0, 255),
        "stream": st.integers(0, LAST_OF_ALL),
        "payload": st.binary(max_size=40),
    }
)


def chunked(data, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


cuts = st.lists(st.integers(0, 10_000), max_size=12)


@given(st.lists(plain_frames, max_size=8), cuts, st.booleans())
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(sent, cuts, from_client):
    preface = PREFACE if from_client else b""
    reader = FrameReader(preface)
    stream = preface + b"".join(frame(**each) for each in sent)
    seen = []
    base = 0
    ends = []
    for chunk in chunked(stream, cuts):
        frames = reader.feed(chunk)
        seen += frames
        ends += [base + each.end for each in frames]
        base += len(chunk)
    assert [(f.kind, f.flags, f.stream, f.nbytes) for f in seen] == [
        (s["kind"], s["flags"], s["stream"], len(s["payload"])) for s in sent
    ]
    assert [f.payload for f in seen] == [
        b"" if s["kind"] == Kind.DATA else s["payload"] for s in sent
    ]
    lengths = [9 + len(s["payload"]) for s in sent]
    assert ends == [len(preface) + sum(lengths[: n + 1]) for n in range(len(sent))]


@given(st.lists(plain_frames, min_size=1, max_size=8), st.integers(0, 10_000))
def test_a_frame_may_be_inserted_between_frames_and_not_within_a_header_block(sent, cut):
    stream = [frame(**each) for each in sent]
    flat = b"".join(stream)
    cut %= len(flat) + 1
    reader = FrameReader()
    reader.feed(flat[:cut])
    allowed = set()
    for number, each in enumerate(sent, 1):
        opens = each["kind"] in {Kind.HEADERS, Kind.PUSH_PROMISE, Kind.CONTINUATION}
        if not (opens and not each["flags"] & Flag.END_HEADERS):
            allowed.add(len(b"".join(stream[:number])))
    assert reader.may_insert == (cut in allowed)


def test_nothing_may_be_inserted_before_the_first_frame():
    reader = FrameReader()
    assert not reader.may_insert
    reader.feed(frame(Kind.SETTINGS))
    assert reader.may_insert


def test_a_frame_of_the_greatest_length_is_followed_by_the_next():
    reader = FrameReader()
    greatest = frame(Kind.DATA, stream=1, payload=bytes(2**24 - 1))
    seen = [each for chunk in chunked(greatest * 2, [7, 2**20]) for each in reader.feed(chunk)]
    assert [each.nbytes for each in seen] == [2**24 - 1] * 2


def test_the_reserved_bit_is_no_part_of_the_stream():
    (seen,) = FrameReader().feed(b"\x00\x00\x00\x06\x00\x80\x00\x00\x05")
    assert seen.stream == 5


@given(cuts)
def test_what_does_not_begin_as_http2_is_refused(cuts):
    reader = FrameReader(PREFACE)
    chunks = chunked(b"GET /v2/health/ready HTTP/1.1\r\n\r\n", cuts)
    with pytest.raises(NotHttp2Error):
        [reader.feed(chunk) for chunk in chunks]


def test_the_frames_that_are_built_are_those_of_the_rfc():
    assert goaway() == bytes.fromhex("000008 07 00 00000000 7fffffff 00000000")
    assert goaway(5, ENHANCE_YOUR_CALM, b"too_many_pings") == (
        bytes.fromhex("000016 07 00 00000000 00000005 0000000b") + b"too_many_pings"
    )


def test_settings_and_pings_are_acknowledged_and_acknowledgements_are_not():
    def answer(data):
        (asked,) = FrameReader().feed(data)
        return acknowledgement(asked)

    assert answer(frame(Kind.SETTINGS, payload=bytes(6))) == frame(Kind.SETTINGS, flags=Flag.ACK)
    ping = frame(Kind.PING, payload=b"12345678")
    assert answer(ping) == frame(Kind.PING, flags=Flag.ACK, payload=b"12345678")
    assert answer(frame(Kind.PING, flags=Flag.ACK, payload=b"12345678")) is None
    assert answer(frame(Kind.SETTINGS, flags=Flag.ACK)) is None
    assert answer(frame(Kind.DATA, stream=1)) is None


@given(st.text(max_size=400))
def test_a_status_can_say_anything(details):
    (answer,) = FrameReader().feed(status_only(7, 14, details))
    assert (answer.kind, answer.stream) == (Kind.HEADERS, 7)
    assert answer.flags == Flag.END_STREAM | Flag.END_HEADERS
    headers = dict(HeaderTable().read(answer.header_fragment))
    assert headers[b":status"] == b"200"
    assert headers[b"grpc-status"] == b"14"
    message = headers[b"grpc-message"]
    assert all(0x20 <= byte <= 0x7E for byte in message)
    unescaped = message
    while b"%" in unescaped:
        before, _, after = unescaped.partition(b"%")
        unescaped = before + b"\0" + after[2:]
    assert unescaped.count(b"\0") == sum(
        not 0x20 <= byte <= 0x7E or byte == 0x25 for byte in details.encode()
    )


# --- header blocks --------------------------------------------------------------------------------


def test_header_blocks_read_as_the_rfc_says():
    """RFC 7541, appendix C.3: three requests on one connection."""
    table = HeaderTable()
    first = [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
    ]
    assert table.read(bytes.fromhex("828684410f7777772e6578616d706c652e636f6d")) == first
    second = bytes.fromhex("828684be58086e6f2d6361636865")
    assert table.read(second) == [*first, (b"cache-control", b"no-cache")]
    third = bytes.fromhex("828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565")
    assert table.read(third) == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ]


def test_old_headers_leave_a_table_that_is_full():
    """RFC 7541, appendix C.5: responses, in a table of 256 bytes."""
    table = HeaderTable()
    first = (
        "3fe101"  # the size of the table
        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
        "6e1768747470733a2f2f7777772e6578616d706c652e636f6d"
    )
    assert table.read(bytes.fromhex(first))[0] == (b":status", b"302")
    assert table.read(bytes.fromhex("4803333037c1c0bf")) == [
        (b":status", b"307"),
        (b"cache-control", b"private"),
        (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        (b"location", b"https://www.example.com"),
    ]
    assert table.read(b"\xc1") == [(b"cache-control", b"private")]  # ":status: 302" is gone
    with pytest.raises(UnreadableHeadersError):
        table.read(b"\xc2")


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=6))
def test_literals_read_as_they_were_written(headers):
    block = b"".join(literal(name, value) for name, value in headers)
    assert HeaderTable().read(block) == headers


def test_an_index_that_names_no_header_is_refused():
    with pytest.raises(UnreadableHeadersError, match="index 0"):
        HeaderTable().read(b"\x80")


@given(st.binary(max_size=60))
def test_a_broken_block_gives_headers_or_the_error_that_says_so(block):
    table = HeaderTable()
    try:
        table.read(block)
    except UnreadableHeadersError:
        with pytest.raises(UnreadableHeadersError, match="earlier"):
            table.read(b"\x82")


# --- requests -------------------------------------------------------------------------------------


def request(stream, path, *, flags=Flag.END_HEADERS, before=b"", after=b""):
    block = before + literal(b":path", path) + after
    return frame(Kind.HEADERS, flags=flags, stream=stream, payload=block)


@given(cuts)
def test_each_new_stream_is_a_request_and_trailers_are_not(cuts):
    sent = (
        PREFACE
        + frame(Kind.SETTINGS)
        + request(1, b"/a")
        + frame(Kind.DATA, stream=1, payload=bytes(100))
        + frame(Kind.HEADERS, flags=Flag.END_HEADERS, stream=1, payload=literal(b"x", b"y"))
        + request(3, b"/b")
        + request(5, b"/a")
    )
    reader = RequestReader()
    seen = [path for chunk in chunked(sent, cuts) for path in reader.feed(chunk)]
    assert seen == ["/a", "/b", "/a"]


def test_a_header_block_may_be_split_padded_and_prioritised():
    block = literal(b"accept", b"trailers") + literal(b":path", b"/split")
    payload = b"\x04" + bytes(5) + block[:9] + bytes(4)
    sent = (
        PREFACE
        + frame(Kind.HEADERS, flags=Flag.PADDED | Flag.PRIORITY, stream=1, payload=payload)
        + frame(Kind.CONTINUATION, stream=1, payload=block[9:12])
        + frame(Kind.CONTINUATION, flags=Flag.END_HEADERS, stream=1, payload=block[12:])
        + request(3, b"/next")
    )
    assert RequestReader().feed(sent) == ["/split", "/next"]


def test_no_request_gets_the_path_of_another():
    pathless = frame(Kind.HEADERS, flags=Flag.END_HEADERS, stream=3, payload=literal(b"x", b"y"))
    assert RequestReader().feed(PREFACE + request(1, b"/a") + pathless) == ["/a", ""]


def test_a_request_whose_headers_cannot_be_read_counts_all_the_same():
    huffman = b"\x00\x81\xff\x01x"
    sent = PREFACE + request(1, b"/a") + request(3, b"/b", before=huffman) + request(5, b"/c")
    assert RequestReader().feed(sent) == ["/a", UNREADABLE, UNREADABLE]
