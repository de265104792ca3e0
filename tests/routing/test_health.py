"""Health by its rules one by one, and against a reference that keeps a list of all there was."""

from __future__ import annotations

import math
from collections import deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tritonasync.core.resilience import HealthPolicy
from tritonasync.routing.health import (
    LEAST_WEIGHT,
    PARTS,
    TRANSITIONS,
    Event,
    Health,
    HealthState,
    Probe,
)

HEALTHY, EJECTED = HealthState.HEALTHY, HealthState.EJECTED
HALF_OPEN, RECOVERING = HealthState.HALF_OPEN, HealthState.RECOVERING

# Powers of two, so that sums of times are exact.
EJECTION_S = 1.0
LONGEST_S = 8.0
RAMP_S = 4.0
WINDOW_S = 20.0
PART_S = WINDOW_S / PARTS


def policy(**options):
    usual = {
        "window_s": WINDOW_S,
        "ejection_s": EJECTION_S,
        "max_ejection_s": LONGEST_S,
        "slow_start_s": RAMP_S,
        "probe_interval_s": None,
    }
    return HealthPolicy(**{**usual, **options})


def ejected(now=0.0, **options):
    health = Health(policy(**options))
    assert health.condemn(now)
    return health


def half_open(now=0.0, **options):
    health = ejected(now - EJECTION_S, **options)
    assert health.advance(now)
    assert health.state is HALF_OPEN
    return health


def recovering(now=0.0, **options):
    health = half_open(now, **options)
    health.succeeded(now)
    assert health.state is RECOVERING
    return health


def raise_softly(health, times, now=0.0):
    return [health.failed(now, hard=False) for _ in range(times)]


# --- the table -----------------------------------------------------------------------------------


def test_the_table_has_an_entry_for_every_state_and_event_and_no_other():
    assert set(TRANSITIONS) == {(state, event) for state in HealthState for event in Event}
    assert set(TRANSITIONS.values()) <= set(HealthState)


@pytest.mark.parametrize("start", HealthState)
def test_every_state_can_be_reached_from_every_state(start):
    reached, todo = {start}, deque([start])
    while todo:
        before = todo.popleft()
        after = {TRANSITIONS[before, event] for event in Event}
        todo.extend(after - reached)
        reached |= after
    assert reached == set(HealthState)


def test_only_time_ends_an_ejection():
    ways_out = [event for event in Event if TRANSITIONS[EJECTED, event] is not EJECTED]
    assert ways_out == [Event.TIME_UP]


def test_traffic_comes_back_only_through_the_ramp():
    into = {before for (before, _), after in TRANSITIONS.items() if after is HEALTHY is not before}
    assert into == {RECOVERING}


@pytest.mark.parametrize("event", [Event.TOO_MANY, Event.SILENT])
def test_too_many_failures_and_silence_eject_from_every_state(event):
    assert {TRANSITIONS[state, event] for state in HealthState} == {EJECTED}


@pytest.mark.parametrize("state", [HEALTHY, HALF_OPEN])
def test_time_changes_nothing_where_nothing_is_due(state):
    assert TRANSITIONS[state, Event.TIME_UP] is state


def test_the_states_have_names_in_lower_case():
    assert [state.value for state in HealthState] == [
        "healthy",
        "ejected",
        "half_open",
        "recovering",
    ]


# --- what ejects ---------------------------------------------------------------------------------


def test_a_new_one_is_healthy_with_all_its_traffic_and_nothing_to_remember():
    health = Health(policy())
    assert (health.state, health.weight(0.0), health.ejections) == (HEALTHY, 1.0, 0)
    assert health.due_at() == math.inf
    assert health.quiet(0.0)
    assert repr(health) == "<Health healthy ejections=0>"


def test_failures_in_a_row_eject():
    health = Health(policy(consecutive_failures=3))
    assert [health.failed(now) for now in (0.0, 5.0, 5.0)] == [False, False, True]
    assert (health.state, health.weight(5.0), health.ejections) == (EJECTED, 0.0, 1)


def test_an_answer_ends_a_row_of_failures():
    health = Health(policy(consecutive_failures=2))
    for now in range(8):
        assert not health.failed(now)
        health.succeeded(now)
    assert not health.failed(8.0)
    assert health.failed(8.0)


def test_a_soft_failure_neither_lengthens_nor_ends_a_row():
    health = Health(policy(consecutive_failures=2))
    assert not any(raise_softly(health, 5))
    assert not health.failed(0.0)
    assert not any(raise_softly(health, 1))
    assert health.failed(0.0)


def test_a_share_of_failures_ejects_once_there_are_enough_calls():
    health = Health(policy(failure_rate=0.5, min_calls=10))
    for _ in range(4):
        health.succeeded(0.0)
    assert raise_softly(health, 6) == [False] * 5 + [True]


def test_a_share_below_the_limit_does_not_eject():
    health = Health(policy(failure_rate=0.5, min_calls=4))
    for _ in range(50):
        health.succeeded(0.0)
    assert raise_softly(health, 50) == [False] * 49 + [True]


def test_the_share_is_reached_by_exactly_as_many_failures_as_it_says():
    # 0.07 * 100 is more than 7 in floating point.
    health = Health(policy(failure_rate=0.07, min_calls=100))
    for _ in range(93):
        health.succeeded(0.0)
    assert raise_softly(health, 7) == [False] * 6 + [True]


def test_an_answer_ejects_nobody_even_if_it_makes_the_calls_enough():
    health = Health(policy(failure_rate=0.5, min_calls=10))
    raise_softly(health, 9)
    health.succeeded(0.0)
    assert health.state is HEALTHY
    assert health.failed(0.0, hard=False)


@pytest.mark.parametrize("begun_s", [0.0, 0.5, PART_S - 0.125])
def test_the_window_reaches_back_as_long_as_it_says_and_less_than_a_tenth_more(begun_s):
    def ejects(after_s):
        health = Health(policy(failure_rate=0.5, min_calls=10))
        raise_softly(health, 9, begun_s)
        return health.failed(begun_s + after_s, hard=False)

    assert ejects(WINDOW_S)
    assert not ejects(WINDOW_S + PART_S)


def test_answers_fall_out_of_the_window_as_well():
    health = Health(policy(failure_rate=0.5, min_calls=10))
    for second in range(100):
        for _ in range(100):
            health.succeeded(second)
    now = 99.0 + WINDOW_S + PART_S
    assert raise_softly(health, 10, now) == [False] * 9 + [True]


def test_answers_count_for_the_time_when_they_came():
    health = Health(policy(failure_rate=0.5, min_calls=10))
    for _ in range(10):
        health.succeeded(1000.0)
    for now in (1000.0, 1000.0 + WINDOW_S):  # no older than the window
        assert not any(raise_softly(health, 4, now))
    assert not health.failed(1000.0 + WINDOW_S, hard=False)
    assert health.failed(1000.0 + WINDOW_S, hard=False)


def test_an_answer_counts_from_the_part_it_came_in_however_many_came_in_the_one_before():
    health = Health(policy(failure_rate=0.5, min_calls=4))
    for now in (0.0, PART_S):
        for _ in range(8):
            health.succeeded(now)
    # The eight of the first part are out of the window by now, and those of the second are not.
    assert raise_softly(health, 8, PART_S + WINDOW_S) == [False] * 7 + [True]


@pytest.mark.parametrize("start", [-7.25, 0.0, 1e9])
def test_the_clock_may_begin_anywhere(start):
    health = Health(policy(failure_rate=0.5, min_calls=10))
    assert raise_softly(health, 5, start) == [False] * 5
    assert raise_softly(health, 5, start + WINDOW_S) == [False] * 4 + [True]
    assert health.due_at() == start + WINDOW_S + EJECTION_S


def test_a_clock_that_begins_below_zero_has_a_window_of_the_same_length():
    health = Health(policy(failure_rate=0.5, min_calls=10))
    raise_softly(health, 9, -PART_S / 2)
    assert not health.failed(WINDOW_S, hard=False)


def test_silence_ejects_at_once():
    health = Health(policy())
    health.succeeded(0.0)
    assert health.condemn(0.0)
    assert health.state is EJECTED
    assert not health.condemn(0.5)
    assert (health.ejections, health.due_at()) == (1, EJECTION_S)


@pytest.mark.parametrize("make", [half_open, recovering])
def test_silence_ejects_again_for_longer(make):
    health = make()
    assert health.condemn(0.0)
    assert (health.ejections, health.due_at()) == (2, 2 * EJECTION_S)


# --- probes while healthy ------------------------------------------------------------------------


def test_an_unreachable_probe_is_a_hard_failure():
    health = Health(policy(consecutive_failures=2))
    assert not health.failed(0.0)
    assert health.probed(Probe.UNREACHABLE, 0.0)
    assert health.state is EJECTED


def test_a_ready_probe_ends_no_row_of_failures():
    health = Health(policy(consecutive_failures=2))
    health.failed(0.0)
    assert not health.probed(Probe.READY, 0.0)
    assert health.failed(0.0)


def test_a_probe_that_says_no_is_a_failure_if_nothing_was_answered_since_the_last():
    health = Health(policy(consecutive_failures=2))
    health.succeeded(0.0)
    assert not health.probed(Probe.NOT_READY, 0.0)
    assert not health.probed(Probe.NOT_READY, 5.0)
    assert health.probed(Probe.NOT_READY, 10.0)
    assert health.state is EJECTED


def test_a_probe_that_says_no_is_nothing_while_calls_are_answered():
    health = Health(policy(consecutive_failures=1))
    for now in range(20):
        health.succeeded(now)
        assert not health.probed(Probe.NOT_READY, now)
    assert health.state is HEALTHY
    assert health.quiet(20.0)


@pytest.mark.parametrize("outcome", [Probe.READY, Probe.UNREACHABLE])
def test_any_probe_begins_to_wait_for_answers_anew(outcome):
    health = Health(policy(consecutive_failures=2))
    health.succeeded(0.0)
    health.probed(outcome, 0.0)
    health.probed(Probe.NOT_READY, 0.0)
    assert health.state is (HEALTHY if outcome is Probe.READY else EJECTED)
    assert not health.quiet(0.0)


# --- ejected -------------------------------------------------------------------------------------


def test_nothing_that_comes_in_while_ejected_changes_anything():
    health = ejected(0.0, consecutive_failures=1, failure_rate=0.1, min_calls=1)
    for _ in range(5):
        health.succeeded(0.5)
        assert not health.failed(0.5)
        assert not health.failed(0.5, hard=False)
        assert not any(health.probed(outcome, 0.5) for outcome in Probe)
        assert not health.condemn(0.5)
        assert not health.take_trial(0.5)
        assert not health.advance(0.5)
    assert (health.state, health.ejections, health.due_at()) == (EJECTED, 1, EJECTION_S)
    assert not health.quiet(0.5)


def test_what_came_in_while_ejected_is_not_counted_afterwards():
    health = ejected(0.0, failure_rate=0.5, min_calls=10)
    raise_softly(health, 50, 0.5)
    health.advance(EJECTION_S)
    health.succeeded(EJECTION_S)
    assert raise_softly(health, 9, EJECTION_S) == [False] * 8 + [True]


def test_an_ejection_is_over_at_its_time_and_not_before():
    health = ejected(0.0)
    assert not health.advance(math.nextafter(EJECTION_S, 0.0))
    assert health.advance(EJECTION_S)
    assert (health.state, health.weight(EJECTION_S)) == (HALF_OPEN, 0.0)
    assert health.due_at() == math.inf
    assert not health.advance(1e9)


def test_time_that_has_passed_counts_even_if_nobody_said_so():
    health = ejected(0.0)
    health.succeeded(EJECTION_S)
    assert health.state is RECOVERING
    assert not health.failed(EJECTION_S + RAMP_S)  # healthy by now, so one is not too many
    assert health.state is HEALTHY


@pytest.mark.parametrize("outcome", Probe)
def test_a_probe_that_finds_the_ramp_over_is_news(outcome):
    health = recovering()
    assert health.probed(outcome, RAMP_S)
    assert health.state is HEALTHY


# --- how long ------------------------------------------------------------------------------------


def test_ejections_in_a_row_double_up_to_the_longest():
    health = ejected(0.0)
    lengths = []
    while len(lengths) < 6:
        now = health.due_at()
        assert health.advance(now)
        assert health.failed(now)
        lengths.append(health.due_at() - now)
    assert lengths == [2.0, 4.0, 8.0, 8.0, 8.0, 8.0]
    assert health.ejections == 7


def test_doubling_stops_at_the_longest_even_if_that_is_no_multiple():
    health = ejected(0.0, max_ejection_s=1.5)
    health.failed(1.0)
    assert health.due_at() == 2.5


@pytest.mark.parametrize("trouble", ["failure", "silence"])
@pytest.mark.parametrize("ramp_s", [0.0, RAMP_S])
def test_after_as_long_without_a_failure_as_the_last_ejection_the_next_is_a_first_one(
    trouble, ramp_s
):
    def next_length_s(calm_s):
        health = ejected(0.0, slow_start_s=ramp_s, consecutive_failures=1)
        health.failed(1.0)  # for two seconds
        health.succeeded(3.0)
        now = 3.0 + ramp_s + calm_s
        assert health.condemn(now) if trouble == "silence" else health.failed(now)
        return health.due_at() - now

    assert next_length_s(0.0) == 4.0
    assert next_length_s(1.875) == 4.0
    assert next_length_s(2.0) == 1.0


def test_a_failure_begins_the_calm_anew():
    health = ejected(0.0, slow_start_s=0.0)
    health.failed(1.0)
    health.succeeded(3.0)
    health.failed(4.5, hard=False)
    assert health.condemn(6.0)
    assert health.due_at() == 6.0 + 4.0


def test_the_failures_that_lead_to_an_ejection_are_no_end_of_the_calm_before_them():
    health = ejected(0.0, slow_start_s=0.0, consecutive_failures=3)
    health.succeeded(1.0)
    assert [health.failed(now) for now in (9.0, 9.0, 9.0)] == [False, False, True]
    assert health.due_at() == 9.0 + EJECTION_S


# --- half open -----------------------------------------------------------------------------------


def test_an_answer_or_a_ready_probe_begins_the_recovery():
    by_call, by_probe = half_open(), half_open()
    by_call.succeeded(0.0)
    assert by_probe.probed(Probe.READY, 0.0)
    assert by_call.state is by_probe.state is RECOVERING
    assert by_call.due_at() == by_probe.due_at() == RAMP_S


def test_without_a_slow_start_it_is_healthy_at_once():
    by_call, by_probe = half_open(slow_start_s=0.0), half_open(slow_start_s=0.0)
    by_call.succeeded(0.0)
    assert by_probe.probed(Probe.READY, 0.0)
    assert by_call.state is by_probe.state is HEALTHY
    assert by_call.weight(0.0) == 1.0
    assert by_call.due_at() == math.inf


@pytest.mark.parametrize("hard", [True, False])
def test_a_failure_ejects_again(hard):
    health = half_open()
    assert health.failed(0.0, hard=hard)
    assert (health.state, health.due_at()) == (EJECTED, 2 * EJECTION_S)


def test_an_unreachable_probe_ejects_again():
    health = half_open()
    assert health.probed(Probe.UNREACHABLE, 0.0)
    assert (health.state, health.due_at()) == (EJECTED, 2 * EJECTION_S)


def test_there_is_one_trial_at_a_time():
    health = half_open()
    assert health.take_trial(0.0)
    assert not health.take_trial(1.0)
    health.drop_trial()
    assert health.take_trial(1.0)


def test_each_half_open_period_has_its_own_trial():
    health = half_open()
    assert health.take_trial(0.0)
    assert health.failed(0.0)
    assert health.take_trial(health.due_at())


@pytest.mark.parametrize("make", [ejected, recovering, lambda: Health(policy())])
def test_there_are_no_trials_unless_half_open(make):
    assert not make().take_trial(0.0)


def test_with_probes_a_trial_waits_for_one_that_says_not_ready():
    health = half_open(probe_interval_s=5.0)
    assert not health.take_trial(0.0)
    assert health.probed(Probe.NOT_READY, 0.0)
    assert health.state is HALF_OPEN
    assert health.take_trial(0.0)
    assert not health.probed(Probe.NOT_READY, 0.0)  # that is known
    assert not health.take_trial(0.0)


def test_what_a_probe_said_in_one_half_open_period_allows_no_trial_in_the_next():
    health = half_open(probe_interval_s=5.0)
    health.probed(Probe.NOT_READY, 0.0)
    health.failed(0.0)
    now = health.due_at()
    assert health.advance(now)
    assert not health.take_trial(now)


def test_a_late_probe_in_the_ejection_allows_no_trial_after_it():
    health = ejected(0.0, probe_interval_s=5.0)
    health.probed(Probe.NOT_READY, 0.5)
    assert not health.take_trial(EJECTION_S)


# --- recovering ----------------------------------------------------------------------------------


def test_the_traffic_grows_back_from_a_tenth_to_all():
    health = recovering()
    weights = [health.weight(RAMP_S * part) for part in (0.0, 0.5, 1.0, 2.0)]
    assert weights == pytest.approx([LEAST_WEIGHT, 0.55, 1.0, 1.0])
    assert health.due_at() == RAMP_S
    assert not health.advance(math.nextafter(RAMP_S, 0.0))
    assert health.advance(RAMP_S)
    assert (health.state, health.weight(RAMP_S)) == (HEALTHY, 1.0)


def test_neither_answers_nor_ready_probes_shorten_the_recovery():
    health = recovering()
    health.succeeded(1.0)
    assert not health.probed(Probe.READY, 1.0)
    assert (health.state, health.due_at()) == (RECOVERING, RAMP_S)


def test_one_hard_failure_ends_the_recovery():
    health = recovering(consecutive_failures=9)
    assert health.failed(1.0)
    assert (health.state, health.due_at()) == (EJECTED, 1.0 + 2 * EJECTION_S)


def test_a_soft_failure_in_the_recovery_counts_towards_the_rate():
    health = recovering(failure_rate=0.5, min_calls=10)  # one answer
    assert raise_softly(health, 9, 1.0) == [False] * 8 + [True]
    assert health.due_at() == 1.0 + 2 * EJECTION_S


def test_the_failures_that_led_to_the_ejection_are_not_held_against_the_recovery():
    health = Health(policy(failure_rate=0.5, min_calls=10))
    assert raise_softly(health, 10)[-1]
    health.succeeded(EJECTION_S)
    assert raise_softly(health, 8, EJECTION_S) == [False] * 8


def test_a_row_of_failures_begins_anew_after_an_ejection():
    health = Health(policy(consecutive_failures=2, slow_start_s=0.0))
    health.failed(0.0)
    assert health.failed(0.0)
    assert health.probed(Probe.READY, EJECTION_S)
    assert health.state is HEALTHY
    assert not health.failed(EJECTION_S)


def test_an_unreachable_probe_ends_the_recovery():
    health = recovering()
    assert health.probed(Probe.UNREACHABLE, 1.0)
    assert health.state is EJECTED


def test_a_probe_that_says_no_ends_the_recovery_unless_something_was_answered():
    health = recovering()  # by an answer
    assert not health.probed(Probe.NOT_READY, 1.0)
    health.succeeded(1.0)
    assert not health.probed(Probe.NOT_READY, 1.0)
    assert health.probed(Probe.NOT_READY, 2.0)
    assert health.state is EJECTED


# --- nothing to remember -------------------------------------------------------------------------


def test_it_is_quiet_once_its_failures_are_out_of_the_window():
    health = Health(policy())
    health.failed(0.0)
    assert not health.quiet(WINDOW_S)
    assert health.quiet(WINDOW_S + PART_S)


@pytest.mark.parametrize("make", [ejected, half_open, recovering])
def test_it_is_never_quiet_unless_healthy(make):
    assert not make().quiet(0.0)


def test_it_is_not_quiet_while_the_next_ejection_would_be_longer():
    health = ejected(0.0, slow_start_s=0.0)
    health.failed(1.0)
    health.succeeded(3.0)
    assert health.state is HEALTHY
    assert not health.quiet(4.875)
    assert health.quiet(5.0)


# --- against a reference -------------------------------------------------------------------------


class Reference:
    """The rules once more: slow, with all that happened in a list."""

    def __init__(self, policy):
        self.policy = policy
        self.state = HEALTHY
        self.since = -math.inf  # when the state began
        self.lengths = []  # of the ejections in a row
        self.ejections = 0
        self.calls = []  # (time, "ok", "hard" or "soft") since the last ejection
        self.proven = False
        self.asked = self.trial = False

    def settle(self, now):
        """Let happen what was due."""
        if self.state is EJECTED and now >= self.since + self.lengths[-1]:
            self.enter(HALF_OPEN, self.since + self.lengths[-1])
            self.asked = self.trial = False
        if self.state is RECOVERING and now >= self.since + self.policy.slow_start_s:
            self.enter(HEALTHY, self.since + self.policy.slow_start_s)

    def enter(self, state, now):
        self.state, self.since = state, now

    def eject(self, now):
        longer = 2 * self.lengths[-1] if self.lengths else self.policy.ejection_s
        self.lengths.append(min(longer, self.policy.max_ejection_s))
        self.ejections += 1
        self.calls = []
        self.enter(EJECTED, now)

    def forgiven(self, now):
        failures = [at for at, kind in self.calls if kind != "ok"]
        calm_since = max([self.since, *failures])
        return not self.lengths or now >= calm_since + self.lengths[-1]

    def trouble(self, now):
        if self.state is HEALTHY and self.forgiven(now):
            self.lengths = []

    def window(self, now):
        part_s = self.policy.window_s / PARTS
        oldest = math.floor(now / part_s) - PARTS
        return [kind for at, kind in self.calls if math.floor(at / part_s) >= oldest]

    def too_many(self, now):
        telling = [kind for _, kind in self.calls if kind != "soft"]
        if telling[-self.policy.consecutive_failures :].count("hard") >= (
            self.policy.consecutive_failures
        ):
            return True
        window = self.window(now)
        failed = len(window) - window.count("ok")
        enough = len(window) >= self.policy.min_calls
        return enough and failed / len(window) >= self.policy.failure_rate

    def ok(self, now):
        self.settle(now)
        if self.state is HALF_OPEN:
            self.enter(RECOVERING, now)
            self.settle(now)
        if self.state is not EJECTED:
            self.calls.append((now, "ok"))
            self.proven = True

    def fail(self, now, kind):
        self.settle(now)
        self.trouble(now)
        if self.state is HALF_OPEN or (self.state is RECOVERING and kind == "hard"):
            self.eject(now)
        elif self.state is not EJECTED:
            self.calls.append((now, kind))
            if self.too_many(now):
                self.eject(now)

    def condemn(self, now):
        self.settle(now)
        self.trouble(now)
        if self.state is not EJECTED:
            self.eject(now)

    def probed(self, outcome, now):
        self.settle(now)
        proven, self.proven = self.proven, False
        if outcome is Probe.UNREACHABLE:
            self.fail(now, "hard")
        elif self.state is HALF_OPEN and outcome is Probe.NOT_READY:
            self.asked = True
        elif self.state is HALF_OPEN:
            self.enter(RECOVERING, now)
            self.settle(now)
        elif outcome is Probe.NOT_READY and not proven:
            self.fail(now, "hard")

    def may_try(self, now):
        self.settle(now)
        probes = self.policy.probe_interval_s is not None
        return self.state is HALF_OPEN and not self.trial and (self.asked or not probes)

    def weight(self, now):
        self.settle(now)
        if self.state is RECOVERING:
            return 0.1 + 0.9 * (now - self.since) / self.policy.slow_start_s
        return 1.0 if self.state is HEALTHY else 0.0

    def quiet(self, now):
        return self.state is HEALTHY and self.forgiven(now) and set(self.window(now)) <= {"ok"}


POLICIES = st.builds(
    policy,
    consecutive_failures=st.sampled_from([2, 3, 100]),
    failure_rate=st.sampled_from([0.25, 0.5, 1.0]),
    min_calls=st.sampled_from([1, 5, 10, 1000]),
    window_s=st.sampled_from([2.5, 20.0]),
    max_ejection_s=st.sampled_from([1.0, 1.5, 8.0]),
    slow_start_s=st.sampled_from([0.0, 4.0]),
    probe_interval_s=st.sampled_from([None, 5.0]),
)
TIMES = st.integers(1, 6)


class HealthMachine(RuleBasedStateMachine):
    """Both are told the same, and must show the same."""

    @initialize(policy=POLICIES, start=st.sampled_from([0.0, -3.125, 1e6]))
    def begin(self, policy, start):
        self.now = start
        self.health = Health(policy)
        self.reference = Reference(policy)

    def shown(self):
        return self.health.state, self.health.ejections, self.health.due_at()

    def ejects(self, act):
        before = self.health.ejections
        assert act() == (self.health.ejections > before)

    @rule(eighths=st.integers(0, 8) | st.sampled_from([16, 20, 32, 64, 160, 176, 400]))
    def time_passes(self, eighths):
        self.now += eighths / 8

    @precondition(lambda self: self.now < self.health.due_at() < math.inf)
    @rule(late_s=st.sampled_from([0.0, 0.0, -0.125, 3.0]))
    def time_passes_to_what_is_due(self, late_s):
        self.now = max(self.now, self.health.due_at() + late_s)

    @precondition(lambda self: self.health.state in {EJECTED, HALF_OPEN})
    @rule()
    def it_comes_back(self):
        if self.health.state is EJECTED:
            self.now = max(self.now, self.health.due_at())
        self.calls_are_answered(1)

    @rule(times=TIMES)
    def calls_are_answered(self, times):
        for _ in range(times):
            self.health.succeeded(self.now)
            self.reference.ok(self.now)

    @rule()
    def a_call_fails(self):
        self.ejects(lambda: self.health.failed(self.now))
        self.reference.fail(self.now, "hard")

    @rule(times=TIMES)
    def calls_fail_softly(self, times):
        for _ in range(times):
            self.ejects(lambda: self.health.failed(self.now, hard=False))
            self.reference.fail(self.now, "soft")

    @precondition(lambda self: self.health.state is not EJECTED or self.health.due_at() <= self.now)
    @rule()
    def silence(self):
        self.ejects(lambda: self.health.condemn(self.now))
        self.reference.condemn(self.now)

    @rule(outcome=st.sampled_from(Probe))
    def a_probe(self, outcome):
        before, allowed = self.shown(), self.reference.asked
        told = self.health.probed(outcome, self.now)
        self.reference.probed(outcome, self.now)
        allows = self.reference.state is HALF_OPEN and self.reference.asked and not allowed
        assert told == (self.shown() != before or allows)

    @rule()
    def a_trial_is_asked_for(self):
        expected = self.reference.may_try(self.now)
        assert self.health.take_trial(self.now) == expected
        self.reference.trial = self.reference.trial or expected

    @rule()
    def the_trial_tells_nothing(self):
        self.health.drop_trial()
        self.reference.trial = False

    @rule()
    def it_is_told_the_time(self):
        before = self.health.state
        assert self.health.advance(self.now) == (self.health.state is not before)
        assert self.health.due_at() > self.now

    @rule()
    def it_is_asked_whether_it_may_be_dropped(self):
        self.it_is_told_the_time()
        assert self.health.quiet(self.now) == self.reference.quiet(self.now)

    @invariant()
    def both_show_the_same(self):
        health, reference = self.health, self.reference
        reference.settle(self.now)
        if health.due_at() > self.now:
            assert health.state is reference.state
        else:  # time has passed that it was not told of yet
            assert TRANSITIONS[health.state, Event.TIME_UP] is reference.state
        assert health.ejections == reference.ejections
        assert health.weight(self.now) == pytest.approx(reference.weight(self.now))

    @invariant()
    def what_always_holds(self):
        health, limits = self.health, self.reference.policy
        assert 0.0 <= health.weight(self.now) <= 1.0
        assert (health.weight(self.now) == 0.0) == (health.state in {EJECTED, HALF_OPEN})
        assert (health.due_at() < math.inf) == (health.state in {EJECTED, RECOVERING})
        if health.state is EJECTED:
            assert health.due_at() - self.now <= limits.max_ejection_s
        if health.state is RECOVERING:
            assert health.due_at() - self.now <= limits.slow_start_s


def test_it_decides_as_a_reference_that_keeps_everything():
    run_state_machine_as_test(
        HealthMachine,
        settings=settings(
            max_examples=200,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@given(
    gaps=st.lists(st.floats(0, 3) | st.sampled_from([0.0, 0.3, 1.0, 10.0]), min_size=1),
    start=st.floats(-1e6, 1e6),
    window_s=st.floats(0.01, 100),
)
def test_at_any_time_what_failed_within_the_window_counts_and_what_failed_long_before_does_not(
    gaps, start, window_s
):
    health = Health(
        policy(consecutive_failures=1000, failure_rate=1.0, min_calls=5, window_s=window_s)
    )
    now, failed_at = start, []
    for gap in gaps:
        now += gap
        failed_at.append(now)
        told = health.failed(now, hard=False)
        # A hair's breadth is left to rounding.
        sure = sum(now - at < window_s * 0.999 for at in failed_at)
        possible = sum(now - at < window_s * (1 + 1 / PARTS) * 1.001 for at in failed_at)
        assert sure < 5 or told
        assert possible >= 5 or not told
        if told:
            return
