"""CUDA streams as they are remembered: CuPy's, torch's, or a number that an interface told.

Owns: what a stream is called, which ones are current in this thread, and the marks put into them.
Refuses to know: arrays, regions. Imports neither CuPy nor torch: the one is handed in, the other is
used where it is in use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from tritonasync.core.errors import DeviceError

NOT_READY: Final = 600
"""cudaErrorNotReady: what was enqueued before the event is not done yet."""

NON_BLOCKING: Final = 1
"""cudaStreamNonBlocking: the default stream does not wait for it."""

LEGACY_STREAM: Final = 1
"""CUDA's name of the default stream where 0 is not allowed, as in DLPack."""


@dataclass(frozen=True, slots=True)
class StreamRef:
    """A CUDA stream, kept alive as long as this is.

    Attributes:
        device_id: Its device.
        pointer: The ``cudaStream_t`` as a number; 0 and 1 are the legacy default stream, 2 is the
            calling thread's own default stream.
        keep: What owns the stream; ``None`` where it is never destroyed.
    """

    device_id: int
    pointer: int
    keep: object = None


def current_stream(cupy: ModuleType, device_id: int) -> StreamRef:
    """Return CuPy's current stream of this thread."""
    stream: Any = cupy.cuda.get_current_stream(device_id)
    return StreamRef(device_id, int(stream.ptr), stream)


def torch_stream(device_id: int) -> StreamRef | None:
    """Return torch's current stream of this thread, if torch is in use on GPUs at all."""
    torch: Any = sys.modules.get("torch")
    # What is half imported, by another thread, has no tensors yet.
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None
    stream: Any = cuda.current_stream(device_id)
    return StreamRef(device_id, int(stream.cuda_stream), stream)


def own_stream(cupy: ModuleType, device_id: int) -> StreamRef:
    """Return a new stream that waits for nothing by itself, not even for the default stream."""
    with cupy.cuda.Device(device_id):
        stream: Any = cupy.cuda.Stream(non_blocking=True)
    return StreamRef(device_id, int(stream.ptr), stream)


def stream_object(cupy: ModuleType, stream: StreamRef) -> object:
    """Return a stream as CuPy's functions want it."""
    if isinstance(stream.keep, cupy.cuda.Stream):
        return stream.keep
    make: Any = getattr(cupy.cuda.Stream, "from_external", None)  # from CuPy 14 on
    if make is not None:
        return make(_Foreign(stream))
    return cupy.cuda.ExternalStream(stream.pointer, stream.device_id)


class _Foreign:
    """A stream of somebody else's, by CUDA's protocol of streams."""

    def __init__(self, stream: StreamRef) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.pointer


class Marks:
    """Events put into streams: done when everything that was enqueued before them is.

    A completion. Any thread may ask, several at once.

    Args:
        cupy: The module.
        events: CuPy's events, recorded.
    """

    __slots__ = ("_cupy", "_left")

    def __init__(self, cupy: ModuleType, events: Iterable[object]) -> None:
        self._cupy = cupy
        self._left: tuple[Any, ...] = tuple(events)

    @property
    def left(self) -> tuple[object, ...]:
        """The events that were not seen done yet."""
        return self._left

    def done(self) -> bool:
        """Return whether it is done; never blocks.

        Raises:
            DeviceError: What was enqueued failed, or the driver did.
        """
        # Not Event.done, which takes every failure for "not yet". Each look is on what was left
        # when it began, so that two threads never count one event as two.
        query = self._cupy.cuda.runtime.eventQuery
        left = self._left
        while left:
            status = int(query(left[-1].ptr))
            if status == NOT_READY:
                self._left = left
                return False
            if status:
                raise failure(self._cupy.cuda.runtime.CUDARuntimeError(status))
            left = left[:-1]
        self._left = left
        return True

    def wait(self) -> None:
        """Block until it is done, with the interpreter free for others. Raises as :meth:`done`."""
        runtime = self._cupy.cuda.runtime
        try:
            for event in self._left:
                runtime.eventSynchronize(event.ptr)
        except runtime.CUDARuntimeError as error:
            raise failure(error) from error
        self._left = ()


def mark(cupy: ModuleType, stream: StreamRef) -> object:
    """Return an event that is recorded on a stream, to be waited for asleep.

    Raises:
        CUDARuntimeError: CuPy's own; the driver failed.
    """
    with cupy.cuda.Device(stream.device_id):
        event: Any = cupy.cuda.Event(block=True, disable_timing=True)
        cupy.cuda.runtime.eventRecord(event.ptr, stream.pointer)
    return event


def failure(error: BaseException) -> DeviceError:
    """Return the error for what was enqueued earlier and failed, perhaps somebody else's work."""
    return DeviceError(f"work on a GPU failed: {error}")
