"""The environments that peers live in, made once under the user's cache folder.

Owns: what each peer needs, with pinned versions, and where it is kept. Refuses to know: what is
measured.

A peer that uses tritonclient gets the session's own tritonclient, grpcio, protobuf and numpy, so
that what is compared is the clients' code and not their transports; PyTriton is the exception,
since it refuses numpy 2. A change of any version makes another environment, and an environment
appears by one rename, so that an interrupted set-up leaves nothing that looks whole.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving import TritonRuntime, cache_folder
from tritonasync.serving.install import run_step
from tritonasync.serving.once import Progress, make_once

_MARKER = "environment.json"
_SHARED = ("tritonclient", "grpcio", "protobuf")


class EnvironmentMissingError(Exception):
    """A peer cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment.

    Attributes:
        name: Part of its folder's name.
        requirements: Pinned versions, as pip takes them.
        dependencies: Whether pip installs what they depend on as well.
    """

    name: str
    requirements: tuple[str, ...]
    dependencies: bool = True

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        key = json.dumps([sys.version, sys.base_prefix, *self.requirements, self.dependencies])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        python = f"py{sys.version_info.major}{sys.version_info.minor}"
        return cache_folder() / "bench" / f"{self.name}-{python}-{digest}"

    def ensure(self, progress: Progress) -> Path:
        """Return its folder, made if need be.

        Raises:
            EnvironmentMissingError: It cannot be made.
        """
        folder = self.folder
        try:
            make_once(folder, partial(self._make, progress), usable=_usable, progress=progress)
        except (RuntimeSetupError, OSError) as error:
            last = str(error).strip().splitlines()[-1]
            raise EnvironmentMissingError(
                f"its environment ({', '.join(self.requirements)}) cannot be made: {last}"
            ) from error
        return folder

    def _make(self, progress: Progress, folder: Path, lock_fd: int) -> None:
        progress(f"making the environment of {self.name}: {', '.join(self.requirements)}")
        python = str(folder / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
        # A source build would need compilers, and could take longer than the benchmark.
        pip += ["--only-binary", ":all:", *(() if self.dependencies else ("--no-deps",))]
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [*pip, *self.requirements],
        ):
            run_step(command, lock_fd=lock_fd, progress=_silent)
        (folder / _MARKER).write_text(json.dumps(self.requirements))


def around_tritonclient(name: str, *requirements: str) -> Environment:
    """Return an environment with the session's own tritonclient and numpy."""
    pins = [f"{package}=={version(package)}" for package in (*_SHARED, "numpy")]
    pins[0] = pins[0].replace("tritonclient", "tritonclient[grpc]")
    return Environment(name, (*requirements, *pins))


def pytriton() -> Environment:
    """Return PyTriton's: numpy < 2, the rest of the session's versions."""
    pins = [f"{package}=={version(package)}" for package in _SHARED]
    pins[0] = pins[0].replace("tritonclient", "tritonclient[grpc]")
    return Environment("pytriton", ("nvidia-pytriton==0.7.0", "numpy==1.26.4", *pins))


def perf_analyzer() -> Environment:
    """Return the environment whose wheel carries NVIDIA's C++ load generator."""
    return Environment("perf_analyzer", ("tritonclient==2.50.0",), dependencies=False)


def load_generator(
    runtime: TritonRuntime, libraries: Path, progress: Progress
) -> tuple[Path, dict[str, str]]:
    """Return the load generator's binary and the variables that it runs with.

    Args:
        runtime: The server's; its wheel has the two shared libraries that the binary wants.
        libraries: A folder to put links to them into.
        progress: Told what is made.

    Raises:
        EnvironmentMissingError: It cannot be installed, or does not run.
    """
    binary = perf_analyzer().ensure(progress) / "bin" / "perf_analyzer"
    _link_libraries(runtime, libraries)
    variables = {"LD_LIBRARY_PATH": str(libraries)}
    try:
        done = subprocess.run(
            [binary, "--version"], env=variables, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise EnvironmentMissingError(f"{binary.name} does not run: {error}") from error
    if done.returncode != 0:
        raise EnvironmentMissingError(f"{binary.name} does not run: {done.stderr.strip()[-300:]}")
    return binary, variables


def _link_libraries(runtime: TritonRuntime, folder: Path) -> None:
    """Link the libraries under the names that the binary asks for; the wheel's carry a hash."""
    packages = runtime.tritonserver.parents[3]
    for pattern, wanted in (
        ("libb64-*.so.0d", "libb64.so.0d"),
        ("libcudart-*.so.12*", "libcudart.so.12"),
    ):
        for found in packages.glob(f"nvidia_pytriton.libs/{pattern}"):
            (folder / wanted).unlink(missing_ok=True)
            (folder / wanted).symlink_to(found)


def _usable(folder: Path) -> bool:
    """Whether it is there, with the interpreter that it was made with."""
    return (folder / _MARKER).is_file() and (folder / "bin" / "python").exists()


def _silent(_: str) -> None:
    """Leave out what pip says: one line for each environment is enough."""
