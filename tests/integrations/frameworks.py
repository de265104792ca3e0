"""The same small application in each framework, and a client that calls it without a socket."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI
from litestar import Litestar, get
from litestar.di import NamedDependency, Provide
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from tritonasync.integrations.asgi import (
    CancelOnDisconnect,
    TritonErrors,
    TritonLifespan,
    exception_handlers,
    litestar_exception_handlers,
)

Work = Callable[[], Any]


def fastapi_app(work: Work, **options) -> FastAPI:
    app = FastAPI(exception_handlers=exception_handlers(**options))
    app.add_middleware(CancelOnDisconnect)

    @app.get("/")
    async def page():
        return await work()

    return app


def fastapi_app_with_middleware(work: Work, **options) -> FastAPI:
    app = FastAPI()
    app.add_middleware(TritonErrors, **options)
    app.get("/")(work)
    return app


def starlette_app(work: Work, **options) -> Starlette:
    async def page(request):
        return JSONResponse(await work())

    app = Starlette(routes=[Route("/", page)], exception_handlers=exception_handlers(**options))
    app.add_middleware(CancelOnDisconnect)
    return app


def litestar_app(work: Work, **options) -> Litestar:
    @get("/")
    async def page() -> Any:
        return await work()

    return Litestar(
        [page],
        exception_handlers=litestar_exception_handlers(**options),
        middleware=[CancelOnDisconnect],
        openapi_config=None,
        logging_config=None,  # it would take pytest's handlers away
    )


def plain_app(work: Work, **options):
    async def app(scope, receive, send):
        answer = JSONResponse(await work())
        await answer(scope, receive, send)

    return TritonErrors(CancelOnDisconnect(app), **options)


APPS = [fastapi_app, fastapi_app_with_middleware, starlette_app, litestar_app, plain_app]


def client_of(app) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


# --- the same with a pool: GET /{number} gives that number squared --------------------------------


def fastapi_with(triton: TritonLifespan, make) -> FastAPI:
    handle = triton.provide(make)
    app = FastAPI(lifespan=triton)

    @app.get("/")
    async def page(model: Annotated[Any, Depends(handle)]):
        return await negated(model)

    return app


def starlette_with(triton: TritonLifespan, make) -> Starlette:
    handle = triton.provide(make)

    async def page(request):
        assert request.app.state.triton is triton.pool
        return JSONResponse(await negated(await handle()))

    return Starlette(routes=[Route("/", page)], lifespan=triton)


def litestar_with(triton: TritonLifespan, make) -> Litestar:
    @get("/", dependencies={"model": Provide(triton.provide(make))})
    async def page(model: NamedDependency[Any]) -> Any:
        return await negated(model)

    return Litestar([page], lifespan=[triton], openapi_config=None, logging_config=None)


WITH_POOL = [fastapi_with, starlette_with, litestar_with]


async def negated(model) -> list[float]:
    answer = await model.one({"INPUT0": [1.5] * 16})
    return answer["OUTPUT0"][:2].tolist()


@asynccontextmanager
async def started(app) -> AbstractAsyncContextManager[Any]:
    """The application, after its lifespan has begun and until it has ended; gives its state."""
    came: asyncio.Queue = asyncio.Queue()
    went: asyncio.Queue = asyncio.Queue()
    state: dict[str, object] = {}
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": state, "app": app}
    serving = asyncio.create_task(app(scope, came.get, went.put))
    await came.put({"type": "lifespan.startup"})
    await _told(serving, went, "startup")
    try:
        yield state
    finally:
        await came.put({"type": "lifespan.shutdown"})
        await _told(serving, went, "shutdown")
        await serving


async def _told(serving, went, what: str) -> None:
    message = await went.get()
    if message["type"] != f"lifespan.{what}.complete":
        try:
            await serving
        except ExceptionGroup as group:  # Litestar's
            raise group.exceptions[0] from None
