"""PyTriton's ``AsyncioModelClient``: ``infer_sample`` for a row, ``infer_batch`` for a batch."""

from __future__ import annotations

from pytriton.client import AsyncioModelClient

from benchmarks.clients.base import AsyncClient
from benchmarks.clients.data import Array
from benchmarks.clients.rounds import Call
from benchmarks.workloads import Workload


class PyTriton(AsyncClient):
    """A client for each model, over gRPC."""

    packages = ("nvidia-pytriton", "tritonclient", "grpcio", "protobuf", "numpy")

    async def open(self, url: str) -> None:
        """Remember the server: a client belongs to a model."""
        self.url = f"grpc://{url}"
        self.clients: dict[str, AsyncioModelClient] = {}

    async def aclose(self) -> None:
        """Close them all."""
        for client in self.clients.values():
            await client.close()

    async def caller(self, workload: Workload, item: Array) -> Call:
        """Return a call."""
        if workload.model not in self.clients:
            self.clients[workload.model] = AsyncioModelClient(self.url, workload.model)
        client = self.clients[workload.model]
        send = client.infer_sample if workload.rows is None else client.infer_batch

        async def call() -> Array:
            answer: Array = (await send(INPUT0=item))["OUTPUT0"]
            return answer

        return call
