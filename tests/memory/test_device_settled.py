"""How an event loop waits for a device: spinning, asking, and at last in a thread."""

import asyncio
import threading
import time

import anyio
import pytest

from tritonasync.core.errors import DeviceError
from tritonasync.memory import device
from tritonasync.memory.device import POLL_S, SPIN_S, WAITING_THREADS, settled

pytestmark = pytest.mark.anyio

FOR_EVER = 1 << 60
TICK_S = 1e-5


class Work:
    """A completion that is done when it is asked for the n-th time, or when the test says."""

    def __init__(self, asks=FOR_EVER, *, error=None):
        self.asks, self.asked, self.error = asks, 0, error
        self.waited_in = None
        self.waiting = threading.Event()
        self.finish = threading.Event()

    def done(self):
        self.asked += 1
        if self.asked < self.asks:
            return False
        if self.error is not None:
            raise self.error
        return True

    def wait(self):
        self.waited_in = threading.current_thread()
        self.waiting.set()
        assert self.finish.wait(30)
        if self.error is not None:
            raise self.error


class Turns:
    """Counts how often the event loop turns."""

    def __init__(self):
        self.count = 0
        self.loop = asyncio.get_running_loop()
        self.handle = self.loop.call_soon(self._turn)

    def _turn(self):
        self.count += 1
        self.handle = self.loop.call_soon(self._turn)


@pytest.fixture
def turns():
    """An awaitable's worth of turns, counted from when it is called."""
    made = []

    def start():
        made.append(Turns())
        return made[0]

    yield start
    for each in made:
        each.handle.cancel()


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by 10 µs when it is looked at."""
    now = [100.0]

    def tick():
        now[0] += TICK_S
        return now[0]

    monkeypatch.setattr(device.time, "perf_counter", tick)
    return now


async def test_nothing_to_wait_for_is_no_wait(turns):
    seen = turns()
    await settled(None)
    await settled(Work(1))
    assert seen.count == 0


async def test_what_is_done_soon_is_spun_for(clock, turns):
    work, seen = Work(4), turns()
    await settled(work)
    assert (work.asked, seen.count) == (4, 0)


async def test_spinning_ends_in_time_for_others(clock, turns):
    work, seen = Work(10), turns()
    began = clock[0]
    await settled(work)
    assert seen.count >= 1  # the others had a turn
    assert work.waited_in is None
    assert clock[0] - began < POLL_S


async def test_at_most_the_spin_passes_before_others_have_a_turn(clock, turns):
    seen = turns()
    asked_at = []

    class Watched(Work):
        def done(self):
            if seen.count == 0:
                asked_at.append(clock[0])
            return super().done()

    began = clock[0]
    await settled(Watched(10))
    assert asked_at[-1] - began <= SPIN_S + TICK_S


async def test_what_takes_long_is_waited_for_in_a_thread():
    work = Work()
    task = asyncio.create_task(settled(work))
    while not work.waiting.is_set():
        await asyncio.sleep(0)
    assert work.waited_in is not threading.main_thread()
    assert not task.done()
    work.finish.set()
    await task


@pytest.mark.parametrize("asks", [1, 3, 12])
async def test_what_fails_is_raised_from_each_stage(clock, asks):
    with pytest.raises(DeviceError, match="broke"):
        await settled(Work(asks, error=DeviceError("broke")))


async def test_what_fails_in_the_thread_is_raised():
    work = Work(error=DeviceError("broke"))
    work.finish.set()
    with pytest.raises(DeviceError, match="broke"):
        await settled(work)


async def test_who_is_cancelled_leaves_while_the_device_works_on():
    work = Work()
    task = asyncio.create_task(settled(work))
    while not work.waiting.is_set():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert not work.finish.is_set()
    work.finish.set()
    work.waited_in.join(0.01)  # anyio's thread lives on, for others


async def test_a_cancelled_scope_leaves_as_well():
    work = Work()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(settled, work)
            while not work.waiting.is_set():
                await asyncio.sleep(0)
            tasks.cancel_scope.cancel()
    work.finish.set()


async def test_who_is_cancelled_while_asking_leaves(monkeypatch):
    monkeypatch.setattr(device, "POLL_S", 60.0)
    work = Work()
    task = asyncio.create_task(settled(work))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.waited_in is None


async def test_other_work_in_threads_is_not_held_up():
    works = [Work() for _ in range(WAITING_THREADS + 3)]
    async with anyio.create_task_group() as tasks:
        for work in works:
            tasks.start_soon(settled, work)
        while sum(work.waiting.is_set() for work in works) < WAITING_THREADS:
            await asyncio.sleep(0)
        limit = time.monotonic() + 10
        await anyio.to_thread.run_sync(lambda: None)  # would wait for its turn
        assert time.monotonic() < limit
        assert sum(work.waiting.is_set() for work in works) == WAITING_THREADS
        for work in works:
            work.finish.set()
    assert all(work.waited_in is not None for work in works)
