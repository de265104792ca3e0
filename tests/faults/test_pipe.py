"""Bandwidth and latency: what is decided, and the bytes that wait."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.pipe import MOST_AT_ONCE, Pacer, Pipe, sleep_until, slice_bytes


@given(
    st.lists(st.tuples(st.floats(0, 0.1), st.integers(1, 5000)), min_size=1, max_size=50),
    st.floats(1_000, 1e6),
)
def test_a_link_carries_its_rate_and_no_more(arrivals, rate):
    pacer, now, done, busy = Pacer(), 10.0, [], 10.0
    for pause, nbytes in arrivals:
        now += pause
        when = pacer.reserve(nbytes, now=now, bytes_per_s=rate)
        assert when >= now
        done.append((when, nbytes))
        # An ideal link, which is busy or idle and knows no credit.
        busy = max(busy, now) + nbytes / rate
        assert when <= busy + 1e-6
        assert when >= busy - 0.02 - 1e-6
    assert [when for when, _ in done] == sorted(when for when, _ in done)


def test_a_link_without_a_limit_makes_nothing_wait():
    assert Pacer().reserve(10**9, now=5.0, bytes_per_s=math.inf) == 5.0
    assert slice_bytes(math.inf) == MOST_AT_ONCE


@given(st.floats(0.01, 1e12))
def test_a_slow_link_trickles(rate):
    assert 1 <= slice_bytes(rate) <= max(1, rate * 0.01)


@pytest.mark.anyio
async def test_chunks_leave_in_their_order_none_before_its_time_and_none_waits_for_another():
    pipe, now = Pipe(), asyncio.get_running_loop().time()
    for number, delay in enumerate((0.05, 0.02, 0.1, 0.1, 0.1, 0.1)):
        pipe.put(bytes([number]), now + delay)
    left = []
    for _ in range(6):
        chunk = await pipe.take()
        left.append((chunk[0], asyncio.get_running_loop().time() - now))
    assert [number for number, _ in left] == list(range(6))
    earliest = (0.05, 0.05, 0.1, 0.1, 0.1, 0.1)  # the second may not overtake the first
    assert all(at >= due - 1e-3 for (_, at), due in zip(left, earliest, strict=True))


@pytest.mark.anyio
async def test_a_reader_waits_for_a_writer_that_is_behind_and_for_no_other():
    pipe, now = Pipe(), asyncio.get_running_loop().time()
    pipe.put(b"not yet due", now + 60)
    await asyncio.wait_for(pipe.room(), 5)
    pipe = Pipe()
    pipe.put(b"due", now)
    waiting = asyncio.ensure_future(pipe.room())
    await sleep_until(now + 0.02)
    assert not waiting.done()
    assert await pipe.take() == b"due"
    await asyncio.wait_for(waiting, 5)


@pytest.mark.anyio
async def test_a_pipe_that_is_cut_keeps_nothing_and_nobody():
    pipe, now = Pipe(), asyncio.get_running_loop().time()
    pipe.put(b"due", now)
    waiting = asyncio.ensure_future(pipe.room())
    await asyncio.sleep(0)
    pipe.cut()
    await asyncio.wait_for(waiting, 5)
    pipe.put(b"more", now)
    await asyncio.wait_for(pipe.room(), 5)
