"""Arrays of a GPU brought in by a scripted driver: whose stream they are on, and no copies."""

import gc
import sys
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("cupy", reason="CuPy is not installed")

from tests.memory.fake_cuda import CUDARuntimeError, Driver, host_bytes, on_host
from tests.memory.foreign import CPU, CUDA, Exporter, Interface, torch_module
from tritonasync.core.errors import DeviceError, InvalidInputError
from tritonasync.memory.cuda import CudaMemory
from tritonasync.memory.device import (
    as_device_array,
    as_host,
    converted,
    on_device,
    stream_of,
)


@pytest.fixture
def torch(monkeypatch):
    module = torch_module()
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()
    monkeypatch.setitem(sys.modules, "cupy", driver.module)
    return driver


def test_what_is_not_a_gpus_is_refused(driver):
    for value in (np.zeros(2), [1], Exporter(CPU)):
        with pytest.raises(InvalidInputError, match="is not an array in a GPU's memory"):
            as_device_array(value)


def test_an_array_remembers_the_stream_that_was_current(driver):
    side = driver.stream()
    with side:
        array = as_device_array(driver.array(np.zeros((4, 6), np.float32)))
    for part in (array, array[1:3], array[0], array.reshape(-1), array.T, array.view("u4"), *array):
        assert stream_of(part).pointer == side.ptr
        assert stream_of(part).keep is side


def test_no_bytes_are_copied(driver):
    array = driver.array(np.arange(6))
    taken = as_device_array(array)
    assert taken.data.ptr == array.data.ptr
    assert not driver.copies


def test_taken_again_it_keeps_the_stream_of_the_first_time(driver):
    sides = [driver.stream(), driver.stream()]
    array = driver.array(np.arange(6))
    for side in sides:
        with side:
            array = as_device_array(array)
        assert stream_of(array).pointer == sides[0].ptr


def test_a_plain_view_remembers_nothing(driver):
    with driver.stream() as side:
        array = as_device_array(driver.array(np.arange(6)))
        view = array.view(driver.module.ndarray)
    assert stream_of(array).pointer == side.ptr
    assert stream_of(view).pointer == 0


def test_what_users_get_remembers_nothing(driver):
    """It would be taken for made on that stream, whatever they did to it since."""
    region = CudaMemory().create(1)
    with driver.stream():
        view = region.view(0, (8,), np.dtype("u1"), None, writable=True)
    with driver.stream() as later:
        assert stream_of(as_device_array(view)).pointer == later.ptr


def test_a_conversion_is_on_the_stream_of_the_array_and_so_is_the_result(driver, monkeypatch):
    used = []

    def astype(self, dtype):
        used.append(driver.current().ptr)
        return driver.array(on_host(self).astype(dtype))

    monkeypatch.setattr(driver.module.ndarray, "astype", astype, raising=False)
    with driver.stream() as side:
        array = as_device_array(driver.array(np.arange(3, dtype="f4")))
    result = converted(array, np.dtype("f8"))
    assert used == [side.ptr]
    assert stream_of(result).pointer == side.ptr
    assert (result.dtype, on_host(result).tolist()) == (np.float64, [0, 1, 2])


def test_what_is_put_on_a_gpu_is_complete_for_everybody(driver):
    said = []
    driver.module.asarray = lambda array: said.append("copy") or driver.array(array)
    driver.module.cuda.Stream.synchronize = lambda self: said.append("wait")
    assert on_host(on_device(np.arange(3))).tolist() == [0, 1, 2]
    assert said == ["copy", "wait"]


def test_what_cannot_be_converted_or_put_there_is_a_device_error(driver):
    array = as_device_array(driver.array(np.arange(3)))
    driver.refuse["setDevice"] = 700
    with pytest.raises(DeviceError):
        converted(array, np.dtype("f8"))

    def refuse(array):
        raise CUDARuntimeError(2)

    driver.module.asarray = refuse
    with pytest.raises(DeviceError):
        on_device(np.arange(3))


def test_the_stream_is_the_calling_threads(driver):
    side = driver.stream()
    array, taken = driver.array(np.arange(6)), []
    with side:
        thread = threading.Thread(target=lambda: taken.append(as_device_array(array)))
        thread.start()
        thread.join()
    assert stream_of(taken[0]).pointer == 0


def test_an_array_that_was_not_brought_in_is_made_on_the_current_stream(driver):
    with driver.stream() as side:
        assert stream_of(driver.array(np.arange(3))).pointer == side.ptr


def test_torch_is_asked_for_its_own_stream(driver, torch):
    tensor = torch.Tensor(CUDA, SimpleNamespace(array=driver.array(np.arange(3))), device_id=2)
    array = as_device_array(tensor)
    assert stream_of(array).pointer == 7702
    assert tensor.streams == [7702]  # so torch has nothing to wait for


def test_torchs_default_stream_has_another_name_in_dlpack(driver, torch):
    torch.cuda.current_stream = lambda device_id: SimpleNamespace(cuda_stream=0)
    tensor = torch.Tensor(CUDA, SimpleNamespace(array=driver.array(np.arange(3))))
    array = as_device_array(tensor)
    assert tensor.streams == [1]
    assert stream_of(array).pointer == 0


def test_other_producers_are_made_to_precede_a_stream_of_ours(driver, torch):
    producers = [
        Exporter(CUDA, SimpleNamespace(array=driver.array(np.arange(3)))) for _ in range(2)
    ]
    streams = {stream_of(as_device_array(producer)).pointer for producer in producers}
    assert len(streams) == 1
    (stream,) = streams
    assert not driver.streams[stream].blocking
    assert [producer.streams for producer in producers] == [[stream]] * 2


def test_a_gradient_on_the_gpu_is_left_behind(driver):
    inner = Exporter(CUDA, SimpleNamespace(array=driver.array(np.arange(3))))

    class Tensor(Exporter):
        requires_grad = True

        def detach(self):
            return inner

    as_device_array(Tensor(CUDA, refusal=BufferError("requires gradient")))
    assert len(inner.streams) == 1


@pytest.mark.parametrize("refusal", [BufferError("sparse"), TypeError("no"), ValueError("x")])
def test_what_is_not_handed_out_by_a_gpu_is_invalid_input(driver, refusal):
    with pytest.raises(InvalidInputError, match="as it is") as caught:
        as_device_array(Exporter(CUDA, refusal=refusal))
    assert caught.value.__cause__ is refusal


def test_an_interface_tells_its_stream_and_is_not_waited_for(driver):
    room = np.arange(6, dtype=np.float32)
    told = Interface(
        shape=(2, 3), typestr="<f4", data=(room.ctypes.data, True), version=3, stream=55
    )
    told.device_id = 0
    array = as_device_array(told)
    assert (array.shape, array.dtype, array.data.ptr) == ((2, 3), np.float32, room.ctypes.data)
    assert stream_of(array).pointer == 55
    assert not driver.synchronised


def test_an_interface_without_a_stream_is_on_the_current_one(driver):
    room = np.arange(6, dtype=np.float32)
    told = Interface(shape=(6,), typestr="<f4", data=(room.ctypes.data, True), version=2)
    told.device_id = 0
    with driver.stream() as side:
        assert stream_of(as_device_array(told)).pointer == side.ptr


@pytest.mark.parametrize("index", [np.s_[::2, ::-1], np.s_[::-1], np.s_[:, 1:2], np.s_[:0]])
def test_an_interface_may_be_strided_either_way(driver, index):
    room = np.arange(24, dtype=np.int32).reshape(4, 6)
    view = room[index]
    told = Interface(
        shape=view.shape,
        typestr="<i4",
        data=(view.ctypes.data, False),
        strides=view.strides,
        version=3,
    )
    told.device_id = 0
    assert on_host(as_device_array(told)).tolist() == view.tolist()


def test_an_interface_keeps_its_producer_alive(driver):
    room = np.arange(6, dtype=np.float32)
    told = Interface(shape=(6,), typestr="<f4", data=(room.ctypes.data, True), version=3)
    told.device_id = 0
    alive = weakref.ref(told)
    part = as_device_array(told)[2:]
    del told
    gc.collect()
    assert alive() is not None
    del part
    gc.collect()
    assert alive() is None


def test_a_mask_is_refused(driver):
    told = Interface(shape=(6,), typestr="<f4", data=(0, True), version=3, mask=object())
    with pytest.raises(InvalidInputError, match="mask"):
        as_device_array(told)


def test_fetching_keeps_the_order_and_the_streams(driver):
    side = driver.stream()
    with side:
        late = as_device_array(driver.array(np.zeros(3)))
    pointer = late.data.ptr
    seven = np.full(3, 7.0).view(np.uint8)
    driver.enqueue(side.ptr, lambda: host_bytes(pointer, 24).__setitem__(..., seven))
    hosts = as_host([np.ones(2), late, driver.array(np.arange(2)), Exporter(CPU, np.arange(4))])
    assert [host.tolist() for host in hosts] == [[1, 1], [7, 7, 7], [0, 1], [0, 1, 2, 3]]


def test_fetching_into_an_array_is_on_the_remembered_stream_too(driver):
    with driver.stream() as side:
        array = as_device_array(driver.array(np.arange(3)))
    out = np.zeros(3, np.int64)
    array.get(out=out)
    assert out.tolist() == [0, 1, 2]
    assert driver.fetched_on == side.ptr


def test_a_number_for_a_stream_is_made_a_stream_of_cupys(driver, torch):
    tensor = torch.Tensor(CUDA, SimpleNamespace(array=driver.array(np.arange(3))))
    assert as_host([tensor])[0].tolist() == [0, 1, 2]
    assert driver.fetched_on == 7700


def test_fetching_that_fails_is_a_device_error(driver):
    driver.refuse["get"] = 700
    with pytest.raises(DeviceError, match="fetched"):
        as_host([driver.array(np.arange(3))])
