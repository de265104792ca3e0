"""Members to a call and back: each gets its own rows, and nothing is copied."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.batching.fakes import call, whole
from tritonasync.batching.gather import call_parts, check_rows, cut_out, gather
from tritonasync.batching.group import Group
from tritonasync.batching.key import BatchKey, key_of
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import Call, InputTensor, Reply

PARAMETERS = (("p", True), ("q", 1))
KEY = BatchKey(
    (("A", "INT64", (2,)), ("B", "FP32", ())),
    ("OUT",),
    (("p", "True"), ("q", "1")),
    parameters=PARAMETERS,
)


def group(first, tickets, rows, *, axis=True):
    """Rows that count up from ``first``; a single one may come without its batch axis."""
    starts = range(first, first + tickets * rows, rows)
    wide = [np.arange(start, start + rows).repeat(2).reshape(rows, 2) for start in starts]
    flat = [np.arange(start, start + rows, dtype=np.float32) for start in starts]
    if not axis:
        wide, flat = [array[0] for array in wide], [array[0, ...] for array in flat]
    return Group(
        [object() for _ in starts],
        [wide, flat],
        rows_each=rows,
        nbytes_each=rows * 20,
        entered_at=0.0,
        deadline_at=math.inf,
        timeout_s=1.0,
    )


def groups(counts):
    made, first = [], 0
    for tickets, rows in counts:
        made.append(group(first, tickets, rows, axis=rows > 1 or first % 2 == 0))
        first += tickets * rows
    return made


counts_of = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=8)


@given(counts_of)
def test_a_batch_has_the_rows_of_its_members_in_their_order(counts):
    batch = gather("net", "3", KEY, groups(counts), NEVER)
    rows = sum(tickets * rows for tickets, rows in counts)
    a, b = batch.inputs
    assert (a.name, a.datatype, a.shape) == ("A", "INT64", (rows, 2))
    assert (b.name, b.datatype, b.shape) == ("B", "FP32", (rows,))
    assert whole(a)[:, 0].tolist() == list(range(rows))
    assert whole(b).tolist() == list(range(rows))
    assert batch.rows == rows


def test_a_batch_is_sent_as_its_rows_would_have_been():
    deadline = Deadline(5.0, 1.0)
    batch = gather("net", "3", KEY, groups([(2, 1), (1, 2)]), deadline)
    assert (batch.model, batch.version, batch.outputs) == ("net", "3", ("OUT",))
    assert batch.parameters is PARAMETERS
    assert [type(value) for _, value in batch.parameters] == [bool, int]
    assert batch.request_id == ""
    assert batch.deadline is deadline


def test_no_row_is_copied_on_the_way_down():
    given_ = groups([(1, 2), (2, 1)])
    batch = gather("net", "", KEY, given_, NEVER)
    for index, tensor in enumerate(batch.inputs):
        arrays = [array for one in given_ for array in one.columns[index]]
        assert len(arrays) == 3
        assert all(part is array for part, array in zip(tensor.parts, arrays, strict=True))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_each_gets_its_own_rows_as_views(counts):
    outputs = {"OUT": np.arange(sum(counts)), "WIDE": np.arange(sum(counts) * 3).reshape(-1, 3)}
    reply = Reply("net", "3", outputs, "", (("cost", 5),))
    start = 0
    for rows in counts:
        mine = cut_out(reply, start, rows)
        assert mine.outputs["OUT"].tolist() == list(range(start, start + rows))
        assert mine.outputs["WIDE"].shape == (rows, 3)
        assert all(np.shares_memory(mine.outputs[name], outputs[name]) for name in outputs)
        assert (mine.model, mine.version, mine.parameters) == ("net", "3", (("cost", 5),))
        start += rows


@pytest.mark.parametrize("shape", [(4, 2), (2, 2), (3, 3), ()], ids=str)
def test_a_reply_with_other_rows_is_refused(shape):
    array = np.zeros(shape)
    reply = Reply("net", "", {"FINE": np.zeros((3, 1)), "OUT": array})
    if shape == (3, 3):
        check_rows(reply, 3)
        return
    with pytest.raises(ProtocolError, match=r"'net', output 'OUT': expected 3 rows") as caught:
        check_rows(reply, 3)
    assert str(list(shape)) in str(caught.value)
    assert caught.value.model == "net"


def test_parts_of_a_call_are_its_arrays_themselves():
    array = np.zeros((2, 3))
    assert call_parts(Call("net", "", (InputTensor("A", "FP64", (2, 3), (array,)),), 2)) == (array,)


def test_an_input_in_parts_of_rows_is_put_together():
    tensor = InputTensor("A", "FP64", (3, 3), (np.zeros((2, 3)), np.ones((1, 3))))
    (put,) = call_parts(Call("net", "", (tensor,), 3))
    assert put.tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3]


def test_single_rows_without_their_axis_are_put_together_as_rows():
    """An input may be in parts of one row each, without the batch axis: a batch is."""
    parts = (np.zeros(3), np.ones(3))
    (put,) = call_parts(Call("net", "", (InputTensor("A", "FP64", (2, 3), parts),), 2))
    assert put.shape == (2, 3)


# --- what makes two rows alike --------------------------------------------------------------------


def test_rows_of_calls_of_any_size_are_alike():
    assert key_of(call(1)) == key_of(call(1, 2, 3))
    assert hash(key_of(call(1))) == hash(key_of(call(1, 2, 3)))
    assert key_of(call(1, 2)).row_nbytes == 8


def test_what_differs_in_bytes_from_row_to_row_has_no_size_of_a_row():
    assert key_of(call(b"a", dtype=object, datatype="BYTES")).row_nbytes is None


DIFFERENT = {
    "shape": call(1, width=2),
    "datatype": call(1, dtype=np.uint64, datatype="UINT64"),
    "outputs": call(1, outputs=("OUT",)),
    "order of outputs": call(1, outputs=("OUT", "B")),
    "other order": call(1, outputs=("B", "OUT")),
    "true": call(1, parameters=(("p", True),)),
    "one": call(1, parameters=(("p", 1),)),
    "one point nought": call(1, parameters=(("p", 1.0),)),
    "text": call(1, parameters=(("p", "1"),)),
    "name": call(1, parameters=(("q", 1),)),
    "both": call(1, parameters=(("p", 1), ("q", 1))),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_in_anything_is_not_alike(name):
    others = [call(1), *[other for key, other in DIFFERENT.items() if key != name]]
    assert key_of(DIFFERENT[name]) not in {key_of(other) for other in others}


def test_the_order_of_parameters_makes_no_difference():
    one = call(1, parameters=(("p", 1), ("q", "x")))
    other = call(1, parameters=(("q", "x"), ("p", 1)))
    assert key_of(one) == key_of(other)
    assert hash(key_of(one)) == hash(key_of(other))
    assert set(key_of(one).parameters) == set(other.parameters)


def test_a_negative_zero_is_another_value_than_zero():
    """They are equal to Python, and a model can tell them apart."""
    assert key_of(call(1, parameters=(("p", 0.0),))) != key_of(call(1, parameters=(("p", -0.0),)))


class Resembling:
    """Reads like a number, as numpy's own do before numpy 2, and cannot be sent."""

    def __repr__(self):
        return "1"


def test_what_only_reads_like_a_parameter_is_not_taken_for_it():
    """Sent for a neighbour's, it would fail every row of the batch, however it is halved."""
    assert key_of(call(1, parameters=(("p", 1),))) != key_of(
        call(1, parameters=(("p", Resembling()),))
    )
