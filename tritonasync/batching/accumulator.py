"""Rows that wait for a batch, and which of them leave together.

Owns: a queue for each kind of rows, the limits of a batch (rows, bytes, age), the bound of what may
wait, the turns of the queues. Refuses to know: I/O, the event loop, the clock (``now`` is an
argument), what a ticket is beyond whether its holder has left.

Invariants: a member leaves once, whole, in the order in which it came to its queue; a batch is
within its limits, or is one member that alone is beyond them; a member whose holder has left, or
whose deadline has passed, never leaves in a batch; a queue with rows that may leave waits for one
batch of each other queue at most.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Generic, TypeAlias, TypeVar

from tritonasync.batching.key import BatchKey
from tritonasync.core.values import Array

_T = TypeVar("_T")

Member: TypeAlias = tuple[_T, tuple[Array, ...], int, int, float, float, float]
"""The rows of one call, in a queue or a batch: ``(ticket, parts, rows, nbytes, entered_at,
deadline_at, timeout_s)``.

- ticket: what its holder waits on;
- parts: an array for each input, with or (one row only) without the batch axis; borrowed;
- rows: how many rows it has; nbytes: about how many bytes they take on the wire;
- entered_at, deadline_at: when it came, and when its holder stops waiting (infinity for never), in
  seconds on the monotonic clock; timeout_s: the holder's whole budget, for messages.

A tuple since one is made for each row: an object with slots takes five times as long, which would
be a tenth of all that a row costs.
"""

ticket_of: Final[Callable[[Member[Any]], Any]] = itemgetter(0)
parts_of: Final[Callable[[Member[Any]], tuple[Array, ...]]] = itemgetter(1)
rows_of: Final[Callable[[Member[Any]], int]] = itemgetter(2)
nbytes_of: Final[Callable[[Member[Any]], int]] = itemgetter(3)
deadline_of: Final[Callable[[Member[Any]], float]] = itemgetter(5)

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
        members: The members, first come first; those who have left as well, until their turn.
        more_rows: Rows beyond one for each member.
    """

    __slots__ = ("key", "members", "more_rows")

    def __init__(self, key: BatchKey) -> None:
        self.key = key
        self.members: deque[Member[_T]] = deque()
        self.more_rows = 0

    @property
    def rows(self) -> int:
        """The rows of all members."""
        return len(self.members) + self.more_rows

    def pop(self, limits: Limits) -> list[Member[_T]]:
        """Take as many members from the front as fit in a batch, and one at least."""
        members = self.members
        if not self.more_rows and self.key.row_nbytes is not None:  # all alike: no need to look
            most = min(limits.rows, limits.nbytes // (self.key.row_nbytes or 1) or 1)
            pop = members.popleft
            return [pop() for _ in range(min(most, len(members)))]
        count = _fitting(members, limits)
        batch = [members.popleft() for _ in range(count)]
        self.more_rows -= sum(map(rows_of, batch)) - count
        return batch

    def is_full(self, limits: Limits) -> bool:
        """Return whether there is a whole batch."""
        if self.rows >= limits.rows:
            return True
        return sum(map(nbytes_of, self.members)) >= limits.nbytes

    def keep(self, members: Iterable[Member[_T]]) -> None:
        """Hold these members and no others."""
        self.members = deque(members)
        self.more_rows = sum(map(rows_of, self.members)) - len(self.members)


def _fitting(members: Iterable[Member[Any]], limits: Limits) -> int:
    """Return how many of the first members fit in a batch, at least one."""
    count = rows = nbytes = 0
    for member in members:
        rows += member[2]
        nbytes += member[3]
        if count and (rows > limits.rows or nbytes > limits.nbytes):
            break
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class Departure(Generic[_T]):
    """What leaves a queue at one time.

    Attributes:
        key: What the rows have in common.
        members: Those that make a batch; never empty.
    """

    key: BatchKey
    members: Sequence[Member[_T]]


class Accumulator(Generic[_T]):
    """The rows of one model that wait.

    Args:
        limits: The limits. May be set anew at any time.
        gone: Whether the holder of a ticket has left.

    Attributes:
        rows: The rows of all members that wait.
        turns: The queues with members; the first has its turn.
        late: Members whose deadline passed before they left, to be told so.
        cancelled_rows: Rows dropped so far because their holder had left.
    """

    def __init__(self, limits: Limits, gone: Callable[[_T], bool]) -> None:
        self.limits = limits
        self.rows = 0
        self.turns: deque[RowQueue[_T]] = deque()
        self.late: list[Member[_T]] = []
        self.cancelled_rows = 0
        self._gone = gone
        self._queues: dict[BatchKey, RowQueue[_T]] = {}

    def queue(self, key: BatchKey) -> RowQueue[_T]:
        """Return the queue of a kind of rows; it may be kept, and entered at any later time."""
        queue = self._queues.get(key)
        if queue is None:
            if len(self._queues) >= _MAX_KEPT:
                self._queues = {k: q for k, q in self._queues.items() if q.members}
            queue = self._queues[key] = RowQueue(key)
        return queue

    def enter(self, queue: RowQueue[_T], members: Sequence[Member[_T]]) -> None:
        """Let members wait. The caller made sure that there is room."""
        if members and not queue.members:
            self.turns.append(queue)
        rows = sum(map(rows_of, members))
        queue.members.extend(members)
        queue.more_rows += rows - len(members)
        self.rows += rows

    def has_room(self, rows: int) -> bool:
        """Return whether so many rows more may wait."""
        return self.rows + rows <= self.limits.queued_rows

    def take(self, now: float, *, late: bool = True) -> Departure[_T] | None:
        """Take the next batch, or ``None`` if nothing may leave now.

        Members whose deadline has passed are moved to :attr:`late`; ``late=False`` says that there
        are none.
        """
        for _ in range(len(self.turns)):
            queue = self.turns.popleft()
            members = self._leave(queue, now, late=late)
            if queue.members:
                self.turns.append(queue)
            if members:
                return Departure(queue.key, members)
        return None

    def _leave(self, queue: RowQueue[_T], now: float, *, late: bool) -> list[Member[_T]]:
        """Take a batch of those still there, if the queue is full enough or has waited enough."""
        while queue.members and self._due_at(queue) <= now:
            members = queue.pop(self.limits)
            self.rows -= sum(map(rows_of, members))
            members = self._present(members)
            if late:
                members = self._in_time(members, now)
            if members:
                return members
        return []

    def _present(self, members: list[Member[_T]]) -> list[Member[_T]]:
        gone = self._gone
        present = [member for member in members if not gone(member[0])]
        if len(present) < len(members):
            self.cancelled_rows += sum(map(rows_of, members)) - sum(map(rows_of, present))
        return present

    def _in_time(self, members: list[Member[_T]], now: float) -> list[Member[_T]]:
        self.late += [member for member in members if member[5] <= now]
        return [member for member in members if member[5] > now]

    def _due_at(self, queue: RowQueue[_T]) -> float:
        """Return when the queue's first batch may leave, whatever comes."""
        if not self.limits.linger_s or queue.is_full(self.limits):
            return -math.inf
        return queue.members[0][4] + self.limits.linger_s

    def due_at(self) -> float:
        """Return when the next batch may leave; infinity if nothing waits."""
        return min(map(self._due_at, self.turns), default=math.inf)

    def clear_away(self, now: float) -> None:
        """Drop those whose holder has left, and move those whose time is up to :attr:`late`."""
        for queue in self.turns:
            queue.keep(self._in_time(self._present(list(queue.members)), now))
        self.turns = deque([queue for queue in self.turns if queue.members])
        self.rows = sum([queue.rows for queue in self.turns])

    def members(self) -> list[Member[_T]]:
        """Return all that wait."""
        return [member for queue in self.turns for member in queue.members]

    def drain(self) -> list[Member[_T]]:
        """Take all that wait, whether their holder has left or not."""
        members = self.members()
        for queue in self.turns:
            queue.keep(())
        self.turns.clear()
        self.rows = 0
        return members
