"""One round of a workload whose model is decoupled, for any client: readers of many responses.

Owns: the loop, the clocks, the count of responses. Refuses to know: which client it is.

Every response that was asked for is read, as in ``rounds``, and a request with another number of
responses than the model gives has failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from time import perf_counter

from benchmarks.clients.data import Array
from benchmarks.clients.protocol import Order, Outcome
from benchmarks.clients.rounds import Span, Tally
from benchmarks.workloads import Workload

Ask = Callable[[], AsyncIterator[Array]]
"""Sends one caller's item once, as the client's user would, and yields each response's array."""


async def run(
    workload: Workload, items: Sequence[Array], asks: Sequence[Ask], order: Order
) -> Outcome:
    """Run one round in the event loop."""
    tally, span = Tally(), Span()
    ends = perf_counter() + order.seconds
    await asyncio.gather(*(_reader(i, ask, workload, ends, tally) for i, ask in enumerate(asks)))
    return span.outcome(workload, items, tally)


async def _reader(index: int, ask: Ask, workload: Workload, ends: float, tally: Tally) -> None:
    """Ask again and again, each time when the last response is there; after an error no more."""
    try:
        while True:
            began = perf_counter()
            answer, first = await _read(ask, workload)
            now = perf_counter()
            tally.latencies.append((first if workload.kind == "first" else now) - began)
            if now >= ends:
                break
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is counted
        tally.failed(error)
    else:
        tally.answers[index] = answer


async def _read(ask: Ask, workload: Workload) -> tuple[Array, float]:
    """Return the last response to a request, and when the first one came."""
    count, first, last = 0, 0.0, None
    async for answer in ask():
        if not count:
            first = perf_counter()
        count += 1
        last = answer
    if last is None or count != workload.responses:
        raise ValueError(f"{count} responses came, and not {workload.responses}")
    return last, first
