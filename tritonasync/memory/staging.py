"""The way of the host's arrays to a GPU: through page-locked memory, in pieces.

Owns: two page-locked buffers, used in turn, and a stream. Refuses to know: what the bytes are.

A GPU copies by itself only from page-locked memory. From other memory the driver copies through a
buffer of its own, in one thread and without a sign of when the source is free; here numpy gathers
row parts, strided ones too, straight into the buffer, while the GPU fetches the other.

Invariants: a buffer is filled again only when the GPU has fetched it; when :meth:`Staging.send`
returns, the sources are not read any more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Final, cast

import numpy as np

from tritonasync.core.errors import DeviceError
from tritonasync.core.values import Array
from tritonasync.memory.streams import StreamRef, mark, own_stream

BUFFER_NBYTES: Final = 4 << 20
"""Of each buffer: fetched in about 75 µs, so that the two copies overlap, and marks cost little."""


class Staging:
    """Page-locked buffers for one device. Thread-safe.

    Args:
        cupy: The module.
        device_id: Where to.
        nbytes: The size of each buffer.

    Raises:
        DeviceError: The memory or the stream cannot be had.
    """

    def __init__(self, cupy: ModuleType, device_id: int, *, nbytes: int = BUFFER_NBYTES) -> None:
        self._cupy = cupy
        self._lock = threading.Lock()
        try:
            self.stream: StreamRef = own_stream(cupy, device_id)
            self._buffers = [_page_locked(cupy, nbytes) for _ in range(2)]
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(f"no page-locked memory could be made: {error}") from error
        self._fetched: list[Any] = [None, None]
        self._turn = 0

    def send(self, pointer: int, parts: Sequence[Array]) -> None:
        """Copy the host's arrays to a device, one behind the other; returns when all are read.

        Blocks for as long as copying in the host takes: from 1 MiB on, this is work for a thread.
        What the device still fetches is on :attr:`stream`.

        Raises:
            CUDARuntimeError: CuPy's own; the driver failed.
        """
        with self._lock:
            buffer, at = self._next_buffer(), 0
            for part in parts:
                for piece in _pieces(part, buffer.nbytes):
                    if at + piece.nbytes > buffer.nbytes:
                        self._send_buffer(pointer, at)
                        pointer += at
                        buffer, at = self._next_buffer(), 0
                    place = buffer[at : at + piece.nbytes]
                    np.copyto(place.view(piece.dtype).reshape(piece.shape), piece)
                    at += piece.nbytes
            if at:
                self._send_buffer(pointer, at)

    def _next_buffer(self) -> Array:
        """Return the buffer whose turn it is, once the device has fetched what was in it."""
        fetched = self._fetched[self._turn]
        if fetched is not None:
            self._cupy.cuda.runtime.eventSynchronize(fetched.ptr)
        return self._buffers[self._turn]

    def _send_buffer(self, pointer: int, nbytes: int) -> None:
        runtime = self._cupy.cuda.runtime
        source = self._buffers[self._turn].ctypes.data
        runtime.memcpyAsync(
            pointer, source, nbytes, runtime.memcpyHostToDevice, self.stream.pointer
        )
        self._fetched[self._turn] = mark(self._cupy, self.stream)
        self._turn = 1 - self._turn


def _page_locked(cupy: ModuleType, nbytes: int) -> Array:
    memory: Any = cupy.cuda.alloc_pinned_memory(nbytes)
    return np.frombuffer(memory, np.uint8, nbytes)


def _pieces(part: Array, most: int) -> Iterator[Array]:
    """Yield an array in pieces of so many bytes at most, in order."""
    if part.nbytes <= most:
        if part.nbytes:
            yield part
    elif part.flags.c_contiguous:
        flat = part.reshape(-1).view(np.uint8)
        for begin in range(0, flat.nbytes, most):
            yield flat[begin : begin + most]
    else:
        for row in cast("Sequence[Array]", part):
            yield from _pieces(row, most)
