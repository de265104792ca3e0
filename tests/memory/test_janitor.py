"""What dead processes left goes; what is a live one's, or might be, stays."""

import fcntl
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.memory.processes import descriptors, living, names, run
from tritonasync.memory import janitor
from tritonasync.memory.guard import FORKING, Guard, guard_name, guard_of
from tritonasync.memory.janitor import is_dead, sweep

DEAD = "ta-1-00000000dead"
THREE_REGIONS = """
regions = [memory.create(5000) for _ in range(3)]
say(*[region.name for region in regions])
"""


def leave(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize("folder", ["tmp", "/dev/shm"])
def test_the_files_of_a_killed_process_go(tmp_path, folder):
    where = tmp_path if folder == "tmp" else Path(folder)
    with living(THREE_REGIONS, where) as (process, regions):
        guard = guard_name(regions[0])
        assert len(regions) == 3
        assert {guard, *regions} <= set(names(where))
        assert not {guard, *regions} & set(sweep(where))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert all(is_dead(region, where) for region in regions)
        # The folder may be used by others, whose janitors are as quick as this one.
        assert folder != "tmp" or sweep(where) == sorted([guard, *regions])
        sweep(where)
        assert not {guard, *regions} & set(names(where))
        assert all(is_dead(region, where) for region in regions)


def test_a_live_process_keeps_its_files_whoever_sweeps(tmp_path):
    with (
        living(THREE_REGIONS, tmp_path) as (_, first),
        living(THREE_REGIONS, tmp_path) as (second, others),
    ):
        there = names(tmp_path)
        assert len(there) == 8
        assert sweep(tmp_path) == []
        assert run("say('removed:', *sweep(folder))", tmp_path) == ["removed:"]
        assert names(tmp_path) == there
        assert not any(is_dead(name, tmp_path) for name in first + others)
        second.kill()
        second.wait()
        assert sweep(tmp_path) == sorted([guard_name(others[0]), *others])
        assert names(tmp_path) == sorted([guard_name(first[0]), *first])


def test_one_swept_while_regions_come_and_go_loses_none(tmp_path):
    code = """
    memory.create(1).close()
    say("ready")
    while True:
        region = memory.create(1)
        (folder / region.name).stat()
        region.close()
    """
    with living(code, tmp_path) as (process, said):
        assert said == ["ready"]
        for _ in range(300):
            assert sweep(tmp_path) == []
        assert process.poll() is None


def test_regions_without_a_guard_go(tmp_path):
    leave(tmp_path, f"{DEAD}-1", f"{DEAD}-22")
    assert is_dead(f"{DEAD}-1", tmp_path)
    assert sweep(tmp_path) == [f"{DEAD}-1", f"{DEAD}-22"]
    assert names(tmp_path) == []


def test_what_merely_looks_alike_stays(tmp_path):
    alike = [
        "ta-",
        "ta-1",
        "ta-data.bin",
        "ta-x-00000000dead",
        "ta-1-00000000deadbeef",
        "ta-1-00000000DEAD",
        f"{DEAD}-",
        f"{DEAD}-1.2",
        f"{DEAD}-x",
        f"{DEAD}-1-1",
        f"x{DEAD}",
        "tritonasync-1-0",
    ]
    leave(tmp_path, *alike)
    assert sweep(tmp_path) == []
    assert names(tmp_path) == sorted(alike)


def test_folders_links_and_pipes_by_the_name_of_a_guard(tmp_path):
    aim = tmp_path / "aim"
    aim.touch()
    (tmp_path / "ta-1-000000000001").mkdir()
    (tmp_path / "ta-1-000000000002").symlink_to(aim)
    os.mkfifo(tmp_path / "ta-1-000000000003")
    (tmp_path / f"{DEAD}-1").mkdir()
    assert not is_dead("ta-1-000000000002-1", tmp_path)
    assert set(sweep(tmp_path)) <= {"ta-1-000000000003"}
    assert {"aim", "ta-1-000000000001", "ta-1-000000000002", f"{DEAD}-1"} <= set(names(tmp_path))


def test_another_users_files_stay_and_are_taken_for_alive(tmp_path, monkeypatch):
    leave(tmp_path, DEAD, f"{DEAD}-1")

    def refuse(path: object, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(janitor.os, "open", refuse)
    assert sweep(tmp_path) == []
    assert not is_dead(f"{DEAD}-1", tmp_path)
    monkeypatch.undo()
    assert names(tmp_path) == [DEAD, f"{DEAD}-1"]


def test_files_that_may_not_be_removed_are_not_told_as_removed(tmp_path, monkeypatch):
    leave(tmp_path, DEAD, f"{DEAD}-1", "ta-1-000000000001-1")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert sweep(tmp_path) == []


def test_files_that_vanish_meanwhile(tmp_path, monkeypatch):
    seen = [DEAD, f"{DEAD}-1", "ta-1-000000000001-1"]
    monkeypatch.setattr(janitor.os, "listdir", lambda _: seen)
    assert sweep(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path):
    assert sweep(tmp_path / "gone") == []
    assert not is_dead(f"{DEAD}-1", tmp_path / "gone")


def test_a_guard_goes_last_while_its_lock_is_held(tmp_path, monkeypatch):
    leave(tmp_path, DEAD, f"{DEAD}-1", f"{DEAD}-2")
    removed = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        with (tmp_path / DEAD).open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        removed.append(path.name)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", watched)
    sweep(tmp_path)
    assert len(removed) == 3
    assert removed[-1] == DEAD


def test_what_a_sweep_that_was_killed_left_goes_with_the_next(tmp_path, monkeypatch):
    leave(tmp_path, DEAD, f"{DEAD}-1", f"{DEAD}-2")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    before = descriptors()
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path)
    monkeypatch.undo()
    assert descriptors() == before
    assert sweep(tmp_path) == [DEAD, f"{DEAD}-1", f"{DEAD}-2"]


def test_a_guard_that_another_janitor_has_just_removed_is_left_to_it(tmp_path, monkeypatch):
    leave(tmp_path, DEAD, f"{DEAD}-1")
    flock = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        (tmp_path / DEAD).unlink()
        (tmp_path / DEAD).touch()  # somebody else's, as far as this one can tell

    monkeypatch.setattr(fcntl, "flock", late)
    assert sweep(tmp_path) == []
    assert names(tmp_path) == [DEAD, f"{DEAD}-1"]


def test_many_sweeps_at_once_remove_each_file_once(tmp_path):
    guards = [f"ta-1-0000000000{number:02x}" for number in range(20)]
    files = sorted([*guards, *[f"{guard}-{number}" for guard in guards for number in range(5)]])
    leave(tmp_path, *files)
    code = "say(*sweep(folder))"
    with living(code, tmp_path) as (_, first), living(code, tmp_path) as (_, second):
        third = sweep(tmp_path)
    assert sorted(first + second + third) == files
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [f"{DEAD}-1", f"{DEAD}-1.1", f"{DEAD}-1.23", DEAD])
def test_whose_name_it_is_that_a_server_knows(tmp_path, name):
    assert is_dead(name, tmp_path)
    leave(tmp_path, DEAD)
    assert is_dead(name, tmp_path)
    with (tmp_path / DEAD).open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # somebody asks as well
        assert is_dead(name, tmp_path)
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not is_dead(name, tmp_path)


@pytest.mark.parametrize(
    "name", ["", "frames", "ta-1", f"{DEAD}-1.x", f"{DEAD}-1.", f"{DEAD}.1.2", f"x{DEAD}-1", "/"]
)
def test_a_name_of_others_is_never_dead(tmp_path, name):
    assert not is_dead(name, tmp_path)


def test_the_names_of_this_process_are_not_dead(tmp_path):
    guard = guard_of(tmp_path)
    assert not is_dead(guard.region_name(), tmp_path)
    assert not is_dead(f"{guard.region_name()}.7", tmp_path)
    assert sweep(tmp_path) == []


def test_a_guard_that_was_released_is_dead(tmp_path):
    guard = Guard(tmp_path)
    name = guard.region_name()
    assert not is_dead(name, tmp_path)
    guard.release()
    assert is_dead(name, tmp_path)


def test_nobody_forks_while_a_lock_is_taken_to_look(tmp_path, monkeypatch):
    leave(tmp_path, DEAD, f"{DEAD}-1")
    flock = fcntl.flock
    free = []

    def watched(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        thread = threading.Thread(target=lambda: free.append(FORKING.acquire(blocking=False)))
        thread.start()
        thread.join()

    monkeypatch.setattr(fcntl, "flock", watched)
    assert is_dead(f"{DEAD}-1", tmp_path)
    sweep(tmp_path)
    assert free == [False, False]
