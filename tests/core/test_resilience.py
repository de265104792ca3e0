"""The policies for bad days: what makes no sense is refused when they are made, by its name."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from decimal import Decimal

import numpy as np
import pytest

from tritonasync.core.checks import is_count, is_duration
from tritonasync.core.errors import ConfigurationError
from tritonasync.core.resilience import EndpointSpec, HealthPolicy, RetryPolicy

NO_COUNTS = [0, -1, 1.0, 2.5, math.inf, True, "8", None, np.float32(4)]
NO_NUMBERS = [math.nan, math.inf, -math.inf, "1", True, b"1", Decimal(1), [1.0]]
NO_DURATIONS = [-0.001, -1, *NO_NUMBERS]
NO_SHARES = [0, 0.0, 1.001, 2, *NO_DURATIONS]


def endpoint(**fields):
    return EndpointSpec("host:8001", **fields)


COUNTS = [
    (RetryPolicy, "attempts"),
    (HealthPolicy, "consecutive_failures"),
    (HealthPolicy, "min_calls"),
]
DURATIONS = [
    (RetryPolicy, "backoff_s"),
    (RetryPolicy, "max_backoff_s"),
    (RetryPolicy, "budget"),
    (RetryPolicy, "min_retries_per_s"),
    (RetryPolicy, "hedge_after_s"),
    (HealthPolicy, "slow_start_s"),
]
POSITIVES = [
    (HealthPolicy, "window_s"),
    (HealthPolicy, "ejection_s"),
    (HealthPolicy, "max_ejection_s"),
    (HealthPolicy, "probe_interval_s"),
    (HealthPolicy, "probe_timeout_s"),
    (HealthPolicy, "silence_s"),
    (endpoint, "weight"),
]
SHARES = [(RetryPolicy, "hedge_percentile"), (HealthPolicy, "failure_rate")]
OPTIONAL = [
    (RetryPolicy, "hedge_after_s"),
    (RetryPolicy, "hedge_percentile"),
    (HealthPolicy, "probe_interval_s"),
]


def refused(make, name, value, wanted):
    """Make a policy that must be refused, and be told which, what, why."""
    kind = "EndpointSpec" if make is endpoint else make.__name__
    with pytest.raises(ConfigurationError) as caught:
        make(**{name: value})
    assert str(caught.value) == f"{kind}: {name} is {wanted}, not {value!r}"


@pytest.mark.parametrize(("make", "name"), COUNTS)
@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
def test_what_is_no_count_is_refused_by_name(make, name, value):
    refused(make, name, value, "a whole number from 1 on")


@pytest.mark.parametrize(("make", "name"), DURATIONS)
@pytest.mark.parametrize("value", NO_DURATIONS, ids=repr)
def test_what_is_no_duration_is_refused_by_name(make, name, value):
    refused(make, name, value, "0 or more")


@pytest.mark.parametrize(("make", "name"), POSITIVES)
@pytest.mark.parametrize("value", [0, 0.0, *NO_DURATIONS], ids=repr)
def test_what_is_not_above_nothing_is_refused_by_name(make, name, value):
    refused(make, name, value, "above 0")


@pytest.mark.parametrize(("make", "name"), SHARES)
@pytest.mark.parametrize("value", NO_SHARES, ids=repr)
def test_what_is_no_share_is_refused_by_name(make, name, value):
    refused(make, name, value, "above 0 and up to 1")


@pytest.mark.parametrize(
    ("make", "name", "wanted"),
    [
        (make, name, wanted)
        for options, wanted in (
            (COUNTS, "a whole number from 1 on"),
            (DURATIONS, "0 or more"),
            (POSITIVES, "above 0"),
            (SHARES, "above 0 and up to 1"),
        )
        for make, name in options
        if (make, name) not in OPTIONAL
    ],
)
def test_only_what_can_be_left_out_may_be_none(make, name, wanted):
    refused(make, name, None, wanted)


@pytest.mark.parametrize(("make", "name"), OPTIONAL)
def test_none_switches_off_what_can_be_left_out(make, name):
    assert getattr(make(**{name: None}), name) is None


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [(make, name, 1) for make, name in COUNTS]
    + [(make, name, value) for make, name in DURATIONS for value in (0, 0.0, 7, 1e300)]
    + [(make, name, value) for make, name in SHARES for value in (1, 1.0, 1e-9)]
    + [
        (make, name, value)
        for make, name in POSITIVES
        for value in (5e-324, 1)
        if (name, value) != ("max_ejection_s", 5e-324)  # it is no shorter than the first
    ],
)
def test_values_at_the_edge_of_what_makes_sense_are_taken(make, name, value):
    assert getattr(make(**{name: value}), name) == value


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_what_is_neither_true_nor_false_is_refused(value):
    refused(RetryPolicy, "cancel_on_server", value, "True or False")


@pytest.mark.parametrize("value", [True, False])
def test_cancelling_on_the_server_is_switched_on_or_off(value):
    assert RetryPolicy(cancel_on_server=value).cancel_on_server is value


def test_two_ways_to_hedge_exclude_each_other():
    with pytest.raises(ConfigurationError, match="hedge_after_s and hedge_percentile are two ways"):
        RetryPolicy(hedge_after_s=0.1, hedge_percentile=0.95)
    with pytest.raises(ConfigurationError, match="hedge_after_s and hedge_percentile are two ways"):
        RetryPolicy(hedge_after_s=0, hedge_percentile=0.95)


@pytest.mark.parametrize("hedge", [{"hedge_after_s": 0.1}, {"hedge_percentile": 0.95}])
def test_a_hedge_needs_a_second_attempt(hedge):
    with pytest.raises(ConfigurationError, match="attempts=1 allows none"):
        RetryPolicy(attempts=1, **hedge)
    assert RetryPolicy(attempts=2, **hedge).attempts == 2


@pytest.mark.parametrize(
    ("policy", "hedges"),
    [
        (RetryPolicy(), False),
        (RetryPolicy(hedge_after_s=0), True),
        (RetryPolicy(hedge_after_s=0.1), True),
        (RetryPolicy(hedge_percentile=0.95), True),
    ],
)
def test_a_policy_says_whether_it_hedges(policy, hedges):
    assert policy.hedges is hedges


def test_an_ejection_cannot_be_longer_than_the_longest():
    with pytest.raises(ConfigurationError) as caught:
        HealthPolicy(ejection_s=31.0)
    assert str(caught.value) == "HealthPolicy: max_ejection_s=30.0 is below ejection_s=31.0"
    assert HealthPolicy(ejection_s=30.0).ejection_s == 30.0


def test_an_endpoint_weighs_one_unless_told_otherwise():
    assert EndpointSpec("host:8001") == EndpointSpec("host:8001", weight=1)
    assert EndpointSpec("host:8001").url == "host:8001"


@pytest.mark.parametrize("policy", [RetryPolicy(), HealthPolicy(), endpoint()])
def test_a_policy_cannot_be_changed(policy):
    name = type(policy).__slots__[0]
    with pytest.raises(FrozenInstanceError):
        setattr(policy, name, 3)


# --- what a number must be -----------------------------------------------------------------------


@pytest.mark.parametrize(("value", "least"), [(1, 1), (0, 0), (5, 5), (1 << 70, 1), (-2, -3)])
def test_a_whole_number_from_the_least_on_is_a_count(value, least):
    assert is_count(value, least=least)
    assert not is_count(value - 1, least=value)


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
def test_anything_else_is_no_count(value):
    assert not is_count(value)


@pytest.mark.parametrize("value", [True, False])
def test_a_bool_is_no_count_even_from_nothing_on(value):
    assert not is_count(value, least=0)


@pytest.mark.parametrize("value", [0, 0.0, 1, 0.5, 1e308, np.float64(0.5)])
def test_a_finite_number_from_nothing_on_is_a_duration(value):
    assert is_duration(value)


@pytest.mark.parametrize("value", [*NO_DURATIONS, None, False], ids=repr)
def test_anything_else_is_no_duration(value):
    assert not is_duration(value)


def test_a_number_that_no_float_can_hold_is_refused():
    with pytest.raises(ConfigurationError, match="weight is above 0"):
        EndpointSpec("a:1", weight=10**400)
    with pytest.raises(ConfigurationError, match="backoff_s is 0 or more"):
        RetryPolicy(backoff_s=10**400)


@pytest.mark.parametrize("url", [None, 5, b"a:1", ["a:1"]])
def test_the_url_of_an_endpoint_is_a_string(url):
    with pytest.raises(ConfigurationError, match="EndpointSpec: url is a string, not"):
        EndpointSpec(url)
