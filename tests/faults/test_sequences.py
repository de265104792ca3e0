"""Many sequences at once on two real servers: the state of each is on one of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import pytest

from tests.faults.load import server
from tritonasync import BatchPolicy, TritonPool
from tritonasync.serving import EmbeddedTriton

pytestmark = [pytest.mark.anyio, pytest.mark.server]

STEPS = 6
NUMBERS = range(1, 21)
NAMES: list[int | str] = [*NUMBERS, *(f"sequence {number}" for number in NUMBERS)]


@pytest.fixture(scope="module")
def two_servers() -> Iterator[list[EmbeddedTriton]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server("accumulate")) for _ in range(2)]


@pytest.mark.parametrize("batching", [BatchPolicy(), None], ids=["batched", "alone"])
async def test_all_steps_of_a_sequence_reach_the_server_that_has_its_state(two_servers, batching):
    urls = [server.grpc_url for server in two_servers]
    async with TritonPool(urls, batching=batching) as pool:
        values = {name: range(place, place + STEPS) for place, name in enumerate(NAMES)}
        model = pool.model("accumulate", idempotent=False)
        totals = await asyncio.gather(*[run(model, name, values[name]) for name in NAMES])
        assert dict(zip(NAMES, totals, strict=True)) == {
            name: list(accumulate(values[name])) for name in NAMES
        }
        routing = pool.statistics().routing
        assert sum(endpoint.attempts for endpoint in routing.endpoints) >= len(NAMES) * STEPS
        assert all(endpoint.attempts > 5 * STEPS for endpoint in routing.endpoints)
        assert routing.sequences == 0


async def run(model, name, values):
    """Make a sequence's steps one after the other; return the sums that the server gives."""
    totals = []
    for step, value in enumerate(values):
        parameters = {
            "sequence_id": name,
            "sequence_start": step == 0,
            "sequence_end": step == STEPS - 1,
        }
        answer = await model(VALUE=np.array([[value]], np.int32), parameters=parameters)
        totals.append(answer["TOTAL"].item())
    return totals


async def test_what_is_known_of_a_sequence_is_forgotten_at_its_end(two_servers):
    async with TritonPool([server.grpc_url for server in two_servers]) as pool:
        model = pool.model("accumulate", idempotent=False)
        one = np.ones((1, 1), np.int32)
        for known, flags in ((1, "sequence_start"), (1, ""), (0, "sequence_end")):
            parameters = {"sequence_id": "alone", **({flags: True} if flags else {})}
            await model(VALUE=one, parameters=parameters)
            assert pool.statistics().routing.sequences == known
