"""The rows of one model on their way: when a batch leaves, who carries it, what becomes of it.

Owns: the model's queues, its batches in flight, one timer for all deadlines. Refuses to know: which
rows leave together (``accumulator``), how many batches may be out (``limiter``), how a batch is
sent (``carrier``).

Invariants: rows that wait are told something in the end, whatever happens; a batch is carried by a
task of its own, which no caller can cancel, and a caller that nobody joins carries its own call;
every task is awaited by :meth:`Line.aclose`; state is changed before an ``await`` or after it,
never around it.

A row costs a future and a place in a list: no task, no timer. The first of a turn of the event loop
asks for a dispatch at the end of that turn, and a batch that comes back starts the next.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain
from typing import Any, Final

from tritonasync.batching.accumulator import Accumulator, Departure, Limits, RowQueue
from tritonasync.batching.carrier import Carrier
from tritonasync.batching.gather import call_parts, cut_out
from tritonasync.batching.group import Group
from tritonasync.batching.key import is_batched, key_of
from tritonasync.batching.limiter import Limiter
from tritonasync.batching.statistics import BatchingStatistics, Counters
from tritonasync.batching.tickets import Landed, Ticket, expire, left, tell
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import PoolClosedError, QueueFullError, Stage
from tritonasync.core.policies import BatchPolicy
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.reports import Duration
from tritonasync.core.values import Call, ModelSpec, Reply
from tritonasync.core.watch import Watch, rested
from tritonasync.wire.encode import request_nbytes

_DOUBT_PAUSE_S: Final = 1.0
"""The least time between two doubts of a signature: each is one question to the server."""


class Line:
    """Batches the calls of one model.

    Args:
        spec: The model's signature.
        next_stage: Where batches go.
        catalog: Told about a newer signature by others; looked at before each batch.
        policy: The user's limits.
        stage: Names what a sent batch waits for, for those whose time runs out.
        endpoints: Tells how many endpoints share the batches: so many times the limit may be out.
    """

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        spec: ModelSpec,
        next_stage: Invoker,
        catalog: ModelCatalog,
        policy: BatchPolicy,
        stage: Callable[[], Stage],
        endpoints: Callable[[], int],
        nbytes: Callable[[], int],
    ) -> None:
        self._endpoints = endpoints
        self._nbytes = nbytes
        self._catalog = catalog
        self._policy = policy
        self._stage = stage
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        # The callbacks that asyncio's loop runs next; other loops keep theirs to themselves.
        self._ready: Sequence[object] | None = getattr(self.loop, "_ready", None)
        self.spec: ModelSpec = spec
        self.batches: bool = is_batched(spec)
        self.closing: bool = False
        self._closed = False
        self._over: asyncio.Future[None] | None = None
        self.period: object = object()
        self.waiting: Accumulator[Ticket] = Accumulator(self._limits(), left)
        self._limiter = Limiter(least=policy.min_inflight, most=policy.max_inflight)
        self._carried: dict[asyncio.Task[None], Sequence[Group[Ticket]]] = {}
        self._dispatching = False
        self._pours: list[Callable[[], None]] = []
        self._linger: asyncio.TimerHandle | None = None
        self._clear_at = -math.inf
        self._watch = Watch(self.loop, self._look)
        self._doubted_at = -math.inf
        self._counters = Counters()
        self._carrier = Carrier(
            spec,
            next_stage,
            self._limiter,
            self._counters,
            endpoints=endpoints,
            landed=self._landed,
            doubt=self._doubt,
        )

    def _limits(self) -> Limits:
        policy = self._policy
        rows = min(max(1, self.spec.max_batch_size), policy.max_queued_rows)
        if policy.max_rows is not None:
            rows = min(rows, policy.max_rows)
        linger_s = 0.0 if self.closing else policy.linger_s
        nbytes = self._nbytes() if policy.max_nbytes is None else policy.max_nbytes
        return Limits(rows, nbytes, linger_s, policy.max_queued_rows)

    def relimit(self) -> None:
        """Take note that what bounds a batch may be different now."""
        self.waiting.limits = self._limits()

    def learn(self, spec: ModelSpec) -> None:
        """Take the limits of a newer signature."""
        self._pour()
        self.spec = spec
        self.batches = is_batched(spec)
        self.period = object()
        self.waiting.limits = self._limits()

    def is_current(self) -> bool:
        """Return whether the signature is the one that the catalog has."""
        return self._catalog.known(self.spec.name, self.spec.version) is self.spec

    def _doubt(self) -> None:
        """Have the signature asked for anew by the next who needs it, unless it just was."""
        now = time.monotonic()
        if now - self._doubted_at >= _DOUBT_PAUSE_S:
            self._doubted_at = now
            self._catalog.forget(self.spec.name)

    # --- in -------------------------------------------------------------------------------------

    async def infer(self, call: Call) -> Reply:
        """Run a call's rows, with others' or alone.

        Raises:
            DeadlineExceededError: The deadline passed; stage ``"queue"`` if nothing was sent.
            QueueFullError: Too many rows wait already.
            PoolClosedError: The pool was closed while the rows waited.
            TritonError: As the next stage raises it.
        """
        if self._closed:
            raise self._closed_error()
        landed = await (self._carrier.alone(call) if self.may_go(call.rows) else self._enter(call))
        assert landed is not None  # noqa: S101 - this is the long way
        reply, start = landed
        return cut_out(reply, start, call.rows)

    def carry(self, call: Call) -> Coroutine[Any, Any, Landed]:
        """Run an item that :meth:`may_go`, carried by its caller, who awaits this at once."""
        return self._carrier.alone(call, item=True)

    def may_go(self, rows: int) -> bool:
        """Return whether a call that comes now may leave at once, carried by its caller.

        It may if nobody waits, not too many batches are out, and no other call can join it: it is a
        full batch, or nothing else is left to run in this turn of the event loop. That spares two
        turns, 3 to 10 % of a lone call's latency.
        """
        if self._pours or self.waiting.rows or not self._has_place():
            return False
        if rows < self.waiting.limits.rows and (self._ready is None or self._ready):
            return False
        lingers = self.waiting.limits.linger_s and rows < self.waiting.limits.rows
        return not lingers and time.monotonic() >= self._carrier.wary_until

    def _enter(self, call: Call) -> Ticket:
        now = time.monotonic()
        deadline = call.deadline
        if deadline.at <= now:
            self._counters.expired_rows += call.rows
            raise deadline.error("queue", model=call.model)
        self._pour()
        ticket: Ticket = self.loop.create_future()
        queue = self.waiting.queue(key_of(call))
        each = queue.key.row_nbytes
        nbytes = request_nbytes(call) if each is None else call.rows * each
        if not self.waiting.has_room(call.rows):
            self._make_room(call.rows, now)
        group = Group(
            [ticket],
            [[part] for part in call_parts(call)],
            rows_each=call.rows,
            nbytes_each=nbytes,
            entered_at=now,
            deadline_at=deadline.at,
            timeout_s=deadline.timeout_s,
        )
        self.take_in(queue, group)
        if self._has_place():
            self._wake()
        return ticket

    def take_in(self, queue: RowQueue[Ticket], group: Group[Ticket]) -> None:
        """Let a group wait."""
        self.waiting.enter(queue, group)
        self._watch.expect(group.deadline_at)

    def room(self) -> int:
        """Return how many rows more may wait."""
        return self.waiting.limits.queued_rows - self.waiting.rows

    def pour_later(self, pour: Callable[[], None]) -> None:
        """Have items poured in at the end of this turn, or before anybody looks at the queues."""
        self._pours.append(pour)
        self._wake()

    def _pour(self) -> None:
        pours, self._pours = self._pours, []
        for pour in pours:
            pour()

    def _wake(self) -> None:
        """Dispatch at the end of this turn of the event loop."""
        if not self._dispatching:
            self._dispatching = True
            self.loop.call_soon(self._dispatch_turn)

    def _make_room(self, rows: int, now: float) -> None:
        waiting = self.waiting
        most = waiting.limits.queued_rows
        if rows <= most and now >= self._clear_at:
            waiting.clear_away(now)
            self._tell_late()
            self._clear_at = rested(now)
        if waiting.has_room(rows):
            return
        self._counters.rejected_rows += rows
        reason = (
            f"{waiting.rows} rows wait for a batch, and {rows} more are over the limit of "
            f"{most}; call less at once, or shed load"
            if rows <= most
            else f"a call of {rows} rows is more than the queue may hold, {most}"
        )
        raise QueueFullError(
            f"model {self.spec.name!r}: {reason} (BatchPolicy.max_queued_rows)",
            code="RESOURCE_EXHAUSTED",
            details="the pool's own queue is full",
            model=self.spec.name,
        )

    # --- out ------------------------------------------------------------------------------------

    def _dispatch_turn(self) -> None:
        self._dispatching = False
        self._pour()
        self._dispatch()
        self._note_end()

    def _dispatch(self) -> None:
        """Send what may leave now."""
        try:
            self._send_off(time.monotonic())
        except BaseException as error:  # a task factory that raises, say: nobody may wait for ever
            tell(self.waiting.drain(), PoolClosedError(f"batching failed: {error!r}"))
            raise

    def _send_off(self, now: float) -> None:
        while self._has_place():
            departure = self.waiting.take(now)
            if departure is None:
                break
            self._launch(departure, now)
        if self.waiting.late:
            self._tell_late()
        if self.waiting.rows and self._linger is None and self._has_place():
            delay = max(0.0, self.waiting.due_at() - now)
            self._linger = self.loop.call_later(delay, self._linger_over)

    def _has_place(self) -> bool:
        return self._carrier.in_flight < self._limiter.limit * self._endpoints()

    def _linger_over(self) -> None:
        self._linger = None
        self._dispatch()

    def _launch(self, departure: Departure[Ticket], now: float) -> None:
        spec = self._catalog.known(self.spec.name, self.spec.version)
        if spec is not None and spec is not self.spec:
            self.learn(spec)
        groups = departure.groups
        for group in groups:
            self._counters.left_queue(group.rows, group.rows * (now - group.entered_at))
        carrying = self._carrier.together(departure.key, groups)
        try:
            task = self.loop.create_task(carrying)
        except BaseException as error:
            carrying.close()
            self._carrier.in_flight -= 1
            tell(groups, PoolClosedError(f"batching failed: {error!r}"))
            raise
        self._carried[task] = groups
        task.add_done_callback(self._carried.pop)

    def _landed(self) -> None:
        if self.waiting.rows:
            self._dispatch()
        self._note_end()

    def _note_end(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    # --- bad news -------------------------------------------------------------------------------

    def _tell_late(self) -> None:
        late, self.waiting.late = self.waiting.late, []
        for group in late:
            self._counters.expired_rows += group.rows
            expire(group, "queue", model=self.spec.name)

    def _look(self, now: float) -> float:
        """Let those go whose time is up; return when the next one's is."""
        self._pour()
        self.waiting.drop_late(now)
        self._tell_late()
        carried = list(chain.from_iterable(self._carried.values()))
        for group in carried:
            if group.deadline_at <= now:
                expire(group, self._stage(), model=self.spec.name)
        deadlines = [group.deadline_at for group in chain(self.waiting.groups(), carried)]
        return min([at for at in deadlines if at > now], default=math.inf)

    # --- the end --------------------------------------------------------------------------------

    def hasten(self) -> None:
        """Let what waits leave without lingering for more: no more will come."""
        self._pour()
        self.closing = True
        self.period = object()
        self.waiting.limits = self._limits()
        self._dispatch()

    async def drain(self, deadline: Deadline) -> None:
        """Return when no rows wait or are out, or at the deadline; who waits then is told so."""
        while (self.waiting.rows or self._carrier.in_flight) and not deadline.expired():
            self._over = self.loop.create_future()  # the end of a batch, or of a turn's rows
            await asyncio.wait({self._over}, timeout=deadline.wait_s())
        self._closed = True
        tell(self.waiting.drain(), self._closed_error())

    def _closed_error(self) -> PoolClosedError:
        return PoolClosedError(
            f"model {self.spec.name!r}: the pool was closed while the rows waited for a batch; "
            "nothing was sent",
            model=self.spec.name,
        )

    async def aclose(self) -> None:
        """Wait for the end of all batches; the stage below has ended their calls."""
        await asyncio.gather(*self._carried, return_exceptions=True)
        self._watch.close()
        if self._linger is not None:
            self._linger.cancel()

    def items(self) -> int:
        """Return how many callers of single items that took the short way wait."""
        self._pour()
        groups = chain(self.waiting.groups(), *self._carried.values())
        tickets = chain.from_iterable([group.tickets for group in groups if group.short_way])
        return self._carrier.items + sum([not left(ticket) for ticket in tickets])

    def statistics(self) -> BatchingStatistics:
        """Return what became of the rows so far."""
        self._pour()
        counters = self._counters
        return BatchingStatistics(
            model=self.spec.name,
            version=self.spec.version,
            batches=counters.batches,
            rows=counters.rows,
            batch_rows=counters.batch_rows(),
            queue=Duration(counters.left_rows, counters.waited_s),
            queued_rows=self.waiting.rows,
            rows_in_flight=counters.rows_in_flight,
            batches_in_flight=self._carrier.in_flight,
            inflight_limit=self._limiter.limit * self._endpoints(),
            expired_rows=counters.expired_rows,
            cancelled_rows=self.waiting.cancelled_rows,
            rejected_rows=counters.rejected_rows,
            halved_batches=counters.halved_batches,
        )
