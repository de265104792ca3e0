"""Resources on top of each other: each adds one thing and passes all else on."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.heap import HeapMemory
from tritonasync.core.errors import MemoryExhaustedError
from tritonasync.core.ports import Block, Region
from tritonasync.memory.arena import Arena
from tritonasync.memory.resources import CountedBlocks, LimitedMemory, TrackedBlocks, layer
from tritonasync.memory.system import SystemMemory
from tritonasync.testing.memory import MemoryConformance
from tritonasync.testing.scripted import ScriptedMemory

KIB = 1024


class Failing:
    """A source of blocks that has none, or does not take them back."""

    def __init__(self, *, takes=True, gives=True):
        self.takes = takes
        self.gives = gives
        self.region = HeapMemory().create(KIB)

    def take(self, nbytes, purpose):
        if not self.takes:
            raise MemoryExhaustedError(f"{purpose}: none")
        return Block(self.region, 0, nbytes)

    def give(self, block):
        if not self.gives:
            raise ValueError("not mine")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


# --- limiting ------------------------------------------------------------------------------------


class TestLimitedMemory(MemoryConformance):
    """What it makes are regions like any other."""

    @pytest.fixture
    def memory(self, tmp_path):
        return LimitedMemory(SystemMemory(tmp_path), 1 << 30)


class TestLimitedDeviceMemory(MemoryConformance):
    @pytest.fixture
    def memory(self):
        return LimitedMemory(ScriptedMemory(automatic=True), 1 << 30)


@given(
    limit=st.integers(0, 40),
    extra=st.integers(0, 3),
    steps=st.lists(st.integers(1, 20) | st.none(), max_size=30),
)
def test_regions_never_have_more_than_the_limit_together(limit, extra, steps):
    heap = HeapMemory(extra=extra)
    memory = LimitedMemory(heap, limit)
    regions: list[Region] = []
    for nbytes in steps:
        if nbytes is None:
            if regions:
                regions.pop(0).close()
        else:
            room = limit - sum([region.nbytes for region in regions])
            if nbytes + extra <= room:
                regions.append(memory.create(nbytes))
            else:
                with pytest.raises(MemoryExhaustedError):
                    memory.create(nbytes)
        assert memory.nbytes == sum([region.nbytes for region in regions]) <= limit
    for region in regions:
        region.close()
    assert memory.nbytes == 0
    assert all(region.closed for region in heap.regions)


def test_beyond_the_limit_the_memory_is_not_even_asked():
    heap = HeapMemory()
    memory = LimitedMemory(heap, 100)
    memory.create(60)
    with pytest.raises(MemoryExhaustedError, match="41 bytes .* limit of 100, of which 60"):
        memory.create(41)
    assert heap.asked == [60]


def test_what_the_memory_refuses_does_not_count():
    memory = LimitedMemory(HeapMemory(max_nbytes=10), 100)
    with pytest.raises(MemoryExhaustedError, match="heap"):
        memory.create(11)
    assert memory.nbytes == 0


def test_a_region_closed_twice_counts_once():
    memory = LimitedMemory(HeapMemory(), 100)
    first, second = memory.create(50), memory.create(50)
    first.close()
    first.close()
    assert memory.nbytes == 50
    second.close()
    assert memory.nbytes == 0


def test_two_threads_do_not_both_get_the_last_of_it():
    inside = threading.Barrier(2, timeout=10)

    class Meeting(HeapMemory):
        def create(self, nbytes):
            inside.wait()
            return super().create(nbytes)

    memory = LimitedMemory(Meeting(), 100)
    thread = threading.Thread(target=memory.create, args=(60,))
    thread.start()
    while memory.nbytes == 0:  # claimed before it is made
        pass
    with pytest.raises(MemoryExhaustedError, match="limit"):
        memory.create(60)
    inside.wait()
    thread.join()


def test_a_limited_region_is_the_region_in_all_it_tells():
    scripted = ScriptedMemory(device_id=3)
    region = LimitedMemory(scripted, 1 << 20).create(4096)
    (inner,) = scripted.regions
    for name in ("kind", "name", "nbytes", "key", "handle", "device_id"):
        assert getattr(region, name) == getattr(inner, name)
    assert repr(region) == repr(inner)
    assert region.write(0, [np.zeros(3, np.uint8)]) is scripted.work[0]
    assert region.fence() is scripted.work[1]


def test_a_limit_is_not_negative():
    with pytest.raises(ValueError, match="-1"):
        LimitedMemory(HeapMemory(), -1)


def test_an_arena_makes_do_with_what_a_limit_leaves():
    arena = Arena(LimitedMemory(HeapMemory(), 40 * KIB), region_nbytes=64 * KIB)
    assert arena.take(KIB, "test").region.nbytes == 32 * KIB


# --- counting ------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5000) | st.none(), max_size=40))
def test_counts_are_those_of_what_was_done(steps):
    counted = CountedBlocks(Arena(HeapMemory(8 * KIB), region_nbytes=4 * KIB))
    out, takes, gives, failures, high = [], 0, 0, 0, 0
    for nbytes in steps:
        if nbytes is None:
            if out:
                counted.give(out.pop())
                gives += 1
        else:
            try:
                out.append(counted.take(nbytes, "test"))
                takes += 1
            except MemoryExhaustedError:
                failures += 1
        in_use = sum([block.nbytes for block in out])
        high = max(high, in_use)
        assert (counted.takes, counted.gives, counted.failures) == (takes, gives, failures)
        assert (counted.in_use, counted.in_use_nbytes) == (len(out), in_use)
        assert counted.high_water_nbytes == high


def test_what_is_refused_below_is_not_counted_as_given():
    counted = CountedBlocks(Failing(gives=False))
    block = counted.take(10, "test")
    with pytest.raises(ValueError, match="not mine"):
        counted.give(block)
    assert (counted.gives, counted.in_use, counted.in_use_nbytes) == (0, 1, 10)


def test_failures_are_passed_on_as_they_are():
    counted = CountedBlocks(Failing(takes=False))
    with pytest.raises(MemoryExhaustedError, match=r"^net IN: none$"):
        counted.take(10, "net IN")
    assert (counted.takes, counted.failures, counted.in_use) == (0, 1, 0)


def test_copies_are_counted_from_any_thread():
    counted = CountedBlocks(Failing())
    threads = [
        threading.Thread(target=lambda: [counted.note_copy(3) for _ in range(1000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counted.copies, counted.copied_nbytes) == (4000, 12000)


# --- tracking ------------------------------------------------------------------------------------


def test_each_block_out_is_known_by_purpose_and_time():
    clock = Clock()
    tracked = TrackedBlocks(Arena(HeapMemory(), region_nbytes=64 * KIB), clock=clock)
    first = tracked.take(KIB, "net IN")
    clock.now += 5
    second = tracked.take(KIB, "net OUT")
    assert [(held.block, held.purpose, held.since) for held in tracked.held()] == [
        (first, "net IN", 100.0),
        (second, "net OUT", 105.0),
    ]
    assert [held.purpose for held in tracked.held(longer_than_s=5)] == ["net IN"]
    assert tracked.held(longer_than_s=6) == []
    tracked.give(first)
    assert [held.purpose for held in tracked.held()] == ["net OUT"]
    tracked.give(second)
    assert tracked.held() == []


def test_a_place_taken_again_is_as_old_as_its_last_taking():
    clock = Clock()
    tracked = TrackedBlocks(Arena(HeapMemory(), region_nbytes=64 * KIB), clock=clock)
    tracked.give(tracked.take(KIB, "net IN"))
    clock.now += 5
    tracked.take(KIB, "net OUT")
    assert tracked.held(longer_than_s=1) == []


def test_blocks_at_the_same_offset_of_two_regions_are_told_apart():
    tracked = TrackedBlocks(Arena(HeapMemory(), region_nbytes=KIB))
    first, second = tracked.take(KIB, "one"), tracked.take(KIB, "two")
    assert first.offset == second.offset
    tracked.give(first)
    assert [held.purpose for held in tracked.held()] == ["two"]


def culprit(tracked):
    return tracked.take(KIB, "net IN")


def test_with_stacks_who_took_it_is_named_last():
    tracked = TrackedBlocks(Arena(HeapMemory()), stacks=True)
    block = culprit(tracked)
    stack = tracked.stack_of(block)
    *_, last, line = stack.rstrip().splitlines()
    assert "in culprit" in last
    assert line.strip() == 'return tracked.take(KIB, "net IN")'
    assert "test_with_stacks_who_took_it_is_named_last" in stack
    (held,) = tracked.held()
    assert held.stack == stack
    tracked.give(block)
    assert tracked.stack_of(block) == ""


def test_without_stacks_there_are_none():
    tracked = TrackedBlocks(Arena(HeapMemory()))
    block = culprit(tracked)
    assert tracked.stack_of(block) == ""
    assert tracked.held()[0].stack == ""


def test_a_stack_keeps_nothing_of_the_callers_alive():
    tracked = TrackedBlocks(Arena(HeapMemory()), stacks=True)

    class Mine:
        pass

    def take():
        mine = Mine()
        tracked.take(KIB, "net IN")
        return weakref.ref(mine)

    gc.disable()
    try:
        assert take()() is None
    finally:
        gc.enable()


def test_leaks_are_reported_and_nothing_where_there_are_none():
    clock = Clock()
    tracked = TrackedBlocks(Arena(HeapMemory()), stacks=True, clock=clock)
    assert tracked.leaks() == ""
    block = culprit(tracked)
    clock.now += 2
    report = tracked.leaks()
    assert report.startswith(f"net IN: 1024 bytes at 0 of {block.region.name}, for 2.000 s\n")
    assert "in culprit" in report
    tracked.give(block)
    assert tracked.leaks() == ""


def test_what_is_refused_below_is_still_tracked():
    tracked = TrackedBlocks(Failing(gives=False))
    block = tracked.take(10, "test")
    with pytest.raises(ValueError, match="not mine"):
        tracked.give(block)
    assert len(tracked.held()) == 1


# --- the pile ------------------------------------------------------------------------------------


def test_a_layer_is_found_wherever_it_is_in_the_pile():
    arena = Arena(HeapMemory())
    counted = CountedBlocks(arena)
    tracked = TrackedBlocks(counted)
    assert layer(tracked, TrackedBlocks) is tracked
    assert layer(tracked, CountedBlocks) is counted
    assert layer(tracked, Arena) is arena
    assert layer(counted, TrackedBlocks) is None


def test_resources_pile_up_in_any_order():
    clock = Clock()
    tracked = TrackedBlocks(Arena(HeapMemory()), clock=clock)
    counted = CountedBlocks(tracked)
    block = counted.take(KIB, "net IN")
    assert tracked.held()[0].block is block
    counted.give(block)
    assert (counted.in_use, tracked.leaks()) == (0, "")
