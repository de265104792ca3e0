"""The process between us and tritonserver: it ends the server when it is told to or we are gone.

Run as a script in its own session, by path and with nothing but the standard library. It is a
process of its own because only a parent can reap, and only something outside can act when the
program that started the server is killed. It owns the server's process group and the shared memory
of the server's stubs.

Standard input: one line of JSON (:class:`Order`), then nothing until the word to stop, which is any
further byte or the end of the file. Standard output: one line, the server's process id. Standard
error: the server's log. Exit code: the server's, or 128 plus the signal that ended it.

Invariants:
    * The server dies with the keeper (``PR_SET_PDEATHSIG``, set between fork and exec: safe here,
      since this process has one thread, and not in a program that has many).
    * The end of the parent is seen by the parent's id changing, not by the pipe alone: a forked
      child of the parent holds the pipe open.
    * The server's group is killed *before* its leader is reaped, so its id cannot belong to anyone
      else by then. Stubs outlive a killed server for half an hour otherwise (seen on Triton 2.51).
    * Orphans of the server become the keeper's children (``PR_SET_CHILD_SUBREAPER``), so it ends
      and reaps them all, also what a model has started in a group of its own, before it unlinks the
      shared memory that they use.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.2
_GONE_POLL_S = 0.02
_ORPHANS_S = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """What to run and what to clear away.

    Attributes:
        command: The server's command line.
        environment: Its variables.
        shm_prefix: What the names of its stubs' shared-memory files begin with.
        folder: A folder to remove when the parent is gone.
        parent: The process whose end is the server's.
        stop_timeout_s: How long the server may take to end before it is killed.
    """

    command: list[str]
    environment: dict[str, str]
    shm_prefix: str
    folder: str
    parent: int
    stop_timeout_s: float


def sweep_shared_memory(prefix: str) -> None:
    """Unlink the shared-memory files whose names begin with ``prefix``."""
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def kill_group(leader: int) -> None:
    """Kill what is left of the server's process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def keep(order: Order) -> int:
    """Run the server until it ends, or the parent ends or says so; return its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    server = _start(order)
    try:
        os.write(1, f"{server.pid}\n".encode())
        while not _has_ended(server.pid) and not _told_to_stop(order.parent):
            pass
        _end(server.pid, order.stop_timeout_s)
    finally:
        kill_group(server.pid)
        code = server.wait()
        _end_orphans()
        sweep_shared_memory(order.shm_prefix)
        if os.getppid() != order.parent:
            shutil.rmtree(order.folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


def _leave(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the clearing up
    raise SystemExit(128 + signal.SIGTERM)


def _start(order: Order) -> subprocess.Popen[bytes]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    keeper = os.getpid()
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def die_with_keeper() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:  # it died before the line above
            os._exit(1)

    return subprocess.Popen(  # noqa: S603 - the runtime's tritonserver
        order.command,
        env=order.environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        stderr=sys.stderr,
        start_new_session=True,
        preexec_fn=die_with_keeper,  # noqa: PLW1509 - one thread only, see the file's head
    )


def _has_ended(pid: int) -> bool:
    """Whether the server has ended; leaves it to be reaped, but reaps orphans that have."""
    while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if ended.si_pid == pid:
            return True
        os.waitpid(ended.si_pid, 0)
    return False


def _told_to_stop(parent: int) -> bool:
    readable, _, _ = select.select([0], [], [], _POLL_S)
    return bool(readable) or os.getppid() != parent


def _end(pid: int, timeout_s: float) -> None:
    """Ask the server to end, and wait for it up to ``timeout_s``."""
    os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + timeout_s
    while not _has_ended(pid) and time.monotonic() < limit:
        time.sleep(_GONE_POLL_S)


def _end_orphans() -> None:
    """Kill and reap what the server has left to us, also what comes up as its parents die."""
    limit = time.monotonic() + _ORPHANS_S
    while time.monotonic() < limit:
        for child in _children():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_GONE_POLL_S)


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]
    except OSError:  # a kernel built without it: the group was killed, the rest is only waited for
        return []


def main() -> int:
    """Read the order, keep the server, return the exit code."""
    with open(0, "rb", buffering=0, closefd=False) as orders:
        order = Order(**json.loads(orders.readline()))
    return keep(order)


if __name__ == "__main__":
    sys.exit(main())
