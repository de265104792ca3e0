"""The shared memory of a pool: a lender of slots for each kind of memory, made when it is wanted.

Owns: putting the resources on top of each other, making regions beside the event loop, finding out
whether an array lies in our memory, reporting what is held for long, the end. Refuses to know:
servers, which kind is to be used for what.

Invariant: regions are made in worker threads, and never in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Final, Literal

import anyio.to_thread
import numpy as np

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    MemoryExhaustedError,
    MissingExtraError,
    PoolClosedError,
    TritonError,
)
from tritonasync.core.offload import in_worker
from tritonasync.core.policies import MemoryPolicy
from tritonasync.core.ports import Memory, Region
from tritonasync.core.values import Array, MemoryKind
from tritonasync.memory.arena import Arena, class_nbytes
from tritonasync.memory.cuda import CudaMemory
from tritonasync.memory.device import is_device_array, load_cupy
from tritonasync.memory.lease import Lease
from tritonasync.memory.lender import Lender, MemoryStatistics
from tritonasync.memory.resources import CountedBlocks, LimitedMemory, TrackedBlocks
from tritonasync.memory.stock import StockedMemory
from tritonasync.memory.system import SystemMemory

_log: Final = logging.getLogger("tritonasync.memory")

_LEAVE: Final = 0.25
"""The share of /dev/shm that is left to others."""

_LOOK_S: Final = 15.0
"""How often at least what is held for long is looked for."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be lent.

    Attributes:
        nbytes: How much.
        model: For which model.
        deadline: When to give up.
        memory: Whose memory; ``None`` leaves it to the pool.
        when_full: Whether to wait for room; ``None`` leaves it to the pool.
    """

    nbytes: int
    model: str
    deadline: Deadline
    memory: MemoryKind | None
    when_full: Literal["wait", "raise"] | None


class _Shelf:
    """The memory of one kind."""

    def __init__(self, memory: Memory, policy: MemoryPolicy) -> None:
        self.stock = StockedMemory(LimitedMemory(memory, policy.max_nbytes))
        self.arena = Arena(self.stock, region_nbytes=policy.region_nbytes)
        tracked = TrackedBlocks(CountedBlocks(self.arena), stacks=policy.stacks)
        self.lender = Lender(tracked, report_after_s=policy.report_after_s)
        self.stocking: asyncio.Task[None] | None = None
        self.least = 0  # what that is to give at least
        self.failures = 0  # times that there was no room, and none to be had
        self.bases: list[int] = []  # where regions begin, in order
        self.regions: list[Region] = []


class MemoryStore:
    """Lends slots of any kind of memory; belongs to one event loop.

    Args:
        policy: How much.
        sources: Makes each kind of memory; ``None`` for those that there are.
    """

    def __init__(
        self,
        policy: MemoryPolicy,
        sources: dict[MemoryKind, Callable[[], Memory]] | None = None,
    ) -> None:
        self._policy = policy
        self._sources = sources or {
            "system": partial(SystemMemory, leave=_LEAVE),
            "cuda": partial(CudaMemory, policy.device_id),
        }
        self._shelves: dict[MemoryKind, _Shelf] = {}
        self._closed = False
        self._look: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[Region] | None = None
        self._turn = asyncio.Lock()

    # --- lending --------------------------------------------------------------------------------

    async def take(
        self,
        kind: MemoryKind,
        nbytes: int,
        purpose: str,
        deadline: Deadline,
        model: str,
        *,
        wait: bool = False,
    ) -> Lease:
        """Return a slot.

        Args:
            kind: Whose memory.
            nbytes: 1 or more.
            purpose: What for, to be named by who reports.
            deadline: When to give up.
            model: For errors.
            wait: Whether to wait until there is room.

        Raises:
            MemoryExhaustedError: There is no room, or there will never be.
            DeadlineExceededError: The deadline passed (stage ``"memory"``, or ``"encode"`` while a
                region was made).
            MissingExtraError: CuPy is not installed.
            DeviceError: There is no GPU, or it fails.
            PoolClosedError: It is closed.
        """
        shelf = self._shelf(kind)
        why: MemoryExhaustedError | None = None
        while why is None:
            if self._closed:
                raise PoolClosedError(f"{purpose}: the pool is closed")
            try:
                return shelf.lender.take_nowait(nbytes, purpose)
            except MemoryExhaustedError as error:
                # Where others wait there is no more to be had.
                waiting = shelf.lender.wanted
                why = error if waiting else await self._restock(shelf, nbytes, deadline, model)
        if wait and shelf.arena.could_hold(nbytes):
            return await shelf.lender.take(nbytes, purpose, deadline, model)
        shelf.failures += 1
        raise MemoryExhaustedError(
            f"{purpose}: no room for {nbytes:,} bytes in {kind} shared memory: let go of outputs, "
            f"or raise MemoryPolicy(max_nbytes={self._policy.max_nbytes}) ({why})",
            model=model,
        ) from why

    @asynccontextmanager
    async def turn(self, deadline: Deadline, model: str) -> AsyncGenerator[None]:
        """Let one go on at a time of those who wait for several slots and keep what they have got.

        What the others need who have all of theirs comes back; of two who each had a part, none
        would ever get the rest.

        Raises:
            DeadlineExceededError: The deadline passed (stage ``"memory"``).
        """
        try:
            async with asyncio.timeout(deadline.wait_s()):
                await self._turn.acquire()
        except TimeoutError:
            raise deadline.error("memory", model=model) from None
        try:
            yield
        finally:
            self._turn.release()

    async def probe(self, deadline: Deadline) -> Region:
        """Return a region of one page of the host's memory, for finding out what a server takes.

        Raises:
            MemoryExhaustedError: There is not even that.
            PoolClosedError: It is closed.
        """
        if self._closed:
            raise PoolClosedError("the pool is closed")
        probing = self._probing
        if probing is None or (probing.done() and probing.exception()):
            make = partial(self._sources["system"]().create, 1)
            probing = self._probing = asyncio.get_running_loop().create_task(
                in_worker(make, deadline=Deadline.after(60.0), model="")
            )
            probing.add_done_callback(_seen)
        await asyncio.wait({probing}, timeout=deadline.wait_s())
        if not probing.done():
            raise deadline.error("memory")
        error = probing.exception()
        if isinstance(error, TritonError):
            raise error.copy()
        return probing.result()

    async def lend(self, order: Order, default: MemoryKind) -> Lease:
        """Return a slot for a user; raises as :meth:`take`."""
        when_full = order.when_full or self._policy.when_full
        return await self.take(
            order.memory or default,
            order.nbytes,
            f"inputs of model {order.model!r}, lent to be written in place",
            order.deadline,
            order.model,
            wait=when_full == "wait",
        )

    def could_hold(self, sizes: Iterable[int]) -> bool:
        """Return whether the limit has room for slots of all these sizes at a time."""
        return sum([class_nbytes(size) for size in sizes]) <= self._policy.max_nbytes

    def take_nowait(self, kind: MemoryKind, nbytes: int, purpose: str) -> Lease | None:
        """Return a slot if there is one at hand: the short way of :meth:`take`."""
        shelf = self._shelves.get(kind)
        if shelf is None:
            return None
        try:
            return shelf.lender.take_nowait(nbytes, purpose)
        except MemoryExhaustedError:
            return None

    def _shelf(self, kind: MemoryKind) -> _Shelf:
        shelf = self._shelves.get(kind)
        if shelf is None:
            shelf = self._shelves[kind] = _Shelf(self._sources[kind](), self._policy)
            if self._look is None and self._policy.report_after_s < math.inf:
                self._look_later()
        return shelf

    def _look_later(self) -> None:
        """Have what is held for long reported again and again."""
        pause_s = min(self._policy.report_after_s / 2, _LOOK_S)
        self._look = asyncio.get_running_loop().call_later(pause_s, self._look_now)

    def _look_now(self) -> None:
        self.check_held(time.monotonic())
        self._look_later()

    async def _restock(
        self, shelf: _Shelf, nbytes: int, deadline: Deadline, model: str
    ) -> MemoryExhaustedError | None:
        """Have a region made, unless one is being made; return why there is no new one."""
        least = shelf.arena.block_nbytes(nbytes)
        while True:
            stocking = shelf.stocking
            if stocking is None or stocking.done():
                stocking = self._stock(shelf, least, model)
            wanted = shelf.least
            await asyncio.wait({stocking}, timeout=deadline.wait_s())
            if not stocking.done():
                raise deadline.error("memory", model=model)
            error = stocking.exception()
            if isinstance(error, MemoryExhaustedError):
                if wanted <= least:
                    return error
            elif isinstance(error, TritonError):
                raise error.copy()
            elif error is not None:
                raise error
            else:
                return None

    def _stock(self, shelf: _Shelf, least: int, model: str) -> asyncio.Task[None]:
        size = max(self._policy.region_nbytes, least)
        make = partial(shelf.stock.restock, size, least)
        shelf.least = least
        shelf.stocking = asyncio.get_running_loop().create_task(
            in_worker(make, deadline=Deadline.after(60.0), model=model)
        )
        shelf.stocking.add_done_callback(_seen)
        return shelf.stocking

    # --- looking --------------------------------------------------------------------------------

    def find(self, array: Array) -> tuple[Region, int] | None:
        """Return where in our memory an array's elements lie, one after the other, if they do."""
        if not self._shelves or not array.flags.c_contiguous:
            return None
        shelf = self._shelves.get("cuda" if is_device_array(array) else "system")
        if shelf is None:
            return None
        if len(shelf.regions) != len(shelf.arena.regions()):
            _survey(shelf)
        address = _address(array)
        index = bisect_right(shelf.bases, address) - 1
        if index < 0:
            return None
        region, offset = shelf.regions[index], address - shelf.bases[index]
        return (region, offset) if offset + array.nbytes <= region.nbytes else None

    def available(self, kind: MemoryKind) -> bool:
        """Return whether there is memory of a kind, so far as is seen before any is made."""
        return kind == "system" or _has_gpu()

    def statistics(self) -> dict[MemoryKind, MemoryStatistics]:
        """Return what each kind of memory that was used has and has done."""
        return {
            # What waits for a region to be made is no failure.
            kind: replace(shelf.lender.statistics(), failures=shelf.failures)
            for kind, shelf in self._shelves.items()
        }

    def check_held(self, now: float) -> None:
        """Report what is held for long."""
        for shelf in self._shelves.values():
            shelf.lender.check_held(now)

    def regions(self) -> list[Region]:
        """Return all regions."""
        return [region for shelf in self._shelves.values() for region in shelf.arena.regions()]

    # --- the end --------------------------------------------------------------------------------

    def stop(self) -> None:
        """Lend nothing more, and tell so to those who wait."""
        self._closed = True
        for shelf in self._shelves.values():
            shelf.lender.stop()

    async def aclose(self, deadline: Deadline = NEVER, held: Collection[str] = ()) -> None:
        """Lend nothing more, and give regions back. Views stay usable.

        A device's memory is given back only if nobody may use it any more, and else kept until the
        process ends: another's would be written. The host's lives on in the server's own mapping.

        Args:
            deadline: How long to wait for devices to end their work.
            held: Names of the regions that a server may still have.
        """
        self.stop()
        if self._look is not None:
            self._look.cancel()
        for shelf in self._shelves.values():
            await shelf.lender.aclose(deadline)
            while shelf.stocking is not None and not shelf.stocking.done():
                await asyncio.wait({shelf.stocking})
            unsure = {*held, *[lease.region.name for lease in shelf.lender.unsettled()]}
            keep = unsure if shelf.stock.kind == "cuda" else set[str]()
            shelf.bases, shelf.regions = [], []
            # Giving 64 MiB back takes 14 ms, and a device is waited for.
            kept = await anyio.to_thread.run_sync(shelf.arena.close, keep)
            if kept:
                _log.warning(
                    "%d bytes of a GPU's memory are not freed before the process ends: a server, "
                    "or the GPU, may still use them",
                    sum([region.nbytes for region in kept]),
                )
            shelf.stock.close()
        if self._probing is not None:
            await asyncio.wait({self._probing})
            if not self._probing.exception():
                self._probing.result().close()


def _seen(task: asyncio.Task[Any]) -> None:
    """Take note of a failure: those who wanted to know of it may all have left by then."""
    if not task.cancelled():
        task.exception()


@cache
def _has_gpu() -> bool:
    try:
        return bool(load_cupy().cuda.is_available())
    except MissingExtraError:
        return False


def _survey(shelf: _Shelf) -> None:
    byte = np.dtype(np.uint8)
    found = sorted(
        [
            (_address(region.view(0, (1,), byte, None, writable=False)), index, region)
            for index, region in enumerate(shelf.arena.regions())
        ]
    )
    shelf.bases = [base for base, _, _ in found]
    shelf.regions = [region for _, _, region in found]


def _address(array: Any) -> int:  # noqa: ANN401 - numpy's or CuPy's
    if isinstance(array, np.ndarray):
        return int(array.__array_interface__["data"][0])
    return int(array.data.ptr)
