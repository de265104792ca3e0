"""The asynchronous, high-throughput SDK for NVIDIA Triton Inference Server.

Every public name is here. Each is imported when it is first asked for (PEP 562), so that programs
which need a part, such as the pytest plugin or ``python -m tritonasync.serving``, do not wait for
gRPC to be imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tritonasync.batching.statistics import BatchingStatistics
    from tritonasync.blocking import (
        BlockingAdmin,
        BlockingClassifier,
        BlockingDetector,
        BlockingEncoder,
        BlockingGenerator,
        BlockingLease,
        BlockingModel,
        BlockingPool,
        BlockingSequence,
        BlockingStream,
        BlockingTask,
    )
    from tritonasync.blocking_bulk import BlockingBulk
    from tritonasync.core.attempt import Attempt
    from tritonasync.core.errors import (
        AccessDeniedError,
        ConfigurationError,
        ConnectionLostError,
        ControlRefusedError,
        DeadlineExceededError,
        DecoupledModelError,
        DeviceError,
        InvalidInputError,
        InvalidRequestError,
        LoadFailedError,
        MemoryExhaustedError,
        MessageTooLargeError,
        MissingExtraError,
        ModelFailedError,
        ModelNotFoundError,
        ModelNotReadyError,
        ModelUnhealthyError,
        PlacementError,
        PoolClosedError,
        ProtocolError,
        QueueFullError,
        QueueTimeoutError,
        RegionExistsError,
        RegionInvalidError,
        RegionNotFoundError,
        ResponseOverflowError,
        RuntimeSetupError,
        SequenceLostError,
        SequenceNotFoundError,
        ServerError,
        ServerNotReadyError,
        ServerStartError,
        ServerUnreachableError,
        ServingError,
        SharedMemoryError,
        SlotTooSmallError,
        TlsError,
        TransportError,
        TritonError,
        UnsupportedError,
        UsageError,
        WrongContextError,
    )
    from tritonasync.core.policies import (
        BatchPolicy,
        MemoryPolicy,
        Padding,
        StreamPolicy,
        TlsConfig,
    )
    from tritonasync.core.reports import (
        BatchStatistics,
        Duration,
        IndexEntry,
        ModelConfig,
        ModelStatistics,
        ServerMetadata,
    )
    from tritonasync.core.resilience import EndpointSpec, HealthPolicy, RetryPolicy
    from tritonasync.core.values import ModelSpec, TensorSpec
    from tritonasync.handles.architecture import Preprocessed
    from tritonasync.handles.classifications import Classification, Classifications, ClassScore
    from tritonasync.handles.classifier import Classifier
    from tritonasync.handles.detector import Detector
    from tritonasync.handles.encoder import Encoder
    from tritonasync.handles.flow.bulk import BulkStream, Mappable
    from tritonasync.handles.flow.ledger import Failed, Progress
    from tritonasync.handles.flow.pipeline import Pipeline
    from tritonasync.handles.generator import Generator
    from tritonasync.handles.lease import LeasedInputs
    from tritonasync.handles.model import ModelHandle
    from tritonasync.handles.outputs import Outputs
    from tritonasync.handles.registry.config import HandleConfig
    from tritonasync.handles.registry.configs import ClassifierConfig, DetectorConfig, EncoderConfig
    from tritonasync.handles.registry.registry import (
        ModelRegistry,
        RegisteredModel,
        load_configs,
        register_model,
        register_model_type,
        registered_models,
    )
    from tritonasync.handles.sequence import SequenceHandle
    from tritonasync.handles.stream import ResponseStream
    from tritonasync.handles.task import TaskHandle
    from tritonasync.handles.vision.decoding.candidates import Candidates
    from tritonasync.handles.vision.detections import Detection, Detections
    from tritonasync.handles.vision.images import ImageOptions
    from tritonasync.memory.lender import MemoryStatistics
    from tritonasync.pool import TritonPool
    from tritonasync.processing.scaling import Scaling
    from tritonasync.processing.vectors import similarity
    from tritonasync.routing.member import EndpointHealth
    from tritonasync.routing.statistics import RoutingStatistics
    from tritonasync.stages import PoolStatistics
    from tritonasync.transport.admin import Admin
    from tritonasync.transport.choice import TransportChoice
    from tritonasync.transport.statistics import EndpointStatistics, SharingReport

__all__ = [
    "AccessDeniedError",
    "Admin",
    "Attempt",
    "BatchPolicy",
    "BatchStatistics",
    "BatchingStatistics",
    "BlockingAdmin",
    "BlockingBulk",
    "BlockingClassifier",
    "BlockingDetector",
    "BlockingEncoder",
    "BlockingGenerator",
    "BlockingLease",
    "BlockingModel",
    "BlockingPool",
    "BlockingSequence",
    "BlockingStream",
    "BlockingTask",
    "BulkStream",
    "Candidates",
    "ClassScore",
    "Classification",
    "Classifications",
    "Classifier",
    "ClassifierConfig",
    "ConfigurationError",
    "ConnectionLostError",
    "ControlRefusedError",
    "DeadlineExceededError",
    "DecoupledModelError",
    "Detection",
    "Detections",
    "Detector",
    "DetectorConfig",
    "DeviceError",
    "Duration",
    "Encoder",
    "EncoderConfig",
    "EndpointHealth",
    "EndpointSpec",
    "EndpointStatistics",
    "Failed",
    "Generator",
    "HandleConfig",
    "HealthPolicy",
    "ImageOptions",
    "IndexEntry",
    "InvalidInputError",
    "InvalidRequestError",
    "LeasedInputs",
    "LoadFailedError",
    "Mappable",
    "MemoryExhaustedError",
    "MemoryPolicy",
    "MemoryStatistics",
    "MessageTooLargeError",
    "MissingExtraError",
    "ModelConfig",
    "ModelFailedError",
    "ModelHandle",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "ModelRegistry",
    "ModelSpec",
    "ModelStatistics",
    "ModelUnhealthyError",
    "Outputs",
    "Padding",
    "Pipeline",
    "PlacementError",
    "PoolClosedError",
    "PoolStatistics",
    "Preprocessed",
    "Progress",
    "ProtocolError",
    "QueueFullError",
    "QueueTimeoutError",
    "RegionExistsError",
    "RegionInvalidError",
    "RegionNotFoundError",
    "RegisteredModel",
    "ResponseOverflowError",
    "ResponseStream",
    "RetryPolicy",
    "RoutingStatistics",
    "RuntimeSetupError",
    "Scaling",
    "SequenceHandle",
    "SequenceLostError",
    "SequenceNotFoundError",
    "ServerError",
    "ServerMetadata",
    "ServerNotReadyError",
    "ServerStartError",
    "ServerUnreachableError",
    "ServingError",
    "SharedMemoryError",
    "SharingReport",
    "SlotTooSmallError",
    "StreamPolicy",
    "TaskHandle",
    "TensorSpec",
    "TlsConfig",
    "TlsError",
    "TransportChoice",
    "TransportError",
    "TritonError",
    "TritonPool",
    "UnsupportedError",
    "UsageError",
    "WrongContextError",
    "load_configs",
    "register_model",
    "register_model_type",
    "registered_models",
    "similarity",
]

_NAMES = {
    "tritonasync.batching.statistics": ("BatchingStatistics",),
    "tritonasync.blocking": (
        "BlockingAdmin",
        "BlockingClassifier",
        "BlockingDetector",
        "BlockingEncoder",
        "BlockingGenerator",
        "BlockingLease",
        "BlockingModel",
        "BlockingPool",
        "BlockingSequence",
        "BlockingStream",
        "BlockingTask",
    ),
    "tritonasync.blocking_bulk": ("BlockingBulk",),
    "tritonasync.core.attempt": ("Attempt",),
    "tritonasync.core.errors": (
        "AccessDeniedError",
        "ConfigurationError",
        "ConnectionLostError",
        "ControlRefusedError",
        "DeadlineExceededError",
        "DecoupledModelError",
        "DeviceError",
        "InvalidInputError",
        "InvalidRequestError",
        "LoadFailedError",
        "MemoryExhaustedError",
        "MessageTooLargeError",
        "MissingExtraError",
        "ModelFailedError",
        "ModelNotFoundError",
        "ModelNotReadyError",
        "ModelUnhealthyError",
        "PlacementError",
        "PoolClosedError",
        "ProtocolError",
        "QueueFullError",
        "QueueTimeoutError",
        "RegionExistsError",
        "RegionInvalidError",
        "RegionNotFoundError",
        "ResponseOverflowError",
        "RuntimeSetupError",
        "SequenceLostError",
        "SequenceNotFoundError",
        "ServerError",
        "ServerNotReadyError",
        "ServerStartError",
        "ServerUnreachableError",
        "ServingError",
        "SharedMemoryError",
        "SlotTooSmallError",
        "TlsError",
        "TransportError",
        "TritonError",
        "UnsupportedError",
        "UsageError",
        "WrongContextError",
    ),
    "tritonasync.core.policies": (
        "BatchPolicy",
        "MemoryPolicy",
        "Padding",
        "StreamPolicy",
        "TlsConfig",
    ),
    "tritonasync.core.reports": (
        "BatchStatistics",
        "Duration",
        "IndexEntry",
        "ModelConfig",
        "ModelStatistics",
        "ServerMetadata",
    ),
    "tritonasync.core.resilience": (
        "EndpointSpec",
        "HealthPolicy",
        "RetryPolicy",
    ),
    "tritonasync.core.values": (
        "ModelSpec",
        "TensorSpec",
    ),
    "tritonasync.handles.architecture": ("Preprocessed",),
    "tritonasync.handles.flow.bulk": (
        "BulkStream",
        "Mappable",
    ),
    "tritonasync.handles.classifications": (
        "ClassScore",
        "Classification",
        "Classifications",
    ),
    "tritonasync.handles.classifier": ("Classifier",),
    "tritonasync.handles.registry.config": ("HandleConfig",),
    "tritonasync.handles.registry.configs": (
        "ClassifierConfig",
        "DetectorConfig",
        "EncoderConfig",
    ),
    "tritonasync.handles.vision.decoding.candidates": ("Candidates",),
    "tritonasync.handles.vision.detections": (
        "Detection",
        "Detections",
    ),
    "tritonasync.handles.detector": ("Detector",),
    "tritonasync.handles.encoder": ("Encoder",),
    "tritonasync.handles.generator": ("Generator",),
    "tritonasync.handles.vision.images": ("ImageOptions",),
    "tritonasync.handles.lease": ("LeasedInputs",),
    "tritonasync.handles.flow.ledger": (
        "Failed",
        "Progress",
    ),
    "tritonasync.handles.model": ("ModelHandle",),
    "tritonasync.handles.outputs": ("Outputs",),
    "tritonasync.handles.flow.pipeline": ("Pipeline",),
    "tritonasync.handles.registry.registry": (
        "ModelRegistry",
        "RegisteredModel",
        "load_configs",
        "register_model",
        "register_model_type",
        "registered_models",
    ),
    "tritonasync.handles.sequence": ("SequenceHandle",),
    "tritonasync.handles.stream": ("ResponseStream",),
    "tritonasync.handles.task": ("TaskHandle",),
    "tritonasync.memory.lender": ("MemoryStatistics",),
    "tritonasync.pool": ("TritonPool",),
    "tritonasync.processing.scaling": ("Scaling",),
    "tritonasync.processing.vectors": ("similarity",),
    "tritonasync.routing.member": ("EndpointHealth",),
    "tritonasync.routing.statistics": ("RoutingStatistics",),
    "tritonasync.stages": ("PoolStatistics",),
    "tritonasync.transport.admin": ("Admin",),
    "tritonasync.transport.choice": ("TransportChoice",),
    "tritonasync.transport.statistics": (
        "EndpointStatistics",
        "SharingReport",
    ),
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
