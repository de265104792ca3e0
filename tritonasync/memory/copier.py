"""Copies into a GPU's memory: which stream each is enqueued on, and what has to be staged first.

Owns: the choice of the way for each part. Refuses to know: regions, bounds, who waits.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final, cast

import numpy as np

from tritonasync.core.values import Array
from tritonasync.memory.device import is_device_array, stream_of
from tritonasync.memory.staging import Staging
from tritonasync.memory.streams import StreamRef, stream_object

PINNED_NBYTES: Final = 64 << 10
"""From here on it pays to ask the driver whether a source is page-locked."""

_PAGE_LOCKED: Final = 1
_UNSIGNED: Final = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}


class Copier:
    """Copies arrays of the host and of GPUs into one GPU's memory. Thread-safe.

    Args:
        cupy: The module.
        device_id: The GPU.
    """

    def __init__(self, cupy: ModuleType, device_id: int) -> None:
        self._cupy = cupy
        self._device_id = device_id
        self._lock = threading.Lock()
        self._made: Staging | None = None

    def enqueue(self, pointer: int, parts: Sequence[Array], streams: dict[int, StreamRef]) -> None:
        """Enqueue copies, one behind the other, from ``pointer`` on.

        A GPU's arrays are copied on the streams that their bytes are made on, page-locked ones of
        the host from where they are; others are copied by numpy at first, which blocks as long.

        Args:
            pointer: Where to.
            parts: The arrays.
            streams: Filled with the streams that are used, each before it is.

        Raises:
            CUDARuntimeError: CuPy's own; the driver failed.
            DeviceError: No page-locked memory can be had.
        """
        waiting: list[Array] = []
        for part in parts:
            direct = self._direct_stream(part)
            if direct is None:
                waiting.append(part)
                continue
            pointer = self._stage(pointer, waiting, streams)
            waiting = []
            streams[direct.pointer] = direct
            self._copy(pointer, part, direct)
            pointer += part.nbytes
        self._stage(pointer, waiting, streams)

    def _direct_stream(self, part: Array) -> StreamRef | None:
        """Return the stream to copy a part on; ``None`` if it has to be staged."""
        if is_device_array(part):
            return stream_of(part)
        if part.nbytes < PINNED_NBYTES or not part.flags.c_contiguous:
            return None
        told = self._cupy.cuda.runtime.pointerGetAttributes(part.ctypes.data)
        return self._staging().stream if told.type == _PAGE_LOCKED else None

    def _stage(self, pointer: int, parts: list[Array], streams: dict[int, StreamRef]) -> int:
        """Send parts through page-locked memory; return where the next one goes."""
        if not parts:
            return pointer
        staging = self._staging()
        streams[staging.stream.pointer] = staging.stream
        staging.send(pointer, parts)
        return pointer + sum(part.nbytes for part in parts)

    def _copy(self, pointer: int, part: Array, stream: StreamRef) -> None:
        if not part.flags.c_contiguous:
            self._gather(pointer, part, stream)
            return
        runtime, source = self._cupy.cuda.runtime, cast("Any", part)
        address = int(source.data.ptr if is_device_array(part) else part.ctypes.data)
        with self._cupy.cuda.Device(stream.device_id):
            runtime.memcpyAsync(
                pointer, address, part.nbytes, runtime.memcpyDefault, stream.pointer
            )

    def _gather(self, pointer: int, part: Array, stream: StreamRef) -> None:
        """Copy a strided array, element by element, as the integers that its elements look like."""
        cuda = self._cupy.cuda
        memory = cuda.UnownedMemory(pointer, part.nbytes, self, self._device_id)
        bits = np.dtype(_UNSIGNED[part.dtype.itemsize])
        place: Any = self._cupy.ndarray(part.shape, bits, cuda.MemoryPointer(memory, 0))
        current: Any = stream_object(self._cupy, stream)
        with cuda.Device(stream.device_id), current:
            place[...] = part.view(bits)

    def _staging(self) -> Staging:
        with self._lock:
            if self._made is None:
                self._made = Staging(self._cupy, self._device_id)
            return self._made
