"""Thousands of calls that time out or are cancelled, and the server lives.

The same with the stock client's cancellation kills Triton 2.51 within seconds. The server here is
one of its own, since a failure would take it down.
"""

import asyncio
import random

import numpy as np
import pytest

from tritonasync import TritonPool
from tritonasync.core.errors import DeadlineExceededError
from tritonasync.serving import EmbeddedTriton

pytestmark = [pytest.mark.anyio, pytest.mark.server]

ROW = np.ones((1, 16), np.float32)


@pytest.fixture(scope="module")
def throwaway():
    with EmbeddedTriton("tests/models", model_control="explicit", load_models=["ident"]) as triton:
        yield triton


@pytest.fixture
async def pool(throwaway):
    # One by one: a batch of them all may be answered in time.
    async with TritonPool(throwaway.grpc_url, batching=None, close_timeout_s=60) as pool:
        await pool.model("ident")(INPUT0=ROW)
        yield pool


async def test_six_thousand_expired_calls(pool, throwaway):
    model, chance, expired = pool.model("ident"), random.Random(1), 0
    for _ in range(60):
        results = await asyncio.gather(
            *(model(INPUT0=ROW, timeout_s=chance.uniform(0.0005, 0.005)) for _ in range(100)),
            return_exceptions=True,
        )
        expired += sum(isinstance(result, DeadlineExceededError) for result in results)
    assert expired > 1000
    await _all_ended(pool)
    assert throwaway.running
    assert pool.statistics().endpoints[0].failed == 0
    np.testing.assert_array_equal((await model(INPUT0=ROW))["OUTPUT0"], ROW)


async def test_six_thousand_cancelled_calls(pool, throwaway):
    model, chance, cancelled = pool.model("ident"), random.Random(2), 0
    loop = asyncio.get_running_loop()
    for _ in range(60):
        calls = [asyncio.create_task(model(INPUT0=ROW)) for _ in range(100)]
        for call in calls:
            loop.call_later(chance.uniform(0, 0.004), call.cancel)
        await asyncio.wait(calls)
        cancelled += sum(call.cancelled() for call in calls)
    assert cancelled > 1000
    await _all_ended(pool)
    assert throwaway.running
    assert pool.statistics().endpoints[0].failed == 0
    np.testing.assert_array_equal((await model(INPUT0=ROW))["OUTPUT0"], ROW)


async def _all_ended(pool):
    async with asyncio.timeout(60):
        while pool.statistics().endpoints[0].in_flight:
            await asyncio.sleep(0.01)
