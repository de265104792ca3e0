"""Regions that were made beforehand.

Owns: keeping them until they are asked for. Refuses to know: who makes them, and when.

Making a region takes 10 ms for 64 MiB (the system clears its pages): it is done in a worker thread,
so that what runs in an event loop finds regions here or none.
"""

from __future__ import annotations

from tritonasync.core.errors import MemoryExhaustedError
from tritonasync.core.ports import Memory, Region
from tritonasync.core.values import MemoryKind


class StockedMemory:
    """A kind of memory that has no regions but those that were put in (a ``Memory``).

    Args:
        memory: Where :meth:`restock` takes them from.
    """

    def __init__(self, memory: Memory) -> None:
        self.upstream = memory
        self._stock: list[Region] = []

    @property
    def kind(self) -> MemoryKind:
        """Whose memory it is."""
        return self.upstream.kind

    def restock(self, nbytes: int, least: int) -> None:
        """Make a region; blocks. To be called in a worker thread, one at a time.

        Args:
            nbytes: Its size; if there is not so much, half of it, and so on.
            least: The least that it may have.

        Raises:
            MemoryExhaustedError: There is not even that.
        """
        size = max(nbytes, least)
        while True:
            try:
                self._stock.append(self.upstream.create(size))
            except MemoryExhaustedError:
                if size <= least:
                    raise
                size = max(size // 2, least)
            else:
                return

    def create(self, nbytes: int) -> Region:
        """Return a region that was made beforehand, of so many bytes at least.

        Raises:
            MemoryExhaustedError: There is none.
        """
        for index, region in enumerate(self._stock):
            if region.nbytes >= nbytes:
                return self._stock.pop(index)
        raise MemoryExhaustedError(f"no region of {nbytes} bytes was made beforehand")

    def close(self) -> None:
        """Give back what nobody asked for."""
        while self._stock:
            self._stock.pop().close()
