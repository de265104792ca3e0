"""Where the tensors of an endpoint's calls are to be, given what its server takes.

Owns: asking the pure choice (``placement``), what a server refuses, what of shared memory this
process cannot have, which outputs have a place, one line in the log for each reason, the counts.
Refuses to know: slots, messages.

Invariant: without being insisted on, shared memory is never the reason of an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tritonasync.core.errors import (
    DeviceError,
    MemoryExhaustedError,
    MissingExtraError,
    PlacementError,
    ServerError,
    TransportError,
    TritonError,
)
from tritonasync.core.policies import MemoryPolicy
from tritonasync.core.values import Call, MemoryKind
from tritonasync.memory.store import MemoryStore
from tritonasync.transport.placement import LEAST_NBYTES, Sharing, Wanted, choose
from tritonasync.transport.registrar import Registrar
from tritonasync.transport.sizes import LearnedSizes, OutputSizes
from tritonasync.transport.statistics import SharingReport
from tritonasync.wire.placed import placeable

_log: Final = logging.getLogger("tritonasync.memory")

AVOIDABLE: Final = (
    DeviceError,
    MemoryExhaustedError,
    MissingExtraError,
    ServerError,
    TransportError,
)
"""What can go wrong before a call is sent, and does not concern one that goes on the wire."""

OutputNames = Callable[[str, str], tuple[str, ...] | None]
"""Gives the names of all outputs of a model and version; ``None`` where they are not known."""


class Places:
    """What one endpoint's calls have in shared memory.

    Args:
        registrar: Tells what the server takes. Borrowed.
        store: Gives the page that finds it out. Borrowed.
        policy: From what size on.
        sharing: What the user chose; not ``"off"``.
        gpu: Tells whether the server, and a model, can use the GPU's memory.
        outputs_of: Tells the outputs of a model.

    Attributes:
        insisted: Whether a call that cannot be placed is an error.
        least: The least bytes that are worth a place.
        sizes: How large outputs are.
    """

    def __init__(
        self,
        registrar: Registrar,
        store: MemoryStore,
        *,
        policy: MemoryPolicy,
        sharing: Sharing,
        gpu: Callable[[Call], Coroutine[Any, Any, bool]],
        outputs_of: OutputNames,
    ) -> None:
        self._registrar = registrar
        self._store = store
        self._sharing: Sharing = sharing
        self._gpu = gpu
        self._outputs_of = outputs_of
        self.insisted: bool = sharing in {"system", "cuda"}
        self.least: int = LEAST_NBYTES if self.insisted else policy.min_nbytes
        self.sizes: LearnedSizes = LearnedSizes()
        self._without_gpu = False  # this process cannot share a GPU's memory
        self._refused: dict[tuple[str, str], tuple[str, ...]] = {}  # names that were no outputs
        self._said: set[str] = set()
        self._placed = 0
        self._on_wire = 0
        self._reason: str | None = None

    # --- choosing -------------------------------------------------------------------------------

    async def wanted(self, call: Call, nbytes: int) -> Wanted:
        """Return where a call's tensors are to be, by its sizes alone."""
        known = self.sizes.of(call, nbytes)
        asks_gpu = self._sharing == "auto" and (call.device or call.output_memory == "gpu")
        return choose(
            call,
            self._sharing,
            min_nbytes=self.least,
            input_nbytes=sum(placeable(call).values()),
            output_nbytes=known.total * (call.rows or 1) if known else 0,
            gpu=asks_gpu and not self._without_gpu and await self._gpu(call),
        )

    async def granted(self, call: Call, wanted: Wanted) -> Wanted:
        """Return what is wanted, less what the server refuses.

        Raises:
            PlacementError: It is insisted on what the server refuses.
            TritonError: One of :data:`AVOIDABLE`, while the server was asked.
        """
        await self._introduce(call)
        return Wanted(
            self._grant(call, wanted.inputs), self._grant(call, wanted.outputs), wanted.insisted
        )

    async def _introduce(self, call: Call) -> None:
        """Find out, once for each process of the server, whether it takes shared memory at all."""
        registrar = self._registrar
        if not registrar.same_host and registrar.refusal("system") is None:
            probe = await self._store.probe(call.deadline)
            await registrar.name_for(probe, call.deadline)

    def _grant(self, call: Call, kind: MemoryKind | None) -> MemoryKind | None:
        why = None if kind is None else self._registrar.refusal(kind)
        if kind is None or why is None:
            return kind
        if self.insisted and kind == self._sharing:
            self._reason = why
            raise self.unplaceable(call, why)
        self.say(kind, f"no {kind} shared memory, tensors go on the wire: {why}", why)
        return None

    def output_sizes(self, call: Call, nbytes: int) -> dict[str, int]:
        """Return the bytes of all outputs that are to be asked for; none if none has a place.

        All are asked for by name when one has a place. So they must all be known: of the signature,
        since an answer may lack some.
        """
        known = self.sizes.of(call, nbytes)
        names = call.outputs or self._outputs_of(call.model, call.version)
        if known is None or names is None or not self._trusts(call, known, names):
            return {}
        sizes = known.of(call.rows)
        return {name: sizes.get(name, 0) for name in names}

    def _trusts(self, call: Call, known: OutputSizes, names: tuple[str, ...]) -> bool:
        refused = self._refused.get((call.model, call.version))
        return known.each.keys() <= set(names) and names != refused

    def distrust(self, call: Call, nbytes: int) -> None:
        """Take note that the server does not have the outputs that the signature names."""
        self.sizes.forget(call, nbytes)
        names = self._outputs_of(call.model, call.version)
        if names is not None:
            self._refused[call.model, call.version] = names

    # --- telling --------------------------------------------------------------------------------

    def do_without(self, error: TritonError) -> None:
        """Go on without shared memory, or without a GPU's, unless it is insisted on.

        Raises:
            TritonError: The error itself.
        """
        if self.insisted:
            raise error
        if isinstance(error, DeviceError | MissingExtraError):
            self._without_gpu = True
        about = type(error).__name__
        self.say(about, f"no shared memory for now, tensors go on the wire: {error}", str(error))

    def leave_alone(self) -> None:
        """Take note that a call is done without, since regions are being unregistered."""
        why = "its regions are being unregistered after a lost connection"
        self.say("leaving", f"no shared memory for now, tensors go on the wire: {why}", why)

    def unplaceable(self, call: Call, why: str) -> PlacementError:
        """Return the error for a call that cannot be placed where that is insisted on."""
        target = self._registrar.target
        return PlacementError(
            f"model {call.model!r} at {target}: shared_memory={self._sharing!r}, but {why}",
            model=call.model,
            endpoint=target,
        )

    def say(self, about: str, line: str, why: str) -> None:
        """Log why something goes on the wire, the first time for each reason."""
        self._reason = why
        if about not in self._said:
            self._said.add(about)
            _log.warning("%s: %s", self._registrar.target, line)

    def restarted(self) -> None:
        """Take note that the server may be another process: what it says now is news."""
        self._said.clear()

    def note_placed(self) -> None:
        """Count an attempt with a tensor in shared memory."""
        self._placed += 1

    def note_wire(self) -> None:
        """Count a call that was to have one, and goes on the wire."""
        self._on_wire += 1

    def report(self) -> SharingReport:
        """Return what was counted."""
        return SharingReport(self._placed, self._on_wire, self._reason)
