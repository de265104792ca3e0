"""One timer for the deadlines of very many who wait.

Owns: when to look next. Refuses to know: who waits, and what becomes of the late.

Invariant: between two looks there is a pause, however closely deadlines follow one another, and if
asked for a rest as well, so that looking takes a bounded share of the event loop's time.

A timer for each would cost 20 µs (a heap push, a cancelled handle to be cleaned up later, a select
with a time limit), to fire almost never.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

PAUSE_S: Final = 0.002
"""The least time between two looks."""

REST: Final = 20
"""A rest of so many times a look's own length leaves 95 % of the event loop's time to others:
looking at 60,000 calls of their own takes about 5 ms. The late are told a little later then."""


def rested(began: float, rest: int = REST) -> float:
    """Return when what began then, and is over now, may be done again."""
    return began + max(PAUSE_S, rest * (time.monotonic() - began))


class Watch:
    """Has a function called at the earliest deadline seen.

    Args:
        loop: The event loop.
        look: Called with the time; returns the next deadline, or infinity.
        rest: How many times its own length a look is followed by a rest.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        look: Callable[[float], float],
        *,
        rest: int = REST,
    ) -> None:
        self._loop = loop
        self._look = look
        self._rest = rest
        self._timer: asyncio.TimerHandle | None = None
        self._at = math.inf
        self._not_before = -math.inf

    def expect(self, deadline_at: float) -> None:
        """Take note of a deadline, in seconds on the monotonic clock."""
        at = max(deadline_at, self._not_before)
        if at >= self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        # Relative, since a loop's clock need not be the monotonic one.
        self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._due)

    def _due(self) -> None:
        self._timer, self._at = None, math.inf
        now = time.monotonic()
        deadline_at = self._look(now)
        self._not_before = rested(now, self._rest)
        self.expect(deadline_at)

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
