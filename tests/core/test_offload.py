"""Long work leaves the event loop free, in turns, in time."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import DeadlineExceededError
from tritonasync.core.offload import in_worker
from tritonasync.handles.detector import Detector

pytestmark = pytest.mark.anyio

STALL_S = 0.005


class StallProbe:
    """How long the loop's own thread is at work between two turns, by its own processor time.

    Processor time and not the clock, so that other programs on the machine do not count; and
    without the garbage collector, which walks the heap of all the tests that ran before.
    """

    def __init__(self):
        self.longest_s = 0.0
        self.turns = 0

    async def run(self):
        gc.disable()
        try:
            await self._watch()
        finally:
            gc.enable()

    async def _watch(self):
        before = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            self.longest_s = max(self.longest_s, now - before)
            self.turns += 1
            before = now


async def test_a_batch_of_big_images_never_holds_up_the_loop():
    many = np.random.default_rng(0).random((8, 84, 8400), np.float32)
    many[:, :4] *= 600
    served = spec([("IMAGE", "FP32", (-1, 3, 640, 640))], [("OUT", "FP32", (-1, 84, 8400))])
    handle = Detector(
        "net", "", FakeInvoker(lambda call: {"OUT": many}), FakeCatalog(served), timeout_s=30
    )
    images = [np.zeros((1080, 1920, 3), np.uint8)] * 8
    stalls = []
    for _ in range(3):  # a stall of ours comes each time; one of a shared machine's processor, once
        probe = StallProbe()
        watching = asyncio.create_task(probe.run())
        started = time.monotonic()
        await handle(images)
        took = time.monotonic() - started
        watching.cancel()
        await asyncio.wait([watching])
        assert took > 10 * STALL_S  # else there was nothing to see
        assert probe.turns > took / 0.05  # the loop got its turns all the while
        stalls.append(probe.longest_s)
    assert min(stalls) < STALL_S


async def test_work_runs_in_another_thread_and_its_error_comes_back():
    def fail():
        raise KeyError(threading.get_ident())

    assert (
        await in_worker(threading.get_ident, deadline=NEVER, model="net") != threading.get_ident()
    )
    with pytest.raises(KeyError) as caught:
        await in_worker(fail, deadline=NEVER, model="net")
    assert caught.value.args != (threading.get_ident(),)


async def test_who_waits_for_a_turn_too_long_is_told_so_and_a_turn_is_free_again():
    """All workers are held up, and one more comes."""
    release = threading.Event()
    holders = [
        asyncio.create_task(in_worker(release.wait, deadline=NEVER, model="net"))
        for _ in range(os.cpu_count() or 1)
    ]
    await asyncio.sleep(0)
    ran = []
    with pytest.raises(DeadlineExceededError) as caught:
        await in_worker(lambda: ran.append(1), deadline=Deadline.after(0.01), model="net")
    assert caught.value.stage == "encode"
    release.set()
    await asyncio.gather(*holders)
    assert ran == []
    await in_worker(lambda: ran.append(2), deadline=NEVER, model="net")
    assert ran == [2]


async def test_a_caller_that_leaves_while_waiting_for_a_turn_leaves_at_once():
    release = threading.Event()
    holders = [
        asyncio.create_task(in_worker(release.wait, deadline=NEVER, model="net"))
        for _ in range(os.cpu_count() or 1)
    ]
    await asyncio.sleep(0)
    ran = []
    waiting = asyncio.create_task(in_worker(lambda: ran.append(1), deadline=NEVER, model="net"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    await asyncio.gather(*holders)
    assert ran == []
