"""Errors over HTTP as they come about: a full queue, time that is up, a server that is killed."""

import asyncio
import json

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.integrations.serve import connected, request, serving, until
from tritonasync import BatchPolicy, RetryPolicy, TritonPool
from tritonasync.integrations.asgi import (
    CancelOnDisconnect,
    TritonErrors,
    TritonLifespan,
    exception_handlers,
)
from tritonasync.serving import EmbeddedTriton

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.server,
    pytest.mark.usefixtures("no_task_is_left"),
]


def waiting(triton: TritonLifespan) -> Starlette:
    """An application that has ``slow`` wait, for as long as it is asked to."""
    slow = triton.provide(lambda pool: pool.model("slow"))

    async def wait(request):
        delay_ms = float(request.query_params.get("ms", 0))
        timeout_s = float(request.query_params.get("timeout_s", 20))
        inputs = {"DELAY_MS": np.array([delay_ms], np.float32)}
        answer = await (await slow()).one(inputs, timeout_s=timeout_s)
        return JSONResponse(answer["WAITED_MS"].tolist())

    app = Starlette(
        routes=[Route("/", wait)], lifespan=triton, exception_handlers=exception_handlers()
    )
    app.add_middleware(CancelOnDisconnect, after_s=0.02)
    return app


def of(server, **options) -> TritonLifespan:
    return TritonLifespan(lambda: TritonPool(server.grpc_url, **options))


def model(triton):
    (found,) = [one for one in triton.pool.statistics().batching if one.model == "slow"]
    return found


async def test_a_full_queue_is_429_and_says_when_to_come_again(server):
    triton = of(server, batching=BatchPolicy(max_inflight=1, max_queued_rows=8))
    async with serving(waiting(triton)) as url, httpx.AsyncClient(base_url=url) as client:
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(client.get("/?ms=50", timeout=60)) for _ in range(50)]
        answers = [call.result() for call in calls]
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        refused = answers[statuses.index(429)]
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["code"] == "queue_full"
        assert (await client.get("/", timeout=60)).status_code == 200


async def test_time_that_is_up_is_504(server):
    triton = of(server)
    async with serving(waiting(triton)) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/?ms=300&timeout_s=0.05")
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        assert "127.0.0.1" not in answer.text


async def test_rows_of_clients_that_hang_up_are_dropped_before_they_are_sent(server):
    triton = of(server, batching=BatchPolicy(max_inflight=1))
    async with serving(waiting(triton)) as url:
        async with connected(url) as (reader, writer):
            writer.write(request("GET", "/?ms=500"))  # keeps all others waiting
            await until(lambda: triton.pool.statistics().in_flight == 1)

            async def hang_up():
                async with connected(url) as (_, writer):
                    writer.write(request("GET", "/?ms=500"))
                    await writer.drain()
                    await until(lambda: model(triton).queued_rows == 30)

            await asyncio.gather(*[hang_up() for _ in range(30)])
            await until(lambda: triton.pool.statistics().in_flight == 1)
            assert b" 200 " in await reader.readline()
        assert model(triton).rows == 1
        assert model(triton).cancelled_rows == 30


async def test_without_the_middleware_rows_of_clients_that_hang_up_are_sent(server):
    """What the middleware is for: if servers come to do it themselves, this says so."""
    triton = of(server, batching=BatchPolicy(max_inflight=1))
    app = waiting(triton)
    app.user_middleware.clear()
    async with serving(app) as url:
        for count in (1, 2):
            async with connected(url) as (_, writer):
                writer.write(request("GET", "/?ms=100"))
                await until(lambda count=count: triton.pool.statistics().in_flight == count)
        await until(lambda: triton.pool.statistics().in_flight == 0)
        assert model(triton).rows == 2


async def test_a_killed_server_is_503_until_it_is_back():
    with EmbeddedTriton("tests/models", model_control="explicit", load_models=["slow"]) as own:
        triton = of(own, retry=RetryPolicy(attempts=1))
        async with serving(waiting(triton)) as url, httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/")).status_code == 200
            under_way = asyncio.create_task(client.get("/?ms=5000", timeout=30))
            await until(lambda: model(triton).rows_in_flight == 1)
            await asyncio.to_thread(own.kill)
            cut, later = await under_way, await client.get("/?timeout_s=5")
            for answer in (cut, later):
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"
            assert cut.json()["code"] == "connection_lost"
            assert later.json()["code"] == "server_unreachable"
            assert own.grpc_url not in cut.text + later.text
            await asyncio.to_thread(own.restart)
            await until_answered(client)
        own.kill()


async def until_answered(client, limit_s=20.0):
    async with asyncio.timeout(limit_s):
        while (await client.get("/")).status_code != 200:
            await asyncio.sleep(0.05)


async def test_a_model_that_fails_is_502(server):
    triton = of(server)
    app = FastAPI(lifespan=triton)
    app.add_middleware(TritonErrors)
    faulty = triton.provide(lambda pool: pool.generator("tokens", inputs={"MAX_TOKENS": -3}))

    @app.get("/")
    async def text():
        return await (await faulty()).text("x")

    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["code"]) == (502, "model_failed")
    assert "out of words" not in answer.text


async def test_a_request_that_comes_while_the_application_ends_is_503(server):
    triton = of(server)
    app = waiting(triton)
    async with triton(app):
        pass
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["code"]) == (503, "closed")
    assert json.loads(answer.content)["detail"] == "This application is starting or shutting down."
