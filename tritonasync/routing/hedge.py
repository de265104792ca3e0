"""A second attempt beside a slow first one; the first answer wins.

Owns: when the second is sent, who wins, what becomes of the loser. Refuses to know: what an attempt
does.

Invariants: both attempts are over when the race is (the loser's await is cancelled; its request is
abandoned and goes on to its end, unless its endpoint may cancel it); a second attempt asks the
budget as a retry does; a race that fails has failed in both attempts.

Each attempt is a task here, some 30 µs, which only those pay who ask for hedging.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeVar, cast

from tritonasync.core.resilience import RetryPolicy
from tritonasync.routing.budget import Budget
from tritonasync.routing.fleet import Fleet
from tritonasync.routing.latencies import Latencies
from tritonasync.routing.member import Member, ModelKey
from tritonasync.routing.retry import Errand

_T_co = TypeVar("_T_co", covariant=True)
_T = TypeVar("_T")

_PART: Final = 0.5
"""Of the budget, that hedges may use up: what is left is for calls that failed. Without a hedge a
call is slower; without a retry it fails."""

_LEAST_DELAY_S: Final = 0.001
"""A percentile of very quick answers is no reason to double the traffic."""


class HedgedAttempt(Protocol[_T_co]):
    """Makes one attempt on an endpoint."""

    def __call__(self, member: Member, *, hedge: bool) -> Coroutine[Any, Any, _T_co]:
        """Return the answer, or raise what the attempt failed of."""
        ...


class Hedges:
    """Races attempts.

    Args:
        policy: After which time a second attempt is sent.
        budget: Asked for leave.
        fleet: Gives the endpoints.

    Attributes:
        count: Second attempts so far.
        wins: Those of them that answered first.
    """

    def __init__(self, policy: RetryPolicy, budget: Budget, fleet: Fleet) -> None:
        self._policy = policy
        self._budget = budget
        self._fleet = fleet
        self._latencies: dict[ModelKey, Latencies] = {}
        self._runners: set[asyncio.Task[Any]] = set()
        self.count: int = 0
        self.wins: int = 0

    async def race(self, errand: Errand, attempt: HedgedAttempt[_T]) -> _T:
        """Return the first answer.

        Raises:
            TritonError: The attempt failed; of two, the last.
        """
        member = self._fleet.pick(errand.key, errand.began)
        delay_s = self._delay_s(errand.key, errand.began)
        if delay_s is None or not self._fleet.has_well_other(member):
            answer = await attempt(member, hedge=False)
        else:
            answer = _result(await self._race(errand, member, delay_s, attempt))
        if self._policy.hedge_percentile is not None:
            now = time.monotonic()
            self._latencies.setdefault(errand.key, Latencies()).note(now - errand.began, now)
        return answer

    def _delay_s(self, key: ModelKey, now: float) -> float | None:
        share = self._policy.hedge_percentile
        if share is None:
            return self._policy.hedge_after_s
        known = self._latencies.get(key)
        learned = None if known is None else known.percentile(share, now)
        return None if learned is None else max(_LEAST_DELAY_S, learned)

    async def _race(
        self, errand: Errand, member: Member, delay_s: float, attempt: HedgedAttempt[_T]
    ) -> tuple[_T | None, BaseException | None]:
        """Return what the race came to.

        An error is not raised here: this frame, which holds its task, would be in its traceback,
        and so they would hold one another.
        """
        first = self._start(attempt(member, hedge=False))
        runners = {first}
        try:
            await asyncio.wait(runners, timeout=delay_s)
            if not first.done():
                second = self._second(errand, member, attempt)
                if second is not None:
                    runners.add(second)
            winner = await _first_answer(runners)
            self.wins += winner is not first
            error = winner.exception()
            return (winner.result(), None) if error is None else (None, error)
        finally:
            losers = [runner for runner in runners if not runner.done()]
            for loser in losers:
                loser.cancel()
            if losers:
                await asyncio.wait(losers)  # a turn of the loop: their requests are not waited for

    def _second(
        self, errand: Errand, member: Member, attempt: HedgedAttempt[_T]
    ) -> asyncio.Task[_T] | None:
        now = time.monotonic()
        other = self._fleet.pick_other(errand.key, (member,), now)
        if other is member or not (other.well and other.takes(errand.key)):
            return None
        if errand.deadline.expired(now) or not self._budget.spend(now, part=_PART):
            return None
        self.count += 1
        return self._start(attempt(other, hedge=True))

    def _start(self, attempt: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(attempt)
        self._runners.add(task)
        task.add_done_callback(self._runners.discard)
        return task

    async def aclose(self) -> None:
        """Wait for attempts that are out, which the endpoints below have ended."""
        await asyncio.gather(*self._runners, return_exceptions=True)


def _result(outcome: tuple[_T | None, BaseException | None]) -> _T:
    answer, error = outcome
    del outcome
    if error is None:
        return cast("_T", answer)
    try:
        raise error
    finally:
        del error


_Runner = asyncio.Task[_T]


async def _first_answer(runners: set[_Runner[_T]]) -> _Runner[_T]:
    """Return the first task that succeeds; if none does, the last that failed."""
    waiting = set(runners)
    while True:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        failed = [runner for runner in done if runner.cancelled() or runner.exception() is not None]
        answered = done - set(failed)
        if answered:
            return answered.pop()
        if not waiting:
            return failed[-1]
