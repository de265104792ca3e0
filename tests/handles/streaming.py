"""Streams of a model on the fakes, for the tests of both ends of their life."""

from __future__ import annotations

import asyncio

import numpy as np

from tests.handles.fakes import spec
from tritonasync.core.errors import ModelFailedError

SERVED = spec([("X", "FP32", (-1, 4))], decoupled=True)
ROWS = np.zeros((2, 4), np.float32)


def out(number):
    return {"OUT": np.array([number])}


def numbers(outputs):
    return [output["OUT"].item() for output in outputs]


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


def failed(kind=ModelFailedError):
    return kind("no", code="INTERNAL", details="no")


async def drained(stream, got):
    async for output in stream:
        got.append(output)


def ask(stream):
    """A task that waits for what comes next."""
    return asyncio.get_running_loop().create_task(anext(stream, None))


async def begun(model, invoker, *items):
    """A stream that has given its first response, and the fake behind it."""
    stream = model.stream(X=ROWS)
    first = ask(stream)
    await turns()
    invoker.streams[-1].tell(out(0), *items)
    assert (await first)["OUT"] == [0]
    return stream, invoker.streams[-1]
