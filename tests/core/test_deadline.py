import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConfigurationError, DeadlineExceededError

instants = st.floats(0, 1e9)
spans = st.floats(0, 1e6)


@given(instants, spans, spans)
def test_time_left_and_expiry_agree_at_any_instant(start, timeout_s, elapsed):
    deadline = Deadline.after(timeout_s, now=start)
    now = start + elapsed
    assert deadline.expired(now) == (deadline.remaining(now) == 0)
    assert deadline.remaining(now) == max(0.0, start + timeout_s - now)


def test_a_timeout_of_zero_has_passed_at_once():
    assert Deadline.after(0, now=5.0).expired(5.0)


def test_the_clock_is_the_monotonic_one():
    before = time.monotonic()
    deadline = Deadline.after(10)
    assert before + 10 <= deadline.at <= time.monotonic() + 10
    assert 9 < deadline.remaining() <= 10
    assert not deadline.expired()
    deadline.check("encode")


@pytest.mark.parametrize("timeout_s", [None, math.inf])
def test_no_timeout_is_never(timeout_s):
    assert Deadline.after(timeout_s) is NEVER
    assert NEVER.remaining() == math.inf
    assert not NEVER.expired()


@pytest.mark.parametrize("timeout_s", [-1, -0.001, math.nan, -math.inf])
def test_a_timeout_that_is_no_span_of_time_is_refused(timeout_s):
    with pytest.raises(ConfigurationError, match="timeout_s must be 0 or more"):
        Deadline.after(timeout_s)


@pytest.mark.parametrize("stage", ["headers", "connect", "metadata", "encode", "send", "server"])
def test_the_error_names_who_used_the_time_up(stage):
    with pytest.raises(DeadlineExceededError) as caught:
        Deadline(time.monotonic() - 1, 2.5).check(stage, model="m", endpoint="host:8001")
    error = caught.value
    assert (error.stage, error.timeout_s, error.model, error.endpoint) == (
        stage,
        2.5,
        "m",
        "host:8001",
    )
    assert all(word in str(error) for word in (f"stage {stage!r}", "2.5 s", "'m'", "host:8001"))


def test_the_error_needs_neither_model_nor_endpoint():
    text = str(Deadline(0, 1).error("send"))
    assert text.startswith("the call: the time of 1 s ran out in stage 'send'")


def test_the_time_left_as_asyncio_takes_it():
    assert NEVER.wait_s() is None
    assert 9 < (Deadline.after(10).wait_s() or 0) <= 10


@pytest.mark.parametrize("value", ["5", [], object()])
def test_what_is_no_number_is_refused_by_the_options_name(value):
    with pytest.raises(ConfigurationError, match="close_timeout_s must be 0 or more seconds, not"):
        Deadline.after(value, name="close_timeout_s")
