"""Arrays that are not numpy's: recognised, brought in without a copy, and waited for.

Owns: what counts as an array of a device; which stream its bytes are made on; how an event loop
waits for a device. Refuses to know: regions and leases, servers.

Invariants: nothing is imported for the sake of asking (:func:`is_device_array`,
:func:`host_array`); an array that was brought in remembers the stream that was current when it was,
through slices and reshapes, since current streams are thread-local and a copy is enqueued later,
perhaps by another thread; waiting never holds the event loop up for longer than 50 µs.
"""

from __future__ import annotations

import sys
import time
from asyncio import sleep
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Final, cast

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from tritonasync.core.errors import DeviceError, InvalidInputError, MissingExtraError
from tritonasync.core.ports import Completion
from tritonasync.core.values import Array
from tritonasync.memory.arrays import remembered_stream, remembering
from tritonasync.memory.streams import (
    LEGACY_STREAM,
    StreamRef,
    current_stream,
    failure,
    own_stream,
    stream_object,
    torch_stream,
)

SPIN_S: Final = 50e-6
"""For so long the event loop asks again and again: most copies are done by then."""

POLL_S: Final = 200e-6
"""Until then it asks once a turn; a worker thread costs about 60 µs, ``sleep(0.001)`` 1 ms."""

WAITING_THREADS: Final = 32
"""At most so many threads of an event loop sleep in the driver; they take no time meanwhile."""

_HOST: Final = frozenset({1, 3})
_DEVICE: Final = frozenset({2, 13})
"""DLPack's numbers: kDLCPU and kDLCUDAHost; kDLCUDA and kDLCUDAManaged."""

_REFUSALS: Final = (BufferError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What producers raise that do not hand an array out: the protocol names BufferError alone."""

_waiting: Final[RunVar[CapacityLimiter]] = RunVar("tritonasync.memory.device")


def load_cupy(purpose: str = "memory of a GPU") -> ModuleType:
    """Return CuPy, which is imported when it is first needed.

    Args:
        purpose: What needs it, as the subject of the error's sentence.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module("cupy")
    except ImportError as error:
        raise MissingExtraError(
            "CuPy (cupy-cuda12x; for CUDA 13 the extra is cuda13)", extra="cuda12", purpose=purpose
        ) from error


def is_device_array(value: object) -> bool:
    """Return whether something is an array in a GPU's memory: CuPy's, torch's, jax's, numba's, ….

    Decided by ``__dlpack_device__`` where there is one, else by ``__cuda_array_interface__``.
    Pinned memory is the host's.
    """
    if isinstance(value, np.ndarray):
        return False
    # CuPy's own properties ask the driver, which costs time, and fails without a GPU.
    if _is_cupy(value):
        return True
    kind = _dlpack_kind(value)
    if kind is not None:
        return kind in _DEVICE
    return not isinstance(value, type) and hasattr(value, "__cuda_array_interface__")


def as_device_array(value: object) -> Array:
    """Return an array in a GPU's memory as CuPy has it, without a copy.

    It remembers the stream on which its bytes are made (:func:`stream_of`): the calling thread's
    current one of CuPy or torch, the producer's own where the interface tells it, or, for other
    DLPack producers, one of ours that was made to wait for them. So call it where the user makes
    the call; done again below, it changes nothing.

    Raises:
        InvalidInputError: It is not such an array, or its owner does not hand it out.
        MissingExtraError: CuPy is not installed.
        DeviceError: The driver failed.
    """
    if remembered_stream(value) is not None:
        return cast("Array", value)
    cupy = load_cupy("an array in a GPU's memory")
    if not is_device_array(value):
        raise InvalidInputError(f"a {_kind_of(value)} is not an array in a GPU's memory")
    try:
        array, stream = _brought_in(cupy, value)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"a {_kind_of(value)} could not be taken over: {error}") from error
    except _REFUSALS as error:
        raise InvalidInputError(
            f"a {_kind_of(value)} in a GPU's memory cannot be taken over as it is: {error}"
        ) from error
    return remembering(cupy, array, made_on=stream)


def stream_of(array: Array) -> StreamRef:
    """Return the stream that the bytes of a CuPy array are made on.

    The one remembered by :func:`as_device_array`, else the calling thread's current one.
    """
    remembered = remembered_stream(array)
    if remembered is not None:
        return remembered
    return current_stream(load_cupy(), cast("Any", array).device.id)


def converted(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return a CuPy array with another dtype, converted on the stream that its bytes are made on.

    Raises:
        DeviceError: The driver failed.
    """
    cupy, stream = load_cupy(), stream_of(array)
    current: Any = stream_object(cupy, stream)
    try:
        with cupy.cuda.Device(stream.device_id), current:
            return remembering(cupy, array.astype(dtype), made_on=stream)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise failure(error) from error


def on_device(array: Array) -> Array:
    """Return an array of the host's as a CuPy array that is complete on every stream; blocks.

    Raises:
        MissingExtraError: CuPy is not installed.
        DeviceError: The driver failed, or there is no GPU.
    """
    cupy = load_cupy("outputs on a GPU")
    try:
        moved: Any = cupy.asarray(array)
        # Else it would be complete for who uses it on this thread's stream, and for nobody else.
        cupy.cuda.get_current_stream().synchronize()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise failure(error) from error
    return cast("Array", moved)


def host_array(value: object) -> Array | None:
    """Return an array in the host's memory as numpy has it; ``None`` if it is none known here.

    numpy arrays as they are; others through DLPack without a copy (torch, jax). A torch tensor may
    require a gradient: its values are taken. bfloat16 of torch needs the package ml_dtypes.

    Raises:
        InvalidInputError: Its owner does not hand it out, or numpy cannot read it.
    """
    if isinstance(value, np.ndarray):
        return cast("Array", value)
    if _dlpack_kind(value) not in _HOST:
        return None
    try:
        return _through_dlpack(_detached(value))
    except (*_REFUSALS, ImportError) as error:
        raise InvalidInputError(f"numpy cannot read a {_kind_of(value)}: {error}") from error


def as_host(parts: Iterable[object]) -> list[Array]:
    """Return arrays in the host's memory; those of a device are fetched, which blocks.

    Raises:
        InvalidInputError: One is no array.
        DeviceError: A copy failed.
    """
    return [_fetched(part) if is_device_array(part) else _known(part) for part in parts]


async def settled(completion: Completion | None) -> None:
    """Wait until work on a device is done, without holding the event loop up.

    Spins at first, then asks once a turn, then leaves the waiting to a thread. Who is cancelled
    leaves at once; the work goes on, and what it reads is kept by who enqueued it.

    Raises:
        DeviceError: The work failed.
    """
    if completion is None or completion.done():
        return
    began = time.perf_counter()
    while time.perf_counter() - began < SPIN_S:
        if completion.done():
            return
    while time.perf_counter() - began < POLL_S:
        await sleep(0)
        if completion.done():
            return
    await anyio.to_thread.run_sync(
        completion.wait, abandon_on_cancel=True, limiter=_waiting_threads()
    )


def _waiting_threads() -> CapacityLimiter:
    """Return the event loop's own limiter: other work in threads is not held up by devices."""
    try:
        return _waiting.get()
    except LookupError:
        limiter = CapacityLimiter(WAITING_THREADS)
        _waiting.set(limiter)
        return limiter


# --- recognising -------------------------------------------------------------------------------


def _is_cupy(value: object) -> bool:
    # What is half imported, by another thread, has made no arrays yet.
    kind = getattr(sys.modules.get("cupy"), "ndarray", None)
    return kind is not None and isinstance(value, kind)


def _is_torch(value: object) -> bool:
    kind = getattr(sys.modules.get("torch"), "Tensor", None)
    return kind is not None and isinstance(value, kind)


def _dlpack_kind(value: object) -> int | None:
    """Return DLPack's number of the kind of memory; ``None`` where it is not told."""
    tell = getattr(value, "__dlpack_device__", None)
    # A type has the method of its arrays, too.
    if tell is None or isinstance(value, type):
        return None
    try:
        kind, _ = tell()
        return int(kind)
    except _REFUSALS:  # such as one array on several devices
        return None


def _kind_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _detached(value: object) -> object:
    """Return a tensor without its gradient, with which torch does not hand it out."""
    foreign: Any = value
    return foreign.detach() if getattr(value, "requires_grad", False) is True else value


# --- bringing in -------------------------------------------------------------------------------


def _brought_in(cupy: ModuleType, value: object) -> tuple[object, StreamRef]:
    """Return a CuPy array on the same bytes, and the stream that they are made on."""
    foreign: Any = _detached(value)
    if _is_cupy(foreign):
        return foreign, current_stream(cupy, foreign.device.id)
    if not hasattr(foreign, "__dlpack__"):
        return _by_interface(cupy, foreign)
    device_id = int(foreign.__dlpack_device__()[1])
    stream = torch_stream(device_id) if _is_torch(foreign) else None
    stream = stream or _import_stream(cupy, device_id)
    # The producer makes this stream wait for its own; at once, where it is its own. Handed the
    # capsule, CuPy does not ask the producer again, for the stream that happens to be current.
    capsule = foreign.__dlpack__(stream=stream.pointer or LEGACY_STREAM)
    return cupy.from_dlpack(capsule), stream


_import_stream = cache(own_stream)
"""One for each device, for producers whose streams are not known."""


def _by_interface(cupy: ModuleType, value: object) -> tuple[object, StreamRef]:
    """Return an array by ``__cuda_array_interface__``, without CuPy's blocking wait for it."""
    told: dict[str, Any] = cast("Any", value).__cuda_array_interface__
    if told.get("mask") is not None:
        raise InvalidInputError(f"a {_kind_of(value)} has a mask")
    dtype = np.dtype(told["typestr"])
    shape = tuple(told["shape"])
    strides = tuple(told.get("strides") or _packed(shape, dtype.itemsize))
    low, nbytes = _extent(shape, strides, dtype.itemsize)
    memory = cupy.cuda.UnownedMemory(
        told["data"][0] + low, nbytes, value, getattr(value, "device_id", -1)
    )
    array = cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, -low), strides)
    stream = told.get("stream")
    if stream is None:  # there is nothing to wait for, or the producer does not tell
        return array, current_stream(cupy, memory.device_id)
    return array, StreamRef(memory.device_id, int(stream), value)


def _packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides: list[int] = []
    for length in reversed(shape):
        strides.append(itemsize)
        itemsize *= max(length, 1)
    return tuple(reversed(strides))


def _extent(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Return where the first byte lies, beginning at the first element, and how many there are."""
    if 0 in shape:
        return 0, 0
    reach = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    low = sum(min(step, 0) for step in reach)
    return low, sum(max(step, 0) for step in reach) + itemsize - low


# --- fetching ----------------------------------------------------------------------------------


def _fetched(part: object) -> Array:
    array: Any = part if _is_cupy(part) else as_device_array(part)
    cupy = load_cupy()
    try:
        with cupy.cuda.Device(array.device.id):
            return cast("Array", array.get())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"an array could not be fetched from a GPU: {error}") from error


def _known(part: object) -> Array:
    array = host_array(part)
    if array is None:
        raise InvalidInputError(f"a {_kind_of(part)} is not an array")
    return array


def _through_dlpack(source: object) -> Array:
    foreign: Any = source
    if _is_torch(source) and str(foreign.dtype) == "torch.bfloat16":
        # The one dtype that torch hands out and numpy does not know.
        torch, ml_dtypes = sys.modules["torch"], import_module("ml_dtypes")
        return cast("Array", np.from_dlpack(foreign.view(torch.int16)).view(ml_dtypes.bfloat16))
    return cast("Array", np.from_dlpack(foreign))
