"""Whose client is watched, and from when; what those who listen for its end themselves are told."""

import asyncio

import pytest
from starlette.requests import Request

from tests.integrations.scripted import Client, Handler, answer, running, turns
from tritonasync.core.errors import ConfigurationError
from tritonasync.integrations.asgi import CancelOnDisconnect

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_task_is_left")]


async def test_no_body_is_read_ahead_of_the_handler():
    client, handler = Client("POST", [(b"transfer-encoding", b"chunked")]), Handler(reads=False)
    client.puts(b"ab", more=True)
    task = await running(client, handler)
    await turns()
    assert client.receives == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("method", "headers", "version", "watched"),
    [
        ("GET", [], "1.1", True),
        ("POST", [], "1.1", True),
        ("POST", [(b"content-length", b"0")], "1.1", True),
        ("POST", [(b"content-length", b"1")], "1.1", False),
        ("GET", [(b"transfer-encoding", b"chunked")], "1.1", False),
        ("GET", [], "2", True),
        ("POST", [], "2", False),
        ("POST", [(b"content-length", b"0")], "2", True),
    ],
)
async def test_who_has_no_body_is_watched_at_once(method, headers, version, watched):
    client, handler = Client(method, headers, version), Handler(reads=False)
    task = await running(client, handler)
    client.leaves()
    await asyncio.sleep(0.02)
    assert task.done() is watched
    if not watched:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_empty_body_of_a_get_is_given_once_and_then_the_end():
    client, got = Client(), []
    client.puts(b"")  # as servers do

    async def app(scope, receive, send):
        got.append(await receive())
        got.append(await receive())

    task = asyncio.create_task(client.asks(CancelOnDisconnect(app, after_s=0)))
    await turns()
    client.leaves()
    await task
    assert [message["type"] for message in got[:1]] == ["http.request"]
    assert got[0]["more_body"] is False


async def test_whoever_listens_for_the_end_is_told_too():
    client, told = Client(), []

    async def app(scope, receive, send):
        await receive()

        async def listen():
            told.append((await receive())["type"])

        async with asyncio.TaskGroup() as tasks:  # as streaming responses do
            tasks.create_task(listen())
            tasks.create_task(asyncio.Event().wait())

    task = asyncio.create_task(client.asks(CancelOnDisconnect(app, after_s=0)))
    await turns()
    client.leaves()
    await asyncio.wait_for(task, 5)
    assert told in (["http.disconnect"], [])


async def test_a_server_that_fails_to_tell_is_logged_and_harms_nobody(caplog):
    client = Client()

    async def fails():
        raise OSError("broken server")

    async def app(scope, receive, send):
        await turns()
        await answer(send)

    await CancelOnDisconnect(app, after_s=0)(client.scope, fails, client.send)
    assert client.status == 200
    assert "broken server" in caplog.text


async def test_a_request_that_is_soon_answered_is_not_watched():
    client = Client()

    async def app(scope, receive, send):
        await turns()
        await answer(send)

    await client.asks(CancelOnDisconnect(app, after_s=10))
    assert (client.receives, client.status) == (0, 200)


async def test_a_client_that_left_before_it_was_watched_is_noticed_then():
    client, handler = Client(), Handler()
    task = asyncio.create_task(client.asks(CancelOnDisconnect(handler, after_s=0.02)))
    client.leaves()
    async with asyncio.timeout(5):
        await task
    assert handler.ended == "cancelled"


async def test_whoever_listens_for_the_end_is_told_without_delay():
    client = Client()

    async def app(scope, receive, send):
        await receive()
        await receive()

    task = asyncio.create_task(client.asks(CancelOnDisconnect(app, after_s=100)))
    await turns()
    client.leaves()
    async with asyncio.timeout(5):
        await task


async def test_after_the_answer_no_second_receive_is_begun_beside_the_watchers():
    client, got = Client(), []

    async def app(scope, receive, send):
        while not client.receives:  # until it is watched
            await asyncio.sleep(0.001)
        await receive()
        await answer(send)
        got.append((await receive())["type"])  # the played client refuses two at a time

    async with asyncio.timeout(5):
        await client.asks(CancelOnDisconnect(app, after_s=0))
    assert got == ["http.disconnect"]


async def test_who_looks_without_waiting_sees_that_the_client_has_left():
    client, seen = Client(), []

    async def app(scope, receive, send):
        request = Request(scope, receive)
        await request.body()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(await request.is_disconnected())

    task = asyncio.create_task(client.asks(CancelOnDisconnect(app, after_s=0)))
    await turns()
    client.leaves()
    async with asyncio.timeout(5):
        await task
    assert seen == [True]


async def test_requests_that_come_later_are_watched_later():
    first, second = (Client(), Handler()), (Client(), Handler())
    handlers = iter([first[1], second[1]])

    async def app(*request):
        await next(handlers)(*request)

    middleware = CancelOnDisconnect(app, after_s=0.05)
    one = asyncio.create_task(first[0].asks(middleware))
    await asyncio.sleep(0.03)
    two = asyncio.create_task(second[0].asks(middleware))
    first[0].leaves()
    second[0].leaves()
    async with asyncio.timeout(5):
        await asyncio.gather(one, two)
    assert [first[1].ended, second[1].ended] == ["cancelled"] * 2


async def test_who_is_watched_waits_for_no_timer_any_more():
    client, handler = Client(), Handler()
    middleware = CancelOnDisconnect(handler, after_s=0.001)
    task = asyncio.create_task(client.asks(middleware))
    async with asyncio.timeout(5):
        while not client.receives:
            await asyncio.sleep(0.001)
    assert not middleware._rota._due
    client.leaves()
    await task


@pytest.mark.parametrize("after_s", [-1, float("inf"), float("nan")])
async def test_what_is_no_time_is_refused(after_s):
    with pytest.raises(ConfigurationError, match="after_s: expected a number of seconds"):
        CancelOnDisconnect(print, after_s=after_s)
