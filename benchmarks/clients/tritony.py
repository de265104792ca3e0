"""tritony's client around ``grpc.aio``."""

from __future__ import annotations

from tritony import InferenceClient

from benchmarks.clients.base import AsyncClient
from benchmarks.clients.data import Array
from benchmarks.clients.rounds import Call
from benchmarks.workloads import Workload


class Tritony(AsyncClient):
    """``aio_infer``, with a client for each model."""

    packages = ("tritony", "tritonclient", "grpcio", "protobuf", "numpy")

    async def open(self, url: str) -> None:
        """Remember the server: a client belongs to a model."""
        self.url = url
        self.clients: dict[str, InferenceClient] = {}

    async def aclose(self) -> None:
        """Close them all."""
        for client in self.clients.values():
            await client.async_close()

    async def caller(self, workload: Workload, item: Array) -> Call:
        """Return a call; the batch axis is there before."""
        if workload.model not in self.clients:
            self.clients[workload.model] = InferenceClient.create_with_asyncio(
                workload.model, self.url
            )
        client = self.clients[workload.model]
        batch = item[None] if workload.rows is None else item

        async def call() -> Array:
            answer: Array = await client.aio_infer(batch)
            return answer

        return call
