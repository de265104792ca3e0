"""Very many items through ``map``: who runs when, what is read, how a loop over it is left."""

import asyncio
import gc
import weakref
from contextlib import aclosing, suppress

import anyio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.batching.fakes import nothing_left, until
from tests.handles.fakes import FakeCatalog, FakeInvoker, spec
from tritonasync.core.errors import (
    ConfigurationError,
    InvalidInputError,
    ModelNotFoundError,
    UsageError,
)
from tritonasync.core.values import ModelSpec, TensorSpec
from tritonasync.handles.flow import running
from tritonasync.handles.flow.bulk import Failed, Mappable, in_flight_for
from tritonasync.handles.model import ModelHandle

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def clean():
    async with nothing_left():
        yield


class Doubler(Mappable[int, int]):
    """Doubles at once, or, if told so, when told."""

    def __init__(self, *, waits=False):
        self.waits = waits
        self.waiting = {}  # futures by item
        self.begun, self.cancelled, self.timeouts = [], [], []

    def __repr__(self):
        return "<Doubler>"

    async def one(self, item, /, *, timeout_s=None):
        self.begun.append(item)
        self.timeouts.append(timeout_s)
        if self.waits:
            self.waiting[item] = asyncio.get_running_loop().create_future()
            try:
                await self.waiting[item]
            except asyncio.CancelledError:
                self.cancelled.append(item)
                raise
            finally:
                self.waiting.pop(item)
        else:
            await asyncio.sleep(0)
        if item < 0:
            raise ValueError(f"no {item}")
        return item * 2

    async def tell(self, *items):
        for item in items:
            await until(lambda item=item: item in self.waiting)
            self.waiting[item].set_result(None)


class Source:
    """Counts what is read."""

    def __init__(self, items):
        self.items = iter(items)
        self.read = 0

    def __iter__(self):
        return self

    def __next__(self):
        item = next(self.items)
        self.read += 1
        return item


async def later(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


async def at_once(items):
    for item in items:
        yield item


SOURCES = [list, later, at_once, Source]


async def collected(stream):
    return [result async for result in stream]


def sane(task):
    """The next result, as a task."""
    return asyncio.ensure_future(anext(task))


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("ordered", [True, False])
async def test_every_item_has_its_result(source, ordered):
    results = await collected(Doubler().map(source(range(1000)), ordered=ordered, max_in_flight=7))
    assert (results if ordered else sorted(results)) == [2 * number for number in range(1000)]


@pytest.mark.parametrize("source", SOURCES)
async def test_no_items_give_no_results(source):
    assert await collected(Doubler().map(source([]))) == []


async def test_ordered_results_wait_for_the_first_and_unordered_ones_do_not():
    for ordered in (True, False):
        doubler = Doubler(waits=True)
        stream = doubler.map([1, 2], ordered=ordered, max_in_flight=2)
        first = sane(stream)
        await doubler.tell(2)
        await until(lambda doubler=doubler: 2 not in doubler.waiting)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert first.done() != ordered
        await doubler.tell(1)
        assert [await first, await anext(stream)] == ([2, 4] if ordered else [4, 2])
        assert await anext(stream, None) is None


async def test_results_may_be_none_and_false():
    class Nothing(Mappable):
        async def one(self, item, /, *, timeout_s=None):
            return item

    items = [None, False, 0, "", ()]
    assert await collected(Nothing().map(items)) == items


async def test_no_more_are_out_at_once_than_told():
    doubler = Doubler(waits=True)
    stream = doubler.map(range(100), max_in_flight=3)
    first = sane(stream)
    await until(lambda: len(doubler.waiting) == 3)
    await doubler.tell(0, 1, 2)
    assert await first == 0
    await until(lambda: len(doubler.waiting) == 3)
    assert doubler.begun == [0, 1, 2, 3, 4, 5]
    await stream.aclose()


@pytest.mark.parametrize("source", [Source, lambda items: items])
async def test_nothing_is_read_before_the_first_result_is_asked_for(source):
    items = Source(range(9))
    stream = Doubler().map(items if source is Source else at_once(items), max_in_flight=2)
    await asyncio.sleep(0)
    assert items.read == 0
    assert stream.progress.done == 0
    assert await anext(stream) == 0
    await stream.aclose()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
async def test_a_slow_consumer_stops_the_reading(asynchronous, ordered):
    items = Source(range(1000))
    source = at_once(items) if asynchronous else items
    stream = Doubler().map(source, max_in_flight=5, ordered=ordered)
    for taken in range(1, 20):
        await anext(stream)
        for _ in range(50):
            await asyncio.sleep(0)
        # An async source is read one ahead at the most.
        assert taken + 9 <= items.read <= taken + 10
    await stream.aclose()


async def test_a_slow_item_stops_the_reading_and_the_rest_goes_on_when_it_is_done():
    class LateFirst(Doubler):
        async def one(self, item, /, *, timeout_s=None):
            self.waits = item == 0
            return await super().one(item)

    late, items = LateFirst(), Source(range(100))
    stream = late.map(items, max_in_flight=5)
    first = sane(stream)
    await until(lambda: items.read == 10)
    for _ in range(50):
        await asyncio.sleep(0)
    assert items.read == 10
    await late.tell(0)
    assert [await first, *await collected(stream)] == [2 * number for number in range(100)]


async def test_the_slow_item_of_an_unordered_map_holds_up_nothing_but_itself():
    class LateFirst(Doubler):
        async def one(self, item, /, *, timeout_s=None):
            self.waits = item == 0
            return await super().one(item)

    late = LateFirst()
    stream = late.map(range(1000), max_in_flight=5, ordered=False)
    assert [await anext(stream) for _ in range(999)] == [2 * number for number in range(1, 1000)]
    assert stream.progress.resume_key is None
    await late.tell(0)
    assert await anext(stream) == 0
    assert stream.progress.resume_key == 999
    assert await collected(stream) == []


async def test_timeouts_go_to_each_item_and_are_checked():
    doubler = Doubler()
    await collected(doubler.map([1, 2], timeout_s=5))
    assert doubler.timeouts == [5, 5]
    with pytest.raises(ConfigurationError, match="timeout_s"):
        doubler.map([1], timeout_s=-1)


async def not_awaited(progress):
    raise AssertionError


@pytest.mark.parametrize("progress", ["print", 3, not_awaited])
async def test_progress_must_be_a_plain_function(progress):
    with pytest.raises(ConfigurationError) as caught:
        Doubler().map([1], progress=progress)
    assert str(caught.value) == (
        f"map of <Doubler>: progress is a plain function that takes a Progress, not {progress!r}"
    )


@pytest.mark.parametrize(
    ("items", "got"),
    [(3, "got int"), ("abc", "got str; a single item goes"), ({"A": 1}, "got dict; a single")],
)
async def test_what_is_no_iterable_of_items_is_refused(items, got):
    with pytest.raises(InvalidInputError) as caught:
        Doubler().map(items)
    expected = "map of <Doubler>: expected an iterable or async iterable of items, "
    assert str(caught.value).startswith(expected + got)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
async def test_an_error_is_raised_after_what_came_before_and_ends_the_stream(source):
    stream = Doubler().map(source([1, 2, -3, 4]), max_in_flight=4)
    assert [await anext(stream), await anext(stream)] == [2, 4]
    with pytest.raises(ValueError, match="no -3") as caught:
        await anext(stream)
    assert await collected(stream) == []
    assert stream.progress.resume_key == 1
    assert stream.progress.done == 2
    names = [entry.name for entry in caught.traceback]
    assert "run_entry" not in names  # which would keep the item
    assert names[-1] == "one"


async def test_after_an_error_nothing_more_is_begun_and_what_is_out_is_left():
    doubler = Doubler(waits=True)
    stream = doubler.map([-1, 2, 3, 4], max_in_flight=2)
    first = sane(stream)
    await doubler.tell(-1)
    with pytest.raises(ValueError, match="no -1"):
        await first
    assert doubler.begun == [-1, 2]
    assert doubler.cancelled == [2]  # and has ended by now


async def test_what_an_async_source_gives_after_an_error_is_not_begun():
    gate = asyncio.Event()

    async def items():
        yield 0
        yield -1
        await gate.wait()
        yield 2

    doubler = Doubler(waits=True)
    stream = doubler.map(items())
    first = sane(stream)
    await doubler.tell(-1)
    await until(lambda: -1 not in doubler.waiting)
    gate.set()
    for _ in range(9):
        await asyncio.sleep(0)
    assert doubler.begun == [0, -1]
    await doubler.tell(0)
    assert await first == 0
    with pytest.raises(ValueError, match="no -1"):
        await anext(stream)


@pytest.mark.parametrize("ordered", [True, False])
async def test_collected_errors_are_results_among_the_others(ordered):
    stream = Doubler().map([1, -2, 3], errors="collect", key=str, ordered=ordered)
    results = await collected(stream)
    (failed,) = [result for result in results if isinstance(result, Failed)]
    assert (failed.key, failed.index, failed.item, str(failed.error)) == ("-2", 1, -2, "no -2")
    assert sorted(result for result in results if result is not failed) == [2, 6]
    assert results[1] is failed or not ordered
    assert (stream.progress.done, stream.progress.failed) == (3, 1)


@pytest.mark.parametrize("errors", ["raise", "collect"])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_error_of_the_source_comes_after_what_was_read(errors, asynchronous):
    def items():
        yield 1
        yield 2
        raise OSError("the disk")

    source = at_once(items()) if asynchronous else items()
    stream = Doubler().map(source, errors=errors)
    assert [await anext(stream), await anext(stream)] == [2, 4]
    with pytest.raises(OSError, match="the disk"):
        await anext(stream)
    assert await collected(stream) == []


async def test_what_cannot_be_iterated_over_is_told_by_the_stream():
    class Broken:
        def __iter__(self):
            raise OSError("no such folder")

    with pytest.raises(OSError, match="no such folder"):
        await collected(Doubler().map(Broken()))


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
async def test_an_item_cannot_end_the_loop_in_silence(kind):
    class Ends(Mappable):
        async def one(self, item, /, *, timeout_s=None):
            raise kind

    with pytest.raises(RuntimeError):
        await collected(Ends().map([1]))


async def test_an_error_holds_nothing_of_the_stream():
    class Item:
        pass

    class Fails(Mappable):
        async def one(self, item, /, *, timeout_s=None):
            raise ValueError

    item = Item()
    gone = weakref.ref(item)
    gc.disable()
    try:
        stream = Fails().map([item])
        with pytest.raises(ValueError):  # noqa: PT012
            del item
            await anext(stream)
        stream = weakref.ref(stream)
        for _ in range(5):
            await asyncio.sleep(0)
        assert (stream(), gone()) == (None, None)
    finally:
        gc.enable()


async def test_two_tasks_may_not_wait_for_the_next_result():
    doubler = Doubler(waits=True)
    stream = doubler.map([1])
    first = sane(stream)
    await until(lambda: doubler.waiting)
    with pytest.raises(UsageError, match="another task waits"):
        await anext(stream)
    await doubler.tell(1)
    assert await first == 2
    await stream.aclose()


# --- keys, going on -------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
async def test_going_on_after_a_key(source):
    stream = Doubler().map(source(range(3000)), key=str, start_after="2500")
    assert await collected(stream) == [2 * number for number in range(2501, 3000)]
    assert stream.progress.resume_key == "2999"
    assert stream.progress.done == 499


async def test_without_a_key_function_the_index_is_the_key():
    stream = Doubler().map([5, 6, 7, 8], start_after=1)
    assert await collected(stream.keyed()) == [(2, 14), (3, 16)]


async def test_pairs_of_keys_and_results():
    stream = Doubler().map([3, -1, 2], key=str, ordered=False, errors="collect").keyed()
    results = dict(await collected(stream))
    assert (results["3"], results["2"]) == (6, 4)
    assert isinstance(results["-1"], Failed)
    with pytest.raises(UsageError, match="before the first result"):
        stream.keyed()


@pytest.mark.parametrize("source", SOURCES)
async def test_a_key_that_no_item_has_is_an_error(source):
    with pytest.raises(InvalidInputError, match=r"start_after='x' is the key of none of the 3"):
        await collected(Doubler().map(source([1, 2, 3]), key=str, start_after="x"))


@pytest.mark.parametrize("source", SOURCES)
async def test_a_key_function_that_fails_ends_the_stream_after_the_rest(source):
    stream = Doubler().map(source([1, 2, 0, 3]), key=lambda item: 6 // item)
    assert [await anext(stream), await anext(stream)] == [2, 4]
    with pytest.raises(ZeroDivisionError):
        await anext(stream)


async def test_others_have_their_turn_while_very_many_are_skipped():
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    assert await collected(Doubler().map(range(20_000), start_after=19_998)) == [2 * 19_999]
    assert turns >= 20
    counting.cancel()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ordered=st.booleans(),
    asynchronous=st.booleans(),
    most=st.integers(1, 6),
    stops=st.lists(st.integers(0, 8), max_size=6),
    failing=st.sets(st.integers(0, 29)),
    turns=st.lists(st.integers(0, 5), min_size=30, max_size=30),
)
async def test_runs_that_stop_and_go_on_do_every_item(
    ordered, asynchronous, most, stops, failing, turns
):
    """Each run is left after some results, and the next goes on by its resume key."""

    class Random(Mappable):
        async def one(self, item, /, *, timeout_s=None):
            for _ in range(turns[item]):
                await asyncio.sleep(0)
            if item in failing:
                raise ValueError(item)
            return item

    done, after = [], None
    for stop in [*stops, 10_000]:
        source = at_once(range(30)) if asynchronous else range(30)
        stream = Random().map(
            source,
            ordered=ordered,
            max_in_flight=most,
            errors="collect",
            start_after=after,
        )
        async with stream:
            for _ in range(stop):
                result = await anext(stream, None)
                if result is None:
                    break
                done.append(result.index if isinstance(result, Failed) else result)
        after = stream.progress.resume_key
        missing = set(range(30)) - set(done)
        assert after is None or not any(index <= after for index in missing)
        assert after == (min(missing, default=30) - 1 if min(missing, default=30) else None)
    assert set(done) == set(range(30))
    if ordered:
        assert done == list(range(30))  # not one twice


# --- progress -------------------------------------------------------------------------------------


async def test_progress_is_told_now_and_then_and_at_the_end(monkeypatch):
    now = 100.0
    monkeypatch.setattr(running.time, "monotonic", lambda: now)
    told = []
    stream = Doubler().map([1, 2, 3, 4], key=str, progress=told.append, max_in_flight=4)
    await anext(stream)
    now += 0.05
    await anext(stream)
    assert told == []
    now += 0.05
    await anext(stream)
    (progress,) = told
    assert (progress.done, progress.total, progress.resume_key) == (2, 4, "2")
    assert (progress.elapsed_s, progress.rate) == pytest.approx((0.1, 20))
    assert await collected(stream) == [8]
    assert [each.done for each in told] == [2, 4]
    assert (told[-1].in_flight, told[-1].failed) == (0, 0)
    now += 100
    assert stream.progress == told[-1]  # the clock has stopped


async def test_what_a_loop_has_in_hand_counts_for_itself_and_not_for_the_function():
    told = []
    stream = Doubler().map([1, 2], progress=told.append, max_in_flight=1)
    seen = [stream.progress.done async for _ in stream]
    assert seen == [1, 2]
    assert told[-1].done == 2


async def test_the_last_progress_before_an_error_is_told():
    told = []
    with pytest.raises(ValueError, match="no -2"):
        await collected(Doubler().map([1, -2], progress=told.append))
    assert [(each.done, each.resume_key) for each in told] == [(1, 0)]


async def test_a_source_of_unknown_length_has_no_total():
    assert Doubler().map(iter([1])).progress.total is None
    assert Doubler().map(np.zeros(3)).progress.total == 3


async def test_a_progress_function_that_fails_ends_the_stream(monkeypatch):
    monkeypatch.setattr(running, "REPORT_INTERVAL_S", 0.0)
    doubler = Doubler()
    stream = doubler.map([1, 2, 3], progress=lambda progress: 1 // 0, max_in_flight=1)
    assert await anext(stream) == 2
    with pytest.raises(ZeroDivisionError):
        await anext(stream)
    assert await collected(stream) == []


async def test_the_error_of_an_item_is_not_hidden_by_one_of_the_progress_function():
    with pytest.raises(ValueError, match="no -1") as caught:
        await collected(Doubler().map([-1], progress=lambda progress: 1 // 0))
    assert isinstance(caught.value.__context__, ZeroDivisionError)


# --- leaving --------------------------------------------------------------------------------------


async def leave_by_break(stream):
    async for _ in stream:
        break


async def leave_by_block(stream):
    async with stream:
        await anext(stream)


async def leave_by_closing(stream):
    async with aclosing(stream):
        await anext(stream)


async def leave_by_error(stream):
    with suppress(KeyError):
        async for _ in stream:
            raise KeyError


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_block, leave_by_closing, leave_by_error]
)
async def test_leaving_a_loop_leaves_no_task(leave, asynchronous):
    doubler = Doubler()
    source = range(1000)
    stream = doubler.map(at_once(source) if asynchronous else source, max_in_flight=10)
    gone = weakref.ref(stream)
    waiting = asyncio.ensure_future(leave(stream))
    del stream
    await waiting
    del waiting
    for _ in range(5):
        await asyncio.sleep(0)
    assert gone() is None
    assert len(asyncio.all_tasks()) <= 2  # this one, and the runner's
    assert len(doubler.begun) <= 21


async def test_closing_waits_until_all_has_ended_and_may_be_repeated():
    class Tidies(Doubler):
        tidied = 0

        async def one(self, item, /, *, timeout_s=None):
            self.begun.append(item)
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.001)
                self.tidied += 1

    tidies = Tidies()
    stream = tidies.map(range(9), max_in_flight=3)
    first = sane(stream)
    await until(lambda: len(tidies.begun) == 3)
    await stream.aclose()
    assert tidies.tidied == 3
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await first


async def test_closing_a_stream_that_was_never_begun():
    stream = Doubler().map([1])
    await stream.aclose()
    assert await collected(stream) == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_cancelled_at_any_turn_nothing_is_lost_and_nothing_left(asynchronous):
    """Who waits for a result is cancelled at every turn of the loop; the next goes on."""
    for turn in range(12):
        source = later(range(20)) if asynchronous else range(20)
        stream = Doubler().map(source, max_in_flight=3)
        results = []

        async def take(stream=stream, results=results):
            async for result in stream:
                results.append(result)

        task = asyncio.create_task(take())
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        results += await collected(stream)
        assert results == [2 * number for number in range(20)]


class Lingers(Doubler):
    """Takes its time to go when it is cancelled."""

    async def one(self, item, /, *, timeout_s=None):
        try:
            return await super().one(item)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            raise


def failing(error):
    yield 1
    raise error


@pytest.mark.parametrize("source", [lambda: [-1, 1], lambda: failing(ValueError("no more"))])
async def test_who_goes_on_after_being_cancelled_is_told_of_the_error(source):
    """The error's turn has come and what is still out is waited for: then the cancelling comes."""
    lingers, told = Lingers(waits=True), []
    stream = lingers.map(source(), ordered=False, max_in_flight=2, progress=told.append)
    stream._run.tasks.start(asyncio.sleep(0.05))  # as a task that takes its time to end
    first = sane(stream)
    await until(lambda: lingers.waiting)
    if -1 in lingers.waiting:
        await lingers.tell(-1)
    else:
        await lingers.tell(1)
        assert await first == 2
        first = sane(stream)
    await until(lambda: stream._phase == "over")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(ValueError, match=r"no -1|no more"):
        await anext(stream)
    assert len(told) == 1
    assert await collected(stream) == []


async def test_a_cancelled_scope_around_a_loop_leaves_nothing():
    doubler = Doubler(waits=True)
    with anyio.move_on_after(0.01):
        async with doubler.map(range(9), max_in_flight=3) as stream:
            await anext(stream)
    assert sorted(doubler.cancelled) == [0, 1, 2]
    assert not doubler.waiting


async def test_a_stream_whose_tasks_others_have_cancelled_says_so():
    doubler = Doubler(waits=True)
    stream = doubler.map(range(9), max_in_flight=3)
    first = sane(stream)
    await until(lambda: len(doubler.waiting) == 3)
    for task in asyncio.all_tasks():
        if "_work" in task.get_coro().__qualname__:
            task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await collected(stream) == []


async def test_a_generator_that_is_left_is_closed():
    closed = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    async with Doubler().map(items(), max_in_flight=2) as stream:
        await anext(stream)
    assert closed


# --- handles --------------------------------------------------------------------------------------


def serving(*inputs, max_batch_size):
    return ModelSpec("net", "", ("1",), "", max_batch_size, inputs, ())


@pytest.mark.parametrize(
    ("shape", "max_batch_size", "in_flight"),
    [
        ((-1, 4), 8, 64),
        ((-1, 4), 32, 128),
        ((-1, 4), 256, 1024),
        ((-1, 4), 1000, 1024),
        ((4,), 0, 64),
        ((-1, 3, 640, 640), 64, 27),  # 4.7 MiB each
        ((-1, 3, 4000, 4000), 8, 16),
        ((-1, -1), 8, 64),
    ],
)
async def test_so_many_are_in_flight_that_batches_fill(shape, max_batch_size, in_flight):
    given = serving(TensorSpec("A", "FP32", shape), max_batch_size=max_batch_size)
    assert in_flight_for(given) == in_flight


async def test_a_handle_asks_its_signature_how_many_fill_its_batches():
    signature = spec([("A", "FP32", (-1, 2))], max_batch_size=32)
    catalog = FakeCatalog(signature)
    invoker = FakeInvoker(lambda call: {"OUT": np.concatenate(call.inputs[0].parts)})
    model = ModelHandle("net", "", invoker, catalog, timeout_s=5)
    stream = model.map(({"A": [number, number]} for number in range(300)), timeout_s=3)
    out = await anext(stream)
    assert out["OUT"].tolist() == [0, 0]
    assert stream.progress.in_flight <= 128
    assert stream._run.ledger.max_in_flight == 128
    assert len(await collected(stream)) == 299
    assert {call.deadline.timeout_s for call in invoker.calls} == {3}


async def test_a_model_that_cannot_be_described_ends_the_stream():
    catalog = FakeCatalog(ModelNotFoundError("no net", code="NOT_FOUND", details=""))
    model = ModelHandle("net", "", FakeInvoker(), catalog, timeout_s=5)
    with pytest.raises(ModelNotFoundError):
        await collected(model.map([{"A": [1]}], errors="collect"))
