"""The stages of an open pool: the only file that knows their order.

::

    handle → (Padder) → Gate → Splitter → Batcher → Router ─┬→ EndpointBackend → Endpoint
                         ├────── Lane ───────┘      ↑       └→ EndpointBackend → Endpoint
                         └──→ Catalog ──────────────┘

Owns: making the stages, adding and removing endpoints, closing from the top down. Every task below
belongs to the stage that started it, and :meth:`Stages.close` awaits them all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tritonasync.batching.batcher import MESSAGE_NBYTES, SHARED_NBYTES, Batcher
from tritonasync.batching.splitter import Splitter
from tritonasync.batching.statistics import BatchingStatistics
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import Stage
from tritonasync.core.policies import BatchPolicy
from tritonasync.core.resilience import EndpointSpec
from tritonasync.core.values import MemoryKind
from tritonasync.memory.lender import MemoryStatistics
from tritonasync.memory.store import MemoryStore
from tritonasync.options import Options
from tritonasync.routing.member import Member
from tritonasync.routing.router import Router
from tritonasync.routing.statistics import RoutingStatistics
from tritonasync.transport.backend import EndpointBackend
from tritonasync.transport.catalog import Catalog
from tritonasync.transport.channel import open_channels
from tritonasync.transport.control import Control
from tritonasync.transport.endpoint import Endpoint
from tritonasync.transport.gate import Gate
from tritonasync.transport.labels import LabelBook
from tritonasync.transport.shared import check_sharing
from tritonasync.transport.statistics import EndpointStatistics

_log: Final = logging.getLogger("tritonasync")


def _of_no_kind() -> Mapping[MemoryKind, MemoryStatistics]:
    return {}


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot of a pool.

    Attributes:
        in_flight: Calls inside the pool, whose callers wait.
        endpoints: What each endpoint has done so far.
        batching: What became of the rows of each model that was called.
        routing: Retries, hedges, and how each endpoint fares.
        memory: Each kind of shared memory that was used.
    """

    in_flight: int
    endpoints: tuple[EndpointStatistics, ...]
    batching: tuple[BatchingStatistics, ...] = ()
    routing: RoutingStatistics = RoutingStatistics()  # noqa: RUF009 - frozen
    memory: Mapping[MemoryKind, MemoryStatistics] = field(default_factory=_of_no_kind)


class Stages:
    """What exists while a pool is open. Must be made in the pool's event loop.

    Args:
        options: What the pool was made with.
        gate: The first stage, which is led to the others.
    """

    def __init__(self, options: Options, gate: Gate) -> None:
        self._options = options
        self._gate = gate
        self._backends: dict[str, EndpointBackend] = {}
        self._store = MemoryStore(options.memory)
        self._held_by_removed: list[str] = []  # regions that removed servers may still have
        # Several batches, with their outputs, are in memory at a time.
        self._shared_nbytes = min(SHARED_NBYTES, options.memory.max_nbytes // 8)
        self._shares = False  # whether calls were placed in shared memory
        self._removals: dict[asyncio.Task[None], EndpointBackend] = {}
        self._router = Router(options.retry, options.health, prefer_near=options.prefer_loopback)
        labels = LabelBook(self._router.labels, options.model_repository, self._waits_for)
        self.catalog: Catalog = Catalog(self._router.describe, self._waits_for, labels=labels)
        self._batcher: Batcher | None = None
        for endpoint in options.endpoints:
            self.add(endpoint)
        self._lead(options.batching)

    def _lead(self, policy: BatchPolicy | None) -> None:
        router, catalog = self._router, self.catalog
        sharing = self._options.shared_memory
        default: MemoryKind = "cuda" if sharing == "cuda" else "system"
        lend = None if sharing == "off" else partial(self._store.lend, default=default)
        if policy is None:
            self._gate.lead_to(Splitter(router, catalog), catalog, streamer=router, lend=lend)
            return
        self._batcher = batcher = Batcher(
            router,
            catalog,
            policy,
            self._answers_by,
            lambda: router.fleet.width,
            nbytes=lambda: self._shared_nbytes if self._shares else MESSAGE_NBYTES,
        )
        limit = min(policy.max_rows or policy.max_queued_rows, policy.max_queued_rows)
        splitter = Splitter(batcher, catalog, max_rows=limit, max_out_rows=policy.max_queued_rows)
        self._gate.lead_to(splitter, catalog, batcher.lane, streamer=router, lend=lend)

    # --- endpoints ------------------------------------------------------------------------------

    def add(self, spec: EndpointSpec) -> None:
        """Take an endpoint in; its URL is a gRPC target by now.

        Raises:
            ConfigurationError: It is there already, or cannot share memory, which is insisted on.
        """
        options, target = self._options, spec.url
        self._router.fleet.check_new(target)
        check_sharing(target, options.shared_memory)
        endpoint = Endpoint(
            target,
            partial(open_channels, target, count=options.channels, tls=options.tls),
            options.headers,
            cancel_on_server=options.retry.cancel_on_server,
        )
        backend = EndpointBackend(
            endpoint,
            transport=options.transport,
            streams=options.streams,
            store=self._store,
            memory=options.memory,
            sharing=options.shared_memory,
            on_shared=self._note_shared,
            outputs_of=self._outputs_of,
        )
        # The server may be another one by now, with other models.
        backend.watch_reconnections(self.catalog.refresh)
        self._backends[target] = backend
        self._router.fleet.add(backend, weight=spec.weight)

    def _outputs_of(self, model: str, version: str) -> tuple[str, ...] | None:
        spec = self.catalog.known(model, version)
        return None if spec is None else tuple([output.name for output in spec.outputs])

    def _note_shared(self) -> None:
        """Take note that a call went by shared memory: batches may be larger."""
        self._shares = True
        if self._batcher is not None:
            self._batcher.relimit()

    async def remove(self, target: str, deadline: Deadline) -> None:
        """Send nothing new to an endpoint, wait for what is out, close it.

        Raises:
            ConfigurationError: There is no such endpoint, or no other.
        """
        member = self._router.fleet.retire(target)
        backend = self._backends.pop(target)
        removal = asyncio.get_running_loop().create_task(self._remove(member, backend, deadline))
        self._removals[removal] = backend
        removal.add_done_callback(self._removed)
        await asyncio.shield(removal)

    async def _remove(self, member: Member, backend: EndpointBackend, deadline: Deadline) -> None:
        await self._router.drain(member, deadline)
        backend.endpoint.link.removed = True
        await self._close_removed(backend, deadline)

    async def _close_removed(self, backend: EndpointBackend, deadline: Deadline) -> None:
        try:
            await backend.aclose(deadline)
        finally:
            self._held_by_removed += backend.held_regions()

    def _removed(self, removal: asyncio.Task[None]) -> None:
        self._removals.pop(removal, None)
        if not removal.cancelled():
            removal.exception()  # seen here, should the caller have left

    async def _end_removals(self, deadline: Deadline) -> None:
        """Let removals end; those that take too long are ended."""
        removals = dict(self._removals)
        if not removals:
            return
        _, late = await asyncio.wait(removals, timeout=deadline.wait_s())
        for removal in late:
            removal.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        closing = [self._close_removed(removals[removal], deadline) for removal in late]
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if outcome is not None:
                _log.error("closing a removed endpoint failed", exc_info=outcome)

    def controls(self) -> dict[str, Control]:
        """Return the administration calls of each endpoint, by target."""
        return {target: backend.control for target, backend in self._backends.items()}

    def _answers_by(self) -> Stage:
        """Return what calls that are out are waiting for, to be named when time is up."""
        stages = {backend.endpoint.link.waits_for() for backend in self._backends.values()}
        order: tuple[Stage, ...] = ("server", "headers", "connect")
        return next(stage for stage in order if stage in stages)

    def _waits_for(self) -> Stage:
        """Return what a question for a signature is waiting for."""
        stage = self._answers_by()
        return "metadata" if stage == "server" else stage

    # --- the end --------------------------------------------------------------------------------

    async def close(self, deadline: Deadline) -> None:
        """Take nothing new, wait until all is done or the deadline, and end what is left."""
        batcher = self._batcher
        if batcher is not None:
            batcher.hasten()
        await self._gate.close(deadline)
        if batcher is not None:
            await batcher.drain(deadline)
        self._store.stop()  # who waits for room still has used up the time
        await self.catalog.aclose()
        await self._router.stop()
        await self._end_removals(deadline)
        closing = [backend.aclose(deadline) for backend in self._backends.values()]
        outcomes = await asyncio.gather(*closing, return_exceptions=True)
        if batcher is not None:
            await batcher.aclose()
        await self._router.aclose()
        held = [name for each in self._backends.values() for name in each.held_regions()]
        await self._store.aclose(deadline, [*held, *self._held_by_removed])
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    def statistics(self) -> PoolStatistics:
        """Return a snapshot of what the pool is doing and has done."""
        batcher = self._batcher
        return PoolStatistics(
            in_flight=self._gate.inside + (0 if batcher is None else batcher.items()),
            endpoints=tuple([backend.statistics() for backend in self._backends.values()]),
            batching=() if batcher is None else batcher.statistics(),
            routing=self._router.statistics(),
            memory=self._store.statistics(),
        )
