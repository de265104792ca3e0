"""Slots that nobody holds, while a device finishes its work on them.

Owns: when they are looked at again. Refuses to know: what the work is, what becomes of a slot.

Invariants: the event loop is never blocked, and no thread waits: work that never ends would hold a
thread for ever, and with it the interpreter's exit. A slot is told of once, as done or as lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from tritonasync.core.ports import Completion
from tritonasync.memory.lease import Lease

BUSY_S: Final = 0.0002
"""So long after the last slot came, they are looked at in each turn of the event loop: copies on a
device take some microseconds."""

LEAST_PAUSE_S: Final = 0.001
MOST_PAUSE_S: Final = 0.25
"""The pause is doubled from look to look, from the first to the second of these."""


class Draining:
    """Looks at slots until they are done with.

    Args:
        freed: Told of a slot whose work is done.
        lost: Told of a slot whose work failed, and how.
        hurry: Whether somebody waits for a slot, so that pauses stay short.
    """

    def __init__(
        self,
        freed: Callable[[Lease], None],
        lost: Callable[[Lease, Exception | None], None],
        hurry: Callable[[], bool],
    ) -> None:
        self._freed = freed
        self._lost = lost
        self._hurry = hurry
        self._waits: dict[Lease, list[Completion]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: asyncio.Handle | None = None
        self._busy_until = 0.0
        self._pause_s = 0.0

    def __len__(self) -> int:
        return len(self._waits)

    def is_over(self, lease: Lease, waits: list[Completion]) -> bool:
        """Return whether a slot was told of; what of ``waits`` is done is taken out."""
        try:
            waits[:] = [completion for completion in waits if not completion.done()]
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody knows what goes on there
            self._lost(lease, error)
            return True
        if not waits:
            self._freed(lease)
        return not waits

    def add(self, lease: Lease, waits: list[Completion], loop: asyncio.AbstractEventLoop) -> None:
        """Look at a slot from now on."""
        self._waits[lease] = waits
        self._loop = loop
        self.hasten()

    def hasten(self) -> None:
        """Look at all of them soon, and often again."""
        if self._loop is None or not self._waits:
            return
        self._busy_until = time.monotonic() + BUSY_S
        self._pause_s = 0.0
        if self._next is not None:
            self._next.cancel()
        self._next = self._loop.call_soon(self._look, self._loop)

    def poll(self) -> bool:
        """Look at all of them; return whether one was told of."""
        over = [lease for lease, waits in self._waits.items() if self.is_over(lease, waits)]
        for lease in over:
            del self._waits[lease]
        return bool(over)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next = None
        self.poll()
        if not self._waits:
            return
        if time.monotonic() < self._busy_until:
            self._next = loop.call_soon(self._look, loop)
            return
        most_s = LEAST_PAUSE_S if self._hurry() else MOST_PAUSE_S
        self._pause_s = min(max(LEAST_PAUSE_S, 2 * self._pause_s), most_s)
        self._next = loop.call_later(self._pause_s, self._look, loop)

    def close(self) -> None:
        """Look no more; what is not done with is lost."""
        if self._next is not None:
            self._next.cancel()
        waits, self._waits = self._waits, {}
        for lease in waits:
            self._lost(lease, None)
