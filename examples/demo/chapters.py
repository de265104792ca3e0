"""The demo's four chapters: what a user of the SDK writes, and what comes back."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.demo import digits, figures
from examples.demo.load import calls_per_second
from examples.demo.report import Rate, Report
from examples.demo.scenes import Scene, scenes
from examples.demo.sentences import SENTENCES, partner
from tritonasync import Classifier, Detector, Encoder, TritonPool

SCENES = 200
SHOWN = (4, 3)  # scenes in the picture, across and down
ZOOM = 3
FRAME = [(3, 3), (3, 3), (0, 0)]  # white pixels around each: above, below; left, right; no colours
PICTURE = Path("demo-output") / "scenes.png"


def classifier(pool: TritonPool) -> Classifier:
    return pool.classifier("digits", labels=digits.CLASSES, activation="softmax")


def detector(pool: TritonPool) -> Detector:
    return pool.detector(
        "scenes", labels=digits.CLASSES, decode="yolov8", score_threshold=0.4, class_agnostic=True
    )


def encoder(pool: TritonPool) -> Encoder:
    return pool.encoder("sentences")


async def classify_digits(pool: TritonPool, report: Report) -> None:
    report.title("Digits: which one is it?")
    unseen = digits.held_out()
    answers = await classifier(pool)(unseen.images[:, None])

    right = answers.indices == unseen.labels
    report.line(f"{right.sum()} of {len(unseen)} held-out digits right")
    for row in np.flatnonzero(~right)[:5]:
        score = answers.scores[row].max()
        report.line(f"  a {unseen.labels[row]} was taken for a {answers.labels[row]} ({score:.0%})")
    report.figure("digits: accuracy", float(right.mean()), goal=0.97)


async def detect_in_scenes(pool: TritonPool, report: Report) -> None:
    report.title("Scenes: where are the digits?")
    unseen = list(islice(scenes(digits.held_out(), seed=2024), SCENES))
    answers = await detector(pool)([scene.image for scene in unseen])

    total = figures.Detection()
    for scene, found in zip(unseen, answers, strict=True):
        total += figures.compare(found.boxes, found.class_ids, scene.boxes, scene.labels)
    report.line(
        f"{total.found} of {total.true} digits found in {SCENES} scenes, "
        f"{total.given - total.found} false alarms"
    )
    report.figure("scenes: precision at IoU 0.5", total.precision, goal=0.90)
    report.figure("scenes: recall at IoU 0.5", total.recall, goal=0.90)
    await draw(detector(pool), unseen)
    report.line(f"the first {SHOWN[0] * SHOWN[1]}, with their boxes: {PICTURE}")


async def draw(handle: Detector, unseen: list[Scene]) -> None:
    """Save a picture of some scenes with boxes, enlarged: the handle takes images of any size."""
    across, down = SHOWN
    images = [scene.image.repeat(ZOOM, 0).repeat(ZOOM, 1) for scene in unseen[: across * down]]
    drawn = [
        np.pad(np.asarray(found.draw(image)), FRAME, constant_values=255)
        for image, found in zip(images, await handle(images), strict=True)
    ]
    rows = [np.hstack(drawn[start : start + across]) for start in range(0, len(drawn), across)]
    PICTURE.parent.mkdir(exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(PICTURE)


async def compare_sentences(pool: TritonPool, report: Report) -> None:
    report.title("Sentences: which two mean much the same?")
    vectors = await encoder(pool)(SENTENCES)

    right = 0
    for sentence, (other, cosine) in enumerate(figures.nearest(vectors)):
        right += other == partner(sentence)
        report.line(SENTENCES[sentence])
        report.line(f"    {cosine:.2f}  {SENTENCES[other]}")
    report.figure("sentences: nearest is on the same subject", right / len(SENTENCES), goal=0.9)


async def measure_rates(pool: TritonPool, report: Report) -> None:
    report.title("Rows a second")
    unseen = digits.held_out()
    images = [scene.image for scene in islice(scenes(unseen, seed=7), 64)]
    await measure("digits", classifier(pool), unseen.images[:256, None], report)
    await measure("scenes", detector(pool), images, report)
    await measure("sentences", encoder(pool), SENTENCES * 5, report)


async def measure(
    name: str, handle: Classifier | Detector | Encoder, batch: Any, report: Report
) -> None:
    """Ask for the rows of ``batch`` one by one, then for the whole batch again and again."""
    one_by_one = await calls_per_second(handle.one, batch, callers=32)
    batches = len(batch) * await calls_per_second(handle, [batch], callers=4)
    report.rates.append(Rate(name, one_by_one, batches))
    report.line(
        f"{name}: {one_by_one:,.0f} by 32 callers with one row each, "
        f"{batches:,.0f} by 4 callers with {len(batch)} each"
    )
