"""tritonclient's blocking gRPC client, called from threads."""

from __future__ import annotations

from collections.abc import Callable

import tritonclient.grpc as grpcclient

from benchmarks.clients.base import ThreadedClient
from benchmarks.clients.data import Array
from benchmarks.workloads import Workload


class Threads(ThreadedClient):
    """One client, which is safe to share, and a thread for each caller."""

    packages = ("tritonclient", "grpcio", "protobuf", "numpy")
    most_threads = 64

    async def open(self, url: str) -> None:
        """Connect."""
        self.client = grpcclient.InferenceServerClient(url)

    async def aclose(self) -> None:
        """Close the channel."""
        self.client.close()

    def blocking_caller(self, workload: Workload, item: Array) -> Callable[[], Array]:
        """Return a call; the batch axis is there before."""
        batch = item[None] if workload.rows is None else item

        def call() -> Array:
            tensor = grpcclient.InferInput("INPUT0", list(batch.shape), workload.datatype)
            tensor.set_data_from_numpy(batch)
            answer: Array = self.client.infer(workload.model, [tensor]).as_numpy("OUTPUT0")
            return answer

        return call
