"""Cuts few large regions into blocks, and gives the same ones out again and again.

Owns: which part of which region is free. Refuses to know: who has the others, servers, threads; it
belongs to one thread. It asks for regions as it needs them: where that takes long, its memory has
to have them made beforehand.

A size is rounded up to a class: powers of two with three steps between, in multiples of 256 bytes,
so that at most a fifth of a block is not asked for (beyond 1 KiB). What was given back lies on the
shelf of its class, the last one on top: the next of that class has the same offset, and whoever
caches what it wrote about that offset finds it again. Where no shelf has one, it is cut from a gap;
where there is no gap, a region with nothing out is cut anew; then a new region is asked for; and if
that is refused, what lies on the shelves is melted down into gaps, wherever that makes room.

Invariants: blocks that are out do not overlap, lie within their region and are aligned to 256
bytes; what is not out is free: each byte of a region is in a block that is out, on one shelf, or in
one gap.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from tritonasync.core.errors import MemoryExhaustedError, PoolClosedError
from tritonasync.core.ports import Block, Memory, Region

ALIGNMENT: Final = 256
"""What a GPU's loads, and CUDA's own allocations, are aligned to."""

REGION_NBYTES: Final = 64 << 20
"""Large, since a server opens a region in about 1.3 ms of a GPU's memory; and few."""


def aligned(nbytes: int) -> int:
    """Return the next size from ``nbytes`` on after which something aligned may follow."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def class_nbytes(nbytes: int) -> int:
    """Return the size of the smallest class that holds so many bytes."""
    step = ALIGNMENT if nbytes <= 4 * ALIGNMENT else 1 << ((nbytes - 1).bit_length() - 3)
    return -(-nbytes // step) * step


class _Slab:
    """A region and what of it is free."""

    __slots__ = ("gaps", "nbytes", "out", "region")

    def __init__(self, region: Region) -> None:
        self.region = region
        self.nbytes = region.nbytes
        self.out: dict[int, Block] = {}
        self.gaps = [(0, self.nbytes)]  # only their ends may be no multiples of 256

    def cut(self, nbytes: int) -> Block | None:
        """Return a block from the first gap that is large enough."""
        for number, (offset, length) in enumerate(self.gaps):
            if length >= nbytes:
                rest = [(offset + nbytes, length - nbytes)] if length > nbytes else []
                self.gaps[number : number + 1] = rest
                return Block(self.region, offset, nbytes)
        return None

    def spaces(self) -> list[tuple[int, int]]:
        """Return the offsets and sizes of what lies between the blocks that are out."""
        spaces: list[tuple[int, int]] = []
        end = 0
        for offset in sorted(self.out):
            if offset > end:
                spaces.append((end, offset - end))
            end = offset + self.out[offset].nbytes
        if end < self.nbytes:
            spaces.append((end, self.nbytes - end))
        return spaces


class Arena:
    """Blocks out of regions.

    Args:
        memory: What makes the regions.
        region_nbytes: The size of a region, unless a block needs a larger one, or there is no room
            for so much.
    """

    def __init__(self, memory: Memory, *, region_nbytes: int = REGION_NBYTES) -> None:
        if region_nbytes < ALIGNMENT:
            raise ValueError(f"a region has {ALIGNMENT} bytes at least, not {region_nbytes}")
        self.memory = memory
        self._region_nbytes = region_nbytes // ALIGNMENT * ALIGNMENT
        self._slabs: dict[int, _Slab] = {}  # by their regions' ids, in the order made
        self._shelves: dict[int, list[Block]] = {}  # by size; the last given back is last
        self._regions: tuple[Region, ...] = ()
        self._closed = False

    def regions(self) -> tuple[Region, ...]:
        """Return the regions that it has, the oldest first."""
        return self._regions

    # --- blocks ---------------------------------------------------------------------------------

    def take(self, nbytes: int, purpose: str) -> Block:
        """Return a block of so many bytes at least, aligned to 256.

        Raises:
            MemoryExhaustedError: There is no room, and the memory has no region left.
            PoolClosedError: It is closed.
            ValueError: ``nbytes`` is not 1 or more.
        """
        if nbytes < 1:
            raise ValueError(f"{purpose}: a block has 1 byte or more, not {nbytes}")
        size = self.block_nbytes(nbytes)
        shelf = self._shelves.get(size)
        block = shelf.pop() if shelf else self._cut(size, purpose)
        self._slabs[id(block.region)].out[block.offset] = block
        return block

    def give(self, block: Block) -> None:
        """Take a block back; without effect after :meth:`close`.

        Raises:
            ValueError: It is not out.
        """
        slab = self._slabs.get(id(block.region))
        mine = None if slab is None else slab.out.get(block.offset)
        if slab is None or mine is None or (mine is not block and mine != block):
            if self._closed:
                return
            raise ValueError(f"a block that is not out was given back: {block}")
        del slab.out[mine.offset]
        shelf = self._shelves.get(mine.nbytes)
        if shelf is None:
            shelf = self._shelves[mine.nbytes] = []
        shelf.append(mine)

    def could_hold(self, nbytes: int) -> bool:
        """Return whether a region that is here could hold so many bytes, with nothing else out."""
        size = self.block_nbytes(nbytes)
        return any(slab.nbytes >= size for slab in self._slabs.values())

    def block_nbytes(self, nbytes: int) -> int:
        """Return the size of the block that so many bytes get: a region for it has as much."""
        size = class_nbytes(nbytes)
        return size if size <= self._region_nbytes else aligned(nbytes)

    def _cut(self, size: int, purpose: str) -> Block:
        if self._closed:
            raise PoolClosedError(f"{purpose}: the pool is closed")
        block = self._cut_gap(size) or self._cut_empty(size)
        if block is not None:
            return block
        try:
            slab = self._add(self._create(size))
        except MemoryExhaustedError as error:
            block = self._cut_melted(size)
            if block is None:
                raise MemoryExhaustedError(self._refused(size, purpose, error)) from error
            return block
        block = slab.cut(size)
        if block is None:
            raise RuntimeError(f"a region of {slab.nbytes} bytes was made where {size} were due")
        return block

    def _cut_gap(self, size: int) -> Block | None:
        for slab in self._slabs.values():
            block = slab.cut(size)
            if block is not None:
                return block
        return None

    def _cut_empty(self, size: int) -> Block | None:
        """Cut a region anew, of which all that was cut is on shelves."""
        for slab in self._slabs.values():
            if not slab.out and slab.nbytes >= size:
                self._melt(slab)
                return slab.cut(size)
        return None

    def _cut_melted(self, size: int) -> Block | None:
        """Cut from what lies side by side on shelves of other classes.

        The last resort, since other classes lose their offsets by it; without it, a class that
        comes late would find everything on the shelves of those that were there before.
        """
        for slab in self._slabs.values():
            if any(length >= size for _, length in slab.spaces()):
                self._melt(slab)
                return slab.cut(size)
        return None

    def _melt(self, slab: _Slab) -> None:
        """Take what is free of a region off the shelves."""
        slab.gaps = slab.spaces()
        self._shelves = {
            size: [block for block in shelf if block.region is not slab.region]
            for size, shelf in self._shelves.items()
        }

    # --- regions --------------------------------------------------------------------------------

    def _create(self, size: int) -> Region:
        """Return a new region for a block: smaller than usual, if there is no room for that."""
        wanted = max(size, self._region_nbytes)
        while True:
            try:
                return self.memory.create(wanted)
            except MemoryExhaustedError:
                if wanted == size:
                    raise
                wanted = max(size, wanted // 2 // ALIGNMENT * ALIGNMENT)

    def _add(self, region: Region) -> _Slab:
        slab = self._slabs[id(region)] = _Slab(region)
        self._regions = (*self._regions, region)
        return slab

    def trim(self) -> list[Region]:
        """Return the regions with nothing out, but for the first region; they are the caller's now.

        A server may know them: let it forget them first, then close them.
        """
        spare = [slab for slab in [*self._slabs.values()][1:] if not slab.out]
        for slab in spare:
            self._melt(slab)
            del self._slabs[id(slab.region)]
        self._regions = tuple([slab.region for slab in self._slabs.values()])
        return [slab.region for slab in spare]

    def close(self, keep: Collection[str] = ()) -> list[Region]:
        """Close all regions; blocks that are out must not be used any more. May be repeated.

        Args:
            keep: Names of regions that are left open, since somebody else may use them.

        Returns:
            These regions.
        """
        self._closed = True
        regions, self._regions = self._regions, ()
        self._slabs, self._shelves = {}, {}
        kept = [region for region in regions if region.name in keep]
        for region in regions:
            if region not in kept:
                region.close()
        return kept

    def _refused(self, size: int, purpose: str, error: MemoryExhaustedError) -> str:
        slabs = self._slabs.values()
        out = sum([block.nbytes for slab in slabs for block in slab.out.values()])
        return (
            f"{purpose}: no room for {size} bytes in {self.memory.kind} shared memory: {out} of "
            f"{sum([slab.nbytes for slab in slabs])} bytes in {len(slabs)} regions are in use, "
            f"and there is no other: {error}"
        )
