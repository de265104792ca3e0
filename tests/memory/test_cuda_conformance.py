"""CUDA regions pass the kit that every kind of memory passes; the driver is scripted."""

import sys

import pytest

pytest.importorskip("cupy", reason="CuPy is not installed")

from tests.memory.cuda_kit import CudaConformance
from tests.memory.fake_cuda import Driver
from tritonasync.memory.cuda import CudaMemory


class TestCudaMemory(CudaConformance):
    @pytest.fixture
    def memory(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cupy", Driver().module)
        return CudaMemory()
