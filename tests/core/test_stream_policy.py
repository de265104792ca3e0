"""What a policy for streams refuses."""

import math

import pytest

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.policies import StreamPolicy

COUNTS = (
    "max_streams",
    "max_buffered",
    "max_buffered_nbytes",
    "max_overrun",
    "max_overrun_nbytes",
)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", None])
def test_what_counts_is_a_whole_number_from_one_on(name, value):
    with pytest.raises(ConfigurationError, match=f"{name} is a whole number from 1 on"):
        StreamPolicy(**{name: value})


def test_decoupled_models_share_or_do_not():
    assert StreamPolicy(share_decoupled=True).share_decoupled
    with pytest.raises(ConfigurationError, match="share_decoupled is True or False"):
        StreamPolicy(share_decoupled=1)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "10", None])
def test_an_idle_stream_is_closed_after_some_time(value):
    with pytest.raises(ConfigurationError, match="idle_close_s is more than 0 seconds"):
        StreamPolicy(idle_close_s=value)


@pytest.mark.parametrize(
    ("kept", "most"),
    [("max_buffered", "max_overrun"), ("max_buffered_nbytes", "max_overrun_nbytes")],
)
def test_the_most_that_is_kept_is_not_below_what_is_kept_anyway(kept, most):
    assert StreamPolicy(**{kept: 7, most: 7})
    with pytest.raises(ConfigurationError, match=f"{kept}=8 is above {most}=7"):
        StreamPolicy(**{kept: 8, most: 7})
