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
    )
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
    from tritonasync.handles.classifications import Classification, Classifications, ClassScore
    from tritonasync.handles.classifier import Classifier
    from tritonasync.handles.decoders import Candidates
    from tritonasync.handles.detections import Detection, Detections
    from tritonasync.handles.detector import Detector
    from tritonasync.handles.encoder import Encoder
    from tritonasync.handles.generator import Generator
    from tritonasync.handles.lease import LeasedInputs
    from tritonasync.handles.model import ModelHandle
    from tritonasync.handles.outputs import Outputs
    from tritonasync.handles.sequence import SequenceHandle
    from tritonasync.handles.stream import ResponseStream
    from tritonasync.memory.lender import MemoryStatistics
    from tritonasync.pool import TritonPool
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
    "BlockingClassifier",
    "BlockingDetector",
    "BlockingEncoder",
    "BlockingGenerator",
    "BlockingLease",
    "BlockingModel",
    "BlockingPool",
    "BlockingSequence",
    "BlockingStream",
    "Candidates",
    "ClassScore",
    "Classification",
    "Classifications",
    "Classifier",
    "ConfigurationError",
    "ConnectionLostError",
    "ControlRefusedError",
    "DeadlineExceededError",
    "DecoupledModelError",
    "Detection",
    "Detections",
    "Detector",
    "DeviceError",
    "Duration",
    "Encoder",
    "EndpointHealth",
    "EndpointSpec",
    "EndpointStatistics",
    "Generator",
    "HealthPolicy",
    "IndexEntry",
    "InvalidInputError",
    "InvalidRequestError",
    "LeasedInputs",
    "LoadFailedError",
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
    "ModelSpec",
    "ModelStatistics",
    "ModelUnhealthyError",
    "Outputs",
    "Padding",
    "PlacementError",
    "PoolClosedError",
    "PoolStatistics",
    "ProtocolError",
    "QueueFullError",
    "QueueTimeoutError",
    "RegionExistsError",
    "RegionInvalidError",
    "RegionNotFoundError",
    "ResponseOverflowError",
    "ResponseStream",
    "RetryPolicy",
    "RoutingStatistics",
    "RuntimeSetupError",
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
    ),
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
    "tritonasync.core.resilience": ("EndpointSpec", "HealthPolicy", "RetryPolicy"),
    "tritonasync.core.values": (
        "ModelSpec",
        "TensorSpec",
    ),
    "tritonasync.handles.classifications": ("Classification", "Classifications", "ClassScore"),
    "tritonasync.handles.classifier": ("Classifier",),
    "tritonasync.handles.decoders": ("Candidates",),
    "tritonasync.handles.detections": ("Detection", "Detections"),
    "tritonasync.handles.detector": ("Detector",),
    "tritonasync.handles.encoder": ("Encoder",),
    "tritonasync.handles.generator": ("Generator",),
    "tritonasync.handles.lease": ("LeasedInputs",),
    "tritonasync.memory.lender": ("MemoryStatistics",),
    "tritonasync.handles.model": ("ModelHandle",),
    "tritonasync.handles.outputs": ("Outputs",),
    "tritonasync.handles.stream": ("ResponseStream",),
    "tritonasync.pool": ("TritonPool",),
    "tritonasync.routing.member": ("EndpointHealth",),
    "tritonasync.routing.statistics": ("RoutingStatistics",),
    "tritonasync.stages": ("PoolStatistics",),
    "tritonasync.transport.admin": ("Admin",),
    "tritonasync.handles.sequence": ("SequenceHandle",),
    "tritonasync.transport.choice": ("TransportChoice",),
    "tritonasync.transport.statistics": ("EndpointStatistics", "SharingReport"),
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
