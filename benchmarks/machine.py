"""What the figures depend on besides the code: the machine, and the versions."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("tritonasync", "tritonclient", "grpcio", "protobuf", "numpy")


def machine() -> dict[str, str]:
    """Return facts of this machine by name."""
    load, _, _ = os.getloadavg()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _field("/proc/meminfo", "MemTotal") or "unknown",
        "load before": f"{load:.2f}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of what the session's own clients use."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _field(path: str, name: str) -> str:
    """Return the first value of a name in a file of ``name: value`` lines; empty if missing."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
