"""Slots for the tasks of an event loop: in whose turn, when again, and what is told of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import threading
import weakref

import numpy as np
import pytest

from tests.batching.fakes import nothing_left, start, told, turns, until
from tests.memory.heap import HeapMemory
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import DeadlineExceededError, MemoryExhaustedError, PoolClosedError
from tritonasync.memory.arena import Arena
from tritonasync.memory.lease import LeaseState
from tritonasync.memory.lender import Lender
from tritonasync.memory.resources import CountedBlocks, TrackedBlocks
from tritonasync.memory.system import SystemMemory
from tritonasync.testing.scripted import ScriptedMemory

pytestmark = pytest.mark.anyio

KIB = 1024
BYTE = np.dtype(np.uint8)


@pytest.fixture(autouse=True)
async def clean():
    async with nothing_left():
        yield


def lender_on(slots=2, *, memory=None, **options):
    """A lender of so many slots of 1 KiB, of the heap unless it is said otherwise."""
    memory = memory or HeapMemory(slots * KIB)
    return Lender(Arena(memory, region_nbytes=slots * KIB), **options)


def on_device(slots=2, *, apart=False, **options):
    """On one region, or on one for each slot: what is enqueued on one is done in order."""
    memory = ScriptedMemory(max_nbytes=slots * KIB)
    return lender_on(1 if apart else slots, memory=memory, **options), memory


def take(lender, nbytes=KIB, deadline=NEVER):
    return lender.take(nbytes, "net IN", deadline, "net")


def lines_up(lender, *sizes, deadline=NEVER):
    return start(*[take(lender, nbytes, deadline) for nbytes in sizes])


def place(lease):
    return lease.region.name, lease.offset


# --- taking --------------------------------------------------------------------------------------


async def test_a_slot_is_lent_and_lent_again():
    lender = lender_on()
    first = lender.take_nowait(1000, "net IN")
    assert (first.nbytes, first.purpose, first.state) == (1000, "net IN", LeaseState.FILLING)
    other = lender.take_nowait(KIB, "net OUT")
    assert place(other) != place(first)
    first.release()
    assert first.state is LeaseState.FREE
    again = lender.take_nowait(1000, "net IN")
    assert place(again) == place(first)
    assert again is not first


async def test_without_room_it_says_so_at_once():
    lender = lender_on(1)
    lender.take_nowait(KIB, "net IN")
    with pytest.raises(MemoryExhaustedError, match="net OUT"):
        lender.take_nowait(1, "net OUT")


async def test_a_view_that_died_makes_room_for_the_next():
    lender = lender_on(1)
    lease = lender.take_nowait(KIB, "net IN")
    view = lease.view(0, (4,), BYTE)
    lease.release()
    with pytest.raises(MemoryExhaustedError):
        lender.take_nowait(KIB, "net IN")
    del view
    assert place(lender.take_nowait(KIB, "net IN")) == place(lease)


async def test_with_room_nobody_waits():
    lender = lender_on()
    coroutine = take(lender)
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    assert ended.value.value.state is LeaseState.FILLING


# --- waiting -------------------------------------------------------------------------------------


async def test_those_who_wait_are_served_in_the_order_they_came():
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    tasks = lines_up(lender, KIB, KIB, KIB)
    await turns(2)
    assert lender.statistics().waiting == 3
    for task in tasks:
        assert not task.done()
        held.release()
        held = await asyncio.wait_for(task, 1)
        assert [other.done() for other in tasks] == [
            other in tasks[: tasks.index(task) + 1] for other in tasks
        ]
    assert lender.statistics().waiting == 0
    assert not lender.wanted  # views that die wake nobody any more


async def test_who_wants_less_does_not_pass_who_came_before():
    lender = lender_on(4)
    small, large = lender.take_nowait(KIB, "a"), lender.take_nowait(3 * KIB, "b")
    big, little = lines_up(lender, 4 * KIB, KIB)
    await turns(2)
    small.release()
    await turns(3)
    assert not little.done()
    with pytest.raises(MemoryExhaustedError, match="2 others wait"):
        lender.take_nowait(1, "net IN")
    late = lines_up(lender, 1)[0]
    await turns(3)
    assert not late.done()
    large.release()
    lease = await asyncio.wait_for(big, 1)
    assert not little.done()
    lease.release()
    await told(little, late)


async def test_one_release_can_serve_many():
    lender = lender_on(4)
    held = lender.take_nowait(4 * KIB, "net IN")
    tasks = lines_up(lender, KIB, KIB, KIB, KIB)
    await turns(2)
    held.release()
    leases = await told(*tasks)
    assert len({place(lease) for lease in leases}) == 4


async def test_the_deadline_ends_waiting_with_the_stage_and_the_model():
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    with pytest.raises(DeadlineExceededError) as caught:
        await take(lender, deadline=Deadline.after(0.01))
    assert caught.value.stage == "memory"
    assert caught.value.model == "net"
    assert lender.statistics().waiting == 0
    held.release()
    assert (await take(lender)).state is LeaseState.FILLING


async def test_a_deadline_that_has_passed_leaves_no_time_to_wait():
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    coroutine = take(lender, deadline=Deadline.after(0))
    with pytest.raises(DeadlineExceededError, match="memory"):
        coroutine.send(None)
    held.release()
    assert (await take(lender, deadline=Deadline.after(0))).state is LeaseState.FILLING


async def test_who_runs_out_of_time_at_the_head_lets_the_next_pass():
    lender = lender_on(2)
    held = lender.take_nowait(KIB, "net IN")
    (head,) = lines_up(lender, 2 * KIB, deadline=Deadline.after(0.01))
    (next_one,) = lines_up(lender, KIB)
    late, lease = await told(head, next_one)
    assert isinstance(late, DeadlineExceededError)
    assert lease.state is LeaseState.FILLING
    held.release()


async def test_too_many_do_not_wait():
    lender = lender_on(1, max_waiting=2)
    held = lender.take_nowait(KIB, "net IN")
    tasks = lines_up(lender, KIB, KIB)
    await turns(2)
    with pytest.raises(MemoryExhaustedError, match="net IN: .* 2 wait"):
        await take(lender)
    held.release()
    (await tasks[0]).release()
    (await tasks[1]).release()


async def test_nobody_waits_where_nobody_may():
    lender = lender_on(1, max_waiting=0)
    lender.take_nowait(KIB, "net IN")
    coroutine = take(lender)
    with pytest.raises(MemoryExhaustedError):
        coroutine.send(None)


async def test_what_will_never_be_there_is_not_waited_for():
    lender = lender_on(2)
    held = lender.take_nowait(KIB, "net IN")
    coroutine = take(lender, 2 * KIB + 1)
    with pytest.raises(MemoryExhaustedError, match="net IN"):
        coroutine.send(None)
    held.release()


class Shrinking:
    """Blocks of a source that knows nothing of regions, and has fewer each time."""

    def __init__(self, counts):
        self.counts = counts
        self.source = Arena(HeapMemory())

    def take(self, nbytes, purpose):
        if not self.counts.pop(0):
            raise MemoryExhaustedError(f"{purpose}: none left")
        return self.source.take(nbytes, purpose)

    def give(self, block):
        self.source.give(block)


async def test_who_waits_while_nothing_is_out_any_more_is_told_so():
    lender = Lender(Shrinking([True, False, False, False]))
    held = lender.take_nowait(KIB, "net IN")
    tasks = lines_up(lender, KIB, KIB)
    await turns(2)
    held.release()
    for error in await told(*tasks):
        assert isinstance(error, MemoryExhaustedError)
        assert "none left" in str(error)
    with pytest.raises(IndexError):  # what a source raises otherwise is passed on
        lender.take_nowait(KIB, "net IN")


async def test_what_is_refused_in_its_turn_is_told_to_who_asked_and_nobody_else():
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    impossible, other = lines_up(lender, 0, KIB)
    await turns(2)
    held.release()
    assert isinstance((await told(impossible))[0], ValueError)
    (await asyncio.wait_for(other, 1)).release()


async def test_who_comes_between_a_return_and_its_turn_waits_for_the_others():
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    (first,) = lines_up(lender, KIB)
    await turns(2)
    held.release()  # nothing is out now, and the first has not been served yet
    with pytest.raises(MemoryExhaustedError, match="others wait"):
        lender.take_nowait(KIB, "net IN")
    (second,) = lines_up(lender, KIB)
    (await asyncio.wait_for(first, 1)).release()
    (await asyncio.wait_for(second, 1)).release()


# --- leaving -------------------------------------------------------------------------------------


async def test_who_leaves_the_line_takes_nobodys_turn():
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    first, second, third = lines_up(lender, KIB, KIB, KIB)
    await turns(2)
    second.cancel()
    await turns(2)
    assert lender.statistics().waiting == 2
    held.release()
    (await asyncio.wait_for(first, 1)).release()
    (await asyncio.wait_for(third, 1)).release()
    assert isinstance((await told(second))[0], asyncio.CancelledError)
    assert lender.statistics().in_use == 0


async def test_who_leaves_at_the_head_lets_the_next_pass():
    lender = lender_on(2)
    held = lender.take_nowait(KIB, "net IN")
    head, next_one = lines_up(lender, 2 * KIB, KIB)
    await turns(2)
    assert not next_one.done()
    head.cancel()
    (await asyncio.wait_for(next_one, 1)).release()
    await told(head)
    held.release()


@pytest.mark.parametrize("before", range(4))
async def test_who_is_cancelled_at_whatever_turn_loses_nothing(before):
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    leaver, stayer = lines_up(lender, KIB, KIB)
    await turns(2)
    held.release()
    await turns(before)
    if not leaver.done():
        leaver.cancel()
    (outcome,) = await told(leaver)
    if not isinstance(outcome, asyncio.CancelledError):
        outcome.release()
    (await asyncio.wait_for(stayer, 1)).release()
    assert lender.statistics().in_use == 0


async def test_a_slot_handed_over_to_one_being_cancelled_goes_to_the_next():
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    leaver, stayer = lines_up(lender, KIB, KIB)
    await turns(2)
    held.release()
    lender._turn()  # handed over, and the task did not run yet
    assert lender.statistics().waiting == 1
    leaver.cancel()
    lease = await asyncio.wait_for(stayer, 1)
    assert lease.state is LeaseState.FILLING
    assert isinstance((await told(leaver))[0], asyncio.CancelledError)


async def test_one_cancelled_before_its_task_ran_and_out_of_the_line_harms_nobody():
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    leaver, stayer = lines_up(lender, KIB, KIB)
    await turns(2)
    leaver.cancel()
    held.release()
    lender._turn()  # sees that it was cancelled, before the task itself does
    (await asyncio.wait_for(stayer, 1)).release()
    assert isinstance((await told(leaver))[0], asyncio.CancelledError)


async def test_errors_leave_no_garbage_behind():
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")

    async def waits(call):
        try:
            await call
        except (DeadlineExceededError, MemoryExhaustedError) as error:
            return weakref.ref(error)

    gc.collect()
    gc.disable()
    try:
        late = await waits(take(lender, deadline=Deadline.after(0.005)))
        never = await waits(take(lender, 2 * KIB))
        (first, second) = start(take(lender), waits(take(lender, 2 * KIB)))
        await turns(2)
        held.release()
        (await first).release()
        told_later = await second
        await turns(3)
        assert (late(), never(), told_later()) == (None, None, None)
    finally:
        gc.enable()


# --- letting go elsewhere ------------------------------------------------------------------------


async def wakes_a_waiter(lender, lease, let_go):
    (task,) = lines_up(lender, KIB)
    await turns(2)
    thread = threading.Thread(target=let_go)
    thread.start()
    await asyncio.to_thread(thread.join)
    again = await asyncio.wait_for(task, 1)
    assert place(again) == place(lease)


async def test_a_view_that_dies_in_another_thread_wakes_who_waits():
    lender = lender_on(1)
    lease = lender.take_nowait(KIB, "net IN")
    views = [lease.view(0, (4,), BYTE)]
    lease.release()
    await wakes_a_waiter(lender, lease, views.clear)


async def test_a_view_in_a_cycle_that_is_collected_in_another_thread_wakes_who_waits():
    lender = lender_on(1)
    lease = lender.take_nowait(KIB, "net IN")
    knot = [lease.view(0, (4,), BYTE)]
    knot.append(knot)
    lease.release()
    del knot
    await wakes_a_waiter(lender, lease, gc.collect)


async def test_a_release_in_another_thread_wakes_who_waits():
    lender = lender_on(1)
    lease = lender.take_nowait(KIB, "net IN")
    await wakes_a_waiter(lender, lease, lease.release)


async def test_many_views_that_die_wake_the_loop_once(monkeypatch):
    lender = lender_on(1)
    lease = lender.take_nowait(KIB, "net IN")
    views = [lease.view(0, (4,), BYTE) for _ in range(50)]
    lease.release()
    (task,) = lines_up(lender, KIB)
    await turns(2)
    loop = asyncio.get_running_loop()
    calls = []
    plain = loop.call_soon_threadsafe
    monkeypatch.setattr(
        loop, "call_soon_threadsafe", lambda *args: (calls.append(args), plain(*args))[1]
    )
    views.clear()
    assert len(calls) == 1
    await asyncio.wait_for(task, 1)


async def test_no_wake_is_lost_however_threads_and_tasks_meet():
    lender = lender_on(2)
    doomed = queue.SimpleQueue()

    def drop():
        while doomed.get() is not None:
            pass  # what was got before died when its name was

    async def work():
        for _ in range(40):
            lease = await take(lender)
            doomed.put(lease.view(0, (4,), BYTE))
            lease.release()

    threads = [threading.Thread(target=drop) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        async with asyncio.timeout(30):
            await asyncio.gather(*[work() for _ in range(20)])
    finally:
        for _ in threads:
            doomed.put(None)
        for thread in threads:
            thread.join()
    stats = lender.statistics()
    assert (stats.takes, stats.in_use, stats.waiting) == (800, 0, 0)


async def test_a_view_that_dies_just_before_one_waits_is_not_missed():
    blocks = Arena(HeapMemory(KIB), region_nbytes=KIB)
    views = []

    class Late:
        """Lets a view die when the notes have been read, and nobody waits yet."""

        def take(self, nbytes, purpose):
            try:
                return blocks.take(nbytes, purpose)
            finally:
                views.clear()

        give = staticmethod(blocks.give)

    lender = Lender(Late())
    lease = lender.take_nowait(KIB, "net IN")
    views.append(lease.view(0, (4,), BYTE))
    lease.release()
    assert place(await asyncio.wait_for(take(lender), 1)) == place(lease)


async def test_notes_of_one_who_takes_nothing_more_are_read_by_whoever_looks():
    lender = lender_on(1)
    lease = lender.take_nowait(KIB, "net IN")
    lease.view(0, (4,), BYTE)
    lease.release()
    assert lender.statistics().in_use == 0


# --- draining ------------------------------------------------------------------------------------


async def test_a_slot_is_lent_again_only_when_the_device_is_done_with_it():
    lender, memory = on_device(2)
    lease = lender.take_nowait(KIB, "net IN")
    lender.take_nowait(KIB, "net IN")
    lease.release()
    assert lease.state is LeaseState.DRAINING
    await turns(5)
    with pytest.raises(MemoryExhaustedError):
        lender.take_nowait(KIB, "net IN")
    assert lender.statistics().draining == 1
    memory.complete_all()
    assert place(lender.take_nowait(KIB, "net IN")) == place(lease)  # without waiting for a look
    assert lease.state is LeaseState.FREE
    assert lender.statistics().draining == 0


async def test_who_waits_gets_a_slot_when_the_device_is_done_with_it():
    lender, memory = on_device(1)
    lease = lender.take_nowait(KIB, "net IN")
    lease.release()
    (task,) = lines_up(lender, KIB)
    await turns(5)
    assert not task.done()
    memory.complete_all()
    assert place(await asyncio.wait_for(task, 1)) == place(lease)


async def test_what_drains_is_looked_at_often_again_when_somebody_waits():
    lender, memory = on_device(1)
    lender.take_nowait(KIB, "net IN").release()
    lender._draining._pause_s = 0.25  # as after a while
    (task,) = lines_up(lender, KIB)
    await turns(1)
    assert lender._draining._pause_s == 0
    memory.complete_all()
    await asyncio.wait_for(task, 1)


async def test_slots_drain_in_whatever_order_the_device_is_done():
    lender, memory = on_device(3, apart=True)
    leases = [lender.take_nowait(KIB, str(index)) for index in range(3)]
    for lease in leases:
        lease.release()
    memory.complete(memory.pending[1])
    await until(lambda: leases[1].state is LeaseState.FREE, 2000)
    assert [lease.state for lease in (leases[0], leases[2])] == [LeaseState.DRAINING] * 2
    memory.complete_all()
    await asyncio.sleep(0.01)
    assert lender.statistics().in_use == 0


async def test_a_slot_whose_write_was_abandoned_waits_for_that_write():
    lender, memory = on_device(2)
    lease = lender.take_nowait(KIB, "net IN")
    lease.write(0, [np.full(KIB, 7, np.uint8)])
    lease.release()
    lender.take_nowait(KIB, "net IN")
    assert len(memory.pending) == 2  # the write and the fence
    with pytest.raises(MemoryExhaustedError):
        lender.take_nowait(KIB, "net IN")
    memory.complete_all()
    lender.take_nowait(KIB, "net IN")


@pytest.mark.parametrize("which", ["write", "fence"])
async def test_a_slot_on_which_the_device_failed_is_never_lent_again(caplog, which):
    lender, memory = on_device(2)
    lease = lender.take_nowait(KIB, "net IN")
    lease.write(0, [np.full(KIB, 7, np.uint8)])
    lease.release()
    write, fence = memory.pending
    memory.fail(write if which == "write" else fence)
    memory.complete_all()
    await asyncio.sleep(0.01)
    stats = lender.statistics()
    assert (stats.lost, stats.lost_nbytes, stats.draining) == (1, KIB, 0)
    other = lender.take_nowait(KIB, "net IN")
    assert place(other) != place(lease)
    with pytest.raises(MemoryExhaustedError):
        lender.take_nowait(KIB, "net IN")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("tritonasync.memory", logging.ERROR)
    assert "net IN: 1024 bytes" in record.getMessage()
    assert "as scripted" in record.getMessage()
    assert lease in lender.unsettled()


async def test_losses_are_said_once_and_counted_all(caplog):
    lender, memory = on_device(3)
    for _ in range(3):
        lender.take_nowait(KIB, "net IN").release()
        memory.fail(*memory.pending)
        await asyncio.sleep(0.005)
    assert lender.statistics().lost == 3
    assert len(caplog.records) == 1


async def test_a_slot_that_cannot_be_fenced_is_lost(caplog):
    lender, memory = on_device(1)
    lease = lender.take_nowait(KIB, "net IN")
    memory.forked = True
    lease.release()
    assert lender.statistics().lost == 1
    assert "another process" in caplog.text


async def test_who_waits_for_what_is_lost_is_told_so(caplog):
    lender, memory = on_device(1)
    lender.take_nowait(KIB, "net IN").release()
    (task,) = lines_up(lender, KIB)
    await turns(3)
    memory.fail(*memory.pending)
    assert isinstance((await told(task))[0], MemoryExhaustedError)
    assert caplog.records


async def test_work_that_never_ends_costs_its_slot_and_nothing_else(caplog):
    lender, memory = on_device(2, apart=True)
    stuck = lender.take_nowait(KIB, "stuck")
    stuck.release()
    memory.lose(*memory.pending)
    for _ in range(3):
        lease = lender.take_nowait(KIB, "net IN")
        lease.release()
        memory.complete_all()
        await until(lambda lease=lease: lease.state is LeaseState.FREE, 2000)
    assert stuck.state is LeaseState.DRAINING
    await lender.aclose()
    assert lender.statistics().lost == 1
    assert "stuck" in caplog.text


# --- the end -------------------------------------------------------------------------------------


async def test_closing_tells_those_who_wait_and_lends_nothing_more():
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    tasks = lines_up(lender, KIB, KIB)
    await turns(2)
    await lender.aclose()
    await lender.aclose()
    for error in await told(*tasks):
        assert isinstance(error, PoolClosedError)
    with pytest.raises(PoolClosedError, match="net IN"):
        lender.take_nowait(1, "net IN")
    with pytest.raises(PoolClosedError, match="net IN"):
        await take(lender)
    held.release()
    assert lender.statistics().in_use == 0


async def test_closing_leaves_no_timer_behind():
    loop = asyncio.get_running_loop()

    def timers():
        return [handle for handle in loop._scheduled if not handle.cancelled()]

    before = timers()
    lender = lender_on(1)
    held = lender.take_nowait(KIB, "net IN")
    tasks = lines_up(lender, KIB, deadline=Deadline.after(60))
    await turns(2)
    assert len(timers()) == len(before) + 1
    await lender.aclose()
    assert timers() == before
    await told(*tasks)
    held.release()


async def test_what_is_out_stays_valid_after_closing(tmp_path):
    arena = Arena(SystemMemory(tmp_path), region_nbytes=4096)
    lender = Lender(arena)
    lease = lender.take_nowait(KIB, "net IN")
    lease.write(0, [np.arange(8, dtype=np.uint8)])
    view = lease.view(0, (8,), BYTE)
    lease.release()
    await lender.aclose()
    arena.close()
    assert view.tolist() == [*range(8)]


async def test_closing_waits_for_devices_until_its_deadline(caplog):
    lender, memory = on_device(2)
    lender.take_nowait(KIB, "net IN").release()
    (closing,) = start(lender.aclose(Deadline.after(5)))
    await asyncio.sleep(0.01)
    assert not closing.done()
    memory.complete_all()
    await asyncio.wait_for(closing, 1)
    assert lender.statistics().lost == 0
    assert caplog.records == []


@pytest.mark.parametrize("how", ["no deadline", "deadline", "cancelled"])
async def test_what_is_not_done_when_closing_ends_is_lost(how, caplog):
    lender, _ = on_device(2)
    lender.take_nowait(KIB, "net IN").release()
    if how == "no deadline":
        await lender.aclose()
    elif how == "deadline":
        await lender.aclose(Deadline.after(0.01))
    else:
        (closing,) = start(lender.aclose(NEVER))
        await asyncio.sleep(0.005)
        closing.cancel()
        await told(closing)
    assert lender.statistics().lost == 1
    assert "when the pool was closed" in caplog.text


async def test_what_is_let_go_after_closing_and_is_not_done_is_lost(caplog):
    lender, _ = on_device(2)
    lease = lender.take_nowait(KIB, "net IN")
    await lender.aclose()
    lease.release()
    assert lender.unsettled() == [lease]
    assert caplog.records


# --- reports -------------------------------------------------------------------------------------


async def test_the_statistics_tell_what_is_where():
    lender, memory = on_device(4)
    retired, landed, free, draining = (lender.take_nowait(1000, "net IN") for _ in range(4))
    retired.write(0, [np.zeros(700, np.uint8), np.zeros(300, np.uint8)])
    memory.complete_all()
    for lease in (retired, landed):
        lease.filled()
        lease.sent()
    retired.lost()
    landed.landed()
    free.release()
    memory.complete_all()
    draining.release()
    with pytest.raises(MemoryExhaustedError):
        lender.take_nowait(2 * KIB, "net IN")
    await turns(1)
    stats = lender.statistics()
    assert (stats.regions, stats.region_nbytes) == (1, 4 * KIB)
    assert (stats.in_use, stats.in_use_nbytes) == (3, 3 * KIB)
    assert stats.high_water_nbytes == 4 * KIB
    assert (stats.retired, stats.retired_nbytes) == (1, KIB)
    assert (stats.draining, stats.lost, stats.waiting) == (1, 0, 0)
    assert stats.takes == 4
    assert stats.failures >= 1
    assert (stats.copies, stats.copied_nbytes) == (1, 1000)
    assert lender.unsettled() == [retired, draining]
    retired.confirm()
    assert lender.statistics().retired == 0
    memory.complete_all()
    await lender.aclose(Deadline.after(1))


async def test_counts_of_the_pile_are_used_where_there_are_some():
    counted = CountedBlocks(Arena(HeapMemory(), region_nbytes=KIB))
    lender = Lender(TrackedBlocks(counted))
    lease = lender.take_nowait(KIB, "net IN")
    lease.write(0, [np.zeros(10, np.uint8)])
    assert counted.takes == lender.statistics().takes == 1
    assert counted.copied_nbytes == lender.statistics().copied_nbytes == 10
    lease.release()


def held_by(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if (record.name, record.levelno) == ("tritonasync.memory", logging.WARNING)
    ]


async def test_what_is_held_for_long_is_reported_once(caplog):
    now = [100.0]
    lender = lender_on(4, report_after_s=60, clock=lambda: now[0])
    old = lender.take_nowait(KIB, "net OUT")
    view = old.view(0, (4,), BYTE)
    old.release()
    now[0] += 50
    young = lender.take_nowait(KIB, "net IN")
    lender.check_held(159.9)
    assert held_by(caplog) == []
    lender.check_held(161.5)
    lender.check_held(165)
    (text,) = held_by(caplog)
    for part in ("net OUT", "1024 bytes", "61.5 s", "1 views"):
        assert part in text
    assert "not released" not in text
    caplog.clear()
    lender.check_held(211)
    (text,) = held_by(caplog)
    assert "net IN" in text
    assert "not released" in text
    del view
    young.release()
    lender.check_held(1000)
    assert len(held_by(caplog)) == 1


async def test_the_next_one_on_the_same_slot_is_reported_anew(caplog):
    now = [100.0]
    lender = lender_on(1, report_after_s=60, clock=lambda: now[0])
    for _ in range(2):
        lease = lender.take_nowait(KIB, "net IN")
        now[0] += 60
        lender.check_held()
        lender.check_held()
        lease.release()
    assert len(held_by(caplog)) == 2
    assert lender._reported == set()


async def test_the_report_names_who_took_it(caplog):
    tracked = TrackedBlocks(Arena(HeapMemory()), stacks=True)
    lender = Lender(tracked, report_after_s=0)
    lease = lender.take_nowait(KIB, "net IN")
    lender.check_held()
    (text,) = held_by(caplog)
    assert "in test_the_report_names_who_took_it" in text
    lease.release()
    assert tracked.leaks() == ""
