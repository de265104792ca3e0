import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.clients import data, rounds
from benchmarks.clients.protocol import QUANTILES, Order
from benchmarks.workloads import BY_NAME, Workload

ROWS = replace(BY_NAME["rows-64"], callers=4)
MEDIAN = QUANTILES.index(0.5)


def run(workload: Workload, items, calls, order: Order):
    return asyncio.run(rounds.run(workload, items, calls, order))


def echoes(items, seconds: float = 0.0):
    def call(item):
        async def once():
            await asyncio.sleep(seconds)
            return item[None]

        return once

    return [call(item) for item in items]


def test_a_closed_round_counts_every_call_and_its_seconds():
    items = data.items(ROWS)
    outcome = run(ROWS, items, echoes(items, 0.01), Order("rows-64", 0.05))
    assert outcome.rows % 4 == 0
    assert 4 <= outcome.rows <= 24
    assert outcome.seconds >= 0.05
    assert outcome.checked == 4
    assert outcome.errors == 0
    assert outcome.latency_us[MEDIAN] >= 10_000
    assert outcome.peak_rss_mib > 1


def test_calls_that_are_out_at_the_end_are_waited_for_and_counted():
    items = data.items(ROWS)
    outcome = run(ROWS, items, echoes(items, 0.05), Order("rows-64", 0.001))
    assert outcome.rows == 4
    assert outcome.seconds >= 0.05


def test_rows_of_whole_batches_are_counted():
    workload = replace(BY_NAME["batches"], callers=1, rows=8)
    items = data.items(workload)
    outcome = run(workload, items, echoes(items, 0.01), Order("batches", 0.001))
    assert outcome.rows == 8


def test_an_answer_with_other_values_is_an_error():
    items = data.items(ROWS)
    calls = echoes(items)
    calls[2] = calls[0]
    outcome = run(ROWS, items, calls, Order("rows-64", 0.001))
    assert outcome.errors == 1
    assert "caller 2" in outcome.first_error


def test_a_call_that_raises_is_counted_and_the_others_go_on():
    items = data.items(ROWS)
    calls = echoes(items, 0.005)

    async def fails():
        raise ConnectionError("refused")

    calls[1] = fails
    outcome = run(ROWS, items, calls, Order("rows-64", 0.02))
    assert (outcome.errors, outcome.first_error) == (1, "ConnectionError: refused")
    assert outcome.checked == 3
    assert outcome.rows > 3


def test_a_round_in_which_nothing_is_answered_has_no_latencies():
    async def fails():
        raise OSError

    workload = replace(ROWS, callers=1)
    outcome = run(workload, data.items(workload), [fails], Order("rows-64", 0.001))
    assert (outcome.rows, outcome.latency_us, outcome.errors) == (0, (), 1)


def test_cpu_is_that_of_the_round():
    workload = replace(ROWS, callers=1)
    items = data.items(workload)

    async def busy():
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        return items[0]

    outcome = run(workload, items, [busy], Order("rows-64", 0.0001))
    assert outcome.cpu_s >= 0.05


def test_arrivals_have_the_rate_and_are_the_same_for_the_same_seed():
    times = rounds.arrivals(1000.0, 10.0, seed=3)
    assert times == rounds.arrivals(1000.0, 10.0, seed=3)
    assert times != rounds.arrivals(1000.0, 10.0, seed=4)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 10.0
    assert len(times) == pytest.approx(10_000, rel=0.05)
    gaps = np.diff(times)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)  # exponential


def test_an_open_round_counts_latency_from_the_scheduled_arrival():
    """A call that blocks the loop delays those that are due meanwhile, and they say so."""
    workload = replace(BY_NAME["open"], callers=8)
    items = data.items(workload)
    blocked = False

    def call(item):
        async def once():
            nonlocal blocked
            if not blocked:
                blocked = True
                time.sleep(0.1)  # noqa: ASYNC251 - the point of the test
            return item

        return once

    order = Order("open", 0.1, rate=200.0, seed=1)
    outcome = run(workload, items, [call(item) for item in items], order)
    assert outcome.rows == len(rounds.arrivals(200.0, 0.1, seed=1))
    assert outcome.latency_us[MEDIAN] > 10_000


def test_an_open_round_starts_calls_though_earlier_ones_are_out():
    workload = replace(BY_NAME["open"], callers=8)
    items = data.items(workload)
    order = Order("open", 0.05, rate=200.0, seed=1)
    outcome = run(workload, items, echoes(items, 0.2), order)
    assert outcome.rows == len(rounds.arrivals(200.0, 0.05, seed=1))
    assert outcome.seconds < 1.0  # one after another they would take two seconds


def stall(seconds: float):
    workload = replace(BY_NAME["stall-both"], shape=(1, 1, 4), rows=1)
    items = data.items(workload)

    async def once():
        await asyncio.sleep(0.005)
        time.sleep(seconds)  # noqa: ASYNC251 - the point of the test
        await asyncio.sleep(0.005)
        return items[0]

    return run(workload, items, [once], Order("stall-both", 0.05))


def test_the_probe_sees_a_loop_that_is_blocked():
    outcome = stall(0.05)
    assert 30 < outcome.extras["stall_ms"] < 500
    assert 30 < outcome.extras["typical_stall_ms"] <= outcome.extras["stall_ms"]
    assert outcome.extras["gross_stall_ms"] >= outcome.extras["stall_ms"]
    assert outcome.extras["idle_stall_ms"] < outcome.extras["stall_ms"]


def test_the_probe_sees_nothing_where_nothing_blocks():
    assert stall(0.0).extras["typical_stall_ms"] < 30


def test_a_stalled_round_ends_when_its_call_fails():
    async def fails():
        raise OSError

    workload = replace(BY_NAME["stall-both"], shape=(1, 1, 4), rows=1)
    outcome = run(workload, data.items(workload), [fails], Order("stall-both", 0.01))
    assert outcome.errors >= 1


def test_threads_call_side_by_side():
    items = data.items(ROWS)
    together = threading.Barrier(4, timeout=10)

    def call(item):
        def once():
            together.wait()
            return item[None]

        return once

    outcome = rounds.run_threads(
        ROWS, items, [call(item) for item in items], Order("rows-64", 1e-9)
    )
    assert (outcome.rows, outcome.checked, outcome.errors) == (4, 4, 0)


def test_an_error_in_a_thread_is_counted():
    items = data.items(ROWS)[:1]

    def fails():
        raise OSError("gone")

    outcome = rounds.run_threads(ROWS, items, [fails], Order("rows-64", 0.001))
    assert (outcome.rows, outcome.first_error) == (0, "OSError: gone")


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_items_of_a_workload_fit_their_own_answers_and_no_others(name: str):
    workload = replace(BY_NAME[name], callers=2)
    if workload.shape == (3, 224, 224):
        workload = replace(workload, shape=(3, 2, 2))
    first, second = data.items(workload)
    shape = workload.shape if workload.rows is None else (workload.rows, *workload.shape)
    assert first.shape == shape
    right, wrong = (item if workload.echoes else item[..., 0, 0, :1] for item in (first, second))
    assert data.fits(workload, first, right)
    assert data.fits(workload, first, right[None]) or workload.rows is not None
    assert not data.fits(workload, first, wrong)
    assert not data.fits(workload, first, right[..., :0])
