"""This project's pool, with batching as it comes and without."""

from __future__ import annotations

from benchmarks.clients.base import AsyncClient
from benchmarks.clients.data import Array
from benchmarks.clients.rounds import Call
from benchmarks.workloads import Workload
from tritonasync import TritonPool


class Batched(AsyncClient):
    """``TritonPool(url)``."""

    packages = ("tritonasync", "grpcio", "protobuf", "numpy")
    pool: TritonPool

    async def open(self, url: str) -> None:
        """Open the pool."""
        self.pool = await TritonPool(url).open()

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


class Unbatched(Batched):
    """``TritonPool(url, batching=None)``."""

    async def open(self, url: str) -> None:
        """Open the pool."""
        self.pool = await TritonPool(url, batching=None).open()
