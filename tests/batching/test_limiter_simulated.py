"""The limit in simulations: what it finds, for rows of all kinds, and how it recovers."""

from __future__ import annotations

from functools import cache

import pytest

from tests.batching.simulated import (
    Callers,
    Crowd,
    Fixed,
    Poisson,
    Server,
    Simulation,
    scattered,
    stalling,
)
from tritonasync.batching.limiter import Limiter

MOST = 16
SLOW = 0.010
FAST = 0.0005


def late(rng):
    """One answer in twenty is noticed up to ten times too late."""
    return rng.uniform(0, 9) if rng.random() < 0.05 else 0.0


@cache
def best_fixed(server, seed=7):
    """Return the best rows per second of any fixed limit, and the least limit within 2 % of it."""
    rates = {
        limit: Simulation(server, Fixed(limit), seed=seed).run(batches=500).row_rate(50)
        for limit in (*range(1, 9), 10, 12, MOST)
    }
    best = max(rates.values())
    return best, min(limit for limit, rate in rates.items() if rate > 0.98 * best)


def new(least=1, most=MOST, start=4):
    return Limiter(least=least, most=most, start=start)


# --- what it finds -------------------------------------------------------------------------------

SERVERS = {
    "one slow": Server(1, SLOW),
    "one slow, far away": Server(1, SLOW, way_s=0.005),
    "one slow, rows count": Server(1, 0.002, row_s=3e-5),
    "one slow, scattered": Server(1, SLOW, noise=scattered),
    "one slow, stalling": Server(1, SLOW, noise=stalling),
    "one slow, late client": Server(1, SLOW, lateness=late),
    "one very slow": Server(1, 1.0),
    "four slow": Server(4, SLOW),
    "four slow, scattered": Server(4, SLOW, noise=scattered),
    "four slow, stalling": Server(4, SLOW, noise=stalling),
    "four slow, late client": Server(4, SLOW, lateness=late),
    "four very slow, scattered": Server(4, 1.0, noise=scattered),
    "eight slow": Server(8, SLOW),
    "one fast": Server(1, FAST),
    "one fast, farther": Server(1, FAST, way_s=FAST),
    "one fast, scattered": Server(1, FAST, noise=scattered),
    "one fast, late client": Server(1, FAST, lateness=late),
    "four fast": Server(4, FAST),
    "four fast, scattered": Server(4, FAST, noise=scattered),
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", SERVERS)
def test_it_finds_a_limit_that_loses_little_and_queues_little(name, seed):
    server = SERVERS[name]
    least = best_fixed(server)[1]
    run = Simulation(server, new(), seed=seed).run(batches=3000)
    same_noise = Simulation(server, Fixed(MOST), seed=seed).run(batches=3000)
    assert run.row_rate(400) > 0.95 * same_noise.row_rate(400)
    assert run.limit(400) <= least + 2


@pytest.mark.parametrize("start", [1, 16])
@pytest.mark.parametrize("name", ["one slow", "four slow", "one fast", "four fast, scattered"])
def test_it_finds_it_from_either_bound(name, start):
    server = SERVERS[name]
    best, least = best_fixed(server)
    run = Simulation(server, new(start=start)).run(batches=1000)
    assert run.row_rate(400) > 0.95 * best
    assert run.limit(400) <= least + 2


def test_a_slow_model_starts_without_a_loss():
    run = Simulation(Server(1, SLOW), new()).run(batches=100)
    assert run.row_rate() > 0.95 * 256 / SLOW


def test_a_stale_measurement_does_not_make_the_limit_creep_up():
    run = Simulation(Server(1, SLOW), new()).run(batches=60_000)
    assert {run.limit(first, first + 5000) for first in range(0, 60_000, 5000)} == {2}


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("instances", [1, 4])
@pytest.mark.parametrize("count", [20, 75, 125, 250])
def test_callers_that_fill_no_batches_are_not_cut_into_smaller_ones(instances, count):
    """The higher the limit, the smaller their batches: a limit that ran away would feed itself."""
    server = Server(instances, 0.002, row_s=24e-5)
    runs = [
        Simulation(server, limiter, Callers(count, think_s=0.005), max_rows=32).run(batches=1200)
        for limiter in (new(), *map(Fixed, (2, 3, 4, 6, 16)))
    ]
    rates = [run.row_rate(400) for run in runs]
    assert rates[0] > 0.85 * max(rates[1:])


@pytest.mark.parametrize("load", [0.05, 0.3, 0.5, 0.7, 0.85])
@pytest.mark.parametrize(
    "server",
    [
        Server(1, 0.002, row_s=24e-5),
        Server(4, 0.002, row_s=24e-5, noise=scattered),
        Server(4, SLOW),
        Server(1, FAST, row_s=16e-6),
    ],
    ids=["one", "four", "four slow", "fast"],
)
def test_rows_that_come_as_they_like_wait_little_longer_than_under_the_best_limit(server, load):
    rate = load * 32 * server.instances / (server.unloaded_s(32) - 2 * server.way_s)
    runs = [
        Simulation(server, limiter, Poisson(rate), max_rows=32).run(batches=1200)
        for limiter in (new(), *map(Fixed, (2, 3, 4, 6)))
    ]
    waits = [run.wait_s(0.5, after_s=run.now / 2) for run in runs]
    assert waits[0] < 1.6 * min(waits[1:])


@pytest.mark.parametrize("rate", [5, 50, 300])
def test_light_noisy_traffic_does_not_walk_the_limit_to_a_bound(rate):
    server = Server(4, SLOW, noise=stalling, lateness=late)
    run = Simulation(server, new(), Poisson(rate)).run(batches=5000)
    assert {answer.limit for answer in run.answers[100:]} <= set(range(2, 10))


@pytest.mark.parametrize("instances", [1, 4])
def test_batches_of_all_sizes_find_a_limit_as_full_ones_do(instances):
    server = Server(instances, 0.002, row_s=3e-5, noise=scattered)
    limiters = [new(), *map(Fixed, (2, 3, 4, 6, 8, 16))]
    sizes = (256, 5, 100, 256, 31, 180, 1, 64)
    runs = [Simulation(server, limiter, Crowd(*sizes)).run(batches=3000) for limiter in limiters]
    rates = [run.row_rate(400) for run in runs]
    assert rates[0] > 0.95 * max(rates[1:])
    assert runs[0].limit(400) <= instances + 3


# --- change --------------------------------------------------------------------------------------

STEPS = {
    "one five times slower": (Server(1, SLOW), {"batch_s": 5 * SLOW}),
    "one five times faster": (Server(1, SLOW), {"batch_s": SLOW / 5}),
    "four five times slower": (Server(4, SLOW), {"batch_s": 5 * SLOW}),
    "four five times faster": (Server(4, SLOW), {"batch_s": SLOW / 5}),
    "four twice as slow, scattered": (Server(4, SLOW, noise=scattered), {"batch_s": 2 * SLOW}),
    "four fast ones slow": (Server(4, FAST), {"batch_s": SLOW}),
    "one to four": (Server(1, SLOW), {"instances": 4}),
    "four to one": (Server(4, SLOW), {"instances": 1}),
    "one to four, stalling": (Server(1, SLOW, noise=stalling), {"instances": 4}),
    "four to one, stalling": (Server(4, SLOW, noise=stalling), {"instances": 1}),
    "one fast to four": (Server(1, FAST), {"instances": 4}),
    "four fast to one": (Server(4, FAST), {"instances": 1}),
    "four fast five times slower": (Server(4, FAST), {"batch_s": 5 * FAST}),
    "one fast behind a longer way": (Server(1, FAST), {"way_s": 4 * FAST}),
    "four behind a longer way": (Server(4, SLOW), {"way_s": 0.010}),
}


@pytest.mark.parametrize("name", STEPS)
def test_it_recovers_from_a_step_within_five_hundred_answers(name):
    server, change = STEPS[name]
    run = Simulation(server, new()).run(batches=2000)
    run.change(**change)
    run.run(batches=1500)
    same_noise = Simulation(server, Fixed(MOST)).run(batches=2000)
    same_noise.change(**change)
    same_noise.run(batches=1500)
    assert run.row_rate(2500) > 0.95 * same_noise.row_rate(2500)
    assert run.limit(2500) <= best_fixed(run.server)[1] + 2


def test_a_server_that_slows_down_and_up_again_leaves_the_limit_where_it_was():
    run = Simulation(Server(4, SLOW), new()).run(batches=2000)
    before = run.limit(1000)
    for factor in (5, 1, 3, 1):
        run.change(batch_s=factor * SLOW)
        run.run(batches=2000)
    assert abs(run.limit(9000) - before) <= 1


# --- overload ------------------------------------------------------------------------------------


def test_it_recovers_from_overload_but_not_to_where_it_was_refused():
    run = Simulation(Server(4, SLOW), new()).run(batches=1000)
    before = run.limit(500)
    run.limiter.overloaded(run.now)
    refused_at = run.now
    assert run.limiter.limit == before // 2
    run.run(batches=1000)
    assert {answer.limit for answer in run.answers[1000:] if answer.at < refused_at + 2} <= set(
        range(before // 4, before)
    )
    assert run.limit(1300) == before - 1
    run.run(batches=6000)
    assert run.now > refused_at + 10
    assert run.limit(7000) >= before - 1
    assert run.row_rate(1300) > 0.95 * 4 * 256 / SLOW
