"""Finds digits in scenes, then reads each: ``python -m examples.read_digits``.

The crops of different scenes share batches of the classifier, although each scene has only a few.
The exit code is 1 if fewer than 85 % of the digits found are read right, or crops did not
share batches.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from itertools import islice
from pathlib import Path

from examples.demo import digits
from examples.demo.repository import MODELS, RUNTIME_PACKAGES, RUNTIME_PACKAGES_NO_DEPS
from examples.demo.scenes import scenes
from examples.read_digits.reading import Score, reader, score, total
from tritonasync import Progress, TritonPool
from tritonasync.serving import EmbeddedTriton

SCENES = 300
ACCURACY = 0.85


def bar(progress: Progress[int]) -> None:
    print(f"\r{progress.done} of {progress.total} scenes, {progress.rate:.0f}/s", end="")


async def read(pool: TritonPool, scenes_read: int = SCENES) -> tuple[Score, float]:
    """Return how right the readings of some scenes are, and the classifier's mean batch."""
    unseen = list(islice(scenes(digits.held_out(), seed=2024), scenes_read))
    images = [scene.image for scene in unseen]
    scores: list[Score] = []
    async with reader(pool).map(images, progress=bar).keyed() as readings:
        async for index, reading in readings:
            scores.append(score(unseen[index], reading))
    print()
    batching = {each.model: each for each in pool.statistics().batching}
    return total(scores), batching["digits"].mean_rows


async def main() -> bool:
    with tempfile.TemporaryDirectory(prefix="tritonasync-digits-") as folder:
        for model in ("digits", "scenes"):
            (Path(folder) / model).symlink_to(MODELS / model)
        server = EmbeddedTriton(
            folder, packages=RUNTIME_PACKAGES, packages_no_deps=RUNTIME_PACKAGES_NO_DEPS
        )
        async with server, TritonPool(server.grpc_url) as pool:
            result, mean_rows = await read(pool)
    print(f"{result.found} of {result.true} digits found, {result.accuracy:.1%} of them read right")
    print(f"{mean_rows:.1f} crops in a batch of the classifier, on average")
    return result.accuracy >= ACCURACY and mean_rows > 1


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main()) else 1)
