"""BatchPolicy: impossible limits are refused when it is made, each by its name."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.policies import BatchPolicy

COUNTS = ("max_rows", "max_nbytes", "min_inflight", "max_inflight", "max_queued_rows")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, math.inf, True, "8", np.float32(4)], ids=repr)
def test_what_is_no_count_is_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=rf"{name} is a whole number from 1 on") as caught:
        BatchPolicy(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "name", [name for name in COUNTS if name not in {"max_rows", "max_nbytes"}]
)
def test_only_the_size_of_a_batch_may_be_left_open(name):
    assert BatchPolicy(max_rows=None, max_nbytes=None) == BatchPolicy()
    with pytest.raises(ConfigurationError, match=rf"{name} is a whole number .* not None"):
        BatchPolicy(**{name: None})


@pytest.mark.parametrize("value", [-0.001, math.nan, math.inf, -math.inf, None, "1", True], ids=str)
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"linger_s is 0 or more seconds, not "):
        BatchPolicy(linger_s=value)


def test_bounds_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigurationError, match="min_inflight=5 is above max_inflight=4"):
        BatchPolicy(min_inflight=5, max_inflight=4)
    with pytest.raises(ConfigurationError, match="min_inflight=17 is above max_inflight=16"):
        BatchPolicy(min_inflight=17)


def test_a_queue_too_small_for_one_batch_is_refused():
    with pytest.raises(ConfigurationError, match=r"max_queued_rows=7 .* max_rows=8"):
        BatchPolicy(max_rows=8, max_queued_rows=7)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_rows": 1, "max_queued_rows": 1, "max_nbytes": 1, "max_inflight": 1},
        {"min_inflight": 3, "max_inflight": 3},
        {"linger_s": 0},
        {"linger_s": 0.005},
        {"max_rows": 8, "max_queued_rows": 8},
        {"max_queued_rows": 1},
    ],
    ids=str,
)
def test_limits_at_the_edge_of_what_is_possible_are_taken(limits):
    policy = BatchPolicy(**limits)
    assert {name: getattr(policy, name) for name in limits} == limits


def test_a_policy_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        BatchPolicy().max_rows = 3
