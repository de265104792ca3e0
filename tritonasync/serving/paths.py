"""Where the parts of a server lie on this machine: the names of these places, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TritonRuntime:
    """The files that a running server consists of.

    Attributes:
        tritonserver: The server's binary.
        caches: The folder of its response caches.
        backends: The folder of its backends; of the wheel's, only ``python`` is there.
        stub: The python backend's stub for :attr:`python`; ``None`` for an installed Triton, whose
            own layout has it.
        python: The interpreter of the environment whose packages the models see; ``None`` for an
            installed Triton, which takes the ``python3`` on PATH.
        libpython: The shared library that the stub must load; ``None`` for an installed Triton.
    """

    tritonserver: Path
    caches: Path
    backends: Path
    stub: Path | None = None
    python: Path | None = None
    libpython: Path | None = None
