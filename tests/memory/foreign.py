"""Arrays of other libraries, as far as their protocols go, and as much of torch as is asked for."""

from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np

CPU, CUDA, CUDA_HOST, ROCM, MANAGED = 1, 2, 3, 10, 13


class Exporter:
    """What any library's array looks like by DLPack; ``array`` is what numpy gets to see."""

    def __init__(self, kind, array=None, *, device_id=0, refusal=None):
        self.kind, self.device_id, self.array, self.refusal = kind, device_id, array, refusal
        self.streams = []

    def __dlpack_device__(self):
        return self.kind, self.device_id

    def __dlpack__(self, *, stream=None, **options):
        if self.refusal is not None:
            raise self.refusal
        self.streams.append(stream)
        return self.array if self.kind in {CUDA, MANAGED} else self.array.__dlpack__(**options)


class Sharded(Exporter):
    def __dlpack_device__(self):
        raise BufferError("this array is on several devices")


class Interface:
    """What numba's arrays look like."""

    def __init__(self, **told):
        self.__cuda_array_interface__ = told


class Both(Exporter):
    """As torch's: the attribute is there on every tensor, the answer is DLPack's."""

    __cuda_array_interface__: ClassVar = {}


def torch_module():
    """As much of torch as is asked for."""
    torch = ModuleType("torch")
    torch.int16 = "torch.int16"

    class Tensor(Exporter):
        dtype = "torch.float32"

        def view(self, dtype):
            assert dtype == torch.int16
            return Exporter(CPU, self.array.view(np.int16))

    torch.Tensor = Tensor
    torch.cuda = SimpleNamespace(
        is_initialized=lambda: True,
        current_stream=lambda device_id: SimpleNamespace(cuda_stream=7700 + device_id),
    )
    return torch
