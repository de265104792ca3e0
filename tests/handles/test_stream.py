"""Streams of responses: how they begin, what goes with them, what is refused, how they end."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.handles.fakes import END, FakeCatalog, FakeInvoker, spec, tensor
from tests.handles.streaming import ROWS, SERVED, drained, failed, numbers, out, turns
from tritonasync.core import deadline
from tritonasync.core.errors import (
    ConfigurationError,
    InvalidInputError,
    InvalidRequestError,
    ModelFailedError,
    ProtocolError,
    UsageError,
)
from tritonasync.core.policies import Padding
from tritonasync.core.values import Reply
from tritonasync.handles import base
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.stream import ResponseStream

pytestmark = pytest.mark.anyio


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(deadline, "time", clock)
    return clock


@pytest.fixture
def catalog():
    return FakeCatalog(SERVED)


@pytest.fixture
def invoker():
    return FakeInvoker()


@pytest.fixture
def model(invoker, catalog):
    return ModelHandle("net", "", invoker, catalog, timeout_s=30.0, streamer=invoker)


# --- from the first response to the end ---


async def test_nothing_is_done_before_the_first_response_is_asked_for(model, invoker, catalog):
    stream = model.stream(X=ROWS)
    await turns()
    assert (catalog.asked, invoker.streams) == (0, [])
    assert repr(stream) == "<ResponseStream of 'net' new>"
    await stream.aclose()
    assert (catalog.asked, invoker.streams) == (0, [])


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_all_responses_come_in_order(model, invoker, count):
    invoker.script = [*map(out, range(count)), END]
    stream = model.stream(X=ROWS)
    assert numbers([output async for output in stream]) == list(range(count))
    assert await anext(stream, None) is None
    assert invoker.streams[0].asked == count + 1
    assert repr(stream) == "<ResponseStream of 'net' over>"


async def test_what_goes_with_a_call_goes_with_a_stream(model, invoker):
    invoker.script = [out(1), END]
    stream = model.stream(
        {"X": ROWS},
        outputs=["OUT"],
        parameters={"beam": 4},
        request_id="r1",
        priority=2,
        queue_timeout_us=9,
    )
    (output,) = [output async for output in stream]
    call = invoker.streams[0].call
    assert (call.rows, call.outputs, call.request_id) == (2, ("OUT",), "r1")
    assert dict(call.parameters) == {"beam": 4, "priority": 2, "timeout": 9}
    np.testing.assert_array_equal(tensor(call, "X"), ROWS)
    assert output.request_id == "r1"


async def test_the_time_to_the_first_response_counts_from_when_it_is_asked_for(
    model, invoker, clock
):
    invoker.script = [END]
    stream = model.stream(X=ROWS, timeout_s=5)
    clock.now = 200.0
    await anext(stream, None)
    assert invoker.streams[0].call.deadline.at == 205.0


@pytest.mark.parametrize(
    ("times", "first_s", "idle_s"),
    [
        ({}, 30, 30),
        ({"timeout_s": 5}, 5, 5),
        ({"idle_timeout_s": 2}, 30, 2),
        ({"timeout_s": 5, "idle_timeout_s": math.inf}, 5, math.inf),
        ({"timeout_s": math.inf, "idle_timeout_s": 2}, math.inf, 2),
    ],
)
async def test_later_responses_have_the_time_of_the_first_unless_told(
    model, invoker, times, first_s, idle_s
):
    invoker.script = [END]
    await anext(model.stream(X=ROWS, **times), None)
    call = invoker.streams[0].call
    assert (call.deadline.timeout_s, call.idle_s) == (first_s, idle_s)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"timeout_s": -1}, ConfigurationError, "timeout_s must be"),
        ({"idle_timeout_s": math.nan}, ConfigurationError, "idle_timeout_s must be"),
        ({"priority": -1}, InvalidInputError, "priority is a whole number"),
    ],
)
async def test_options_that_make_no_sense_are_refused_at_once(model, options, error, says):
    with pytest.raises(error, match=says):
        model.stream(X=ROWS, **options)


async def test_an_error_comes_after_what_came_before_it(model, invoker):
    invoker.script = [out(1), out(2), failed(), out(3)]
    stream, got = model.stream(X=ROWS), []
    with pytest.raises(ModelFailedError, match="no"):
        await drained(stream, got)
    assert numbers(got) == [1, 2]
    assert await anext(stream, None) is None
    assert invoker.streams[0].left


async def test_what_cannot_be_read_ends_the_stream(invoker):
    def refuse(reply):
        raise ProtocolError("unreadable")

    async def begin():
        responses = invoker.stream(None)
        return responses, out(1)

    stream = ResponseStream("net", begin, refuse)
    with pytest.raises(ProtocolError, match="unreadable"):
        await anext(stream)
    assert invoker.streams[0].left == 1
    assert await anext(stream, None) is None


@pytest.mark.parametrize("tail", [None, "rest"])
async def test_what_a_response_adds_may_be_nothing_or_come_at_the_end(invoker, tail):
    async def begin():
        responses = invoker.stream(None)
        return responses, await anext(responses)

    def read(reply):
        return reply.request_id or None

    texts = ["", "a", "", "b", ""]
    invoker.script = [*[Reply("net", "1", {}, text) for text in texts], END]
    stream = ResponseStream("net", begin, read, lambda: tail)
    assert [item async for item in stream] == ["a", "b", *filter(None, [tail])]
    assert await anext(stream, None) is None


# --- what is refused ---


async def test_a_decoupled_model_streams_and_is_not_called(model, invoker):
    invoker.script = [out(1), END]
    assert [output async for output in model.stream(X=ROWS)]
    with pytest.raises(UsageError, match=r"decoupled.*\.stream"):
        await model(X=ROWS)
    assert invoker.calls == []


async def test_a_model_that_is_not_decoupled_streams_one_response(invoker):
    catalog = FakeCatalog(spec([("X", "FP32", (-1, 4))]))
    model = ModelHandle("net", "", invoker, catalog, timeout_s=30.0, streamer=invoker)
    invoker.script = [out(1), END]
    assert numbers([output async for output in model.stream(X=ROWS)]) == [1]


async def test_inputs_that_do_not_fit_are_refused_and_end_the_stream(model, invoker, catalog):
    stream = model.stream(X=ROWS.astype(np.float64))
    with pytest.raises(InvalidInputError, match="expected FP32"):
        await anext(stream)
    assert (invoker.streams, catalog.asked) == ([], 2)  # asked once more, it may be reloaded
    assert await anext(stream, None) is None


async def test_a_reloaded_model_takes_what_it_takes_now(model, invoker, catalog):
    invoker.script = [END]
    await anext(model.stream(X=ROWS), None)
    catalog.served = spec([("X", "FP64", (-1, 4))], decoupled=True)
    base._renewals.clear()
    await anext(model.stream(X=ROWS.astype(np.float64)), None)
    assert invoker.streams[1].call.inputs[0].datatype == "FP64"


async def test_more_rows_than_a_request_takes_are_refused(model, invoker):
    with pytest.raises(InvalidInputError, match="9 rows, and one request takes 8 at most"):
        await anext(model.stream(X=np.zeros((9, 4), np.float32)))
    assert invoker.streams == []
    invoker.script = [END]
    assert await anext(model.stream(X=np.zeros((8, 4), np.float32)), None) is None


async def test_a_model_without_a_batch_axis_takes_any_length(invoker):
    catalog = FakeCatalog(spec([("X", "FP32", (-1, 4))], max_batch_size=0, decoupled=True))
    model = ModelHandle("net", "", invoker, catalog, timeout_s=30.0, streamer=invoker)
    invoker.script = [END]
    await anext(model.stream(X=np.zeros((9, 4), np.float32)), None)
    assert invoker.streams[0].call.rows == 0


async def test_a_refusal_of_the_server_has_the_signature_asked_anew(model, invoker, catalog):
    invoker.script = [failed(InvalidRequestError)]
    with pytest.raises(InvalidRequestError):
        await anext(model.stream(X=ROWS))
    assert catalog.known("net", "") is None


async def test_rows_are_not_filled_up_but_have_their_mask(invoker):
    served = spec([("X", "INT32", (-1, -1)), ("M", "INT32", (-1, -1))], decoupled=True)
    model = ModelHandle(
        "net",
        "",
        invoker,
        FakeCatalog(served),
        timeout_s=30.0,
        streamer=invoker,
        padding=Padding({"X": 0}, mask="M"),
    )
    invoker.script = [END]
    await anext(model.stream(X=[[5, 6]]), None)
    call = invoker.streams[0].call
    assert call.padding is None
    assert tensor(call, "M").tolist() == [[1, 1]]


async def test_a_handle_without_a_stage_for_streams_says_so(invoker, catalog):
    with pytest.raises(UsageError, match="without a stage for streams"):
        await anext(ModelHandle("net", "", invoker, catalog, timeout_s=30.0).stream(X=ROWS))
