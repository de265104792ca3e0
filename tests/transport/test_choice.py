"""Which way is the faster one: by trial, at a small price, and never for nothing."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritonasync.transport.choice import (
    BLOCK,
    FIRST_AFTER,
    MOST_OUT,
    PATIENCE_S,
    RARE_SHARE,
    SHARE,
    Choice,
    Ticket,
    TransportChoice,
    Way,
    size_class,
)

UNARY, STREAM = Way.UNARY, Way.STREAM


@dataclass
class Simulated:
    """Callers who call one after the other, on a clock of their own.

    Attributes:
        took_s: Gives how long the next call takes, by its way and the time.
        callers: How many there are.
        may_stream: Tells whether calls may go on streams.
        well: Tells whether a call is answered, by its way.
    """

    took_s: Callable[[Way, float], float]
    callers: int = 1
    may_stream: Callable[[float], bool] = lambda now: True
    well: Callable[[Way], bool] = lambda way: True
    choice: Choice = field(default_factory=Choice)
    now: float = 0.0
    ways: list[Way] = field(default_factory=list)
    using: list[Way] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)

    def run(self, calls: int) -> Simulated:
        """Make calls until there were so many."""
        numbers = count()
        out = []
        while len(self.ways) < calls or out:
            if len(out) < self.callers and len(self.ways) < calls:
                ticket = self._begin()
                self.ways.append(ticket.way)
                self.using.append(self.choice.using)
                ends_at = self.now + self.took_s(ticket.way, self.now)
                heapq.heappush(out, (ends_at, next(numbers), ticket))
            else:
                self.now, _, ticket = heapq.heappop(out)
                self.choice.end(ticket, self.now, well=self.well(ticket.way))
        return self

    def _begin(self) -> Ticket:
        choice = self.choice
        # Not one that confirms what another has found: that one comes at once, and both are paid
        # for after it.
        quiet = not choice._blocks and not choice._wins
        ticket = choice.begin(self.now, may_stream=self.may_stream(self.now))
        if quiet and choice._blocks:
            self.trials.append(len(self.ways))
        return ticket

    @property
    def flips(self) -> int:
        return sum(one is not other for one, other in zip(self.using, self.using[1:], strict=False))


def steady(unary_s: float, stream_s: float) -> Callable[[Way, float], float]:
    return lambda way, now: {UNARY: unary_s, STREAM: stream_s}[way]


def noisy(unary_s: float, stream_s: float, seed: int) -> Callable[[Way, float], float]:
    chance = random.Random(seed)
    means = {UNARY: unary_s, STREAM: stream_s}
    return lambda way, now: means[way] * chance.lognormvariate(-0.02, 0.2)


def test_a_short_program_never_tries():
    simulated = Simulated(steady(1e-3, 1e-6)).run(FIRST_AFTER - 1)
    assert Counter(simulated.ways) == {UNARY: FIRST_AFTER - 1}
    assert simulated.choice.trials == 0


@pytest.mark.parametrize("callers", [1, 4, 64])
def test_the_faster_way_is_found(callers):
    simulated = Simulated(steady(1e-3, 0.8e-3), callers).run(10_000)
    assert simulated.choice.using is STREAM
    assert simulated.flips == 1
    assert Counter(simulated.ways)[STREAM] > 8_000
    assert simulated.choice.mean_s == pytest.approx({UNARY: 1e-3, STREAM: 0.8e-3})


@pytest.mark.parametrize("callers", [1, 64])
def test_the_slower_way_is_left_alone(callers):
    simulated = Simulated(steady(1e-3, 1.2e-3), callers).run(50_000)
    assert simulated.choice.using is UNARY
    assert simulated.flips == 0
    assert Counter(simulated.ways)[STREAM] < 2 * 50_000 / SHARE


def test_a_much_slower_way_is_tried_still_less_often():
    slow, slower = (Simulated(steady(1e-3, other)).run(100_000) for other in (1.2e-3, 3e-3))
    assert Counter(slower.ways)[STREAM] < Counter(slow.ways)[STREAM] / 4


@pytest.mark.parametrize("callers", [1, 7, 64])
def test_what_is_equal_is_left_as_it_is(callers):
    assert Simulated(steady(1e-3, 1e-3), callers).run(30_000).flips == 0


@pytest.mark.parametrize("seed", range(10))
def test_a_little_faster_is_not_worth_a_change_and_noise_does_not_decide(seed):
    assert Simulated(noisy(1e-3, 1e-3, seed), 8).run(40_000).flips == 0


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("fast", [UNARY, STREAM])
def test_the_faster_way_is_found_under_noise(fast, seed):
    durations = (0.7e-3, 1e-3) if fast is UNARY else (1e-3, 0.7e-3)
    simulated = Simulated(noisy(*durations, seed), 16).run(60_000)
    assert simulated.choice.using is fast
    assert Counter(simulated.using[-10_000:]) == {fast: 10_000}


def test_a_way_that_becomes_slower_is_left_again():
    def took_s(way, now):
        return 1e-3 if way is UNARY else 0.8e-3 if now < 10 else 1.3e-3

    simulated = Simulated(took_s).run(60_000)
    assert simulated.using[9_000] is STREAM
    assert simulated.choice.using is UNARY
    assert simulated.flips == 2


def test_one_trial_that_was_won_is_not_enough():
    def took_s(way, now):
        return 1e-3 if way is UNARY else 0.5e-3 if choice.trials == 0 else 1.2e-3

    choice = Choice()
    simulated = Simulated(took_s, choice=choice).run(20_000)
    assert simulated.flips == 0
    assert choice.trials >= 2


def test_trials_that_are_won_by_turns_are_paid_for_all_the_same():
    def took_s(way, now):
        return 1e-3 if way is UNARY else 1.2e-3 if choice.trials % 2 else 0.8e-3

    choice = Choice()
    simulated = Simulated(took_s, callers=16, choice=choice).run(80_000)
    assert choice.trials >= 8
    assert simulated.flips == 0
    for place in simulated.trials:
        assert Counter(simulated.ways[:place])[STREAM] <= place / SHARE


seeds = st.integers(0, 2**32)
durations = st.lists(st.floats(1e-6, 2.0), min_size=1, max_size=40)


@settings(deadline=None, max_examples=25)
@given(durations, durations, st.integers(1, 40), seeds)
def test_when_a_trial_begins_few_calls_went_the_other_way_whatever_they_took(
    unary, stream, callers, seed
):
    chance = random.Random(seed)
    taken = {UNARY: unary, STREAM: stream}
    simulated = Simulated(lambda way, now: chance.choice(taken[way]), callers).run(12_000)
    other = [way is not using for way, using in zip(simulated.ways, simulated.using, strict=True)]
    assert simulated.trials
    for place in simulated.trials:
        assert sum(other[:place]) <= place / SHARE


@given(seeds, st.integers(300, 2_000))
@settings(deadline=None, max_examples=50)
def test_calls_end_in_any_order_and_no_call_streams_that_may_not(seed, steps):
    chance, choice, now, out = random.Random(seed), Choice(), 0.0, []
    for _ in range(steps):
        now += chance.choice([0, 1e-4, 0.1])
        may_stream = chance.random() < 0.99
        ticket = choice.begin(now, may_stream=may_stream)
        assert may_stream or ticket.way is UNARY
        out.append(ticket)
        if len(out) > 5:
            choice.end(out.pop(chance.randrange(len(out))), now, well=chance.random() < 0.99)
    for ticket in out:
        choice.end(ticket, now, well=True)
    assert choice.calls == steps
    assert not any(choice._out.values())


def test_it_goes_by_calls_of_their_own_while_streams_may_not_be_used():
    simulated = Simulated(steady(1e-3, 0.5e-3)).run(5_000)
    choice = simulated.choice
    assert choice.using is STREAM
    ticket = choice.begin(simulated.now, may_stream=False)
    assert ticket.way is UNARY
    choice.end(ticket, simulated.now, well=True)
    simulated.may_stream = lambda now: False
    before = len(simulated.ways)
    simulated.run(9_000)
    assert set(simulated.ways[before:]) == {UNARY}


def test_it_comes_back_when_streams_may_be_used_again():
    simulated = Simulated(steady(1e-3, 0.5e-3), may_stream=lambda now: not 3 < now < 5)
    simulated.run(12_000)
    assert simulated.choice.using is STREAM
    assert simulated.flips == 1  # what was found out is not forgotten


def test_a_slow_block_ends_the_trial():
    def took_s(way, now):
        return 1e-3 if way is UNARY else 0.4 * PATIENCE_S

    simulated = Simulated(took_s).run(20_000)
    # Three calls tell.
    assert Counter(simulated.ways)[STREAM] <= 20_000 / RARE_SHARE + 3
    assert simulated.choice.trials == 0


def test_a_failure_ends_the_trial():
    simulated = Simulated(steady(1e-3, 0.5e-3), well=lambda way: way is UNARY).run(20_000)
    assert simulated.choice.using is UNARY
    assert Counter(simulated.ways)[STREAM] < 2 * 20_000 / SHARE
    assert simulated.choice.trials == 0


def test_calls_that_share_the_server_with_the_other_way_do_not_count():
    choice = Choice()
    for _ in range(FIRST_AFTER - 1):
        choice.end(choice.begin(0.0, may_stream=True), 0.0, well=True)
    stays = choice.begin(0.0, may_stream=False)  # of its own, and long
    tried = [choice.begin(0.0, may_stream=True) for _ in range(BLOCK)]
    assert {ticket.way for ticket in tried} == {STREAM}
    assert all(ticket.block is None for ticket in tried)
    choice.end(stays, 0.1, well=True)
    assert choice.begin(0.1, may_stream=True).block is not None


def test_calls_that_come_seldom_are_tried_as_well():
    """A block may take long if nobody calls meanwhile."""
    now, choice = 0.0, Choice()
    for _ in range(2_000):
        now += 0.1
        ticket = choice.begin(now, may_stream=True)
        choice.end(ticket, now + (1e-3 if ticket.way is UNARY else 0.5e-3), well=True)
    assert choice.using is STREAM


def test_a_rare_long_call_does_not_end_every_trial():
    chance = random.Random(1)

    def took_s(way, now):
        return 3.0 if chance.random() < 1 / 2_000 else 1e-3 if way is UNARY else 0.5e-3

    assert Simulated(took_s, callers=8).run(60_000).choice.using is STREAM


def test_nothing_is_tried_with_very_many_calls_out_at_once():
    simulated = Simulated(steady(1e-3, 0.5e-3), callers=MOST_OUT + 2).run(20_000)
    assert set(simulated.ways) == {UNARY}


@given(st.integers(0, 2**40))
def test_a_size_is_in_the_class_that_names_it(nbytes):
    size = size_class(nbytes)
    assert nbytes <= 4**size - 1
    assert nbytes <= 1 or nbytes > 4 ** (size - 1) - 1


def test_a_report_without_a_trial_has_no_means():
    report = TransportChoice("m", "", 3, "unary", "why", 1)
    assert math.isnan(report.unary_s)
    assert math.isnan(report.stream_s)
