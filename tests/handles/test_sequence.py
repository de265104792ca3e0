"""Sequences on a stage that sums as a stateful model does: turns, closing, losses, sources."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from dataclasses import replace

import anyio
import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, spec, tensor
from tritonasync.core.errors import (
    ConfigurationError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
    ProtocolError,
    SequenceLostError,
    SequenceNotFoundError,
    ServerUnreachableError,
    TritonError,
    UsageError,
)
from tritonasync.core.values import Call, Reply, TensorSpec
from tritonasync.handles.model import ModelHandle

pytestmark = pytest.mark.anyio

VALUE = TensorSpec("VALUE", "INT32", (-1, 1))
MAYBE = TensorSpec("VALUE", "INT32", (-1, 1), optional=True)
TOTAL = ("TOTAL", "INT32", (-1, 1))


def no(kind: type[TritonError]) -> Callable[[], TritonError]:
    return lambda: kind("no", code="INTERNAL", details="no")  # type: ignore[call-arg]


class Adder:
    """Answers with the sum of a sequence so far; ``fail`` and ``hold`` are for what comes next."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.totals: dict[int | str, int] = {}
        self.fail: list[Callable[[], BaseException] | None] = []
        self.held: asyncio.Event | None = None
        self.out = 0
        self.most_out = 0

    async def infer(self, call: Call) -> Reply:
        self.calls.append(call)
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        try:
            await (asyncio.sleep(0) if self.held is None else self.held.wait())
            return self.answer(call)
        finally:
            self.out -= 1

    def answer(self, call: Call) -> Reply:
        failure = self.fail.pop(0) if self.fail else None
        if failure is not None:
            raise failure()
        step = call.sequence
        assert step is not None
        if not step.start and step.id not in self.totals:
            failure = no(SequenceNotFoundError)
            raise failure()
        value = int(tensor(call, "VALUE").sum()) if call.inputs else 0
        total = value + (0 if step.start else self.totals[step.id])
        self.totals[step.id] = total
        if step.end:
            del self.totals[step.id]
        return Reply("net", "1", {"TOTAL": np.array([[total]], np.int32)}, call.request_id)

    @property
    def flags(self) -> list[str]:
        """What was sent: S for start, E for end, the value, and 0 for no inputs."""
        return [
            f"{'S' * step.start}{int(tensor(call, 'VALUE').sum()) if call.inputs else 0}"
            f"{'E' * step.end}"
            for call in self.calls
            if (step := call.sequence)
        ]


class Streamer:
    """The same, as responses: as many as the value is, then ``failure``."""

    def __init__(self, adder: Adder) -> None:
        self.adder = adder
        self.failure: TritonError | None = None
        self.held: asyncio.Event | None = None
        self.left = 0
        self.forgotten: list[tuple[str, str, int | str]] = []

    def stream(self, call: Call):
        return self.responses(call)

    def responses(self, call: Call):
        return Few(self, call)

    def forget_sequence(self, model: str, version: str, number: int | str) -> None:
        self.forgotten.append((model, version, number))


class Few:
    def __init__(self, streamer: Streamer, call: Call) -> None:
        self.streamer = streamer
        self.call = call
        self.given = 0
        self.reply: Reply | None = None

    def __aiter__(self):
        return self

    async def __anext__(self) -> Reply:
        if self.reply is None:
            self.reply = await self.streamer.adder.infer(self.call)
        value = int(tensor(self.call, "VALUE").sum()) if self.call.inputs else 0
        if self.given and self.streamer.held is not None:
            await self.streamer.held.wait()
        if self.given == value:
            if self.streamer.failure is not None:
                raise self.streamer.failure
            raise StopAsyncIteration
        self.given += 1
        return self.reply

    def leave(self) -> None:
        self.streamer.left += 1


@pytest.fixture
def adder():
    return Adder()


@pytest.fixture
def make(adder):
    """Makes a handle; its model has an optional input, so that nothing is needed to close."""

    def made(value=MAYBE, *, catalog=None, timeout_s=5.0, **options):
        served = spec([value], [TOTAL], stateful=options.pop("stateful", True), **options)
        return ModelHandle(
            "net",
            "",
            adder,
            catalog or FakeCatalog(served),
            timeout_s=timeout_s,
            streamer=Streamer(adder),
        )

    return made


@pytest.fixture
def model(make):
    return make()


def total(outputs):
    return outputs["TOTAL"].item()


async def settle(turns=20):
    for _ in range(turns):
        await asyncio.sleep(0)


# --- flags ----------------------------------------------------------------------------------------


async def test_the_first_step_begins_and_leaving_the_block_ends(model, adder):
    async with model.sequence(7) as sequence:
        assert total(await sequence({"VALUE": [[3]]})) == 3
        assert total(await sequence(VALUE=[[4]])) == 7
        assert sequence.id == 7
    assert adder.flags == ["S3", "4", "0E"]
    assert {call.sequence.id for call in adder.calls} == {7}
    assert adder.calls[-1].inputs == ()
    assert adder.calls[-1].rows == 1
    assert adder.totals == {}


async def test_a_step_told_to_be_the_last_is_not_closed_again(model, adder):
    async with model.sequence() as sequence:
        await sequence(VALUE=[[3]])
        assert total(await sequence(VALUE=[[4]], end=True)) == 7
        with pytest.raises(UsageError, match="has ended, with the step that carried end=True"):
            await sequence(VALUE=[[4]])
    assert adder.flags == ["S3", "4E"]


async def test_one_step_may_be_a_whole_sequence(model, adder):
    async with model.sequence() as sequence:
        await sequence.one(VALUE=[3], end=True)
    assert adder.flags == ["S3E"]


async def test_without_a_step_nothing_is_sent(model, adder):
    async with model.sequence():
        pass
    assert adder.calls == []


async def test_the_closing_request_has_the_inputs_given_for_it(make, adder):
    async with make(VALUE).sequence(closing={"VALUE": [[9]]}) as sequence:
        await sequence.one(VALUE=[1])
    assert adder.flags == ["S1", "9E"]


async def test_a_model_that_needs_inputs_is_not_closed_without(make, adder):
    async with make(VALUE).sequence() as sequence:
        await sequence.one(VALUE=[1])
    assert adder.flags == ["S1"]


async def test_a_model_without_a_batch_axis_is_closed_without_rows(make, adder):
    model = make(TensorSpec("VALUE", "INT32", (1,), optional=True), max_batch_size=0)
    async with model.sequence() as sequence:
        await sequence.one(VALUE=[1])
        await sequence(VALUE=[1])
    assert [call.rows for call in adder.calls] == [0, 0, 0]


async def test_closing_inputs_that_do_not_fit_are_refused_at_the_beginning(make, adder):
    with pytest.raises(InvalidInputError, match="model 'net'.*did you mean 'VALUE'"):
        async with make(VALUE).sequence(closing={"VALUES": [[9]]}):
            pytest.fail("entered")
    with pytest.raises(InvalidInputError, match="expected a mapping"):
        make(VALUE).sequence(closing=[[9]])
    assert adder.calls == []


async def test_options_travel_with_a_step(model, adder):
    async with model.sequence() as sequence:
        outputs = await sequence(
            VALUE=[[1]],
            outputs=["TOTAL"],
            parameters={"beam": 4},
            request_id="r1",
            priority=1,
            queue_timeout_us=500,
            timeout_s=3,
        )
    call = adder.calls[0]
    assert outputs.request_id == "r1"
    assert call.outputs == ("TOTAL",)
    assert dict(call.parameters) == {"beam": 4, "priority": 1, "timeout": 500}
    assert call.deadline.timeout_s == 3
    assert not call.idempotent


async def test_an_item_has_no_batch_axis(model, adder):
    async with model.sequence() as sequence:
        outputs = await sequence.one({"VALUE": [5]})
        assert outputs["TOTAL"].shape == (1,)
        whole = await sequence({"VALUE": [[5]]})
        assert whole["TOTAL"].shape == (1, 1)


async def test_an_answer_of_many_rows_is_none_to_an_item(model, adder):
    adder.answer = lambda call: Reply("net", "1", {"TOTAL": np.zeros((2, 1), np.int32)})
    async with model.sequence() as sequence:
        with pytest.raises(ProtocolError, match=r"'TOTAL': expected one row for a step, got \[2"):
            await sequence.one(VALUE=[5])


# --- who may be a sequence ------------------------------------------------------------------------


async def test_a_model_that_takes_no_sequences_is_refused_with_what_it_lacks(make, adder):
    with pytest.raises(UsageError, match=r"'net' takes no sequences.*sequence_batching \{ \}"):
        async with make(stateful=False).sequence():
            pytest.fail("entered")


async def test_a_model_that_was_reloaded_to_take_sequences_is_asked_anew(make, adder):
    catalog = FakeCatalog(spec([MAYBE], [TOTAL]))
    model = make(catalog=catalog)
    await model.spec()
    catalog.served = spec([MAYBE], [TOTAL], stateful=True)
    async with model.sequence() as sequence:
        await sequence.one(VALUE=[1])


async def test_an_id_is_made_where_none_is_given(model, adder):
    async with model.sequence() as one, model.sequence() as other:
        assert one.id != other.id
        assert isinstance(one.id, int)


async def test_ids_are_strings_where_the_model_asks_for_them(make, adder):
    catalog = FakeCatalog(with_strings())
    async with make(catalog=catalog).sequence() as sequence:
        assert isinstance(sequence.id, str)
    async with make(catalog=catalog).sequence("mine") as sequence:
        assert sequence.id == "mine"
    with pytest.raises(InvalidInputError, match="asks for strings as ids.*not 7"):
        async with make(catalog=catalog).sequence(7):
            pytest.fail("entered")


async def test_a_model_that_is_told_a_number_gets_no_string_which_ends_the_server(make):
    told = replace(spec([MAYBE], [TOTAL], stateful=True), sequence_ids="integer")
    async with make(catalog=FakeCatalog(told)).sequence() as sequence:
        assert isinstance(sequence.id, int)
    with pytest.raises(InvalidInputError, match="asks for integers as ids.*not 'mine'"):
        async with make(catalog=FakeCatalog(told)).sequence("mine"):
            pytest.fail("entered")


def with_strings():
    return replace(spec([MAYBE], [TOTAL], stateful=True), sequence_ids="string")


async def test_a_number_of_numpy_is_an_id(model, adder):
    async with model.sequence(np.int64(5)) as sequence:
        await sequence.one(VALUE=[1], end=np.True_)
    (call,) = adder.calls
    assert (call.sequence.id, type(call.sequence.id), call.sequence.end) == (5, int, True)


@pytest.mark.parametrize("way", ["call", "one", "stream", "map"])
async def test_what_tells_no_end_is_refused_before_anything_is_sent(model, adder, way):
    async with model.sequence() as sequence:
        with pytest.raises(InvalidInputError, match="'net': end is True or False, not 'no'"):
            await TOLD[way](sequence, end="no")
    assert adder.calls == []


@pytest.mark.parametrize("name", ["sequence_id", "sequence_start", "sequence_end"])
@pytest.mark.parametrize("way", ["call", "one", "stream", "map"])
async def test_parameters_that_a_sequence_gives_itself_are_refused(model, adder, way, name):
    async with model.sequence() as sequence:
        with pytest.raises(InvalidInputError, match=f"'net': the parameter '{name}' is the seq"):
            await TOLD[way](sequence, parameters={name: True, "beam": 4})
    assert adder.calls == []


async def first_of(responses):
    return await anext(responses)


TOLD = {
    "call": lambda sequence, **options: sequence(VALUE=[[1]], **options),
    "one": lambda sequence, **options: sequence.one(VALUE=[1], **options),
    "stream": lambda sequence, **options: first_of(sequence.stream(VALUE=[[1]], **options)),
    "map": lambda sequence, **options: first_of(sequence.map([{"VALUE": [[1]]}] * 2, **options)),
}


@pytest.mark.parametrize("number", [0, "", True, 2**63, "x" * 129, "a\0b"])
async def test_an_id_that_makes_no_sense_is_refused_at_once(model, number):
    with pytest.raises(InvalidInputError, match="model 'net': a sequence's id"):
        model.sequence(number)


@pytest.mark.parametrize("option", ["close_timeout_s", "idle_timeout_s"])
async def test_times_that_make_no_sense_are_refused_at_once(model, option):
    with pytest.raises(ConfigurationError, match=option):
        model.sequence(**{option: -1})


async def test_a_sequence_is_used_once_and_in_its_block(model, adder):
    sequence = model.sequence()
    with pytest.raises(UsageError, match="no id before it is entered"):
        _ = sequence.id
    with pytest.raises(UsageError, match="was not entered: async with model.sequence"):
        await sequence(VALUE=[[1]])
    async with sequence:
        await sequence(VALUE=[[1]])
        with pytest.raises(UsageError, match="was entered before"):
            await sequence.__aenter__()
        assert total(await sequence(VALUE=[[1]])) == 2
    with pytest.raises(UsageError, match="is over, since its block was left"):
        await sequence(VALUE=[[1]])
    with pytest.raises(UsageError, match="was entered before"):
        await sequence.__aenter__()
    assert adder.flags == ["S1", "1", "0E"]


async def test_its_repr_says_where_it_is(model):
    sequence = model.sequence(5)
    assert repr(sequence) == "<SequenceHandle 5 of 'net': new>"
    assert sequence.id == 5
    async with sequence:
        assert repr(sequence) == "<SequenceHandle 5 of 'net': ready>"


# --- turns ----------------------------------------------------------------------------------------


async def test_steps_of_many_tasks_go_one_at_a_time_in_the_order_they_were_asked_for(model, adder):
    async with model.sequence() as sequence:
        answers = await asyncio.gather(*[sequence.one(VALUE=[value]) for value in range(1, 9)])
    assert [total(outputs) for outputs in answers] == [1, 3, 6, 10, 15, 21, 28, 36]
    assert adder.flags[:-1] == ["S1", "2", "3", "4", "5", "6", "7", "8"]
    assert adder.most_out == 1


async def test_a_steps_time_covers_the_wait_for_its_turn(model, adder):
    adder.held = asyncio.Event()
    async with model.sequence() as sequence:
        first = asyncio.ensure_future(sequence.one(VALUE=[1]))
        await settle()
        with pytest.raises(DeadlineExceededError) as caught:
            await sequence.one(VALUE=[2], timeout_s=0.02)
        assert (caught.value.stage, caught.value.model) == ("queue", "net")
        assert not caught.value.may_have_executed
        adder.held.set()
        assert total(await first) == 1
        assert total(await sequence.one(VALUE=[3])) == 4


@pytest.mark.parametrize("when", ["waiting", "on its turn"])
async def test_a_waiter_that_leaves_harms_nobody(model, adder, when):
    adder.held = asyncio.Event()
    async with model.sequence() as sequence:
        tasks = [asyncio.ensure_future(sequence.one(VALUE=[value])) for value in (1, 10, 100)]
        await settle()
        if when == "on its turn":
            adder.held.set()
            while not tasks[0].done():  # the lock is handed to the second in this very turn
                await asyncio.sleep(0)
        tasks[1].cancel()
        adder.held.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[1], asyncio.CancelledError)
    assert total(done[2]) == 101
    assert adder.most_out == 1


async def test_a_step_that_was_cancelled_when_it_was_out_is_not_sent_again(model, adder):
    async with model.sequence() as sequence:
        await sequence.one(VALUE=[1])
        adder.held = asyncio.Event()
        step = asyncio.ensure_future(sequence.one(VALUE=[2]))
        await settle()
        step.cancel()
        adder.held.set()
        await asyncio.gather(step, return_exceptions=True)
        await sequence.one(VALUE=[4])
    assert adder.flags == ["S1", "2", "4", "0E"]


# --- failures -------------------------------------------------------------------------------------

LOSSES = [
    lambda: ConnectionLostError("broke", endpoint="a:1"),
    lambda: ServerUnreachableError("nobody"),
    no(SequenceNotFoundError),
    lambda: SequenceLostError("removed"),
]


@pytest.mark.parametrize("failure", LOSSES)
async def test_a_lost_endpoint_or_state_is_said_once_for_all(model, adder, failure):
    async with model.sequence(3) as sequence:
        await sequence.one(VALUE=[1])
        adder.fail = [failure, failure]
        with pytest.raises(SequenceLostError, match="sequence 3 is lost.*begin a new") as caught:
            await sequence.one(VALUE=[2])
        assert type(caught.value.__cause__) is type(failure())
        sent = len(adder.calls)
        for _ in range(2):
            with pytest.raises(SequenceLostError, match=type(failure()).__name__):
                await sequence.one(VALUE=[2])
        assert len(adder.calls) == sent
    assert adder.flags == ["S1", "2", "0E"]  # a try, of which nothing is heard


async def test_a_model_that_raises_leaves_the_sequence_where_it_was(model, adder):
    async with model.sequence() as sequence:
        await sequence.one(VALUE=[1])
        adder.fail = [no(ModelFailedError)]
        with pytest.raises(ModelFailedError):
            await sequence.one(VALUE=[2])
        assert total(await sequence.one(VALUE=[4])) == 5


async def test_a_refused_step_leaves_the_sequence_where_it_was(model, adder):
    async with model.sequence() as sequence:
        with pytest.raises(InvalidInputError):
            await sequence.one(VALUES=[1])
        await sequence.one(VALUE=[1])
        with pytest.raises(InvalidInputError):
            await sequence.one(VALUE=["one"])
        await sequence.one(VALUE=[1])
    assert adder.flags == ["S1", "1", "0E"]


async def test_a_first_step_that_did_not_run_is_made_up_for_by_the_next(model, adder):
    adder.fail = [LOSSES[1]]
    async with model.sequence() as sequence:
        with pytest.raises(ServerUnreachableError):
            await sequence.one(VALUE=[1])
        assert total(await sequence.one(VALUE=[2])) == 2
    assert adder.flags == ["S1", "S2", "0E"]


async def test_a_first_step_that_may_have_run_is_not_made_up_for(model, adder):
    adder.fail = [LOSSES[0], LOSSES[3]]
    async with model.sequence() as sequence:
        with pytest.raises(ConnectionLostError):
            await sequence.one(VALUE=[1])
        with pytest.raises(SequenceLostError, match="first step may have run or not.*broke"):
            await sequence.one(VALUE=[2])
    assert adder.flags == ["S1", "0E"]


async def test_a_cancelled_first_step_is_closed_for_it_may_have_begun_the_sequence(model, adder):
    adder.held = asyncio.Event()
    async with model.sequence() as sequence:
        with anyio.move_on_after(0.01):
            await sequence.one(VALUE=[1])
        adder.held = None
        with pytest.raises(SequenceLostError, match="first step may have run or not"):
            await sequence.one(VALUE=[2])
    assert adder.flags == ["S1", "0E"]


# --- closing --------------------------------------------------------------------------------------


async def test_a_block_that_raises_is_closed_and_its_error_comes_out(model, adder):
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with model.sequence() as sequence:
            await sequence.one(VALUE=[1])
            adder.fail = [no(ModelFailedError)]
            raise ZeroDivisionError
    assert adder.flags == ["S1", "0E"]


@pytest.mark.parametrize(
    ("failure", "kind"), [(no(ModelFailedError), ModelFailedError), (LOSSES[0], SequenceLostError)]
)
async def test_a_closing_that_fails_is_heard_of_if_nothing_else_went_wrong(
    model, adder, failure, kind
):
    with pytest.raises(kind) as caught:  # noqa: PT012
        async with model.sequence() as sequence:
            await sequence.one(VALUE=[1])
            adder.fail = [failure]
    assert kind is ModelFailedError or isinstance(caught.value.__cause__, ConnectionLostError)
    with pytest.raises(UsageError, match="is over"):
        await sequence.one(VALUE=[1])


@pytest.mark.parametrize("way", ["task", "scope"])
async def test_a_cancelled_block_is_closed_all_the_same(model, adder, way):
    inside = asyncio.Event()
    scope = anyio.CancelScope()

    async def use():
        with scope:
            async with model.sequence() as sequence:
                await sequence.one(VALUE=[1])
                inside.set()
                await asyncio.Event().wait()

    task = asyncio.ensure_future(use())
    await inside.wait()
    (task if way == "task" else scope).cancel()
    done = await asyncio.gather(task, return_exceptions=True)
    assert adder.flags == ["S1", "0E"]
    assert adder.totals == {}
    assert isinstance(done[0], asyncio.CancelledError) is (way == "task")


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
async def test_closing_has_its_own_bound(make, adder, error):
    sequence = make(timeout_s=None).sequence(close_timeout_s=0.02)
    with anyio.fail_after(5), pytest.raises(error or DeadlineExceededError):  # noqa: PT012
        async with sequence:
            await sequence.one(VALUE=[1])
            adder.infer = limited(adder)
            if error is not None:
                raise error
    with pytest.raises(UsageError, match="is over"):
        await sequence.one(VALUE=[1])


def limited(adder):
    """Answers nothing until the deadline, as the stages below do."""

    async def infer(call):
        adder.calls.append(call)
        try:
            async with asyncio.timeout(call.deadline.wait_s()):
                await asyncio.Event().wait()
        except TimeoutError:
            raise call.deadline.error("server", model=call.model) from None

    return infer


async def test_leaving_waits_for_the_steps_that_are_on_their_way(model, adder):
    async with model.sequence() as sequence:
        steps = [asyncio.ensure_future(sequence.one(VALUE=[value])) for value in (1, 2)]
        await asyncio.sleep(0)
    assert [total(await step) for step in steps] == [1, 3]
    assert adder.flags == ["S1", "2", "0E"]


async def test_leaving_gives_up_waiting_for_a_step_at_its_bound(model, adder):
    adder.held = asyncio.Event()
    with pytest.raises(DeadlineExceededError) as caught:  # noqa: PT012
        async with model.sequence(close_timeout_s=0.01) as sequence:
            step = asyncio.ensure_future(sequence.one(VALUE=[1]))
            await settle()
    assert caught.value.stage == "queue"
    adder.held.set()
    await step
    with pytest.raises(UsageError, match="is over"):
        await sequence.one(VALUE=[1])


async def test_closing_a_decoupled_sequence_has_the_same_bound_to_its_last_response(make):
    model = make(decoupled=True)
    with anyio.fail_after(5), pytest.raises(DeadlineExceededError) as caught:  # noqa: PT012
        async with model.sequence(closing={"VALUE": [[2]]}, close_timeout_s=0.02) as sequence:
            async for _ in sequence.stream(VALUE=[[1]]):
                pass
            assert model._streamer.left == 1
            model._streamer.held = asyncio.Event()
    assert caught.value.stage == "responses"
    assert caught.value.timeout_s == 0.02
    assert model._streamer.left == 2


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_closing_that_waits_is_not_cut_short_by_cancelling(make, adder, times, decoupled):
    model = make(decoupled=decoupled)
    closing = asyncio.Event()

    async def use():
        async with model.sequence(closing={"VALUE": [[1]]}) as sequence:
            await anext(sequence.stream(VALUE=[[1]]))
            adder.held = model._streamer.held = closing

    task = asyncio.ensure_future(use())
    await settle()
    for _ in range(times):
        task.cancel()
        await settle()
    assert not task.done()
    closing.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert adder.flags == ["S1", "1E"]
    assert adder.totals == {}


async def test_a_cancelled_closing_has_its_bound_and_its_error_gives_way(make, adder):
    async def use():
        async with make().sequence(close_timeout_s=0.05) as sequence:
            await sequence.one(VALUE=[1])
            adder.infer = limited(adder)

    task = asyncio.ensure_future(use())
    await settle()
    task.cancel()
    with anyio.fail_after(5), pytest.raises(asyncio.CancelledError):
        await task


async def test_a_block_that_raises_and_is_cancelled_while_it_closes_is_cancelled(model, adder):
    async def use():
        async with model.sequence() as sequence:
            await sequence.one(VALUE=[1])
            adder.held = asyncio.Event()
            raise ZeroDivisionError

    task = asyncio.ensure_future(use())
    await settle()
    task.cancel()
    await settle()
    adder.held.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert adder.flags == ["S1", "0E"]


# --- what is kept of it elsewhere -----------------------------------------------------------------

OVER = [("net", "", 7)]


@pytest.mark.parametrize("value", [VALUE, MAYBE])
async def test_leaving_says_that_the_sequence_is_over_closable_or_not(make, value):
    model = make(value)
    async with model.sequence(7) as sequence:
        await sequence.one(VALUE=[1])
        assert model._streamer.forgotten == []
    assert model._streamer.forgotten == OVER


@pytest.mark.parametrize("kind", [ModelFailedError, SequenceNotFoundError])
async def test_a_sequence_whose_closing_failed_is_over_all_the_same(model, adder, kind):
    with pytest.raises(TritonError):  # noqa: PT012
        async with model.sequence(7) as sequence:
            await sequence.one(VALUE=[1])
            adder.fail = [no(kind)]
    assert model._streamer.forgotten == OVER


async def test_a_sequence_whose_first_step_may_have_run_is_over_when_it_was_left(make, adder):
    model = make(VALUE)
    async with model.sequence(7) as sequence:
        adder.fail = [LOSSES[0]]
        with pytest.raises(ConnectionLostError):
            await sequence.one(VALUE=[1])
    assert model._streamer.forgotten == OVER


async def test_a_sequence_with_a_step_that_is_out_too_long_is_over(model, adder):
    adder.held = asyncio.Event()
    with pytest.raises(DeadlineExceededError):  # noqa: PT012
        async with model.sequence(7, close_timeout_s=0.01) as sequence:
            adder.held = None
            await sequence.one(VALUE=[1])
            adder.held = asyncio.Event()
            step = asyncio.ensure_future(sequence.one(VALUE=[1]))
            await settle()
    assert model._streamer.forgotten == OVER
    adder.held.set()
    await step
    assert model._streamer.forgotten == OVER


@pytest.mark.parametrize("end", [None, True])
async def test_nothing_is_said_of_a_sequence_that_has_not_begun_or_has_ended(model, end):
    """Its id may be somebody else's by now."""
    async with model.sequence(7) as sequence:
        if end:
            await sequence.one(VALUE=[1], end=end)
    assert model._streamer.forgotten == []


@pytest.mark.parametrize("value", [VALUE, MAYBE])
async def test_an_idle_sequence_is_over_once(make, value):
    model = make(value)
    async with model.sequence(7, idle_timeout_s=0.0) as sequence:
        await sequence.one(VALUE=[1])
        with anyio.fail_after(5):
            while model._streamer.forgotten != OVER:
                await asyncio.sleep(0)
    assert model._streamer.forgotten == OVER


# --- idle time ------------------------------------------------------------------------------------


async def test_leaving_waits_for_the_closing_of_an_idle_sequence(model, adder):
    async with model.sequence(idle_timeout_s=0.0) as sequence:
        await sequence.one(VALUE=[1])
        adder.held = asyncio.Event()
        with anyio.fail_after(5):
            while sequence._expiry is None:
                await asyncio.sleep(0)  # in the very turn in which the timer went off
        asyncio.get_running_loop().call_later(0.02, adder.held.set)
    assert sequence._expiry.done()
    assert adder.flags == ["S1", "0E"]


@pytest.mark.parametrize("how", ["read", "left", "dropped", "broken"])
async def test_the_idle_time_begins_when_no_responses_are_to_come(model, how):
    async with model.sequence(idle_timeout_s=60) as sequence:
        other = sequence.stream(VALUE=[[2]])
        responses = sequence.stream(VALUE=[[2]])
        await anext(other)
        await anext(responses)
        assert sequence._timer is None
        await other.aclose()
        assert sequence._timer is None
        if how == "read":
            assert len([out async for out in responses]) == 1
        elif how == "left":
            await responses.aclose()
            await responses.aclose()
        elif how == "broken":
            model._streamer.failure = no(ModelFailedError)()
            await anext(responses)
            with pytest.raises(ModelFailedError):
                await anext(responses)
        del responses
        await settle()
        assert sequence._timer is not None
        model._streamer.failure = None
        async with sequence.stream(VALUE=[[2]]) as responses:
            await anext(responses)
            assert sequence._timer is None  # each was counted out once
        assert sequence._timer is not None


async def test_the_idle_time_begins_after_a_step_without_responses(model):
    async with model.sequence(idle_timeout_s=60) as sequence:
        assert [out async for out in sequence.stream(VALUE=[[0]])] == []
        assert sequence._timer is not None


async def test_the_idle_time_does_not_begin_while_a_step_is_out(model, adder):
    async with model.sequence(idle_timeout_s=60) as sequence:
        responses = sequence.stream(VALUE=[[2]])
        await anext(responses)
        adder.held = asyncio.Event()
        step = asyncio.ensure_future(sequence.one(VALUE=[1]))
        await settle()
        await responses.aclose()
        assert sequence._timer is None
        adder.held.set()
        await step
        assert sequence._timer is not None


async def test_responses_that_are_read_after_the_block_begin_no_idle_time(model):
    async with model.sequence(idle_timeout_s=0.0) as sequence:
        responses = sequence.stream(VALUE=[[2]])
        await anext(responses)
    assert len([out async for out in responses]) == 1
    assert sequence._timer is None


async def test_an_idle_sequence_is_closed_after_the_time_given_for_it(model, adder):
    async with model.sequence(idle_timeout_s=0.03) as sequence:
        await sequence.one(VALUE=[1])
        with anyio.fail_after(5):
            while adder.totals or adder.out:
                await asyncio.sleep(0.005)
        with pytest.raises(SequenceLostError, match="no step came for 0.03 s, its idle_timeout_s"):
            await sequence.one(VALUE=[1])
    assert adder.flags == ["S1", "0E"]


async def test_a_sequence_that_is_used_is_not_idle_however_long_a_step_takes(model, adder):
    adder.held = asyncio.Event()
    async with model.sequence(idle_timeout_s=0.1) as sequence:
        step = asyncio.ensure_future(sequence.one(VALUE=[1]))
        await asyncio.sleep(0.2)
        adder.held.set()
        await step
        adder.held = asyncio.Event()
        step = asyncio.ensure_future(sequence.one(VALUE=[1]))
        await asyncio.sleep(0.2)
        adder.held.set()
        assert total(await step) == 2
    assert adder.flags == ["S1", "1", "0E"]


async def test_each_step_begins_the_idle_time_anew(model, adder):
    async with model.sequence(idle_timeout_s=60) as sequence:
        await sequence.one(VALUE=[1])
        first = sequence._timer
        await sequence.one(VALUE=[1])
        assert first.cancelled()
        assert sequence._timer.when() > first.when()
        last = sequence._timer
    assert last.cancelled()


async def test_a_sequence_that_has_not_begun_is_not_idle(model, adder):
    adder.fail = [LOSSES[1]]
    async with model.sequence(idle_timeout_s=0.0) as sequence:
        with pytest.raises(ServerUnreachableError):
            await sequence.one(VALUE=[1])
        await settle()
        assert total(await sequence.one(VALUE=[2])) == 2
    assert adder.flags[:2] == ["S1", "S2"]


async def test_an_idle_sequence_that_cannot_be_closed_is_lost_without_a_word_to_the_server(
    make, adder
):
    async with make(VALUE).sequence(idle_timeout_s=0.0) as sequence:
        await sequence.one(VALUE=[1])
        await settle()
        with pytest.raises(SequenceLostError, match="idle_timeout_s"):
            await sequence.one(VALUE=[1])
    assert adder.flags == ["S1"]


async def test_a_sequence_that_was_left_has_no_timer(model, adder):
    async with model.sequence(idle_timeout_s=0.01) as sequence:
        await sequence.one(VALUE=[1])
    await asyncio.sleep(0.03)
    assert adder.flags == ["S1", "0E"]


# --- sources --------------------------------------------------------------------------------------


async def later(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.mark.parametrize("kind", [list, iter, later])
@pytest.mark.parametrize("end", [False, True])
async def test_a_step_for_each_item_of_a_source(model, adder, kind, end):
    source = kind([{"VALUE": [[value]]} for value in (1, 2, 3)])
    async with model.sequence() as sequence:
        answers = [total(outputs) async for outputs in sequence.map(source, end=end)]
    assert answers == [1, 3, 6]
    assert adder.flags == (["S1", "2", "3E"] if end else ["S1", "2", "3", "0E"])
    assert adder.most_out == 1


async def test_items_of_a_source_may_come_without_the_batch_axis(model, adder):
    async with model.sequence() as sequence:
        async for outputs in sequence.map([{"VALUE": [1]}], item=True):
            assert outputs["TOTAL"].shape == (1,)


@pytest.mark.parametrize("end", [False, True])
async def test_nothing_is_sent_for_an_empty_source(model, adder, end):
    async with model.sequence() as sequence:
        assert [outputs async for outputs in sequence.map([], end=end)] == []
    assert adder.calls == []


@pytest.mark.parametrize(("end", "ahead"), [(False, 0), (True, 1)])
async def test_a_source_is_read_as_its_answers_are_taken(model, adder, end, ahead):
    read = []

    def source():
        for value in range(1, 6):
            read.append(value)
            yield {"VALUE": [[value]]}

    async with model.sequence() as sequence:
        answers = sequence.map(source(), end=end)
        for taken in (1, 2):
            await anext(answers)
            assert len(read) == taken + ahead
        await answers.aclose()
        assert total(await sequence.one(VALUE=[100])) == 103


async def test_options_travel_with_each_item(model, adder):
    options = {"outputs": ["TOTAL"], "parameters": {"beam": 2}, "priority": 3, "timeout_s": 2.0}
    async with model.sequence() as sequence:
        async for _ in sequence.map([{"VALUE": [[1]]}], queue_timeout_us=4, **options):
            pass
    call = adder.calls[0]
    assert (call.outputs, call.deadline.timeout_s) == (("TOTAL",), 2.0)
    assert dict(call.parameters) == {"beam": 2, "priority": 3, "timeout": 4}


async def test_what_is_no_mapping_in_a_source_is_refused(model, adder):
    async with model.sequence() as sequence:
        with pytest.raises(InvalidInputError, match="expected a mapping.*got NoneType|no input"):
            async for _ in sequence.map([None]):
                pass
        with pytest.raises(InvalidInputError, match="expected a mapping.*got str"):
            async for _ in sequence.map({"VALUE": [[1]]}):
                pass


async def broken_off(items):
    for item in items:
        yield item
    raise ZeroDivisionError


def broken_off_at_once(items):
    yield from items
    raise ZeroDivisionError


@pytest.mark.parametrize("kind", [broken_off, broken_off_at_once])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
async def test_all_that_a_source_gave_before_it_raised_is_run(model, adder, kind, end, count):
    values, answers = range(1, count + 1), []
    source = kind([{"VALUE": [[value]]} for value in values])
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with model.sequence() as sequence:
            async for outputs in sequence.map(source, end=end):
                answers.append(total(outputs))
    assert answers == [1, 3, 6][:count]
    assert adder.flags == ([*["S1", "2", "3"][:count], "0E"] if count else [])


@pytest.mark.parametrize("source", [5, None])
async def test_what_is_no_source_is_refused_in_words(model, source):
    async with model.sequence() as sequence:
        with pytest.raises(InvalidInputError, match="'net': expected an iterable of mappings, or"):
            async for _ in sequence.map(source):
                pass


# --- many responses -------------------------------------------------------------------------------


async def test_all_readers_are_told_that_the_sequence_is_lost(model):
    async with model.sequence() as sequence:
        readers = [sequence.stream(VALUE=[[2]]) for _ in range(3)]
        for reader in readers:
            await anext(reader)
            await anext(reader)
        model._streamer.failure = ConnectionLostError("broke")
        for reader in readers:
            with pytest.raises(SequenceLostError, match="broke"):
                await anext(reader)


async def test_a_step_may_have_many_responses(model, adder):
    async with model.sequence() as sequence:
        assert [total(out) async for out in sequence.stream(VALUE=[[3]])] == [3, 3, 3]
        assert [total(out) async for out in sequence.stream({"VALUE": [[0]]})] == []
        assert total(await sequence.one(VALUE=[1])) == 4
    assert adder.flags == ["S3", "0", "1", "0E"]


async def test_a_stream_is_no_step_before_it_is_asked_for_a_response(model, adder):
    async with model.sequence() as sequence:
        responses = sequence.stream(VALUE=[[1]], end=True)
        await sequence.one(VALUE=[2])
        assert [total(out) async for out in responses] == [3]
    assert adder.flags == ["S2", "1E"]


async def test_the_next_step_need_not_wait_for_the_last_response(model, adder):
    async with model.sequence() as sequence, sequence.stream(VALUE=[[2]]) as responses:
        assert total(await anext(responses)) == 2
        assert total(await sequence.one(VALUE=[5])) == 7
        assert total(await anext(responses)) == 2


async def test_a_decoupled_model_is_closed_by_a_stream_and_stepped_by_nothing_else(make, adder):
    async with make(decoupled=True).sequence(closing={"VALUE": [[2]]}) as sequence:
        with pytest.raises(UsageError, match=r"decoupled.*Use sequence\.stream\(…\)"):
            await sequence.one(VALUE=[1])
        async for _ in sequence.stream(VALUE=[[1]]):
            pass
    assert adder.flags == ["S1", "2E"]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (ConnectionLostError("broke"), SequenceLostError),
        (ModelFailedError("no", code="INTERNAL", details="no"), ModelFailedError),
    ],
)
async def test_responses_that_break_off_are_told_to_the_sequence(model, adder, failure, kind):
    async with model.sequence() as sequence:
        responses = sequence.stream(VALUE=[[2]])
        assert total(await anext(responses)) == 2
        model._streamer.failure = failure
        await anext(responses)
        with pytest.raises(kind):
            await anext(responses)
        if kind is SequenceLostError:
            with pytest.raises(SequenceLostError, match="broke"):
                await sequence.one(VALUE=[1])
        else:
            await sequence.one(VALUE=[1])


async def test_a_stream_whose_first_response_fails_is_a_step_that_failed(model, adder):
    async with model.sequence() as sequence:
        await sequence.one(VALUE=[1])
        adder.fail = [LOSSES[0]]
        with pytest.raises(SequenceLostError):
            await anext(sequence.stream(VALUE=[[2]]))


async def test_a_stream_before_whose_first_response_the_model_raised_leaves_the_state(model, adder):
    async with model.sequence() as sequence:
        await sequence.one(VALUE=[1])
        adder.fail = [no(ModelFailedError)]
        with pytest.raises(ModelFailedError):
            await anext(sequence.stream(VALUE=[[2]]))
        assert total(await sequence.one(VALUE=[2])) == 3


async def test_leaving_a_stream_lets_go_of_its_responses(model, adder):
    async with model.sequence() as sequence:
        async with sequence.stream(VALUE=[[2]]) as responses:
            await anext(responses)
        assert model._streamer.left == 1


# --- leftovers ------------------------------------------------------------------------------------


async def fail_a_step(model, adder):
    async with model.sequence() as sequence:
        await sequence.one(VALUE=[1])
        adder.fail = [LOSSES[0]]
        with pytest.raises(SequenceLostError):
            await sequence.one(VALUE=[2])


async def fail_the_closing(model, adder):
    with pytest.raises(SequenceLostError):
        await begin_and_fail_the_end(model, adder)


async def begin_and_fail_the_end(model, adder, closing=None):
    async with model.sequence() as sequence:
        await sequence.one(VALUE=[1])
        adder.fail = [LOSSES[0]]
        adder.held = closing


async def cancel_the_closing(model, adder):
    closing = asyncio.Event()
    task = asyncio.ensure_future(begin_and_fail_the_end(model, adder, closing))
    await settle()
    assert adder.out
    task.cancel("by the test")
    await settle()
    closing.set()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("what", [fail_a_step, fail_the_closing, cancel_the_closing])
async def test_what_fails_leaves_no_cycle(model, adder, what):
    gc.collect()
    gc.disable()
    try:
        await what(model, adder)
        adder.calls.clear()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = [thing for thing in gc.garbage if isinstance(thing, TritonError | Call)]
        kept += [thing for thing in gc.garbage if "by the test" in getattr(thing, "args", ())]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert kept == []
