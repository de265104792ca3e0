"""Finds the digits of a scene, then reads each: two models, one pipeline.

Owns: the pipeline, and how right it is. Refuses to know: servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.demo.digits import CLASSES
from examples.demo.scenes import Scene
from tritonasync import Classification, Detections, Pipeline, TritonPool

Image = NDArray[np.uint8]
Reading = tuple[Detections, list[Classification]]
"""Where the digits of a scene are, and what each is."""

OVERLAP = 0.5
"""A box that shares so much with a true one, of both together, has found it."""


def cut(found: tuple[Image, Detections]) -> list[Image]:
    """Return the digits alone, paper black and ink white, as the classifier knows them."""
    image, boxes = found
    return [stretched(crop) for crop in boxes.crops(image)]


def stretched(crop: Image) -> Image:
    """Return a crop whose darkest quarter is black and whose brightest pixels are white."""
    dark, bright = np.percentile(crop, (25, 98))
    return ((crop - dark) / max(bright - dark, 1) * 255).clip(0, 255).astype(np.uint8)


def reader(pool: TritonPool) -> Pipeline[Image, Reading]:
    """Return the pipeline: an image goes in, boxes and readings come out."""
    scenes = pool.detector(
        "scenes", labels=CLASSES, decode="yolov8", score_threshold=0.4, class_agnostic=True
    )
    digits = pool.classifier(
        "digits", labels=CLASSES, resize="letterbox", pad_value=0, antialias=True
    )
    read = Pipeline(cut).each(digits)
    return Pipeline[Image, Detections](scenes).with_input().then(read.with_input()).then(flat)


def flat(read: tuple[tuple[Image, Detections], list[Classification]]) -> Reading:
    """Return boxes and readings without the image that they are of."""
    (_, boxes), readings = read
    return boxes, readings


@dataclass(frozen=True, slots=True)
class Score:
    """How many digits there are, how many were found, and how many of these were read right."""

    true: int = 0
    found: int = 0
    right: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.true + other.true, self.found + other.found, self.right + other.right)

    @property
    def accuracy(self) -> float:
        """How many of the digits that were found were read right."""
        return self.right / max(1, self.found)


def score(scene: Scene, reading: Reading) -> Score:
    """Return how right the reading of a scene is."""
    boxes, readings = reading
    found = right = 0
    for box, label in zip(scene.boxes, scene.labels, strict=True):
        best = nearest(box, boxes.boxes)
        if best is not None:
            found += 1
            right += readings[best].index == label
    return Score(len(scene.labels), found, right)


def nearest(box: NDArray[np.float32], others: NDArray[np.float32]) -> int | None:
    """Return which box overlaps most with a box; ``None`` if none overlaps enough."""
    if not len(others):
        return None
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    overlap = shared / (areas - shared)
    best = int(overlap.argmax())
    return best if overlap[best] >= OVERLAP else None


def total(scores: Sequence[Score]) -> Score:
    """Return the sum."""
    return sum(scores, Score())
