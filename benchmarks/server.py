"""The server under all clients, and what it counts.

Owns: which models are served, and the counts' differences over a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from benchmarks.workloads import Workload
from tritonasync.serving import EmbeddedTriton, TritonRuntime

HERE = Path(__file__).parent
REPOSITORIES = (HERE.parent / "tests" / "models", HERE / "models")


class ServerGoneError(Exception):
    """The server does not answer any more."""


@dataclass(frozen=True, slots=True)
class Counts:
    """A model's statistics: since the server's start, or of a round.

    Attributes:
        rows: Rows answered.
        executions: Batches that the model ran.
        busy_s: Seconds that they took, input and output included, queueing not.
        full: Batches of ``max_batch_size`` rows among them.
        full_s: Seconds that these took.
    """

    rows: int = 0
    executions: int = 0
    busy_s: float = 0.0
    full: int = 0
    full_s: float = 0.0

    def __sub__(self, earlier: Counts) -> Counts:
        """Return what came since."""
        return Counts(
            self.rows - earlier.rows,
            self.executions - earlier.executions,
            self.busy_s - earlier.busy_s,
            self.full - earlier.full,
            self.full_s - earlier.full_s,
        )

    def limit_rows_per_s(self, workload: Workload) -> float | None:
        """Return what the model could carry if it ran full batches without a break.

        If none was full, as if a full one took as long as those that were.
        """
        if self.full and self.full_s:
            return workload.max_batch_size * self.full / self.full_s
        if self.executions and self.busy_s:
            return workload.max_batch_size * self.executions / self.busy_s
        return None


class Server:
    """A real tritonserver with the models of some workloads.

    Args:
        workloads: What is going to be measured.
        runtime: Where tritonserver is.
        compiled: A repository of the models that were made for this run.
    """

    def __init__(
        self, workloads: Sequence[Workload], runtime: TritonRuntime, compiled: Path
    ) -> None:
        self.triton = EmbeddedTriton(
            (*REPOSITORIES, compiled),
            runtime=runtime,
            model_control="explicit",
            load_models=sorted({workload.model for workload in workloads}),
        )
        self._client: Any = None

    @property
    def url(self) -> str:
        """Where gRPC is served."""
        return self.triton.grpc_url

    def __enter__(self) -> Self:
        self.triton.start()
        self._client = tritonclient.grpc.InferenceServerClient(self.url)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()
        self.triton.stop()

    def version(self) -> str:
        """Return its version."""
        return str(self._client.get_server_metadata().version)

    def revive(self) -> bool:
        """Start it again if it has ended; whether it had."""
        if self.triton.running:
            return False
        self._client.close()
        self.triton.restart()
        # After a restart gRPC's shared connection waits for about a second before it is tried.
        self._client = tritonclient.grpc.InferenceServerClient(
            self.url, channel_args=[("grpc.use_local_subchannel_pool", 1)]
        )
        return True

    def counts(self, workload: Workload) -> Counts:
        """Return what a workload's model has done so far.

        Raises:
            ServerGoneError: The server does not answer.
        """
        try:
            (model,) = self._client.get_inference_statistics(workload.model).model_stats
        except InferenceServerException as error:
            raise ServerGoneError(f"the server does not answer: {error}") from error
        full = [batch for batch in model.batch_stats if batch.batch_size == workload.max_batch_size]
        return Counts(
            rows=model.inference_count,
            executions=model.execution_count,
            busy_s=_busy_s(model.batch_stats),
            full=sum(batch.compute_infer.count for batch in full),
            full_s=_busy_s(full),
        )


def _busy_s(batches: Iterable[Any]) -> float:
    """Return how long batches took, in seconds."""
    nanoseconds = sum(
        int(each.compute_input.ns + each.compute_infer.ns + each.compute_output.ns)
        for each in batches
    )
    return nanoseconds / 1e9
