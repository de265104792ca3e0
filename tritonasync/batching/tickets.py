"""What the holders of rows wait on, and how they are told.

Owns: the rule that each is told once, with an error of its own, and never after having left: a
result set on a cancelled future raises in the middle of the others', and an exception object that
is raised in two tasks mixes up their tracebacks.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable
from operator import methodcaller
from typing import Final, TypeAlias

from tritonasync.batching.group import Group
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import Stage, TritonError
from tritonasync.core.values import Reply

Landed: TypeAlias = tuple[Reply, int]
"""What a holder gets: the reply to the batch, and where its rows begin in it."""

Ticket: TypeAlias = "asyncio.Future[Landed | None]"
"""``None`` tells one who came the short way to go the long one."""


left: Final[Callable[[Ticket], bool]] = methodcaller("done")
"""Whether the holder of a ticket has left, or was told."""


def hand_out(groups: Iterable[Group[Ticket]], reply: Reply) -> None:
    """Give each its place in the reply, in order."""
    start = 0
    for group in groups:
        step = group.rows_each
        for ticket in group.tickets:
            if not ticket.done():
                ticket.set_result((reply, start))
            start += step


def tell(groups: Iterable[Group[Ticket]], error: Exception) -> None:
    """Give each that still waits a copy of an error."""
    for group in groups:
        for ticket in group.tickets:
            if not ticket.done():
                _fail(ticket, _twin(error))


def expire(group: Group[Ticket], stage: Stage, *, model: str) -> None:
    """Tell those of a group who still wait that their time is up."""
    if not all(map(left, group.tickets)):
        tell([group], Deadline(group.deadline_at, group.timeout_s).error(stage, model=model))


def _fail(ticket: Ticket, error: Exception) -> None:
    ticket.set_exception(error)
    ticket.exception()  # seen: a caller that is cancelled in this very turn will not look


def _twin(error: Exception) -> Exception:
    """Return an equal error for another waiter."""
    if isinstance(error, TritonError):
        return error.copy()
    try:  # the user's own, as from a function that gives headers
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - an __init__ with other arguments than `args`, say
        twin = _without_init(error)
    if twin is not error:
        twin.__cause__ = error
    return twin


def _without_init(error: Exception) -> Exception:
    kind = type(error)
    try:
        twin = kind.__new__(kind, *error.args)
    except Exception:  # noqa: BLE001 - a class may refuse in any way
        return error
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    return twin
