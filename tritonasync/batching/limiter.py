"""How many batches of one model may be in flight: the limit follows measured latency.

Owns: the estimate of how long a batch takes that waits for nobody, the estimate of how many batches
queue on the way, and the limit that follows from both. Refuses to know: clocks, loops, batches;
``now`` is an argument, and who may send is the driver's business.

The algorithm is TCP Vegas (Brakmo, O'Malley and Peterson, SIGCOMM 1994) with batches in place of
packets. A batch that finds the way free takes ``unloaded`` seconds; with ``limit`` batches out it
takes ``latency``. By Little's law ``limit * (1 - unloaded / latency)`` of them are then queueing,
wherever that is. Below about one, the server idles between two batches, and the limit grows; well
above one, rows wait at the server, where they cannot merge into larger batches any more, and it
shrinks. So a server with N instances ends at N + 1 or N + 2, plus what is on the wire.

Why not increase until an error, and then halve: Triton's queues are unbounded unless the model says
otherwise, so no error ever comes and the limit would end at its bound; where a queue is bounded,
the error is a user's batch. :meth:`Limiter.overloaded` halves all the same.

What differs from Vegas, and why:

- The unloaded latency is no lifetime minimum. An average of the middle half is compared with an
  average of the middle half, because service times vary much more than propagation delays, and a
  minimum would be too low for ever (Netflix's Gradient2 limit averages for that reason). Single
  delays, a collected heap or a late event loop, fall outside of the middle half.
- It depends on rows, so there is one measurement for each power of two of rows, and a line between
  neighbours.
- Under constant load no batch finds the way free, and a stale or inflated estimate would make the
  limit creep up (Low, Peterson and Wang, "Understanding TCP Vegas", on persistent congestion). So
  from time to time the limit is halved for a few batches to measure anew, as BBR's ProbeRTT does
  (Cardwell and others, ACM Queue 2016; draft-ietf-ccwg-bbr) and Envoy's adaptive concurrency. Light
  traffic measures by itself, and needs no probe.
- Large steps need a measurement: before the limit comes down by a third there is a probe, since it
  may be the server that became slower; and if half the limit carries as many rows, half is kept.

Invariants: ``least <= limit <= most`` after every call; the limit grows only by answers to batches
that reached it when they were sent, and only if these are most of the answers; bounded memory, and
about 1 µs for an answer.
"""

from __future__ import annotations

import math
from typing import Final

_LOW: Final = 0.8
"""Batches queued below which the limit grows. One instance with two batches out and a short way has
0.95 of them queued, and never idles; with 0.8, less than 5 % is lost if service times scatter."""
_HIGH: Final = 1.9
_HIGH_PER_LIMIT: Final = 0.1
"""Batches queued above which it shrinks: more than one above ``_LOW``, so that some whole number
fits in between; and wider for large limits, whose estimate is a small difference of large
numbers."""

_WINDOW: Final = 8
"""Answers to a decision at least, and two for each batch of the limit: the error of their middle
half is then a tenth where service times scatter by a third."""
_PROBE: Final = 6
"""Answers to a measurement. A probe of one instance loses the time of twelve ways."""

_FIRST_PERIOD_S: Final = 1.0
_LONGEST_PERIOD_S: Final = 10.0
"""How long a measurement of the unloaded latency holds under constant load. The longest is BBR's
window. It is shorter at first and after surprises, when the measurement was taken amid change, and
doubles each time."""
_PERIOD_DECISIONS: Final = 32
"""For how many decisions it holds at least, so that slow models do not spend their time on probes:
a probe costs about the time of three batches, and these are 256."""
_SURPRISE_DECISIONS: Final = 16
"""Decisions from one probe to another that a surprise asks for."""

_FASTER: Final = 0.7
"""Loaded batches take less than this share of the time of unloaded ones: that cannot be."""
_CARRIES: Final = 0.9
"""Half the limit suffices if it carries more than this share of the rows per second…"""
_SOONER: Final = 0.9
"""…with batches answered in less than this share of the time. Where demand and not capacity is the
bottleneck, half the limit carries as much, too, but batches are not answered sooner."""

_SAME: Final = 1.5
"""Measurements within this factor are averaged; beyond it, the server has changed."""
_CONFIRMS: Final = 1.1
"""Batches that may have queued, and took no longer than this times the unloaded latency, show that
it still holds."""
_FIXED_SHARE: Final = 0.25
"""Share of the unloaded latency that a batch of few rows still takes, where only larger ones were
measured. Too large a share makes the limit run away upwards as batches get smaller, too small a
share keeps it down; of 0, 1/4, 1/2 and 1, a quarter lost least in simulations."""

_UNKNOWN_ROUND_TRIP_S: Final = 0.1
"""For how long refusals count as one before there was any answer."""


class UnloadedLatency:
    """How long a batch takes, by its rows, when it waits for no other batch.

    A measurement is the mean of the middle half of six answers with the same power of two of rows.
    """

    __slots__ = ("_groups", "_known", "_points")

    def __init__(self) -> None:
        self._groups: dict[int, list[tuple[float, int]]] = {}
        self._points: dict[int, tuple[float, float]] = {}  # by power of two: rows, seconds
        self._known: dict[int, float | None] = {}  # by rows: answers of at(), until it changes

    def add(self, rows: int, latency_s: float, *, alone: bool) -> bool:
        """Take one answer in; return whether that completed or confirmed a measurement.

        Args:
            rows: Rows of the batch.
            latency_s: Seconds from sending to the answer.
            alone: The batch certainly queued for nothing. Others can lower or confirm what is
                known, but not raise it.
        """
        power = rows.bit_length()
        group = self._groups.setdefault(power if alone else ~power, [])
        group.append((latency_s, rows))
        return len(group) >= _PROBE and self._measure(power, group, alone=alone)

    def restart(self) -> None:
        """Forget answers that have not become a measurement: they may be of another time."""
        self._groups.clear()

    def conclude(self) -> None:
        """Make measurements of incomplete groups: if they have a middle, or nothing is known."""
        for power, group in self._groups.items():
            if power >= 0 and group and (len(group) > 2 or power not in self._points):
                self._measure(power, group, alone=True)

    def at(self, rows: int) -> float | None:
        """Return the seconds for a batch of ``rows`` rows; ``None`` if far above all measured."""
        try:
            return self._known[rows]
        except KeyError:
            seconds = self._known[rows] = self._interpolated(rows)
            return seconds

    def _measure(self, power: int, group: list[tuple[float, int]], *, alone: bool) -> bool:
        seconds = _middle([latency_s for latency_s, _ in group])
        rows = sum([rows for _, rows in group]) / len(group)
        group.clear()
        old = self._points.get(power)
        if not alone and (old is None or seconds > _CONFIRMS * old[1]):
            return False
        if old is not None and old[1] < _SAME * seconds and seconds < _SAME * old[1]:
            rows, seconds = (rows + old[0]) / 2, (seconds + old[1]) / 2
        self._points[power] = rows, seconds
        self._known.clear()
        return True

    def _interpolated(self, rows: int) -> float | None:
        below: tuple[float, float] | None = None
        for power in sorted(self._points):
            above = self._points[power]
            if above[0] >= rows:
                below = below or (0.0, _FIXED_SHARE * above[1])
                part = (rows - below[0]) / ((above[0] - below[0]) or 1.0)
                return below[1] + part * (above[1] - below[1])
            below = above
        # At most that of the largest: where it is unknown, a low guess keeps the limit down.
        return below[1] if below is not None and rows <= 2 * below[0] else None


class Limiter:
    """The number of batches of one model that may be in flight.

    Args:
        least: The least limit, at least 1.
        most: The highest limit. Equal to ``least``, it is the limit.
        start: The first limit, before anything is known; clipped to the bounds.

    Attributes:
        limit: How many batches may be out now. It is halved for some batches now and then, to
            measure.
    """

    __slots__ = (
        "_behind",
        "_ceiling",
        "_ceiling_until",
        "_deaf_until",
        "_decisions",
        "_held",
        "_least",
        "_measured_at",
        "_most",
        "_peak",
        "_period_s",
        "_resume",
        "_round_trip_s",
        "_seen",
        "_unloaded",
        "_window",
        "limit",
    )

    def __init__(self, *, least: int, most: int, start: int = 4) -> None:
        self.limit: int = min(max(start, least), most)
        self._least = least
        self._most = most
        self._unloaded = UnloadedLatency()
        self._measured_at = -math.inf
        self._period_s = _FIRST_PERIOD_S
        self._decisions = _SURPRISE_DECISIONS  # since the last probe: the first may come at once
        self._peak = self.limit  # the highest limit since the last probe
        self._resume = 0  # the limit to return to after the probe; 0 when none is on
        self._behind = 0  # answers that the probe still waits for
        # Answers since the last decision: of all, how many; of those that held the limit, what.
        self._seen = 0
        self._held: list[tuple[float, int]] = []
        self._window: list[tuple[float, int]] = []  # the latter, of the last decision
        self._round_trip_s = _UNKNOWN_ROUND_TRIP_S
        self._deaf_until = -math.inf
        self._ceiling = most
        self._ceiling_until = -math.inf

    def answered(self, *, rows: int, latency_s: float, in_flight: int, now: float) -> None:
        """Learn from a batch that was answered.

        Args:
            rows: Its rows, at least 1.
            latency_s: Seconds from sending it to its answer.
            in_flight: Batches that were out when it was sent, itself included.
            now: Seconds on a monotonic clock.
        """
        limit = self.limit
        # Sent when the limit was higher, it tells of the queue of that time.
        if in_flight > limit or self._least == self._most or not 0.0 < latency_s < math.inf:
            return
        self._round_trip_s = latency_s
        self._seen += 1
        if in_flight == limit:
            self._held.append((latency_s, rows))
        if self._resume:
            self._unloaded.add(rows, latency_s, alone=True)
            self._behind -= 1
            if not self._behind:
                self._conclude(now)
            return
        alone = in_flight == 1
        if (alone or 2 * in_flight <= limit) and self._unloaded.add(rows, latency_s, alone=alone):
            self._measured_at = now
        if len(self._held) >= max(_WINDOW, 2 * limit):
            self._decide(now)

    def overloaded(self, now: float) -> None:
        """Halve the limit, because the server refused a batch: its queue is full.

        Once in a round trip: the batches sent before the first refusal came tell nothing new. For
        10 s the limit does not come back to where it was refused.
        """
        if now < self._deaf_until:
            return
        full = self._resume or self.limit
        self._resume = 0
        self._deaf_until = now + self._round_trip_s
        self._ceiling = max(self._least, full - 1)
        self._ceiling_until = now + _LONGEST_PERIOD_S
        self._move(full // 2, now)
        self._next_window()

    def _decide(self, now: float) -> None:
        """Grow, shrink, measure, or stay, by the answers that held the limit."""
        self._decisions += 1
        mostly_held = 2 * len(self._held) >= self._seen
        self._window = self._held
        self._next_window()
        stretch = self._stretch()
        if stretch is None or stretch < _FASTER:
            if self._decisions >= _SURPRISE_DECISIONS:
                self._surprise()
            return
        if self._decisions > _PERIOD_DECISIONS and now - self._measured_at > self._period_s:
            self._period_s = min(2 * self._period_s, _LONGEST_PERIOD_S)
            self._probe()
            return
        queued = self.limit * (1.0 - 1.0 / stretch)
        surplus = queued - _HIGH - _HIGH_PER_LIMIT * self.limit
        if queued < _LOW:
            if mostly_held:
                self._move(self.limit + 1 + self.limit // 8, now)
        elif surplus > 0:
            self._shrink(max(1, int(surplus / 2)), now)

    def _stretch(self) -> float | None:
        """Return how much longer batches take than unloaded ones, if most can be compared."""
        at = self._unloaded.at
        known = [
            (latency_s, unloaded_s) for latency_s, rows in self._window if (unloaded_s := at(rows))
        ]
        if 2 * len(known) <= len(self._window):
            return None
        # Not the mean of quotients: small batches that wait for large ones would outweigh them.
        unloaded_s = sum([unloaded_s for _, unloaded_s in known]) / len(known)
        return _middle([latency_s for latency_s, _ in known]) / unloaded_s

    def _shrink(self, step: int, now: float) -> None:
        lower = max(self._least, self.limit - step)
        if 3 * lower < 2 * self._peak:
            self._surprise()
        else:
            self._move(lower, now)

    def _move(self, limit: int, now: float) -> None:
        if now < self._ceiling_until:
            limit = min(limit, self._ceiling)
        self.limit = min(max(limit, self._least), self._most)
        self._peak = max(self._peak, self.limit)

    def _next_window(self) -> None:
        self._seen = 0
        self._held = []

    def _surprise(self) -> None:
        self._period_s = _FIRST_PERIOD_S
        self._unloaded.restart()
        self._probe()

    def _probe(self) -> None:
        """Go on with half the limit until the unloaded latency is measured."""
        self._resume = self.limit
        self.limit = max(self._least, self.limit // 2)
        self._behind = _PROBE
        self._next_window()

    def _conclude(self, now: float) -> None:
        """End the probe: return to the limit before, or keep its half and halve again."""
        self._unloaded.conclude()
        self._measured_at = now
        self._decisions = 0
        half, full = self.limit, self._resume
        self._resume = 0
        if half > max(1, self._least) and self._carries(half, full):
            self._unloaded = UnloadedLatency()  # what half the limit measured had queued, too
            self._window = self._held
            self._probe()
        else:
            self.limit = full
            self._next_window()
        self._peak = self._resume or self.limit

    def _carries(self, half: int, full: int) -> bool:
        """Return whether half the limit served as many rows as the full one, and sooner."""
        if len(self._held) < 3:
            return False
        latency_s, row_rate = _summary(self._held, half)
        before_s, before_rate = _summary(self._window, full)
        return latency_s < _SOONER * before_s and row_rate > _CARRIES * before_rate


def _summary(answers: list[tuple[float, int]], in_flight: int) -> tuple[float, float]:
    """Return the latency in seconds, and the rows per second that it means by Little's law."""
    return (
        _middle([latency_s for latency_s, _ in answers]),
        _middle([in_flight * rows / latency_s for latency_s, rows in answers]),
    )


def _middle(values: list[float]) -> float:
    """Return the mean of the middle half.

    Robust as a median, and right as a mean where answers come in two kinds, as those of four
    instances at work in step do: some wait for a whole batch, the others for none.
    """
    values.sort()
    quarter = len(values) // 4
    middle = values[quarter : len(values) - quarter]
    return sum(middle) / len(middle)
