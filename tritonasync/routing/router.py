"""The stage that picks an endpoint for each call, and another one when that fails.

Owns: the order of attempts, the affinity of sequences. Refuses to know: who is well (``fleet``),
how retries are paced (``retry``), when a second attempt is sent beside a slow one (``hedge``), how
an endpoint is reached.

Invariants: an endpoint's load is raised before anything is awaited and lowered whatever happens;
every attempt is either the caller's own or a task that ends with its call; a step of a sequence
goes to the endpoint that has the sequence's state, or fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import SequenceLostError, SequenceNotFoundError, TritonError
from tritonasync.core.resilience import HealthPolicy, RetryPolicy
from tritonasync.core.values import Call, ClassQuestion, ModelSpec, Reply, SequenceStep
from tritonasync.routing.affinity import Pins, SequenceKey, key_of, sequence_of
from tritonasync.routing.budget import Budget
from tritonasync.routing.fleet import Fleet
from tritonasync.routing.hedge import Hedges
from tritonasync.routing.member import Member
from tritonasync.routing.prober import Prober
from tritonasync.routing.retry import Errand, Retries
from tritonasync.routing.statistics import RoutingStatistics
from tritonasync.routing.streamed import RoutedResponses
from tritonasync.routing.verdict import may_retry

_T = TypeVar("_T")

Send = Callable[[Member], Awaitable[_T]]
"""What is tried on one endpoint."""


_DRAIN_STEP_S: Final = 1.0


class Router:
    """Sends each call to an endpoint (an :class:`~tritonasync.core.ports.Invoker`).

    Must be made inside the running event loop.

    Args:
        retry: When what failed is sent again.
        health: When an endpoint is left out.
        prefer_near: Whether endpoints on the loopback interface come first.

    Attributes:
        fleet: The endpoints.
    """

    def __init__(
        self, retry: RetryPolicy, health: HealthPolicy, *, prefer_near: bool = False
    ) -> None:
        self.fleet: Fleet = Fleet(health, prefer_near=prefer_near)
        self._budget = Budget(share=retry.budget, least_per_s=retry.min_retries_per_s)
        self._retries = Retries(retry, self._budget)
        self._hedges = Hedges(retry, self._budget, self.fleet) if retry.hedges else None
        self._prober = Prober(self.fleet, health)
        self._pins: Pins[Member] = Pins()
        self._emptied: dict[Member, asyncio.Event] = {}
        self._stopped = False

    async def infer(self, call: Call) -> Reply:
        """Run one inference, on another endpoint if one fails it.

        Raises:
            DeadlineExceededError: The call's deadline passed.
            TritonError: The last attempt's error; ``attempts`` has the history.
        """
        if (call.parameters or call.sequence) and (step := sequence_of(call)) is not None:
            return await self._step(call, step, _infer)
        if self._hedges is not None and call.idempotent:
            return await self._hedged(call)
        # The healthy path: no errand, no closure, no tenacity.
        now = time.monotonic()
        self._begin(now)
        key = call.model, call.version
        rows = call.rows or 1
        member = self.fleet.pick(key, now, rows)
        trial = self.fleet.on_trial
        member.attempts += 1
        member.load += rows
        try:
            reply = await member.backend.infer(call)
        except TritonError as error:
            failure = error
        except BaseException:
            member.left(key, time.monotonic() - now, trial=trial)
            raise
        else:
            end = time.monotonic()
            member.answered(key, end, end - now)
            return reply
        finally:
            member.load -= rows
            if member.draining:
                self._left(member)
        try:
            errand = Errand(key, _wanted(call), call.idempotent, now)
            self._failed(errand, member, failure, now, trial=trial)
            return await self._again(errand, failure, lambda m: m.backend.infer(call), rows)
        finally:
            del failure  # it holds this frame, and with it the call, until a collection

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return a model's signature, from whichever endpoint has it.

        Raises as :meth:`infer` does.
        """
        return await self._run(
            Errand(
                (model, version), deadline, idempotent=True, began=time.monotonic(), question=True
            ),
            lambda member: member.backend.describe(model, version, deadline),
            rows=1,
        )

    async def labels(self, question: ClassQuestion, deadline: Deadline) -> tuple[str, ...]:
        """Return the names of an output's classes, from whichever endpoint answers.

        Raises as :meth:`infer` does.
        """
        call = question.call
        key = call.model, call.version
        errand = Errand(
            key, deadline, idempotent=call.idempotent, began=time.monotonic(), question=True
        )
        return await self._run(errand, lambda member: member.backend.labels(question, deadline), 1)

    def stream(self, call: Call) -> RoutedResponses:
        """Return the responses to a call (this is a :class:`StreamInvoker`, too).

        What fails before the first response is tried on another endpoint, as for :meth:`infer`;
        what fails later is raised, since what was given out cannot be taken back. Never hedged.
        """
        return RoutedResponses(call, self._open, self._left)

    async def _open(self, call: Call, send: Callable[[Member, Call], Awaitable[_T]]) -> _T:
        """Have a call's responses begun by an endpoint, another one if that fails."""
        step = sequence_of(call)
        if step is not None:
            return await self._step(call, step, send)
        key = call.model, call.version
        errand = Errand(key, call.deadline, call.idempotent, began=time.monotonic())
        return await self._run(errand, lambda member: send(member, call), call.rows or 1)

    def _begin(self, now: float) -> None:
        self._budget.called(now)
        if self._prober.dormant:
            self._prober.wake()

    # --- attempts -------------------------------------------------------------------------------

    async def _run(self, errand: Errand, send: Send[_T], rows: int) -> _T:
        """Try, and try again."""
        self._begin(errand.began)
        member = self.fleet.pick(errand.key, errand.began, rows)
        trial = self.fleet.on_trial
        first = self._attempt(errand, member, send, rows, trial=trial)
        return await self._persist(errand, first, send, rows)

    async def _persist(self, errand: Errand, first: Awaitable[_T], send: Send[_T], rows: int) -> _T:
        """Await the first attempt, and try again if it fails."""
        try:
            return await first
        except TritonError as error:
            failure = error
        try:
            return await self._again(errand, failure, send, rows)
        finally:
            del failure

    async def _attempt(
        self,
        errand: Errand,
        member: Member,
        send: Send[_T],
        rows: int,
        *,
        hedge: bool = False,
        trial: bool = False,
    ) -> _T:
        began = time.monotonic()
        member.attempts += 1
        member.load += rows
        try:
            answer = await send(member)
        except TritonError as error:
            self._failed(errand, member, error, began, hedge=hedge, trial=trial)
            raise
        except BaseException:
            member.left(errand.key, time.monotonic() - began, trial=trial)
            raise
        finally:
            member.load -= rows
            if member.draining:
                self._left(member)
        now = time.monotonic()
        if errand.question:  # it says nothing of how the model fares
            member.lives(now)
        else:
            member.answered(errand.key, now, now - began)
        return answer

    def _failed(
        self,
        errand: Errand,
        member: Member,
        error: TritonError,
        began: float,
        *,
        hedge: bool = False,
        trial: bool = False,
    ) -> None:
        now = time.monotonic()
        member.failed(errand.key, error, now, now - began, trial=trial)
        errand.note(member, error, began, hedge=hedge)

    async def _again(self, errand: Errand, failure: TritonError, send: Send[_T], rows: int) -> _T:
        def permitted(error: TritonError) -> bool:
            return not self._stopped and may_retry(
                error,
                idempotent=errand.idempotent,
                elsewhere=self.fleet.has_other(errand.tried),
            )

        async def attempt() -> _T:
            member = self.fleet.pick_other(errand.key, errand.tried, time.monotonic())
            return await self._attempt(errand, member, send, rows)

        try:
            if not permitted(failure):
                raise errand.sign(failure)
            return await self._retries.again(errand, failure, permitted, attempt)
        finally:
            del failure

    async def _hedged(self, call: Call) -> Reply:
        assert self._hedges is not None  # noqa: S101 - asked by the caller
        errand = Errand(
            (call.model, call.version), _wanted(call), idempotent=True, began=time.monotonic()
        )
        rows = call.rows or 1

        def send(member: Member) -> Awaitable[Reply]:
            return member.backend.infer(call)

        self._begin(errand.began)

        async def attempt(member: Member, *, hedge: bool) -> Reply:
            return await self._attempt(errand, member, send, rows, hedge=hedge)

        return await self._persist(errand, self._hedges.race(errand, attempt), send, rows)

    # --- sequences ------------------------------------------------------------------------------

    async def _step(
        self, call: Call, step: SequenceStep, send: Callable[[Member, Call], Awaitable[_T]]
    ) -> _T:
        """Run one step of a sequence where the sequence's state is.

        A step changes the state, so that none is sent twice; only the first may go elsewhere, if it
        certainly did not run. If it may have run, the sequence is remembered, for a step that
        closes it.
        """
        errand = Errand(
            (call.model, call.version), call.deadline, idempotent=False, began=time.monotonic()
        )
        rows = call.rows or 1
        once = replace(call, idempotent=False)
        key = key_of(call, step)

        def take(member: Member) -> Awaitable[_T]:
            if step.start:  # before it is answered, for steps that are sent on its heels
                self._pins.pin(key, member, errand.began)
            return send(member, once)

        over = step.end
        try:
            if step.start:
                return await self._run(errand, take, rows)
            member = self._find(call, key, errand.began)
            self._begin(errand.began)
            return await self._attempt(errand, member, take, rows)
        except TritonError as error:
            unbegun = step.start and not error.may_have_executed
            over = unbegun or step.end or isinstance(error, SequenceNotFoundError)
            raise
        finally:
            if over:
                self._end(key)

    def _find(self, call: Call, key: SequenceKey, now: float) -> Member:
        """Return the endpoint that has a sequence's state."""
        member = self._pins.find(key, now)
        if member is not None:
            return member
        if call.sequence is not None:
            raise SequenceLostError(
                f"model {call.model!r}, sequence {key[2]!r}: the endpoint with its state was "
                "removed, or it has had no step for an hour: begin a new sequence",
                model=call.model,
            )
        # Begun by somebody else, perhaps: all its steps go to one place.
        member = self.fleet.pick((call.model, call.version), now, call.rows or 1)
        self._pins.pin(key, member, now)
        return member

    def forget_sequence(self, model: str, version: str, number: int | str) -> None:
        """Take note that a sequence is over (this is a :class:`SequenceKeeper`, too)."""
        self._end((model, version, number))

    def _end(self, key: SequenceKey) -> None:
        member = self._pins.find(key, time.monotonic())
        self._pins.release(key)
        if member is not None:
            self._left(member)

    # --- endpoints ------------------------------------------------------------------------------

    async def drain(self, member: Member, deadline: Deadline) -> None:
        """Wait until an endpoint that the fleet retired has answered all, and forget it.

        Sequences whose state is there may go on until the deadline.
        """
        self._pins.expire(time.monotonic())
        emptied = self._emptied[member] = asyncio.Event()
        try:
            while not (self._is_empty(member) or self._stopped or deadline.expired()):
                # In steps, for sequences that nobody goes on with.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(_DRAIN_STEP_S, deadline.remaining())):
                        await emptied.wait()
                self._pins.expire(time.monotonic())
        finally:
            del self._emptied[member]
            self._pins.lost(member)
            self.fleet.drop(member)

    def _is_empty(self, member: Member) -> bool:
        return not member.load and not self._pins.count(member)

    def _left(self, member: Member) -> None:
        """Take note that an attempt on an endpoint that is being removed is over."""
        if member in self._emptied and self._is_empty(member):
            self._emptied[member].set()

    async def stop(self) -> None:
        """Stop watching and retrying: the endpoints are about to be closed."""
        self._stopped = True
        self._retries.stop()
        for emptied in self._emptied.values():
            emptied.set()
        await self._prober.aclose()

    async def aclose(self) -> None:
        """Wait for the end of what hedging began; the endpoints have ended their calls."""
        if self._hedges is not None:
            await self._hedges.aclose()

    def statistics(self) -> RoutingStatistics:
        """Return what routing has done so far."""
        self.fleet.refresh()
        hedges = self._hedges
        return RoutingStatistics(
            retries=self._retries.count,
            hedges=0 if hedges is None else hedges.count,
            hedge_wins=0 if hedges is None else hedges.wins,
            over_budget=self._budget.refused,
            sequences=len(self._pins),
            endpoints=tuple([member.report() for member in self.fleet.members]),
        )


def _infer(member: Member, call: Call) -> Awaitable[Reply]:
    return member.backend.infer(call)


def _wanted(call: Call) -> Deadline:
    """Return until when further attempts may begin."""
    if call.wanted_until >= call.deadline.at:
        return call.deadline
    return Deadline(call.wanted_until, call.deadline.timeout_s)
