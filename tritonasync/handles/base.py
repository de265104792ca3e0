"""What all handles share: from a signature and something prepared to a reply.

Owns: asking for the signature, asking anew when it may be out of date, the one deadline of a call,
sending. Refuses to know: what is prepared, and what becomes of the reply.

Invariants: making a handle does no I/O; a call is sent only after it was checked; a signature that
a call does not fit is asked for anew before the call is refused, since the model may have been
reloaded, but at most once in :data:`RENEWAL_INTERVAL_S` for each model, so that a flood of wrong
calls does not become a flood of questions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, get_args
from weakref import WeakKeyDictionary

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    ConfigurationError,
    InvalidRequestError,
    ModelNotFoundError,
    TritonError,
    UsageError,
)
from tritonasync.core.offload import LONG_NBYTES, in_worker
from tritonasync.core.policies import Padding
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import (
    Call,
    InputTensor,
    ModelSpec,
    OutputMemory,
    Parameters,
    Reply,
    SequenceStep,
)
from tritonasync.handles.devices import on_device
from tritonasync.handles.signature import Signature, signature_of
from tritonasync.handles.slot import Casting

_C = TypeVar("_C")

_CASTINGS: Final[tuple[Casting, ...]] = get_args(Casting)

RENEWAL_INTERVAL_S: Final = 1.0
"""The least time between two renewals of one model's signature that wrong calls cause."""


class _Renewal:
    """When a model's signature was last asked for anew, and how many callers wait for it now."""

    __slots__ = ("_begun", "running")

    def __init__(self) -> None:
        self._begun = -math.inf
        self.running = 0

    def due(self) -> bool:
        """Return whether the last one is long enough ago, and count from now if it is."""
        now = time.monotonic()
        if now - self._begun < RENEWAL_INTERVAL_S:
            return False
        self._begun = now
        return True


def no_work(signature: Signature) -> int:
    """Return how many bytes are written to prepare a call that converts no array."""
    del signature
    return 0


_renewals: Final[WeakKeyDictionary[ModelCatalog, dict[str, _Renewal]]] = WeakKeyDictionary()
"""Kept by catalog and not by handle: handles are made anew for every call by many users."""


@dataclass(slots=True)  # not frozen: made for each call, and that takes three times as long
class Prepared(Generic[_C]):
    """A call that fits the signature, and what the handle wants to remember of it.

    Attributes:
        inputs: The inputs.
        rows: Rows along the batch axis; 0 for a model without one.
        context: For the handle's own use when the reply is there.
        outputs: Names of the outputs wanted; empty for all.
        padding: How the rows may be filled up to share a batch with longer ones.
    """

    inputs: tuple[InputTensor, ...]
    rows: int
    context: _C
    outputs: tuple[str, ...] = ()
    padding: Padding | None = None


@dataclass(slots=True)
class Request:
    """What goes with a call besides its tensors.

    Attributes:
        deadline: When the caller's time is up.
        parameters: Request parameters.
        request_id: Echoed by the server.
        idle_s: The longest wait for each response after the first, in seconds.
        sequence: Which step of a sequence it is, if it is one.
        output_memory: Where outputs are wanted; ``None`` for where the inputs are.
        alone: Whether it is sent as it is, in no batch with others.
        device: Whether inputs are on a GPU, as found when the call is made.
    """

    deadline: Deadline
    parameters: Parameters = ()
    request_id: str = ""
    idle_s: float = math.inf
    sequence: SequenceStep | None = None
    output_memory: OutputMemory | None = "host"
    alone: bool = False
    device: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether outputs are wanted on a GPU."""
        return self.output_memory == "gpu" or (self.output_memory is None and self.device)


class Handle:
    """A model of a pool, ready to be called. Handles are cheap: make them where they are needed.

    What takes many responses instead is named by ``_many``, for messages.

    Args:
        name: The model's name.
        version: The model's version; ``""`` lets the server choose (its latest).
        invoker: The next stage.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` or infinity for no limit.
        casting: Which arrays are converted to the model's dtype unasked.
        idempotent: Whether it does no harm if the model runs twice.

    Raises:
        ConfigurationError: An option makes no sense.
    """

    _many = "pool.model(…).stream(…)"

    def __init__(
        self,
        name: str,
        version: str,
        invoker: Invoker,
        catalog: ModelCatalog,
        *,
        timeout_s: float | None,
        casting: Casting = "safe",
        idempotent: bool = True,
    ) -> None:
        for option, value in (("name", name), ("version", version)):
            if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(f"a model's {option} is a string, not {value!r}")
        if not name:
            raise ConfigurationError("a model's name is empty")
        if casting not in _CASTINGS:
            raise ConfigurationError(
                f"model {name!r}: casting is one of {', '.join(_CASTINGS)}, not {casting!r}"
            )
        self._name = name
        self._version = version
        self._invoker = invoker
        self._catalog = catalog
        self._timeout_s = timeout_s
        if not isinstance(idempotent, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"model {name!r}: idempotent is True or False, not {idempotent!r}"
            )
        self._casting: Casting = casting
        self._idempotent = idempotent
        self._known: tuple[ModelSpec, Signature] | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def version(self) -> str:
        """The version asked for; ``""`` for the server's choice."""
        return self._version

    def __repr__(self) -> str:
        version = f", version={self._version!r}" if self._version else ""
        return f"<{type(self).__name__} {self._name!r}{version}>"

    async def spec(self, *, timeout_s: float | None = None) -> ModelSpec:
        """Return the model's signature, from memory if the pool has it.

        Args:
            timeout_s: Seconds for this call; ``None`` for the pool's, ``math.inf`` for no limit.

        Raises:
            DeadlineExceededError: The time ran out, stage ``"metadata"`` or ``"connect"``.
            ModelNotFoundError: The server has no such model or version.
            ModelNotReadyError: The model has no version that can answer.
            TransportError: Nobody answered.
        """
        deadline = self._deadline(timeout_s)
        return await self._catalog.describe(self._name, self._version, deadline)

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self._timeout_s if timeout_s is None else timeout_s)

    async def _infer(
        self,
        prepare: Callable[[Signature], Prepared[_C]],
        work_nbytes: Callable[[Signature], int],
        request: Request,
    ) -> tuple[Prepared[_C], Reply]:
        """Prepare a call, send it, and return what was prepared with the reply.

        Args:
            prepare: Makes the tensors, or refuses. It may run twice, and in a worker thread.
            work_nbytes: About how many bytes ``prepare`` will write.
            request: What goes with the call.

        Raises:
            UsageError: ``prepare`` refused, or the model is decoupled.
            DeadlineExceededError: The time ran out.
            TransportError: Nobody answered.
            ServerError: The server answered with an error.
        """
        prepared = await self._prepared(prepare, work_nbytes, request.deadline)
        reply = await self._send(
            prepared.inputs, prepared.rows, prepared.outputs, request, prepared.padding
        )
        return prepared, reply

    async def _send(
        self,
        inputs: tuple[InputTensor, ...],
        rows: int,
        outputs: tuple[str, ...],
        request: Request,
        padding: Padding | None = None,
    ) -> Reply:
        """Send a call that fits the signature."""
        call = self._call(inputs, rows, outputs, request, padding)
        try:
            return await self._invoker.infer(call)
        except (InvalidRequestError, ModelNotFoundError):
            self._doubt_signature()
            raise

    def _call(
        self,
        inputs: tuple[InputTensor, ...],
        rows: int,
        outputs: tuple[str, ...],
        request: Request,
        padding: Padding | None = None,
    ) -> Call:
        request.device = on_device(inputs)
        return Call(
            self._name,
            self._version,
            inputs,
            rows,
            outputs,
            request.parameters,
            request.request_id,
            request.deadline,
            padding,
            self._idempotent,
            sequence=request.sequence,
            idle_s=request.idle_s,
            decoupled=self._known is not None and self._known[0].decoupled,
            device=request.device,
            output_memory="gpu" if request.on_gpu else "host",
            alone=request.alone,
        )

    async def _prepared(
        self,
        prepare: Callable[[Signature], Prepared[_C]],
        work_nbytes: Callable[[Signature], int],
        deadline: Deadline,
        *,
        many: bool = False,
    ) -> Prepared[_C]:
        """Prepare a call for the signature; ``many`` if it may have any number of responses."""
        signature = await self._described(deadline)
        try:
            return await self._prepare(prepare, work_nbytes, signature, deadline, many=many)
        except UsageError:
            fresh = await self._renewed(deadline)
            if fresh is None or fresh.spec == signature.spec:
                raise
        return await self._prepare(prepare, work_nbytes, fresh, deadline, many=many)

    async def _prepare(
        self,
        prepare: Callable[[Signature], Prepared[_C]],
        work_nbytes: Callable[[Signature], int],
        signature: Signature,
        deadline: Deadline,
        *,
        many: bool,
    ) -> Prepared[_C]:
        if signature.spec.decoupled and not many:
            raise UsageError(
                f"model {self._name!r} is decoupled: it may answer a request with no response or "
                f"with many, and this call takes exactly one. Use {self._many}, or "
                "configure it without model_transaction_policy { decoupled: True } if it always "
                "gives one",
                model=self._name,
            )
        if work_nbytes(signature) < LONG_NBYTES:
            return prepare(signature)
        return await in_worker(lambda: prepare(signature), deadline=deadline, model=self._name)

    async def _described(self, deadline: Deadline) -> Signature:
        known = self._remembered()
        if known is not None:
            return known
        return self._compiled(await self._catalog.describe(self._name, self._version, deadline))

    def _remembered(self) -> Signature | None:
        """Return the signature if the catalog has it in memory."""
        spec = self._catalog.known(self._name, self._version)
        return None if spec is None else self._compiled(spec)

    def _compiled(self, spec: ModelSpec) -> Signature:
        """Return the signature, compiled again only when the catalog gives another object."""
        known = self._known
        if known is None or known[0] is not spec:
            known = self._known = spec, signature_of(spec, self._casting)
        return known[1]

    async def _renewed(self, deadline: Deadline) -> Signature | None:
        """Return the newest signature: asked anew, unless it just was; ``None`` if that failed.

        What is known stays known meanwhile, so that callers who do it right are not held up.
        """
        renewal = self._renewal()
        if not renewal.running and not renewal.due():
            return self._remembered()
        renewal.running += 1
        try:
            return self._compiled(await self._catalog.renew(self._name, self._version, deadline))
        except TritonError:
            return None  # whatever the matter is: the caller is told of the mistake in the call
        finally:
            renewal.running -= 1

    def _doubt_signature(self) -> None:
        """Have the signature asked for anew by the next who needs it, unless it just was."""
        if self._renewal().due():
            self._catalog.forget(self._name)

    def _renewal(self) -> _Renewal:
        return _renewals.setdefault(self._catalog, {}).setdefault(self._name, _Renewal())
