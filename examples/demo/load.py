"""How many calls a second a number of callers get through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import cycle
from typing import TypeVar

Item = TypeVar("Item")


async def calls_per_second(
    call: Callable[[Item], Awaitable[object]],
    items: Iterable[Item],
    *,
    callers: int,
    seconds: float = 2.0,
) -> float:
    """Let ``callers`` tasks call with one item after the other; return calls a second."""
    waiting = cycle(items)
    done = 0
    await call(next(waiting))  # learns the model's signature and warms both sides up
    started = time.perf_counter()

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < started + seconds:
            await call(next(waiting))
            done += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(caller())
    return done / (time.perf_counter() - started)
