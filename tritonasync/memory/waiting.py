"""Those who wait for room in shared memory, in the order in which they came.

Owns: the order, and their deadlines. Refuses to know: what they wait for, and when there is some.

Invariants: who waits is told something once; who leaves is not in the line any more, and what was
handed to it at that moment is given back.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tritonasync.core.deadline import Deadline
from tritonasync.core.watch import Watch
from tritonasync.memory.lease import Lease


@dataclass(eq=False, slots=True)
class Waiter:
    """One who waits for a slot.

    Attributes:
        nbytes: How large.
        purpose: What for.
        model: The model, for errors.
        deadline: Until when.
        future: Gets the slot, or an error.
    """

    nbytes: int
    purpose: str
    model: str | None
    deadline: Deadline
    future: asyncio.Future[Lease]

    def fail(self, error: Exception) -> None:
        """Tell an error, if nothing was told yet."""
        if not self.future.done():
            self.future.set_exception(error)


class WaitingLine:
    """The line of one event loop.

    Args:
        moved: Called when somebody left the line unserved: the next one may want less.
    """

    def __init__(self, moved: Callable[[], None]) -> None:
        self._moved = moved
        self._waiters: deque[Waiter] = deque()
        self._watch: Watch | None = None

    def __len__(self) -> int:
        return len(self._waiters)

    def append(self, waiter: Waiter) -> None:
        """Let somebody wait as the last; :meth:`result` is to be awaited then."""
        if self._watch is None:
            self._watch = Watch(waiter.future.get_loop(), self._look)
        self._waiters.append(waiter)
        self._watch.expect(waiter.deadline.at)

    async def result(self, waiter: Waiter) -> Lease:
        """Return what one who waits gets; raises what it is told."""
        try:
            return await waiter.future
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            del waiter  # else the error's traceback leads to the future, and that to the error

    def _leave(self, waiter: Waiter) -> None:
        future = waiter.future
        if future.done() and not future.cancelled():
            if future.exception() is None:  # handed over while the task was being cancelled
                future.result().release()
            return
        with suppress(ValueError):  # whoever looked since then has seen that it was cancelled
            self._waiters.remove(waiter)
        self._moved()

    def _look(self, now: float) -> float:
        """Tell those whose time is up; return when the next one's is."""
        late = [waiter for waiter in self._waiters if waiter.deadline.at <= now]
        for waiter in late:
            self._waiters.remove(waiter)
            waiter.fail(waiter.deadline.error("memory", model=waiter.model))
        if late:
            self._moved()
        return min([waiter.deadline.at for waiter in self._waiters], default=math.inf)

    def serve(self, serve: Callable[[Waiter], bool]) -> None:
        """Serve the first as long as it can be; ``serve`` tells whether it was done with."""
        waiters = self._waiters
        while waiters and (waiters[0].future.done() or serve(waiters[0])):
            waiters.popleft()

    def close(self, error: Callable[[Waiter], Exception]) -> None:
        """Tell an error to each who waits."""
        while self._waiters:
            waiter = self._waiters.popleft()
            waiter.fail(error(waiter))
        if self._watch is not None:
            self._watch.close()
