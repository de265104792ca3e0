"""Errors over HTTP, in each framework; no model is needed for it."""

import asyncio
import logging

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route, WebSocketRoute

from tests.integrations.frameworks import APPS, client_of
from tests.integrations.scripted import Client
from tests.integrations.test_answers import made
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
    ModelNotFoundError,
    QueueFullError,
    ServerUnreachableError,
)
from tritonasync.integrations.asgi import (
    TritonErrors,
    exception_handlers,
    litestar_exception_handlers,
)

pytestmark = pytest.mark.anyio

STATUSES = {
    QueueFullError: 429,
    ServerUnreachableError: 503,
    DeadlineExceededError: 504,
    InvalidInputError: 422,
    ModelNotFoundError: 500,
    ModelFailedError: 502,
}


@pytest.fixture(params=APPS, ids=lambda make: make.__name__)
def app_of(request):
    return request.param


def raising(error):
    async def work():
        raise error

    return work


@pytest.mark.parametrize("kind", STATUSES)
async def test_an_error_is_answered_with_its_status(app_of, kind):
    async with client_of(app_of(raising(made(kind)), retry_after_s=7)) as client:
        answer = await client.get("/")
    assert answer.status_code == STATUSES[kind]
    assert answer.headers.get_list("content-type") == ["application/problem+json"]
    assert len(answer.headers.get_list("content-length")) == 1
    later = ["7"] if STATUSES[kind] in {429, 503, 504} else []
    assert answer.headers.get_list("retry-after") == later
    assert answer.json()["status"] == STATUSES[kind]
    assert kind is InvalidInputError or "secret" not in answer.text


async def test_debug_tells_more(app_of):
    async with client_of(app_of(raising(made(QueueFullError)), debug=True)) as client:
        answer = await client.get("/")
    assert answer.json()["endpoint"] == "gpu7.internal:8001"


async def test_who_is_not_answered_with_an_error_is_left_alone(app_of):
    async def work():
        return [1, 2]

    async with client_of(app_of(work)) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()) == (200, [1, 2])


async def test_other_errors_are_the_frameworks(app_of):
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app_of(raising(KeyError("x"))), raise_app_exceptions=False),
        base_url="http://test",
    ) as client:
        answer = await client.get("/")
    assert answer.status_code == 500
    assert "problem" not in answer.headers.get("content-type", "")


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        (ModelNotFoundError, "ERROR"),
        (ModelFailedError, "ERROR"),
        (ServerUnreachableError, "WARNING"),
        (DeadlineExceededError, "WARNING"),
        (QueueFullError, None),
        (InvalidInputError, None),
    ],
)
async def test_who_runs_the_application_reads_what_clients_are_not_told(
    app_of, caplog, kind, level
):
    caplog.set_level(logging.DEBUG, "tritonasync")
    async with client_of(app_of(raising(made(kind)))) as client:
        await client.get("/")
    logged = [record for record in caplog.records if record.name == "tritonasync"]
    assert [record.levelname for record in logged] == ([level] if level else [])
    assert all("gpu7.internal:8001" in record.getMessage() for record in logged)


async def test_an_error_after_the_response_has_begun_goes_on_to_the_server():
    async def page(request):
        async def pieces():
            yield b"first"
            raise made(ModelFailedError)

        return StreamingResponse(pieces())

    client = Client()
    app = TritonErrors(Starlette(routes=[Route("/", page)]))
    client.scope |= {"query_string": b"", "root_path": "", "asgi": {"spec_version": "2.4"}}
    with pytest.raises(ModelFailedError):
        await asyncio.wait_for(client.asks(app), 5)
    assert client.status == 200
    assert client.sent[-1]["more_body"] is True


@pytest.mark.parametrize(
    ("kind", "code"), [(QueueFullError, 1013), (InvalidInputError, 1007), (ModelFailedError, 1011)]
)
@pytest.mark.parametrize("middleware", [True, False])
async def test_a_websocket_is_closed_with_a_code(kind, code, middleware):
    async def talk(socket):
        await socket.accept()
        raise made(kind)

    routes = [WebSocketRoute("/", talk)]
    handlers = {} if middleware else exception_handlers()
    app = Starlette(routes=routes, exception_handlers=handlers)
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "root_path": ""}
    await (TritonErrors(app) if middleware else app)(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert sent[-1]["code"] == code


async def test_a_websocket_whose_refusal_has_begun_is_not_answered_once_more():
    async def app(scope, receive, send):
        await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
        raise made(QueueFullError)

    sent = []

    async def send(message):
        sent.append(message)

    with pytest.raises(QueueFullError):
        await TritonErrors(app)({"type": "websocket"}, None, send)
    assert len(sent) == 1


@pytest.mark.parametrize(
    "make",
    [lambda **o: TritonErrors(print, **o), exception_handlers, litestar_exception_handlers],
)
def test_what_makes_no_sense_is_refused_at_the_start(make):
    with pytest.raises(ConfigurationError, match="retry_after_s"):
        make(retry_after_s=0)
