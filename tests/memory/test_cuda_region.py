"""Regions of a GPU, by a scripted driver: made, filled, marked and freed in the right order."""

import gc
import logging
import os
import sys
import threading
import weakref
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("cupy", reason="CuPy is not installed")

from tests.memory.fake_cuda import LEGACY, CUDARuntimeError, Driver, host_bytes, on_host
from tritonasync.core.errors import (
    ConfigurationError,
    DeviceError,
    MemoryExhaustedError,
    WrongContextError,
)
from tritonasync.memory.cuda import CudaMemory
from tritonasync.memory.device import as_device_array
from tritonasync.memory.guard import guard_name, region_name

MIB = 1 << 20
BYTE = np.dtype(np.uint8)


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()
    monkeypatch.setitem(sys.modules, "cupy", driver.module)
    return driver


@pytest.fixture
def memory(driver):
    return CudaMemory()


@pytest.fixture
def region(memory):
    return memory.create(8192)


def content(region, nbytes, offset=0):
    view = region.view(offset, (nbytes,), BYTE, None, writable=False)
    return on_host(view).copy()


def bytes_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


class Owner:
    pass


# --- making -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "given"), [(1, 2 * MIB), (2 * MIB, 2 * MIB), (2 * MIB + 1, 4 * MIB)]
)
def test_a_region_is_whole_pages_of_its_own(driver, memory, asked, given):
    assert memory.create(asked).nbytes == given
    assert [room.nbytes for room in driver.allocated.values()] == [given]


def test_a_region_has_a_name_by_which_its_owner_can_be_seen_to_live(region):
    assert guard_name(region.name) == guard_name(region_name())


def test_what_a_server_is_told(region):
    assert (region.kind, region.key, region.device_id) == ("cuda", "", 0)
    assert len(region.handle) == 64


def test_no_room_says_how_much_was_wanted(driver, memory):
    driver.left_bytes = MIB
    with pytest.raises(MemoryExhaustedError, match="2,097,152 bytes"):
        memory.create(5)


@pytest.mark.parametrize("status", [35, 100, 999])
def test_a_driver_that_does_not_work_is_a_device_error(driver, memory, status):
    driver.refuse["malloc"] = status
    with pytest.raises(DeviceError, match="GPU 0") as caught:
        memory.create(5)
    assert isinstance(caught.value.__cause__, CUDARuntimeError)


def test_a_device_that_is_not_there_is_a_device_error(driver):
    with pytest.raises(DeviceError, match="GPU 1"):
        CudaMemory(1).create(5)


@pytest.mark.parametrize("number", [-1, 1.0, True, "0", None])
def test_a_device_is_a_number(driver, number):
    with pytest.raises(ConfigurationError, match="device_id"):
        CudaMemory(number)


def test_memory_without_a_handle_is_freed(driver, memory):
    driver.refuse["ipcGetMemHandle"] = 801
    with pytest.raises(DeviceError, match="CUDA IPC"):
        memory.create(5)
    assert not driver.allocated


@pytest.mark.parametrize("nbytes", [0, 63, 65, 128])
def test_a_handle_of_another_size_is_refused_and_the_memory_freed(driver, memory, nbytes):
    driver.handle_nbytes = nbytes
    with pytest.raises(DeviceError, match=f"{nbytes} bytes"):
        memory.create(5)
    assert not driver.allocated


def test_the_uuid_is_written_as_the_server_writes_it(memory):
    assert memory.gpu_uuid() == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"


@pytest.mark.parametrize("told", [{}, {"uuid": b"GPU"}])
def test_a_uuid_that_is_cut_off_is_none(driver, memory, told):
    driver.module.cuda.runtime.getDeviceProperties = lambda device_id: told
    assert memory.gpu_uuid() is None


def test_the_uuid_of_no_device_is_a_device_error(driver, memory):
    driver.refuse["getDeviceProperties"] = 35
    with pytest.raises(DeviceError):
        memory.gpu_uuid()


# --- filling ------------------------------------------------------------------------------------


def test_a_gpu_array_is_copied_on_the_stream_it_was_made_on(driver, region):
    side = driver.stream()
    with side:
        part = as_device_array(driver.array(np.zeros(64, np.uint8)))
    wanted = bytes_of(64)
    pointer = part.data.ptr
    driver.enqueue(side.ptr, lambda: host_bytes(pointer, 64).__setitem__(..., wanted))  # computed
    done = region.write(256, [part])
    assert not done.done()
    assert not content(region, 64, 256).any()
    driver.run(side.ptr)
    assert done.done()
    assert content(region, 64, 256).tobytes() == wanted.tobytes()


def test_parts_of_several_streams_are_waited_for_together(driver, region):
    sides = [driver.stream(), driver.stream()]
    parts = []
    for side in sides:
        with side:
            parts.append(as_device_array(driver.array(bytes_of(8, side.ptr))))
    done = region.write(0, [parts[0], parts[1], parts[0]])
    driver.run(sides[0].ptr)
    assert not done.done()
    driver.run(sides[1].ptr)
    assert done.done()
    wanted = b"".join([on_host(parts[index]).tobytes() for index in (0, 1, 0)])
    assert content(region, 24).tobytes() == wanted


def test_a_strided_gpu_array_is_gathered_on_its_stream(driver, region):
    side = driver.stream()
    with side:
        whole = as_device_array(driver.array(np.arange(24, dtype="f4").reshape(4, 6)))
    part = whole[:, ::2]
    done = region.write(4, [part])
    assert not done.done()
    driver.run(side.ptr)
    assert done.done()
    wanted = np.arange(24, dtype="f4").reshape(4, 6)[:, ::2]
    assert content(region, 48, 4).tobytes() == wanted.tobytes()


def test_an_array_taken_at_the_door_is_copied_from_another_thread_on_its_own_stream(driver, region):
    side = driver.stream()
    with side:
        part = as_device_array(driver.array(bytes_of(64)))
    thread = threading.Thread(target=lambda: region.write(0, [part]))
    thread.start()
    thread.join()
    assert [stream for stream, _, _ in driver.copies] == [side.ptr]


def test_the_hosts_parts_are_read_when_the_write_returns(driver, region):
    part = bytes_of(100)
    wanted = part.copy()
    done = region.write(0, [part])
    part.fill(0)
    assert not done.done()
    driver.run()
    assert content(region, 100).tobytes() == wanted.tobytes()


def test_small_parts_of_the_host_travel_together(driver, region):
    region.write(0, [bytes_of(10, seed) for seed in range(50)])
    assert [nbytes for _, _, nbytes in driver.copies] == [500]


def test_host_and_gpu_parts_keep_their_order(driver, region):
    parts = [bytes_of(10, 1), driver.array(bytes_of(20, 2)), bytes_of(5, 3), bytes_of(6, 4)]
    done = region.write(7, parts)
    driver.run()
    assert done.done()
    wanted = b"".join([bytes_of(n, s).tobytes() for n, s in ((10, 1), (20, 2), (5, 3), (6, 4))])
    assert content(region, 41, 7).tobytes() == wanted


def test_page_locked_memory_is_copied_from_where_it_is_and_kept_until_then(driver, region):
    locked = np.frombuffer(driver.module.cuda.alloc_pinned_memory(MIB), np.uint8)
    locked[...] = bytes_of(MIB)
    wanted = locked.tobytes()
    done = region.write(0, [locked])
    assert [(kind, nbytes) for _, kind, nbytes in driver.copies] == [(4, MIB)]
    driver.run()
    assert done.done()
    assert content(region, MIB).tobytes() == wanted


def test_what_a_copy_reads_is_kept_alive_even_if_nobody_waits(driver, region):
    part = driver.array(bytes_of(64))
    alive = weakref.ref(part)
    region.write(0, [part])
    del part
    gc.collect()
    assert alive() is not None
    driver.run()
    region.write(0, [bytes_of(1)])  # the next one looks
    gc.collect()
    assert alive() is None


def test_each_copy_keeps_what_it_reads(driver, region):
    parts = []
    for _ in range(3):
        with driver.stream():
            parts.append(as_device_array(driver.array(bytes_of(8))))
        region.write(0, parts[-1:])
    alive = [weakref.ref(part) for part in parts]
    del parts
    gc.collect()
    assert all(reference() is not None for reference in alive)


def test_what_was_enqueued_before_a_failure_is_kept_too(driver, region):
    part = driver.array(bytes_of(64))
    alive = weakref.ref(part)
    driver.refuse["alloc_pinned_memory"] = 2
    with pytest.raises(DeviceError, match="page-locked"):
        region.write(0, [part, bytes_of(10)])
    del part
    gc.collect()
    assert alive() is not None
    fence = region.fence()
    assert not fence.done()
    driver.run()
    assert fence.done()


def test_a_copy_that_fails_is_a_device_error(driver, region):
    driver.refuse["memcpyAsync"] = 1
    with pytest.raises(DeviceError, match="failed") as caught:
        region.write(0, [bytes_of(3)])
    assert isinstance(caught.value.__cause__, CUDARuntimeError)


@pytest.mark.parametrize("status", [1, 700, 719])
def test_what_failed_on_the_gpu_is_not_taken_for_not_yet(driver, region, status):
    done = region.write(0, [bytes_of(3)])
    driver.fail(status)
    with pytest.raises(DeviceError, match="failed"):
        done.done()
    with pytest.raises(DeviceError, match="failed"):
        done.wait()


def test_after_a_copy_that_failed_no_fence_succeeds(driver, region):
    region.write(0, [bytes_of(3)])
    driver.fail(700)
    driver.run()
    fence = region.fence()
    with pytest.raises(DeviceError):
        fence.done()


def test_waiting_lets_the_gpu_catch_up(driver, region):
    done = region.write(0, [bytes_of(64)])
    assert not done.done()
    done.wait()
    assert done.done()
    assert content(region, 64).tobytes() == bytes_of(64).tobytes()


def test_threads_that_ask_at_once_never_see_it_done_too_early(driver, region):
    sides = [driver.stream() for _ in range(6)]
    parts = []
    for side in sides:
        with side:
            parts.append(as_device_array(driver.array(bytes_of(8))))
    done = region.write(0, parts)
    for side in sides[1:]:
        driver.run(side.ptr)
    said = []
    threads = [
        threading.Thread(target=lambda: said.extend(done.done() for _ in range(200)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(said)


# --- fences -------------------------------------------------------------------------------------


def test_a_fence_waits_for_what_is_on_blocking_streams(driver, region):
    side = driver.stream(blocking=True)
    driver.enqueue(side.ptr, lambda: None)
    fence = region.fence()
    assert not fence.done()
    driver.run(side.ptr)
    driver.run(LEGACY)
    assert fence.done()


def test_a_fence_waits_for_blocking_streams_whatever_is_current(driver, region):
    side = driver.stream(blocking=True)
    driver.enqueue(side.ptr, lambda: None)
    with driver.stream():
        fence = region.fence()
    assert not fence.done()
    driver.run()
    assert fence.done()


def test_a_fence_does_not_wait_for_strangers_on_streams_of_their_own(driver, region):
    driver.enqueue(driver.stream().ptr, lambda: None)
    assert region.fence().done()


def test_a_fence_waits_for_the_current_stream_though_it_is_non_blocking(driver, region):
    side = driver.stream()
    driver.enqueue(side.ptr, lambda: None)
    with side:
        fence = region.fence()
    assert not fence.done()
    driver.run(side.ptr)
    assert fence.done()


def test_a_fence_waits_for_copies_on_their_streams(driver, region):
    side = driver.stream()
    with side:
        part = as_device_array(driver.array(bytes_of(8)))
    region.write(0, [part])
    fence = region.fence()
    assert not fence.done()
    driver.run(side.ptr)
    assert fence.done()


def test_a_fence_waits_for_nothing_that_comes_after_it(driver, region):
    fence = region.fence()
    side = driver.stream(blocking=True)
    driver.enqueue(side.ptr, lambda: None)
    assert fence.done()


def test_a_fence_waits_for_who_took_a_view_by_dlpack_on_its_stream(driver, region):
    side = driver.stream()
    view = region.view(0, (8,), BYTE, None, writable=False)
    with side:
        view[2:].__dlpack__(stream=side.ptr)
    driver.enqueue(side.ptr, lambda: None)
    fence = region.fence()
    assert not fence.done()
    driver.run(side.ptr)
    assert fence.done()


def test_a_stream_that_cannot_be_kept_alive_is_not_marked(driver, region):
    view = region.view(0, (8,), BYTE, None, writable=False)
    view.__dlpack__(stream=987654)  # nobody's current one: it may be destroyed before the fence
    assert region.fence().done()


@pytest.fixture
def torch(monkeypatch, driver):
    """As much of torch as is asked for: its current stream."""
    side = driver.stream()
    torch = ModuleType("torch")
    torch.Tensor = type("Tensor", (), {})
    torch.cuda = SimpleNamespace(
        is_initialized=lambda: True,
        current_stream=lambda device_id: SimpleNamespace(cuda_stream=side.ptr),
        side=side,
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    return torch


def test_a_fence_waits_for_torchs_current_stream(driver, region, torch):
    driver.enqueue(torch.cuda.side.ptr, lambda: None)
    fence = region.fence()
    assert not fence.done()
    driver.run(torch.cuda.side.ptr)
    assert fence.done()


def test_a_fence_waits_for_the_torch_stream_that_took_a_view(driver, region, torch):
    taker = torch.cuda.side
    region.view(0, (8,), BYTE, None, writable=False).__dlpack__(stream=taker.ptr)
    torch.cuda.current_stream = lambda device_id: SimpleNamespace(cuda_stream=0)
    driver.enqueue(taker.ptr, lambda: None)
    fence = region.fence()
    assert not fence.done()
    driver.run(taker.ptr)
    assert fence.done()


def test_a_driver_that_fails_fails_the_fence(driver, region):
    driver.refuse["eventRecord"] = 700
    with pytest.raises(DeviceError):
        region.fence()


# --- the end ------------------------------------------------------------------------------------


def test_memory_is_freed_when_it_is_closed_and_not_before(driver, memory):
    region = memory.create(1)
    pointers = list(driver.allocated)
    region.close()
    region.close()
    assert driver.freed == pointers


def test_memory_that_nobody_closes_is_leaked_on_purpose(driver, memory):
    memory.create(1)
    gc.collect()
    assert not driver.freed


def test_memory_with_views_alive_is_not_freed_until_they_are_gone(driver, memory, caplog):
    region = memory.create(1)
    view = region.view(0, (8,), BYTE, None, writable=False)[4:]
    with caplog.at_level(logging.WARNING, "tritonasync.memory"):
        region.close()
        region.close()
    assert not driver.freed
    assert [record.message for record in caplog.records] == [
        f"2097152 bytes of GPU memory ({region.name}) are not freed: views on them are alive"
    ]
    with pytest.raises(ValueError, match="closed"):
        region.write(0, [bytes_of(1)])
    del view
    gc.collect()
    region.close()
    assert len(driver.freed) == 1


def test_an_owner_is_kept_by_the_view_alone(driver, region):
    owner = Owner()
    alive = weakref.ref(owner)
    view = region.view(0, (8,), BYTE, owner, writable=True)
    del owner
    gc.collect()
    assert alive() is not None
    del view
    gc.collect()
    assert alive() is None


def test_a_closed_region_has_no_fence(driver, region):
    region.close()
    assert region.fence() is None


def test_freeing_that_fails_is_a_device_error_and_not_done_twice(driver, region):
    driver.refuse["free"] = 700
    with pytest.raises(DeviceError):
        region.close()
    driver.refuse.clear()
    region.close()
    assert not driver.freed


# --- forks --------------------------------------------------------------------------------------


@pytest.fixture
def in_child(monkeypatch):
    """As a forked child sees it; the driver tells who calls it there."""

    def enter():
        monkeypatch.setattr(os, "getpid", lambda: -1)

    return enter


def test_a_forked_child_is_refused_and_calls_no_driver(driver, memory, region, in_child):
    in_child()
    for attempt in (
        lambda: memory.create(1),
        memory.gpu_uuid,
        lambda: region.write(0, [bytes_of(1)]),
        lambda: region.view(0, (1,), BYTE, None, writable=False),
        region.fence,
    ):
        with pytest.raises(WrongContextError, match="fork"):
            attempt()
    region.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # from Python 3.12 on
def test_the_parent_goes_on_after_a_fork(driver, region):
    """A real one, in which the child says what it got."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            region.write(0, [bytes_of(1)])
        except WrongContextError:
            os.write(write, b"refused")
        except BaseException:
            os.write(write, b"something else")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    assert os.read(read, 100) == b"refused"
    os.close(read)
    region.write(0, [bytes_of(1)]).wait()
    assert content(region, 1).tobytes() == bytes_of(1).tobytes()
