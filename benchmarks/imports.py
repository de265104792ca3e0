"""What ``import tritonasync`` costs over the imports that it cannot do without."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.samples import Figure

OURS = "from tritonasync import TritonPool"
THEIRS = "import grpc.aio, tritonclient.grpc.service_pb2"


def run(*, quick: bool) -> list[Figure]:
    """Time both imports in fresh interpreters, in turn."""
    rounds = 5 if quick else 15
    for statement in (OURS, THEIRS):  # byte code and file caches
        _import_ms(statement)
    pairs = [(_import_ms(OURS), _import_ms(THEIRS)) for _ in range(rounds)]
    ours, theirs = zip(*pairs, strict=True)
    return [Figure("import TritonPool / grpc.aio + messages", "ms", ours, theirs, 1.5)]


def _import_ms(statement: str) -> float:
    code = (
        "import time; began = time.perf_counter()\n"
        f"{statement}\n"
        "print((time.perf_counter() - began) * 1e3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)
