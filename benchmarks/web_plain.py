"""The web application of ``web_apps`` once more, each side of it, without a framework.

A framework takes its 40 us and more of each request, whichever client it calls. Here is what is
left: the protocol of ASGI, by hand.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
import tritonclient.grpc.aio
from tritonclient.grpc import InferInput

from benchmarks.web_apps import DIGITS, server
from tritonasync import TritonPool

Classify = Callable[[np.ndarray], Awaitable[tuple[str, float]]]
HEADERS = [(b"content-type", b"application/json")]


class Plain:
    """An ASGI application of one page, which says which digit a body is.

    Args:
        opens: Opens what classifies, for as long as the application lives.
    """

    def __init__(self, opens: Callable[[], AbstractAsyncContextManager[Classify]]) -> None:
        self._opens = opens
        self._classify: Classify | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        label, score = await self._classify(np.frombuffer(body, np.float32).reshape(1, 8, 8))
        answer = json.dumps({"label": label, "score": score}).encode()
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, length]})
        await send({"type": "http.response.body", "body": answer})

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        async with self._opens() as self._classify:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def ours() -> Plain:
    """Return the application with tritonasync."""

    @asynccontextmanager
    async def opens() -> AsyncIterator[Classify]:
        async with TritonPool(server()) as pool:

            async def classify(image: np.ndarray) -> tuple[str, float]:
                found = await pool.classifier("digits").one(image)
                return found.label, found.score

            yield classify

    return Plain(opens)


def aio() -> Plain:
    """Return the application with tritonclient."""

    @asynccontextmanager
    async def opens() -> AsyncIterator[Classify]:
        async with tritonclient.grpc.aio.InferenceServerClient(server()) as client:

            async def classify(image: np.ndarray) -> tuple[str, float]:
                given = InferInput("IMAGE", [1, 1, 8, 8], "FP32")
                given.set_data_from_numpy(image[None])
                answer = await client.infer("digits", [given])
                logits = answer.as_numpy("LOGITS")[0]
                scores = np.exp(logits - logits.max())
                scores /= scores.sum()
                best = int(scores.argmax())
                return DIGITS[best], float(scores[best])

            yield classify

    return Plain(opens)


def nothing() -> Plain:
    """Return the application without a model."""

    @asynccontextmanager
    async def opens() -> AsyncIterator[Classify]:
        async def classify(image: np.ndarray) -> tuple[str, float]:
            return DIGITS[0], float(image[0, 0, 0])

        yield classify

    return Plain(opens)


APPS: dict[str, Callable[[], Plain]] = {"ours": ours, "aio": aio, "nothing": nothing}
