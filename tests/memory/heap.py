"""A memory that is no more than bytes of this process: nothing is enqueued, nothing is a file."""

from __future__ import annotations

import itertools

from tritonasync.core.errors import MemoryExhaustedError
from tritonasync.memory.host import HostBytes


class HeapRegion:
    kind = "system"
    handle = b""
    device_id = 0

    def __init__(self, name, nbytes):
        self.name = name
        self.key = f"/{name}"
        self.nbytes = nbytes
        self.closed = 0
        self.bytes = HostBytes(bytearray(nbytes), name)
        self.view = self.bytes.view
        self.write = self.bytes.write

    def fence(self):
        return None

    def close(self):
        self.closed += 1


class HeapMemory:
    """Args: the most that all regions may have; what each has more than asked for."""

    kind = "system"

    def __init__(self, max_nbytes=1 << 40, *, extra=0):
        self.max_nbytes = max_nbytes
        self.extra = extra
        self.asked = []
        self.regions = []
        self._numbers = itertools.count()

    def create(self, nbytes):
        self.asked.append(nbytes)
        if sum([region.nbytes for region in self.regions]) + nbytes > self.max_nbytes:
            raise MemoryExhaustedError(f"the heap has no {nbytes} bytes")
        region = HeapRegion(f"heap-{next(self._numbers)}", nbytes + self.extra)
        self.regions.append(region)
        return region
