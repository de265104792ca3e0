"""Rows that wait for a batch, and which of them leave together.

Owns: a queue for each kind of rows, the limits of a batch (rows, bytes, age), the bound of what may
wait, the turns of the queues. Refuses to know: I/O, the event loop, the clock (``now`` is an
argument), what a ticket is beyond whether its holder has left.

Invariants: the rows of a ticket leave once, all together, in the order in which they came to their
queue; a batch is within its limits, or is the rows of one ticket that alone are beyond them; a
ticket whose holder has left, or whose deadline has passed, never leaves in a batch; a queue with
rows that may leave waits for one batch of each other queue at most.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from tritonasync.batching.group import Group, padded_nbytes
from tritonasync.batching.key import BatchKey

_T = TypeVar("_T")

_MAX_KEPT: Final = 64
"""Empty queues that are kept for the next rows of their kind. Parameters can differ from call to
call without end, so that not all can be."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may hold, and what may wait.

    Attributes:
        rows: The most rows of a batch.
        nbytes: The most bytes of a batch.
        linger_s: Seconds that a batch with room waits for more rows.
        queued_rows: The most rows that may wait, of all kinds together.
    """

    rows: int
    nbytes: int
    linger_s: float
    queued_rows: int


class RowQueue(Generic[_T]):
    """The rows of one kind that wait, in the order in which they came.

    Attributes:
        key: What they have in common.
        groups: The rows, first come first; of those who have left as well, until their turn.
    """

    __slots__ = ("groups", "key")

    def __init__(self, key: BatchKey) -> None:
        self.key: BatchKey = key
        self.groups: deque[Group[_T]] = deque()

    def pop(self, limits: Limits) -> list[Group[_T]]:
        """Take as many rows from the front as fit in a batch, and those of one ticket at least."""
        if self.key.padding is not None:
            return self._pop_padded(limits)
        batch: list[Group[_T]] = []
        rows, nbytes = limits.rows, limits.nbytes
        while self.groups:
            group = self.groups[0]
            count = min(rows // group.rows_each, nbytes // (group.nbytes_each or 1))
            if not batch:
                count = max(count, 1)
            if count >= len(group.tickets):
                batch.append(self.groups.popleft())
                rows -= group.rows
                nbytes -= group.nbytes
                continue
            if count > 0:
                front, self.groups[0] = group.split(count)
                batch.append(front)
            break
        return batch

    def _pop_padded(self, limits: Limits) -> list[Group[_T]]:
        """Do the same for rows that are filled up: each counts as the longest of its batch."""
        batch = [self.groups.popleft()]
        while self.groups:
            batch.append(self.groups[0])
            rows = sum([group.rows for group in batch])
            if rows > limits.rows or padded_nbytes(batch) > limits.nbytes:
                batch.pop()
                break
            self.groups.popleft()
        return batch

    def is_full(self, limits: Limits) -> bool:
        """Return whether there is a whole batch."""
        return (
            sum([group.rows for group in self.groups]) >= limits.rows
            or sum([group.nbytes for group in self.groups]) >= limits.nbytes
        )


@dataclass(frozen=True, slots=True)
class Departure(Generic[_T]):
    """What leaves a queue at one time.

    Attributes:
        key: What the rows have in common.
        groups: Those that make a batch; never empty.
    """

    key: BatchKey
    groups: Sequence[Group[_T]]


class Accumulator(Generic[_T]):
    """The rows of one model that wait.

    Args:
        limits: The limits. May be set anew at any time.
        gone: Whether the holder of a ticket has left.

    Attributes:
        rows: All rows that wait, of those who have left as well until they are cleared away.
        late: Groups whose deadline passed before they left, to be told so.
        cancelled_rows: Rows dropped so far because their holder had left.
    """

    def __init__(self, limits: Limits, gone: Callable[[_T], bool]) -> None:
        self.limits = limits
        self.rows: int = 0
        self.late: list[Group[_T]] = []
        self.cancelled_rows: int = 0
        self._gone = gone
        self._tidy_at = _MAX_KEPT
        self._queues: dict[BatchKey, RowQueue[_T]] = {}
        self._turns: deque[RowQueue[_T]] = deque()  # the queues with rows; the first has its turn

    def queue(self, key: BatchKey) -> RowQueue[_T]:
        """Return the queue of a kind of rows; it may be kept, and entered at any later time."""
        queue = self._queues.get(key)
        if queue is None:
            if len(self._queues) >= self._tidy_at:
                self._queues = {k: q for k, q in self._queues.items() if q.groups}
                self._tidy_at = max(_MAX_KEPT, 2 * len(self._queues))
            queue = self._queues[key] = RowQueue(key)
        return queue

    def enter(self, queue: RowQueue[_T], group: Group[_T]) -> None:
        """Let rows wait. The caller made sure that there is room (:meth:`has_room`)."""
        if not group.tickets:
            return
        if not queue.groups:
            self._turns.append(queue)
        queue.groups.append(group)
        self.rows += group.rows

    def has_room(self, rows: int) -> bool:
        """Return whether so many rows more may wait."""
        return self.rows + rows <= self.limits.queued_rows

    def take(self, now: float) -> Departure[_T] | None:
        """Take the next batch, or ``None`` if nothing may leave now.

        Groups whose deadline has passed are moved to :attr:`late`.
        """
        for _ in range(len(self._turns)):
            queue = self._turns.popleft()
            groups = self._leave(queue, now)
            if queue.groups:
                self._turns.append(queue)
            if groups:
                return Departure(queue.key, groups)
        return None

    def _leave(self, queue: RowQueue[_T], now: float) -> list[Group[_T]]:
        """Take a batch of those still there, if the queue is full enough or has waited enough."""
        while queue.groups and self._due_at(queue) <= now:
            popped = queue.pop(self.limits)
            self.rows -= sum([group.rows for group in popped])
            groups = self._in_time(self._present(popped), now)
            if groups:
                return groups
        return []

    def _present(self, groups: Iterable[Group[_T]]) -> list[Group[_T]]:
        present: list[Group[_T]] = []
        for group in groups:
            here = group.without(self._gone)
            self.cancelled_rows += group.rows - here.rows
            if here.tickets:
                present.append(here)
        return present

    def _in_time(self, groups: Iterable[Group[_T]], now: float) -> list[Group[_T]]:
        present: list[Group[_T]] = []
        for group in groups:
            (present if group.deadline_at > now else self.late).append(group)
        return present

    def _due_at(self, queue: RowQueue[_T]) -> float:
        """Return when the queue's first batch may leave, whatever comes."""
        if not self.limits.linger_s or queue.is_full(self.limits):
            return -math.inf
        return queue.groups[0].entered_at + self.limits.linger_s

    def due_at(self) -> float:
        """Return when the next batch may leave; infinity if nothing waits."""
        return min(map(self._due_at, self._turns), default=math.inf)

    def clear_away(self, now: float) -> None:
        """Drop those whose holder has left, and move those whose time is up to :attr:`late`."""
        for queue in self._turns:
            queue.groups = deque(self._in_time(self._present(queue.groups), now))
        self._recount()

    def drop_late(self, now: float) -> None:
        """Move those whose time is up to :attr:`late`; a tenth of the work of clearing away."""
        late: list[Group[_T]] = []
        for queue in self._turns:
            late += [group for group in queue.groups if group.deadline_at <= now]
            queue.groups = deque([group for group in queue.groups if group.deadline_at > now])
        if late:
            self.late += self._present(late)
            self._recount()

    def _recount(self) -> None:
        self._turns = deque([queue for queue in self._turns if queue.groups])
        self.rows = sum([group.rows for group in self.groups()])

    def groups(self) -> list[Group[_T]]:
        """Return all that wait."""
        return [group for queue in self._turns for group in queue.groups]

    def drain(self) -> list[Group[_T]]:
        """Take all that wait, whether their holders have left or not."""
        groups = self.groups()
        for queue in self._turns:
            queue.groups.clear()
        self._turns.clear()
        self.rows = 0
        return groups
