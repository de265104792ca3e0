"""Several calls at once, for one caller.

Owns: how many are out at a time, and what becomes of the others when one fails. Refuses to know:
what they do.

Invariants: none outlives the caller's wait; the error that surfaces is that of the first to fail,
alone, as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TypeVar, cast

from anyio import CancelScope

_I = TypeVar("_I")
_T = TypeVar("_T")


async def side_by_side(
    call: Callable[[_I], Awaitable[_T]], items: Sequence[_I], *, max_inflight: int
) -> list[_T]:
    """Return what the call gives for each item, in their order.

    Raises:
        Exception: As the first call that failed raised it; the others are cancelled.
    """
    results: list[_T | None] = [None] * len(items)
    shared = iter(enumerate(items))  # each takes the next when it is free

    async def work() -> None:
        for index, item in shared:
            results[index] = await call(item)

    workers = min(len(items), max_inflight)
    if workers == 1:
        await work()
    elif workers:
        await _all_of([work() for _ in range(workers)])
    return cast("list[_T]", results)


async def _all_of(works: Iterable[Coroutine[object, object, None]]) -> None:
    """Run coroutines in tasks until all have ended, or the first has failed."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        error = _first_error(tasks)
    finally:
        await _ended(tasks)
        tasks.clear()
    if error is not None:
        try:
            raise error
        finally:
            del error  # or it, its traceback and this frame would hold one another


def _first_error(tasks: Sequence[asyncio.Task[None]]) -> BaseException | None:
    errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    error = next(filter(None, errors), None)
    if error is None and any(task.cancelled() for task in tasks):  # by none of this file
        return asyncio.CancelledError()
    return error


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel the tasks that have not ended, and wait for them."""
    out = [task for task in tasks if not task.done()]
    for task in out:
        task.cancel()
    if out:
        with CancelScope(shield=True):  # they have been told, and take a turn or two
            await asyncio.wait(out)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # has been looked at
