"""Arrays that are not numpy's: told apart without imports, brought in without copies."""

import subprocess
import sys
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.foreign import (
    CPU,
    CUDA,
    CUDA_HOST,
    MANAGED,
    ROCM,
    Both,
    Exporter,
    Interface,
    Sharded,
    torch_module,
)
from tritonasync.core.errors import DeviceError, InvalidInputError, MissingExtraError
from tritonasync.memory.device import (
    _extent,
    _packed,
    as_device_array,
    as_host,
    host_array,
    is_device_array,
    load_cupy,
)

# --- told apart ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.zeros(3), False),
        (np.float32(1), False),
        ([1.0, 2.0], False),
        (None, False),
        ("cuda", False),
        (Exporter(CPU), False),
        (Exporter(CUDA_HOST), False),
        (Exporter(ROCM), False),
        (Exporter(CUDA), True),
        (Exporter(MANAGED), True),
        (Both(CPU), False),
        (Both(CUDA), True),
        (Interface(), True),
        (Sharded(CUDA), False),
        (Exporter, False),
        (Both, False),
    ],
)
def test_what_is_an_array_of_a_gpu(value, wanted):
    assert is_device_array(value) is wanted


def test_asking_imports_nothing():
    program = """
import sys
import numpy as np
from tritonasync.memory.device import as_host, host_array, is_device_array
class Exporter:
    def __dlpack_device__(self): return 2, 0
assert is_device_array(Exporter())
assert not is_device_array(np.zeros(2))
assert host_array(Exporter()) is None
as_host([np.zeros(2)])
import tritonasync.memory.cuda
assert not {"cupy", "cupyx", "torch", "jax"} & sys.modules.keys(), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_without_cupy_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for attempt in (lambda: as_device_array(Exporter(CUDA)), load_cupy):
        with pytest.raises(MissingExtraError, match=r"tritonasync\[cuda12\]") as caught:
            attempt()
        assert caught.value.extra == "cuda12"


# --- the host's ---------------------------------------------------------------------------------


def test_numpys_arrays_are_taken_as_they_are():
    array = np.arange(6)[::2]
    assert host_array(array) is array


@pytest.mark.parametrize("kind", [CPU, CUDA_HOST])
def test_an_array_of_another_library_is_not_copied(kind):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    taken = host_array(Exporter(kind, array))
    assert np.shares_memory(taken, array)
    assert taken.tolist() == array.tolist()


@pytest.mark.parametrize("value", [[1, 2], "text", None, 3.5, Exporter(CUDA), Sharded(CPU)])
def test_what_is_no_array_of_the_hosts_is_none(value):
    assert host_array(value) is None


@pytest.mark.parametrize(
    "refusal", [BufferError("not mine"), RuntimeError("conjugated"), TypeError("sparse")]
)
def test_what_is_not_handed_out_is_invalid_input(refusal):
    with pytest.raises(InvalidInputError, match=str(refusal)) as caught:
        host_array(Exporter(CPU, refusal=refusal))
    assert caught.value.__cause__ is refusal


def test_a_gradient_is_left_behind():
    values = np.arange(3.0)

    class Tensor(Exporter):
        requires_grad = True

        def detach(self):
            return Exporter(CPU, values)

    tensor = Tensor(CPU, refusal=BufferError("requires gradient, use tensor.detach()"))
    assert np.shares_memory(host_array(tensor), values)


@pytest.fixture
def torch(monkeypatch):
    module = torch_module()
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_torchs_bfloat16_keeps_its_bits(torch):
    values = np.array([1.5, -2, 3e38]).astype(ml_dtypes.bfloat16)
    tensor = torch.Tensor(CPU, values)
    tensor.dtype = "torch.bfloat16"
    taken = host_array(tensor)
    assert taken.dtype == values.dtype
    assert np.shares_memory(taken, values)


def test_without_ml_dtypes_bfloat16_is_invalid_input(torch, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    tensor = torch.Tensor(CPU, np.zeros(2, np.int16))
    tensor.dtype = "torch.bfloat16"
    with pytest.raises(InvalidInputError, match="ml_dtypes"):
        host_array(tensor)


def test_a_torch_that_is_half_imported_does_not_matter(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    array = np.arange(3)
    assert np.shares_memory(host_array(Exporter(CPU, array)), array)


def test_what_is_no_array_cannot_be_fetched():
    with pytest.raises(InvalidInputError, match="builtins.list"):
        as_host([np.zeros(2), [1, 2]])


# --- a GPU's, without a GPU ---------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 6), max_size=4).map(tuple),
    st.sampled_from([1, 2, 4, 8]),
    st.data(),
)
def test_the_extent_is_numpys(shape, itemsize, data):
    whole = np.zeros(shape, f"u{itemsize}")
    steps = [data.draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in shape]
    view = whole[tuple(slice(None, None, step) for step in steps)] if shape else whole
    view = view.transpose(data.draw(st.permutations(range(view.ndim))))
    low, nbytes = _extent(view.shape, view.strides, itemsize)
    places = [
        sum(at * stride for at, stride in zip(index, view.strides, strict=True))
        for index in np.ndindex(view.shape)
    ]
    begin, end = (min(places), max(places) + itemsize) if places else (0, 0)
    assert (low, nbytes) == (begin, end - begin)


@given(st.lists(st.integers(1, 6), max_size=4).map(tuple), st.sampled_from([1, 4]))
def test_packed_strides_are_numpys(shape, itemsize):
    assert _packed(shape, itemsize) == np.zeros(shape, f"u{itemsize}").strides


class TestWithTheRealCupy:
    """What CuPy does without a GPU, beside the scripted driver's word for the rest."""

    @pytest.fixture(autouse=True)
    def cupy(self):
        cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
        if cupy.cuda.is_available():
            pytest.skip("a GPU is there: tests/gpu has its say")
        return cupy

    def test_an_array_is_known_without_a_word_of_the_driver(self, cupy):
        room = np.zeros(4, np.float32)
        memory = cupy.cuda.UnownedMemory(room.ctypes.data, room.nbytes, room, 0)
        array = cupy.ndarray((4,), "f4", cupy.cuda.MemoryPointer(memory, 0))
        assert is_device_array(array)
        assert host_array(array) is None
        with pytest.raises(DeviceError, match="cudaErrorInsufficientDriver"):
            as_device_array(array)
        with pytest.raises(DeviceError, match="cudaErrorInsufficientDriver"):
            as_host([array])

    def test_an_interface_without_a_device_is_a_device_error(self):
        room = np.zeros(4, np.float32)
        told = Interface(shape=(4,), typestr="<f4", data=(room.ctypes.data, False), version=3)
        with pytest.raises(DeviceError, match="could not be taken over"):
            as_device_array(told)

    def test_dlpack_without_a_device_is_a_device_error(self):
        with pytest.raises(DeviceError):
            as_device_array(Exporter(CUDA, device_id=11))
