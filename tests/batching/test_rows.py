"""Cutting and joining: no row lost, doubled or moved; no copy down, one copy up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.batching.rows import cut, join, sizes
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import Call, InputTensor, Reply


def tensor(name, array, cuts=()):
    """An input whose rows lie in several parts, some of them empty."""
    edges = [0, *sorted(cuts), len(array)]
    parts = tuple(array[a:b] for a, b in pairwise(edges))
    return InputTensor(name, "INT64", array.shape, parts)


@st.composite
def calls(draw):
    rows = draw(st.integers(1, 40))
    cuts = st.lists(st.integers(0, rows), max_size=5)
    inputs = [
        tensor("A", np.arange(rows), draw(cuts)),
        tensor("B", np.arange(rows * 3).reshape(rows, 3), draw(cuts)),
    ]
    return Call("net", "2", tuple(inputs), rows, ("OUT",), (("p", True),), "id", Deadline(5.0, 1.0))


@given(st.integers(1, 1000), st.integers(1, 100))
def test_parts_are_full_but_the_last(rows, limit):
    counts = sizes(rows, limit)
    assert sum(counts) == rows
    assert set(counts[:-1]) <= {limit}
    assert 1 <= counts[-1] <= limit


@given(calls(), st.integers(1, 45))
def test_no_row_is_lost_doubled_or_moved(call, limit):
    parts = cut(call, limit)
    assert all(1 <= part.rows <= limit for part in parts)
    for index, whole in enumerate(call.inputs):
        rows = [np.concatenate(part.inputs[index].parts) for part in parts]
        np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(whole.parts))
        for part, array in zip(parts, rows, strict=True):
            tensor_ = part.inputs[index]
            assert tensor_.shape == array.shape
            assert len(array) == part.rows
            assert (tensor_.name, tensor_.datatype) == (whole.name, whole.datatype)


@given(calls(), st.integers(1, 45))
def test_parts_are_views_and_keep_what_goes_with_the_call(call, limit):
    for part in cut(call, limit):
        for whole, tensor_ in zip(call.inputs, part.inputs, strict=True):
            assert all(
                any(np.shares_memory(view, source) for source in whole.parts)
                for view in tensor_.parts
            )
            assert all(len(view) for view in tensor_.parts)
        assert (part.model, part.version, part.outputs) == (call.model, call.version, call.outputs)
        assert part.parameters == call.parameters
        assert part.request_id == call.request_id
        assert part.deadline is call.deadline


@given(calls(), st.integers(1, 45))
def test_what_was_cut_is_joined_as_it_was(call, limit):
    parts = cut(call, limit)
    replies = [
        Reply("net", "2", {t.name: np.concatenate(t.parts) for t in part.inputs}, "id")
        for part in parts
    ]
    reply = join(call, parts, replies)
    assert list(reply.outputs) == ["A", "B"]
    for whole in call.inputs:
        np.testing.assert_array_equal(reply.outputs[whole.name], np.concatenate(whole.parts))
    assert (reply.model, reply.version, reply.request_id) == ("net", "2", "id")


# --- replies ---

CALL = Call("net", "", (tensor("A", np.arange(5)),), 5, request_id="id")
PARTS = cut(CALL, 2)


def replies(**changed):
    """Replies to the three parts, with some arrays of the output replaced by index (``_1=…``)."""
    arrays = [
        np.zeros((2, 4), np.float32),
        np.ones((2, 4), np.float32),
        np.zeros((1, 4), np.float32),
    ]
    for key, value in changed.items():
        arrays[int(key[1:])] = value
    return [
        Reply("net", "1", {} if array is None else {"OUT": array}, "id", (("took", index),))
        for index, array in enumerate(arrays)
    ]


def test_strings_are_joined_like_numbers():
    given_ = [np.array([[b"a"], [b"b"]], object)] * 2 + [np.array([[b"c"]], object)]
    reply = join(CALL, PARTS, replies(_0=given_[0], _1=given_[1], _2=given_[2]))
    assert reply.outputs["OUT"].tolist() == [[b"a"], [b"b"], [b"a"], [b"b"], [b"c"]]


def test_parameters_are_those_of_the_first_reply():
    assert join(CALL, PARTS, replies()).parameters == (("took", 0),)


def test_a_model_replaced_between_two_parts_shows():
    answers = replies()
    answers[2] = Reply("net", "2", answers[2].outputs)
    assert join(CALL, PARTS, answers).version == "1,2"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"_1": None}, r"expected 2 rows for 2, got none"),
        ({"_0": None}, r"expected 2 rows for 2, got none"),
        ({"_1": np.zeros((3, 4), np.float32)}, r"expected 2 rows for 2, got shape \[3, 4\]"),
        ({"_1": np.zeros((), np.float32)}, r"expected 2 rows for 2, got shape \[\]"),
        ({"_1": np.zeros((2, 5), np.float32)}, r"not alike .* float32\[4\], float32\[5\]"),
        ({"_1": np.zeros((2, 4), np.float64)}, r"not alike .* float32\[4\], float64\[4\]"),
    ],
)
def test_replies_that_do_not_fit_together_are_an_error(changed, reason):
    with pytest.raises(ProtocolError, match=f"model 'net', output 'OUT': .*{reason}"):
        join(CALL, PARTS, replies(**changed))
