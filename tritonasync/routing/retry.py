"""Sending a failed call again: how often, after which pause, and with whose leave.

Owns: the retry loop, which is tenacity's; the history of attempts. Refuses to know: endpoints'
health, hedging, what an attempt does (a function does that).

Invariants: the healthy path never comes here; no retry begins that the deadline would cut before it
is sent, none without the budget's leave; the error that surfaces is the last one, with the history.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import Attempt, TritonError
from tritonasync.core.resilience import RetryPolicy
from tritonasync.routing.budget import Budget
from tritonasync.routing.member import Member, ModelKey

_T = TypeVar("_T")


@dataclass(slots=True)
class Errand:
    """What is being tried, and what came of it so far.

    Attributes:
        key: The model's name and version.
        deadline: When the caller's time is up.
        idempotent: Whether it does no harm if the model runs twice.
        began: When the first attempt began, on the monotonic clock.
        tried: The endpoints that failed.
        history: The attempts that failed.
        may_have_executed: Whether the model may have run in one of them.
        over_budget: Whether the budget did not allow another.
    """

    key: ModelKey
    deadline: Deadline
    idempotent: bool
    began: float
    tried: set[Member] = field(default_factory=set[Member])
    history: list[Attempt] = field(default_factory=list[Attempt])
    may_have_executed: bool = False
    over_budget: bool = False

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
            retry_if_exception,
            stop_after_attempt,
            stop_before_delay,
            wait_random_exponential,
        )

        first: list[TritonError] = [failure]

        async def once() -> _T:
            if first:  # the attempt that brought us here counts as the first
                raise first.pop()
            self.count += 1
            return await attempt()

        policy = self._policy
        enough = stop_after_attempt(
            max(1, policy.attempts - len(errand.history) + 1)
        ) | stop_before_delay(errand.deadline.remaining())
        retrying = AsyncRetrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, TritonError) and permitted(error)
            ),
            wait=wait_random_exponential(multiplier=policy.backoff_s, max=policy.max_backoff_s),
            # In this order: what stops anyway shall not ask the budget.
            stop=lambda state: enough(state) or self._is_over_budget(errand),
            reraise=True,
        )
        try:
            return await retrying(once)
        except TritonError as error:
            raise errand.sign(error)  # noqa: B904 - the same error
        finally:
            del failure

    def _is_over_budget(self, errand: Errand) -> bool:
        errand.over_budget = not self._budget.spend(time.monotonic())
        return errand.over_budget
