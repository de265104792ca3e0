"""The host's shared memory: files that are there when they should be, and not after."""

import errno
import mmap
import os
import re
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.memory.processes import descriptors, names, run
from tritonasync.core.errors import MemoryExhaustedError, WrongContextError
from tritonasync.core.ports import Memory, Region
from tritonasync.memory import system
from tritonasync.memory.guard import guard_of
from tritonasync.memory.system import SystemMemory, SystemRegion

BYTE = np.dtype("u1")


@pytest.fixture
def memory(tmp_path: Path) -> SystemMemory:
    return SystemMemory(tmp_path)


def files(folder: Path) -> list[str]:
    return [name for name in names(folder) if name != guard_of(folder).name]


def mappings(region: SystemRegion) -> int:
    return Path("/proc/self/maps").read_text().count(region.name)


def test_it_is_what_the_ports_ask_for(memory):
    def both(memory: Memory, region: Region) -> str:
        return memory.kind + region.kind

    region = memory.create(1)
    assert both(memory, region) == "systemsystem"
    region.close()


@pytest.mark.parametrize("folder", ["tmp", "/dev/shm"])
def test_a_region_is_a_file_with_all_of_its_pages_that_only_its_user_may_read(tmp_path, folder):
    where = tmp_path if folder == "tmp" else Path(folder)
    region = SystemMemory(where).create(100_000)
    there = (where / region.name).stat()
    assert region.nbytes == there.st_size == 102_400
    assert there.st_blocks * 512 >= region.nbytes
    assert there.st_mode & 0o777 == 0o600
    assert region.key == f"/{region.name}"
    region.close()
    assert not (where / region.name).exists()


def test_others_who_open_the_file_see_what_is_written_and_write_what_is_seen(memory, tmp_path):
    region = memory.create(8192)
    region.write(4096, [np.arange(4, dtype="u1")])
    code = f"""
    import mmap
    with open(folder / {region.name!r}, "r+b") as file, mmap.mmap(file.fileno(), 0) as theirs:
        say(*theirs[4096:4100])
        theirs[4096:4100] = bytes([9, 8, 7, 6])
    """
    assert run(code, tmp_path) == ["0", "1", "2", "3"]
    view = region.view(4096, (4,), BYTE, None, writable=False)
    assert view.tolist() == [9, 8, 7, 6]
    region.close()


def test_the_file_keeps_its_size(memory, tmp_path):
    region = memory.create(8192)
    with (tmp_path / region.name).open("rb") as file:
        view = region.view(0, (8192,), BYTE, None, writable=True)
        region.close()
        assert os.fstat(file.fileno()).st_size == 8192
        del view
        assert os.fstat(file.fileno()).st_size == 8192


def test_a_full_folder_is_an_error_that_says_what_to_do_and_leaves_nothing(
    memory, tmp_path, monkeypatch
):
    def full(descriptor: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    memory.create(1).close()
    before = descriptors()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemoryExhaustedError) as caught:
        memory.create(123_456_789)
    assert re.search(
        rf"123,457,536 bytes .* in {tmp_path}: [\d,]+ of [\d,]+ bytes are free.*--shm-size",
        str(caught.value),
    )
    assert isinstance(caught.value.__cause__, OSError)
    assert files(tmp_path) == []
    assert descriptors() == before


def test_more_than_there_is_in_dev_shm():
    room = os.statvfs("/dev/shm")
    size = room.f_blocks * room.f_frsize
    if not 0 < size < 1 << 44:
        pytest.skip("/dev/shm is not limited")
    memory = SystemMemory()
    with pytest.raises(MemoryExhaustedError, match=rf"of {size:,} bytes are free"):
        memory.create(2 * size)
    region = memory.create(1)
    region.close()


def test_what_the_dead_have_left_makes_room(memory, tmp_path, monkeypatch):
    memory.create(1).close()
    dead = tmp_path / "ta-1-00000000dead-1"
    dead.touch()
    fallocate = os.posix_fallocate

    def full(descriptor: int, offset: int, nbytes: int) -> None:
        if dead.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        fallocate(descriptor, offset, nbytes)

    monkeypatch.setattr(os, "posix_fallocate", full)
    region = memory.create(1)
    assert files(tmp_path) == [region.name]
    region.close()


def test_the_first_region_has_the_dead_swept_away_and_no_other(tmp_path):
    dead = tmp_path / "ta-1-00000000dead-1"
    for memory, swept in ((first := SystemMemory(tmp_path), True), (first, False)):
        dead.touch()
        memory.create(1).close()
        assert dead.exists() is not swept


@pytest.mark.parametrize("where", ["os.open", "os.posix_fallocate", "mmap.mmap"])
@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryExhaustedError),
        (PermissionError(errno.EACCES, "Permission denied"), MemoryExhaustedError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_nothing_is_left_of_a_region_that_failed(
    memory, tmp_path, monkeypatch, where, raised, seen
):
    memory.create(1).close()

    def fail(*_: object) -> None:
        raise raised

    before = descriptors()
    monkeypatch.setattr(f"tritonasync.memory.system.{where}", fail)
    with pytest.raises(seen) as caught:
        memory.create(4097)
    monkeypatch.undo()
    if seen is MemoryExhaustedError:
        assert f"no region of 8,192 bytes can be made in {tmp_path}: {raised.strerror}" in str(
            caught.value
        )
    assert files(tmp_path) == []
    assert descriptors() == before


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MemoryExhaustedError, match="No such file"):
        SystemMemory(tmp_path / "gone").create(1)


@pytest.mark.parametrize("nbytes", [0, -1, 1.0, True, "1", None])
def test_a_size_is_a_whole_number_from_1_on(memory, nbytes):
    with pytest.raises(ValueError, match="1 byte or more"):
        memory.create(nbytes)


def test_views_outlive_the_region_and_the_mapping_ends_with_the_last(memory, tmp_path):
    region = memory.create(4096)
    region.write(0, [np.arange(8, dtype="u1")])
    view = region.view(0, (8,), BYTE, None, writable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        region.close()
    assert files(tmp_path) == []
    assert mappings(region) == 1
    view[0] = 77
    rest = view[:4].view("u2")
    del view
    assert rest.tobytes() == bytes([77, 1, 2, 3])
    del rest
    assert mappings(region) == 0


def test_a_region_leaves_no_descriptor_and_no_mapping(memory):
    memory.create(1).close()
    before = descriptors()
    regions = [memory.create(1) for _ in range(5)]
    for region in regions:
        region.close()
    assert descriptors() == before
    assert sum(map(mappings, regions)) == 0


def test_a_view_does_not_keep_the_region(memory):
    region = memory.create(1)
    alive = weakref.ref(region)
    view = region.view(0, (1,), BYTE, None, writable=False)
    region.close()
    del region
    assert alive() is None
    assert view.size == 1


def test_a_file_that_somebody_removed_does_not_trouble_closing(memory, tmp_path):
    region = memory.create(1)
    (tmp_path / region.name).unlink()
    region.close()


def test_a_region_that_is_forgotten_warns_and_goes(memory, tmp_path):
    regions = [memory.create(1)]
    told = f"SystemRegion {regions[0].name}: 4096 bytes> was not closed"
    with pytest.warns(ResourceWarning, match=told):
        regions.clear()
    assert files(tmp_path) == []


def test_a_region_tells_its_name_and_state(memory):
    region = memory.create(1)
    assert repr(region) == f"<SystemRegion {region.name}: 4096 bytes>"
    region.close()
    assert repr(region) == f"<SystemRegion {region.name}: closed>"


def test_regions_of_many_threads(memory, tmp_path):
    with ThreadPoolExecutor(16) as threads:
        regions = list(threads.map(memory.create, [1] * 200))
    assert sorted(region.name for region in regions) == files(tmp_path)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(SystemRegion.close, regions * 2))
    assert files(tmp_path) == []


def test_parts_of_a_device_are_fetched_into_place(memory):
    class Part:
        """As much of a CuPy array as is asked for."""

        def __init__(self, array: np.ndarray[Any, Any]) -> None:
            self.dtype, self.shape, self.nbytes = array.dtype, array.shape, array.nbytes
            self._array = array

        def get(self, *, out: np.ndarray[Any, Any]) -> None:
            assert out.flags.c_contiguous
            assert (out.shape, out.dtype) == (self.shape, self.dtype)
            out[...] = self._array

    host = np.arange(6, dtype="f4").reshape(2, 3)
    region = memory.create(4096)
    region.write(256, [host, Part(host.T + 1), Part(host[:0]), host[0]])
    view = region.view(256, (15,), np.dtype("f4"), None, writable=False)
    assert view.tolist() == [0, 1, 2, 3, 4, 5, 1, 4, 2, 5, 3, 6, 0, 1, 2]
    with pytest.raises(ValueError, match="lie within"):
        region.write(4090, [Part(host)])
    region.close()


def test_a_subclass_of_numpys_array_is_as_good(memory, tmp_path):
    region = memory.create(4096)
    matrix = np.arange(6, dtype="f4").reshape(2, 3).view(np.recarray)
    region.write(0, [matrix, matrix[:1]])
    view = region.view(0, (9,), np.dtype("f4"), None, writable=False)
    assert view.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    region.close()


def test_a_part_may_be_where_it_is_going(memory):
    region = memory.create(4096)
    view = region.view(0, (100,), BYTE, None, writable=True)
    view[:] = range(100)
    region.write(0, [view])
    assert view.tolist() == list(range(100))
    region.write(10, [view[:50]])  # over itself
    assert view[10:60].tolist() == list(range(50))
    region.close()


@pytest.mark.parametrize("strided", [False, True])
def test_other_threads_run_while_much_is_copied(memory, strided):
    source = np.zeros((1 << 24, 2), "u2")
    parts = [source[:, 0]] if strided else [source]
    region = memory.create(source.nbytes)
    seen: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.append(time.perf_counter())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):  # whether the other thread gets a processor is not up to us
            began = time.perf_counter()
            region.write(0, parts)
            ended = time.perf_counter()
            margin = (ended - began) / 4
            if any(began + margin < at < ended - margin for at in seen):
                break
        else:
            pytest.fail("nothing else ran in 50 copies")
    finally:
        over.set()
        thread.join()
        region.close()


FORK = """
region = memory.create(4096)
region.write(0, [np.array([5], np.uint8)])
kept = view(region)
other = memory.create(1)
if not (child := os.fork()):
    from tritonasync.core.errors import WrongContextError
    def refused(function, *arguments, **options):
        try:
            function(*arguments, **options)
        except WrongContextError:
            return True
    ok = refused(region.write, 0, [np.array([6], np.uint8)])
    ok = ok and refused(region.view, 0, (1,), np.dtype("u1"), None, writable=True)
    ok = ok and refused(memory.create, 1)
    own = SystemMemory(folder).create(1)
    ok = ok and own.name in os.listdir(folder) and kept[0] == 5
    own.close()
    del kept
    region.close()
    region.close()
    ok = ok and region.name not in Path("/proc/self/maps").read_text()
    ok = ok and region.name in os.listdir(folder)
    import warnings
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del region, other
    sys.exit(0 if ok and not told else 9)
say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
say(region.name in os.listdir(folder), view(region)[0])
region.close()
other.close()
"""


def test_a_forked_child_is_refused_its_parents_memory_and_may_have_its_own(tmp_path):
    assert run(FORK, tmp_path) == ["0", "True", "5"]
    assert names(tmp_path) == []


def test_a_forked_child_is_told_what_to_do(memory, monkeypatch):
    region = memory.create(1)
    monkeypatch.setattr(guard_of(memory._folder), "forked", True)
    with pytest.raises(WrongContextError, match=f"region {region.name} .*open a pool in the child"):
        region.write(0, [])
    monkeypatch.undo()
    monkeypatch.setattr(system.os, "getpid", lambda: 1)
    with pytest.raises(WrongContextError, match="open a pool in the child"):
        memory.create(1)
    monkeypatch.undo()
    region.close()


def test_unaligned_views(memory):
    region = memory.create(4096)
    region.write(3, [np.array([1.5, 2.5], "f8")])
    view = region.view(3, (2,), np.dtype("f8"), None, writable=False)
    assert not view.flags.aligned
    assert view.sum() == 4
    region.close()


def test_a_share_of_the_folder_is_left_to_others(tmp_path, monkeypatch):
    page = mmap.PAGESIZE
    memory = SystemMemory(tmp_path, leave=0.25)

    class Room:
        f_frsize, f_blocks, f_bavail = page, 100, 30

    monkeypatch.setattr(os, "statvfs", lambda _: Room)
    memory.create(5 * page).close()
    with pytest.raises(MemoryExhaustedError, match="left to others.*--shm-size"):
        memory.create(6 * page)
