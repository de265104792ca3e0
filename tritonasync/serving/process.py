"""One running tritonserver with its keeper, seen from the program that started it.

Owns: the keeper process, the pipe that tells it to stop, and clearing up if the keeper was killed.
Refuses to know: flags, readiness, logs.

Invariants: a process made by fork from ours never stops the server (``owner`` is compared with the
current process id); :meth:`ServerProcess.stop` may be called by any thread, any number of times,
and returns when server, stubs and shared memory are gone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Final

from tritonasync.core.errors import ServerStartError
from tritonasync.serving import keeper
from tritonasync.serving.keeper import Order

_KEEPER_MARGIN_S: Final = 10.0
"""What the keeper may take beyond the server's own time to end."""


class ServerProcess:
    """A server that runs from construction until :meth:`stop`, or until it ends by itself.

    Args:
        command: The server's command line.
        environment: Its variables.
        shm_prefix: What its stubs' shared-memory files begin with; no one else's may.
        folder: Removed by the keeper if this process is gone by then; otherwise the caller's.
        log: Where its output goes; a descriptor is taken, the file may be closed.
        stop_timeout_s: How long it may take to end before it is killed.

    Attributes:
        pid: The server's process id, which is its process group's too.
        owner: The process that started it.

    Raises:
        ServerStartError: The keeper or the server could not be run.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        shm_prefix: str,
        folder: Path,
        log: IO[bytes],
        stop_timeout_s: float,
    ) -> None:
        self.owner: Final = os.getpid()
        self._shm_prefix = shm_prefix
        self._stop_timeout_s = stop_timeout_s
        self._stopping = threading.Lock()
        self._keeper = _start_keeper(log)
        order = Order(
            list(command), dict(environment), shm_prefix, str(folder), self.owner, stop_timeout_s
        )
        self.pid: int = 0
        try:
            self._send(json.dumps(asdict(order)).encode() + b"\n")
            self.pid = self._read_pid()
        except BaseException:
            self.stop()
            raise

    def poll(self) -> int | None:
        """Return the server's exit code (128 plus the signal's number), ``None`` if it runs.

        ``None`` also in a forked process, which cannot know.
        """
        return self._keeper.poll() if os.getpid() == self.owner else None

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code as :meth:`poll` after at most ``timeout_s``; ``None`` if it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self._keeper.wait(timeout_s)
        return None

    def kill(self) -> None:
        """Kill the server as a crash would, and wait until it and its stubs are gone."""
        if self.poll() is None and os.getpid() == self.owner:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """End the server in order, by force after its time, and clear up; idempotent.

        Does nothing in a process forked from the one that started it.
        """
        if os.getpid() != self.owner:
            return
        with self._stopping:
            self._send(b"stop\n")
            try:
                self._keeper.wait(self._stop_timeout_s + _KEEPER_MARGIN_S)
            except subprocess.TimeoutExpired:
                self._keeper.kill()
                self._keeper.wait()
            self._clear_up()

    def _clear_up(self) -> None:
        """Do what the keeper has done already unless it was killed."""
        if self._keeper.returncode < 0 and self.pid:
            keeper.kill_group(self.pid)
        keeper.sweep_shared_memory(self._shm_prefix)
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _send(self, data: bytes) -> None:
        pipe = self._keeper.stdin
        if pipe is not None and not pipe.closed:
            with suppress(BrokenPipeError):
                pipe.write(data)
                pipe.flush()

    def _read_pid(self) -> int:
        """Read the server's process id; nothing comes if it could not be run."""
        pipe = self._keeper.stdout
        line = b"" if pipe is None else pipe.readline()
        if line:
            return int(line)
        raise ServerStartError("tritonserver could not be run")


def _start_keeper(log: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - this interpreter, a file of ours
            [sys.executable, "-I", "-S", str(Path(keeper.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal is ours to hear, not the server's
        )
    except OSError as error:
        raise ServerStartError(f"cannot run {sys.executable!r} to keep the server") from error
