"""What ``import tritonasync`` costs over the imports that it cannot do without."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from benchmarks.samples import Figure

OURS = "from tritonasync import TritonPool"
THEIRS = "import grpc.aio, tritonclient.grpc.service_pb2"


def run(*, quick: bool) -> list[Figure]:
    """Time both imports in fresh interpreters, in turn."""
    rounds = 5 if quick else 15
    with tempfile.TemporaryDirectory() as byte_code:
        for statement in (OURS, THEIRS):  # compiles both: an installed package has its byte code
            _import_ms(statement, byte_code)
        pairs = [
            (_import_ms(OURS, byte_code), _import_ms(THEIRS, byte_code)) for _ in range(rounds)
        ]
    ours, theirs = zip(*pairs, strict=True)
    return [Figure("import TritonPool / grpc.aio + messages", "ms", ours, theirs, 1.5)]


def _import_ms(statement: str, byte_code: str) -> float:
    code = (
        "import time; began = time.perf_counter()\n"
        f"{statement}\n"
        "print((time.perf_counter() - began) * 1e3)"
    )
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": byte_code}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return float(done.stdout)
