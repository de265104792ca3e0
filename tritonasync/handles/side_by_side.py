"""Several calls at once, for one caller.

Owns: how many are out at a time, and what becomes of the others when one fails. Refuses to know:
what they do.

Invariants: none outlives the caller's wait; the error that surfaces is that of the first to fail,
alone, as it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import anyio

_T = TypeVar("_T")


async def side_by_side(
    calls: Sequence[Callable[[], Awaitable[_T]]], *, max_inflight: int
) -> list[_T]:
    """Return what the calls return, in their order.

    Raises:
        Exception: As the first call that failed raised it; the others are cancelled.
    """
    if len(calls) == 1:
        return [await calls[0]()]
    results: dict[int, _T] = {}
    failures: list[Exception] = []

    async def work(waiting: Iterator[tuple[int, Callable[[], Awaitable[_T]]]]) -> None:
        for index, call in waiting:
            try:
                results[index] = await call()
            except Exception as error:  # noqa: BLE001 - kept, and raised below
                failures.append(error)
                tasks.cancel_scope.cancel()

    shared = iter(enumerate(calls))  # each takes the next when it is free
    async with anyio.create_task_group() as tasks:
        for _ in range(min(max_inflight, len(calls))):
            tasks.start_soon(work, shared)
    if failures:
        failure, *_ = failures
        failures.clear()  # its frames refer to them, and it would refer to itself
        try:
            raise failure
        finally:
            del failure
    return [results[index] for index in range(len(calls))]
