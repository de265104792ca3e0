"""This project's pool, with batching as it comes and without, by calls, by streams, in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from benchmarks.clients.base import AsyncClient
from benchmarks.clients.counts import count_registrations, counts_of
from benchmarks.clients.data import Array
from benchmarks.clients.protocol import Order, Outcome
from benchmarks.clients.responses import Ask
from benchmarks.clients.rounds import Call
from benchmarks.workloads import Workload
from tritonasync import StreamPolicy, TritonPool


class Batched(AsyncClient):
    """``TritonPool(url)``."""

    packages = ("tritonasync", "grpcio", "protobuf", "numpy")
    url: str
    pool: TritonPool

    def __init__(self) -> None:
        self.registrations = count_registrations()

    def make(self, url: str) -> TritonPool:
        """Return the pool, not open."""
        return TritonPool(url)

    async def open(self, url: str) -> None:
        """Open the pool."""
        self.url = url
        self.pool = await self.make(url).open()

    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run one round; what was copied to do it is counted."""
        before = counts_of(self.pool, self.registrations())
        outcome = await super().run(workload, items, order)
        done = counts_of(self.pool, self.registrations()) - before
        row_nbytes = items[0].nbytes // (workload.rows or 1)
        extras = done.extras(workload, outcome, row_nbytes)
        return replace(outcome, extras={**outcome.extras, **extras})

    async def aclose(self) -> None:
        """Close the pool."""
        await self.pool.aclose()

    async def caller(self, workload: Workload, item: Array) -> Call:
        """Return a call of ``one`` for a row, of the handle itself for a batch."""
        model = self.pool.model(workload.model)
        send = model.one if workload.rows is None else model

        async def call() -> Array:
            outputs = await send({"INPUT0": item})
            return outputs["OUTPUT0"]

        return call

    async def reader(self, workload: Workload, item: Array) -> Ask:
        """Return an iteration over ``stream``; the batch axis is there before."""
        model, batch = self.pool.model(workload.model), item[None]

        async def ask() -> AsyncIterator[Array]:
            async for outputs in model.stream({"INPUT0": batch}):
                yield outputs["OUTPUT0"]

        return ask


class Unbatched(Batched):
    """``TritonPool(url, batching=None)``."""

    def make(self, url: str) -> TritonPool:
        """Return the pool, not open."""
        return TritonPool(url, batching=None)


class Wire(Batched):
    """``TritonPool(url, shared_memory="off")``."""

    def make(self, url: str) -> TritonPool:
        """Return the pool, not open."""
        return TritonPool(url, shared_memory="off")


class Anew(Batched):
    """A new pool for each workload: what one has learned is not known to the next."""

    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run one round, the first one with a pool that has just been opened."""
        if order.prepare:
            await self.aclose()
            await self.open(self.url)
        return await super().run(workload, items, order)


class Placed(Anew):
    """Each call as a call of its own, with its tensors in shared memory whatever their size."""

    def make(self, url: str) -> TritonPool:
        """Return the pool, not open."""
        return TritonPool(url, batching=None, transport="unary", shared_memory="system")


class Unplaced(Anew):
    """The same with nothing in shared memory."""

    def make(self, url: str) -> TritonPool:
        """Return the pool, not open."""
        return TritonPool(url, batching=None, transport="unary", shared_memory="off")


class Unary(Batched):
    """Each call as a call of its own."""

    def make(self, url: str) -> TritonPool:
        """Return the pool, not open."""
        return TritonPool(url, batching=None, transport="unary")


class Streams(Batched):
    """As many streams as there are by default."""

    def make(self, url: str) -> TritonPool:
        """Return the pool, not open."""
        return TritonPool(url, batching=None, transport="stream")


class OneStream(Batched):
    """One stream, as the stock client's user has."""

    def make(self, url: str) -> TritonPool:
        """Return the pool, not open."""
        streams = StreamPolicy(max_streams=1)
        return TritonPool(url, batching=None, transport="stream", streams=streams)


class BatchedStreams(Batched):
    """Batches on streams."""

    def make(self, url: str) -> TritonPool:
        """Return the pool, not open."""
        return TritonPool(url, transport="stream")


class Auto(Anew):
    """Calls or streams, as the pool decides."""

    def make(self, url: str) -> TritonPool:
        """Return the pool, not open."""
        return TritonPool(url, batching=None, transport="auto")

    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run one round, and tell what was decided."""
        outcome = await super().run(workload, items, order)
        (endpoint,) = self.pool.statistics().endpoints
        ways = [choice.using == "stream" for choice in endpoint.choices]
        on_streams = sum(ways) / len(ways) if ways else 0.0
        return replace(outcome, extras={**outcome.extras, "on_streams": on_streams})
