"""The error tree: everything the package raises on purpose.

::

    TritonError
    ├── UsageError                    your call, refused before anything was sent
    │   ├── InvalidInputError         (ValueError) wrong name, dtype, shape, rank; ragged; empty
    │   ├── ConfigurationError        (ValueError) wrong URL, TLS files, options
    │   ├── MissingExtraError         (ImportError) an optional dependency is not installed
    │   ├── PoolClosedError           the pool is closed, or was never opened
    │   └── WrongContextError         another event loop, a forked child, no asyncio at all
    ├── DeadlineExceededError         (TimeoutError) your time is up; ``stage`` names who used it
    ├── SequenceLostError             the state of a sequence is gone: begin a new one
    ├── ResponseOverflowError         a loop over responses fell too far behind
    ├── MemoryExhaustedError          no room in shared memory
    ├── DeviceError                   a GPU, or its driver, failed
    ├── TransportError                nobody answered
    │   ├── ServerUnreachableError    (ConnectionError) no connection could be made
    │   │   └── TlsError              reached, but no secure connection came of it
    │   ├── ConnectionLostError       (ConnectionError) broke while the call was out
    │   ├── PlacementError            shared memory was insisted on, and cannot be had
    │   ├── MessageTooLargeError      over gRPC's limit, one way or the other
    │   └── ProtocolError             an answer came that is not a Triton answer
    ├── ServerError                   Triton's answer: no
    │   ├── InvalidRequestError       the server refused shape, dtype, names, batch size
    │   │   └── SequenceNotFoundError the server has no such sequence (idle for long, restarted?)
    │   ├── ModelNotFoundError        no such model or version
    │   ├── ModelNotReadyError        loading, unloading, or unloaded
    │   ├── ModelFailedError          the model raised
    │   │   └── ModelUnhealthyError   its process died; unload and load mends it
    │   ├── DecoupledModelError       a decoupled model was called unary
    │   ├── QueueFullError            "Exceeds maximum queue size"
    │   ├── QueueTimeoutError         the queue's own time limit went by on the server
    │   ├── ServerNotReadyError       not ready yet, or exiting
    │   ├── AccessDeniedError         a restricted protocol, or missing credentials
    │   ├── LoadFailedError           a model could not be loaded or unloaded
    │   │   └── ControlRefusedError   the server's model-control mode forbids it
    │   ├── UnsupportedError          this server does not have the call
    │   └── SharedMemoryError
    │       ├── RegionNotFoundError   the server does not know the region (restarted?)
    │       ├── RegionExistsError     the name is taken; the server keeps the old mapping
    │       ├── RegionInvalidError    cannot be opened, out of range, in use
    │       └── SlotTooSmallError     the output needs more bytes than its slot has
    └── ServingError                  the embedded server, on this machine
        ├── RuntimeSetupError         no usable tritonserver could be found or made
        └── ServerStartError          it did not start; the message ends with its log's tail

Two attributes of each class drive retrying, so that nobody matches strings:
``retriable`` (the same call may succeed when sent again, here or elsewhere) and
``may_have_executed`` (the model may have run). Only ``transport/status.py`` reads messages.

Invariant: an error can be copied (:meth:`TritonError.copy`) and pickled, since one exception object
must never be raised in two tasks.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self, TypeVar

from tritonasync.core.attempt import Attempt

_E = TypeVar("_E", bound="TritonError")

Stage = Literal[
    "queue", "headers", "memory", "connect", "metadata", "encode", "send", "server", "responses"
]
"""Where a call's time can go: see :class:`DeadlineExceededError`."""


class TritonError(Exception):
    """Root of everything this package raises on purpose.

    Args:
        message: What went wrong and what to do, in one sentence or two.
        model: Name of the model concerned, if one is.
        endpoint: The gRPC target concerned, if one is.

    Attributes:
        retriable: Whether the same call may succeed when it is sent again.
        may_have_executed: Whether the model may have run, in any attempt.
        attempts: What was tried, in order, if more than one attempt was made.
    """

    retriable: ClassVar[bool] = False
    may_have_executed: bool = False
    attempts: tuple[Attempt, ...] = ()

    def __init__(
        self, message: str, *, model: str | None = None, endpoint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.model = model
        self.endpoint = endpoint

    def __str__(self) -> str:
        if not self.attempts:
            return self.message
        tried = "; ".join([f"{attempt.endpoint}: {attempt.error}" for attempt in self.attempts])
        return f"{self.message} [{len(self.attempts)} attempts: {tried}]"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))

    def copy(self) -> Self:
        """Return an equal error of its own: its own traceback, the same cause."""
        twin = _rebuild(type(self), self.args, self.__dict__.copy())
        twin.__cause__ = self.__cause__
        return twin


def _rebuild(kind: type[_E], args: tuple[object, ...], state: dict[str, object]) -> _E:
    """Make an error without calling ``__init__``, whose signature differs from class to class."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


# --- your call ---------------------------------------------------------------------------------


class UsageError(TritonError):
    """The call was refused on this side, before anything was sent."""


class InvalidInputError(UsageError, ValueError):
    """Inputs do not fit the model's signature: name, dtype, shape, rank, raggedness, no rows."""


class ConfigurationError(UsageError, ValueError):
    """An option, URL or file given to the pool makes no sense."""


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: The package that is missing, such as ``"pillow"``.
        extra: The extra of tritonasync that installs it, such as ``"images"``.
        purpose: What wanted it, as the subject of the sentence.
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'tritonasync[{extra}]'"
        )
        self.package = package
        self.extra = extra


class PoolClosedError(UsageError):
    """The pool is closed or closing, or was never opened."""


class WrongContextError(UsageError):
    """The pool is used where it cannot work: another event loop, a forked child, trio."""


# --- nobody's: time ----------------------------------------------------------------------------


class DeadlineExceededError(TritonError, TimeoutError):
    """The time given to the call is up; the request itself may still finish on the server.

    Args:
        message: As :class:`TritonError`.
        stage: The stage that was at work when the time ran out.
        timeout_s: The whole budget of the call, in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        stage: Stage,
        timeout_s: float,
        model: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        super().__init__(message, model=model, endpoint=endpoint)
        self.stage: Stage = stage
        self.timeout_s = timeout_s
        # What waits for a connection is sent once there is one, caller or no caller.
        self.may_have_executed: bool = stage in {"connect", "server", "responses"}


# --- nobody's: state and room ------------------------------------------------------------------


class SequenceLostError(TritonError):
    """The state of a sequence is gone, and with it the sequence: begin a new one, from its start.

    The endpoint that had it was lost or removed, the server was restarted or forgot the sequence
    for being idle, or the first step failed in a way that leaves its outcome open. The sequence is
    never begun anew behind your back.
    """

    may_have_executed = True


class ResponseOverflowError(TritonError):
    """A loop over responses fell so far behind that there was no room for more.

    The responses before it were given out. Others on the same connection are never held up for the
    sake of a slow loop.
    """

    may_have_executed = True


class MemoryExhaustedError(TritonError):
    """There is no room for a tensor in shared memory: the limit, or the system's, is reached."""


class DeviceError(TritonError):
    """A GPU or its driver failed, on this side."""


# --- nobody answered ---------------------------------------------------------------------------


class TransportError(TritonError):
    """No answer of the server's was received."""


class ServerUnreachableError(TransportError, ConnectionError):
    """No connection could be made, so the call was certainly not run."""

    retriable = True


class TlsError(ServerUnreachableError):
    """A server is there, but no secure connection came of it: certificates, or TLS on one side."""

    retriable = False


class ConnectionLostError(TransportError, ConnectionError):
    """The connection broke while the call was out; the model may have run."""

    retriable = True
    may_have_executed = True


class PlacementError(TransportError):
    """Tensors were to go by shared memory and by nothing else, and this endpoint cannot have it."""


class MessageTooLargeError(TransportError):
    """A request or response is over the message limit (gRPC's own ends at 2 GiB - 1 bytes)."""

    may_have_executed = True


class ProtocolError(TransportError):
    """Bytes came back that are not a valid Triton response."""

    may_have_executed = True


# --- Triton's answer ---------------------------------------------------------------------------


class ServerError(TritonError):
    """The server answered with an error.

    Args:
        message: As :class:`TritonError`.
        code: gRPC's status name, such as ``"INTERNAL"``.
        details: The server's own words.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        details: str,
        model: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        super().__init__(message, model=model, endpoint=endpoint)
        self.code = code
        self.details = details


class InvalidRequestError(ServerError):
    """INVALID_ARGUMENT: the server refused the request's names, shapes, dtypes or batch size."""


class SequenceNotFoundError(InvalidRequestError):
    """The server has no sequence with this id: it must begin with a step that has the start flag.

    It was idle for longer than the model allows, the server was restarted, or it ended before.
    """


class ModelNotFoundError(ServerError):
    """NOT_FOUND: the server has no such model, or not this version of it."""


class ModelNotReadyError(ServerError):
    """The model is known but has no version that can answer: loading, unloading, or unloaded."""

    retriable = True


class ModelFailedError(ServerError):
    """The model ran and raised; another attempt with the same rows will mostly fail again."""

    may_have_executed = True


class ModelUnhealthyError(ModelFailedError):
    """The model's own process died on the server.

    Loading the model mends it, after an unload that is not waited for: ``unload(name, wait=False)``
    and ``load(name)``. The unload of such a model never ends by itself (seen on 2.51).
    """


class DecoupledModelError(ServerError):
    """The model is decoupled (zero or many responses a request) and cannot be called unary."""


class QueueFullError(ServerError):
    """A queue is full: slow down, or shed load."""

    retriable = True


class QueueTimeoutError(ServerError):
    """The request waited in the server's queue for longer than that queue allows."""


class ServerNotReadyError(ServerError):
    """The server is starting or going down; another endpoint may answer."""

    retriable = True


class AccessDeniedError(ServerError):
    """The protocol is restricted: the pool's ``protocol_keys`` lack the credential."""


class LoadFailedError(ServerError):
    """A model could not be loaded or unloaded; the version loaded before serves on."""


class ControlRefusedError(LoadFailedError):
    """The server was started without explicit model control (``--model-control-mode=explicit``)."""


class UnsupportedError(ServerError):
    """UNIMPLEMENTED: this server has no such call, or it is switched off."""


class SharedMemoryError(ServerError):
    """A shared-memory region or slot was refused."""


class RegionNotFoundError(SharedMemoryError):
    """The server does not know the region, as after a restart: register it under a new name."""

    retriable = True


class RegionExistsError(SharedMemoryError):
    """The region's name is taken; the server goes on using the old mapping."""


class RegionInvalidError(SharedMemoryError):
    """The region cannot be opened, is too small, is in use, or is read out of range."""


class SlotTooSmallError(SharedMemoryError):
    """An output (``output``) needs more bytes (``needed_nbytes``) than the slot it was given.

    Where the server does not say it, the name is empty, or the number 0.
    """

    may_have_executed = True
    output: str = ""
    needed_nbytes: int = 0


# --- the embedded server -----------------------------------------------------------------------


class ServingError(TritonError):
    """The embedded server on this machine."""


class RuntimeSetupError(ServingError):
    """No usable tritonserver could be found or installed."""


class ServerStartError(ServingError):
    """The server did not become ready; the message ends with the tail of its log."""
