"""Whoever holds memory for a call is told, once, that it has ended, and whether the server is."""

import asyncio
import gc

import grpc
import pytest

from tests.transport.scripted import Gated, RefusalError, ScriptedServer, make_endpoint
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import DeadlineExceededError, TritonError

pytestmark = pytest.mark.anyio


async def answer(message):
    return message


async def refuse(message):
    raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "no")


async def hang_up(message):
    raise RefusalError(grpc.StatusCode.UNAVAILABLE, "Socket closed")


@pytest.mark.parametrize(("how", "done"), [(answer, True), (refuse, True), (hang_up, False)])
async def test_an_end_is_told_once_with_whether_the_server_is_done(how, done):
    told = []
    async with ScriptedServer(M=how) as server:
        endpoint = make_endpoint(server.target)
        try:
            await endpoint.exchange("M", b"x", NEVER, over=told.append)
        except TritonError:
            assert how is not answer
        assert told == [done]
        await endpoint.aclose(Deadline.after(5))
    assert told == [done]


async def test_an_abandoned_call_is_over_when_the_server_has_answered():
    told, gated = [], Gated()
    async with ScriptedServer(M=gated) as server:
        endpoint = make_endpoint(server.target)
        with pytest.raises(DeadlineExceededError):
            await endpoint.exchange("M", b"x", Deadline.after(0.1), over=told.append)
        task = asyncio.ensure_future(endpoint.exchange("M", b"x", NEVER, over=told.append))
        await gated.arrived.acquire()
        await gated.arrived.acquire()
        task.cancel()
        await asyncio.wait({task})
        assert told == []
        gated.go.set()
        await endpoint.aclose(Deadline.after(5))
    assert told == [True, True]


async def test_a_call_that_is_let_go_is_over_for_its_caller_and_may_go_on_at_the_server():
    told, gated = [], Gated()
    async with ScriptedServer(M=gated) as server:
        endpoint = make_endpoint(server.target)
        task = asyncio.ensure_future(
            endpoint.exchange("M", b"x", NEVER, repeatable=True, over=told.append)
        )
        await gated.arrived.acquire()
        endpoint.let_go("a test")
        await asyncio.wait({task})
        assert isinstance(task.exception(), TritonError)
        assert told == [False]
        gated.go.set()
        await endpoint.aclose(Deadline.after(5))
    assert told == [False]
    del task
    gc.collect()


async def test_what_was_never_sent_is_over_at_once():
    told = []
    endpoint = make_endpoint("127.0.0.1:1")
    with pytest.raises(DeadlineExceededError):
        await endpoint.exchange("M", b"x", Deadline(0.0, 1.0), over=told.append)
    assert told == [True]
    await endpoint.aclose(Deadline.after(5))
    with pytest.raises(TritonError):
        await endpoint.exchange("M", b"x", NEVER, over=told.append)
    assert told == [True, True]


async def test_a_server_that_cannot_be_reached_never_had_the_call():
    told = []
    endpoint = make_endpoint("127.0.0.1:1")
    with pytest.raises(TritonError):
        await endpoint.exchange("M", b"x", Deadline.after(5), over=told.append)
    assert told == [True]
    await endpoint.aclose(Deadline.after(5))


@pytest.mark.filterwarnings("ignore:.*torn down:ResourceWarning")
async def test_a_call_that_is_torn_down_may_go_on_at_the_server():
    told, gated = [], Gated()
    async with ScriptedServer(M=gated) as server:
        endpoint = make_endpoint(server.target)
        task = asyncio.ensure_future(endpoint.exchange("M", b"x", NEVER, over=told.append))
        await gated.arrived.acquire()
        await endpoint.aclose(Deadline.after(0.05))
        await asyncio.wait({task})
        assert isinstance(task.exception(), TritonError)
        assert told == [False]
        gated.go.set()
    del task
    gc.collect()
