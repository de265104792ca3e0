"""Sources of shared memory that are put on top of each other: limiting, counting, tracking.

Owns: what each adds. Refuses to know: what is below it, beyond the ports; servers; event loops.

::

    TrackedBlocks          who has which block since when
      CountedBlocks        how many, how much, and how many bytes were copied
        Arena              blocks out of regions
          LimitedMemory    not more regions than that
            SystemMemory   regions

Each knows the one below as ``upstream``; :func:`layer` finds one in the pile.

Invariants: what fails below is counted and passed on as it is; what is given back is given back
below, whatever becomes of the books.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np

from tritonasync.core.errors import MemoryExhaustedError
from tritonasync.core.ports import Block, Blocks, Completion, Memory, Region
from tritonasync.core.values import Array, MemoryKind

_L = TypeVar("_L")


def layer(blocks: Blocks, kind: type[_L]) -> _L | None:
    """Return the topmost of a pile that is of a kind, or ``None``."""
    below: object = blocks
    while below is not None:
        if isinstance(below, kind):
            return below
        below = getattr(below, "upstream", None)
    return None


# --- limiting ------------------------------------------------------------------------------------


class LimitedMemory:
    """A kind of memory of which no more than so much is taken from the system at a time.

    What counts is the size of regions that are not closed. Regions may be made and closed in any
    thread.

    Args:
        memory: What makes the regions.
        max_nbytes: The limit, for all regions together.
    """

    def __init__(self, memory: Memory, max_nbytes: int) -> None:
        if max_nbytes < 0:
            raise ValueError(f"a limit is 0 or more bytes, not {max_nbytes}")
        self.upstream = memory
        self.max_nbytes = max_nbytes
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def kind(self) -> MemoryKind:
        """Whose memory it is."""
        return self.upstream.kind

    @property
    def nbytes(self) -> int:
        """What the regions have together that are not closed."""
        return self._nbytes

    def create(self, nbytes: int) -> Region:
        """Return a new region of so many bytes at least.

        Raises:
            MemoryExhaustedError: It would be beyond the limit; or as the memory itself.
        """
        self._claim(nbytes)  # before it is made: two threads may not both have the last of it
        try:
            region = self.upstream.create(nbytes)
        except BaseException:
            self._return(nbytes)
            raise
        try:
            self._claim(region.nbytes - nbytes)  # rounded up, as a device's memory is
        except MemoryExhaustedError:
            region.close()
            self._return(nbytes)
            raise
        return _LimitedRegion(region, self._return)

    def _claim(self, nbytes: int) -> None:
        with self._lock:
            free = self.max_nbytes - self._nbytes
            if nbytes > free:
                raise MemoryExhaustedError(
                    f"{nbytes} bytes more of {self.kind} shared memory would be beyond the limit "
                    f"of {self.max_nbytes}, of which {self._nbytes} are taken"
                )
            self._nbytes += nbytes

    def _return(self, nbytes: int) -> None:
        with self._lock:
            self._nbytes -= nbytes


class _LimitedRegion:
    """A region that tells when it is closed."""

    __slots__ = ("__weakref__", "_region", "_told")

    def __init__(self, region: Region, tell: Callable[[int], None]) -> None:
        self._region = region
        self._told = [tell]  # popped: atomic, so that it is told once, whoever closes

    def __repr__(self) -> str:
        return repr(self._region)

    @property
    def kind(self) -> MemoryKind:
        return self._region.kind

    @property
    def name(self) -> str:
        return self._region.name

    @property
    def nbytes(self) -> int:
        return self._region.nbytes

    @property
    def key(self) -> str:
        return self._region.key

    @property
    def handle(self) -> bytes:
        return self._region.handle

    @property
    def device_id(self) -> int:
        return self._region.device_id

    def view(
        self,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        owner: object,
        *,
        writable: bool,
    ) -> Array:
        return self._region.view(offset, shape, dtype, owner, writable=writable)

    def write(self, offset: int, parts: Sequence[Array]) -> Completion | None:
        return self._region.write(offset, parts)

    def fence(self) -> Completion | None:
        return self._region.fence()

    def close(self) -> None:
        self._region.close()
        if self._told:
            self._told.pop()(self._region.nbytes)


# --- counting ------------------------------------------------------------------------------------


class CountedBlocks:
    """Counts what goes through it.

    Args:
        blocks: Where the blocks come from.

    Attributes:
        takes: Blocks that were taken.
        gives: Blocks that were given back.
        failures: Takes that failed.
        in_use: Blocks that are out.
        in_use_nbytes: Their sizes together, as they were taken (not as they were asked for).
        high_water_nbytes: The most that this has been.
        copies: Copies into blocks, as told by who makes them.
        copied_nbytes: The bytes of these.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.upstream = blocks
        self.takes: int = 0
        self.gives: int = 0
        self.failures: int = 0
        self.in_use_nbytes: int = 0
        self.high_water_nbytes: int = 0
        self.copies: int = 0
        self.copied_nbytes: int = 0
        self._lock = threading.Lock()  # long copies are made in worker threads

    @property
    def in_use(self) -> int:
        """Blocks that are out."""
        return self.takes - self.gives

    def take(self, nbytes: int, purpose: str) -> Block:
        """Return a block of so many bytes at least."""
        try:
            block = self.upstream.take(nbytes, purpose)
        except BaseException:
            self.failures += 1
            raise
        self.takes += 1
        self.in_use_nbytes += block.nbytes
        self.high_water_nbytes = max(self.high_water_nbytes, self.in_use_nbytes)
        return block

    def give(self, block: Block) -> None:
        """Take a block back."""
        self.upstream.give(block)  # first: what is refused there did not happen
        self.gives += 1
        self.in_use_nbytes -= block.nbytes

    def note_copy(self, nbytes: int) -> None:
        """Take note of bytes that were copied into blocks; in any thread."""
        with self._lock:
            self.copies += 1
            self.copied_nbytes += nbytes


# --- tracking ------------------------------------------------------------------------------------

_DEPTH: Final = 30
"""Calls of a stack that are kept, the innermost ones."""

_OURS: Final = 2
"""Calls on top that are this file's own."""

_Calls: TypeAlias = list[tuple[CodeType, int]]
"""Who called, and by which instruction."""


@dataclass(frozen=True, slots=True)
class Held:
    """A block that is out.

    Attributes:
        block: The block.
        purpose: What it is for.
        since: When it was taken, on the tracker's clock.
        stack: The calls that took it, as in a traceback; empty if stacks are not kept.
    """

    block: Block
    purpose: str
    since: float
    stack: str


class TrackedBlocks:
    """Remembers what each block that is out is for, since when, and who took it.

    Args:
        blocks: Where the blocks come from.
        stacks: Whether the stack of each take is kept (about 10 µs a take).
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        stacks: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.upstream = blocks
        self._stacks = stacks
        self._clock = clock
        # By place, in the order taken; the block keeps its region, so that ids are not used again.
        self._out: dict[tuple[int, int], tuple[Block, str, float, _Calls]] = {}

    def take(self, nbytes: int, purpose: str) -> Block:
        """Return a block of so many bytes at least."""
        block = self.upstream.take(nbytes, purpose)
        calls = _calls() if self._stacks else []
        self._out[_place(block)] = (block, purpose, self._clock(), calls)
        return block

    def give(self, block: Block) -> None:
        """Take a block back."""
        self.upstream.give(block)
        self._out.pop(_place(block), None)

    def held(self, longer_than_s: float = 0.0) -> list[Held]:
        """Return the blocks that are out for so long at least, the oldest first."""
        latest = self._clock() - longer_than_s
        return [_held(*entry) for entry in self._out.values() if entry[2] <= latest]

    def stack_of(self, block: Block) -> str:
        """Return the calls that took a block; ``""`` if it is not out, or stacks are not kept."""
        entry = self._out.get(_place(block))
        return "" if entry is None else _held(*entry).stack

    def leaks(self) -> str:
        """Return a report of all blocks that are out, for a test's message; ``""`` if none is."""
        now = self._clock()
        return "\n".join(
            [
                f"{held.purpose}: {held.block.nbytes} bytes at {held.block.offset} of "
                f"{held.block.region.name}, for {now - held.since:.3f} s\n{held.stack}".rstrip()
                for held in self.held()
            ]
        )


def _place(block: Block) -> tuple[int, int]:
    return id(block.region), block.offset


def _calls() -> _Calls:
    """Return the calls that lead to ``take``, the innermost first.

    No frames, which would keep alive what callers have; and no lines, which take most of the time,
    and are looked up for what is reported.
    """
    calls: _Calls = []
    frame = inspect.currentframe()
    while frame is not None and len(calls) < _DEPTH + _OURS:
        calls.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return calls[_OURS:]


def _held(block: Block, purpose: str, since: float, calls: _Calls) -> Held:
    frames = [
        traceback.FrameSummary(code.co_filename, _line(code, instruction), code.co_name)
        for code, instruction in reversed(calls)
    ]
    return Held(block, purpose, since, "".join(traceback.StackSummary.from_list(frames).format()))


def _line(code: CodeType, instruction: int) -> int | None:
    positions = itertools.islice(code.co_positions(), instruction // 2, None)
    return next(positions, (None,))[0]
