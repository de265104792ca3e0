"""Which Python can hold the server's runtime.

Owns: asking an interpreter what it is, and choosing one. The python backend's stub is built for one
minor version each and loads ``libpython3.x.so.1.0``, so a usable interpreter is CPython 3.10 to
3.12 *with a shared libpython* (stubs exist up to 3.13, but numpy < 2 has no wheel for 3.13).

Refuses to know: virtual environments, pip, Triton.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tritonasync.core.errors import RuntimeSetupError

SUPPORTED: Final = ((3, 12), (3, 11), (3, 10))
"""Minor versions that have both a stub and a numpy < 2, the preferred one first."""

_QUESTION: Final = (
    "import json,sys,sysconfig as c;"
    "print(json.dumps([sys.implementation.name,list(sys.version_info[:2]),sys.base_prefix,"
    "c.get_config_var('LIBDIR') or '',c.get_config_var('MULTIARCH') or '']))"
)
_ANSWER_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A CPython that can hold a runtime.

    Attributes:
        executable: How to run it; may belong to a virtual environment.
        version: Major and minor version.
        base_prefix: The installation behind it, which a runtime made with it depends on.
        libpython: Its shared library, ``libpython3.x.so.1.0``.
    """

    executable: Path
    version: tuple[int, int]
    base_prefix: Path
    libpython: Path


def inspect_interpreter(executable: Path) -> Interpreter | None:
    """Ask ``executable`` what it is; ``None`` if it does not run or lacks a shared libpython.

    A version manager's shim that has nothing behind it counts as one that does not run.
    """
    if str(executable) == sys.executable:
        answer: object = _answer_of_this_one()
    else:
        answer = _ask(executable)
    match answer:
        case ["cpython", [int(major), int(minor)], str(base), str(libdir), str(multiarch)]:
            libpython = _find_libpython((major, minor), base, libdir, multiarch)
            if libpython is None:
                return None
            return Interpreter(executable, (major, minor), Path(base), libpython)
        case _:
            return None


def find_interpreter() -> Interpreter:
    """Return the interpreter to make a runtime with: the running one if it will do.

    Otherwise python3.12, 3.11 or 3.10 on PATH, then those of pyenv and uv.

    Raises:
        RuntimeSetupError: None was found; the message says what to install.
    """
    tried: list[str] = []
    for executable in _candidates():
        found = inspect_interpreter(executable)
        if found is not None and found.version in SUPPORTED:
            return found
        tried.append(str(executable))
    raise RuntimeSetupError(
        "Triton's Python backend needs CPython 3.10, 3.11 or 3.12 with a shared library "
        f"(libpython3.x.so.1.0), and none was found; tried {', '.join(tried) or 'nothing'}. "
        "Install one, for example `apt-get install python3.12 libpython3.12 python3.12-venv` or "
        "`PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.12`, or name a ready environment "
        "in TRITONASYNC_RUNTIME"
    )


def _candidates() -> Iterator[Path]:
    """Yield interpreters to try, the running one first, each once."""
    seen: set[Path] = set()
    for path in _all_candidates():
        if path not in seen and path.is_file():
            seen.add(path)
            yield path


def _all_candidates() -> Iterator[Path]:
    if sys.executable:
        yield Path(sys.executable)
    names = [f"python{major}.{minor}" for major, minor in SUPPORTED]
    for name in names:
        on_path = shutil.which(name)
        if on_path:
            yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or Path.home() / ".local/share/uv/python")
    for name in names:
        yield from sorted(pyenv.glob(f"*/bin/{name}"), reverse=True)
        yield from sorted(uv.glob(f"cpython-*/bin/{name}"), reverse=True)


def _answer_of_this_one() -> list[object]:
    return [
        sys.implementation.name,
        list(sys.version_info[:2]),
        sys.base_prefix,
        sysconfig.get_config_var("LIBDIR") or "",
        sysconfig.get_config_var("MULTIARCH") or "",
    ]


def _ask(executable: Path) -> object:
    try:
        done = subprocess.run(  # noqa: S603 - an interpreter found on this machine, fixed code
            [str(executable), "-I", "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ANSWER_TIMEOUT_S,
            check=True,
        )
        answer: object = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return answer


def _find_libpython(
    version: tuple[int, int], base: str, libdir: str, multiarch: str
) -> Path | None:
    """Return the shared library, looked for where builds really put it.

    ``Py_ENABLE_SHARED`` is not asked: Debian's is 0 beside a shared library of its own package, and
    relocatable builds report the LIBDIR of the machine that built them.
    """
    name = f"libpython{version[0]}.{version[1]}.so.1.0"
    folders = [Path(base) / "lib"]
    if libdir:
        folders.insert(0, Path(libdir))
    if multiarch:
        folders += [folder / multiarch for folder in tuple(folders)]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
