"""Does CUDA IPC work here at all? Everything else rests on it."""

import subprocess
import sys

import numpy as np
import pytest

from tritonasync.memory.cuda import HANDLE_NBYTES, CudaMemory

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")


CHILD = """
import sys
import cupy
handle, nbytes = bytes.fromhex(sys.argv[1]), int(sys.argv[2])
with cupy.cuda.Device(0):
    pointer = cupy.cuda.runtime.ipcOpenMemHandle(handle)
    memory = cupy.cuda.UnownedMemory(pointer, nbytes, None, 0)
    view = cupy.ndarray((nbytes,), "u1", cupy.cuda.MemoryPointer(memory, 0))
    print(int(view.sum(dtype="i8")))
    view[...] = 3
    cupy.cuda.runtime.deviceSynchronize()
    del view, memory
    cupy.cuda.runtime.ipcCloseMemHandle(pointer)
"""


def read_and_fill(handle, nbytes):
    """What another process sees through a handle, before it writes threes."""
    program = [sys.executable, "-c", CHILD, handle.hex(), str(nbytes)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture
def region():
    region = CudaMemory().create(1)
    yield region
    region.close()


def test_another_process_reads_and_writes_a_region(region):
    region.write(0, [np.full(region.nbytes, 2, np.uint8)]).wait()
    assert read_and_fill(region.handle, region.nbytes) == 2 * region.nbytes
    view = region.view(0, (region.nbytes,), np.dtype(np.uint8), None, writable=False)
    assert (view.get() == 3).all()


def test_a_handle_is_64_bytes_and_the_regions_own():
    memory = CudaMemory()
    regions = [memory.create(1) for _ in range(4)]
    try:
        assert {len(region.handle) for region in regions} == {HANDLE_NBYTES}
        assert len({region.handle for region in regions}) == len(regions)
    finally:
        for region in regions:
            region.close()


def test_a_process_cannot_open_its_own(region):
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cupy.cuda.runtime.ipcOpenMemHandle(region.handle)


def test_a_handle_of_a_part_of_cupys_pool_stands_for_the_beginning_of_its_block():
    """Why regions are not of CuPy's pool."""
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        first, second = cupy.full(512, 1, "u1"), cupy.full(512, 2, "u1")
    cupy.cuda.runtime.deviceSynchronize()
    if second.data.ptr - first.data.ptr != 512:
        pytest.skip("the pool did not put them side by side")
    handle = cupy.cuda.runtime.ipcGetMemHandle(second.data.ptr)
    assert read_and_fill(handle, 512) == 512  # the first one's


def test_closing_gives_the_memory_back():
    memory = CudaMemory()
    memory.create(1).close()
    before, _ = cupy.cuda.runtime.memGetInfo()
    for _ in range(20):
        memory.create(64 << 20).close()
    after, _ = cupy.cuda.runtime.memGetInfo()
    assert before - after < 64 << 20


def test_the_uuid_is_the_drivers():
    told = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if told.returncode:
        pytest.skip("there is no nvidia-smi")
    assert CudaMemory().gpu_uuid() in told.stdout.split()
