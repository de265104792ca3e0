"""The benchmark's side of a client's process: its pipes, its patience, its end.

Owns: the process. Refuses to know: what the orders mean.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from benchmarks.clients.protocol import (
    Failure,
    Hello,
    Message,
    Order,
    Outcome,
    ProtocolError,
    from_line,
    to_line,
)

START_S = 30.0
GRACE_S = 60.0
END_S = 15.0
_KEPT = 2000


class ChildError(Exception):
    """A client's process did not do what it was asked to; the message says why."""


class Child:
    """A client in a process of its own.

    Args:
        command: Starts it; it speaks the protocol on its standard input and output.
        environment: Its variables, all of them.
        folder: Where it runs.

    Raises:
        ChildError: It did not come up.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._rest = b""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=dict(environment),
            cwd=folder,
        )
        try:
            self.versions = self._greeting().versions
        except BaseException:
            self.close(patience_s=0)
            raise

    def carry_out(self, order: Order) -> Outcome:
        """Have it run a round.

        Raises:
            ChildError: It failed, died, or did not answer within a minute beyond the round.
        """
        if self._process.stdin is None:
            raise RuntimeError("the process was started without a pipe")
        try:
            self._process.stdin.write(to_line(order))
            self._process.stdin.flush()
        except OSError as error:
            raise ChildError(f"it ended: {self._last_words()}") from error
        answer = self._hear(order.seconds + GRACE_S)
        if not isinstance(answer, Outcome):
            raise ChildError(f"expected an outcome, got {answer}")
        return answer

    def close(self, *, patience_s: float = END_S) -> None:
        """Let it end in order; kill it if it does not. May be repeated."""
        process = self._process
        if process.stdin is not None and not process.stdin.closed:
            with suppress(OSError):  # it had ended
                process.stdin.close()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._said.close()

    def _greeting(self) -> Hello:
        first = self._hear(START_S)
        if not isinstance(first, Hello):
            raise ChildError(f"expected its greeting, got {first}")
        return first

    def _hear(self, patience_s: float) -> Message:
        try:
            answer = from_line(self._line(time.monotonic() + patience_s))
        except ProtocolError as error:
            raise ChildError(str(error)) from error
        if isinstance(answer, Failure):
            raise ChildError(answer.reason)
        return answer

    def _line(self, limit: float) -> bytes:
        if self._process.stdout is None:
            raise RuntimeError("the process was started without a pipe")
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, limit - time.monotonic())):
                    raise ChildError(f"no answer in time: {self._last_words()}")
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    raise ChildError(f"it ended: {self._last_words()}")
                self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """Return the end of what it wrote to standard error."""
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - _KEPT))
        return self._said.read().decode(errors="replace").strip() or "(it said nothing)"
