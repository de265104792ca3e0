import asyncio
from dataclasses import replace

import pytest

from benchmarks.clients import data, responses
from benchmarks.clients.protocol import QUANTILES, Order
from benchmarks.workloads import BY_NAME, Workload

BURST = replace(BY_NAME["decoupled"], callers=3, responses=4)
FIRST = replace(BY_NAME["first-token"], callers=1, responses=3)
MEDIAN = QUANTILES.index(0.5)
BREAK_S = 0.01


def echoes(workload: Workload, items, *, count: int | None = None):
    """Readers whose responses come at once, the last one after a break."""

    def reader(item):
        async def ask():
            for left in reversed(range(workload.responses if count is None else count)):
                if not left:
                    await asyncio.sleep(BREAK_S)
                yield item[None]

        return ask

    return [reader(item) for item in items]


def run(workload: Workload, items, asks, seconds: float = 0.001):
    return asyncio.run(responses.run(workload, items, asks, Order(workload.name, seconds)))


def test_every_response_counts_as_a_row():
    items = data.items(BURST)
    outcome = run(BURST, items, echoes(BURST, items))
    assert (outcome.rows, outcome.checked, outcome.errors) == (3 * 4, 3, 0)


def test_readers_ask_again_until_the_time_is_up():
    items = data.items(BURST)
    outcome = run(BURST, items, echoes(BURST, items), seconds=3.5 * BREAK_S)
    assert outcome.rows % 4 == 0
    assert 3 * 4 * 2 <= outcome.rows <= 3 * 4 * 4


def test_a_latency_ends_with_the_last_response_or_with_the_first():
    whole, first = (
        run(workload, items, echoes(workload, items)).latency_us[MEDIAN]
        for workload in (replace(FIRST, kind="closed"), FIRST)
        for items in [data.items(workload)]
    )
    assert whole >= BREAK_S * 1e6
    assert first < BREAK_S * 1e6


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_responses_is_an_error(count: int):
    items = data.items(BURST)
    outcome = run(BURST, items, echoes(BURST, items, count=count))
    assert (outcome.rows, outcome.errors) == (0, 3)
    assert f"{count} responses came, and not 4" in outcome.first_error


def test_another_callers_response_is_an_error():
    items = data.items(BURST)
    asks = echoes(BURST, items)
    outcome = run(BURST, items, [asks[0], asks[1], asks[1]])
    assert outcome.errors == 1
    assert "caller 2" in outcome.first_error


def test_a_reader_that_fails_is_counted_and_the_others_go_on():
    async def fails():
        yield items[1][None]
        raise ConnectionError("refused")

    items = data.items(BURST)
    asks = echoes(BURST, items)
    asks[1] = fails
    outcome = run(BURST, items, asks, seconds=1.5 * BREAK_S)
    assert (outcome.errors, outcome.first_error) == (1, "ConnectionError: refused")
    assert outcome.checked == 2
