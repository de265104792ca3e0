"""What routing costs a batch: over three endpoints, beside one, and beside none at all.

In one process, with endpoints that answer at once, so that nothing else is timed; turn about, CPU
time of the one thread.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from benchmarks.samples import Figure
from tritonasync.core.deadline import Deadline
from tritonasync.core.resilience import HealthPolicy, RetryPolicy
from tritonasync.core.values import Call, ModelSpec, Reply
from tritonasync.routing.router import Router

ALLOWED_US = 3.0
"""What three endpoints may cost a batch over one."""

_CALL = Call("ident", "", (), rows=256)
_REPLY = Reply("ident", "1", {})


class Instant:
    """An endpoint that answers at once."""

    def __init__(self, name: str) -> None:
        self.target = f"{name}:8001"

    async def infer(self, call: Call) -> Reply:
        return _REPLY

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        return ModelSpec(model, version, (), "", 256, (), ())

    async def ready(self, deadline: Deadline) -> bool:
        return True

    async def model_ready(self, model: str, version: str, deadline: Deadline) -> bool:
        return True

    def silent_since(self) -> float:
        return math.inf

    def let_go(self, reason: str) -> None:
        pass


def run(*, quick: bool) -> list[Figure]:
    """Time a call with no router, over one endpoint, and over three."""
    return asyncio.run(_run(rounds=5 if quick else 15, calls=5_000 if quick else 20_000))


async def _run(rounds: int, calls: int) -> list[Figure]:
    bare = Instant("bare")
    one, three = await _router(1), await _router(3)
    try:
        times = [
            [await _time_us(infer, calls) for infer in (bare.infer, one.infer, three.infer)]
            for _ in range(rounds + 1)
        ][1:]  # the first warms up
    finally:
        for router in (one, three):
            await router.stop()
    none_us, one_us, three_us = zip(*times, strict=True)
    extra = [three - one for one, three in zip(one_us, three_us, strict=True)]
    return [
        Figure("three endpoints over one, beside 3 µs", "µs", extra, [ALLOWED_US] * rounds, 1.0),
        Figure("a call by way of a router / a plain await", "µs", one_us, none_us, None),
    ]


async def _router(endpoints: int) -> Router:
    router = Router(RetryPolicy(), HealthPolicy())
    for index in range(endpoints):
        router.fleet.add(Instant(f"gpu{index}"), weight=1.0)
    return router


async def _time_us(infer: Callable[[Call], Awaitable[Reply]], calls: int) -> float:
    began = time.thread_time()
    for _ in range(calls):
        await infer(_CALL)
    return (time.thread_time() - began) / calls * 1e6
