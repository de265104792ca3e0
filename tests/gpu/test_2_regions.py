"""Regions on a real GPU: the conformance kit, and the order of work on several streams."""

import asyncio
import time

import numpy as np
import pytest

from tests.memory.cuda_kit import CudaConformance
from tritonasync.memory.cuda import CudaMemory
from tritonasync.memory.device import as_device_array, as_host, settled

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
cupyx = pytest.importorskip("cupyx", reason="CuPy is not installed")

LONG = 150_000_000  # cycles: about 0.1 s
N = 1 << 18


class TestCudaMemory(CudaConformance):
    @pytest.fixture
    def memory(self):
        return CudaMemory()


@pytest.fixture
def region():
    region = CudaMemory().create(64 << 20)
    yield region
    region.close()


def fetched(region, count=N):
    return region.view(0, (count,), np.dtype("f4"), None, writable=False).get()


def test_a_copy_follows_its_producer_on_a_side_stream(region, spin):
    side = cupy.cuda.Stream(non_blocking=True)
    with side:
        source = cupy.zeros(N, "f4")
        side.synchronize()
        spin(LONG)
        source += 7
        part = as_device_array(source)
    done = region.write(0, [part])
    assert not done.done()  # else the test shows nothing
    done.wait()
    assert (fetched(region) == 7).all()


def test_a_copy_of_a_strided_array_follows_its_producer(region, spin):
    side = cupy.cuda.Stream(non_blocking=True)
    with side:
        source = cupy.zeros((N, 2), "f4")
        side.synchronize()
        spin(LONG)
        source[...] = cupy.arange(2 * N, dtype="f4").reshape(N, 2)
        part = as_device_array(source[:, 1])
    done = region.write(0, [part])
    assert not done.done()
    done.wait()
    assert fetched(region).tolist() == list(range(1, 2 * N, 2))


def test_a_copy_follows_torchs_side_stream(region, spin):
    torch = pytest.importorskip("torch")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        source = torch.zeros(N, device="cuda")
        side.synchronize()
        torch.cuda._sleep(LONG)
        source += 7
        part = as_device_array(source)
    assert part.data.ptr == source.data_ptr()
    done = region.write(0, [part])
    assert not done.done()
    done.wait()
    assert (fetched(region) == 7).all()
    assert isinstance(part, cupy.ndarray)


def test_a_gradient_and_bfloat16_of_torch(region):
    torch = pytest.importorskip("torch")
    weights = torch.ones(8, device="cuda", requires_grad=True)
    assert as_host([weights])[0].tolist() == [1] * 8
    halves = torch.full((8,), 1.5, device="cuda", dtype=torch.bfloat16)
    region.write(0, [as_device_array(halves)]).wait()
    raw = region.view(0, (8,), np.dtype("u2"), None, writable=False).get()
    assert raw.tolist() == [0x3FC0] * 8


def test_a_copy_follows_jax(region):
    jax = pytest.importorskip("jax")
    source = jax.numpy.arange(N, dtype="float32") * 2
    region.write(0, [as_device_array(source)]).wait()
    assert fetched(region).tolist() == list(range(0, 2 * N, 2))


def test_fetching_follows_the_producer(spin):
    side = cupy.cuda.Stream(non_blocking=True)
    with side:
        source = cupy.zeros(N, "f4")
        side.synchronize()
        spin(LONG)
        source += 7
        part = as_device_array(source)
    assert (as_host([part])[0] == 7).all()


@pytest.mark.parametrize("pinned", [False, True])
def test_a_copy_of_the_hosts_is_right_whatever_happens_to_the_source_after(region, pinned):
    source = cupyx.empty_pinned((N,), "f4") if pinned else np.empty(N, "f4")
    for turn in range(50):
        source[...] = turn
        region.write(0, [source]).wait()
        source[...] = -1
        assert (fetched(region) == turn).all()


def test_a_fence_follows_work_on_a_blocking_stream(region, spin):
    with cupy.cuda.Stream():
        spin(LONG)
    fence = region.fence()
    assert not fence.done()
    fence.wait()


def test_a_fence_follows_the_torch_stream_that_took_a_view(region):
    torch = pytest.importorskip("torch")
    view = region.view(0, (N,), np.dtype("f4"), None, writable=True)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        taken = torch.from_dlpack(view)
        torch.cuda._sleep(LONG)
        taken += 1
    fence = region.fence()
    assert not fence.done()
    fence.wait()
    assert side.query()


@pytest.mark.anyio
async def test_waiting_does_not_hold_the_event_loop_up(region, spin):
    side, worst, over = cupy.cuda.Stream(non_blocking=True), [0.0], []

    async def watch():
        before = time.perf_counter()
        while not over:
            await asyncio.sleep(0)
            now = time.perf_counter()
            worst[0], before = max(worst[0], now - before), now

    with side:
        spin(LONG)
        part = as_device_array(cupy.zeros(N, "f4"))
    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    await settled(region.write(0, [part]))
    over.append(True)
    await watching
    assert worst[0] < 0.005
