"""What a stream's requests come to on servers that are slow, silent or not ready."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from tests.transport.scripted_streams import Client, StreamServer, turns, until
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    DecoupledModelError,
    ModelNotReadyError,
    ServerUnreachableError,
    TritonError,
)
from tritonasync.core.policies import StreamPolicy
from tritonasync.transport import streams as streams_module

pytestmark = pytest.mark.anyio

ONE = StreamPolicy(max_streams=1)


def total(server):
    return sum(map(len, server.asked()))


async def failed(task: asyncio.Task) -> TritonError:
    """Return the error that a caller was told."""
    with pytest.raises(TritonError) as caught:
        await task
    return caught.value


async def test_a_plain_request_that_is_waited_for_is_waited_for(monkeypatch):
    """Both on streams at the same time kill the server, however long the one takes."""
    monkeypatch.setattr(streams_module, "STUCK_S", 0.05)
    async with StreamServer() as server, Client(server.target) as client:
        slow = client.call(1)
        stream = await server.stream()
        (asked,) = await stream.take()
        reader = client.read(2)
        await asyncio.sleep(0.3)
        assert total(server) == 1
        stream.answer(asked)
        assert await slow == 1
        other = await server.stream(1)
        other.answer(*(await other.take()))
        assert await reader == [2]


async def test_closing_does_not_wait_for_a_connection_that_nobody_makes():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = Client("{}:{}".format(*silent.getsockname()))
        error = await failed(client.call(1, deadline=Deadline.after(0.05)))
        assert (error.stage, error.may_have_executed) == ("connect", False)
        waiting = client.call(2)
        await turns(3)
        began = time.monotonic()
        with pytest.warns(ResourceWarning, match="torn down"):
            await client.backend.aclose(Deadline.after(0.3))
        assert time.monotonic() - began < 5
        error = await failed(waiting)
        assert not error.may_have_executed


async def test_what_is_withdrawn_is_not_kept_while_nothing_can_be_sent():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = Client("{}:{}".format(*silent.getsockname()), ONE)
        for _ in range(3):
            callers = [client.call(n, deadline=Deadline.after(0.05)) for n in range(50)]
            await asyncio.gather(*callers, return_exceptions=True)
        (stream,) = client.streams._streams
        assert (stream.queued, len(stream._queue), stream.load) == (0, 0, 0)
        await client.backend.aclose(Deadline.after(5))


async def test_what_was_not_sent_goes_elsewhere_when_callers_are_let_go():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = Client("{}:{}".format(*silent.getsockname()))
        waiting = client.call(1, idempotent=False)
        await turns(3)
        client.backend.let_go("it is silent")
        error = await failed(waiting)
        assert isinstance(error, ServerUnreachableError)
        assert not error.may_have_executed
        await client.backend.aclose(Deadline.after(5))


async def test_a_model_that_turns_out_to_be_decoupled_ends_plain_requests_on_streams():
    async with StreamServer() as server, Client(server.target) as client:
        caller = client.call(1)
        stream = await server.stream()
        (asked,) = await stream.take()
        stream.answer(asked, final=False)
        assert isinstance(await failed(caller), DecoupledModelError)
        assert not client.streams.plain
        stream.close(asked)


async def test_a_model_that_is_not_ready_does_not_have_streams_opened_without_end():
    async with StreamServer() as server, Client(server.target) as client:
        slow = client.call(0, model="slow")
        await (await server.stream()).take()
        for n in range(30):
            caller = client.call(n, model="m")
            await until(lambda: len(of_model(server, "m")) == 1)
            ((stream, asked),) = of_model(server, "m")
            stream.asked.remove(asked)
            stream.refuse(asked, "Request for unknown model: 'm' has no available versions")
            assert isinstance(await failed(caller), ModelNotReadyError)
        assert len(server.streams) <= 8
        ((stream, asked),) = of_model(server, "slow")
        stream.answer(asked)
        assert await slow == 0


def of_model(server, model):
    return [
        (stream, asked)
        for stream in server.streams
        for asked in stream.asked
        if asked.model == model
    ]
