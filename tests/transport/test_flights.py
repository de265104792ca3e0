"""Silence is told, callers are let go, and their calls go on; what is sent next connects anew."""

import asyncio
import math
import time
import traceback

import grpc
import pytest

from tests.faults.proxy import FaultProxy
from tests.transport.scripted import Gated, RefusalError, ScriptedServer, echo, make_endpoint
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    ConfigurationError,
    ConnectionLostError,
    DeadlineExceededError,
    ModelNotFoundError,
    PoolClosedError,
    QueueFullError,
    ServerUnreachableError,
    TritonError,
)
from tritonasync.transport import lanes
from tritonasync.transport.channel import HeaderSupply, open_channels
from tritonasync.transport.endpoint import Endpoint
from tritonasync.transport.flights import Flight

pytestmark = pytest.mark.anyio


def start(endpoint, method="ModelInfer", *, repeatable=True, timeout_s=None, model=None):
    return asyncio.create_task(
        endpoint.exchange(
            method, b"x", Deadline.after(timeout_s), repeatable=repeatable, model=model
        )
    )


async def eventually(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


def closed(lane):
    return lane.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


# --- silence ------------------------------------------------------------------------------------


async def test_nothing_is_silent_while_nothing_is_out():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        assert endpoint.silent_since() == math.inf
        await endpoint.exchange("ModelInfer", b"", NEVER)
        assert endpoint.silent_since() == math.inf
        await endpoint.aclose(NEVER)


async def test_silence_begins_with_the_oldest_call_out_or_with_the_last_answer():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated, ServerReady=echo) as server:
        endpoint = make_endpoint(server.target)
        began = time.monotonic()
        oldest = start(endpoint)
        await gated.arrived.acquire()
        sent = time.monotonic()
        assert began <= endpoint.silent_since() <= sent
        younger = start(endpoint)
        await gated.arrived.acquire()
        assert endpoint.silent_since() <= sent
        before = time.monotonic()
        await endpoint.exchange("ServerReady", b"", NEVER)
        assert before <= endpoint.silent_since() <= time.monotonic()
        gated.go.set()
        await asyncio.gather(oldest, younger)
        assert endpoint.silent_since() == math.inf
        await endpoint.aclose(NEVER)


async def test_a_refusal_is_an_answer_and_a_broken_connection_is_none():
    gated = Gated()

    async def refuse(message):
        raise RefusalError(grpc.StatusCode.NOT_FOUND, "unknown model: 'm'")

    async def break_off(message):
        raise RefusalError(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    async with ScriptedServer(
        ModelInfer=gated, ModelMetadata=refuse, ModelConfig=break_off
    ) as server:
        endpoint = make_endpoint(server.target)
        caller = start(endpoint)
        await gated.arrived.acquire()
        first = endpoint.silent_since()
        with pytest.raises(ConnectionLostError):
            await endpoint.exchange("ModelConfig", b"", NEVER)
        assert endpoint.silent_since() == first
        with pytest.raises(ModelNotFoundError):
            await endpoint.exchange("ModelMetadata", b"", NEVER)
        assert endpoint.silent_since() > first
        gated.go.set()
        await caller
        await endpoint.aclose(NEVER)


async def test_an_answer_that_nobody_waited_for_ends_silence_too():
    first, second = Gated(), Gated()
    async with ScriptedServer(ModelInfer=first, ServerReady=second) as server:
        endpoint = make_endpoint(server.target)
        waiting = start(endpoint)
        await first.arrived.acquire()
        leaving = start(endpoint, "ServerReady")
        await second.arrived.acquire()
        leaving.cancel()
        before = time.monotonic()
        second.go.set()
        await eventually(lambda: endpoint.silent_since() >= before)
        first.go.set()
        await waiting
        await endpoint.aclose(NEVER)


async def test_calls_whose_callers_have_left_are_silence_too():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        before = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await start(endpoint, timeout_s=0.05)
        assert before <= endpoint.silent_since() <= time.monotonic() - 0.04
        gated.go.set()
        await endpoint.aclose(NEVER)


async def test_calls_left_behind_before_a_reconnection_are_no_silence():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        repeatable, other = start(endpoint), start(endpoint, repeatable=False)
        for _ in range(2):
            await gated.arrived.acquire()
        with pytest.raises(DeadlineExceededError):
            await start(endpoint, timeout_s=0.05)
        endpoint.let_go("a test")
        assert endpoint.silent_since() < math.inf  # one still waits
        other.cancel()
        await asyncio.gather(repeatable, other, return_exceptions=True)
        assert endpoint.statistics().in_flight == 3
        assert endpoint.silent_since() == math.inf
        gated.go.set()
        await endpoint.aclose(NEVER)


# --- letting go ---------------------------------------------------------------------------------


async def test_callers_that_may_repeat_are_let_go_and_their_calls_go_on():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        callers = [start(endpoint, model="m") for _ in range(3)]
        patient = start(endpoint, repeatable=False)
        for _ in range(4):
            await gated.arrived.acquire()
        endpoint.let_go("it said nothing for 3 s")
        errors = await asyncio.gather(*callers, return_exceptions=True)
        assert len({id(error) for error in errors}) == 3
        for error in errors:
            assert isinstance(error, ConnectionLostError)
            assert error.retriable
            assert error.may_have_executed
            assert (error.endpoint, error.model) == (server.target, "m")
            assert server.target in str(error)
            assert "it said nothing for 3 s" in str(error)
        assert not patient.done()
        gated.go.set()
        assert await patient == b"x"
        await endpoint.aclose(NEVER)
        assert server.cancelled == 0
        assert endpoint.statistics().abandoned == 3
        assert endpoint.statistics().succeeded == 4


@pytest.mark.parametrize("timeout_s", [None, 0.05], ids=["let go", "late"])
async def test_the_error_of_a_caller_that_is_gone_holds_no_call(timeout_s):
    """The call holds the error: were it the other way round as well, messages would pile up."""
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        caller = start(endpoint, timeout_s=timeout_s)
        await gated.arrived.acquire()
        if timeout_s is None:
            endpoint.let_go("a test")
        with pytest.raises(TritonError) as caught:
            await caller
        frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
        assert any("message" in frame.f_locals for frame in frames)
        held = [value for frame in frames for value in frame.f_locals.values()]
        assert not any(isinstance(value, Flight) for value in held)
        gated.go.set()
        await endpoint.aclose(NEVER)


async def test_a_caller_cancelled_as_it_is_let_go_is_counted_once():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        caller = start(endpoint)
        await gated.arrived.acquire()
        endpoint.let_go("a test")
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gated.go.set()
        await endpoint.aclose(NEVER)
        assert (endpoint.statistics().abandoned, endpoint.statistics().succeeded) == (1, 1)


@pytest.mark.parametrize("how", ["late", "cancelled", "let go"])
async def test_requests_that_nobody_waits_for_do_not_heap_up(monkeypatch, how):
    monkeypatch.setattr("tritonasync.transport.link.MAX_ABANDONED", 3)
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        patient = start(endpoint, repeatable=False)
        callers = [start(endpoint, timeout_s=0.05 if how == "late" else None) for _ in range(3)]
        for _ in range(4):
            await gated.arrived.acquire()
        if how == "cancelled":
            for caller in callers:
                caller.cancel()
        elif how == "let go":
            endpoint.let_go("a test")
        left = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(error, BaseException) for error in left)
        with pytest.raises(QueueFullError, match="model 'm'.*3 requests whose callers have left"):
            await start(endpoint, model="m")
        assert not patient.done()
        gated.go.set()
        assert await patient == b"x"
        await eventually(lambda: endpoint.statistics().in_flight == 0)
        assert await start(endpoint) == b"x"
        assert endpoint._flights.abandoned == 0
        await endpoint.aclose(NEVER)


async def test_a_caller_that_leaves_as_its_answer_comes_is_not_counted_as_out():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        for turns in range(60):
            caller = start(endpoint)
            for _ in range(turns):
                await asyncio.sleep(0)
            caller.cancel()
            await asyncio.wait([caller])
        await eventually(lambda: endpoint.statistics().in_flight == 0)
        assert endpoint._flights.abandoned == 0
        await endpoint.aclose(NEVER)


async def test_letting_go_when_nothing_is_out_or_all_is_closed_harms_nobody():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        endpoint.let_go("nothing was sent yet")
        await endpoint.exchange("ModelInfer", b"", NEVER)
        await endpoint.aclose(NEVER)
        lanes = endpoint.link.lanes.current
        endpoint.let_go("it is closed")
        assert endpoint.link.lanes.current is lanes
        with pytest.raises(PoolClosedError):
            await endpoint.exchange("ModelInfer", b"", NEVER)


# --- fresh channels -----------------------------------------------------------------------------


async def test_calls_go_out_on_a_fresh_connection_and_the_old_one_ends_with_its_last_call():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated, ServerReady=echo) as server:
        endpoint = make_endpoint(server.target)
        (old,) = endpoint.link.lanes.current
        callers = [start(endpoint), start(endpoint, repeatable=False)]
        for _ in range(2):
            await gated.arrived.acquire()
        endpoint.let_go("a test")
        await endpoint.exchange("ServerReady", b"", NEVER)
        assert len(server.peers) == 2
        assert endpoint.statistics().reconnections == 1
        assert not closed(old)
        gated.go.set()
        lost, answer = await asyncio.gather(*callers, return_exceptions=True)
        assert isinstance(lost, ConnectionLostError)
        assert answer == b"x"
        await eventually(lambda: closed(old))
        assert server.cancelled == 0
        await endpoint.aclose(NEVER)


async def test_an_old_connection_without_calls_is_closed_at_once():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        await endpoint.exchange("ModelInfer", b"", NEVER)
        (old,) = endpoint.link.lanes.current
        endpoint.let_go("a test")
        await eventually(lambda: closed(old))
        await endpoint.exchange("ModelInfer", b"", NEVER)
        await endpoint.aclose(NEVER)


async def test_channels_are_not_renewed_twice_in_a_second(monkeypatch):
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target, channels=2)
        await endpoint.exchange("ModelInfer", b"", NEVER)
        endpoint.let_go("a test")
        fresh = endpoint.link.lanes.current
        assert len(fresh) == 2
        await endpoint.exchange("ModelInfer", b"", NEVER)
        endpoint.let_go("again")
        assert endpoint.link.lanes.current is fresh
        monkeypatch.setattr(lanes, "RENEWAL_PAUSE_S", 0.0)
        endpoint.let_go("and again")
        fresher = endpoint.link.lanes.current
        assert fresher is not fresh
        endpoint.let_go("nothing was sent since")
        assert endpoint.link.lanes.current is fresher
        await endpoint.exchange("ModelInfer", b"", NEVER)
        assert endpoint.statistics().reconnections == 2
        await endpoint.aclose(NEVER)


async def test_channels_that_cannot_be_renewed_are_kept(monkeypatch):
    """A certificate's file may be gone by now."""
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        await endpoint.exchange("ModelInfer", b"", NEVER)
        present = endpoint.link.lanes.current

        def fail():
            raise ConfigurationError("TlsConfig: ca cannot be read")

        monkeypatch.setattr(endpoint.link.lanes, "_make", fail)
        endpoint.let_go("a test")
        assert endpoint.link.lanes.current is present
        assert await endpoint.exchange("ModelInfer", b"x", NEVER) == b"x"
        await endpoint.aclose(NEVER)


async def test_a_call_that_comes_when_its_endpoint_was_removed_may_go_elsewhere():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        endpoint.link.removed = True
        await endpoint.aclose(NEVER)
        with pytest.raises(ServerUnreachableError, match="was removed from the pool") as caught:
            await endpoint.exchange("ModelInfer", b"x", NEVER)
        assert caught.value.retriable
        assert not caught.value.may_have_executed


async def test_channels_given_ready_made_are_kept():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        made = open_channels(server.target, count=1, tls=None)
        endpoint = Endpoint(server.target, made, HeaderSupply({}, {}))
        caller = start(endpoint)
        await gated.arrived.acquire()
        endpoint.let_go("a test")
        with pytest.raises(ConnectionLostError):
            await caller
        gated.go.set()
        await endpoint.exchange("ModelInfer", b"", NEVER)
        assert len(server.peers) == 1
        await endpoint.aclose(NEVER)


async def test_closing_waits_for_calls_on_retired_channels():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        (old,) = endpoint.link.lanes.current
        caller = start(endpoint)
        await gated.arrived.acquire()
        endpoint.let_go("a test")
        with pytest.raises(ConnectionLostError):
            await caller
        closing = asyncio.create_task(endpoint.aclose(Deadline.after(9)))
        await asyncio.wait({closing}, timeout=0.1)
        assert not closing.done()
        gated.go.set()
        await closing
        assert closed(old)
        assert server.cancelled == 0
        assert endpoint.statistics().succeeded == 1


async def test_closing_tears_down_what_is_out_on_retired_channels_when_its_time_is_over():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        (old,) = endpoint.link.lanes.current
        patient = start(endpoint, repeatable=False)
        await gated.arrived.acquire()
        endpoint.let_go("a test")
        with pytest.warns(ResourceWarning, match="1 calls were still out"):
            await endpoint.aclose(Deadline.after(0.1))
        assert closed(old)
        with pytest.raises(ConnectionLostError):
            await patient


async def test_a_peer_that_is_gone_without_a_word_is_left_for_a_new_connection():
    async with ScriptedServer(ModelInfer=echo) as server, FaultProxy(server.target) as proxy:
        endpoint = make_endpoint(proxy.url)
        await endpoint.exchange("ModelInfer", b"", NEVER)
        proxy.half_open()
        lost = start(endpoint)
        await eventually(lambda: endpoint.silent_since() < time.monotonic() - 0.2)
        assert not lost.done()
        endpoint.let_go("it is silent")
        with pytest.raises(ConnectionLostError):
            await lost
        assert await endpoint.exchange("ModelInfer", b"y", Deadline.after(5)) == b"y"
        assert proxy.accepted == 2
        with pytest.warns(ResourceWarning, match="1 calls"):
            await endpoint.aclose(Deadline.after(0.1))
