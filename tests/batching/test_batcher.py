"""The driver: who shares a batch, when it leaves, and what is told to whom."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from tests.batching.fakes import (
    Catalog,
    Stack,
    Stage,
    busy,
    call,
    limited,
    line_to,
    nothing_left,
    spec,
    start,
    tenfold,
    told,
    turns,
    until,
    values,
)
from tritonasync.batching.batcher import Batcher
from tritonasync.core.errors import (
    ConnectionLostError,
    InvalidInputError,
    ModelNotFoundError,
    PoolClosedError,
    ProtocolError,
)
from tritonasync.core.values import Reply

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def clean():
    async with nothing_left():
        yield


def answers(replies):
    return [reply.outputs["OUT"][:, 0].tolist() for reply in replies]


# --- which rows share a batch ---------------------------------------------------------------------


async def test_calls_of_one_turn_share_a_batch():
    stage = Stage()
    line = line_to(stage)
    replies = await told(*[line.infer(call(number)) for number in range(8)])
    assert stage.sent == [list(range(8))]
    assert answers(replies) == [[number * 10] for number in range(8)]


async def test_a_lone_call_is_carried_by_its_caller():
    tasks = []
    stage = Stage(lambda sent: (tasks.append(asyncio.current_task()), tenfold(sent))[1])
    only = call(7)
    (reply,) = answers([await line_to(stage).infer(only)])
    assert reply == [70]
    assert stage.calls[0] is only
    assert tasks == [asyncio.current_task()]


async def test_a_full_batch_is_carried_by_its_caller_even_among_others():
    stage = Stage()
    line = line_to(stage, limited(4))
    full = call(*range(8))
    await told(line.infer(full), line.infer(call(8)), line.infer(call(9)))
    assert stage.calls[0] is full
    assert stage.sent[1:] == [[8, 9]]


async def test_rows_gather_while_as_many_batches_are_out_as_may_be():
    stage = Stage(hold=True)
    line = line_to(stage, limited(2))
    tasks = []
    for number in range(6):
        tasks += start(line.infer(call(number)))
        await turns(4)
    assert stage.sent == [[0], [1]]
    assert line.statistics().queued_rows == 4
    stage.release(1)
    await stage.until_calls(3)
    assert stage.sent[2] == [2, 3, 4, 5]
    stage.open()
    assert answers(await told(*tasks)) == [[number * 10] for number in range(6)]


async def test_a_batch_that_comes_back_starts_the_next_by_itself():
    stage = Stage()
    line = line_to(stage)
    replies = await told(*[line.infer(call(number)) for number in range(20)])
    assert stage.sent == [[*range(8)], [*range(8, 16)], [*range(16, 20)]]
    assert answers(replies) == [[number * 10] for number in range(20)]


async def test_a_batch_has_no_more_rows_than_the_policy_says():
    stage = Stage()
    await told(*[line_to(stage, limited(max_rows=3)).infer(call(*range(3)))])
    line = line_to(stage, limited(max_rows=3))
    await told(*[line.infer(call(number)) for number in range(7)])
    assert [len(rows) for rows in stage.sent] == [3, 3, 3, 1]


async def test_a_batch_has_no_more_rows_than_the_model_takes():
    stage = Stage()
    line = line_to(stage, limited(max_rows=100), Catalog(spec(4)))
    await told(*[line.infer(call(number)) for number in range(6)])
    assert [len(rows) for rows in stage.sent] == [4, 2]


async def test_a_batch_has_no_more_bytes_than_the_policy_says():
    stage = Stage()
    line = line_to(stage, limited(max_nbytes=24))
    await told(*[line.infer(call(number)) for number in range(7)])
    assert [len(rows) for rows in stage.sent] == [3, 3, 1]


async def test_a_byte_limit_that_the_policy_leaves_open_may_move():
    stage, limit = Stage(), [24]
    batcher = Batcher(stage, Catalog(), limited(), nbytes=lambda: limit[0])
    await told(*[batcher.infer(call(number)) for number in range(7)])
    limit[0] = 48
    batcher.relimit()
    await told(*[batcher.infer(call(number)) for number in range(7)])
    assert [len(rows) for rows in stage.sent] == [3, 3, 1, 6, 1]


async def test_a_row_beyond_the_byte_limit_is_sent_alone():
    stage = Stage()
    line = line_to(stage, limited(max_nbytes=900))
    texts = [b"a", b"x" * 2000, b"b", b"c"]
    calls = [call(text, dtype=object, datatype="BYTES") for text in texts]
    stage.answer = lambda sent: Reply("net", "1", {"OUT": np.array([[0]] * sent.rows)})
    await told(*map(line.infer, calls))
    assert stage.sent == [[b"a"], [b"x" * 2000], [b"b", b"c"]]


async def test_calls_of_several_rows_are_kept_whole():
    stage = Stage()
    line = line_to(stage)
    replies = await told(
        line.infer(call(0, 1, 2)), line.infer(call(3, 4, 5, 6)), line.infer(call(7, 8, 9))
    )
    assert stage.sent == [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]]
    assert answers(replies) == [[0, 10, 20], [30, 40, 50, 60], [70, 80, 90]]


async def test_outputs_are_views_on_the_reply_to_the_batch():
    whole = []

    def answer(sent):
        reply = tenfold(sent)
        whole.append(reply.outputs["OUT"])
        return reply

    line = line_to(Stage(answer))
    replies = await told(line.infer(call(1)), line.infer(call(2, 3)))
    assert all(np.shares_memory(reply.outputs["OUT"], whole[0]) for reply in replies)


KINDS = {
    "shape": call(100, width=2),
    "dtype": call(101, dtype=np.uint64, datatype="UINT64"),
    "outputs": call(102, outputs=("OUT",)),
    "true": call(103, parameters=(("p", True),)),
    "one": call(104, parameters=(("p", 1),)),
    "float": call(105, parameters=(("p", 1.0),)),
    "bytes": call(b"text", dtype=object, datatype="BYTES"),
}


async def test_rows_of_every_kind_go_in_batches_of_their_own():
    stage = Stage(lambda sent: Reply("net", "1", {"OUT": np.array([[0]] * sent.rows)}))
    line = line_to(stage, limited(16))
    await told(*map(line.infer, [call(0), *KINDS.values(), call(1), *KINDS.values()]))
    expected = [[0, 1], *[values(kind) * 2 for kind in KINDS.values()]]
    assert sorted(stage.sent, key=str) == sorted(expected, key=str)
    by_value = {values(sent)[0]: sent for sent in stage.calls}
    for value, kind in ((103, bool), (104, int), (105, float)):
        ((_, sent),) = by_value[value].parameters
        assert type(sent) is kind
    assert by_value[102].outputs == ("OUT",)


async def test_an_error_of_one_kind_is_none_of_the_others():
    def answer(sent):
        if sent.inputs[0].shape[1] == 2:
            raise ConnectionLostError("gone")
        return tenfold(sent)

    line = line_to(Stage(answer), limited(4))
    first, second = await told(line.infer(call(1)), line.infer(call(2, width=2)))
    assert answers([first]) == [[10]]
    assert isinstance(second, ConnectionLostError)


@pytest.mark.parametrize("parameters", [(("a", [1]),), (("a", 1), (3, 1))], ids=["value", "name"])
async def test_a_parameter_that_cannot_be_sent_is_refused_as_it_is_without_batching(parameters):
    """What is no parameter must not break the comparison of keys: encoding says what is wrong."""

    def answer(sent):
        if sent.parameters:
            raise InvalidInputError("parameter 'a' cannot be sent")
        return tenfold(sent)

    line = line_to(Stage(answer), limited(4))
    good, bad = await told(line.infer(call(1)), line.infer(call(2, parameters=parameters)))
    assert answers([good]) == [[10]]
    assert isinstance(bad, InvalidInputError)


# --- what is not batched --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "served",
    [spec(0), spec(8, stateful=True), spec(8, decoupled=True)],
    ids=["no batch axis", "stateful", "decoupled"],
)
async def test_models_that_cannot_be_batched_get_each_call_itself(served):
    stage = Stage()
    stack = Stack(stage, catalog=Catalog(served))
    calls = [call(number) for number in range(3)]
    await told(*map(stack.gate.infer, calls))
    assert all(sent is one for sent, one in zip(stage.calls, calls, strict=True))
    assert stack.batcher.statistics() == ()


async def test_a_call_with_an_id_of_its_own_is_sent_as_it_is():
    stage = Stage()
    stack = Stack(stage, limited(4))
    named = call(5, request_id="mine")
    replies = await told(*map(stack.gate.infer, [call(0), named, call(1)]))
    assert any(sent is named for sent in stage.calls)
    assert replies[1].request_id == "mine"
    assert [0, 1] in stage.sent


async def test_the_signature_is_asked_for_where_it_is_not_known():
    stage = Stage()
    stack = Stack(stage, catalog=Catalog(known=False))
    replies = await told(*[stack.gate.infer(call(number)) for number in range(3)])
    assert answers(replies) == [[0], [10], [20]]
    assert stage.sent == [[0, 1, 2]]


# --- lingering ------------------------------------------------------------------------------------


async def test_a_batch_with_room_lingers_for_more():
    stage = Stage()
    line = line_to(stage, limited(linger_s=0.02))
    began = time.monotonic()
    tasks = start(line.infer(call(0)))
    await turns(5)
    tasks += start(line.infer(call(1)))
    assert answers(await told(*tasks)) == [[0], [10]]
    assert stage.sent == [[0, 1]]
    assert time.monotonic() - began >= 0.02


async def test_a_full_batch_does_not_linger():
    stage = Stage()
    line = line_to(stage, limited(linger_s=30.0))
    await told(*[line.infer(call(number)) for number in range(8)])
    await told(line.infer(call(*range(8))))
    assert [len(rows) for rows in stage.sent] == [8, 8]


async def test_those_who_linger_leave_at_their_own_time_after_others_left():
    stage = Stage()
    line = line_to(stage, limited(4, linger_s=0.02))
    tasks = start(*[line.infer(call(number)) for number in range(9)])
    await until(lambda: stage.calls)
    assert [len(rows) for rows in stage.sent] == [8]
    await told(*tasks)
    assert [len(rows) for rows in stage.sent] == [8, 1]


# --- bad news -------------------------------------------------------------------------------------


class ForeignError(Exception):
    """As a user's function that gives headers may raise."""


class AwkwardError(Exception):
    """Cannot be copied by calling its class with its arguments."""

    def __init__(self, first, *, second):
        super().__init__(first)
        self.second = second


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLostError("gone"),
        ModelNotFoundError("no", code="NOT_FOUND", details="no"),
        ForeignError("no headers"),
        AwkwardError("first", second=2),
        FileNotFoundError(2, "No such file", "token"),
        UnicodeDecodeError("ascii", b"\xff", 0, 1, "ordinal not in range"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_each_waiter_has_an_error_of_its_own_with_its_cause(error):
    def answer(sent):
        raise error from KeyError("cause")

    stage = Stage(answer)
    line = line_to(stage)
    errors = await told(*[line.infer(call(number)) for number in range(4)])
    assert [type(one) for one in errors] == [type(error)] * 4
    assert len({id(one) for one in (*errors, error)}) == 5
    assert {str(one) for one in errors} == {str(error)}
    assert len(stage.calls) == 1  # none of these is one row's fault
    for one in errors:
        causes = [one.__cause__, getattr(one.__cause__, "__cause__", None)]
        assert "KeyError('cause')" in map(repr, causes)


@pytest.mark.parametrize("shape", [(2, 1), (4, 1), ()], ids=str)
async def test_a_reply_with_other_rows_is_refused_to_each(shape):
    line = line_to(Stage(lambda sent: Reply("net", "1", {"OUT": np.zeros(shape)})))
    errors = await told(*[line.infer(call(number)) for number in range(3)])
    assert [type(error) for error in errors] == [ProtocolError] * 3
    assert len({id(error) for error in errors}) == 3


@pytest.mark.parametrize("shape", [(3, 1), (), (0, 1)], ids=str)
async def test_a_reply_of_other_rows_is_the_same_to_a_call_carried_alone_or_from_the_queue(shape):
    stage = Stage(lambda sent: Reply("net", "1", {"OUT": np.zeros(shape)}))
    line = line_to(stage)
    (alone,) = await told(line.infer(call(1)))
    stage.answer = tenfold
    first = await busy(line, stage)
    (queued,) = start(line.infer(call(2)))
    await turns(2)
    stage.answer = lambda sent: Reply("net", "1", {"OUT": np.zeros(shape)})
    stage.open()
    _, queued = await told(first, queued)
    assert type(queued) is type(alone)
    if isinstance(alone, Reply):
        assert queued.outputs["OUT"].shape == alone.outputs["OUT"].shape


async def test_a_batch_whose_loop_ends_tells_its_callers():
    stage = Stage(hold=True)
    line = line_to(stage)
    tasks = start(*[line.infer(call(number)) for number in range(3)])
    await stage.until_calls(1)
    (batch,) = line._carried
    batch.cancel()
    errors = await told(*tasks)
    assert [type(error) for error in errors] == [PoolClosedError] * 3
    assert len({id(error) for error in errors}) == 3
    assert line.statistics().batches_in_flight == 0
