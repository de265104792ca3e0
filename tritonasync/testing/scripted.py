"""A device's memory without a device: its work is done when a test says so, and not before.

Owns: regions on the host's heap that look like a GPU's, and a list of what was enqueued on them.
Refuses to know: time, and which order is the right one: that is the test's to choose.

It is as unhelpful as a device may be, so that a mistake shows:

- Bytes are read from the parts of a write, and arrive, when the write is completed. Who sends
  before that sends :data:`POISON`, and who changes the parts before that has sent the change.
- A fence cannot be completed before the writes that it follows; writes can, in any order.
- A region that is closed while work on it is pending raises, since the work would go on in memory
  that is another's by then; the bytes of a closed one are poison again.

It proves nothing about servers: nobody else can open its regions by their handles.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from tritonasync.core.checks import is_count
from tritonasync.core.errors import DeviceError, MemoryExhaustedError, WrongContextError
from tritonasync.core.values import Array, MemoryKind
from tritonasync.memory.host import HostBytes

POISON: Final = 0xA5
"""What each byte of a region is before it is written."""

HANDLE_NBYTES: Final = 64

State = Literal["pending", "done", "failed", "lost"]


class ScriptedWork:
    """Something enqueued on a region: a write, or a fence.

    It is what regions return as their ``Completion``; it may be waited for in any thread.

    Args:
        number: Its place among all that was enqueued on the memory, from 0 on.
        region: Whose it is.
        offset: Where its bytes go.
        parts: What is written; ``None`` for a fence.

    Attributes:
        state: ``"lost"`` work is never done: it is as pending as before, for whoever asks.
    """

    def __init__(
        self, number: int, region: ScriptedRegion, offset: int, parts: Sequence[Array] | None
    ) -> None:
        self.number = number
        self.region = region
        self.offset = offset
        self.parts = parts
        self.state: State = "pending"
        self._settled = threading.Event()

    @property
    def is_fence(self) -> bool:
        """Whether it only follows what was enqueued before it."""
        return self.parts is None

    @property
    def open(self) -> bool:
        """Whether it may still touch its region: pending, or lost."""
        return self.state in {"pending", "lost"}

    def done(self) -> bool:
        """Return whether a test has completed it.

        Raises:
            DeviceError: A test has failed it.
        """
        if self.state == "failed":
            raise DeviceError(f"work {self.number} on {self.region.name} failed, as scripted")
        return self.state == "done"

    def wait(self) -> None:
        """Block until a test completes or fails it, or ends the memory.

        Raises:
            DeviceError: It failed, or the memory was ended before it was done.
        """
        self._settled.wait()
        if not self.done():
            raise DeviceError(f"work {self.number} on {self.region.name} was never done")

    def settle(self, state: State) -> None:
        """Take a state; the memory's methods do this, with a look at what came before."""
        self.state = state
        if state != "lost":
            self.parts = None if self.is_fence else ()  # not read any more
            self.wake()

    def wake(self) -> None:
        """Let go of who waits."""
        self._settled.set()


class ScriptedRegion:
    """A region of a :class:`ScriptedMemory`; its views are numpy arrays.

    Attributes:
        work: What was enqueued on it, in order.
        closed: Whether it was given back.
    """

    kind: MemoryKind = "cuda"
    key: str = ""

    def __init__(self, memory: ScriptedMemory, name: str, handle: bytes, nbytes: int) -> None:
        self.name = name
        self.handle = handle
        self.nbytes = nbytes
        self.device_id: int = memory.device_id
        self.work: list[ScriptedWork] = []
        self.closed: bool = False
        self._memory = memory
        self._bytes = HostBytes(bytearray(nbytes), f"region {name}")
        self._bytes.fill(POISON)

    def view(
        self,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        owner: object,
        *,
        writable: bool,
    ) -> Array:
        """Return an array on the bytes as they are now: of writes that are done.

        Raises:
            ValueError: It would not lie within the region, or the region is closed.
            WrongContextError: The memory plays that this process was forked.
        """
        self._check_usable()
        return self._bytes.view(offset, shape, dtype, owner, writable=writable)

    def write(self, offset: int, parts: Sequence[Array]) -> ScriptedWork:
        """Enqueue a copy of arrays, which are read when it is completed.

        Raises as :meth:`view`.
        """
        self._check_usable()
        self._bytes.check(offset, parts)
        return self._memory.enqueue(self, offset, tuple(parts))

    def fence(self) -> ScriptedWork:
        """Enqueue what follows all work on the region.

        Raises as :meth:`view`.
        """
        self._check_usable()
        return self._memory.enqueue(self, 0, None)

    def close(self) -> None:
        """Give it back. May be repeated.

        Raises:
            RuntimeError: Work on it is pending or lost; a device would go on with it.
        """
        if self.closed or self._memory.forked:
            return
        if any(work.open for work in self.work):
            raise RuntimeError(f"{self.name} is given back while there is work on it")
        self.closed = True
        self._memory.regions.remove(self)
        self._bytes.fill(POISON)

    def land(self, work: ScriptedWork) -> None:
        """Let the bytes of a write arrive."""
        if work.parts:
            self._bytes.write(work.offset, work.parts)

    def _check_usable(self) -> None:
        if self._memory.forked:
            raise WrongContextError(f"region {self.name} belongs to another process")
        if self.closed:
            raise ValueError(f"region {self.name} is closed")


class ScriptedMemory:
    """A fake device's memory.

    Args:
        max_nbytes: How many bytes its regions may have in all.
        device_id: The device it plays.
        automatic: Whether all work is done at once, for tests of something else.

    Attributes:
        regions: Those that are not closed, in the order of their making.
        work: All that was ever enqueued; an index in it is what :meth:`complete` and the like take.
        forked: Set it to play a forked child: everything is refused, and ``close`` does nothing.
    """

    kind: MemoryKind = "cuda"

    def __init__(
        self, *, max_nbytes: int | None = None, device_id: int = 0, automatic: bool = False
    ) -> None:
        self.device_id = device_id
        self.automatic = automatic
        self.forked = False
        self.regions: list[ScriptedRegion] = []
        self.work: list[ScriptedWork] = []
        self._max_nbytes = max_nbytes
        self._name = f"scripted-{secrets.token_hex(6)}"
        self._numbers = itertools.count(1)

    @property
    def pending(self) -> list[int]:
        """The numbers of the work that can still be completed, failed or lost."""
        return [work.number for work in self.work if work.state == "pending"]

    def create(self, nbytes: int) -> ScriptedRegion:
        """Return a new region of that size, full of poison.

        Raises:
            ValueError: ``nbytes`` is not a whole number from 1 on.
            MemoryExhaustedError: The regions would have more than ``max_nbytes``.
            WrongContextError: The memory plays that this process was forked.
        """
        if not is_count(nbytes):
            raise ValueError(f"a region has 1 byte or more, not {nbytes!r}")
        if self.forked:
            raise WrongContextError("the memory belongs to another process")
        taken = sum([region.nbytes for region in self.regions])
        if self._max_nbytes is not None and taken + nbytes > self._max_nbytes:
            raise MemoryExhaustedError(
                f"no region of {nbytes} bytes: {taken} of {self._max_nbytes} are taken"
            )
        name = f"{self._name}-{next(self._numbers)}"
        region = ScriptedRegion(self, name, name.encode().ljust(HANDLE_NBYTES, b"."), nbytes)
        self.regions.append(region)
        return region

    def opened(self, handle: bytes) -> ScriptedRegion:
        """Return the region of a handle, as a server on this machine would have it.

        Raises:
            KeyError: There is none, or it was closed.
        """
        for region in self.regions:
            if region.handle == handle:
                return region
        raise KeyError(handle)

    def complete(self, *numbers: int) -> None:
        """Let work be done, in this order: the bytes of a write arrive.

        Raises:
            RuntimeError: It is not pending, or is a fence before a write that is.
        """
        for number in numbers:
            work = self._pending(number)
            if work.is_fence and any(before.open for before in _before(work)):
                raise RuntimeError(f"fence {number} cannot be done before what it follows")
            work.region.land(work)
            work.settle("done")

    def complete_all(self) -> None:
        """Let all pending work be done, in order; what follows lost work stays."""
        for number in self.pending:
            work = self.work[number]
            if not (work.is_fence and any(before.open for before in _before(work))):
                self.complete(number)

    def fail(self, *numbers: int) -> None:
        """Let work fail: its bytes never arrive, and who asks or waits is told.

        Raises:
            RuntimeError: It is not pending.
        """
        for number in numbers:
            self._pending(number).settle("failed")

    def lose(self, *numbers: int) -> None:
        """Let work never be done: asking says no, and waiting takes until :meth:`end`.

        Raises:
            RuntimeError: It is not pending.
        """
        for number in numbers:
            self._pending(number).settle("lost")

    def end(self) -> None:
        """Let go of all who wait for what was not done: they get a ``DeviceError``."""
        for work in self.work:
            work.wake()

    def enqueue(
        self, region: ScriptedRegion, offset: int, parts: Sequence[Array] | None
    ) -> ScriptedWork:
        """Take note of work; for regions."""
        work = ScriptedWork(len(self.work), region, offset, parts)
        self.work.append(work)
        region.work.append(work)
        if self.automatic:
            self.complete(work.number)
        return work

    def _pending(self, number: int) -> ScriptedWork:
        work = self.work[number]
        if work.state != "pending":
            raise RuntimeError(f"work {number} is not pending: it is {work.state}")
        return work


def _before(fence: ScriptedWork) -> list[ScriptedWork]:
    """Return the work on the same region that was enqueued before a fence."""
    return [work for work in fence.region.work if work.number < fence.number]
