"""The kit of ``tritonasync.testing`` on the host's memory and on the scripted fake."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tritonasync.memory.system import SystemMemory
from tritonasync.testing.memory import MemoryConformance, ScriptedMemory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shm")  # one, as each has its guard until the process ends


class TestSystemMemoryInAFolder(MemoryConformance):
    @pytest.fixture
    def memory(self, folder: Path) -> Iterator[SystemMemory]:
        yield SystemMemory(folder)
        assert len(list(folder.iterdir())) <= 1  # the guard


class TestSystemMemory(MemoryConformance):
    @pytest.fixture
    def memory(self) -> SystemMemory:
        return SystemMemory()


class TestScriptedMemory(MemoryConformance):
    @pytest.fixture
    def memory(self) -> Iterator[ScriptedMemory]:
        memory = ScriptedMemory()
        yield memory
        assert memory.regions == []


class TestScriptedMemoryThatIsAutomatic(MemoryConformance):
    @pytest.fixture
    def memory(self) -> ScriptedMemory:
        return ScriptedMemory(automatic=True)
