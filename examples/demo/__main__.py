"""Three real models behind a real Triton server, on this machine: ``python -m examples.demo``.

Starts the server with a classifier, a detector and a sentence encoder, calls each through a
:class:`~tritonasync.TritonPool`, and says what came back. The exit code is 1 if a goal is missed
and 130 after Ctrl-C.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from examples.demo.chapters import (
    classify_digits,
    compare_sentences,
    detect_in_scenes,
    measure_rates,
)
from examples.demo.report import Report
from examples.demo.repository import (
    RUNTIME_PACKAGES,
    RUNTIME_PACKAGES_NO_DEPS,
    write_repository,
)
from tritonasync import TritonPool
from tritonasync.serving import EmbeddedTriton


async def demo(folder: Path) -> bool:
    """Run the demo with its model repository in ``folder``; return whether every goal was met."""
    report = Report()
    report.step("building the sentence encoder from its weights")
    server = EmbeddedTriton(
        await asyncio.to_thread(write_repository, folder),
        packages=RUNTIME_PACKAGES,
        packages_no_deps=RUNTIME_PACKAGES_NO_DEPS,
        progress=report.step,
    )
    async with server, TritonPool(server.grpc_url) as pool:
        report.step("Triton is ready")
        await classify_digits(pool, report)
        await detect_in_scenes(pool, report)
        await compare_sentences(pool, report)
        await measure_rates(pool, report)
    return report.finish()


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tritonasync-demo-") as folder:
        try:
            return 0 if asyncio.run(demo(Path(folder))) else 1
        except KeyboardInterrupt:
            print("\nstopped")
            return 130


if __name__ == "__main__":
    sys.exit(main())
