"""The driver: what passes through, what is sent side by side, and who hears of a failure."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest

from tritonasync.batching.splitter import Splitter
from tritonasync.core.deadline import NEVER
from tritonasync.core.errors import InvalidInputError, ModelFailedError, ProtocolError
from tritonasync.core.values import Call, InputTensor, ModelSpec, Reply

pytestmark = pytest.mark.anyio


class Catalog:
    def __init__(self, max_batch_size=4, *, stateful=False):
        self.spec = ModelSpec("net", "", ("1",), "", max_batch_size, (), (), stateful=stateful)
        self.asked = 0

    async def describe(self, model, version, deadline):
        self.asked += 1
        return self.spec

    async def renew(self, model, version, deadline):
        return await self.describe(model, version, deadline)

    def known(self, model, version):
        return None

    def forget(self, model):
        raise AssertionError("nothing to forget")


class Stage:
    """Holds each call until it is let go, so that tests decide what happens in which order."""

    def __init__(self, *, hold=False):
        self.calls = []
        self.hold = hold
        self.out = 0
        self.most_out = 0
        self.left = []
        self.gates = {}

    def first_row(self, call):
        return int(call.inputs[0].parts[0][0])

    async def infer(self, call):
        row = self.first_row(call)
        self.calls.append(call)
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        try:
            if self.hold:
                gate = self.gates[row] = asyncio.get_running_loop().create_future()
                await gate
            else:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.left.append(row)
            raise
        finally:
            self.out -= 1
        array = np.concatenate(call.inputs[0].parts)
        return Reply("net", "1", {"OUT": array * 2}, call.request_id)

    async def until_out(self, *rows):
        await until(lambda: set(rows) <= set(self.gates))

    def release(self, row):
        self.gates[row].set_result(None)

    def fail(self, row, text="no"):
        error = ModelFailedError(f"{text} {row}", code="INTERNAL", details="no", model="net")
        self.gates[row].set_exception(error)


def call(rows, deadline=NEVER):
    array = np.arange(rows)
    return Call(
        "net", "", (InputTensor("A", "INT64", array.shape, (array,)),), rows, (), (), "", deadline
    )


async def until(holds):
    """Let the others run until something holds; they need a few turns, never time."""
    for _ in range(100):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


@pytest.fixture(autouse=True)
async def no_task_is_left():
    yield
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    assert [name for name in names if "TestRunner" not in name] == []


@pytest.mark.parametrize("rows", [1, 4])
async def test_a_call_within_the_limit_is_passed_on_itself(rows):
    stage = Stage()
    whole = call(rows)
    await Splitter(stage, Catalog()).infer(whole)
    assert stage.calls == [whole]
    assert stage.calls[0] is whole


@pytest.mark.parametrize("rows", [0, 1])
async def test_a_single_row_needs_no_signature(rows):
    catalog = Catalog()
    array = np.arange(3)
    whole = Call("net", "", (InputTensor("A", "INT64", (3,), (array,)),), rows)
    await Splitter(Stage(), catalog).infer(whole)
    assert catalog.asked == 0


@pytest.mark.parametrize("catalog", [Catalog(0), Catalog(4, stateful=True)], ids=["0", "stateful"])
async def test_models_that_cannot_be_split_get_the_whole_call(catalog):
    stage = Stage()
    whole = call(9)
    await Splitter(stage, catalog).infer(whole)
    assert stage.calls[0] is whole


async def test_a_large_call_is_sent_in_parts_and_joined_in_order():
    stage = Stage(hold=True)
    waiting = asyncio.create_task(Splitter(stage, Catalog()).infer(call(10)))
    await stage.until_out(0, 4, 8)
    for row in (8, 0, 4):
        stage.release(row)
    reply = await waiting
    assert reply.outputs["OUT"].tolist() == [row * 2 for row in range(10)]
    assert [part.rows for part in stage.calls] == [4, 4, 2]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_only_so_many_parts_are_out_at_once(limit):
    stage = Stage()
    reply = await Splitter(stage, Catalog(1), max_inflight=limit).infer(call(7))
    assert stage.most_out == min(limit, 7)
    assert reply.outputs["OUT"].tolist() == [0, 2, 4, 6, 8, 10, 12]


async def test_large_replies_are_joined_too():
    stage = Stage()
    reply = await Splitter(stage, Catalog(100_000)).infer(call(400_000))
    np.testing.assert_array_equal(reply.outputs["OUT"], np.arange(400_000) * 2)


async def test_a_failure_ends_the_parts_after_it_and_waits_for_those_before():
    stage = Stage(hold=True)
    waiting = asyncio.create_task(Splitter(stage, Catalog(1), max_inflight=3).infer(call(6)))
    await stage.until_out(0, 1, 2)
    stage.fail(1)
    await until(lambda: stage.left == [2])
    assert not waiting.done()
    stage.release(0)
    with pytest.raises(ModelFailedError, match="no 1"):
        await waiting
    assert len(stage.calls) == 3  # nothing new was started


async def test_of_several_failures_the_first_in_row_order_surfaces():
    stage = Stage(hold=True)
    waiting = asyncio.create_task(Splitter(stage, Catalog(1), max_inflight=3).infer(call(3)))
    await stage.until_out(0, 1, 2)
    stage.fail(2)
    stage.fail(1)
    for _ in range(5):
        await asyncio.sleep(0)
    stage.fail(0)
    with pytest.raises(ModelFailedError, match="no 0"):
        await waiting


async def test_a_caller_that_leaves_takes_its_parts_along():
    stage = Stage(hold=True)
    waiting = asyncio.create_task(Splitter(stage, Catalog(1), max_inflight=3).infer(call(6)))
    await stage.until_out(0, 1, 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert sorted(stage.left) == [0, 1, 2]
    assert len(stage.calls) == 3


async def test_failures_leave_no_exception_that_nobody_asked_for():
    unasked = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unasked.append(context))
    stage = Stage(hold=True)
    waiting = asyncio.create_task(Splitter(stage, Catalog(1), max_inflight=3).infer(call(3)))
    await stage.until_out(0, 1, 2)
    for row in (0, 1, 2):
        stage.fail(row)
    with pytest.raises(ModelFailedError, match="no 0"):
        await waiting
    del waiting, stage
    gc.collect()
    await asyncio.sleep(0)
    assert unasked == []


async def test_replies_that_do_not_fit_together_are_an_error():
    class Short(Stage):
        async def infer(self, call):
            reply = await super().infer(call)
            return Reply("net", "1", {"OUT": reply.outputs["OUT"][:1]})

    with pytest.raises(ProtocolError, match="model 'net', output 'OUT'"):
        await Splitter(Short(), Catalog()).infer(call(9))


async def test_a_wrong_string_is_refused_before_any_part_is_sent():
    sent = []

    class Stage:
        async def infer(self, call):
            sent.append(call)

    class Known:
        def known(self, model, version):
            return ModelSpec(model, version, ("1",), "python", 4, (), ())

    texts = np.array([["a", "b"]] * 9 + [["c", None]] + [["d", "e"]], object)
    inputs = (InputTensor("TEXT", "BYTES", texts.shape, (texts[:7], texts[7:])),)
    with pytest.raises(InvalidInputError, match="input 'TEXT': row 9 holds a NoneType"):
        await Splitter(Stage(), Known()).infer(Call("m", "", inputs, len(texts)))
    assert sent == []
