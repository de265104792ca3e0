"""Models with a backend in C, made for a run: where a model in Python would be the limit.

Owns: what is compiled, and the folders that a server wants. Refuses to know: what is measured.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "backends"
MODELS = frozenset({"burst", "echo"})


class NotCompiledError(Exception):
    """A model cannot be made here; the message says why."""


def make(model: str, repository: Path) -> None:
    """Compile a model's backend, and put it into a model repository.

    Raises:
        NotCompiledError: There is no C compiler, or it refuses.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotCompiledError(f"model {model} needs a C compiler, and there is no cc")
    source, folder = SOURCES / model, repository / model
    (folder / "1").mkdir(parents=True)
    shutil.copy(source / "config.pbtxt", folder)
    library = folder / f"libtriton_{model}.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", library, source / f"{model}.c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotCompiledError(f"model {model} does not compile: {done.stderr.strip()[-300:]}")
