"""Text out of responses: split characters, wrong bytes, texts that come whole each time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.core.errors import ConfigurationError, ProtocolError
from tritonasync.handles.pieces import Pieces, check_errors

CUTS = st.lists(st.integers(0, 40), max_size=8).map(sorted)
TEXTS = st.text("aß猫🎵\ufffd", max_size=12)


def parts(data, cuts):
    ends = [0, *cuts, len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


def pieces(responses, *, errors="strict", cumulative=False):
    text = Pieces("net", errors=errors, cumulative=cumulative)
    return [*map(text.take, responses), text.finish()]


@given(TEXTS, CUTS)
def test_a_text_comes_whole_wherever_it_is_split(text, cuts):
    assert "".join(pieces(parts(text.encode(), cuts))) == text


@given(st.binary(max_size=20), CUTS, st.sampled_from(["replace", "ignore"]))
def test_wrong_bytes_are_dealt_with_as_in_one_piece(data, cuts, errors):
    got = "".join(pieces(parts(data, cuts), errors=errors))
    assert got == data.decode(errors=errors)


@given(TEXTS, CUTS)
def test_of_texts_that_come_whole_each_time_only_what_is_new_is_given(text, cuts):
    data = text.encode()
    whole = [data[:cut] for cut in [*cuts, len(data)]]
    assert "".join(pieces(whole, cumulative=True)) == text


@given(st.text("aß猫", max_size=12), CUTS)
def test_a_character_that_is_still_to_come_is_held_back(text, cuts):
    """As tokenizers do it: a replacement character where the last bytes are no character yet."""
    data = text.encode()
    whole = [data[:cut].decode(errors="replace").encode() for cut in [*cuts, len(data)]]
    got = pieces(whole, cumulative=True)
    assert "".join(got) == text
    assert "\ufffd" not in "".join(got)


def test_a_piece_is_given_as_soon_as_its_characters_are_whole():
    cat = "猫".encode()
    assert pieces([b"a" + cat[:1], cat[1:2], cat[2:] + b"b"]) == ["a", "", "猫b", ""]
    assert pieces([b"a", b"ab", b"ab", b"abc"], cumulative=True) == ["a", "b", "", "c", ""]


def test_several_characters_that_are_still_to_come_are_held_back():
    responses = ["a\ufffd\ufffd".encode(), "a猫🎵".encode()]
    assert pieces(responses, cumulative=True) == ["a", "猫🎵", ""]


def test_half_a_character_at_the_end_is_a_wrong_one():
    assert pieces([b"a", "猫".encode()[:2]], errors="replace") == ["a", "", "\ufffd"]
    with pytest.raises(ProtocolError, match=r"model 'net': its text is no UTF-8: .*unexpected end"):
        pieces(["猫".encode()[:2]])


def test_wrong_bytes_are_an_error_where_that_is_strict():
    with pytest.raises(ProtocolError, match="no UTF-8"):
        pieces([b"\xff"])


def test_a_text_that_changes_is_no_text_so_far():
    with pytest.raises(ProtocolError, match="does not begin with the text of the one before"):
        pieces([b"one", b"two"], cumulative=True)
    with pytest.raises(ProtocolError, match="does not begin with the text of the one before"):
        pieces([b"one", b"on"], cumulative=True)


@pytest.mark.parametrize("errors", ["strict", "replace", "ignore", "backslashreplace"])
def test_ways_of_dealing_with_wrong_bytes(errors):
    check_errors("net", errors)


@pytest.mark.parametrize("errors", ["replaced", "", None, 3])
def test_others_are_refused(errors):
    with pytest.raises(ConfigurationError, match="model 'net': errors is"):
        check_errors("net", errors)
