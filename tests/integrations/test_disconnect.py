"""Clients that hang up, by a played client: who is cancelled, how, and what is not touched."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount

from tests.integrations.scripted import BODY, Client, Handler, answer, running, turns
from tritonasync.integrations.asgi import CancelOnDisconnect

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_task_is_left")]


@pytest.mark.parametrize("reads", [True, False])
async def test_a_handler_whose_client_hangs_up_is_cancelled(reads):
    client, handler = Client(), Handler(reads=reads)
    task = await running(client, handler)
    client.leaves()
    async with asyncio.timeout(5):
        await task
    assert handler.ended == "cancelled"
    assert client.status == 499
    assert not task.cancelling()


async def test_a_handler_that_has_read_its_body_is_cancelled():
    client, handler = Client("POST", BODY), Handler()
    client.puts(b"ab", more=True)
    client.puts(b"cd")
    task = await running(client, handler)
    assert handler.body == b"abcd"
    client.leaves()
    await task
    assert handler.ended == "cancelled"


async def test_a_client_that_leaves_in_the_middle_of_its_body_cancels_the_reader():
    client, handler = Client("POST", BODY), Handler()
    client.puts(b"ab", more=True)
    task = asyncio.create_task(client.asks(CancelOnDisconnect(handler, after_s=0)))
    await turns()
    client.leaves()
    await task
    assert (handler.ended, handler.body) == ("cancelled", b"ab")


async def test_what_a_handler_does_after_its_answer_is_not_disturbed():
    client, after = Client(), asyncio.Event()
    release = asyncio.Event()

    async def app(scope, receive, send):
        while not client.receives:  # until it is watched
            await asyncio.sleep(0.001)
        await answer(send)
        await release.wait()  # a background task
        after.set()

    task = asyncio.create_task(client.asks(CancelOnDisconnect(app, after_s=0)))
    async with asyncio.timeout(5):
        while client.status is None:
            await asyncio.sleep(0.001)
    client.leaves()
    await turns()
    release.set()
    await task
    assert after.is_set()
    assert client.status == 200


async def test_a_response_that_is_underway_is_cancelled():
    client, ended = Client(), []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.create_task(client.asks(CancelOnDisconnect(app, after_s=0)))
    await turns()
    client.leaves()
    await task
    assert ended == [True]


async def test_a_handler_may_clean_up_in_its_own_time():
    client, steps = Client(), []

    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        finally:
            await turns(10)
            steps.append("cleaned up")

    task = asyncio.create_task(client.asks(CancelOnDisconnect(app, after_s=0)))
    await turns()
    client.leaves()
    await task
    assert steps == ["cleaned up"]


async def test_a_handler_that_goes_on_regardless_ends_as_ever():
    client = Client()

    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await answer(send)

    async def outer():
        await client.asks(CancelOnDisconnect(app, after_s=0))
        assert not asyncio.current_task().cancelling()
        await asyncio.sleep(0)

    task = asyncio.create_task(outer())
    await turns()
    client.leaves()
    await task
    assert client.status == 200


async def test_an_error_in_place_of_the_cancellation_goes_on():
    client = Client()

    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError("broken") from None

    async def outer():
        with pytest.raises(KeyError):
            await client.asks(CancelOnDisconnect(app, after_s=0))
        assert not asyncio.current_task().cancelling()

    task = asyncio.create_task(outer())
    await turns()
    client.leaves()
    await task


async def test_cancelling_from_outside_is_passed_on():
    client, handler = Client(), Handler()
    task = await running(client, handler)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handler.ended == "cancelled"


async def test_cancelling_from_outside_is_passed_on_even_if_the_client_leaves_at_that_moment():
    client, handler = Client(), Handler()
    task = await running(client, handler)
    client.leaves()
    while not task.cancelling():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_around_it_still_is_a_timeout():
    client, handler = Client(), Handler()

    async def outer():
        async with asyncio.timeout(0.01):
            await client.asks(CancelOnDisconnect(handler, after_s=0))

    with pytest.raises(TimeoutError):
        await outer()


async def test_errors_go_on_as_they_are():
    client = Client()

    async def app(scope, receive, send):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await client.asks(CancelOnDisconnect(app, after_s=0))


async def test_lifespans_and_websockets_pass_through_untouched():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["type"], receive, send))

    for kind in ("lifespan", "websocket"):
        await CancelOnDisconnect(app, after_s=0)({"type": kind}, len, print)
    assert seen == [("lifespan", len, print), ("websocket", len, print)]


async def test_a_reader_is_cancelled_in_the_middle_of_its_body_rather_than_told():
    client = Client("POST", BODY)

    async def app(scope, receive, send):
        raise RuntimeError((await receive())["type"])  # as frameworks do, which would be logged

    client.leaves()
    await client.asks(CancelOnDisconnect(app, after_s=0))
    assert client.status == 499


async def test_middlewares_around_it_see_an_answer_and_do_not_complain():
    client, handler = Client(), Handler(reads=False)
    app = Starlette(
        routes=[Mount("/", CancelOnDisconnect(handler, after_s=0))],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=lambda request, call: call(request))],
    )
    client.scope |= {"query_string": b"", "root_path": "", "asgi": {"spec_version": "2.4"}}
    task = asyncio.create_task(client.asks(app))
    async with asyncio.timeout(5):
        await handler.working.wait()
        client.leaves()
        await task  # without an answer, it raises RuntimeError: No response returned
    assert (handler.ended, client.status) == ("cancelled", 499)


async def test_a_server_that_refuses_to_answer_who_has_left_is_not_complained_of():
    client, handler = Client(), Handler(reads=False)

    async def refuses(message):
        raise OSError("gone")

    app = CancelOnDisconnect(handler, after_s=0)
    task = asyncio.create_task(app(client.scope, client.receive, refuses))
    async with asyncio.timeout(5):
        await handler.working.wait()
        client.leaves()
        await task


async def test_a_response_that_is_underway_is_not_answered_once_more():
    client = Client()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    task = asyncio.create_task(client.asks(CancelOnDisconnect(app, after_s=0)))
    await turns()
    client.leaves()
    await task
    assert [message["type"] for message in client.sent] == ["http.response.start"]
