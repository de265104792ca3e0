"""Sending a failed call again: how often, after which pause, and with whose leave.

Owns: the retry loop, which is tenacity's; the history of attempts. Refuses to know: endpoints'
health, hedging, what an attempt does (a function does that).

Invariants: the healthy path never comes here; no retry begins that the deadline would cut before it
is sent, none without the budget's leave; the error that surfaces is the last one, with the history.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from tritonasync.core.attempt import Attempt
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import PoolClosedError, TritonError
from tritonasync.core.resilience import RetryPolicy
from tritonasync.routing.budget import Budget
from tritonasync.routing.member import Member, ModelKey

if TYPE_CHECKING:
    from tenacity import RetryCallState

_T = TypeVar("_T")

_Outcome: TypeAlias = tuple[_T | None, TritonError | None]


@dataclass(slots=True)
class Errand:
    """What is being tried, and what came of it so far.

    Attributes:
        key: The model's name and version.
        deadline: When the last caller's time is up: no attempt begins after it.
        idempotent: Whether it does no harm if the model runs twice.
        began: When the first attempt began, on the monotonic clock.
        tried: The endpoints that failed.
        history: The attempts that failed.
        may_have_executed: Whether the model may have run in one of them.
        over_budget: Whether the budget did not allow another.
        question: Whether it is a question about the model and no call of it.
    """

    key: ModelKey
    deadline: Deadline
    idempotent: bool
    began: float
    tried: set[Member] = field(default_factory=set[Member])
    history: list[Attempt] = field(default_factory=list[Attempt])
    may_have_executed: bool = False
    over_budget: bool = False
    question: bool = False

    def note(
        self, member: Member, error: TritonError, began: float, *, hedge: bool = False
    ) -> None:
        """Take note of an attempt that failed."""
        self.tried.add(member)
        self.may_have_executed |= error.may_have_executed
        self.history.append(
            Attempt(
                endpoint=member.target,
                began_s=began - self.began,
                took_s=time.monotonic() - began,
                error=type(error).__name__,
                message=error.message,
                hedge=hedge,
            )
        )

    def sign(self, error: TritonError) -> TritonError:
        """Write on the error that surfaces what was tried, and why no more was."""
        if self.over_budget:
            error.message += " (not sent again: the retry budget is used up)"
        if len(self.history) > 1:
            error.attempts = tuple(self.history)
            error.may_have_executed = self.may_have_executed
        return error


class Retries:
    """Repeats what failed, within a policy and a budget.

    Args:
        policy: How often, with which pauses.
        budget: Asked for leave each time.

    Attributes:
        count: Retries so far.
    """

    def __init__(self, policy: RetryPolicy, budget: Budget) -> None:
        self._policy = policy
        self._budget = budget
        self._stopped = asyncio.Event()
        self.count = 0

    async def again(
        self,
        errand: Errand,
        failure: TritonError,
        permitted: Callable[[TritonError], bool],
        attempt: Callable[[], Awaitable[_T]],
    ) -> _T:
        """Try again until it succeeds, is not to be repeated, or may not go on.

        Args:
            errand: What is tried.
            failure: How the first attempt failed.
            permitted: Whether what failed so may be sent again.
            attempt: Makes one more attempt.

        Raises:
            TritonError: The last failure, with the history of attempts.
        """
        # Imported late: failures are rare, and ``import tritonasync`` should cost little.
        from tenacity import (  # noqa: PLC0415 - see above
            AsyncRetrying,
            retry_if_result,
            stop_after_attempt,
            stop_before_delay,
            wait_random_exponential,
        )

        first: list[TritonError] = [failure]
        del failure

        async def once() -> _Outcome[_T]:
            # Errors are returned here, not raised: tenacity's frames would be in their tracebacks,
            # and hold them in turn, and with them the messages, until a collection.
            if first:  # the attempt that brought us here counts as the first
                return None, first.pop()
            if self._stopped.is_set():
                return None, PoolClosedError("the pool was closed before a call was sent again")
            self.count += 1
            try:
                return await attempt(), None
            except TritonError as error:
                return None, error

        policy = self._policy
        enough = stop_after_attempt(
            max(1, policy.attempts - len(errand.history) + 1)
        ) | stop_before_delay(errand.deadline.remaining())
        retrying = AsyncRetrying(
            retry=retry_if_result(lambda outcome: outcome[1] is not None and permitted(outcome[1])),
            wait=wait_random_exponential(multiplier=policy.backoff_s, max=policy.max_backoff_s),
            # In this order: what stops anyway shall not ask the budget.
            stop=lambda state: enough(state) or self._is_over_budget(errand),
            sleep=self._pause,
            retry_error_callback=_last,
        )
        outcome: _Outcome[_T] = await retrying(once)
        answer, error = outcome
        del outcome
        if error is None:
            return cast("_T", answer)
        try:
            raise errand.sign(error)
        finally:
            del error

    def _is_over_budget(self, errand: Errand) -> bool:
        errand.over_budget = not self._budget.spend(time.monotonic())
        return errand.over_budget

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    def stop(self) -> None:
        """End all pauses, and send nothing again: the pool is being closed."""
        self._stopped.set()


def _last(state: RetryCallState) -> object:
    """Return what the last attempt came to, where no other may follow."""
    assert state.outcome is not None  # noqa: S101 - an attempt was made
    return state.outcome.result()
