"""Names for regions, and the proof that the process they belong to is alive.

Owns: one file for each process and folder, the *guard*, which the process holds locked for as long
as it lives; the names of its regions, which begin with the guard's; their removal at exit. Refuses
to know: what is in a region, and what others have left (:mod:`tritonasync.memory.janitor`).

Whether a process lives is told by the lock alone. A process id proves nothing: containers share
/dev/shm across PID namespaces, and ids come again. The kernel lets a ``flock`` go when the last
descriptor of the opened file is closed, however the process ends.

Invariants:

- A guard is locked before the first name is given, and removed after the last file of its process;
  so a file whose guard is missing, or can be locked by another, belongs to nobody.
- Nothing happens to a guard, or is locked, while the process forks (``FORKING``): each descriptor
  with a lock is then known, and a forked child closes it, so that the lock dies with the parent.
- A name never comes again.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import itertools
import os
import re
import secrets
import sys
import threading
from pathlib import Path
from typing import Final

from tritonasync.core.errors import MemoryExhaustedError

SHM_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - where shm_open puts its files on Linux
"""The folder in which a server on this machine looks for regions."""

PREFIX: Final = "ta-"
"""What the names of all regions begin with."""

FORKING: Final = threading.RLock()
"""Held while the process forks, and by who holds a descriptor with a lock that no guard knows of.

It can be taken again by its thread, since a finalizer or a signal handler may fork."""

_NAME: Final = re.compile(rf"({PREFIX}[0-9]+-[0-9a-f]{{12}})(?:-[0-9]+)?")

_guards: list[Guard] = []  # of this process, the present ones last
_present: dict[Path, Guard] = {}


class Guard:
    """A locked file that lives as long as the process does.

    Args:
        folder: Where to make it.

    Attributes:
        folder: Where it is.
        name: Its name in the folder, with which the names of its regions begin.
        forked: Whether this process is a forked child of the one that it stands for. What belongs
            to that one must not be used, let alone removed.

    Raises:
        OSError: The folder is missing or full, or may not be written.
    """

    __slots__ = ("_descriptor", "_numbers", "folder", "forked", "name")

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder
        self.forked: bool = False
        self.name: str
        self.name, self._descriptor = _make_locked(folder)
        self._numbers = itertools.count(1)

    def region_name(self) -> str:
        """Return a name that no region has or had."""
        return f"{self.name}-{next(self._numbers)}"

    def stands(self) -> bool:
        """Return whether its file is where it was: somebody may have emptied the folder."""
        return is_open_as(self._descriptor, self.folder / self.name)

    def release(self) -> None:
        """Remove the files of its regions, then its own, and let the lock go."""
        remove_regions(self.folder, self.name)
        with contextlib.suppress(OSError):
            (self.folder / self.name).unlink()
        os.close(self._descriptor)

    def disown(self) -> None:
        """Let it be the parent's alone: for the forked child."""
        self.forked = True
        os.close(self._descriptor)


def guard_of(folder: str | os.PathLike[str] = SHM_FOLDER) -> Guard:
    """Return this process's guard in a folder, made when it is first asked for. Thread-safe.

    Raises:
        MemoryExhaustedError: No file can be made there.
    """
    where = Path(folder)
    with FORKING:
        guard = _present.get(where)
        if guard is None or not guard.stands():
            try:
                guard = Guard(where)
            except OSError as error:
                raise MemoryExhaustedError(
                    f"no shared memory can be made in {where}: {error.strerror}"
                ) from error
            _release_at_exit()
            _present[where] = guard
            _guards.append(guard)
        return guard


def region_name(folder: str | os.PathLike[str] = SHM_FOLDER) -> str:
    """Return a name for a region of this process, one that no other on this machine has.

    Raises as :func:`guard_of`.
    """
    return guard_of(folder).region_name()


def is_own(guard: str) -> bool:
    """Return whether a guard is this process's, though its file may be gone."""
    return any(own.name == guard for own in _guards)


def guard_name(name: str) -> str | None:
    """Return the name of the guard that a name, its own or a region's, is under.

    ``None`` if it is no such name, however it begins.
    """
    match = _NAME.fullmatch(name)
    return match and match[1]


def is_open_as(descriptor: int, path: Path) -> bool:
    """Return whether an open file is (still) the one at a path."""
    try:
        there = path.stat(follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def remove_regions(folder: Path, guard: str) -> list[str]:
    """Remove the files of a guard's regions; return the names of those that are gone now."""
    removed: list[str] = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - names are wanted, not paths
            if name != guard and guard_name(name) == guard:
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
                    removed.append(name)
    return removed


def _make_locked(folder: Path) -> tuple[str, int]:
    """Make a file and lock it; return its name and descriptor."""
    while True:
        name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
        path = folder / name
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # Waits for a janitor at most, who then has taken the file for a dead process's.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        if is_open_as(descriptor, path):
            return name, descriptor
        os.close(descriptor)


def _release_at_exit() -> None:
    if not _guards:
        atexit.register(_release_all)
    # A process that multiprocessing has forked ends without atexit, but with its own finalizers.
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _release_all, exitpriority=-100)


def _release_all() -> None:
    with FORKING:
        _present.clear()
        while _guards:
            _guards.pop().release()


def _forked() -> None:
    _present.clear()
    while _guards:
        _guards.pop().disown()
    FORKING.release()


os.register_at_fork(before=FORKING.acquire, after_in_parent=FORKING.release, after_in_child=_forked)
