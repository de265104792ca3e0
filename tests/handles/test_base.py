"""What all handles share: signatures asked anew, deadlines, errors. Seen through a ModelHandle."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.deadline import NEVER
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidInputError,
    InvalidRequestError,
    ModelFailedError,
    ModelNotFoundError,
    ServerUnreachableError,
    UsageError,
)
from tritonasync.handles import base
from tritonasync.handles.model import ModelHandle
from tritonasync.transport.catalog import Catalog

pytestmark = pytest.mark.anyio

FLOATS = spec([("X", "FP32", (-1, 4))])
DOUBLES = spec([("X", "FP64", (-1, 4))])
SINGLES = np.zeros((2, 4), np.float32)
WIDE = np.zeros((2, 4), np.float64)


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(base, "time", clock)
    return clock


@pytest.fixture
def catalog():
    return FakeCatalog(FLOATS)


@pytest.fixture
def invoker():
    return FakeInvoker(lambda call: {"OUT": tensor(call, "X")})


@pytest.fixture
def handle(invoker, catalog):
    return ModelHandle("net", "", invoker, catalog, timeout_s=30.0)


# --- handles ---


async def test_making_a_handle_asks_nothing(handle, catalog, invoker):
    assert (catalog.asked, invoker.calls) == (0, [])
    assert (handle.name, handle.version) == ("net", "")
    assert {handle: 1}[handle] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": None}, "name is a string, not None"),
        ({"name": ""}, "name is empty"),
        ({"version": 1}, "version is a string, not 1"),
        ({"casting": "sane"}, "casting is one of safe, same_kind, not 'sane'"),
    ],
)
async def test_options_that_make_no_sense_are_refused(invoker, catalog, options, says):
    options = {"name": "net", "version": "", "casting": "safe", **options}
    with pytest.raises(ConfigurationError, match=says):
        ModelHandle(
            options["name"],
            options["version"],
            invoker,
            catalog,
            timeout_s=1.0,
            casting=options["casting"],
        )


async def test_a_handle_shows_its_model(invoker, catalog):
    assert repr(ModelHandle("net", "", invoker, catalog, timeout_s=1)) == "<ModelHandle 'net'>"
    versioned = ModelHandle("net", "3", invoker, catalog, timeout_s=1)
    assert repr(versioned) == "<ModelHandle 'net', version='3'>"


async def test_the_signature_is_asked_for_once(handle, catalog, invoker):
    for _ in range(3):
        await handle(X=SINGLES)
    assert await handle.spec() == FLOATS
    assert catalog.asked == 1
    assert len(invoker.calls) == 3


# --- deadlines ---


async def test_one_deadline_goes_through_all_stages(handle, catalog, invoker):
    await handle(X=SINGLES, timeout_s=5)
    (call,) = invoker.calls
    assert call.deadline is catalog.deadlines[0]
    assert call.deadline.timeout_s == 5
    assert 4 < call.deadline.remaining() <= 5


@pytest.mark.parametrize(
    ("of_pool", "of_call", "effective"),
    [
        (30.0, None, 30.0),
        (30.0, 2.0, 2.0),
        (30.0, 0, 0.0),
        (30.0, math.inf, math.inf),
        (None, None, math.inf),
    ],
)
async def test_a_call_without_a_time_of_its_own_has_the_pools(
    invoker, catalog, of_pool, of_call, effective
):
    handle = ModelHandle("net", "", invoker, catalog, timeout_s=of_pool)
    await handle(X=SINGLES, timeout_s=of_call)
    await handle.one(X=SINGLES[0], timeout_s=of_call)
    await handle.spec(timeout_s=of_call)
    assert {deadline.timeout_s for deadline in catalog.deadlines} == {effective}
    assert {call.deadline.timeout_s for call in invoker.calls} == {effective}
    assert (invoker.calls[0].deadline is NEVER) == (effective == math.inf)


@pytest.mark.parametrize("timeout_s", [-1, math.nan])
async def test_a_time_that_is_no_duration_is_refused(handle, catalog, timeout_s):
    with pytest.raises(ConfigurationError, match="timeout_s must be 0 or more"):
        await handle(X=SINGLES, timeout_s=timeout_s)
    assert catalog.asked == 0


async def test_time_that_runs_out_while_asking_names_that_stage(handle, catalog, invoker):
    catalog.served = NEVER.error("metadata", model="net")
    with pytest.raises(DeadlineExceededError) as caught:
        await handle(X=SINGLES)
    assert caught.value.stage == "metadata"
    assert invoker.calls == []


# --- signatures that are out of date ---


async def test_a_call_that_fits_only_the_reloaded_model_is_sent(handle, catalog, invoker):
    await handle(X=SINGLES)
    catalog.served = DOUBLES
    outputs = await handle(X=WIDE)
    assert outputs["OUT"].dtype == np.float64
    assert catalog.asked == 2
    assert invoker.calls[-1].inputs[0].datatype == "FP64"


async def test_a_wrong_call_is_refused_by_the_newest_signature(handle, catalog, invoker):
    await handle(X=SINGLES)
    catalog.served = spec([("X", "INT8", (-1, 4))])
    with pytest.raises(InvalidInputError, match="expected INT8"):
        await handle(X=WIDE)
    assert len(invoker.calls) == 1


async def test_a_flood_of_wrong_calls_is_no_flood_of_questions(clock, invoker, catalog):
    for _ in range(100):  # a handle for each call, as many write it
        handle = ModelHandle("net", "", invoker, catalog, timeout_s=30.0)
        with pytest.raises(InvalidInputError):
            await handle(X=WIDE)
    assert catalog.asked == 2  # the first, and one more look
    clock.now += 0.999
    with pytest.raises(InvalidInputError):
        await handle(X=WIDE)
    assert catalog.asked == 2
    clock.now += 0.001
    with pytest.raises(InvalidInputError):
        await handle(X=WIDE)
    assert catalog.asked == 3
    assert invoker.calls == []


async def test_those_who_come_during_a_renewal_profit_from_it(clock, invoker):
    """Only one of many may ask anew, but all are judged by what it learns."""
    asked = []

    async def ask(model, version, deadline):
        asked.append(model)
        await asyncio.sleep(0)
        return FLOATS if len(asked) == 1 else DOUBLES

    catalog = Catalog(ask)
    handles = [ModelHandle("net", "", invoker, catalog, timeout_s=30.0) for _ in range(10)]
    await handles[0](X=SINGLES)
    await asyncio.gather(*(handle(X=WIDE) for handle in handles))
    assert len(asked) == 2
    assert len(invoker.calls) == 11


@pytest.mark.parametrize("error", [InvalidRequestError, ModelNotFoundError])
async def test_after_the_server_refused_the_next_call_asks_anew(handle, catalog, invoker, error):
    def refuse(call):
        raise error("no", code="X", details="no", model="net")

    await handle(X=SINGLES)
    served, invoker.model = invoker.model, refuse
    catalog.served = DOUBLES
    with pytest.raises(error):
        await handle(X=SINGLES)
    invoker.model = served
    outputs = await handle(X=SINGLES)
    assert outputs["OUT"].dtype == np.float64
    assert catalog.asked == 2


async def test_other_errors_of_the_server_leave_the_signature(handle, catalog, invoker):
    def fail(call):
        raise ModelFailedError("no", code="INTERNAL", details="no", model="net")

    invoker.model = fail
    for _ in range(2):
        with pytest.raises(ModelFailedError):
            await handle(X=SINGLES)
    assert catalog.asked == 1


async def test_when_the_server_is_gone_a_wrong_call_is_told_of_its_mistake(handle, catalog):
    await handle(X=SINGLES)
    catalog.served = ServerUnreachableError("gone")
    with pytest.raises(InvalidInputError, match="float64"):
        await handle(X=WIDE)


async def test_a_wrong_call_does_not_hold_up_those_who_do_it_right(clock, invoker):
    """The known signature serves until the newer one is there, however long that takes."""
    answer, asked = asyncio.Event(), []

    async def ask(model, version, deadline):
        asked.append(model)
        if len(asked) > 1:
            await answer.wait()
        return FLOATS

    catalog = Catalog(ask)
    handle = ModelHandle("net", "", invoker, catalog, timeout_s=30.0)
    await handle(X=SINGLES)
    wrong = asyncio.create_task(handle(X=WIDE))
    late = asyncio.create_task(handle(X=WIDE, timeout_s=0.05))
    while len(asked) < 2:
        await asyncio.sleep(0)
    await handle(X=SINGLES)
    assert len(asked) == 2
    with pytest.raises(InvalidInputError, match="float64"):
        await late
    answer.set()
    with pytest.raises(InvalidInputError, match="float64"):
        await wrong
    await catalog.aclose()


async def test_what_is_remembered_of_renewals_goes_with_the_catalog(invoker):
    catalog = FakeCatalog(FLOATS)
    with pytest.raises(InvalidInputError):
        await ModelHandle("net", "", invoker, catalog, timeout_s=30.0)(X=WIDE)
    gone = weakref.ref(catalog)
    del catalog
    gc.collect()
    assert gone() is None


# --- decoupled ---


async def test_a_decoupled_model_is_refused_before_anything_is_sent(handle, catalog, invoker):
    catalog.served = spec([("X", "FP32", (-1, 4))], decoupled=True)
    for _ in range(2):  # asked for, and remembered
        with pytest.raises(UsageError, match=r"model 'net' is decoupled: .* takes exactly one"):
            await handle(X=SINGLES)
    assert invoker.calls == []
    assert catalog.asked == 2  # it might have been reloaded since
