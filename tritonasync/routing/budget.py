"""How many retries and hedges there may be: a share of the calls, so that they cannot pile up.

Owns: the counts of the last ``window_s``. Refuses to know: what is retried and why, and clocks;
``now`` is an argument.

When a server fails under its load, retries multiply the load. With a budget of 0.2 they add a fifth
at most, whatever each call's policy would allow (as Finagle's ``RetryBudget`` does it, with a
``percentCanRetry`` and ``minRetriesPerSec`` over a ``ttl``; and gRPC's retry throttling, gRFC A6).

Time is cut into parts of a twentieth of the window; the part that is running and the 20 before are
counted. So they reach back ``window_s`` at least, and less than ``window_s`` and one part.

Invariant: whenever one is allowed, those allowed in the ``window_s`` up to then, itself included,
are at most ``share`` x the calls of that time and up to one part before, + ``least_per_s`` x
``window_s``. They are never more than that in any other interval of ``window_s`` either, with the
calls of the window that ends at the interval's last allowed one.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

PARTS: Final = 20
"""Parts of the window."""


class Budget:
    """Allows retries and hedges.

    Args:
        share: Their share of the calls.
        least_per_s: How many a second are allowed beside the share, on average over the window.
        window_s: Seconds looked back.

    Attributes:
        spent: How many were allowed, ever.
        refused: How many were not.
    """

    __slots__ = (
        "_calls",
        "_least",
        "_marks",
        "_part",
        "_part_ends",
        "_part_s",
        "_share",
        "refused",
        "spent",
    )

    def __init__(self, *, share: float, least_per_s: float, window_s: float = 10.0) -> None:
        self.spent: int = 0
        self.refused: int = 0
        self._share = share
        self._least = least_per_s * window_s
        self._calls = 0
        # What _calls and spent were when each counted part began: a difference is all it takes to
        # know what is in the window, and a call costs no more than to be added.
        self._marks: deque[tuple[int, int]] = deque([(0, 0)], maxlen=PARTS + 1)
        self._part_s = window_s / PARTS
        self._part = 0
        self._part_ends = -math.inf

    def called(self, now: float) -> None:
        """Count a call: its first attempt, not the others."""
        if now >= self._part_ends:
            self._turn(now)
        self._calls += 1

    def spend(self, now: float, *, part: float = 1.0) -> bool:
        """Return whether a retry or hedge may go, and count it.

        Args:
            now: The time.
            part: How much of the allowance may be used up, this one included.
        """
        if now >= self._part_ends:
            self._turn(now)
        calls, spent = self._marks[0]
        allowance = self._share * (self._calls - calls) + self._least
        if self.spent - spent + 1 > part * allowance:
            self.refused += 1
            return False
        self.spent += 1
        return True

    def _turn(self, now: float) -> None:
        part = math.floor(now / self._part_s)
        for _ in range(min(part - self._part, PARTS + 1)):
            self._marks.append((self._calls, self.spent))
        self._part = part
        self._part_ends = (part + 1) * self._part_s
