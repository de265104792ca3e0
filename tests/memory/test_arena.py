"""Blocks out of regions: never two on the same bytes, none lost, the same ones again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.memory.heap import HeapMemory
from tritonasync.core.errors import MemoryExhaustedError, PoolClosedError
from tritonasync.memory.arena import ALIGNMENT, Arena, class_nbytes

KIB = 1024
REGION = 64 * KIB


def arena_on(*, max_nbytes=1 << 40, region_nbytes=REGION, extra=0):
    memory = HeapMemory(max_nbytes, extra=extra)
    return Arena(memory, region_nbytes=region_nbytes), memory


def take_all(arena, nbytes):
    """As many blocks as there are to be had."""
    blocks = []
    while True:
        try:
            blocks.append(arena.take(nbytes, "test"))
        except MemoryExhaustedError:
            return blocks


# --- classes -------------------------------------------------------------------------------------


@given(st.integers(1, 1 << 40))
def test_a_class_holds_its_bytes_is_aligned_and_wastes_a_fifth_at_most(nbytes):
    size = class_nbytes(nbytes)
    assert size >= nbytes
    assert size % ALIGNMENT == 0
    assert class_nbytes(size) == size
    assert size - nbytes < ALIGNMENT or size - nbytes < size / 5


def test_there_are_four_classes_to_each_power_of_two():
    sizes = sorted({class_nbytes(nbytes) for nbytes in range(1, 8 * KIB + 1)})
    assert sizes == [
        *range(256, 2 * KIB, 256),
        *range(2 * KIB, 4 * KIB, 512),
        *range(4 * KIB, 8 * KIB + 1, 1024),
    ]


# --- whatever is taken and given -----------------------------------------------------------------

SIZES = st.integers(1, 3 * KIB) | st.integers(1, 20 * KIB) | st.sampled_from([16 * KIB, 17 * KIB])


class AnyOrder(RuleBasedStateMachine):
    """An arena of four regions' worth of memory at most, under whatever comes."""

    @initialize(region_nbytes=st.sampled_from([4 * KIB, 16 * KIB, 5000]), extra=st.integers(0, 700))
    def begin(self, region_nbytes, extra):
        self.arena, self.memory = arena_on(
            max_nbytes=4 * 16 * KIB, region_nbytes=region_nbytes, extra=extra
        )
        self.out = []

    @rule(nbytes=SIZES)
    def take(self, nbytes):
        try:
            block = self.arena.take(nbytes, "test")
        except MemoryExhaustedError:
            self._there_is_no_room(self.arena.block_nbytes(nbytes))
            return
        assert nbytes <= block.nbytes
        assert block.offset % ALIGNMENT == 0
        assert 0 <= block.offset <= block.region.nbytes - block.nbytes
        assert block.region in self.arena.regions()
        for other in self.out:
            if other.region is block.region:
                assert (
                    block.offset + block.nbytes <= other.offset
                    or other.offset + other.nbytes <= block.offset
                )
        self.out.append(block)

    def _there_is_no_room(self, size):
        """No bytes are lost: between the blocks that are out, nowhere is room for that many."""
        assert (
            sum([region.nbytes for region in self.memory.regions]) + size > self.memory.max_nbytes
        )
        for region in self.arena.regions():
            end = 0
            mine = sorted([b for b in self.out if b.region is region], key=lambda b: b.offset)
            for block in mine:
                assert block.offset - end < size
                end = block.offset + block.nbytes
            assert region.nbytes // ALIGNMENT * ALIGNMENT - end < size

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def give(self, data):
        self.arena.give(self.out.pop(data.draw(st.integers(0, len(self.out) - 1))))

    @rule()
    def trim(self):
        spare = self.arena.trim()
        for region in spare:
            assert not any(block.region is region for block in self.out)
            self.memory.regions.remove(region)

    @invariant()
    def the_regions_are_those_that_were_made(self):
        assert list(self.arena.regions()) == self.memory.regions

    def teardown(self):
        for block in self.out:
            self.arena.give(block)
        self.memory.max_nbytes = 0  # all of it is there again
        blocks = take_all(self.arena, 1)
        assert len(blocks) == sum([region.nbytes // ALIGNMENT for region in self.memory.regions])
        assert len({(block.region.name, block.offset) for block in blocks}) == len(blocks)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)


# --- the same ones again -------------------------------------------------------------------------


def test_what_was_given_last_is_taken_first():
    arena, _ = arena_on()
    blocks = [arena.take(1000, "test") for _ in range(4)]
    for block in blocks:
        arena.give(block)
    assert [arena.take(900, "test") for _ in range(4)] == blocks[::-1]


def test_a_steady_load_touches_no_more_of_a_region_than_it_has_out_at_once():
    arena, _ = arena_on()
    offsets = set()
    for _ in range(100):
        pair = [arena.take(5 * KIB, "in"), arena.take(900, "out")]
        offsets |= {block.offset for block in pair}
        for block in pair:
            arena.give(block)
    assert len(offsets) == 2


def test_classes_do_not_get_one_anothers_blocks_while_there_is_room():
    arena, _ = arena_on()
    small = arena.take(256, "test")
    arena.give(small)
    assert arena.take(512, "test").offset == 256


# --- room for other classes ----------------------------------------------------------------------


def test_a_region_with_nothing_out_is_cut_anew_before_another_is_made():
    arena, memory = arena_on()
    for block in [arena.take(KIB, "test") for _ in range(64)]:
        arena.give(block)
    assert arena.take(48 * KIB, "test").offset == 0
    assert len(memory.regions) == 1


def test_what_lies_on_the_shelves_of_others_is_not_touched_while_a_region_can_be_made():
    arena, memory = arena_on()
    blocks = [arena.take(KIB, "test") for _ in range(64)]
    for block in blocks[1:]:
        arena.give(block)
    assert arena.take(48 * KIB, "test").region is memory.regions[1]
    assert arena.take(KIB, "test") == blocks[-1]


def test_a_class_that_comes_late_is_not_starved_by_those_that_came_before():
    arena, _ = arena_on(max_nbytes=REGION)
    blocks = [arena.take(KIB, "test") for _ in range(64)]
    for block in blocks[1:]:
        arena.give(block)
    late = arena.take(48 * KIB, "test")
    assert late.offset == blocks[1].offset
    assert len(take_all(arena, KIB)) == 64 - 1 - 48


def test_a_large_block_can_be_cut_up_again():
    arena, _ = arena_on(max_nbytes=REGION)
    held = arena.take(KIB, "test")
    arena.give(arena.take(32 * KIB, "test"))
    assert len(take_all(arena, KIB)) == 63
    arena.give(held)


# --- regions -------------------------------------------------------------------------------------


def test_regions_are_made_when_they_are_needed_and_few():
    arena, memory = arena_on()
    assert arena.regions() == ()
    for _ in range(130):
        arena.take(KIB, "test")
    assert memory.asked == [REGION] * 3
    assert arena.regions() == tuple(memory.regions)


def test_a_block_larger_than_a_region_has_a_region_of_its_own_size():
    arena, memory = arena_on()
    block = arena.take(REGION + 1, "test")
    assert (block.offset, block.nbytes) == (0, REGION + ALIGNMENT)
    assert memory.asked == [REGION + ALIGNMENT]
    arena.give(block)
    assert arena.take(KIB, "test").region is block.region


def test_a_block_that_only_its_class_makes_larger_than_a_region_still_fits_into_one():
    arena, memory = arena_on(region_nbytes=60 * KIB)
    assert class_nbytes(58 * KIB) > 60 * KIB
    assert arena.take(58 * KIB, "test").nbytes == 58 * KIB
    assert memory.asked == [60 * KIB]


def test_where_there_is_no_room_for_a_region_a_smaller_one_will_do():
    arena, memory = arena_on(max_nbytes=20 * KIB)
    assert arena.take(3 * KIB, "test").region.nbytes == 16 * KIB
    assert memory.asked == [64 * KIB, 32 * KIB, 16 * KIB]
    assert len(take_all(arena, KIB)) == 17


def test_the_smallest_region_is_the_block_itself():
    arena, memory = arena_on(max_nbytes=3 * KIB)
    block = arena.take(3 * KIB, "test")
    assert block.region.nbytes == 3 * KIB
    assert memory.asked[-1] == 3 * KIB


def test_exhaustion_names_the_purpose_and_the_figures():
    arena, _ = arena_on(max_nbytes=REGION)
    arena.take(40 * KIB, "net IN")
    with pytest.raises(MemoryExhaustedError, match="net OUT") as caught:
        arena.take(30 * KIB, "net OUT")
    text = str(caught.value)
    assert "32768 bytes" in text
    assert "system" in text
    assert "40960 of 65536 bytes in 1 regions" in text
    assert "the heap has no 32768 bytes" in text
    assert isinstance(caught.value.__cause__, MemoryExhaustedError)


def test_what_a_region_has_more_than_a_multiple_of_256_is_left_alone():
    arena, _ = arena_on(max_nbytes=1500, region_nbytes=KIB, extra=100)
    (block,) = take_all(arena, KIB)
    assert block.region.nbytes == KIB + 100


def test_it_can_be_told_whether_a_region_could_ever_hold_so_much():
    arena, _ = arena_on(max_nbytes=REGION)
    assert not arena.could_hold(1)
    arena.take(60 * KIB, "test")
    assert arena.could_hold(60 * KIB)
    assert arena.could_hold(REGION)
    assert not arena.could_hold(REGION + 1)


def test_spare_regions_are_handed_out_but_never_the_first():
    arena, memory = arena_on()
    blocks = [arena.take(REGION, "test") for _ in range(3)]
    for block in blocks[:2]:
        arena.give(block)
    assert arena.trim() == [memory.regions[1]]
    assert arena.regions() == (memory.regions[0], memory.regions[2])
    assert memory.regions[1].closed == 0
    arena.give(blocks[2])
    assert arena.trim() == [memory.regions[2]]
    assert arena.trim() == []
    assert arena.take(REGION, "test") == blocks[0]


def test_blocks_of_a_region_that_was_handed_out_are_never_lent_again():
    arena, _ = arena_on()
    first, second = (arena.take(REGION, "test") for _ in range(2))
    held = arena.take(KIB, "test")
    arena.give(second)
    arena.give(held)
    assert arena.trim() == [second.region, held.region]
    assert arena.take(KIB, "test").region not in {second.region, held.region, first.region}
    assert arena.take(REGION, "test").region is not second.region


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [0, -1])
def test_a_block_has_a_byte_at_least(nbytes):
    with pytest.raises(ValueError, match=f"net IN: .* {nbytes}"):
        arena_on()[0].take(nbytes, "net IN")


def test_a_region_has_room_for_a_block_at_least():
    with pytest.raises(ValueError, match="255"):
        Arena(HeapMemory(), region_nbytes=255)


def test_a_block_is_given_back_once():
    arena, _ = arena_on()
    block = arena.take(KIB, "test")
    arena.give(block)
    with pytest.raises(ValueError, match="not out"):
        arena.give(block)
    assert {arena.take(KIB, "test").offset for _ in range(2)} == {0, KIB}


def test_an_old_block_is_not_given_back_for_the_new_one_at_its_place():
    arena, _ = arena_on(max_nbytes=REGION)
    old = arena.take(KIB, "test")
    arena.give(old)
    new = arena.take(REGION, "test")
    assert new.offset == old.offset
    with pytest.raises(ValueError, match="not out"):
        arena.give(old)


def test_a_block_of_another_arena_is_refused():
    arena, _ = arena_on()
    arena.take(KIB, "test")
    with pytest.raises(ValueError, match="not out"):
        arena.give(arena_on()[0].take(KIB, "test"))


# --- the end -------------------------------------------------------------------------------------


def test_closing_closes_each_region_once_and_ends_lending():
    arena, memory = arena_on()
    held = arena.take(REGION, "test")
    arena.give(arena.take(KIB, "test"))
    arena.close()
    arena.close()
    assert [region.closed for region in memory.regions] == [1, 1]
    assert arena.regions() == ()
    arena.give(held)  # by who did not know
    for nbytes in (KIB, REGION):
        with pytest.raises(PoolClosedError, match="net IN"):
            arena.take(nbytes, "net IN")
