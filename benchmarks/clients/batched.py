"""Another library that batches in the process: batched around tritonclient's ``grpc.aio``."""

from __future__ import annotations

from functools import partial
from typing import Any

import batched.aio
import numpy as np

from benchmarks.clients import aio
from benchmarks.clients.data import Array
from benchmarks.clients.protocol import Order, Outcome
from benchmarks.clients.rounds import Call
from benchmarks.workloads import Workload

TIMEOUT_MS = 0.2
"""How long it sleeps while less than a batch is there; it does so without work, too. 0 would spin
and carried no more; with its default of 5 ms, 64 callers had a quarter of the rows."""


class Batched(aio.Aio):
    """A processor for each round. Its batches do not overlap."""

    packages = ("batched", *aio.Aio.packages)
    processor: Any = None

    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run one round, and end the processor, which has no end of its own."""
        self.processor = batched.aio.dynamically(
            partial(self._answer, workload),
            batch_size=workload.max_batch_size,
            timeout_ms=TIMEOUT_MS,
        )
        try:
            return await super().run(workload, items, order)
        finally:
            if self.processor._task is not None:  # noqa: SLF001 - else it disturbs the others
                self.processor._task.cancel()  # noqa: SLF001 - it sleeps: nothing is in flight

    async def caller(self, workload: Workload, item: Array) -> Call:
        """Return a call that joins a batch."""
        del workload
        process = self.processor

        async def call() -> Array:
            answer: Array = await process(item)
            return answer

        return call

    async def _answer(self, workload: Workload, rows: list[Array]) -> list[Array]:
        return list(await aio.infer(self.client, workload, np.stack(rows)))
