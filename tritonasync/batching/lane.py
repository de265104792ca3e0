"""The short way of one item into a queue: for one row among very many.

Owns: the comparison of an item's arrays with what their queue holds, which is all that checking
comes to after the first; the items of this turn of the event loop, in columns. Refuses to know:
what to do with anything else. It takes an item only if nothing about it is special, and else leaves
it to the long way, which knows what to say.

Here a row costs a future and two places in lists. The long way makes a call, its deadline, its
tensors and its key first, passes two more stages, and takes three times as long. The columns are
looked through and become one group of the queue at the end of the turn: comparing 256 arrays in a
row takes a third of the time that it takes between other things.

Invariants: items are poured into the queue at the end of the turn in which they came, before
anything leaves it; no more than it has room for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from operator import attrgetter, countOf
from typing import Any, Final, TypeAlias, cast

import numpy as np

from tritonasync.batching.accumulator import RowQueue
from tritonasync.batching.group import Group
from tritonasync.batching.key import BatchKey
from tritonasync.batching.line import Line
from tritonasync.batching.tickets import Landed, Ticket
from tritonasync.core.deadline import Deadline
from tritonasync.core.values import Array, Call, InputTensor
from tritonasync.wire.dtypes import numpy_dtype

# The variant that answers None where no loop runs: raising and catching costs more than an item.
_running_loop: Final = asyncio._get_running_loop  # noqa: SLF001 - documented for event loops
_dtype_of: Final = attrgetter("dtype")
_shape_of: Final = attrgetter("shape")

_Item: TypeAlias = tuple[str, np.dtype[Any], tuple[int, ...]]
"""The name of an input, and the dtype and shape of an item."""


class Lane:
    """Takes items of one kind (a :class:`~tritonasync.core.ports.ItemLane`).

    Args:
        line: Where the items wait.
        key: What the items have in common. No BYTES are among their inputs, and no padding.
        timeout_s: Seconds that each item may take.
    """

    __slots__ = (
        "_columns",
        "_count",
        "_create_ticket",
        "_first",
        "_inputs",
        "_items",
        "_line",
        "_loop",
        "_more",
        "_name",
        "_period",
        "_queue",
        "_room",
        "_tickets",
        "_timeout_s",
    )

    def __init__(self, line: Line, key: BatchKey, timeout_s: float) -> None:
        self._line = line
        self._loop = line.loop
        # As loop.create_future() does it, with one call less between.
        self._create_ticket: Callable[[], Ticket] = partial(asyncio.Future, loop=line.loop)
        self._period = line.period
        self._timeout_s = timeout_s
        self._queue: RowQueue[Ticket] = line.waiting.queue(key)
        self._inputs = key.inputs
        self._items: list[_Item] = [
            (name, numpy_dtype(kind), shape) for name, kind, shape in key.inputs
        ]
        self._count = len(self._items)
        self._name = self._items[0][0]
        self._more = self._items[1:]
        self._room = 0
        self._clear()

    def _clear(self) -> None:
        self._tickets: list[Ticket] = []
        self._columns: tuple[list[object], ...] = tuple([[] for _ in self._items])
        self._first = self._columns[0]

    @property
    def valid(self) -> bool:
        """Whether it still takes items: not after the model changed, or closing began."""
        return self._line.period is self._period

    def enter(self, arrays: Mapping[str, object]) -> Awaitable[Landed | None] | None:
        """Let an item wait for a batch, or return ``None`` if it should go the long way.

        Args:
            arrays: An array for each input, without the batch axis. Borrowed until the end.

        Returns:
            What gives the reply to a batch and the item's row in it, or ``None`` if the item should
            go the long way after all. To be awaited at once.
        """
        tickets = self._tickets
        if (
            _running_loop() is not self._loop
            or len(arrays) != self._count
            or self._name not in arrays
        ):
            return None
        if not tickets:
            line = self._line
            if line.period is not self._period or not line.is_current():
                return None
            if line.may_go(1):
                return self._go(arrays)
            self._room = line.room()
            line.pour_later(self._pour)
        if len(tickets) >= self._room:
            return None
        self._first.append(arrays[self._name])
        if self._more:
            for (name, _, _), column in zip(self._more, self._columns[1:], strict=True):
                column.append(arrays.get(name))
        ticket = self._create_ticket()
        tickets.append(ticket)
        return ticket

    def _go(self, arrays: Mapping[str, object]) -> Awaitable[Landed] | None:
        """Send an item alone, at once: nobody is there to share a batch with."""
        tensors: list[InputTensor] = []
        for (name, datatype, shape), item in zip(self._inputs, self._items, strict=True):
            array = arrays.get(name)
            if not _alike([array], item):
                return None
            tensors.append(InputTensor(name, datatype, (1, *shape), (cast("Array", array),)))
        spec, timeout_s = self._line.spec, self._timeout_s
        deadline = Deadline(time.monotonic() + timeout_s, timeout_s)
        call = Call(
            spec.name,
            spec.version,
            tuple(tensors),
            1,
            deadline=deadline,
            idempotent=self._queue.key.idempotent,
        )
        return self._line.carry(call)

    def _pour(self) -> None:
        """Make a group of the items."""
        tickets, columns = self._tickets, self._columns
        self._clear()
        room = max(0, self._line.room())
        if len(tickets) > room:  # others came meanwhile; the long way knows what to say
            _send_the_long_way(tickets[room:])
            tickets, columns = tickets[:room], tuple([column[:room] for column in columns])
        if not all(map(_alike, columns, self._items)):
            tickets, columns = self._sorted_out(tickets, columns)
        now, timeout_s = time.monotonic(), self._timeout_s
        group = Group(
            tickets,
            cast("tuple[list[Array], ...]", columns),
            rows_each=1,
            nbytes_each=self._queue.key.row_nbytes or 0,
            entered_at=now,
            deadline_at=now + timeout_s,
            timeout_s=timeout_s,
            short_way=True,
        )
        self._line.take_in(self._queue, group)

    def _sorted_out(
        self, tickets: list[Ticket], columns: tuple[list[object], ...]
    ) -> tuple[list[Ticket], tuple[list[object], ...]]:
        """Send those the long way that are not like the rest, and return the rest."""
        kept: list[tuple[Ticket, list[object]]] = []
        for ticket, *arrays in zip(tickets, *columns, strict=True):
            if all(map(_alike, [[array] for array in arrays], self._items)):
                kept.append((ticket, arrays))
            else:
                _send_the_long_way([ticket])
        columns = tuple([[arrays[index] for _, arrays in kept] for index in range(self._count)])
        return [ticket for ticket, _ in kept], columns


def _send_the_long_way(tickets: Iterable[Ticket]) -> None:
    for ticket in tickets:
        if not ticket.done():
            ticket.set_result(None)


def _alike(column: list[object], item: _Item) -> bool:
    """Return whether all in a column are arrays of the item's dtype and shape."""
    _, dtype, shape = item
    count = len(column)
    if countOf(map(type, column), np.ndarray) != count:
        return False
    return (
        countOf(map(_dtype_of, column), dtype) == count
        and countOf(map(_shape_of, column), shape) == count
    )
