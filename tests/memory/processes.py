"""Other processes with shared memory in a folder, told what to do by lines."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

PATIENCE_S = 60.0

SETUP = """
import os, sys, signal, threading
import numpy as np
from pathlib import Path
from tritonasync.memory.guard import guard_of
from tritonasync.memory.janitor import is_dead, sweep
from tritonasync.memory.system import SystemMemory
folder = Path(sys.argv[1])
memory = SystemMemory(folder)
def say(*words): print(*words, flush=True)
def view(region): return region.view(0, (4,), np.dtype("u1"), None, writable=True)
"""


def run(code: str, folder: Path, *, exit_code: int = 0, script: Path | None = None) -> list[str]:
    """Run code in a process of its own, from a file if given one; return the words it said."""
    code = SETUP + dedent(code)
    how = ["-c", code]
    if script is not None:
        script.write_text(code)
        how = [str(script)]
    done = subprocess.run(
        [sys.executable, "-Werror", *how, str(folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == exit_code, done.stderr
    return done.stdout.split()


@contextlib.contextmanager
def living(code: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run code in a process that lives until it is killed; give what it said at first."""
    process = subprocess.Popen(
        [sys.executable, "-c", SETUP + dedent(code) + "\nsys.stdin.read()", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        yield process, process.stdout.readline().split()
    finally:
        process.kill()
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def descriptors() -> int:
    """Return how many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
