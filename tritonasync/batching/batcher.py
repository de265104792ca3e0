"""The stage that turns the rows of many callers into batches.

Owns: which calls are batched, a :class:`~tritonasync.batching.line.Line` for each model. Refuses to
know: how a batch is made and sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tritonasync.batching.key import BatchKey, is_batched, key_of
from tritonasync.batching.lane import Lane
from tritonasync.batching.line import Line
from tritonasync.batching.statistics import BatchingStatistics
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import Stage
from tritonasync.core.policies import BatchPolicy
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import Call, ModelSpec, Reply

MESSAGE_NBYTES: Final = 2 << 20
"""The most bytes of a batch that goes as a message: see :class:`BatchPolicy`."""

SHARED_NBYTES: Final = 8 << 20
"""The most of one in shared memory, where the bytes themselves do not travel."""

_MAX_LANES: Final = 256
"""Short ways that are kept for the next handles; those who hold one keep it anyway."""


class Batcher:
    """Batches calls by model (an :class:`~tritonasync.core.ports.Invoker`).

    What has no batch axis passes through, and so do stateful and decoupled models, calls with an id
    of their own, which the server is to log, and those that are to be sent as they are. A call of
    more rows than a batch may have is a batch of its own: the stage above splits it.

    Args:
        next_stage: Where batches go.
        catalog: Tells the models' signatures.
        policy: The limits of each model's batches.
        stage: Names what a sent batch waits for, for those whose time runs out.
        endpoints: Tells how many endpoints share the batches.
        nbytes: Tells the most bytes of a batch where the policy leaves them open;
            :meth:`relimit` says that it tells otherwise now.
    """

    def __init__(
        self,
        next_stage: Invoker,
        catalog: ModelCatalog,
        policy: BatchPolicy,
        stage: Callable[[], Stage] = lambda: "server",
        endpoints: Callable[[], int] = lambda: 1,
        *,
        nbytes: Callable[[], int] = lambda: MESSAGE_NBYTES,
    ) -> None:
        self._next = next_stage
        self._catalog = catalog
        self._policy = policy
        self._stage = stage
        self._endpoints = endpoints
        self._nbytes = nbytes
        self._lines: dict[tuple[str, str], Line] = {}
        self._lanes: dict[tuple[str, str, BatchKey, float], Lane] = {}

    def infer(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """Run one inference, together with others' where that is possible.

        Raises:
            DeadlineExceededError: The deadline passed; stage ``"queue"`` if nothing was sent.
            QueueFullError: Too many rows of the model wait already.
            PoolClosedError: The pool was closed while the rows waited.
            TritonError: As :meth:`tritonasync.core.ports.ModelCatalog.describe` and the next stage
                raise it.
        """
        spec = self._catalog.known(call.model, call.version)
        line = self._lines.get((call.model, call.version))
        if line is not None and line.spec is spec and call.rows and not _own(call):
            return line.infer(call) if line.batches else self._next.infer(call)
        return self._describe(call) if spec is None else self._infer(call, spec)

    def _infer(self, call: Call, spec: ModelSpec) -> Coroutine[Any, Any, Reply]:
        if not call.rows or _own(call) or not is_batched(spec):
            return self._next.infer(call)
        return self._line(spec).infer(call)

    async def _describe(self, call: Call) -> Reply:
        spec = await self._catalog.describe(call.model, call.version, call.deadline)
        return await self._infer(call, spec)

    def _line(self, spec: ModelSpec) -> Line:
        line = self._lines.get((spec.name, spec.version))
        if line is None:
            line = Line(
                spec,
                self._next,
                self._catalog,
                self._policy,
                self._stage,
                self._endpoints,
                self._nbytes,
            )
            self._lines[spec.name, spec.version] = line
        elif line.spec is not spec:
            line.learn(spec)
        return line

    def lane(self, call: Call, spec: ModelSpec, timeout_s: float) -> Lane | None:
        """Return the short way for items like that of a call, if they are batched at all.

        Handles share it: each would have a few items a turn of its own, and gathering is cheap for
        many at once.
        """
        if not is_batched(spec) or any(tensor.datatype == "BYTES" for tensor in call.inputs):
            return None
        line, kind = self._line(spec), key_of(call)
        name = spec.name, spec.version, kind, timeout_s
        lane = self._lanes.get(name)
        if lane is None or not lane.valid:
            if len(self._lanes) >= _MAX_LANES:
                self._lanes.clear()
            lane = self._lanes[name] = Lane(line, kind, timeout_s)
        return lane

    def relimit(self) -> None:
        """Take note that what bounds a batch may be different now."""
        for line in self._lines.values():
            line.relimit()

    def hasten(self) -> None:
        """Close the short way, and let what waits leave without lingering: no more will come."""
        for line in self._lines.values():
            line.hasten()

    async def drain(self, deadline: Deadline) -> None:
        """Return when no rows wait or are out, or at the deadline; then nothing waits any more."""
        await asyncio.gather(*[line.drain(deadline) for line in self._lines.values()])

    async def aclose(self) -> None:
        """Wait for the end of all batches; the stage below has ended their calls."""
        await asyncio.gather(*[line.aclose() for line in self._lines.values()])

    def items(self) -> int:
        """Return how many callers of single items that took the short way wait."""
        return sum([line.items() for line in self._lines.values()])

    def statistics(self) -> tuple[BatchingStatistics, ...]:
        """Return what became of each model's rows so far."""
        return tuple(line.statistics() for line in self._lines.values())


def _own(call: Call) -> bool:
    """Return whether a call is a request of its own."""
    return bool(call.request_id) or call.alone
