"""Percentiles of recent latencies, compared with numpy's; and what recent means."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.routing.latencies import ENOUGH, ERROR, LEAST_S, MOST_S, Latencies

PERIOD_S = 30.0


def close(seconds):
    return pytest.approx(seconds, rel=ERROR * 1.000_001)


def noted(values, now=0.0, latencies=None):
    latencies = latencies or Latencies()
    for seconds in values:
        latencies.note(float(seconds), now)
    return latencies


@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(ENOUGH, 1000),
    typical=st.floats(1e-4, 10),
    spread=st.floats(0, 2),
    share=st.floats(0, 1, exclude_min=True) | st.sampled_from([0.5, 0.95, 0.99, 1.0, 1e-9]),
)
def test_a_percentile_is_numpys_within_the_error(seed, count, typical, spread, share):
    values = typical * np.random.default_rng(seed).lognormal(0, spread, count)
    values = np.clip(values, LEAST_S, MOST_S)
    expected = np.quantile(values, share, method="inverted_cdf")
    assert noted(values).percentile(share, 0.0) == close(expected)


@given(st.floats(LEAST_S, MOST_S) | st.sampled_from([LEAST_S, MOST_S]))
def test_one_value_comes_back_within_the_error_anywhere_in_the_range(seconds):
    assert noted([seconds] * ENOUGH).percentile(0.5, 0.0) == close(seconds)


def test_the_error_is_used_to_both_sides_and_not_beyond():
    values = np.geomspace(0.01, 0.02, 5000)
    seen = [noted([value] * ENOUGH).percentile(1.0, 0.0) / value - 1 for value in values]
    assert max(seen) == pytest.approx(ERROR, rel=0.02)
    assert min(seen) == pytest.approx(-ERROR, rel=0.02)


def test_buckets_keep_the_order_of_what_they_hold():
    values = np.geomspace(LEAST_S, MOST_S, 3000)
    seen = [noted([value] * ENOUGH).percentile(1.0, 0.0) for value in values]
    assert all(low <= high for low, high in pairwise(seen))


@pytest.mark.parametrize(
    ("seconds", "counts_as"),
    [(0.0, LEAST_S), (-1.0, LEAST_S), (1e-9, LEAST_S), (1e9, MOST_S), (math.inf, MOST_S)],
)
def test_what_is_out_of_range_counts_as_its_end(seconds, counts_as):
    assert noted([seconds] * ENOUGH).percentile(0.5, 0.0) == close(counts_as)


@pytest.mark.parametrize("turns", [(), (31.0,), (31.0, 61.0), (100.0,)])
def test_what_is_out_of_range_counts_as_often_as_the_rest(turns):
    latencies, now = Latencies(), 0.0
    for now in turns:
        latencies.note(0.1, now)
    noted([0.0] * 100 + [0.1] * 100 + [math.inf] * 100, now, latencies)
    seen = [latencies.percentile(share, now) for share in (0.32, 0.35, 0.65, 0.68, 1.0)]
    assert seen == [close(LEAST_S), close(0.1), close(0.1), close(MOST_S), close(MOST_S)]


# --- recent --------------------------------------------------------------------------------------


def test_nothing_is_said_until_a_hundred_were_noted():
    latencies = noted([0.1] * 99)
    assert latencies.percentile(0.5, 0.0) is None
    latencies.note(0.1, 0.0)
    assert latencies.percentile(0.5, 0.0) == close(0.1)


def test_a_hundred_may_come_of_two_periods():
    latencies = noted([0.1] * 50, now=1.0)
    noted([0.1] * 49, now=31.0, latencies=latencies)
    assert latencies.percentile(0.5, 31.0) is None
    latencies.note(0.1, 31.0)
    assert latencies.percentile(0.5, 31.0) == close(0.1)
    assert latencies.percentile(0.5, 60.0) is None


@given(at=st.floats(0, 1e6), period_s=st.floats(0.5, 100))
def test_a_latency_counts_for_one_period_at_least_and_two_at_most(at, period_s):
    latencies = noted([0.1] * ENOUGH, now=at, latencies=Latencies(period_s=period_s))
    assert latencies.percentile(0.5, at + 0.999 * period_s) == close(0.1)
    assert latencies.percentile(0.5, at + 2.001 * period_s) is None


@pytest.mark.parametrize("to", [0.001, 10.0])
@pytest.mark.parametrize("step_at", [90.0, 104.75, 119.875])
def test_a_step_is_forgotten_within_two_periods(to, step_at):
    latencies, now = Latencies(period_s=PERIOD_S), 0.0
    while now < step_at + 2 * PERIOD_S:
        noted([0.1 if now < step_at else to] * 3, now, latencies)
        latencies.percentile(0.5, now)  # asked for each call, as it is in use
        now += 0.125
    for share in (0.001, 0.5, 1.0):
        assert latencies.percentile(share, step_at + 2 * PERIOD_S) == close(to)


def test_the_period_before_counts_as_much_as_the_running_one():
    latencies = noted([0.1] * 300, now=29.0)
    noted([1.0] * 100, now=31.0, latencies=latencies)
    assert latencies.percentile(0.75, 31.0) == close(0.1)
    assert latencies.percentile(0.76, 31.0) == close(1.0)


@pytest.mark.parametrize("pause_s", [60.0, 61.0, 90.0, 1e6])
def test_after_a_long_pause_nothing_is_recent(pause_s):
    latencies = noted([0.1] * 1000, now=5.0)
    noted([0.2] * (ENOUGH - 1), now=5.0 + pause_s, latencies=latencies)
    assert latencies.percentile(0.5, 5.0 + pause_s) is None
    latencies.note(0.2, 5.0 + pause_s)
    assert latencies.percentile(0.001, 5.0 + pause_s) == close(0.2)


# --- what is kept --------------------------------------------------------------------------------


def test_a_percentile_is_given_again_for_a_tenth_of_a_second():
    latencies = noted([0.1] * ENOUGH)
    assert latencies.percentile(0.5, 1.0) == close(0.1)
    noted([1.0] * 1000, now=1.0, latencies=latencies)
    assert latencies.percentile(0.5, 1.09) == close(0.1)
    assert latencies.percentile(0.5, 1.11) == close(1.0)
    assert latencies.percentile(0.5, 1.12) == close(1.0)


def test_nothing_is_kept_beyond_the_end_of_a_period():
    latencies = noted([0.1] * ENOUGH, now=90.0)
    noted([1.0] * ENOUGH, now=120.0, latencies=latencies)
    assert latencies.percentile(0.25, 149.99) == close(0.1)
    assert latencies.percentile(0.25, 150.0) == close(1.0)


def test_what_is_kept_of_one_share_is_not_given_for_another():
    latencies = noted([0.1] * 100 + [1.0] * 100)
    seen = [latencies.percentile(share, 0.0) for share in (0.25, 0.75, 0.25)]
    assert seen == [close(0.1), close(1.0), close(0.1)]
