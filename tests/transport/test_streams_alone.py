"""A request of a decoupled model has a stream to itself, which is used again."""

from __future__ import annotations

import asyncio

import pytest

from tests.transport.scripted_streams import Client, StreamServer, until
from tritonasync.core.errors import ModelNotFoundError, ModelNotReadyError
from tritonasync.core.policies import StreamPolicy
from tritonasync.transport import choosing

pytestmark = pytest.mark.anyio


def client_of(server, policy=None, **options):
    return Client(server.target, policy, share=False, **options)


@pytest.fixture
def unrested(monkeypatch):
    """Streams are used again at once."""
    monkeypatch.setattr(choosing, "REST_S", 0.0)


def end_all(server):
    for stream in server.streams:
        for asked in list(stream.asked):
            stream.close(asked)
        stream.asked.clear()


async def out(server, count):
    await until(lambda: sum(len(asked) for asked in server.asked()) == count)


async def test_requests_that_are_out_at_once_have_a_stream_each():
    async with StreamServer() as server, client_of(server) as client:
        readers = [client.read(n) for n in range(20)]
        await out(server, 20)
        assert [len(asked) for asked in server.asked()] == [1] * 20
        end_all(server)
        await asyncio.gather(*readers)


async def test_one_after_the_other_they_have_the_same_stream(unrested):
    async with StreamServer() as server, client_of(server) as client:
        for n in range(5):
            reader = client.read(n, model=f"m{n % 2}")
            await out(server, 1)
            end_all(server)
            await reader
        assert len(server.streams) == 1


async def test_a_stream_rests_before_it_is_used_again():
    """The server may not have taken note yet that it has answered, and a refusal would kill it."""
    async with StreamServer() as server, client_of(server) as client:
        for streams in (1, 2):
            reader = client.read(1)
            await out(server, 1)
            end_all(server)
            await reader
            assert len(server.streams) == streams
        await asyncio.sleep(choosing.REST_S)
        reader = client.read(1)
        await out(server, 1)
        end_all(server)
        await reader
        assert len(server.streams) == 2


async def test_a_server_that_goes_down_is_left_no_stream_that_waits_for_work():
    async with StreamServer() as server, client_of(server) as client:
        readers = [client.read(n) for n in (1, 2, 3)]
        await out(server, 3)
        for stream in server.streams[:2]:
            stream.close(stream.asked.pop())
        stream = server.streams[2]
        await until(lambda: len(client.streams._spares) == 2)
        stream.refuse(
            stream.asked.pop(), "Request for unknown model: 'm' has no available versions"
        )
        outcomes = await asyncio.gather(*readers, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(ModelNotReadyError) == 1
        await until(lambda: client.streams.open == 0)


async def test_streams_that_are_free_are_kept_up_to_a_number(monkeypatch):
    monkeypatch.setattr(choosing, "MAX_SPARES", 2)
    async with StreamServer() as server, client_of(server) as client:
        readers = [client.read(n) for n in range(6)]
        await out(server, 6)
        end_all(server)
        await asyncio.gather(*readers)
        await until(lambda: client.streams.open == 2)
        assert sum(stream.over.is_set() for stream in server.streams) == 4


async def test_a_stream_is_free_when_the_server_has_ended_what_its_reader_has_left(unrested):
    async with StreamServer() as server, client_of(server) as client:
        leaving = client.responses(1)
        first = client.first(leaving)
        stream = await server.stream()
        (asked,) = await stream.take()
        stream.answer(asked, 1, final=False)
        assert await first == 1
        leaving.leave()
        other = client.read(2)  # the first stream is not free yet
        await out(server, 2)
        end_all(server)
        await other
        await until(lambda: not client.streams.in_flight)
        third = client.read(3)
        await out(server, 1)
        assert len(server.streams) == 2
        end_all(server)
        await third


async def test_one_withdrawn_before_it_was_sent_leaves_its_stream_free(unrested):
    async with StreamServer() as server, client_of(server) as client:
        reader = client.read(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait({reader})
        again = client.read(2)
        await out(server, 1)
        end_all(server)
        await again
        assert len(server.streams) == 1


async def test_a_stream_that_is_over_is_not_kept():
    """Its call would keep the connection open, after the pool was closed."""
    async with StreamServer() as server, client_of(server) as client:
        reader = client.read(1)
        await out(server, 1)
        end_all(server)
        await reader
        assert len(client.streams._spares) == 1
        client.streams._sweep()
        client.streams._streams[0].retire()
        await until(lambda: client.streams.open == 0)
        assert len(client.streams._spares) == 0


async def test_a_refusal_comes_beside_no_response():
    """Beside one, on a stream, it kills the server: a model that is unloaded under load."""
    async with StreamServer() as server, client_of(server) as client:
        staying, refused = client.read(1), client.read(2)
        await out(server, 2)
        (stream,) = [s for s in server.streams if s.asked[0].value == 2]
        assert len(stream.asked) == 1
        stream.refuse(stream.asked.pop(), "Request for unknown model: 'm' is not found")
        with pytest.raises(ModelNotFoundError):
            await refused
        end_all(server)
        await staying


async def test_each_has_headers_of_its_own_where_a_function_gives_them():
    given = iter(range(9))
    headers = {"headers": lambda: {"x-number": str(next(given))}}
    async with StreamServer() as server, client_of(server, **headers) as client:
        for n in range(3):
            reader = client.read(n)
            await out(server, 1)
            end_all(server)
            await reader
        assert len(server.streams) == 3
        assert next(given) == 3


async def test_a_slow_reader_has_the_server_held_back_and_nobody_else():
    policy = StreamPolicy(max_buffered=4)
    async with StreamServer() as server, client_of(server, policy) as client:
        slow = client.responses(1)
        first = client.first(slow)
        stream = await server.stream()
        (asked,) = await stream.take()
        for value in range(50):
            stream.answer(asked, value, final=False)
        assert await first == 0
        (held,) = client.streams._streams
        await until(lambda: held.requests.held)
        other = client.read(2)
        await out(server, 2)
        server.streams[1].close(server.streams[1].asked[0])
        await other
        assert held.requests.held
        stream.close(asked)
        assert [reply.outputs["VALUE"].item() async for reply in slow] == list(range(1, 50))
