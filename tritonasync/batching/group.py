"""Rows that came together and go together: those of one call, or single items of one turn.

Owns: cutting and thinning a group without touching its arrays. Refuses to know: what a ticket is.

A group is what makes a row cheap: items of one turn of the event loop share one clock reading, one
deadline and one place in the queue, so that a row is a ticket in one list and an array in another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from operator import not_
from typing import Generic, TypeVar

from tritonasync.core.values import Array

_T = TypeVar("_T")


class Group(Generic[_T]):
    """Rows that came together.

    Attributes:
        tickets: What their holders wait on.
        columns: For each input, an array for each ticket, with or (one row only) without the batch
            axis. Borrowed.
        rows_each: Rows of each ticket.
        nbytes_each: About how many bytes these take on the wire.
        entered_at: When they came, in seconds on the monotonic clock.
        deadline_at: When their holders stop waiting, on the same clock; infinity for never.
        timeout_s: Each holder's whole budget, for messages.
        short_way: Whether they are items that took the short way.
    """

    __slots__ = (
        "columns",
        "deadline_at",
        "entered_at",
        "nbytes_each",
        "rows_each",
        "short_way",
        "tickets",
        "timeout_s",
    )

    def __init__(
        self,
        tickets: Sequence[_T],
        columns: Sequence[Sequence[Array]],
        *,
        rows_each: int,
        nbytes_each: int,
        entered_at: float,
        deadline_at: float,
        timeout_s: float,
        short_way: bool = False,
    ) -> None:
        self.tickets: Sequence[_T] = tickets
        self.columns: Sequence[Sequence[Array]] = columns
        self.rows_each: int = rows_each
        self.nbytes_each: int = nbytes_each
        self.entered_at: float = entered_at
        self.deadline_at: float = deadline_at
        self.timeout_s: float = timeout_s
        self.short_way: bool = short_way

    @property
    def rows(self) -> int:
        """The rows of all tickets."""
        return len(self.tickets) * self.rows_each

    @property
    def nbytes(self) -> int:
        """About how many bytes they take on the wire."""
        return len(self.tickets) * self.nbytes_each

    def _with(self, tickets: Sequence[_T], columns: Sequence[Sequence[Array]]) -> Group[_T]:
        return Group(
            tickets,
            columns,
            rows_each=self.rows_each,
            nbytes_each=self.nbytes_each,
            entered_at=self.entered_at,
            deadline_at=self.deadline_at,
            timeout_s=self.timeout_s,
            short_way=self.short_way,
        )

    def split(self, count: int) -> tuple[Group[_T], Group[_T]]:
        """Return the first tickets and the others, as groups of their own."""
        front, rest = slice(count), slice(count, None)
        return (
            self._with(self.tickets[front], [column[front] for column in self.columns]),
            self._with(self.tickets[rest], [column[rest] for column in self.columns]),
        )

    def without(self, gone: Callable[[_T], bool]) -> Group[_T]:
        """Return the group of those who are not gone: this very one if nobody is."""
        left = list(map(gone, self.tickets))
        if True not in left:
            return self
        stay = list(map(not_, left))
        tickets = list(compress(self.tickets, stay))
        return self._with(tickets, [list(compress(column, stay)) for column in self.columns])


def padded_nbytes(groups: Sequence[Group[_T]]) -> int:
    """Return about how many bytes the rows of groups take when all are as long as the longest."""
    longest = max([group.nbytes_each // group.rows_each for group in groups], default=0)
    return longest * sum([group.rows for group in groups])


def halves(groups: Iterable[Group[_T]]) -> tuple[list[Group[_T]], list[Group[_T]]]:
    """Return two lists with half of the tickets each, in order."""
    rest = deque(groups)
    missing = sum([len(group.tickets) for group in rest]) // 2
    front: list[Group[_T]] = []
    while missing:
        group = rest.popleft()
        if len(group.tickets) > missing:
            group, others = group.split(missing)
            rest.appendleft(others)
        front.append(group)
        missing -= len(group.tickets)
    return front, list(rest)
