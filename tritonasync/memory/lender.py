"""Lends slots in shared memory to the tasks of one event loop.

Owns: who waits for room, and in which order; which slots are out, and which are lost. Refuses to
know: how regions are cut (``arena``), when a device is done (``draining``), servers.

Invariants: those who wait are served in the order in which they came, and nobody passes them by;
who leaves takes nothing along and nobody's turn; what a finalizer or another thread lets go wakes
those who wait. A slot is lent again only when all that was enqueued on it is done; if that failed,
it is never lent again: lost on purpose, counted, and said once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import MemoryExhaustedError, PoolClosedError
from tritonasync.core.ports import Blocks
from tritonasync.memory.arena import Arena
from tritonasync.memory.draining import LEAST_PAUSE_S, Draining
from tritonasync.memory.lease import Lease, LeaseState, Lessor
from tritonasync.memory.resources import CountedBlocks, TrackedBlocks, layer
from tritonasync.memory.waiting import Waiter, WaitingLine

logger: Final = logging.getLogger("tritonasync.memory")


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """What a lender has and has done; counts are since it was made.

    Attributes:
        regions: Regions that the slots are parts of.
        region_nbytes: Their sizes together.
        in_use: Slots that are out, for whatever reason.
        in_use_nbytes: Their sizes together.
        high_water_nbytes: The most that this has been.
        retired: Slots that a server may still read or write, though nobody waits for it.
        retired_nbytes: Their sizes together.
        draining: Slots that nobody holds, and a device has not done with.
        lost: Slots that will never be lent again, because a device failed.
        lost_nbytes: Their sizes together.
        waiting: Tasks that wait for room.
        takes: Slots that were lent.
        failures: Times that there was no room, or none to be had.
        copies: Copies made into slots.
        copied_nbytes: The bytes of these.
    """

    regions: int
    region_nbytes: int
    in_use: int
    in_use_nbytes: int
    high_water_nbytes: int
    retired: int
    retired_nbytes: int
    draining: int
    lost: int
    lost_nbytes: int
    waiting: int
    takes: int
    failures: int
    copies: int
    copied_nbytes: int


class Lender(Lessor):
    """Lends slots; to be made and used in the thread of one event loop.

    Args:
        blocks: Where slots come from. They are counted here if nothing in the pile counts them.
        max_waiting: So many tasks may wait for room at most.
        report_after_s: Slots that are out for longer are reported by :meth:`check_held`.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        max_waiting: int = 1000,
        report_after_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.wanted: bool = False
        counted = layer(blocks, CountedBlocks)
        if counted is None:
            blocks = counted = CountedBlocks(blocks)
        self.blocks: Blocks = blocks
        self._counted = counted
        self._arena = layer(blocks, Arena)
        self._tracked = layer(blocks, TrackedBlocks)
        self._max_waiting = max_waiting
        self._report_after_s = report_after_s
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._out: dict[Lease, None] = {}  # in the order taken
        self._reported: set[Lease] = set()
        self._lost: list[Lease] = []
        self._waiting = WaitingLine(self._schedule)
        self._turn_due = False
        self._woken = False
        self._draining = Draining(self._free, self._lose, lambda: bool(self._waiting))
        self._closed = False

    def note_copy(self, nbytes: int) -> None:
        """Take note that so many bytes were copied into a slot; called in any thread."""
        self._counted.note_copy(nbytes)

    # --- taking ---------------------------------------------------------------------------------

    def take_nowait(self, nbytes: int, purpose: str) -> Lease:
        """Return a slot of so many bytes, aligned to 256.

        Args:
            nbytes: 1 or more.
            purpose: What it is for, to be named by who reports: a model and a tensor.

        Raises:
            MemoryExhaustedError: There is no room, or others wait for it.
            PoolClosedError: It is closed.
        """
        if self.notes:
            self._read_notes()
        if self._waiting:
            raise MemoryExhaustedError(
                f"{purpose}: {len(self._waiting)} others wait for shared memory already"
            )
        return self._take(nbytes, purpose)

    async def take(
        self, nbytes: int, purpose: str, deadline: Deadline, model: str | None = None
    ) -> Lease:
        """Return a slot of so many bytes; wait for it if others have to let go of theirs first.

        Raises:
            MemoryExhaustedError: No letting go would be enough, or too many wait already.
            DeadlineExceededError: ``deadline`` passed (stage ``"memory"``).
            PoolClosedError: It is closed, or was meanwhile.
        """
        if self.notes:
            self._read_notes()
        if not self._waiting:
            try:
                return self._take(nbytes, purpose)
            except MemoryExhaustedError:
                if self._hopeless(nbytes):
                    raise
        if len(self._waiting) >= self._max_waiting:
            raise MemoryExhaustedError(
                f"{purpose}: no room in shared memory, and {len(self._waiting)} wait for it already"
            )
        deadline.check("memory", model=model)
        return await self._line_up(nbytes, purpose, model, deadline)

    def _take(self, nbytes: int, purpose: str) -> Lease:
        if self._closed:
            raise _closed(purpose)
        try:
            block = self.blocks.take(nbytes, purpose)
        except MemoryExhaustedError:
            if not self._draining.poll():
                raise
            block = self.blocks.take(nbytes, purpose)
        lease = Lease(self, block, nbytes, purpose, since=self._clock())
        self._out[lease] = None
        return lease

    def _hopeless(self, nbytes: int) -> bool:
        """Return whether a slot that was not to be had will not be by others' letting go."""
        return not self._out or (self._arena is not None and not self._arena.could_hold(nbytes))

    # --- waiting --------------------------------------------------------------------------------

    def _line_up(
        self, nbytes: int, purpose: str, model: str | None, deadline: Deadline
    ) -> Coroutine[Any, Any, Lease]:
        future: asyncio.Future[Lease] = self._running().create_future()
        waiter = Waiter(nbytes, purpose, model, deadline, future)
        self._waiting.append(waiter)
        self.wanted = True
        if self.notes:  # left before it was set, so that nobody was woken for them
            self._schedule()
        self._draining.hasten()
        return self._waiting.result(waiter)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _schedule(self) -> None:
        """Have those who wait served at the end of this turn of the event loop."""
        if self._waiting and not self._turn_due:
            self._turn_due = True
            self._running().call_soon(self._turn)

    def wake(self) -> None:
        """Have the notes read soon; called in any thread, and in the garbage collector."""
        loop = self._loop
        if loop is None or self._woken:
            return
        self._woken = True
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        self._woken = False  # before the notes are read: what comes after them wakes again
        self._read_notes()
        self._waiting.serve(self._serve)
        self.wanted = bool(self._waiting)

    def _serve(self, waiter: Waiter) -> bool:
        """Return whether the first in the line is done with: served, or told an error."""
        try:
            lease = self._take(waiter.nbytes, waiter.purpose)
        except Exception as error:  # noqa: BLE001 - the waiter's, whatever it is
            if isinstance(error, MemoryExhaustedError) and not self._hopeless(waiter.nbytes):
                return False
            waiter.fail(error.with_traceback(None))
        else:
            waiter.future.set_result(lease)
        finally:
            del waiter  # the frames of the error's cause lead here, and from here to the error
        return True

    def _read_notes(self) -> None:
        notes = self.notes
        while notes:
            notes.popleft()()

    # --- letting go -----------------------------------------------------------------------------

    def let_go(self, lease: Lease) -> None:
        """Take a slot back: at once, or when what was enqueued on it is done."""
        try:
            fence = lease.region.fence()
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody knows what goes on there
            self._lose(lease, error)
            return
        if fence is None and not lease.pending:
            self._free(lease)
            return
        waits = lease.pending if fence is None else [*lease.pending, fence]
        if self._draining.is_over(lease, waits):
            return
        if self._closed:
            self._lose(lease, None)
        else:
            self._draining.add(lease, waits, self._running())

    def _free(self, lease: Lease) -> None:
        lease.drained()
        del self._out[lease]
        self._reported.discard(lease)
        self.blocks.give(lease.block)
        self._schedule()

    def _lose(self, lease: Lease, error: Exception | None) -> None:
        """Never lend a slot again: something may still be at work on it."""
        del self._out[lease]
        self._reported.discard(lease)
        if not self._lost:
            logger.error(
                "%s: %d bytes of shared memory are given up, since the device did not finish its "
                "work on them (%s); more of this will be counted and not logged",
                lease.purpose,
                lease.block.nbytes,
                error or "it was still at it when the pool was closed",
            )
        self._lost.append(lease)
        self._schedule()  # who waits may be told that there will be no room

    # --- reports --------------------------------------------------------------------------------

    def unsettled(self) -> list[Lease]:
        """Return the slots that a server or a device may still read or write.

        Their regions must not be closed if that frees the memory for others.
        """
        at_work = (LeaseState.INFLIGHT, LeaseState.RETIRED, LeaseState.DRAINING)
        return [*self._lost, *[lease for lease in self._out if lease.state in at_work]]

    def statistics(self) -> MemoryStatistics:
        """Return what there is and what was done."""
        if self.notes:
            self._read_notes()
        counted = self._counted
        regions = () if self._arena is None else self._arena.regions()
        retired = [lease for lease in self._out if lease.state is LeaseState.RETIRED]
        return MemoryStatistics(
            regions=len(regions),
            region_nbytes=sum([region.nbytes for region in regions]),
            in_use=counted.in_use,
            in_use_nbytes=counted.in_use_nbytes,
            high_water_nbytes=counted.high_water_nbytes,
            retired=len(retired),
            retired_nbytes=sum([lease.block.nbytes for lease in retired]),
            draining=len(self._draining),
            lost=len(self._lost),
            lost_nbytes=sum([lease.block.nbytes for lease in self._lost]),
            waiting=len(self._waiting),
            takes=counted.takes,
            failures=counted.failures,
            copies=counted.copies,
            copied_nbytes=counted.copied_nbytes,
        )

    def check_held(self, now: float | None = None) -> None:
        """Log one warning for each slot that is out for longer than ``report_after_s``."""
        if self.notes:
            self._read_notes()
        now = self._clock() if now is None else now
        for lease in self._out:
            if now - lease.since < self._report_after_s:
                break  # those after it were taken later
            if lease not in self._reported:
                self._reported.add(lease)
                self._report(lease, now)

    def _report(self, lease: Lease, now: float) -> None:
        stack = "" if self._tracked is None else self._tracked.stack_of(lease.block)
        logger.warning(
            "%s: %d bytes of shared memory are held for %.1f s (%s, %d views%s): copy what is to "
            "be kept, or release it%s",
            lease.purpose,
            lease.block.nbytes,
            now - lease.since,
            lease.state,
            lease.views,
            "" if lease.released else ", not released by who took it",
            f"\n{stack}".rstrip(),
        )

    # --- the end --------------------------------------------------------------------------------

    def stop(self) -> None:
        """Lend nothing more, and tell so to those who wait."""
        self._closed = True
        self._waiting.close(lambda waiter: _closed(waiter.purpose))
        self.wanted = False

    async def aclose(self, deadline: Deadline | None = None) -> None:
        """Lend nothing more, and tell so to those who wait; slots that are out stay valid.

        Waits until ``deadline`` for devices to finish their work on slots that were let go; what
        they have not finished then is lost. The blocks are the caller's to close.
        """
        self.stop()
        try:
            while deadline is not None and self._draining and not deadline.expired():
                await asyncio.sleep(LEAST_PAUSE_S)
                self._draining.poll()
        finally:
            self._draining.close()


def _closed(purpose: str) -> PoolClosedError:
    return PoolClosedError(f"{purpose}: the pool is closed")
