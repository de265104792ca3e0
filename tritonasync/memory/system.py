"""The host's shared memory (POSIX): files of /dev/shm, mapped.

Owns: making, mapping and removing them. Refuses to know: who uses which part, and servers.

Invariants:

- A region's file has all of its pages before the region is there, so that a full /dev/shm is an
  error when it is made, and not a SIGBUS when it is written.
- A file's size never changes: a server that has it mapped would be killed by SIGBUS if it shrank.
- The mapping lives until the last view on it has died, closed or not; the name ends with ``close``,
  at exit, or by a janitor's hand after the death of the process.
- A forked child has the mappings of its parent, and no use of them: what it wrote would be sent by
  the parent, and what it read may be another call's.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tritonasync.core.checks import is_count
from tritonasync.core.errors import MemoryExhaustedError, WrongContextError
from tritonasync.core.values import Array, MemoryKind
from tritonasync.memory.guard import SHM_FOLDER, Guard, guard_of
from tritonasync.memory.host import HostBytes
from tritonasync.memory.janitor import sweep

_FORKED: Final = "belongs to the process that this one was forked from: open a pool in the child"
_MORE: Final = (
    "Give a container more (docker run --shm-size=1g; its default is 64 MiB), or the pool a lower "
    "limit"
)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class SystemMemory:
    """The host's memory, shared by way of a folder.

    What dead processes have left in the folder is removed when the first region is made, and again
    when there is no room for one.

    Args:
        folder: The folder; a server on this machine finds regions only in /dev/shm.
        leave: The share of the folder's size that is left to others: a server's own models may
            need some, and die of a full folder.
    """

    kind: MemoryKind = "system"

    def __init__(self, folder: str | os.PathLike[str] = SHM_FOLDER, *, leave: float = 0.0) -> None:
        self._folder = Path(folder)
        self._leave = leave
        self._process = os.getpid()
        self._swept = False

    def create(self, nbytes: int) -> SystemRegion:
        """Return a new region; its size is rounded up to whole pages.

        It takes the time of clearing the pages (about 10 ms for 64 MiB), and blocks.

        Raises:
            ValueError: ``nbytes`` is not a whole number from 1 on.
            MemoryExhaustedError: The folder is full, missing, or may not be written.
            WrongContextError: This object was made before the process was forked.
        """
        if not is_count(nbytes):
            raise ValueError(f"a region has 1 byte or more, not {nbytes!r}")
        if os.getpid() != self._process:
            raise WrongContextError(f"shared memory {_FORKED}")
        size = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if not self._swept:
            self._swept = True
            sweep(self._folder)
        guard = guard_of(self._folder)
        try:
            return self._region(guard, size)
        except MemoryExhaustedError:
            if not sweep(self._folder):
                raise
        return self._region(guard, size)

    def _region(self, guard: Guard, size: int) -> SystemRegion:
        if self._leave:
            room = os.statvfs(self._folder)
            free, whole = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
            if free - size < whole * self._leave:
                raise MemoryExhaustedError(
                    f"no region of {size:,} bytes is made in {self._folder}: {free:,} of "
                    f"{whole:,} bytes are free, of which {whole * self._leave:,.0f} are left to "
                    f"others. {_MORE}"
                )
        return SystemRegion(guard, size)


class SystemRegion:
    """A file of shared memory, mapped.

    Args:
        guard: Who gives it its name, and says whether this process may use it.
        nbytes: Its size, in whole pages.

    Attributes:
        kind: ``"system"``.
        name: Its name, and the file's.
        nbytes: Its size.
        key: The name with a leading slash, as ``shm_open`` takes it.
        handle: Empty: it is opened by its key.
        device_id: 0.

    Raises:
        MemoryExhaustedError: The system does not give so much.
    """

    kind: MemoryKind = "system"
    handle: bytes = b""
    device_id: int = 0

    # Before all is there, for ``__del__``.
    _bytes: HostBytes | None = None

    def __init__(self, guard: Guard, nbytes: int) -> None:
        self.name: str = guard.region_name()
        self.nbytes = nbytes
        self.key: str = f"/{self.name}"
        self._guard = guard
        self._bytes = HostBytes(_map(guard.folder / self.name, nbytes), f"region {self.name}")

    def view(
        self,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        owner: object,
        *,
        writable: bool,
    ) -> Array:
        """Return a numpy array on a part of it; neither copies nor blocks.

        The array keeps ``owner``, and the mapping, alive. It may be used after :meth:`close`.

        Raises:
            ValueError: The array would not lie within the region, or the region is closed.
            WrongContextError: The region is a parent process's.
        """
        return self._open_bytes().view(offset, shape, dtype, owner, writable=writable)

    def write(self, offset: int, parts: Sequence[Array]) -> None:
        """Copy arrays into it, one behind the other; all is there when it returns.

        Large parts are copied while other threads run.

        Raises:
            ValueError: They would not lie within the region, or the region is closed.
            WrongContextError: The region is a parent process's.
        """
        self._open_bytes().write(offset, parts)

    def fence(self) -> None:
        """Return ``None``: nothing is enqueued here."""

    def close(self) -> None:
        """Remove the file; the mapping goes with the last view. May be repeated.

        In a forked child, the parent's file stays.
        """
        mapped, self._bytes = self._bytes, None
        if mapped is not None and not self._guard.forked:
            # By somebody who emptied the folder, or at exit.
            with contextlib.suppress(OSError):
                (self._guard.folder / self.name).unlink()

    def _open_bytes(self) -> HostBytes:
        if self._guard.forked:
            raise WrongContextError(f"region {self.name} {_FORKED}")
        if self._bytes is None:
            raise ValueError(f"region {self.name} is closed")
        return self._bytes

    def __repr__(self) -> str:
        state = "closed" if self._bytes is None else f"{self.nbytes} bytes"
        return f"<SystemRegion {self.name}: {state}>"

    def __del__(self) -> None:
        if self._bytes is not None and not self._guard.forked:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close()


def _map(path: Path, nbytes: int) -> mmap.mmap:
    """Make a file with all of its pages, and map it; nothing is left if that fails."""
    descriptor = -1
    try:
        # Nobody else's: other users of the machine must not read what goes to a model.
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        os.posix_fallocate(descriptor, 0, nbytes)
        return mmap.mmap(descriptor, nbytes)
    except BaseException as error:
        if descriptor >= 0:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise MemoryExhaustedError(_refusal(error, path.parent, nbytes)) from error
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _refusal(error: OSError, folder: Path, nbytes: int) -> str:
    wanted = f"no region of {nbytes:,} bytes can be made in {folder}: "
    if error.errno not in _FULL:
        return f"{wanted}{error.strerror}"
    room = os.statvfs(folder)
    free, size = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    return f"{wanted}{free:,} of {size:,} bytes are free. {_MORE}"
