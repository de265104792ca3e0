"""A folder that is made exactly once, whole or not at all, however many processes want it.

Owns: the lock, the temporary sibling, the atomic rename, and clearing up after a maker that died.
Refuses to know: what is made.

Invariants:
    * ``target`` exists only when complete: it appears by one :func:`os.rename`.
    * Whoever makes, holds the lock; so a sibling ``<target>.making-*`` seen under the lock belongs
      to a dead maker and may be removed.
    * The lock is an ``flock`` on an open file description. ``make`` is given its descriptor to
      pass on to the processes it starts: a child that outlives a killed maker still holds the
      lock, so nobody removes the folder that the child is writing to.
    * The lock file stays: removing it would let two makers lock two different files of that name.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tritonasync.core.errors import RuntimeSetupError

Progress = Callable[[str], None]
"""Told in one line each what goes on, so that minutes of set-up do not look like a hang."""

Cancelled = Callable[[], bool]
"""Asked now and then whether the caller has left."""

_LOCK_POLL_S: Final = 0.1


def never_cancelled() -> bool:
    """Stand for a caller that stays."""
    return False


def check_cancelled(cancelled: Cancelled) -> None:
    """Raise if the caller has left.

    Raises:
        RuntimeSetupError: ``cancelled()`` is true.
    """
    if cancelled():
        raise RuntimeSetupError("setting up the server's runtime was cancelled")


def make_once(
    target: Path,
    make: Callable[[Path, int], None],
    *,
    usable: Callable[[Path], bool],
    progress: Progress,
    cancelled: Cancelled = never_cancelled,
) -> None:
    """Return when ``target`` is there and usable, making it unless another process has.

    Args:
        target: The folder; its parent is created if missing.
        make: Fills the new folder it is given; the second argument is the lock's descriptor, to be
            inherited by every process it starts.
        usable: Whether an existing ``target`` still serves; if not, it is made anew.
        progress: Told when this process waits for another.
        cancelled: Ends the wait for the lock.

    Raises:
        RuntimeSetupError: Cancelled, or whatever ``make`` raises; ``target`` does not exist then.
    """
    if usable(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(target.name + ".lock"), progress, cancelled) as lock_fd:
        if usable(target):
            return
        for leftover in target.parent.glob(f"{target.name}.making-*"):
            progress(f"removing what an interrupted set-up left: {leftover.name}")
            shutil.rmtree(leftover)
        if target.exists():
            progress(f"{target.name} is no longer usable: making it anew")
            shutil.rmtree(target)
        _make_whole(target, make, lock_fd)


def _make_whole(target: Path, make: Callable[[Path, int], None], lock_fd: int) -> None:
    sibling = target.with_name(f"{target.name}.making-{secrets.token_hex(4)}")
    sibling.mkdir()
    try:
        make(sibling, lock_fd)
        sibling.rename(target)
    except BaseException:
        shutil.rmtree(sibling, ignore_errors=True)
        raise


@contextmanager
def _locked(path: Path, progress: Progress, cancelled: Cancelled) -> Generator[int]:
    """Hold the lock; poll for it, since a blocking ``flock`` could not be cancelled."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        told = False
        while not _try_lock(fd):
            if not told:
                progress("another process is setting up the runtime; waiting for it")
                told = True
            check_cancelled(cancelled)
            time.sleep(_LOCK_POLL_S)
        yield fd
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    import fcntl  # noqa: PLC0415 - not on Windows, where importing the package must not fail

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
