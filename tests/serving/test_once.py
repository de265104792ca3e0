"""A folder made once: the cases that need no second process."""

import fcntl
from pathlib import Path

import pytest

from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving.once import make_once


def quiet(_line: str) -> None:
    pass


def exists(path: Path) -> bool:
    return (path / "whole").exists()


def fill(folder: Path, _lock_fd: int) -> None:
    (folder / "whole").touch()


def test_what_is_there_and_usable_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    make_once(target, fill, usable=exists, progress=quiet)
    assert exists(target)

    def refuse(_folder: Path, _lock_fd: int) -> None:
        pytest.fail("made twice")

    make_once(target, refuse, usable=exists, progress=quiet)


def test_a_failing_maker_leaves_neither_target_nor_sibling(tmp_path: Path) -> None:
    def fail(folder: Path, _lock_fd: int) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_once(tmp_path / "target", fail, usable=exists, progress=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["target.lock"]
    make_once(tmp_path / "target", fill, usable=exists, progress=quiet)
    assert exists(tmp_path / "target")


def test_nobody_sees_the_target_before_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def look(folder: Path, lock_fd: int) -> None:
        fill(folder, lock_fd)
        assert not target.exists()

    make_once(target, look, usable=exists, progress=quiet)
    assert exists(target)


def test_whoever_waits_for_another_maker_may_leave(tmp_path: Path) -> None:
    told: list[str] = []
    with (tmp_path / "target.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RuntimeSetupError, match="cancelled"):
            make_once(
                tmp_path / "target",
                fill,
                usable=exists,
                progress=told.append,
                cancelled=lambda: bool(told),
            )
    assert told == ["another process is setting up the runtime; waiting for it"]
    assert not (tmp_path / "target").exists()


def test_what_another_made_while_we_waited_is_taken(tmp_path: Path) -> None:
    target = tmp_path / "target"
    other = (tmp_path / "target.lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)

    def finish(_line: str) -> None:  # we are told that we wait: the other finishes now
        target.mkdir()
        fill(target, 0)
        other.close()

    def refuse(_folder: Path, _lock_fd: int) -> None:
        pytest.fail("made twice")

    make_once(target, refuse, usable=exists, progress=finish)
