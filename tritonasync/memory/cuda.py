"""Memory of a GPU that a server on this machine can map: regions by cudaMalloc and CUDA IPC.

Owns: what is called on CuPy for a region: making, viewing, filling, marking, freeing. Refuses to
know: who uses which part of it, whether a server has it open, event loops.

Invariants:

- A region is one plain cudaMalloc of its own. (The handle of a part of a pool's memory would stand
  for the whole block; memory of cudaMallocAsync and managed memory have no handle.)
- It is freed by :meth:`CudaRegion.close` and by nothing else: a server may have it open. What
  nobody closes is leaked on purpose, until the process ends. With views alive it is not freed
  either: touching freed memory would break every other piece of work on the GPU.
- Bounds are checked here: CuPy checks none.
- What a copy reads is kept alive until the copy is done, even if nobody waits for it.
- A forked child makes no call to the driver.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import uuid
import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final, cast

import numpy as np

from tritonasync.core.checks import is_count
from tritonasync.core.errors import (
    ConfigurationError,
    DeviceError,
    MemoryExhaustedError,
    WrongContextError,
)
from tritonasync.core.ports import Completion
from tritonasync.core.values import Array, MemoryKind
from tritonasync.memory.arrays import remembering
from tritonasync.memory.copier import Copier
from tritonasync.memory.device import load_cupy
from tritonasync.memory.guard import SHM_FOLDER, region_name
from tritonasync.memory.streams import (
    LEGACY_STREAM,
    NON_BLOCKING,
    Marks,
    StreamRef,
    current_stream,
    failure,
    mark,
    torch_stream,
)

GRANULE_NBYTES: Final = 2 << 20
"""cudaMalloc gives pages of 2 MiB; a smaller piece would share one with a stranger's."""

HANDLE_NBYTES: Final = 64
"""sizeof(cudaIpcMemHandle_t); the server does not check it."""

_OUT_OF_MEMORY: Final = 2
_UUID_NBYTES: Final = 16

_log: Final = logging.getLogger("tritonasync.memory")


class CudaMemory:
    """Memory of one GPU, of which regions are made.

    CuPy is imported at once, the driver is called when the first region is made.

    Args:
        device_id: The GPU's number in this process (``CUDA_VISIBLE_DEVICES`` changes it).

    Attributes:
        kind: ``"cuda"``.
        device_id: The GPU's number in this process.
        cupy: CuPy.
        copier: What copies arrays to this GPU.

    Raises:
        ConfigurationError: ``device_id`` is not a number from 0 on.
        MissingExtraError: CuPy is not installed.
    """

    kind: MemoryKind = "cuda"

    def __init__(self, device_id: int = 0) -> None:
        if not is_count(device_id, least=0):
            raise ConfigurationError(f"device_id is {device_id!r}, and must be 0 or more")
        self.cupy: ModuleType = load_cupy("shared_memory='cuda'")
        self.device_id = device_id
        self._process = _Process()
        self.copier: Copier = Copier(self.cupy, device_id)

    def gpu_uuid(self) -> str | None:
        """Return what the GPU is called on every machine and in every process: ``"GPU-…"``.

        The label ``gpu_uuid`` of the server's metrics. ``None`` where CuPy does not tell all of it.

        Raises:
            DeviceError: There is no such GPU, or no driver.
            WrongContextError: This process was forked from the one that made this.
        """
        self._process.check()
        try:
            told = self.cupy.cuda.runtime.getDeviceProperties(self.device_id)
        except self.cupy.cuda.runtime.CUDARuntimeError as error:
            raise self._no_device(error) from error
        raw = bytes(told.get("uuid", b""))
        return f"GPU-{uuid.UUID(bytes=raw)}" if len(raw) == _UUID_NBYTES else None

    def create(self, nbytes: int) -> CudaRegion:
        """Return a new region of so many bytes at least: a multiple of 2 MiB.

        Raises:
            ValueError: ``nbytes`` is not 1 or more.
            MemoryExhaustedError: The GPU has not so much left.
            DeviceError: There is no such GPU, no driver, or no CUDA IPC.
            WrongContextError: This process was forked from the one that made this.
        """
        self._process.check()
        if not is_count(nbytes):
            raise ValueError(f"a region has 1 byte or more, not {nbytes!r}")
        nbytes = -(-nbytes // GRANULE_NBYTES) * GRANULE_NBYTES
        name = region_name(SHM_FOLDER)
        runtime = self.cupy.cuda.runtime
        try:
            with self.cupy.cuda.Device(self.device_id):
                pointer = int(runtime.malloc(nbytes))
                handle = self._handle(pointer)
        except runtime.CUDARuntimeError as error:
            if getattr(error, "status", 0) == _OUT_OF_MEMORY:
                raise MemoryExhaustedError(
                    f"GPU {self.device_id} has not {nbytes:,} bytes left: {error}"
                ) from error
            raise self._no_device(error) from error
        return CudaRegion(self, name, pointer, nbytes, handle)

    def check_process(self) -> None:
        """Raise a ``WrongContextError`` in a forked child."""
        self._process.check()

    @property
    def forked(self) -> bool:
        """Whether this is a forked child, where the driver must be left alone."""
        return self._process.forked

    def _handle(self, pointer: int) -> bytes:
        """Return the handle of memory, which is freed if it has none."""
        runtime = self.cupy.cuda.runtime
        try:
            return _checked(bytes(runtime.ipcGetMemHandle(pointer)))
        except BaseException:
            runtime.free(pointer)
            raise

    def _no_device(self, error: BaseException) -> DeviceError:
        return DeviceError(
            f"GPU {self.device_id} gives no memory to share: {error}. See docs/gpu.md for what "
            "CUDA IPC needs"
        )


class CudaRegion:
    """One cudaMalloc that a server can open: see :class:`tritonasync.core.ports.Region`.

    Made by :meth:`CudaMemory.create`. Any thread may use it.

    Attributes:
        kind: ``"cuda"``.
        name: A name that no other region on this machine has.
        nbytes: Its size, a multiple of 2 MiB.
        key: Empty: it is no file.
        handle: Its ``cudaIpcMemHandle_t``, 64 raw bytes: what gRPC's ``raw_handle`` takes.
        device_id: The GPU's number in this process.
    """

    kind: MemoryKind = "cuda"
    key: str = ""

    def __init__(
        self, memory: CudaMemory, name: str, pointer: int, nbytes: int, handle: bytes
    ) -> None:
        self._memory = memory
        self._cupy = memory.cupy
        self.name = name
        self.nbytes = nbytes
        self.handle = handle
        self.device_id: int = memory.device_id
        self._pointer = pointer
        self._open = True
        self._lock = threading.Lock()
        self._reading: list[tuple[Marks, Sequence[Array]]] = []
        self._holds: weakref.WeakSet[_Hold] = weakref.WeakSet()
        self._noted: dict[int, StreamRef] = {}

    def view(
        self,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        owner: object,
        *,
        writable: bool,  # noqa: ARG002 - CuPy has no arrays that cannot be written
    ) -> Array:
        """Return a CuPy array on a part of it, which can be written even if it should not be.

        Raises:
            ValueError: It does not lie within the region, or the region is closed.
            WrongContextError: This process was forked from the one that the region belongs to.
        """
        _no_objects(dtype)
        nbytes = math.prod(shape) * dtype.itemsize if min(shape, default=0) >= 0 else -1
        self._check(offset, nbytes)
        hold = _Hold(owner)
        self._holds.add(hold)
        cuda = self._cupy.cuda
        memory = cuda.UnownedMemory(self._pointer + offset, nbytes, hold, self.device_id)
        array: Any = self._cupy.ndarray(shape, dtype, cuda.MemoryPointer(memory, 0))
        return remembering(self._cupy, array, note_stream=self.note_stream)

    def note_stream(self, pointer: int) -> None:
        """Take note of a stream that uses a view, if it is one that :meth:`fence` would miss.

        The default stream waits for every other but the non-blocking ones, such as torch's. Only
        streams that are current now can be kept alive, and a mark in a dead one is a crash.
        """
        known = [torch_stream(self.device_id), current_stream(self._cupy, self.device_id)]
        for stream in known:
            if stream is not None and stream.pointer == pointer and self._non_blocking(pointer):
                self._noted[pointer] = stream
                return

    def write(self, offset: int, parts: Sequence[Array]) -> Completion | None:
        """Copy arrays into it, one behind the other, without gaps.

        A GPU's are copied on the streams that their bytes are made on, page-locked ones of the host
        from where they are, others through page-locked memory, which blocks for as long as numpy
        copies. The parts are kept alive until the copies are done, whoever waits for it.

        Raises:
            ValueError: They do not fit, or the region is closed.
            DeviceError: The driver failed.
            WrongContextError: This process was forked from the one that the region belongs to.
        """
        for part in parts:
            _no_objects(part.dtype)
        nbytes = sum(part.nbytes for part in parts)
        self._check(offset, nbytes)
        if not nbytes:
            return None
        streams: dict[int, StreamRef] = {}
        try:
            try:
                self._memory.copier.enqueue(self._pointer + offset, parts, streams)
            finally:
                # Also of what failed half way: the part before it is being read.
                marks = Marks(self._cupy, [mark(self._cupy, s) for s in streams.values()])
                self._keep(marks, parts)
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise failure(error) from error
        return marks

    def fence(self) -> Completion | None:
        """Return what is done when all work on it that was enqueued before is.

        That is: copies into it; what is on blocking streams (the default stream waits for these);
        on the calling thread's current streams of CuPy and torch; and on those that took a view by
        DLPack. Other non-blocking streams are not known here.

        Raises:
            DeviceError: The driver failed.
            WrongContextError: This process was forked from the one that the region belongs to.
        """
        self._memory.check_process()
        if not self._open:
            return None
        device_id = self.device_id
        try:
            streams = [
                StreamRef(device_id, LEGACY_STREAM),
                current_stream(self._cupy, device_id),
                torch_stream(device_id),
                *self._noted.values(),
            ]
            # 0 is the default stream as well, and one mark for each is enough.
            each = {stream.pointer or LEGACY_STREAM: stream for stream in streams if stream}
            events = [mark(self._cupy, stream) for stream in each.values()]
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise failure(error) from error
        return Marks(self._cupy, [*events, *self._unfinished()])

    def close(self) -> None:
        """Free it, unless views on it are alive: then it is leaked, or freed when called again.

        Only after every server has confirmed that it has let go of it. Waits for all work on the
        GPU, so it is for a worker thread. In a forked child it does nothing.

        Raises:
            DeviceError: The driver failed.
        """
        if self._memory.forked or not self._pointer:
            return
        before, self._open = self._open, False
        if self._holds:
            if before:
                _log.warning(
                    "%d bytes of GPU memory (%s) are not freed: views on them are alive",
                    self.nbytes,
                    self.name,
                )
            return
        pointer, self._pointer = self._pointer, 0
        runtime = self._cupy.cuda.runtime
        try:
            with self._cupy.cuda.Device(self.device_id):
                runtime.free(pointer)
        except runtime.CUDARuntimeError as error:
            raise failure(error) from error
        self._reading.clear()

    def _check(self, offset: int, nbytes: int) -> None:
        self._memory.check_process()
        if not self._open:
            raise ValueError(f"region {self.name} is closed")
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise ValueError(
                f"{nbytes} bytes at {offset} do not lie within the {self.nbytes} bytes of "
                f"region {self.name}"
            )

    def _keep(self, marks: Marks, parts: Sequence[Array]) -> None:
        with self._lock:
            self._reading = [entry for entry in self._reading if not _over(entry[0])]
            self._reading.append((marks, tuple(parts)))

    def _unfinished(self) -> list[object]:
        with self._lock:
            self._reading = [entry for entry in self._reading if not _over(entry[0])]
            return [event for marks, _ in self._reading for event in marks.left]

    def _non_blocking(self, pointer: int) -> bool:
        tell: Any = getattr(self._cupy.cuda.runtime, "streamGetFlags", None)
        return tell is None or bool(cast("int", tell(pointer)) & NON_BLOCKING)


class _Hold:
    """Keeps the owner of a view alive, and can itself be seen to be alive."""

    __slots__ = ("__weakref__", "owner")

    def __init__(self, owner: object) -> None:
        self.owner = owner


class _Process:
    """The process that the driver was first called in: a forked child cannot use its context."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def forked(self) -> bool:
        return os.getpid() != self._pid

    def check(self) -> None:
        if self.forked:
            raise WrongContextError(
                "memory of a GPU cannot be used in a forked child: the driver does not work there. "
                "Start processes with the method 'spawn' or 'forkserver', and make a pool in each"
            )


def _no_objects(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise ValueError(f"Python objects ({dtype}) have no place in shared memory")


def _checked(handle: bytes) -> bytes:
    if len(handle) != HANDLE_NBYTES:
        raise DeviceError(f"a CUDA IPC handle of {len(handle)} bytes, not {HANDLE_NBYTES}")
    return handle


def _over(marks: Marks) -> bool:
    """Return whether nothing is read any more.

    Of what failed this is not known: it is kept, and fails the next fence, so that nobody has the
    memory again.
    """
    try:
        return marks.done()
    except DeviceError:
        return False
