"""The same web application twice: with tritonasync, and with tritonclient's ``grpc.aio``.

A request's body is a digit, 8 by 8 float32; the answer says which one it is, and how surely.
``TRITON_URL`` says where the server is.

Each is written as its users would: one pool, or one client, for the whole application.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import tritonclient.grpc.aio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from tritonclient.grpc import InferInput

from tritonasync import TritonPool
from tritonasync.integrations.asgi import CancelOnDisconnect, TritonErrors, TritonLifespan

DIGITS = [str(digit) for digit in range(10)]


def server() -> str:
    return os.environ["TRITON_URL"]


def ours() -> Starlette:
    """Return the application with tritonasync, its middlewares included."""
    triton = TritonLifespan(lambda: TritonPool(server()), ready=["digits"])
    digits = triton.provide(lambda pool: pool.classifier("digits"))

    async def classify(request: Request) -> JSONResponse:
        image = np.frombuffer(await request.body(), np.float32).reshape(1, 8, 8)
        found = await (await digits()).one(image)
        return JSONResponse({"label": found.label, "score": found.score})

    app = Starlette(routes=[Route("/", classify, methods=["POST"])], lifespan=triton)
    app.add_middleware(TritonErrors)
    app.add_middleware(CancelOnDisconnect)
    return app


def aio() -> Starlette:
    """Return the application with tritonclient."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with tritonclient.grpc.aio.InferenceServerClient(server()) as client:
            app.state.client = client
            yield

    async def classify(request: Request) -> JSONResponse:
        image = np.frombuffer(await request.body(), np.float32).reshape(1, 1, 8, 8)
        given = InferInput("IMAGE", [1, 1, 8, 8], "FP32")
        given.set_data_from_numpy(image)
        answer = await request.app.state.client.infer("digits", [given])
        logits = answer.as_numpy("LOGITS")[0]
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        best = int(scores.argmax())
        return JSONResponse({"label": DIGITS[best], "score": float(scores[best])})

    return Starlette(routes=[Route("/", classify, methods=["POST"])], lifespan=lifespan)


def nothing() -> Starlette:
    """Return the application without a model: what no client can be faster than."""

    async def classify(request: Request) -> JSONResponse:
        image = np.frombuffer(await request.body(), np.float32).reshape(1, 8, 8)
        await asyncio.sleep(0)  # so that requests take turns, as when they wait for a model
        return JSONResponse({"label": DIGITS[0], "score": float(image[0, 0, 0])})

    return Starlette(routes=[Route("/", classify, methods=["POST"])])


APPS: dict[str, Callable[[], Starlette]] = {"ours": ours, "aio": aio, "nothing": nothing}
