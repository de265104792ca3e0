"""The budget over every window: never more than is promised, never less than is due."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tritonasync.routing.budget import PARTS, Budget

WINDOW_S = 10.0
PART_S = WINDOW_S / PARTS  # 0.5: sums of quarters are exact


def within(times, after, until):
    return sum(after < at <= until for at in times)


EVENTS = st.lists(
    st.tuples(
        # Seconds since the one before, in eighths: whole parts, windows, and in between.
        st.one_of(
            st.just(0), st.integers(0, 8), st.integers(70, 90), st.sampled_from([4, 80, 84, 800])
        ).map(lambda eighths: eighths / 8),
        st.integers(0, 12),  # calls
        st.integers(0, 4),  # that want to be sent again
    ),
    max_size=40,
)


@given(
    events=EVENTS,
    share=st.sampled_from([0.0, 0.25, 0.5, 2.0]),
    least=st.sampled_from([0.0, 0.1, 0.5]),
    start=st.sampled_from([0.0, 0.375, 1e6, -3.25]),
)
@example(events=[(0.25, 4, 1), (9.75, 0, 0), (0.25, 0, 1)], share=0.25, least=0.0, start=0.0)
def test_in_every_window_no_more_are_allowed_than_promised_and_no_fewer_than_due(
    events, share, least, start
):
    budget = Budget(share=share, least_per_s=least, window_s=WINDOW_S)
    now, calls, spent, refused = start, [], [], 0
    for wait_s, called, wanted in events:
        now += wait_s
        for _ in range(called):
            budget.called(now)
            calls.append(now)
        for _ in range(wanted):
            window, longer = now - WINDOW_S, now - WINDOW_S - PART_S
            promised = share * within(calls, longer, now) + least * WINDOW_S
            due = share * within(calls, window, now) + least * WINDOW_S
            if budget.spend(now):
                spent.append(now)
                assert within(spent, window, now) <= promised
            else:
                refused += 1
                assert within(spent, longer, now) + 1 > due
    assert (budget.spent, budget.refused) == (len(spent), refused)


def test_retries_are_their_share_of_steady_traffic():
    budget = Budget(share=0.2, least_per_s=0.0)
    for call in range(100_000):
        budget.called(call / 100)
        budget.spend(call / 100)  # each fails
    assert budget.spent == pytest.approx(20_000, rel=0.01)
    assert budget.spent + budget.refused == 100_000


def test_the_least_is_there_without_calls_and_is_used_up():
    budget = Budget(share=0.2, least_per_s=3.0)
    assert [budget.spend(1000.0) for _ in range(31)] == [True] * 30 + [False]
    assert not budget.spend(1000.0 + WINDOW_S - 0.001)
    assert [budget.spend(1000.0 + WINDOW_S + PART_S) for _ in range(31)] == [True] * 30 + [False]


def test_the_share_and_the_least_add_up():
    budget = Budget(share=0.5, least_per_s=0.3)
    for _ in range(4):
        budget.called(5.0)
    assert [budget.spend(5.0) for _ in range(6)] == [True] * 5 + [False]


def test_without_a_share_and_a_least_nothing_is_ever_allowed():
    budget = Budget(share=0.0, least_per_s=0.0)
    for now in range(1000):
        budget.called(float(now))
        assert not budget.spend(float(now))
    assert (budget.spent, budget.refused) == (0, 1000)


def test_what_was_refused_is_not_held_against_later_ones():
    budget = Budget(share=0.0, least_per_s=0.1)
    assert [budget.spend(0.0) for _ in range(1000)].count(True) == 1
    assert budget.spend(WINDOW_S + PART_S)


def test_calls_count_until_the_window_is_over_and_not_a_part_longer():
    def allowed(later_s):
        budget = Budget(share=1.0, least_per_s=0.0)
        budget.called(0.25)
        return budget.spend(0.25 + later_s)

    assert allowed(0.0)
    assert allowed(WINDOW_S)
    assert not allowed(WINDOW_S + PART_S)
    assert not allowed(1e6)


@pytest.mark.parametrize("window_s", [1.0, 60.0])
def test_the_window_is_as_long_as_is_said(window_s):
    budget = Budget(share=0.0, least_per_s=1 / window_s, window_s=window_s)
    assert budget.spend(0.0)
    assert not budget.spend(window_s - 0.001)
    assert budget.spend(window_s * 1.05 + 0.001)


def test_a_clock_that_steps_back_a_little_is_taken_as_standing():
    budget = Budget(share=0.5, least_per_s=0.0)
    budget.called(100.0)
    budget.called(99.0)
    assert budget.spend(98.0)
    assert not budget.spend(100.0)
