"""How long answers take: a percentile of the recent ones, learned from the traffic.

Owns: counts of latencies in buckets, and which of them are recent. Refuses to know: what is timed,
what the percentile is for, and clocks; ``now`` is an argument.

Buckets grow in a geometric series, so that the relative error is the same for microseconds and
minutes (DDSketch: Masson, Rim and Lee, VLDB 2019). There are two sets, one for the period that is
running and one for the period before; a new period forgets the older set.

Invariants: a latency counts for one period at least, and two at most; a percentile is off by
``ERROR`` of the true one at most, the smallest latency that at least this share of the recent ones
did not exceed, while that lies within ``LEAST_S`` and ``MOST_S``; bounded memory.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from operator import add
from typing import Final

ERROR: Final = 0.025
"""The largest relative error of a percentile."""

LEAST_S: Final = 1e-6
MOST_S: Final = 1e4
"""What is shorter or longer counts as these."""

ENOUGH: Final = 100
"""Latencies without which nothing is said: of fewer, a 99th percentile is the largest."""

_KEPT_S: Final = 0.1
"""For how long a percentile is given again, since each call asks: to count it up takes 10 µs."""

_GROWTH: Final = (1 + ERROR) / (1 - ERROR)
_PER_BUCKET: Final = 1 / math.log(_GROWTH)
_BUCKETS: Final = int(math.log(MOST_S / LEAST_S) * _PER_BUCKET) + 1


class Latencies:
    """Recent latencies of one model.

    Args:
        period_s: Seconds for which a latency counts at least; at most it is twice as long.
    """

    __slots__ = (
        "_before",
        "_before_count",
        "_count",
        "_kept",
        "_kept_until",
        "_period",
        "_period_ends",
        "_period_s",
        "_running",
    )

    def __init__(self, *, period_s: float = 30.0) -> None:
        self._period_s = period_s
        self._period = 0
        self._period_ends = -math.inf
        self._running = [0] * _BUCKETS
        self._before = [0] * _BUCKETS
        self._count = 0
        self._before_count = 0
        self._kept: dict[float, float] = {}
        self._kept_until = -math.inf

    def note(self, seconds: float, now: float) -> None:
        """Take in how long an answer took."""
        if now >= self._period_ends:
            self._turn(now)
        if LEAST_S < seconds < MOST_S:
            self._running[int(math.log(seconds / LEAST_S) * _PER_BUCKET)] += 1
        else:
            self._running[0 if seconds <= LEAST_S else -1] += 1
        self._count += 1

    def percentile(self, share: float, now: float) -> float | None:
        """Return the seconds that this share of the recent answers did not exceed.

        What was noted in the last 0.1 s may not be counted yet.

        Args:
            share: Above 0 and up to 1: 0.95 for the 95th percentile.
            now: The time.

        Returns:
            ``None`` until 100 were noted recently.
        """
        if now >= self._period_ends:
            self._turn(now)
        if self._count + self._before_count < ENOUGH:
            return None
        if now >= self._kept_until:
            self._kept.clear()
            self._kept_until = now + _KEPT_S
        seconds = self._kept.get(share)
        if seconds is None:
            seconds = self._kept[share] = self._counted(share)
        return seconds

    def _counted(self, share: float) -> float:
        totals = list(accumulate(map(add, self._running, self._before)))
        bucket = bisect_left(totals, math.ceil(share * totals[-1]))
        # The point of the bucket that is as far, relatively, from its lower as from its upper end.
        return LEAST_S * _GROWTH**bucket * (1 + ERROR)

    def _turn(self, now: float) -> None:
        period = math.floor(now / self._period_s)
        if period > self._period:
            next_one = period == self._period + 1
            self._before = self._running if next_one else [0] * _BUCKETS
            self._before_count = self._count if next_one else 0
            self._running = [0] * _BUCKETS
            self._count = 0
            self._kept_until = -math.inf
        self._period = period
        self._period_ends = (period + 1) * self._period_s
