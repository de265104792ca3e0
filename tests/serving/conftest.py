"""A scripted pip, put in pip's place by PYTHONPATH, so that everything above it runs for real.

And small model repositories, since a server with one model starts in half a second.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving.interpreter import find_interpreter

# What it installs looks like the real wheel: a stub that answers as the real one, and a numpy.
PIP = """
import os, sys, time
from pathlib import Path

folder = Path(os.environ["FAKE_PIP"])
with (folder / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
behaviour = (folder / "behaviour").read_text().split()
if "fail" in behaviour:
    print("Looking in indexes: https://user:secret@host.example/simple")
    print("Collecting nvidia-pytriton==0.7.0")
    print("ERROR: No matching distribution found")
    sys.exit(1)
environment = Path(sys.argv[sys.argv.index("--python") + 1]).parents[1]
(site,) = environment.glob("lib/python3.*/site-packages")
server = site / "pytriton" / "tritonserver"
if "--constraint" not in sys.argv:
    minor = site.parent.name.removeprefix("python")
    programs = {
        server / "bin" / "tritonserver": "exit 0",
        server / "python_backend_stubs" / minor / "triton_python_backend_stub":
            "echo 'Expected 9 arguments, found 1 arguments.'; exit 1",
    }
    for path, body in programs.items():
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\\n" + body + "\\n")
        path.chmod(0o755)
    (server / "backends" / "python").mkdir(parents=True)
    (server / "backends" / "python" / "libtriton_python.so").touch()
    (site / "numpy").mkdir()
if "hang" in behaviour:
    (folder / "hung").write_text(str(os.getpid()))
    time.sleep(60)
version = "2.1.0" if "numpy2" in behaviour else "1.26.4"
(site / "numpy" / "__init__.py").write_text(f"__version__ = {version!r}")
print("Collecting nvidia-pytriton==0.7.0")
print("  Downloading https://host.example/nvidia_pytriton-0.7.0-x86_64.whl (55.4 MB)")
print("Installing collected packages: numpy")
"""

MAKER = """
import json, sys
from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving import ensure_runtime

try:
    runtime = ensure_runtime(sys.argv[1:])
except RuntimeSetupError as error:
    sys.exit(f"refused: {error}")
print(runtime.tritonserver)
"""


@dataclass(frozen=True)
class FakePip:
    """Drives the scripted pip and the programs that use it."""

    folder: Path
    cache: Path
    environment: dict[str, str]

    def behave(self, *how: str) -> None:
        """Choose from ``fail``, ``hang``, ``numpy2``; nothing to install as asked."""
        (self.folder / "behaviour").write_text(" ".join(how))

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def start_maker(self, *packages: str) -> subprocess.Popen[str]:
        """Start a process that makes a runtime and prints where it is."""
        return subprocess.Popen(
            [sys.executable, "-c", MAKER, *packages],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def runtimes(self) -> list[str]:
        return sorted(path.name for path in (self.cache / "runtimes").glob("*") if path.is_dir())


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePip]:
    package = tmp_path / "fake" / "pip"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PIP)
    for name, value in {
        "FAKE_PIP": str(tmp_path),
        "PYTHONPATH": str(package.parent),
        "TRITONASYNC_CACHE": str(tmp_path / "cache"),
        "PATH": os.pathsep.join(_path_without_triton()),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRITONASYNC_RUNTIME", raising=False)
    try:
        find_interpreter()
    except RuntimeSetupError as error:
        pytest.skip(str(error))
    pip = FakePip(tmp_path, tmp_path / "cache", dict(os.environ))
    pip.behave()
    yield pip
    hung = tmp_path / "hung"
    if hung.exists():
        with suppress(ProcessLookupError):
            os.kill(int(hung.read_text()), signal.SIGKILL)


def _path_without_triton() -> list[str]:
    folders = os.environ["PATH"].split(os.pathsep)
    return [folder for folder in folders if not Path(folder, "tritonserver").exists()]


CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


@pytest.fixture
def repository_of(tmp_path: Path) -> Callable[[str], Path]:
    """Make a repository of one model, ``probe``, whose ``initialize`` has the given body."""

    def make(body: str) -> Path:
        version = tmp_path / "repository" / "probe" / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(CONFIG)
        (version / "model.py").write_text(
            "import os, time\n\n\nclass TritonPythonModel:\n"
            f"    def initialize(self, args):\n        {body}\n"
        )
        return tmp_path / "repository"

    return make
