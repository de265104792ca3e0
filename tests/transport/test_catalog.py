"""Signatures are asked for once, whoever waits, leaves or is late."""

import asyncio
import contextlib
import gc
import weakref

import pytest

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import DeadlineExceededError, ModelNotFoundError, PoolClosedError
from tritonasync.core.values import ModelSpec
from tritonasync.transport.catalog import Catalog

pytestmark = pytest.mark.anyio


class Source:
    """Answers questions when told to, numbering its answers by the version's platform."""

    def __init__(self):
        self.asked = []
        self.go = asyncio.Event()
        self.error = None

    async def ask(self, model, version, deadline):
        self.asked.append((model, version))
        number = len(self.asked)
        await self.go.wait()
        if self.error:
            raise self.error
        return ModelSpec(model, version, ("1",), f"answer {number}", 8, (), ())


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_many_callers_ask_one_question_and_then_none():
    source = Source()
    catalog = Catalog(source.ask)
    callers = [asyncio.create_task(catalog.describe("m", "", NEVER)) for _ in range(50)]
    await settle()
    source.go.set()
    assert len({id(spec) for spec in await asyncio.gather(*callers)}) == 1
    await catalog.describe("m", "", NEVER)
    assert source.asked == [("m", "")]
    await catalog.describe("m", "2", NEVER)
    assert source.asked == [("m", ""), ("m", "2")]
    await catalog.aclose()


async def test_a_caller_that_leaves_or_is_late_does_not_end_the_question():
    source = Source()
    catalog = Catalog(source.ask)
    leaver = asyncio.create_task(catalog.describe("m", "", NEVER))
    late = asyncio.create_task(catalog.describe("m", "", Deadline.after(0.05)))
    patient = asyncio.create_task(catalog.describe("m", "", NEVER))
    await settle()
    leaver.cancel()
    with pytest.raises(DeadlineExceededError) as caught:
        await late
    assert caught.value.stage == "metadata"
    source.go.set()
    assert (await patient).platform == "answer 1"
    with pytest.raises(asyncio.CancelledError):
        await leaver
    await catalog.aclose()


async def test_each_waiter_gets_an_error_of_its_own_and_the_next_asks_anew():
    source = Source()
    source.error = ModelNotFoundError("no", code="NOT_FOUND", details="no", model="m")
    source.error.__cause__ = ValueError("why")
    source.go.set()
    catalog = Catalog(source.ask)
    results = await asyncio.gather(
        *(catalog.describe("m", "", NEVER) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(error, ModelNotFoundError) for error in results)
    assert len({id(error) for error in results}) == 3
    assert all(isinstance(error.__cause__, ValueError) for error in results)
    source.error = None
    assert (await catalog.describe("m", "", NEVER)).platform == "answer 2"
    await catalog.aclose()


async def test_what_is_forgotten_is_asked_anew():
    source = Source()
    source.go.set()
    catalog = Catalog(source.ask)
    await catalog.describe("m", "", NEVER)
    await catalog.describe("other", "", NEVER)
    catalog.forget("m")
    assert (await catalog.describe("m", "", NEVER)).platform == "answer 3"
    assert (await catalog.describe("other", "", NEVER)).platform == "answer 2"
    await catalog.aclose()


async def test_an_answer_that_was_on_its_way_when_forgotten_is_not_remembered():
    source = Source()
    catalog = Catalog(source.ask)
    early = asyncio.create_task(catalog.describe("m", "", NEVER))
    await settle()
    catalog.forget("m")
    later = asyncio.create_task(catalog.describe("m", "", NEVER))
    await settle()
    source.go.set()
    assert (await early).platform == "answer 1"
    assert (await later).platform == "answer 2"
    assert (await catalog.describe("m", "", NEVER)).platform == "answer 2"
    await catalog.aclose()


async def test_closing_ends_the_questions_that_are_out():
    source = Source()
    catalog = Catalog(source.ask)
    caller = asyncio.create_task(catalog.describe("m", "", NEVER))
    await settle()
    await catalog.aclose()
    with pytest.raises(PoolClosedError):
        await caller


async def test_a_refresh_asks_anew_beside_the_callers_and_keeps_what_is_known_until_then():
    source = Source()
    source.go.set()
    catalog = Catalog(source.ask)
    await catalog.describe("m", "", NEVER)
    await catalog.describe("n", "1", NEVER)
    source.go.clear()
    catalog.refresh()
    catalog.refresh()  # a second one while the first is out asks nothing more
    await settle()
    assert sorted(source.asked[2:]) == [("m", ""), ("n", "1")]
    assert (await catalog.describe("m", "", NEVER)).platform == "answer 1"  # nobody is held up
    source.go.set()
    await settle()
    assert catalog.known("m", "").platform in {"answer 3", "answer 4"}
    await catalog.aclose()


async def test_a_refresh_that_finds_nothing_new_keeps_the_object_that_others_compare_with():
    async def ask(model, version, deadline):
        return ModelSpec(model, version, ("1",), "same", 8, (), ())

    catalog = Catalog(ask)
    known = await catalog.describe("m", "", NEVER)
    catalog.refresh()
    await settle()
    assert catalog.known("m", "") is known
    await catalog.aclose()


async def test_a_refresh_that_fails_keeps_what_is_known_and_tells_nobody():
    source = Source()
    source.go.set()
    catalog = Catalog(source.ask)
    known = await catalog.describe("m", "", NEVER)
    source.error = ModelNotFoundError("gone", code="NOT_FOUND", details="gone")
    catalog.refresh()
    await settle()
    assert catalog.known("m", "") is known
    await catalog.aclose()


async def test_a_refresh_after_nothing_was_asked_asks_nothing():
    source = Source()
    catalog = Catalog(source.ask)
    catalog.refresh()
    await settle()
    assert source.asked == []
    await catalog.aclose()


async def test_a_refresh_after_closing_asks_nothing():
    source = Source()
    source.go.set()
    catalog = Catalog(source.ask)
    await catalog.describe("m", "", NEVER)
    await catalog.aclose()
    catalog.refresh()
    await settle()
    assert source.asked == [("m", "")]


async def test_a_question_that_failed_is_gone_with_its_error():
    """It holds gRPC's call, and that holds a connection, also when the pool is closed."""
    gone = []

    async def ask(model, version, deadline):
        error = ModelNotFoundError("gone", code="NOT_FOUND", details="gone")
        gone.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    catalog = Catalog(ask)
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ModelNotFoundError):
            await catalog.describe("m", "", NEVER)
        await settle()
        assert gone[0]() is None
    finally:
        gc.enable()
    await catalog.aclose()
