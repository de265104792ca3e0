"""Fills a new folder with a virtual environment that holds tritonserver and its packages.

Owns: the commands (venv, pip), their output, and what is pinned. Refuses to know: where the folder
is in the end, and who else wants one.

pip inherits the user's configuration and environment, index settings included; nothing here names
an index, and URLs are cut out of what is shown, as they may carry credentials.
"""

from __future__ import annotations

import importlib.util
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving.interpreter import Interpreter
from tritonasync.serving.once import Cancelled, Progress, check_cancelled, never_cancelled

SERVER_PACKAGE: Final = "nvidia-pytriton==0.7.0"
"""The wheel that carries tritonserver 2.51.0 (release 24.10)."""

NUMPY: Final = "numpy>=1.26,<2"
"""With numpy 2 this server's stubs silently give empty or constant tensors (seen on 2.51)."""

_TAIL_LINES: Final = 30
_HEARTBEAT_S: Final = 10.0
_POLL_S: Final = 0.1
_URL = re.compile(r"\b(?:https?|file|ssh|git\+\w+)://\S+")
_COLLECTING = re.compile(r"^\s*Collecting (\S+)")
_DOWNLOADING = re.compile(r"^\s*Downloading (\S+) \(([^)]+)\)")


@dataclass(frozen=True, slots=True)
class Contents:
    """What goes into a runtime besides the server itself.

    Attributes:
        packages: Requirements that pip resolves, such as ``"onnxruntime==1.31.*"``.
        packages_no_deps: Requirements installed without their dependencies.
    """

    packages: tuple[str, ...] = ()
    packages_no_deps: tuple[str, ...] = ()


def fill_environment(
    folder: Path,
    interpreter: Interpreter,
    contents: Contents,
    *,
    lock_fd: int,
    progress: Progress,
    cancelled: Cancelled = never_cancelled,
) -> None:
    """Make a virtual environment in ``folder`` and install the server and ``contents`` into it.

    Args:
        folder: An empty folder.
        interpreter: Makes the environment; the environment goes on needing it.
        contents: Packages besides the server.
        lock_fd: Inherited by every process started here (see :mod:`tritonasync.serving.once`).
        progress: Told each step.
        cancelled: Ends the running step.

    Raises:
        RuntimeSetupError: A step failed or was cancelled; ends with the tail of its output.
    """
    own_pip = importlib.util.find_spec("pip") is not None
    progress(f"making an environment with {interpreter.executable}")
    venv = [str(interpreter.executable), "-m", "venv", *(["--without-pip"] if own_pip else [])]
    run_step([*venv, str(folder)], lock_fd=lock_fd, progress=progress, cancelled=cancelled)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-P", "-m", "pip", "--python", python] if own_pip else []
    pip = [*(pip or [python, "-m", "pip"]), "install", "--no-input", "--progress-bar", "off"]
    constraint = folder / "constraints.txt"
    constraint.write_text(f"{NUMPY}\n")
    for arguments in _installations(contents, constraint):
        run_step([*pip, *arguments], lock_fd=lock_fd, progress=progress, cancelled=cancelled)


def _installations(contents: Contents, constraint: Path) -> Iterator[list[str]]:
    """Yield pip's arguments: first without, then with dependencies.

    The server's wheel is installed alone: it asks for a web framework and messaging that only its
    own Python interface needs.
    """
    yield ["--no-deps", SERVER_PACKAGE, NUMPY, *contents.packages_no_deps]
    if contents.packages:
        yield ["--constraint", str(constraint), *contents.packages]


def run_step(
    command: Sequence[str],
    *,
    lock_fd: int,
    progress: Progress,
    cancelled: Cancelled = never_cancelled,
) -> None:
    """Run one command to its end, telling ``progress`` what it does.

    It runs in its own session, so that Ctrl-C reaches this process alone, which then ends the
    command in order.

    Raises:
        RuntimeSetupError: It could not be run, failed (with its last lines), or was cancelled.
    """
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0"}
    environment.pop("PYTHONHOME", None)
    try:
        process = subprocess.Popen(  # noqa: S603 - the caller's own interpreter and requirements
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock_fd,),
            start_new_session=True,
        )
    except OSError as error:
        raise RuntimeSetupError(f"cannot run {command[0]}: {error}") from error
    with process:
        try:
            tail = _follow(process, progress, cancelled)
            code = process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if code != 0:
        shown = "\n".join(tail)
        raise RuntimeSetupError(
            f"setting up the server's runtime failed: `{_command_line(command)}` exited with "
            f"code {code}:\n{shown}"
        )


def _follow(
    process: subprocess.Popen[bytes], progress: Progress, cancelled: Cancelled
) -> deque[str]:
    """Read the output to its end; return its last lines, without URLs."""
    output = process.stdout
    if output is None:
        raise RuntimeError("the step was started without a pipe")
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    begun = told = time.monotonic()
    for line in _lines(output):
        check_cancelled(cancelled)
        if line is not None:
            tail.append(_URL.sub("<url>", line.rstrip()))
            news = _news(line)
            if news:
                progress(news)
                told = time.monotonic()
        elif time.monotonic() - told > _HEARTBEAT_S:
            told = time.monotonic()
            progress(f"still at it after {told - begun:.0f} s")
    return tail


def _lines(output: IO[bytes]) -> Iterator[str | None]:
    """Yield lines as they come, and ``None`` in between so that the reader can look around."""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        rest = b""
        while True:
            if not selector.select(_POLL_S):
                yield None
                continue
            chunk = os.read(output.fileno(), 65536)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
            if not chunk:
                if rest:
                    yield rest.decode(errors="replace")
                return


def _news(line: str) -> str | None:
    """Turn a line of pip's into one worth showing; names only, no addresses."""
    if found := _DOWNLOADING.match(line):
        return f"downloading {PurePosixPath(found[1]).name} ({found[2]})"
    if found := _COLLECTING.match(line):
        return f"looking for {_URL.sub('<url>', found[1])}"
    if line.startswith("Installing collected packages"):
        return "installing"
    return None


def _command_line(command: Sequence[str]) -> str:
    return _URL.sub("<url>", " ".join(command))
