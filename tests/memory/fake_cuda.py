"""A GPU of make-believe: CuPy's own arrays on the host's memory, and a driver that is scripted.

What is enqueued on a stream is done when the test says so, or when somebody blocks on it. The
default stream (0, 1) waits for the blocking ones, as CUDA's does. Memory is really there, so that
what a copy read too early, or too late, is seen in the bytes.

It does not prove what CuPy and the driver do: that is what tests/gpu is for.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import cupy
import numpy as np

CUDARuntimeError = cupy.cuda.runtime.CUDARuntimeError
NOT_READY = 600
LEGACY = 1


def host_bytes(pointer: int, nbytes: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(pointer), np.uint8)


def on_host(array) -> np.ndarray:
    """An array of the GPU's, as numpy sees its memory now."""
    if not array.size:
        return np.empty(array.shape, array.dtype)
    first = np.ndarray((1,), array.dtype, host_bytes(array.data.ptr, array.dtype.itemsize))
    return np.lib.stride_tricks.as_strided(first, array.shape, array.strides)


class Driver:
    """The scripted driver; ``module`` is what is put in CuPy's place."""

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.left_bytes = 1 << 32
        self.handle_nbytes = 64
        self.failed: dict[int, int] = {}  # status by event
        self.refuse: dict[str, int] = {}  # status by name of the function
        self.allocated: dict[int, np.ndarray] = {}
        self.freed: list[int] = []
        self.copies: list[tuple[int, int, int]] = []  # stream, kind, nbytes
        self.synchronised = 0
        self.streams: dict[int, StreamState] = {LEGACY: StreamState(blocking=True)}
        self.pinned: list[np.ndarray] = []
        self.process = os.getpid()
        self.lock = threading.RLock()
        self.local = threading.local()
        self.module = self._module()

    # What tests say and see.

    def stream(self, *, blocking: bool = False):
        return self.module.cuda.Stream(non_blocking=not blocking)

    def run(self, pointer: int | None = None) -> None:
        """Do what is enqueued on a stream, or on all."""
        with self.lock:
            for number, state in self.streams.items():
                if pointer in {None, number}:
                    state.run()

    def array(self, values, *, stream=None):
        """An array in the GPU's memory with these values, made on no stream at all."""
        values = np.ascontiguousarray(values)
        pointer = self._malloc(max(values.nbytes, 1), count=False)
        host_bytes(pointer, values.nbytes)[:] = values.reshape(-1).view(np.uint8)
        memory = cupy.cuda.UnownedMemory(pointer, values.nbytes, self.allocated[pointer], 0)
        return self.module.ndarray(values.shape, values.dtype, cupy.cuda.MemoryPointer(memory, 0))

    def fail(self, status: int) -> None:
        """Let what is marked so far fail; what is marked later does not."""
        self.failed.update(dict.fromkeys(self._events, status))

    def enqueue(self, pointer: int, work: Callable[[], None]) -> None:
        with self.lock:
            self.streams[pointer or LEGACY].pending.append(work)

    # The driver.

    def call(self, name: str) -> None:
        assert os.getpid() == self.process, f"{name} in a forked child"
        if name in self.refuse:
            raise CUDARuntimeError(self.refuse[name])

    def _malloc(self, nbytes: int, *, count: bool = True) -> int:
        if count:
            self.call("malloc")
            if nbytes > self.left_bytes:
                raise CUDARuntimeError(2)
            self.left_bytes -= nbytes
        room = np.zeros(nbytes, np.uint8)
        with self.lock:
            self.allocated[room.ctypes.data] = room
        return room.ctypes.data

    def _free(self, pointer: int) -> None:
        self.call("free")
        with self.lock:
            self.left_bytes += self.allocated.pop(pointer).nbytes
            self.freed.append(pointer)

    def _memcpy_async(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        self.call("memcpyAsync")
        self.copies.append((stream or LEGACY, kind, nbytes))

        def copy():
            # Sees what was freed meanwhile: only an address is known here, as in CUDA.
            ctypes.memmove(to, source, nbytes)

        self.enqueue(stream, copy)

    def _record(self, event: int, stream: int) -> None:
        self.call("eventRecord")
        with self.lock:
            waits = [self.streams[stream or LEGACY]]
            if (stream or LEGACY) == LEGACY:
                waits += [state for state in self.streams.values() if state.blocking]
            self._events[event] = [(state, state.done + len(state.pending)) for state in waits]

    def _query(self, event: int) -> int:
        self.call("eventQuery")
        if event in self.failed:
            return self.failed[event]
        over = all(state.done >= count for state, count in self._events[event])
        return 0 if over else NOT_READY

    def _synchronise(self, event: int) -> None:
        self.call("eventSynchronize")
        self.synchronised += 1
        if event in self.failed:
            raise CUDARuntimeError(self.failed[event])
        with self.lock:
            for state, count in self._events[event]:
                state.run(count)

    def _pointer_kind(self, pointer: int) -> SimpleNamespace:
        self.call("pointerGetAttributes")
        locked = any(0 <= pointer - p.ctypes.data < p.nbytes for p in self.pinned)
        return SimpleNamespace(type=1 if locked else 0)

    def _alloc_pinned(self, nbytes: int) -> np.ndarray:
        self.call("alloc_pinned_memory")
        self.pinned.append(np.zeros(nbytes, np.uint8))
        return self.pinned[-1]

    def _handle(self, pointer: int) -> bytes:
        self.call("ipcGetMemHandle")
        assert pointer in self.allocated
        return secrets.token_bytes(self.handle_nbytes)

    def _properties(self, device_id: int) -> dict[str, bytes]:
        self.call("getDeviceProperties")
        return {"uuid": bytes(range(16))}

    def current(self):
        return getattr(self.local, "stream", self.module.cuda.Stream.null)

    def _module(self) -> ModuleType:
        self._events: dict[int, list[tuple[StreamState, int]]] = {}
        runtime = SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            memcpyDefault=4,
            memcpyHostToDevice=1,
            malloc=self._malloc,
            free=self._free,
            memcpyAsync=self._memcpy_async,
            eventRecord=self._record,
            eventQuery=self._query,
            eventSynchronize=self._synchronise,
            pointerGetAttributes=self._pointer_kind,
            ipcGetMemHandle=self._handle,
            getDeviceProperties=self._properties,
            streamGetFlags=lambda p: 0 if self.streams[p or LEGACY].blocking else 1,
        )
        module = ModuleType("cupy")
        module.ndarray = array_type(self)
        module.from_dlpack = lambda capsule: capsule.array
        module.cuda = SimpleNamespace(
            runtime=runtime,
            UnownedMemory=cupy.cuda.UnownedMemory,
            MemoryPointer=cupy.cuda.MemoryPointer,
            Device=self._device,
            Event=lambda block, disable_timing: self._event(),
            Stream=stream_type(self),
            get_current_stream=lambda device_id=-1: self.current(),
            alloc_pinned_memory=self._alloc_pinned,
        )
        return module

    @contextmanager
    def _device(self, number: int):
        self.call("setDevice")
        if number >= self.devices:
            raise CUDARuntimeError(101)
        yield

    def _event(self):
        event = SimpleNamespace(ptr=len(self._events) + 1)
        self._events[event.ptr] = []
        return event


class StreamState:
    def __init__(self, *, blocking: bool) -> None:
        self.blocking = blocking
        self.pending: list[Callable[[], None]] = []
        self.done = 0

    def run(self, until: int | None = None) -> None:
        while self.pending and (until is None or self.done < until):
            self.pending.pop(0)()
            self.done += 1


def stream_type(driver: Driver):
    class Stream:
        null: Stream

        def __init__(self, non_blocking: bool = False, pointer: int | None = None) -> None:
            self.ptr = 1000 + len(driver.streams) if pointer is None else pointer
            if self.ptr and self.ptr not in driver.streams:
                driver.streams[self.ptr] = StreamState(blocking=not non_blocking)

        @classmethod
        def from_external(cls, stream):
            return cls(pointer=stream.__cuda_stream__()[1])

        def __enter__(self):
            self.before = driver.current()
            driver.local.stream = self
            return self

        def __exit__(self, *_):
            driver.local.stream = self.before

    Stream.null = Stream(pointer=0)
    return Stream


def array_type(driver: Driver):
    class FakeArray(cupy.ndarray):
        """CuPy's array, with what needs a driver done by the scripted one."""

        def __setitem__(self, key, value):
            there, source = on_host(self), value
            if isinstance(value, cupy.ndarray):
                source = on_host(value)
            driver.enqueue(driver.current().ptr, lambda: there.__setitem__(key, source))

        def __iadd__(self, value):
            there = on_host(self)
            driver.enqueue(driver.current().ptr, lambda: there.__iadd__(value))
            return self

        def get(self, stream=None, order="C", out=None, blocking=True):
            driver.call("get")
            used = stream or driver.current()
            driver.fetched_on = used.ptr
            driver.run(used.ptr or LEGACY)
            if out is None:
                return on_host(self).copy()
            out[...] = on_host(self)
            return out

        def __dlpack__(self, *, stream=None, **options):
            return SimpleNamespace(array=self, stream=stream)

    return FakeArray
