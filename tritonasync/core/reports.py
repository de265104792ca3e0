"""What a server reports of itself and its models: the typed answers of the administration calls.

Owns: plain immutable values. Durations are seconds, counts are since the model was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """A server's name, version and the extensions that it says it has.

    An extension listed is no proof that it works: a server without a GPU lists
    ``cuda_shared_memory`` as well (seen on 2.51).
    """

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One model version in the server's repository index.

    Attributes:
        name: The model's name.
        version: The version; empty for a model that has none loaded.
        state: ``"READY"``, ``"LOADING"``, ``"UNLOADING"``, ``"UNAVAILABLE"`` or empty.
        reason: Why it is not ready, in the server's words.
    """

    name: str
    version: str
    state: str
    reason: str

    @property
    def ready(self) -> bool:
        """Whether this version answers."""
        return self.state == "READY"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's configuration as the server uses it.

    Attributes:
        name: The model's name.
        platform: Platform of older configurations, such as ``"ensemble"``; empty where a backend is
            named.
        backend: The backend that runs it, such as ``"python"``.
        max_batch_size: The most rows of one request; 0 without a batch axis.
        decoupled: Whether a request may have zero or many responses.
        stateful: Whether a sequence batcher is configured.
        dynamic_batching: Whether the server gathers requests into batches.
        label_files: The label file's name by output, where one is configured.
        document: The whole configuration as nested dicts and lists, with the names of
            ``config.pbtxt``; 64-bit integers are strings, as protobuf's JSON mapping has them.
    """

    name: str
    platform: str
    backend: str
    max_batch_size: int
    decoupled: bool
    stateful: bool
    dynamic_batching: bool
    label_files: Mapping[str, str]
    document: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and how long it took in all.

    Attributes:
        count: How often.
        total_s: The sum of all durations, in seconds.
    """

    count: int
    total_s: float

    @property
    def mean_s(self) -> float:
        """The mean duration in seconds; 0 if it never happened."""
        return self.total_s / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """What the server spent on executions of one batch size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What one version of a model did since it was loaded.

    Attributes:
        name: The model's name.
        version: The version.
        last_inference_ms: When it last ran, in milliseconds since the epoch; 0 for never.
        inference_count: Rows answered (a request of n rows counts n).
        execution_count: Times the model ran; ``inference_count / execution_count`` is the mean
            batch that the server reached.
        success: Requests answered, and their time from arrival to answer.
        fail: Requests failed.
        queue: Time in the server's queue.
        compute_input: Time to prepare inputs.
        compute_infer: Time in the model.
        compute_output: Time to prepare outputs.
        cache_hit: Answers from the response cache.
        cache_miss: Look-ups that found nothing there.
        batches: The same per batch size executed.
    """

    name: str
    version: str
    last_inference_ms: int
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration
    batches: tuple[BatchStatistics, ...]

    @property
    def mean_batch_size(self) -> float:
        """Rows per execution; 0 if the model never ran."""
        return self.inference_count / self.execution_count if self.execution_count else 0.0
