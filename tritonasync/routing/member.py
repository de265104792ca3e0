"""One endpoint of the fleet: what is out on it, how it fares.

Owns: the load that balancing compares, the health of the endpoint and of the models on it. Refuses
to know: which other endpoints there are.

Invariants: ``load`` is raised in the turn of the event loop in which the endpoint was picked, and
lowered when the attempt is over; the health of a model is kept only while there is something to
remember.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from tritonasync.core.errors import TritonError
from tritonasync.core.near import is_near
from tritonasync.core.ports import Backend
from tritonasync.core.resilience import HealthPolicy
from tritonasync.routing.health import Health, HealthState
from tritonasync.routing.verdict import Verdict, verdict_of

_NEWS: Final = 0.1
"""Weight of the newest answer in the average latency."""

_DOUBT_S: Final = 1.5
"""An endpoint's excess latency fades in so many seconds without an answer (to a third): what got no
calls because it was slow is tried again; one that took 500 ms where others take 1, after 7 s."""

_MUCH_SLOWER: Final = 2.0
_NOTICED_S: Final = 0.005
"""Differences below these are left to rows in flight: batches differ anyway."""

ModelKey: TypeAlias = tuple[str, str]
"""A model's name and version."""


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """How an endpoint fares.

    Attributes:
        target: The gRPC target.
        state: ``"healthy"``, ``"ejected"``, ``"half_open"`` or ``"recovering"``.
        share: Its share of the rows, compared with the others'; 0 while it is left out (unless all
            are, and all are used).
        pace: The same, less while its answers take much longer than others'.
        latency_s: How long its answers take lately, in seconds; 0 if there were none.
        weight: The share given by the user.
        rows_in_flight: Rows of the attempts that are out on it (a call without rows counts as one).
        attempts: Attempts sent to it.
        failures: Those that spoke against the endpoint, or against the model there.
        ejections: How often it was left out.
        ejected_models: Name and version of the models that are left out here.
        draining: Whether it is being removed.
    """

    target: str
    state: str
    share: float
    pace: float
    latency_s: float
    weight: float
    rows_in_flight: int
    attempts: int
    failures: int
    ejections: int
    ejected_models: tuple[ModelKey, ...]
    draining: bool


class Member:
    """An endpoint, and what routing knows of it.

    Args:
        backend: The endpoint. Borrowed.
        weight: Its share of the rows as the user gave it.
        policy: When it is left out.
        changed: Called when it may take calls that it did not, or the other way round.

    Attributes:
        backend: The endpoint.
        load: Rows of the attempts that are out on it.
        share: Weight times health: above 0 where it may be picked.
        pace: The same, less if its answers take much longer than others'.
        latency_s: How long its answers take lately; 0 if there was none.
        near: Whether it is reached over the loopback interface.
        health: That of the endpoint.
        models: That of each model which failed here lately.
        draining: Whether it is being removed: nothing new is sent to it.
        steady: Whether it is well in all respects, so that an answer is no news.
    """

    __slots__ = (
        "_changed",
        "_last_s",
        "_policy",
        "attempts",
        "backend",
        "draining",
        "failures",
        "health",
        "heard",
        "latency_s",
        "load",
        "models",
        "near",
        "pace",
        "share",
        "steady",
        "target",
        "weight",
    )

    def __init__(
        self,
        backend: Backend,
        *,
        weight: float,
        policy: HealthPolicy,
        changed: Callable[[], None],
    ) -> None:
        self.backend: Backend = backend
        self.target: str = backend.target
        self.weight: float = weight
        self.near: bool = is_near(backend.target)
        self.load: int = 0
        self.share: float = weight
        self.pace: float = weight
        self.health: Health = Health(policy)
        self.models: dict[ModelKey, Health] = {}
        self.draining: bool = False
        self.steady: bool = True
        self.latency_s: float = 0.0
        self._last_s = 0.0
        self.heard: bool = False
        self.attempts: int = 0
        self.failures: int = 0
        self._policy = policy
        self._changed = changed

    def __repr__(self) -> str:
        return f"<Member {self.target} {self.health.state.value} load={self.load}>"

    def answered(self, key: ModelKey, now: float, took_s: float = 0.0) -> None:
        """Take note of a call that was answered, after so many seconds if those are comparable."""
        if took_s:
            # Of two in a row, the quicker: one stall, of the caller's own event loop perhaps, says
            # nothing of the endpoint.
            last, self._last_s = self._last_s, took_s
            quicker = min(last, took_s)
            known = self.latency_s
            self.latency_s = quicker if not known else known + _NEWS * (quicker - known)
            self.heard = True
        self.health.succeeded(now)
        if not self.steady:
            if (model := self.models.get(key)) is not None:
                model.succeeded(now)
            self._changed()

    def lives(self, now: float) -> None:
        """Take note of an answer that says nothing of any model."""
        self.health.succeeded(now)
        if not self.steady:
            self._changed()

    def failed(
        self,
        key: ModelKey,
        error: TritonError,
        now: float,
        took_s: float,
        *,
        trial: bool = False,
    ) -> None:
        """Take note of a call that failed after so many seconds; ``trial``: it was to find out."""
        verdict = verdict_of(error)
        if verdict is Verdict.UNKNOWN:
            self.left(key, took_s, trial=trial)
            return
        if verdict is Verdict.NOBODY:
            self.answered(key, now)
            return
        self.failures += 1
        if verdict is Verdict.ENDPOINT:
            if trial:
                self._drop_model_trial(key)
            self.health.failed(now)
        else:
            self.health.succeeded(now)
            self._model_failed(key, verdict, now)
        self._changed()

    def _model_failed(self, key: ModelKey, verdict: Verdict, now: float) -> None:
        model = self.models.get(key)
        if model is None:
            model = self.models[key] = Health(self._policy)
        if verdict is Verdict.MODEL_MISSING:
            model.condemn(now)
        else:
            model.failed(now, hard=verdict is Verdict.MODEL)

    def left(self, key: ModelKey, waited_s: float, *, trial: bool = False) -> None:
        """Take note of a caller that left, or whose time was up: of its answer nothing is known.

        But that it takes longer than was waited. An endpoint whose model hangs while its health
        answers are good fails nobody; it just lets every call's time run out.
        """
        if waited_s > self.latency_s:
            last, self._last_s = self._last_s, waited_s
            self.latency_s += _NEWS * max(0.0, min(waited_s, last) - self.latency_s)
            self.heard = True
        if trial:
            self.health.drop_trial()
            self._drop_model_trial(key)

    def _drop_model_trial(self, key: ModelKey) -> None:
        if self.models and (model := self.models.get(key)) is not None:
            model.drop_trial()

    def advance(self, now: float) -> float:
        """Let time pass; return when it will change something again.

        The fleet does this, and works out shares and paces from all members' afterwards.
        """
        health = self.health
        health.advance(now)
        self.share = self.pace = 0.0 if self.draining else self.weight * health.weight(now)
        due = health.due_at()
        for key, model in list(self.models.items()):
            model.advance(now)
            if model.quiet(now):
                del self.models[key]
            else:
                due = min(due, model.due_at())
        self.steady = health.state is HealthState.HEALTHY and not self.models
        return due

    def slow_down(self, best_s: float, elapsed_s: float) -> None:
        """Lower the pace of an endpoint whose answers take much longer than the quickest's.

        Rows in flight alone do not tell, where few batches are out at a time: with one of three
        endpoints 500 ms away, every third batch went there, and throughput fell to 3 %.
        """
        if not self.heard and self.latency_s > best_s:  # no news: doubt what is known
            left = math.exp(-elapsed_s / _DOUBT_S)
            self.latency_s = best_s + left * (self.latency_s - best_s)
        self.heard = False
        bearable_s = _MUCH_SLOWER * best_s + _NOTICED_S
        if self.latency_s > bearable_s:
            self.pace *= bearable_s / self.latency_s

    @property
    def well(self) -> bool:
        """Whether the endpoint takes calls as far as it is concerned."""
        return not self.draining and self.health.state in _SERVING

    def takes(self, key: ModelKey) -> bool:
        """Return whether a model may be called here, as far as the model is concerned."""
        model = self.models.get(key)
        return model is None or model.state in _SERVING

    def report(self) -> EndpointHealth:
        """Return how the endpoint fares."""
        return EndpointHealth(
            target=self.target,
            state=self.health.state.value,
            share=self.share,
            pace=self.pace,
            latency_s=self.latency_s,
            weight=self.weight,
            rows_in_flight=self.load,
            attempts=self.attempts,
            failures=self.failures,
            ejections=self.health.ejections,
            ejected_models=tuple(
                [key for key, model in self.models.items() if model.state not in _SERVING]
            ),
            draining=self.draining,
        )


_SERVING: Final = (HealthState.HEALTHY, HealthState.RECOVERING)
