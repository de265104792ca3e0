"""What dead processes have left in a shared-memory folder.

Owns: telling whether the process that a name belongs to is gone, and removing its files. Refuses to
know: regions in use, and names on a server (who asks about these has them from there).

A process is dead if nobody holds the lock on its guard (:mod:`tritonasync.memory.guard`), or if the
guard is gone: it is made before the first region and removed after the last. What cannot be told,
as of another user's files, is taken for alive.

Invariants: nothing of a live process is removed; a guard is removed last, while its lock is held,
so that a sweep that is killed half-way is finished by the next; nothing is raised.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Final

from tritonasync.memory.guard import (
    FORKING,
    SHM_FOLDER,
    guard_name,
    is_open_as,
    is_own,
    remove_regions,
)

# The folder is everybody's: a link must not lead elsewhere, nor a pipe hold us up.
_LOOK: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

_REGISTRATION: Final = re.compile(r"\.[0-9]+\Z")


def sweep(folder: str | os.PathLike[str] = SHM_FOLDER) -> list[str]:
    """Remove the files of dead processes; return their names, sorted.

    Other users' files, and those whose names only look alike, stay.
    """
    where = Path(folder)
    try:
        guards = {guard_name(name) for name in os.listdir(where)}  # noqa: PTH208 - names, not paths
    except OSError:
        return []
    removed: list[str] = []
    for guard in guards:
        if guard is not None and not is_own(guard):
            removed += _remove(where, guard)
    return sorted(removed)


def is_dead(name: str, folder: str | os.PathLike[str] = SHM_FOLDER) -> bool:
    """Return whether the process that made a region is certainly gone.

    Args:
        name: The region's name, with or without the ``.<number>`` of a registration.
        folder: Where its guard would be. The answer holds for names of processes that see the same
            folder: a region that a server has mapped from it is such a one.
    """
    guard = guard_name(_REGISTRATION.sub("", name))
    where = Path(folder)
    if guard is None or is_own(guard) or not where.is_dir():
        return False
    with _looked_at(where / guard) as descriptor:
        return descriptor is None or (
            # Shared, so that two who ask at once do not take each other for the owner.
            descriptor >= 0 and _lock(descriptor, fcntl.LOCK_SH)
        )


def _remove(folder: Path, guard: str) -> list[str]:
    """Remove all files under a guard, and itself, if its process is dead."""
    path = folder / guard
    with _looked_at(path) as descriptor:
        if descriptor is None:
            return remove_regions(folder, guard)
        # The second: another janitor may have removed it since, and have done the work.
        if (
            descriptor < 0
            or not _lock(descriptor, fcntl.LOCK_EX)
            or not is_open_as(descriptor, path)
        ):
            return []
        removed = remove_regions(folder, guard)
        with contextlib.suppress(OSError):
            path.unlink()
            removed.append(guard)
        return removed


@contextlib.contextmanager
def _looked_at(path: Path) -> Generator[int | None]:
    """Give a descriptor of a guard: ``None`` if there is no such file, -1 if it is not for us.

    No fork meanwhile, or the child would go on holding a lock that was taken here.
    """
    with FORKING:
        try:
            descriptor = os.open(path, _LOOK)
        except FileNotFoundError:
            yield None
            return
        except OSError:
            yield -1
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
