"""Whether an endpoint, or one model on it, is used: left out when it fails, and brought back.

Owns: the decision for one subject. Refuses to know: what the subject is, who else there is, calls,
probes, clocks; ``now`` is an argument, in seconds of a clock that never goes back.

::

    HEALTHY ──── too many failures, or silence ────► EJECTED ◄───────────┐
       ▲                                              │                  │
       │ the ramp is over               its time is up│   a trial or a   │ failure,
       │                                              ▼   probe fails    │ silence
    RECOVERING ◄── an answer, or a ready probe ─── HALF_OPEN ────────────┤
       └─────────────────────────────────────────────────────────────────┘

``TRANSITIONS`` is all of this, and the only place that says so.

Each ejection in a row lasts twice as long as the one before, up to ``max_ejection_s``. They are in
a row until the subject was healthy, and without a failure, for as long as the last one lasted; then
the next is a first one again. (Envoy's outlier detection lengthens ejections in a row, too, and
shortens them again, step by step, while the host stays healthy.)

What is counted are calls and failed probes, and only in the states that have traffic. The window
begins anew with each ejection, so that what led to one cannot lead to the next. It is cut into
tenths; the one that is running and the ten before are counted, so it reaches back ``window_s`` at
least, and less than a tenth more. It is looked at when something fails: an answer ejects nobody.

Invariants: what comes in while ejected (answers and failures of calls sent before, probes) changes
nothing; at most one trial is out; time that has passed counts whether :meth:`Health.advance` was
called or not, except in what :attr:`Health.state` and :meth:`Health.due_at` show.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from typing import Final

from tritonasync.core.resilience import HealthPolicy

PARTS: Final = 10
"""Parts of the window."""

LEAST_WEIGHT: Final = 0.1
"""The share of traffic that the ramp begins with: with 0 nothing would be learned."""


class HealthState(Enum):
    """How a subject is used."""

    HEALTHY = "healthy"
    EJECTED = "ejected"
    HALF_OPEN = "half_open"
    RECOVERING = "recovering"


class Probe(Enum):
    """How a question for readiness was answered."""

    READY = "ready"
    NOT_READY = "not_ready"
    UNREACHABLE = "unreachable"


class Event(Enum):
    """What can happen to a subject."""

    ANSWERED = "a call was answered"
    FAILED = "a call or a probe failed"
    RAISED = "a call failed in a way that may be its own fault"
    TOO_MANY = "the failures in a row, or their share, reached the limit"
    SILENT = "nothing was answered for too long"
    READY = "a probe was answered with yes"
    NOT_READY = "a probe was answered with no, and no call was answered since the one before"
    TIME_UP = "the ejection or the ramp is over"


_HEALTHY, _EJECTED = HealthState.HEALTHY, HealthState.EJECTED
_HALF_OPEN, _RECOVERING = HealthState.HALF_OPEN, HealthState.RECOVERING

_COUNTING: Final = (_HEALTHY, _RECOVERING)
"""The states with traffic."""

TRANSITIONS: Final[dict[tuple[HealthState, Event], HealthState]] = {
    (before, event): after
    for event, row in {
        # From:           HEALTHY   EJECTED     HALF_OPEN    RECOVERING
        Event.ANSWERED: (_HEALTHY, _EJECTED, _RECOVERING, _RECOVERING),
        Event.FAILED: (_HEALTHY, _EJECTED, _EJECTED, _EJECTED),
        Event.RAISED: (_HEALTHY, _EJECTED, _EJECTED, _RECOVERING),
        Event.TOO_MANY: (_EJECTED, _EJECTED, _EJECTED, _EJECTED),
        Event.SILENT: (_EJECTED, _EJECTED, _EJECTED, _EJECTED),
        Event.READY: (_HEALTHY, _EJECTED, _RECOVERING, _RECOVERING),
        # With one broken model, a server says no for ever, though its other models answer.
        Event.NOT_READY: (_HEALTHY, _EJECTED, _HALF_OPEN, _EJECTED),
        Event.TIME_UP: (_HEALTHY, _HALF_OPEN, _HALF_OPEN, _HEALTHY),
    }.items()
    for before, after in zip(HealthState, row, strict=True)
}
"""The state after an event, by the state before it."""


class Health:
    """The health of one subject.

    Args:
        policy: When it is left out, and how it comes back.
    """

    __slots__ = (
        "_answered",
        "_asked",
        "_counted_until",
        "_ejections",
        "_failures",
        "_forgiven_at",
        "_in_a_row",
        "_length_s",
        "_marks",
        "_part",
        "_part_s",
        "_policy",
        "_probed_after",
        "_row_after",
        "_state",
        "_trial",
        "_until",
    )

    def __init__(self, policy: HealthPolicy) -> None:
        self._policy = policy
        self._state = _HEALTHY
        self._until = math.inf  # when time alone changes the state
        self._ejections = 0
        self._length_s = 0.0  # of the last ejection in a row
        self._forgiven_at = -math.inf  # when the row ends, if healthy; put off by each failure
        self._trial = False  # a live trial is out
        self._asked = False  # a probe said "not ready" since the ejection was over
        # Answers and failures, ever. What else is known of them are their numbers at some time, so
        # that an answer costs no more than to be added.
        self._answered = 0
        self._failures = 0
        self._marks: deque[tuple[int, int]] = deque([(0, 0)], maxlen=PARTS + 1)  # as parts began
        self._probed_after = 0  # answers before the last probe
        self._row_after = 0  # answers before the last hard failure
        self._in_a_row = 0
        self._part_s = policy.window_s / PARTS
        self._part = 0
        self._counted_until = -math.inf  # the part's end: an answer before is no news

    def __repr__(self) -> str:
        return f"<Health {self._state.value} ejections={self._ejections}>"

    @property
    def state(self) -> HealthState:
        """The state, as of the last event."""
        return self._state

    @property
    def ejections(self) -> int:
        """How often it was ejected."""
        return self._ejections

    # --- calls ----------------------------------------------------------------------------------

    def succeeded(self, now: float) -> None:
        """Take note of a call that was answered (0.05 µs: each batch that goes well comes here)."""
        if now < self._counted_until:  # in a state with traffic, and nothing to turn
            self._answered += 1
            return
        self.advance(now)
        self._apply(Event.ANSWERED, now)
        if self._state in _COUNTING:
            self._turn(now)
            self._answered += 1

    def failed(self, now: float, *, hard: bool = True) -> bool:
        """Take note of a call that failed.

        Args:
            now: The time.
            hard: Whether the subject failed for certain. Otherwise (the model raised: its fault or
                the input's) it counts towards the rate only, and ends no row of hard failures.

        Returns:
            Whether it is ejected because of this.
        """
        self.advance(now)
        return self._fail(Event.FAILED if hard else Event.RAISED, now)

    def condemn(self, now: float) -> bool:
        """Eject it whatever was counted; return whether it was not ejected already."""
        self.advance(now)
        self._relapse(now)
        return self._apply(Event.SILENT, now)

    # --- coming back ----------------------------------------------------------------------------

    def probed(self, outcome: Probe, now: float) -> bool:
        """Take note of a readiness probe; return whether the subject may be used otherwise now."""
        changed = self.advance(now)
        proven = self._answered != self._probed_after
        self._probed_after = self._answered
        if outcome is Probe.READY:
            return self._apply(Event.READY, now) or changed
        if outcome is Probe.UNREACHABLE:
            return self._fail(Event.FAILED, now) or changed
        if self._state is _HALF_OPEN:
            changed = not self._asked  # as it is when the ejection is over just now
            self._asked = True
        if proven:
            return changed
        return self._fail(Event.NOT_READY, now) or changed

    def take_trial(self, now: float) -> bool:
        """Return whether one call may be sent to a half-open subject; it is claimed by that.

        Not while one is out; and if there are probes, not before one has said "not ready" (any
        other outcome decides by itself). The trial is over with the next call reported, or with
        :meth:`drop_trial`.
        """
        self.advance(now)
        waits = self._policy.probe_interval_s is not None and not self._asked
        if self._state is not _HALF_OPEN or self._trial or waits:
            return False
        self._trial = True
        return True

    def drop_trial(self) -> None:
        """Take note that the trial ended without telling anything: another one may be made."""
        self._trial = False

    # --- time -----------------------------------------------------------------------------------

    def advance(self, now: float) -> bool:
        """Let time pass; return whether that changed the state."""
        # What is told late happened when it was due.
        return now >= self._until and self._apply(Event.TIME_UP, self._until)

    def due_at(self) -> float:
        """Return when time alone changes the state; infinity if never."""
        return self._until

    def weight(self, now: float) -> float:
        """Return the share of the traffic that it gets, from 0 to 1, of what it would get healthy.

        0 while half open as well: its trials are claimed.
        """
        if self._state is _HEALTHY:
            return 1.0
        if self._state is not _RECOVERING:
            return 0.0
        done = 1.0 - (self._until - now) / self._policy.slow_start_s
        return LEAST_WEIGHT + (1.0 - LEAST_WEIGHT) * min(max(done, 0.0), 1.0)

    def quiet(self, now: float) -> bool:
        """Return whether there is nothing to remember, so that a new one may take its place.

        It is healthy, nothing failed within the window, and its next ejection would be a first one.
        """
        if self._state is not _HEALTHY or now < self._forgiven_at:
            return False
        self._turn(now)
        return self._failures == self._marks[0][1]

    # --- within ---------------------------------------------------------------------------------

    def _fail(self, event: Event, now: float) -> bool:
        """Take a failure in; return whether that ejected it."""
        self._relapse(now)
        if self._apply(event, now):
            return True
        if self._state not in _COUNTING:
            return False
        self._turn(now)
        self._failures += 1
        if event is not Event.RAISED:
            self._in_a_row = self._in_a_row + 1 if self._answered == self._row_after else 1
            self._row_after = self._answered
        return self._too_many() and self._apply(Event.TOO_MANY, now)

    def _too_many(self) -> bool:
        policy = self._policy
        if self._in_a_row >= policy.consecutive_failures:
            return True
        answered, failures = self._marks[0]
        failed = self._failures - failures
        calls = failed + self._answered - answered
        # A quotient, since 0.07 of 100 is more than 7 in floating point.
        return calls >= policy.min_calls and failed / calls >= policy.failure_rate

    def _relapse(self, now: float) -> None:
        """Before trouble in the healthy state: end the row of ejections, or let it go on."""
        if self._state is _HEALTHY:
            if now >= self._forgiven_at:
                self._length_s = 0.0
            self._forgiven_at = now + self._length_s

    def _apply(self, event: Event, now: float) -> bool:
        """Change the state as the table says; return whether it is another one."""
        before = self._state
        self._state = after = TRANSITIONS[before, event]
        if after is before:
            return False
        self._counted_until = -math.inf
        self._until = math.inf
        if after is _EJECTED:
            self._eject(now)
        elif after is _HALF_OPEN:
            self._trial = self._asked = False
        elif after is _RECOVERING:
            self._until = now + self._policy.slow_start_s
            self.advance(now)  # without a slow start, it is over with that
        else:
            self._forgiven_at = now + self._length_s
        return True

    def _eject(self, now: float) -> None:
        policy = self._policy
        self._ejections += 1
        self._length_s = min(max(2 * self._length_s, policy.ejection_s), policy.max_ejection_s)
        self._until = now + self._length_s
        self._in_a_row = 0
        self._marks.clear()
        self._marks.append((self._answered, self._failures))

    def _turn(self, now: float) -> None:
        """Go on to the part of the window that ``now`` is in."""
        part = math.floor(now / self._part_s)
        for _ in range(min(part - self._part, PARTS + 1)):
            self._marks.append((self._answered, self._failures))
        self._part = part
        self._counted_until = (part + 1) * self._part_s
