"""Clients that hang up, by a played client: who is cancelled, when, and what is not touched."""

import asyncio

import pytest

from tests.integrations.scripted import Client, answer
from tritonasync.core.errors import ConfigurationError
from tritonasync.integrations.asgi import CancelOnDisconnect

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_task_is_left")]

BODY = [(b"content-length", b"4")]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Handler:
    """An application that reads its body, works for ever, and notes how it ended."""

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.body = b""
        self.ended = ""
        self.working = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        try:
            while self.reads:
                message = await receive()
                self.body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            self.working.set()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise


async def running(client, handler) -> asyncio.Task:
    task = asyncio.create_task(client.asks(CancelOnDisconnect(handler, after_s=0)))
    async with asyncio.timeout(5):
        await handler.working.wait()
    return task


@pytest.mark.parametrize("reads", [True, False])
async def test_a_handler_whose_client_hangs_up_is_cancelled(reads):
    client, handler = Client(), Handler(reads=reads)
    task = await running(client, handler)
    client.leaves()
    async with asyncio.timeout(5):
        await task
    assert handler.ended == "cancelled"
    assert client.sent == []
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


async def test_no_body_is_read_ahead_of_the_handler():
    client, handler = Client("POST", [(b"transfer-encoding", b"chunked")]), Handler(reads=False)
    client.puts(b"ab", more=True)
    task = await running(client, handler)
    await turns()
    assert client.receives == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_client_that_leaves_in_the_middle_of_its_body_cancels_the_reader():
    client, handler = Client("POST", BODY), Handler()
    client.puts(b"ab", more=True)
    task = asyncio.create_task(client.asks(CancelOnDisconnect(handler, after_s=0)))
    await turns()
    client.leaves()
    await task
    assert (handler.ended, handler.body) == ("cancelled", b"ab")


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


async def test_lifespans_and_websockets_pass_through_untouched():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["type"], receive, send))

    for kind in ("lifespan", "websocket"):
        await CancelOnDisconnect(app, after_s=0)({"type": kind}, len, print)
    assert seen == [("lifespan", len, print), ("websocket", len, print)]


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


async def test_a_reader_is_cancelled_in_the_middle_of_its_body_rather_than_told():
    client = Client("POST", BODY)

    async def app(scope, receive, send):
        raise RuntimeError((await receive())["type"])  # as frameworks do, which would be logged

    client.leaves()
    await client.asks(CancelOnDisconnect(app, after_s=0))
    assert client.sent == []


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
