"""Calls with more rows than the model takes at once are sent in parts.

Owns: how many parts are out at a time, and what becomes of the others when one fails. Refuses to
know: which rows go where (``rows`` does), how a part is sent.

Invariants: each part belongs to the task group of its call, so none outlives it; the error that
surfaces is that of the first failing part in row order; a call within the limit passes through.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Final

import anyio

from tritonasync.batching.rows import check_strings, cut, join
from tritonasync.core.offload import LONG_NBYTES, in_worker, reply_nbytes
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import Call, Reply

MAX_INFLIGHT: Final = 4
"""Parts of one call that are out at once: enough to keep a server busy while replies travel (four
batches of 256 small rows were measured to), and few enough to leave other calls a turn."""


class Splitter:
    """Splits calls above ``max_batch_size`` (an :class:`~tritonasync.core.ports.Invoker`).

    Models without a batch axis pass through, and so do stateful ones: the parts of one step of a
    sequence cannot be sent side by side.

    Args:
        next_stage: Where calls and parts go.
        catalog: Tells the model's ``max_batch_size``.
        max_rows: The most rows of a part, if that is to be less than ``max_batch_size``.
        max_out_rows: The most rows of a call's parts that are out at once, so that they do not fill
            the next stage's queue; one part may be in any case.
        max_inflight: Parts of one call that are out at once, at least 1.
    """

    def __init__(
        self,
        next_stage: Invoker,
        catalog: ModelCatalog,
        *,
        max_rows: int | None = None,
        max_out_rows: int | None = None,
        max_inflight: int = MAX_INFLIGHT,
    ) -> None:
        self._next = next_stage
        self._catalog = catalog
        self._max_rows = max_rows
        self._max_out_rows = max_out_rows
        self._max_inflight = max_inflight

    def infer(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """Run one inference, in as many requests as its rows need.

        Not a coroutine of its own, so that most calls pass without a frame of this stage's.

        Raises:
            ProtocolError: The replies to the parts do not fit together.
            TritonError: As :meth:`tritonasync.core.ports.ModelCatalog.describe` and the next stage
                raise it; of several, the one of the earliest rows.
        """
        return self._next.infer(call) if call.rows <= 1 else self._split(call)

    async def _split(self, call: Call) -> Reply:
        spec = self._catalog.known(call.model, call.version)
        if spec is None:
            spec = await self._catalog.describe(call.model, call.version, call.deadline)
        limit = min(spec.max_batch_size, self._max_rows or spec.max_batch_size)
        if spec.stateful or not 0 < limit < call.rows:
            return await self._next.infer(call)
        check_strings(call)
        parts = cut(call, limit)
        out = self._max_inflight
        if self._max_out_rows is not None:
            out = max(1, min(out, self._max_out_rows // limit))
        replies = await _Parts(self._next, parts).replies(out)
        if sum(map(reply_nbytes, replies)) < LONG_NBYTES:
            return join(call, parts, replies)
        return await in_worker(
            partial(join, call, parts, replies), deadline=call.deadline, model=call.model
        )


class _Parts:
    """The parts of one call, on their way."""

    def __init__(self, next_stage: Invoker, parts: Sequence[Call]) -> None:
        self._next = next_stage
        self._parts = parts
        self._replies: dict[int, Reply] = {}
        self._scopes: dict[int, anyio.CancelScope] = {}
        self._failure: tuple[int, Exception] | None = None

    async def replies(self, max_inflight: int) -> list[Reply]:
        """Return the replies in order, or raise the error of the first part that failed."""
        waiting = iter(enumerate(self._parts))  # shared: each takes the next when it is free
        async with anyio.create_task_group() as tasks:
            for _ in range(min(max_inflight, len(self._parts))):
                tasks.start_soon(self._send, waiting)
        if self._failure is not None:
            raise self._failure[1]
        return [self._replies[index] for index in range(len(self._parts))]

    async def _send(self, waiting: Iterator[tuple[int, Call]]) -> None:
        for index, part in waiting:
            if self._failure is not None:
                return
            with anyio.CancelScope() as self._scopes[index]:
                try:
                    self._replies[index] = await self._next.infer(part)
                except Exception as error:  # noqa: BLE001 - kept, and raised by replies()
                    self._fail(index, error)
            del self._scopes[index]

    def _fail(self, index: int, error: Exception) -> None:
        """Remember the error, and leave the parts after it: theirs could not surface any more."""
        if self._failure is None or index < self._failure[0]:
            self._failure = index, error
        for other, scope in self._scopes.items():
            if other > self._failure[0]:
                scope.cancel()
