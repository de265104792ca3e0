"""What the holders of rows wait on, and how they are told.

Owns: the rule that each is told once, with an error of its own, and never after having left: a
result set on a cancelled future raises in the middle of the others', and an exception object that
is raised in two tasks mixes up their tracebacks.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable
from typing import TypeAlias

from tritonasync.batching.accumulator import Member
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import Stage, TritonError
from tritonasync.core.values import Reply

Landed: TypeAlias = tuple[Reply, int]
"""What a member gets: the reply to its batch, and where its rows begin in it."""

Ticket: TypeAlias = "asyncio.Future[Landed | None]"
"""``None`` tells one who came the short way to go the long one."""


def left(ticket: Ticket) -> bool:
    """Return whether its holder has left, or was told."""
    return ticket.done()


def hand_out(members: Iterable[Member[Ticket]], reply: Reply) -> None:
    """Give each its place in the reply, in order."""
    start = 0
    for member in members:
        ticket = member[0]
        if not ticket.done():
            ticket.set_result((reply, start))
        start += member[2]


def tell(members: Iterable[Member[Ticket]], error: Exception) -> None:
    """Give each that still waits a copy of an error."""
    for ticket, *_ in members:
        if not ticket.done():
            _fail(ticket, _twin(error))


def expire(member: Member[Ticket], stage: Stage, *, model: str) -> None:
    """Tell a member that its time is up, if it still waits."""
    ticket, *_, deadline_at, timeout_s = member
    if not ticket.done():
        _fail(ticket, Deadline(deadline_at, timeout_s).error(stage, model=model))


def _fail(ticket: Ticket, error: Exception) -> None:
    ticket.set_exception(error)
    ticket.exception()  # seen: a caller that is cancelled in this very turn will not look


def _twin(error: Exception) -> Exception:
    """Return an equal error for another waiter."""
    if isinstance(error, TritonError):
        return error.copy()
    try:
        twin = copy.copy(error)  # the user's own, as from a function that gives headers
    except Exception:  # noqa: BLE001 - an exception may refuse to be copied in any way
        return error
    twin.__cause__ = error
    return twin
