"""What a user decides about bad days: retries, hedges, health, and which endpoints there are.

Frozen values, checked when they are made. ``routing`` acts on them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tritonasync.core.checks import is_count, is_duration
from tritonasync.core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a call that failed is sent again, and when a second one is sent beside a slow first.

    Only errors that say ``retriable`` are retried; those that may have run only if the handle says
    ``idempotent`` (as it does unless told otherwise). Each attempt prefers an endpoint that was not
    tried yet. The call's deadline is absolute: no attempt gets more time than is left.

    Attributes:
        attempts: The most attempts at one call, the first and hedges included; 1 for no retries.
        backoff_s: The pause before the first retry is drawn from 0 to this many seconds; the upper
            bound doubles with each retry ("full jitter").
        max_backoff_s: The most that the upper bound comes to.
        budget: Retries and hedges of the last 10 s as a share of the calls of the last 10 s.
        min_retries_per_s: Retries and hedges a second that are allowed whatever the share is, so
            that a pool with few calls may retry at all.
        hedge_after_s: Seconds after which a second attempt is sent to another endpoint; the first
            answer wins. ``None``: no hedging by time.
        hedge_percentile: The same, after as long as this share of the model's recent answers took
            (0.95: the slowest twentieth is hedged). ``None``: no hedging by latency.
        cancel_on_server: Whether a call whose caller has left, or whose hedge has won, is cancelled
            on the server as well. Done only on servers from 2.59 on: earlier ones can crash of it
            (server issues #7368, #7472, #8034).

    Raises:
        ConfigurationError: An attribute makes no sense.
    """

    attempts: int = 4
    backoff_s: float = 0.025
    max_backoff_s: float = 1.0
    budget: float = 0.2
    min_retries_per_s: float = 10.0
    hedge_after_s: float | None = None
    hedge_percentile: float | None = None
    cancel_on_server: bool = False

    def __post_init__(self) -> None:
        _check_count(self, "attempts")
        for name in ("backoff_s", "max_backoff_s", "budget", "min_retries_per_s"):
            _check_duration(self, name)
        if self.hedge_after_s is not None:
            _check_duration(self, "hedge_after_s")
        if self.hedge_percentile is not None:
            _check_share(self, "hedge_percentile")
        if self.hedge_after_s is not None and self.hedge_percentile is not None:
            raise ConfigurationError(
                "RetryPolicy: hedge_after_s and hedge_percentile are two ways to say the same "
                "thing; give one"
            )
        if self.hedges and self.attempts == 1:
            raise ConfigurationError("RetryPolicy: a hedge is an attempt; attempts=1 allows none")
        if not isinstance(self.cancel_on_server, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"RetryPolicy: cancel_on_server is True or False, not {self.cancel_on_server!r}"
            )

    @property
    def hedges(self) -> bool:
        """Whether second attempts are sent beside slow first ones."""
        return self.hedge_after_s is not None or self.hedge_percentile is not None


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When an endpoint is left out, and how it comes back.

    An endpoint (or one model on it) is ejected after ``consecutive_failures``, or when
    ``failure_rate`` of its calls of the last ``window_s`` failed; or when it has answered nothing,
    neither calls nor a probe, for ``silence_s + probe_timeout_s`` with calls out. After
    ``ejection_s`` (doubled each time) it is tried again, and if that goes well its share of the
    traffic grows over ``slow_start_s``. If every endpoint is ejected, all are used.

    Attributes:
        consecutive_failures: Failures in a row that eject.
        failure_rate: The share of failures that ejects, above 0 and up to 1.
        min_calls: Calls in the window below which the rate says nothing.
        window_s: Seconds that the rate looks back.
        ejection_s: Seconds that the first ejection lasts.
        max_ejection_s: Where doubling stops.
        slow_start_s: Seconds in which the share of traffic grows back; 0 for at once.
        probe_interval_s: Seconds between readiness probes of each endpoint, give or take a fifth;
            ``None`` for none (calls alone decide).
        probe_timeout_s: Seconds after which a probe counts as unanswered. That alone is no failure:
            an endpoint that answers calls is alive however slow its health answers are.
        silence_s: Seconds without any answer, while calls are out, after which an endpoint is
            probed at once.

    Raises:
        ConfigurationError: An attribute makes no sense.
    """

    consecutive_failures: int = 3
    failure_rate: float = 0.5
    min_calls: int = 20
    window_s: float = 10.0
    ejection_s: float = 1.0
    max_ejection_s: float = 30.0
    slow_start_s: float = 5.0
    probe_interval_s: float | None = 5.0
    probe_timeout_s: float = 1.0
    silence_s: float = 0.5

    def __post_init__(self) -> None:
        for name in ("consecutive_failures", "min_calls"):
            _check_count(self, name)
        _check_share(self, "failure_rate")
        _check_duration(self, "slow_start_s")
        for name in ("window_s", "ejection_s", "max_ejection_s", "probe_timeout_s", "silence_s"):
            _check_positive(self, name)
        if self.probe_interval_s is not None:
            _check_positive(self, "probe_interval_s")
        if self.max_ejection_s < self.ejection_s:
            raise ConfigurationError(
                f"HealthPolicy: max_ejection_s={self.max_ejection_s} is below "
                f"ejection_s={self.ejection_s}"
            )


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """An endpoint with a share of its own: where a plain URL is not enough.

    Attributes:
        url: As the pool takes it: ``host:port``, ``unix:/path``, ….
        weight: Its share of the rows, compared with the others' (1 by default).

    Raises:
        ConfigurationError: The URL is no string, or the weight no number above 0.
    """

    url: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise _error(self, "url", "a string", self.url)
        _check_positive(self, "weight")


def _check_count(policy: object, name: str) -> None:
    value: object = getattr(policy, name)
    if not is_count(value):
        raise _error(policy, name, "a whole number from 1 on", value)


def _check_duration(policy: object, name: str) -> None:
    value: object = getattr(policy, name)
    if not is_duration(value):
        raise _error(policy, name, "0 or more", value)


def _check_positive(policy: object, name: str) -> None:
    value: object = getattr(policy, name)
    if not is_duration(value) or value == 0:
        raise _error(policy, name, "above 0", value)


def _check_share(policy: object, name: str) -> None:
    value: object = getattr(policy, name)
    if not is_duration(value) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise _error(policy, name, "above 0 and up to 1", value)


def _error(policy: object, name: str, wanted: str, value: object) -> ConfigurationError:
    return ConfigurationError(f"{type(policy).__name__}: {name} is {wanted}, not {value!r}")
