"""What must hold before a server is started: a stub that loads, and numpy below 2.

Owns: the environment that the server and its stubs run in, and the two checks. Refuses to know:
flags, ports, models.

Both faults are silent otherwise, seen on Triton 2.51: with a shared library missing, a model's load
hangs for ever; with numpy 2, models receive empty or constant tensors.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving.paths import TritonRuntime

_TIMEOUT_S: Final = 20.0
_STUB_NAME: Final = "triton_python_backend_stub"
_STUB_LOADS: Final = b"Expected 9 arguments"
"""What the stub says, with exit code 1, when it has loaded and is called without arguments."""

_NUMPY_QUESTION: Final = "import numpy; print(numpy.__version__)"
_PYTHON_VARIABLES: Final = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True, slots=True)
class Launchpad:
    """A folder laid out for one start of the server.

    Attributes:
        backends: The value of ``--backend-directory``.
        environment: The variables of the server's process.
    """

    backends: Path
    environment: dict[str, str]


def lay_out(runtime: TritonRuntime, folder: Path, variables: Mapping[str, str]) -> Launchpad:
    """Arrange ``folder`` so that ``runtime`` can be started from it.

    The wheel keeps stubs and backend apart, but the backend looks for the stub beside itself, hence
    a folder of *symlinks*: a copied stub would lose the libraries it finds through ``$ORIGIN``.
    libpython is given in a folder of its own, since an interpreter's ``lib`` may hold other
    libraries (conda: libstdc++, libssl) that the server must not load.

    Args:
        runtime: What to start.
        folder: An existing folder of this server's own.
        variables: Added to the environment, last.
    """
    environment = {k: v for k, v in os.environ.items() if k not in _PYTHON_VARIABLES}
    if runtime.stub is None or runtime.python is None or runtime.libpython is None:
        return Launchpad(runtime.backends, {**environment, **variables})
    python_backend = folder / "backends" / "python"
    libraries = folder / "lib"
    python_backend.mkdir(parents=True)
    libraries.mkdir()
    for file in (runtime.backends / "python").iterdir():
        if file.is_file():
            (python_backend / file.name).symlink_to(file)
    (python_backend / _STUB_NAME).symlink_to(runtime.stub)
    (libraries / runtime.libpython.name).symlink_to(runtime.libpython)
    # The stub takes its packages from the python3 first on PATH.
    environment["PATH"] = _prepended(runtime.python.parent, environment.get("PATH"))
    environment["LD_LIBRARY_PATH"] = _prepended(libraries, environment.get("LD_LIBRARY_PATH"))
    return Launchpad(python_backend.parent, {**environment, **variables})


def check_launchpad(runtime: TritonRuntime, launchpad: Launchpad) -> None:
    """Raise unless the stub loads and sees a numpy below 2; takes about 0.1 s.

    An installed Triton is not checked: its stub and numpy are its own affair.

    Raises:
        RuntimeSetupError: The stub does not load, or numpy is missing or 2.
    """
    if runtime.stub is None or runtime.python is None:
        return
    _check_stub(launchpad)
    _check_numpy(runtime.python, launchpad)


def check_environment(runtime: TritonRuntime) -> None:
    """Check a runtime as it would be started, leaving nothing behind.

    Raises:
        RuntimeSetupError: As :func:`check_launchpad`.
    """
    with tempfile.TemporaryDirectory(prefix="tritonasync-") as folder:
        check_launchpad(runtime, lay_out(runtime, Path(folder), {}))


def _check_stub(launchpad: Launchpad) -> None:
    stub = launchpad.backends / "python" / _STUB_NAME
    if not stub.exists():
        raise RuntimeSetupError(f"the runtime has no stub for its Python: {stub.readlink()}")
    code, output = _run([str(stub)], launchpad)
    if code != 1 or _STUB_LOADS not in output:
        raise RuntimeSetupError(
            f"Triton's Python stub does not load (exit code {code}); a model would hang at its "
            f"load: {output.decode(errors='replace').strip()}"
        )


def _check_numpy(python: Path, launchpad: Launchpad) -> None:
    code, output = _run([str(python), "-c", _NUMPY_QUESTION], launchpad)
    version = output.decode(errors="replace").strip()
    if code != 0:
        raise RuntimeSetupError(f"the runtime at {python} cannot import numpy: {version}")
    if int(version.split(".")[0]) >= 2:
        raise RuntimeSetupError(
            f"the runtime at {python} has numpy {version}; with numpy 2 this Triton hands empty or "
            "constant tensors to models. Install 'numpy<2' there"
        )


def _run(command: list[str], launchpad: Launchpad) -> tuple[int, bytes]:
    try:
        done = subprocess.run(  # noqa: S603 - files of the runtime itself
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=launchpad.environment,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeSetupError(f"cannot check the runtime: {error}") from error
    return done.returncode, done.stdout


def _prepended(folder: Path, rest: str | None) -> str:
    return f"{folder}{os.pathsep}{rest}" if rest else str(folder)
