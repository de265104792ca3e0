"""Where the real tritonserver is: found here, or made once under the user's cache folder.

Owns: the order of the places looked at, what a usable runtime consists of, and the key under which
a made one is kept. Refuses to know: starting the server, and how an environment is filled.

The made runtime is a virtual environment of its own, never the user's: the wheel pins numpy < 2.
Its key is the server's version, the interpreter behind it, and every extra package, so that two
projects with different models do not disturb each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving.command import as_strings
from tritonasync.serving.install import NUMPY, SERVER_PACKAGE, Contents, fill_environment
from tritonasync.serving.interpreter import Interpreter, find_interpreter, inspect_interpreter
from tritonasync.serving.once import Cancelled, Progress, make_once, never_cancelled
from tritonasync.serving.paths import TritonRuntime
from tritonasync.serving.preflight import check_environment

RUNTIME_VARIABLE: Final = "TRITONASYNC_RUNTIME"
"""Names a runtime to use: an environment with the wheel, or a tritonserver installation."""

CACHE_VARIABLE: Final = "TRITONASYNC_CACHE"
"""Where runtimes are kept; otherwise ``$XDG_CACHE_HOME/tritonasync``, ``~/.cache/tritonasync``."""

_GLIBC: Final = (2, 35)
_MARKER: Final = "runtime.json"
_WHEEL_PATH: Final = Path("pytriton", "tritonserver")


def ensure_runtime(
    packages: Sequence[str] = (),
    *,
    packages_no_deps: Sequence[str] = (),
    runtime: TritonRuntime | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled = never_cancelled,
) -> TritonRuntime:
    """Return a usable runtime; make one if there is none, which takes seconds to minutes.

    Looked at, in this order: ``runtime``; the variable ``TRITONASYNC_RUNTIME``; a ``tritonserver``
    on PATH (unless packages are asked for, which could not be added to it); the cache. A runtime
    that was named is taken as it is: packages are not installed into it.

    Args:
        packages: Requirements that the models import, such as ``"onnxruntime==1.31.*"``. numpy
            stays below 2 whatever they ask for.
        packages_no_deps: The same, installed without their dependencies.
        runtime: One to use: an environment folder, a tritonserver installation, its binary, or a
            result of this function.
        progress: Told in lines what goes on; ``None`` writes them to standard error.
        cancelled: Asked now and then whether to give up.

    Raises:
        RuntimeSetupError: None could be found or made; the message says what to do.
        ConfigurationError: ``packages`` is one string.
    """
    if isinstance(runtime, TritonRuntime):
        return runtime
    named = runtime or os.environ.get(RUNTIME_VARIABLE)
    if named:
        return locate_runtime(Path(named))
    contents = Contents(as_strings(packages), as_strings(packages_no_deps))
    on_path = shutil.which("tritonserver")
    if on_path and contents == Contents():
        return locate_runtime(Path(on_path))
    return _cached_runtime(contents, progress or print_progress, cancelled)


def locate_runtime(path: Path) -> TritonRuntime:
    """Return the runtime at ``path``: an environment, an installation, or a binary in either.

    Raises:
        RuntimeSetupError: There is no tritonserver there, or it lacks its parts.
    """
    if not path.exists():
        raise RuntimeSetupError(f"no runtime at {path}: the path does not exist")
    if path.is_file():
        path = path.resolve().parent.parent
    inside = sorted(path.glob(f"lib/python3.*/site-packages/{_WHEEL_PATH}"))
    home = inside[-1] if inside else path
    if not (home / "bin" / "tritonserver").is_file():
        raise RuntimeSetupError(
            f"no tritonserver at {path}: expected bin/tritonserver, or an environment with "
            f"{SERVER_PACKAGE} installed"
        )
    if (home / "python_backend_stubs").is_dir():
        return _wheel_runtime(home)
    return TritonRuntime(home / "bin" / "tritonserver", home / "caches", home / "backends")


def cache_folder() -> Path:
    """Return the folder that runtimes are kept under; it need not exist."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG base directory specification: a relative path is invalid and to be ignored.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "tritonasync"


def print_progress(line: str) -> None:
    """Write one line to standard error, at once."""
    print(f"tritonasync: {line}", file=sys.stderr, flush=True)  # noqa: T201 - the default reporter


def _wheel_runtime(home: Path) -> TritonRuntime:
    """Put together the runtime of the wheel at ``…/site-packages/pytriton/tritonserver``."""
    environment = home.parents[4]
    python = environment / "bin" / "python3"
    interpreter = inspect_interpreter(python)
    if interpreter is None:
        raise RuntimeSetupError(
            f"{python} does not run, or its CPython has no shared library; Triton's Python "
            "backend needs both"
        )
    stub = home / "python_backend_stubs" / "{}.{}".format(*interpreter.version)
    return TritonRuntime(
        tritonserver=home / "bin" / "tritonserver",
        caches=home / "caches",
        backends=home / "backends",
        stub=stub / "triton_python_backend_stub",
        python=python,
        libpython=interpreter.libpython,
    )


def _cached_runtime(contents: Contents, progress: Progress, cancelled: Cancelled) -> TritonRuntime:
    _check_platform()
    interpreter = find_interpreter()
    key = _Key(SERVER_PACKAGE, NUMPY, interpreter, contents)
    target = cache_folder() / "runtimes" / key.folder_name()

    def make(folder: Path, lock_fd: int) -> None:
        progress(f"setting up the Triton runtime in {target} (once; about 250 MB)")
        fill_environment(
            folder, interpreter, contents, lock_fd=lock_fd, progress=progress, cancelled=cancelled
        )
        made = locate_runtime(folder)
        check_environment(made)
        (folder / _MARKER).write_text(key.to_json())
        progress("the Triton runtime is ready")

    make_once(target, make, usable=_usable, progress=progress, cancelled=cancelled)
    return locate_runtime(target)


def _usable(target: Path) -> bool:
    """Whether a made runtime still has the interpreter that it was made with."""
    return (target / _MARKER).is_file() and (target / "bin" / "python3").exists()


@dataclass(frozen=True, slots=True)
class _Key:
    """All that makes one runtime differ from another."""

    server: str
    numpy: str
    interpreter: Interpreter
    contents: Contents

    def to_json(self) -> str:
        fields = {
            "server": self.server,
            "numpy": self.numpy,
            "python": "{}.{}".format(*self.interpreter.version),
            "base_prefix": str(self.interpreter.base_prefix),
            "libpython": str(self.interpreter.libpython),
            **{name: sorted(values) for name, values in asdict(self.contents).items()},
        }
        return json.dumps(fields, indent=1, sort_keys=True)

    def folder_name(self) -> str:
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:16]
        return "py{}{}-{}".format(*self.interpreter.version, digest)


def _check_platform() -> None:
    """Refuse early where the wheel cannot be installed or run.

    Raises:
        RuntimeSetupError: Not Linux on x86-64 with glibc 2.35 or later.
    """
    machine, system = platform.machine(), platform.system()
    if (system, machine) != ("Linux", "x86_64"):
        raise RuntimeSetupError(
            f"the packaged tritonserver runs on Linux x86-64, and this is {system} {machine}; "
            f"connect to a server elsewhere, or name one in {RUNTIME_VARIABLE}"
        )
    library, version = platform.libc_ver()
    if library != "glibc" or _version(version) < _GLIBC:
        raise RuntimeSetupError(
            f"the packaged tritonserver needs glibc 2.35 or later (Ubuntu 22.04, Debian 12), and "
            f"this is {library or 'another libc'} {version}; name one in {RUNTIME_VARIABLE}"
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
