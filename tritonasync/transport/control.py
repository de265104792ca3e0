"""One server's calls beside inference: liveness, signatures, configuration, index, load and unload.

Owns: the protobuf messages of these calls; above this file they are values of ``core``. Refuses to
know: caching (``catalog``), what a user may leave out (``admin``).

Sources: the KServe v2 protocol (ServerLive … ModelMetadata) and Triton's extensions of it (model
configuration, model repository, statistics).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any, Final, cast

from tritonclient.grpc import model_config_pb2

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ProtocolError, Stage
from tritonasync.core.reports import (
    BatchStatistics,
    Duration,
    IndexEntry,
    ModelConfig,
    ModelStatistics,
    ServerMetadata,
)
from tritonasync.core.values import DATATYPES, Datatype, ImageLayout, ModelSpec, TensorSpec
from tritonasync.transport.endpoint import Endpoint
from tritonasync.transport.protobuf import ask, pb

# Seen as a plain module its members are Any, as those of ``pb``: each answer becomes a typed value
# within its own function below.
_config_pb: Final = cast("ModuleType", model_config_pb2)

_LAYOUTS: Final[Mapping[int, ImageLayout]] = {
    _config_pb.ModelInput.FORMAT_NCHW: "NCHW",
    _config_pb.ModelInput.FORMAT_NHWC: "NHWC",
}

_IDLE_US: Final = 1_000_000
"""What ``max_sequence_idle_microseconds`` is where it is left out."""


class Control:
    """The typed administration calls of one endpoint.

    Every method raises :class:`~tritonasync.core.errors.DeadlineExceededError` when its deadline
    passes, ``ServerError`` and ``TransportError`` as the call failed.

    Args:
        endpoint: Where to. Borrowed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    @property
    def target(self) -> str:
        """The gRPC target of the server."""
        return self._endpoint.target

    async def live(self, deadline: Deadline) -> bool:
        """Return whether the server says it is alive."""
        answer = await self._call("ServerLive", pb.ServerLiveRequest(), deadline)
        return bool(answer.live)

    async def ready(self, deadline: Deadline) -> bool:
        """Return whether the server says that it, and every model it must load, is ready."""
        answer = await self._call("ServerReady", pb.ServerReadyRequest(), deadline)
        return bool(answer.ready)

    async def model_ready(self, model: str, version: str, deadline: Deadline) -> bool:
        """Return whether a model (one version of it, or any) answers."""
        request = pb.ModelReadyRequest(name=model, version=version)
        answer = await self._call("ModelReady", request, deadline, model=model)
        return bool(answer.ready)

    async def server_metadata(self, deadline: Deadline) -> ServerMetadata:
        """Return the server's name, version and extensions."""
        answer = await self._call("ServerMetadata", pb.ServerMetadataRequest(), deadline)
        return ServerMetadata(answer.name, answer.version, tuple(answer.extensions))

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return a model's signature: its metadata, and what only its configuration tells."""
        metadata = await self._metadata(model, version, deadline)
        config = await self._config(model, version, deadline)
        return _model_spec(version, metadata, config, self.target)

    async def config(self, model: str, version: str, deadline: Deadline) -> ModelConfig:
        """Return a model's configuration."""
        return _model_config(await self._config(model, version, deadline))

    async def is_decoupled(self, model: str, version: str, deadline: Deadline) -> bool:
        """Return whether a request to a model may have zero or many responses."""
        config = await self._config(model, version, deadline)
        return bool(config.model_transaction_policy.decoupled)

    async def uses_gpu(self, model: str, version: str, deadline: Deadline) -> bool:
        """Return whether a model takes its inputs in a GPU's memory: all of its instances do."""
        config = await self._config(model, version, deadline)
        forced = config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value
        if config.backend == "python" and forced.lower() != "no":
            return False
        kinds = {group.kind for group in config.instance_group}
        if config.model_transaction_policy.decoupled or not kinds:
            return False
        return kinds == {_config_pb.ModelInstanceGroup.KIND_GPU}

    async def index(self, deadline: Deadline, *, ready_only: bool = False) -> list[IndexEntry]:
        """Return the models in the server's repositories, or only those that are ready."""
        request = pb.RepositoryIndexRequest(ready=ready_only)
        answer = await self._call("RepositoryIndex", request, deadline)
        return [IndexEntry(m.name, m.version, m.state, m.reason) for m in answer.models]

    async def statistics(
        self, model: str, version: str, deadline: Deadline
    ) -> list[ModelStatistics]:
        """Return statistics of each loaded version; of all models if ``model`` is empty."""
        request = pb.ModelStatisticsRequest(name=model, version=version)
        answer = await self._call("ModelStatistics", request, deadline, model=model or None)
        return [_model_statistics(entry) for entry in answer.model_stats]

    async def load(
        self, model: str, config: str | None, files: Mapping[str, bytes], deadline: Deadline
    ) -> None:
        """Load or reload a model; ``config`` is JSON, ``files`` are by path below the model."""
        request = pb.RepositoryModelLoadRequest(model_name=model)
        if config is not None:
            request.parameters["config"].string_param = config
        for path, content in files.items():
            request.parameters[f"file:{path}"].bytes_param = content
        await self._call("RepositoryModelLoad", request, deadline, model=model, repeatable=False)

    async def unload(self, model: str, deadline: Deadline, *, dependents: bool = False) -> None:
        """Begin to unload a model; the server answers before it is gone (server #4844)."""
        request = pb.RepositoryModelUnloadRequest(model_name=model)
        request.parameters["unload_dependents"].bool_param = dependents
        await self._call("RepositoryModelUnload", request, deadline, model=model, repeatable=False)

    async def _metadata(self, model: str, version: str, deadline: Deadline) -> Any:
        request = pb.ModelMetadataRequest(name=model, version=version)
        return await self._call("ModelMetadata", request, deadline, model=model, stage="metadata")

    async def _config(self, model: str, version: str, deadline: Deadline) -> Any:
        request = pb.ModelConfigRequest(name=model, version=version)
        answer = await self._call("ModelConfig", request, deadline, model=model, stage="metadata")
        return answer.config

    async def _call(
        self,
        method: str,
        request: Any,
        deadline: Deadline,
        *,
        model: str | None = None,
        stage: Stage = "server",
        repeatable: bool = True,
    ) -> Any:
        """Send a protobuf message and parse the answer; a question may always be asked again."""
        return await ask(
            self._endpoint,
            method,
            request,
            deadline,
            stage=stage,
            model=model,
            repeatable=repeatable,
        )


def _model_spec(version: str, metadata: Any, config: Any, target: str) -> ModelSpec:
    given = {tensor.name: tensor for tensor in config.input}
    labels = {tensor.name: tensor.label_filename for tensor in config.output}
    return ModelSpec(
        name=metadata.name,
        version=version,
        versions=tuple(metadata.versions),
        platform=metadata.platform,
        max_batch_size=config.max_batch_size,
        inputs=tuple(_input_spec(t, target, given.get(t.name)) for t in metadata.inputs),
        outputs=tuple(
            replace(_tensor_spec(t, target), label_filename=labels.get(t.name, ""))
            for t in metadata.outputs
        ),
        decoupled=config.model_transaction_policy.decoupled,
        stateful=config.HasField("sequence_batching"),
        **_sequences(config),
    )


def _sequences(config: Any) -> dict[str, Any]:
    """Return what a configuration says of the ids of sequences, and how long they may idle."""
    if not config.HasField("sequence_batching"):
        return {}
    batching = config.sequence_batching
    controls = [control for tensor in batching.control_input for control in tensor.control]
    told = [
        "string" if control.data_type == _config_pb.TYPE_STRING else "integer"
        for control in controls
        if control.kind == control.CONTROL_SEQUENCE_CORRID
    ]
    return {
        "sequence_ids": told[0] if told else "any",
        "sequence_idle_s": (batching.max_sequence_idle_microseconds or _IDLE_US) / 1e6,
    }


def _input_spec(tensor: Any, target: str, config: Any | None) -> TensorSpec:
    spec = _tensor_spec(tensor, target)
    if config is None:  # not in the configuration, as in a version of a model's own
        return spec
    return replace(spec, optional=config.optional, layout=_LAYOUTS.get(config.format))


def _tensor_spec(tensor: Any, target: str) -> TensorSpec:
    if tensor.datatype not in DATATYPES:
        raise ProtocolError(
            f"{target}: tensor {tensor.name!r} has the unknown datatype {tensor.datatype!r}",
            endpoint=target,
        )
    datatype: Datatype = tensor.datatype
    return TensorSpec(tensor.name, datatype, tuple(tensor.shape))


def _model_config(config: Any) -> ModelConfig:
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - 8 ms, seldom needed

    document = cast("dict[str, object]", MessageToDict(config, preserving_proto_field_name=True))
    return ModelConfig(
        name=config.name,
        platform=config.platform,
        backend=config.backend,
        max_batch_size=config.max_batch_size,
        decoupled=config.model_transaction_policy.decoupled,
        stateful=config.HasField("sequence_batching"),
        dynamic_batching=config.HasField("dynamic_batching"),
        label_files={t.name: t.label_filename for t in config.output if t.label_filename},
        document=document,
    )


def _duration(value: Any) -> Duration:
    return Duration(value.count, value.ns / 1e9)


def _model_statistics(entry: Any) -> ModelStatistics:
    spent = entry.inference_stats
    return ModelStatistics(
        name=entry.name,
        version=entry.version,
        last_inference_ms=entry.last_inference,
        inference_count=entry.inference_count,
        execution_count=entry.execution_count,
        success=_duration(spent.success),
        fail=_duration(spent.fail),
        queue=_duration(spent.queue),
        compute_input=_duration(spent.compute_input),
        compute_infer=_duration(spent.compute_infer),
        compute_output=_duration(spent.compute_output),
        cache_hit=_duration(spent.cache_hit),
        cache_miss=_duration(spent.cache_miss),
        batches=tuple(
            BatchStatistics(
                batch.batch_size,
                _duration(batch.compute_input),
                _duration(batch.compute_infer),
                _duration(batch.compute_output),
            )
            for batch in entry.batch_stats
        ),
    )
