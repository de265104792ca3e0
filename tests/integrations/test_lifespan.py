"""The pool's life within an application's, in each framework, on the real server."""

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette

from tests.integrations.frameworks import WITH_POOL, client_of, started
from tritonasync import TritonPool
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    ModelNotFoundError,
    PoolClosedError,
)
from tritonasync.integrations.asgi import Health, TritonLifespan

NOBODY = "127.0.0.1:9"  # the discard port


@pytest.fixture(params=WITH_POOL, ids=lambda make: make.__name__)
def app_with(request):
    return request.param


def ident(pool):
    return pool.model("ident")


def triton_at(server, **options) -> TritonLifespan:
    return TritonLifespan(lambda: TritonPool(server.grpc_url), **options)


# --- on the real server ---------------------------------------------------------------------------

served = [pytest.mark.anyio, pytest.mark.server]


class TestServed:
    pytestmark = served

    async def test_requests_are_served_by_a_handle_of_the_open_pool(self, server, app_with):
        triton = triton_at(server, ready=["ident"])
        app = app_with(triton, ident)
        async with started(app), client_of(app) as client:
            pool = triton.pool
            assert (await client.get("/")).json() == [1.5, 1.5]
            assert app.state.triton is pool
        assert "closed" in repr(pool)
        assert not hasattr(app.state, "triton")

    async def test_an_application_may_start_again_with_a_new_pool(self, server, app_with):
        triton = triton_at(server)
        app = app_with(triton, ident)
        pools = []
        for _ in range(2):
            async with started(app), client_of(app) as client:
                pools.append(triton.pool)
                assert (await client.get("/")).json() == [1.5, 1.5]
        assert pools[0] is not pools[1]

    async def test_a_pool_that_was_given_is_opened_once(self, server, app_with):
        pool = TritonPool(server.grpc_url)
        app = app_with(TritonLifespan(pool), ident)
        async with started(app), client_of(app) as client:
            assert (await client.get("/")).json() == [1.5, 1.5]
        with pytest.raises(PoolClosedError):
            async with started(app):
                pass

    async def test_the_handle_is_made_once_for_each_start(self, server):
        made = []

        def make(pool):
            made.append(pool)
            return pool.model("ident")

        triton = triton_at(server)
        handle = triton.provide(make)
        for starts in (1, 2):
            async with triton(None):
                assert await handle() is await handle()
            assert len(made) == starts

    async def test_the_applications_own_lifespan_runs_while_the_pool_is_open(
        self, server, app_with
    ):
        seen = []

        @asynccontextmanager
        async def own(app):
            seen.append(await triton.pool.admin.ready())
            yield {"colour": "blue"}
            seen.append(await triton.pool.admin.ready())

        triton = triton_at(server, then=own)
        app = app_with(triton, ident)
        async with started(app) as state:
            if app_with.__name__ != "litestar_with":  # which knows no such state
                assert state == {"colour": "blue"}
        assert seen == [True, True]

    async def test_the_pool_is_closed_if_the_applications_own_lifespan_fails(self, server):
        @asynccontextmanager
        async def own(app):
            raise RuntimeError("mine")
            yield

        pool = TritonPool(server.grpc_url)
        triton = TritonLifespan(pool, then=own)
        with pytest.raises(RuntimeError, match="mine"):
            async with triton(None):
                pass
        assert "closed" in repr(pool)
        assert not triton.live()

    async def test_a_model_that_does_not_exist_keeps_the_application_from_starting(
        self, server, app_with
    ):
        triton = triton_at(server, ready=["ident", "nobody"])
        with pytest.raises(ModelNotFoundError, match="nobody"):
            async with started(app_with(triton, ident)):
                pass
        assert not triton.live()

    async def test_two_applications_at_once_need_two_lifespans(self, server):
        triton = triton_at(server, ready=True)
        async with triton(None):
            with pytest.raises(ConfigurationError, match="make one for each"):
                async with triton(None):
                    pass
            assert triton.live()

    async def test_health_is_told(self, server):
        triton = triton_at(server, ready=["ident"])
        async with client_of(Health(triton)) as client:
            assert (await client.get("/health/live")).status_code == 503
            assert (await client.get("/health/ready")).status_code == 503
            async with triton(None):
                assert (await client.get("/health/live")).json() == {"status": 200, "live": True}
                assert (await client.get("/health/ready/")).json()["ready"] is True
                assert (await client.get("/health/other")).status_code == 404
                assert not await triton.ready("nobody")
                assert await triton.ready("ident", "negate")
        async with triton(None), client_of(Health(triton, "nobody", retry_after_s=3)) as client:
            answer = await client.get("/ready")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


# --- without one ----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_server_that_is_not_there_keeps_the_application_from_starting():
    pool = TritonPool(NOBODY)
    triton = TritonLifespan(pool, ready=True, ready_timeout_s=0.2)
    with pytest.raises(DeadlineExceededError):
        async with triton(None):
            pass
    assert "closed" in repr(pool)


@pytest.mark.anyio
async def test_without_waiting_an_application_starts_while_the_server_is_away():
    triton = TritonLifespan(TritonPool(NOBODY))
    async with triton(None):
        assert triton.live()
        assert not await triton.ready(timeout_s=0.2)


def test_without_a_lifespan_there_is_no_pool_and_the_error_says_why():
    triton = TritonLifespan(TritonPool(NOBODY))
    with pytest.raises(PoolClosedError, match=r"its lifespan.*ASGITransport does not"):
        _ = triton.pool
    with pytest.raises(PoolClosedError):
        asyncio.run(triton.provide(ident)())


def test_a_name_in_place_of_names_is_refused():
    with pytest.raises(ConfigurationError, match=r"expected a list of models, as in \['digits'\]"):
        TritonLifespan(TritonPool(NOBODY), ready="digits")


@pytest.mark.anyio
async def test_a_second_application_is_refused_while_the_first_still_waits():
    triton = TritonLifespan(lambda: TritonPool(NOBODY), ready=True, ready_timeout_s=0.2)

    async def start():
        async with triton(None):
            pass

    first, second = await asyncio.gather(start(), start(), return_exceptions=True)
    assert isinstance(first, DeadlineExceededError)
    assert isinstance(second, ConfigurationError)
    with pytest.raises(DeadlineExceededError):  # rather than being refused for ever
        await start()


@pytest.mark.anyio
async def test_a_pool_that_cannot_be_made_does_not_keep_the_application_from_starting_again():
    pools = iter([TritonPool(NOBODY)])

    def make():
        make.calls += 1
        if make.calls == 1:
            raise KeyError("TRITON_URL")
        return next(pools)

    make.calls = 0
    triton = TritonLifespan(make)
    with pytest.raises(KeyError):
        async with triton(None):
            pass
    async with triton(None):
        assert triton.live()


@pytest.mark.anyio
async def test_one_lifespan_within_another_gives_an_application_two_pools():
    inner = TritonLifespan(lambda: TritonPool(NOBODY))
    outer = TritonLifespan(lambda: TritonPool(NOBODY), then=inner)
    app = Starlette(lifespan=outer)
    async with outer(app):
        assert outer.pool is not inner.pool
        assert app.state.triton is inner.pool
    assert not outer.live()
    assert not inner.live()


def test_what_is_no_time_is_refused():
    triton = TritonLifespan(TritonPool(NOBODY))
    with pytest.raises(ConfigurationError, match="ready_timeout_s"):
        TritonLifespan(TritonPool(NOBODY), ready_timeout_s=-1)
    with pytest.raises(ConfigurationError, match="timeout_s"):
        Health(triton, timeout_s=float("nan"))
    with pytest.raises(ConfigurationError, match="retry_after_s"):
        Health(triton, retry_after_s=0)


def test_no_framework_is_imported():
    code = (
        "import sys, json, tritonasync.integrations.asgi;"
        "print(json.dumps([n for n in sys.modules if n in"
        " ('fastapi', 'starlette', 'litestar', 'uvicorn', 'httpx', 'pydantic')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
