"""Watches the endpoints: asks each now and then whether it is ready, and notices silence.

Owns: one timer and the questions that are out. Refuses to know: what a call is.

An endpoint that swallows what it is sent fails no call: its callers just wait. So an endpoint that
has calls out and has answered nothing for ``silence_s`` is asked at once; if that is not answered
within ``probe_timeout_s`` either, and another endpoint is well, it is left out and those who wait
for it are let go, to be retried by the usual rules. A slow health answer alone is no death: it is
waited for ten times as long, and any answer to a call ends the suspicion.

Invariants: one question at a time for each subject; nothing is asked before the first call, and
nothing at all of a lone endpoint, since there is no choice to be made.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import DeadlineExceededError, TritonError
from tritonasync.core.resilience import HealthPolicy
from tritonasync.routing.fleet import Fleet
from tritonasync.routing.health import Health, HealthState, Probe
from tritonasync.routing.member import Member, ModelKey
from tritonasync.routing.verdict import Verdict, verdict_of

_PATIENCE: Final = 10
"""A question is waited for so many probe timeouts: a late answer is an answer."""

_JITTER: Final = 0.2
"""Probes of many clients would otherwise fall into step."""


_Ready: TypeAlias = Callable[[Deadline], Awaitable[bool]]


class Prober:
    """Watches the endpoints of a fleet.

    Args:
        fleet: The endpoints.
        policy: How often, and how long to wait.

    Attributes:
        dormant: Whether nothing is watched, since nothing is out; :meth:`wake` ends that.
    """

    def __init__(self, fleet: Fleet, policy: HealthPolicy) -> None:
        self._fleet = fleet
        self._policy = policy
        self._tick_s = policy.silence_s / 2
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tick_at = math.inf
        self._questions: dict[object, tuple[asyncio.Task[None], float]] = {}  # since when
        self._ask_at: dict[Member, float] = {}
        self._closed = False
        self.dormant: bool = True

    def wake(self) -> None:
        """Begin to watch: a call is about to be sent."""
        self.dormant = False
        self._schedule(self._tick_s)

    def _schedule(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._tick_at = time.monotonic() + delay_s
        if not self._closed:
            self._timer = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        stalled = now - self._tick_at > self._tick_s
        self._timer = None
        try:
            if not stalled:  # what was answered while the event loop stood still is not seen yet
                self._look(now)
        finally:
            self._next_tick(now)

    def _look(self, now: float) -> None:
        members = self._fleet.members
        if len(members) > 1:
            self._fleet.refresh(now)
            for member in list(members):
                self._watch(member, now)
                self._ask_when_due(member, now)
        for member in [member for member in self._ask_at if member not in members]:
            del self._ask_at[member]

    def _next_tick(self, now: float) -> None:
        if any(member.load for member in self._fleet.members):
            self._schedule(self._tick_s)
            return
        self.dormant = True  # but for the questions that are due sometime
        due = min(self._ask_at.values(), default=math.inf)
        if due < math.inf:
            self._schedule(max(self._tick_s, due - now))

    # --- silence --------------------------------------------------------------------------------

    def _watch(self, member: Member, now: float) -> None:
        if not member.load or member.health.state is HealthState.EJECTED:
            return
        silent_s = now - member.backend.silent_since()
        if silent_s < self._policy.silence_s:
            return
        question = self._questions.get(member)
        if question is None:
            self._ask_member(member, now)
            return
        patience_s = self._policy.probe_timeout_s
        if now - question[1] < patience_s or silent_s < self._policy.silence_s + patience_s:
            return
        if self._fleet.has_well_other(member):
            member.health.condemn(now)
            self._fleet.refresh(now)
            question[0].cancel()  # the next is to go out on a new connection
            member.backend.let_go(
                f"it has answered nothing for {silent_s:.1f} s, neither calls nor a readiness probe"
            )

    # --- questions ------------------------------------------------------------------------------

    def _ask_when_due(self, member: Member, now: float) -> None:
        interval = self._policy.probe_interval_s
        if interval is None:
            return
        due = self._ask_at.setdefault(member, self._next(interval, now))
        half_open = member.health.state is HealthState.HALF_OPEN
        if now >= due or half_open:
            self._ask_at[member] = self._next(interval, now)
            self._ask_member(member, now)
        for key, health in list(member.models.items()):
            if health.state is HealthState.HALF_OPEN:
                self._ask_model(member, key, now)

    @staticmethod
    def _next(interval: float, now: float) -> float:
        return now + interval * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret

    def _ask_member(self, member: Member, now: float) -> None:
        self._ask(member, member.health, member.backend.ready, now)

    def _ask_model(self, member: Member, key: ModelKey, now: float) -> None:
        health = member.models[key]

        def ready(deadline: Deadline) -> Awaitable[bool]:
            return member.backend.model_ready(*key, deadline)

        self._ask(health, health, ready, now)

    def _ask(self, subject: object, health: Health, ready: _Ready, now: float) -> None:
        if subject in self._questions or self._closed:
            return
        task = self._loop.create_task(self._answer(health, ready))
        self._questions[subject] = task, now
        task.add_done_callback(lambda _: self._questions.pop(subject))

    async def _answer(self, health: Health, ready: _Ready) -> None:
        ejections = health.ejections
        try:
            outcome = await _outcome(ready, self._policy.probe_timeout_s * _PATIENCE)
        except DeadlineExceededError:
            if health.state is not HealthState.HALF_OPEN:
                return  # calls decide
            outcome = Probe.UNREACHABLE
        if outcome is None or health.ejections != ejections:
            return  # nothing was learned, or it was asked in another time
        now = time.monotonic()
        if health.probed(outcome, now):
            self._fleet.refresh(now)

    async def aclose(self) -> None:
        """Stop watching. The calls beneath the questions go on to their end."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [task for task, _ in self._questions.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _outcome(ready: _Ready, timeout_s: float) -> Probe | None:
    """Return what a question comes to; ``None`` if nothing was learned.

    Raises:
        DeadlineExceededError: It was not answered.
    """
    try:
        return Probe.READY if await ready(Deadline.after(timeout_s)) else Probe.NOT_READY
    except DeadlineExceededError:
        raise
    except TritonError as error:
        verdict = verdict_of(error)
        if verdict is Verdict.ENDPOINT:
            return Probe.UNREACHABLE
        if verdict in {Verdict.MODEL, Verdict.MODEL_MISSING}:
            return Probe.NOT_READY
        # A restricted protocol, say: whoever answers is alive, and may say no more than that.
        return None if verdict is Verdict.UNKNOWN else Probe.READY
