"""The host's arrays on their way through page-locked memory: every byte, in order, in time."""

import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cupy", reason="CuPy is not installed")

from tests.memory.fake_cuda import Driver, host_bytes
from tritonasync.core.errors import DeviceError
from tritonasync.memory.staging import Staging

ROOM = 64
DTYPES = ("?", "u1", "i2", "f4", "f8")


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()
    monkeypatch.setitem(sys.modules, "cupy", driver.module)
    return driver


def parts_of(shapes, *, seed=0):
    random = np.random.default_rng(seed)
    parts = []
    for shape, dtype, order in shapes:
        whole = random.integers(0, 2 if dtype == "?" else 256, (*shape, 2)).astype(dtype)
        part = np.ascontiguousarray(whole[..., 0])
        parts.append({"C": part, "F": part.T, "strided": whole[..., 0]}[order])
    return parts


shapes = st.lists(
    st.tuples(
        st.lists(st.integers(0, 7), max_size=3).map(tuple),
        st.sampled_from(DTYPES),
        st.sampled_from(["C", "F", "strided"]),
    ),
    max_size=8,
)


@given(shapes)
def test_parts_of_any_size_and_stride_land_one_behind_the_other(shapes):
    driver = Driver()
    parts = parts_of(shapes)
    wanted = b"".join([part.tobytes() for part in parts])
    place = np.full(len(wanted) + 2, 0xEE, np.uint8)
    staging = Staging(driver.module, 0, nbytes=ROOM)
    staging.send(place.ctypes.data + 1, parts)
    driver.run()
    assert place.tobytes() == b"\xee" + wanted + b"\xee"
    assert all(nbytes <= ROOM for _, _, nbytes in driver.copies)


def test_a_buffer_is_filled_again_only_when_the_gpu_has_fetched_it():
    driver = Driver()
    staging = Staging(driver.module, 0, nbytes=ROOM)
    part = np.arange(ROOM * 5, dtype=np.uint8)
    place = np.zeros(part.nbytes, np.uint8)
    staging.send(place.ctypes.data, [part])
    assert driver.synchronised == 3  # the first two are free, and nobody waits for the last two
    driver.run()
    assert place.tobytes() == part.tobytes()


def test_a_send_after_another_waits_for_its_buffer():
    driver = Driver()
    staging = Staging(driver.module, 0, nbytes=ROOM)
    place = np.zeros((5, 8), np.uint8)
    for row in range(5):
        staging.send(place[row].ctypes.data, [np.full(8, row + 1, np.uint8)])
    driver.run()
    assert place[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_threads_that_send_at_once_do_not_mix_their_bytes():
    driver = Driver()
    staging = Staging(driver.module, 0, nbytes=ROOM)
    place = np.zeros((2, 8), np.uint8)

    def send(row):
        staging.send(place[row].ctypes.data, [np.full(8, row + 1, np.uint8)])

    other = threading.Thread(target=send, args=(1,))
    copy, began = driver.module.cuda.runtime.memcpyAsync, []

    def copy_late(*arguments):
        if not began:
            began.append(True)
            other.start()
            other.join(0.1)  # as far as it gets: the buffer is this thread's
        copy(*arguments)

    driver.module.cuda.runtime.memcpyAsync = copy_late
    send(0)
    other.join()
    driver.run()
    assert place[:, 0].tolist() == [1, 2]


def test_nothing_is_copied_for_nothing():
    driver = Driver()
    Staging(driver.module, 0).send(1, [np.zeros((0, 4), np.float32)])
    assert not driver.copies


@pytest.mark.parametrize("function", ["alloc_pinned_memory", "setDevice"])
def test_what_cannot_be_had_is_a_device_error(function):
    driver = Driver()
    driver.refuse[function] = 2
    with pytest.raises(DeviceError, match="page-locked"):
        Staging(driver.module, 0)


def test_the_copies_are_on_the_stream_that_is_told():
    driver = Driver()
    staging = Staging(driver.module, 0)
    place = np.zeros(4, np.uint8)
    staging.send(place.ctypes.data, [np.ones(4, np.uint8)])
    assert {stream for stream, _, _ in driver.copies} == {staging.stream.pointer}
    driver.run(staging.stream.pointer)
    assert host_bytes(place.ctypes.data, 4).tolist() == [1] * 4
