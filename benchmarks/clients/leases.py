"""This project's pool with inputs that are written in place: leases of shared memory.

As many rows are out at once as in the rounds of the others, in whole batches: what is leased is
sent alone.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import numpy as np

from benchmarks.clients import ours
from benchmarks.clients.data import Array
from benchmarks.clients.protocol import Order, Outcome
from benchmarks.clients.rounds import Call
from benchmarks.workloads import Workload


class LeasedAnew(ours.Batched):
    """A lease for each call, into which the caller copies its rows."""

    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run one round with whole batches."""
        grouped = whole_batches(workload)
        return await super().run(grouped, stacked(grouped, items), order)

    async def caller(self, workload: Workload, item: Array) -> Call:
        """Return a call that brings its rows along."""
        model, rows = self.pool.model(workload.model), len(item)

        async def call() -> Array:
            async with model.lease(rows) as slot:
                slot["INPUT0"][...] = item
                outputs = await model(slot)
            return outputs["OUTPUT0"]

        return call


class Leased(LeasedAnew):
    """A lease for each caller, whose rows are there before the round begins."""

    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run one round, and give the leases back."""
        async with AsyncExitStack() as self.leases:
            return await super().run(workload, items, order)

    async def caller(self, workload: Workload, item: Array) -> Call:
        """Write the rows, and return a call that sends them from where they are."""
        model = self.pool.model(workload.model)
        slot = await self.leases.enter_async_context(model.lease(len(item)))
        slot["INPUT0"][...] = item

        async def call() -> Array:
            return (await model(slot))["OUTPUT0"]

        return call


def whole_batches(workload: Workload) -> Workload:
    """Return the workload of single rows with as many rows out, in the largest batches."""
    rows = min(workload.max_batch_size, workload.callers)
    return replace(workload, rows=rows, callers=workload.callers // rows)


def stacked(grouped: Workload, items: list[Array]) -> list[Array]:
    """Return the batches of single rows."""
    rows = grouped.rows_per_call
    return [np.stack(items[at * rows : (at + 1) * rows]) for at in range(grouped.callers)]
