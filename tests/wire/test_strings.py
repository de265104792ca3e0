import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from tests.wire.strategies import strings, texts
from tritonasync.core.errors import InvalidInputError
from tritonasync.wire.framing import MalformedError
from tritonasync.wire.strings import decode_strings, encode_strings


def objects(elements) -> np.ndarray:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def encoded(elements) -> bytes:
    return bytes(encode_strings(list(elements), model="m", name="IN"))


def expected(elements) -> bytes:
    return serialize_byte_tensor(objects(elements)).item() if len(elements) else b""


def decoded(raw: bytes, count: int, *, before: bytes = b"", after: bytes = b"") -> list[bytes]:
    span = (len(before), len(before) + len(raw))
    array = decode_strings(before + raw + after, span, count)
    assert array.dtype == object
    assert array.shape == (count,)
    assert all(type(element) is bytes for element in array)
    return array.tolist()


def many(elements: st.SearchStrategy) -> st.SearchStrategy:
    """Enough of them for the vectorised ways, often all alike or nearly so."""
    return st.one_of(
        st.lists(elements, max_size=8),
        st.builds(
            lambda few, times, last: few * times + last,
            st.lists(elements, min_size=1, max_size=4),
            st.integers(16, 80),
            st.lists(elements, max_size=2),
        ),
    )


@given(many(st.binary(max_size=20)))
def test_bytes_are_encoded_as_by_tritonclient(elements):
    assert encoded(elements) == expected(elements)


@given(many(texts))
def test_text_is_encoded_as_by_tritonclient(elements):
    assert encoded(elements) == expected(elements)


@given(many(strings))
def test_bytes_and_text_together_are_encoded_as_by_tritonclient(elements):
    assert encoded(elements) == expected(elements)


@given(many(strings), st.binary(max_size=3), st.binary(max_size=3))
def test_elements_are_decoded_as_by_tritonclient(elements, before, after):
    raw = expected(elements)
    theirs = deserialize_bytes_tensor(raw).tolist()
    assert decoded(raw, len(elements), before=before, after=after) == theirs


@pytest.mark.parametrize("count", [1, 63, 64, 5000])
@pytest.mark.parametrize("length", [0, 1, 255, 256, 70_000])
def test_lengths_around_the_limits_of_each_way_round_trip(count, length):
    if count * length > 10_000_000:
        count = 64
    same = [bytes([index % 256]) * length for index in range(count)]
    for elements in (same, [*same[:-1], b"\0" * (length + 1)], [b"", *same[1:]]):
        assert encoded(elements) == expected(elements)
        assert decoded(expected(elements), count) == elements


@pytest.mark.parametrize("text", ["a\0", "\0\0\0\0", "\0", "é\0漢"])
@pytest.mark.parametrize("count", [1, 100])
def test_text_with_nuls_round_trips(text, count):
    elements = ["before", *[text] * count, "", "after"]
    assert encoded(elements) == expected(elements)
    assert decoded(encoded(elements), len(elements)) == [each.encode() for each in elements]


@pytest.mark.parametrize("kind", [np.bytes_, np.str_])
@pytest.mark.parametrize("count", [3, 100])
def test_numpys_own_string_scalars_are_strings(kind, count):
    elements = [kind("abc"), "é", b"xyz"] * count
    assert encoded(elements) == expected(["abc", "é", b"xyz"] * count)


@pytest.mark.parametrize("count", [1, 100])
def test_no_string_is_refused_with_model_and_input(count):
    with pytest.raises(InvalidInputError, match="model 'm', input 'IN': element 1 is a NoneType"):
        encoded([b"x", None, *[b"y"] * count])


def frames(*lengths: int) -> bytes:
    return b"".join(struct.pack("<I", length) + b"x" * length for length in lengths)


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (b"", 1),
        (b"\0\0\0", 1),
        (b"\0\0\0\0", 0),
        (b"\0\0\0\0", 2),
        (b"\0\0\0\0\0", 1),
        (frames(3) + b"\0", 1),
        (frames(3, 3), 1),
        (frames(3, 3, 3), 2),
        (frames(3, 3), 3),
        (frames(3, 3)[:-1], 2),
        (frames(300, 3)[:-1], 2),
        (frames(3, 300)[:-1], 2),
        (frames(3, 300)[:8], 2),
        (frames(9, 300, 2), 4),
        (frames(3) + b"\xff\xff\xff\xffabc", 2),
        (b"\xff\xff\xff\xff" + frames(3), 2),
        (frames(*[3] * 100) + b"x", 100),
        (frames(*[3] * 99, 4)[:-1], 100),
        (b"\0\0\0\0", 2**40),
    ],
)
@pytest.mark.parametrize("after", [b"", b"\0" * 1000, frames(3, 3, 3, 3)])
def test_bytes_that_do_not_hold_the_elements_are_malformed(raw, count, after):
    with pytest.raises(MalformedError):
        decode_strings(b"before" + raw + after, (6, 6 + len(raw)), count)


def test_elements_of_nearly_one_length_are_told_apart():
    raw = frames(*[3] * 98, 2, 4)  # as many bytes as a hundred of three
    assert [len(element) for element in decoded(raw, 100)] == [*[3] * 98, 2, 4]


@given(st.binary(max_size=60), st.integers(0, 8), st.binary(max_size=8))
def test_arbitrary_bytes_are_malformed_or_decoded_as_by_tritonclient(raw, count, after):
    try:
        ours = decode_strings(raw + after, (0, len(raw)), count).tolist()
    except MalformedError:
        try:
            theirs = deserialize_bytes_tensor(raw).tolist()
        except struct.error:
            return
        assert len(theirs) != count
    else:
        assert ours == deserialize_bytes_tensor(raw).tolist()
