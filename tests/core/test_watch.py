"""One timer for many deadlines."""

import asyncio
import math
import time
from itertools import pairwise

import pytest

from tritonasync.core.watch import PAUSE_S, Watch

pytestmark = pytest.mark.anyio


async def looks(watch_for, look):
    watch = Watch(asyncio.get_running_loop(), look)
    watch_for(watch)
    await asyncio.sleep(0.03)
    watch.close()


async def test_it_looks_at_the_earliest_deadline_whatever_the_order():
    began = time.monotonic()
    seen: list[float] = []

    def look(now: float) -> float:
        seen.append(now - began)
        return math.inf

    def watch_for(watch: Watch) -> None:
        for seconds in (0.02, 0.005, 0.01):
            watch.expect(began + seconds)

    await looks(watch_for, look)
    assert len(seen) == 1
    assert 0.005 <= seen[0] < 0.02


async def test_a_long_look_is_followed_by_a_longer_rest():
    """However often a deadline comes that has passed already."""
    seen: list[float] = []

    def look(now: float) -> float:
        seen.append(now)
        time.sleep(0.002)
        return now

    began = time.monotonic()
    watch = Watch(asyncio.get_running_loop(), look)
    while time.monotonic() < began + 0.2:
        watch.expect(time.monotonic())
        await asyncio.sleep(0)
    watch.close()
    assert 2 <= len(seen) <= 6


async def test_short_looks_keep_a_pause():
    seen: list[float] = []

    def look(now: float) -> float:
        seen.append(now)
        return now

    await looks(lambda watch: watch.expect(0.0), look)
    pauses = [later - sooner for sooner, later in pairwise(seen)]
    assert pauses
    assert min(pauses) >= PAUSE_S * 0.99
