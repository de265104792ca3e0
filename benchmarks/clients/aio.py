"""tritonclient's ``grpc.aio``, as its examples call it."""

from __future__ import annotations

import tritonclient.grpc.aio as grpcclient

from benchmarks.clients.base import AsyncClient
from benchmarks.clients.data import Array
from benchmarks.clients.rounds import Call
from benchmarks.workloads import Workload


class Aio(AsyncClient):
    """A request for each call."""

    packages: tuple[str, ...] = ("tritonclient", "grpcio", "protobuf", "numpy")
    client: grpcclient.InferenceServerClient

    async def open(self, url: str) -> None:
        """Connect."""
        self.client = grpcclient.InferenceServerClient(url)

    async def aclose(self) -> None:
        """Close the channel."""
        await self.client.close()

    async def caller(self, workload: Workload, item: Array) -> Call:
        """Return a call; the batch axis is there before."""
        batch = item[None] if workload.rows is None else item

        async def call() -> Array:
            return await infer(self.client, workload, batch)

        return call


async def infer(
    client: grpcclient.InferenceServerClient, workload: Workload, batch: Array
) -> Array:
    """Return the answer to a batch; what the libraries that batch are put around."""
    tensor = grpcclient.InferInput("INPUT0", list(batch.shape), workload.datatype)
    tensor.set_data_from_numpy(batch)
    result = await client.infer(workload.model, [tensor])
    answer: Array = result.as_numpy("OUTPUT0")
    return answer
