"""The limit answer by answer: its bounds whatever comes, what moves it, what is measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.batching.limiter import Limiter, UnloadedLatency

MOST = 16


def new(least=1, most=MOST, start=4):
    return Limiter(least=least, most=most, start=start)


def answer(limiter, latency_s, *, in_flight=None, rows=256, now=0.0, times=1):
    for _ in range(times):
        limiter.answered(
            rows=rows,
            latency_s=latency_s,
            in_flight=limiter.limit if in_flight is None else in_flight,
            now=now,
        )


# --- the bounds ----------------------------------------------------------------------------------

LATENCIES = st.floats(0, 1e9) | st.floats() | st.sampled_from([0.01, 0.02, 0.05, 5e-324, 1e308])
ANSWERS = st.tuples(
    st.integers(1, 1 << 20) | st.just(256),
    LATENCIES,
    st.integers(1, 40) | st.none(),  # None: as many as the limit, which is what decides
    st.integers(1, 40),
)
EVENTS = st.lists(ANSWERS | st.none() | st.floats(0, 100), max_size=60)


@given(least=st.integers(1, 20), room=st.integers(0, 40), start=st.integers(0, 99), events=EVENTS)
def test_the_limit_stays_within_its_bounds_whatever_is_measured(least, room, start, events):
    limiter = new(least, least + room, start)
    now = 0.0
    assert least <= limiter.limit <= least + room
    for event in events:
        if event is None:
            limiter.overloaded(now)
        elif isinstance(event, float):
            now += event
        else:
            rows, latency_s, in_flight, times = event
            for _ in range(times):
                answer(limiter, latency_s, in_flight=in_flight, rows=rows, now=now)
                assert least <= limiter.limit <= least + room
        assert least <= limiter.limit <= least + room
        assert type(limiter.limit) is int


@given(events=EVENTS)
def test_equal_bounds_fix_the_limit(events):
    limiter = new(3, 3)
    for event in events:
        if event is None:
            limiter.overloaded(0.0)
        elif isinstance(event, tuple):
            answer(limiter, event[1], in_flight=event[2], rows=event[0], times=event[3])
        assert limiter.limit == 3


@pytest.mark.parametrize(
    ("least", "most", "start", "limit"), [(1, 16, 4, 4), (6, 16, 4, 6), (1, 2, 4, 2), (5, 5, 1, 5)]
)
def test_the_start_is_clipped_to_the_bounds(least, most, start, limit):
    assert new(least, most, start).limit == limit


@pytest.mark.parametrize("latency_s", [0.0, -1.0, math.nan, math.inf])
def test_impossible_latencies_are_no_measurements(latency_s):
    limiter = new()
    answer(limiter, latency_s, times=500)
    assert limiter.limit == 4


@given(
    latencies=st.lists(st.floats(0.001, 1.0), min_size=20, max_size=200),
    in_flight=st.lists(st.integers(1, 3), min_size=20, max_size=200),
)
def test_answers_below_the_limit_never_move_it(latencies, in_flight):
    limiter = new(start=4)
    for latency_s, out in zip(latencies, in_flight, strict=False):
        answer(limiter, latency_s, in_flight=out)
        assert limiter.limit == 4


def test_answers_at_the_limit_do_not_raise_it_while_most_are_below():
    limiter = new(start=2)
    for _ in range(300):
        answer(limiter, 0.01, in_flight=1, times=3)
        answer(limiter, 0.01, in_flight=2)
        assert limiter.limit <= 2


def test_a_server_that_never_queues_takes_the_limit_to_its_bound():
    limiter = new(most=23)
    for now in range(300):
        answer(limiter, 0.01, now=now / 100, times=10)
    assert limiter.limit == 23


# --- measuring ------------------------------------------------------------------------------------


def limits_under_constant_load(limiter, *, alone):
    """Answer with about one of four batches queued, and with none of two, for 100 s."""
    for second in range(100):
        for _ in range(40):
            answer(limiter, 0.014 if limiter.limit == 4 else 0.010, now=second)
            yield limiter.limit
        if alone:
            answer(limiter, 0.010, in_flight=1, now=second, times=6)


def test_constant_load_is_lightened_now_and_then_to_measure():
    limiter = new()
    answer(limiter, 0.010, in_flight=1, times=6)
    limits = list(limits_under_constant_load(limiter, alone=False))
    assert set(limits) == {4, 2}
    assert 0.9 < limits.count(4) / len(limits) < 1


def test_batches_that_find_the_way_free_make_measuring_needless():
    limiter = new()
    answer(limiter, 0.010, in_flight=1, times=6)
    assert set(limits_under_constant_load(limiter, alone=True)) == {4}


def test_batches_that_may_have_queued_do_not_pass_for_unloaded_ones():
    limiter = new()
    answer(limiter, 0.010, in_flight=1, times=6)
    answer(limiter, 0.020, in_flight=2, times=6)
    answer(limiter, 0.0135, times=8)
    assert limiter.limit == 4


def test_a_limit_whose_half_serves_as_many_rows_sooner_is_halved_further():
    limiter = new(start=8)
    answer(limiter, 0.080, rows=64, times=16)
    assert limiter.limit == 4
    answer(limiter, 0.041, rows=64, times=6)
    assert limiter.limit == 2
    answer(limiter, 0.030, rows=64, times=6)
    assert limiter.limit == 4


def test_larger_batches_at_half_the_limit_do_not_show_that_the_half_suffices():
    """Rows come no faster than that, and gather: as many are served, but none of them sooner."""
    limiter = new(start=8)
    answer(limiter, 0.010, rows=64, times=16)
    assert limiter.limit == 4
    answer(limiter, 0.0105, rows=128, times=6)
    assert limiter.limit == 8


# --- rows ----------------------------------------------------------------------------------------


def test_small_batches_that_wait_for_large_ones_do_not_pass_for_a_long_queue():
    limiter = new()
    answer(limiter, 0.0025, rows=1, in_flight=1, times=6)
    answer(limiter, 0.0100, rows=256, in_flight=1, times=6)
    for _ in range(4):
        answer(limiter, 0.0125, rows=1)
        answer(limiter, 0.0125, rows=256)
    assert limiter.limit == 4


def test_the_unloaded_latency_of_other_rows_lies_on_the_line_between():
    unloaded = UnloadedLatency()
    for _ in range(6):
        unloaded.add(10, 0.010, alone=True)
        unloaded.add(100, 0.100, alone=True)
    assert unloaded.at(10) == pytest.approx(0.010)
    assert unloaded.at(55) == pytest.approx(0.055)
    assert unloaded.at(1) == pytest.approx(0.00325)  # a quarter is fixed, the rest by rows
    assert unloaded.at(150) == pytest.approx(0.100)
    assert unloaded.at(201) is None


def test_the_unloaded_latency_withstands_single_delays():
    unloaded = UnloadedLatency()
    for latency_s in (0.010, 0.100, 0.010, 0.012, 0.008, 0.010):
        unloaded.add(8, latency_s, alone=True)
    assert unloaded.at(8) == pytest.approx(0.0105)


def test_batches_that_may_have_queued_confirm_and_lower_but_never_raise():
    unloaded = UnloadedLatency()
    assert [unloaded.add(8, 0.010, alone=False) for _ in range(6)] == [False] * 6
    assert unloaded.at(8) is None
    for _ in range(6):
        unloaded.add(8, 0.010, alone=True)
    assert not any(unloaded.add(8, 0.012, alone=False) for _ in range(6))
    assert unloaded.at(8) == pytest.approx(0.010)
    assert [unloaded.add(8, 0.004, alone=False) for _ in range(6)][-1]
    assert unloaded.at(8) == pytest.approx(0.004)


# --- overload ------------------------------------------------------------------------------------


def test_a_full_queue_halves_the_limit_once_a_round_trip():
    limiter = new(start=12)
    answer(limiter, 0.05, in_flight=1)
    for now in (1.0, 1.01, 1.049):
        limiter.overloaded(now)
        assert limiter.limit == 6
    limiter.overloaded(1.051)
    assert limiter.limit == 3
    limiter.overloaded(9.0)
    limiter.overloaded(19.0)
    assert limiter.limit == 1


def test_the_first_batches_of_all_may_be_refused_together():
    limiter = new(start=8)
    for _ in range(8):
        limiter.overloaded(0.001)
    assert limiter.limit == 4


def test_a_full_queue_ends_a_measurement_without_halving_twice():
    limiter = new(start=12)
    answer(limiter, 0.05, times=24)
    assert limiter.limit == 6  # measuring
    limiter.overloaded(1.0)
    assert limiter.limit == 6
    answer(limiter, 0.05, in_flight=1, now=2.0, times=20)
    assert limiter.limit == 6  # no return to 12
