"""Long work on arrays goes to a worker thread, so that the event loop is free meanwhile.

Owns: how many such threads work at once, and when one is worth its while. Refuses to know: what the
work is.

Invariants: at most one thread a processor, for all handles of an event loop together; a caller that
leaves does so at once when it is still waiting for its turn. numpy lets other threads run during
each of its calls on large arrays, so that the loop gets its turns.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter, move_on_after
from anyio.lowlevel import RunVar

from tritonasync.core.deadline import Deadline
from tritonasync.core.values import Reply

_T = TypeVar("_T")

LONG_NBYTES: Final = 1 << 20
"""From here on, work that writes so many bytes is long: about 1 ms at 1 GB/s, and a worker thread
costs about 0.1 ms."""

_limiter: Final[RunVar[CapacityLimiter]] = RunVar("tritonasync.core.offload")


def reply_nbytes(reply: Reply) -> int:
    """Return the bytes of all outputs of a reply."""
    return sum([array.nbytes for array in reply.outputs.values()])


async def in_worker(work: Callable[[], _T], *, deadline: Deadline, model: str) -> _T:
    """Return what ``work`` returns, run in a worker thread.

    Raises:
        DeadlineExceededError: ``deadline`` passed before its turn came, stage ``"encode"``.
    """
    with move_on_after(deadline.remaining()):
        return await anyio.to_thread.run_sync(work, limiter=_workers())
    raise deadline.error("encode", model=model)


def _workers() -> CapacityLimiter:
    """Return the event loop's own limiter: one belongs to the loop it is first used on."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = CapacityLimiter(os.cpu_count() or 1)
        _limiter.set(limiter)
        return limiter
