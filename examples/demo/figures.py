"""What the demo measures of the answers, in plain numpy.

Owns: the definitions. Refuses to know: where answers come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]  # [M, 4]: x1, y1, x2, y2
Ids = NDArray[np.int64]  # [M]


@dataclass(frozen=True, slots=True)
class Detection:
    """How detections agree with the truth.

    Attributes:
        found: Detections that are right: the right digit, and an IoU of 0.5 or more with it.
        given: Detections in all.
        true: Digits in all.
    """

    found: int = 0
    given: int = 0
    true: int = 0

    def __add__(self, other: Detection) -> Detection:
        return Detection(self.found + other.found, self.given + other.given, self.true + other.true)

    @property
    def precision(self) -> float:
        """Which part of the detections is right."""
        return self.found / self.given if self.given else 0.0

    @property
    def recall(self) -> float:
        """Which part of the digits was found."""
        return self.found / self.true if self.true else 0.0


def compare(
    boxes: Boxes, labels: Ids, true_boxes: Boxes, true_labels: Ids, *, min_iou: float = 0.5
) -> Detection:
    """Match the detections of one image, best first, each to a true box that is still free."""
    free = np.ones(len(true_boxes), bool)
    found = 0
    for box, label in zip(boxes, labels, strict=True):
        fit = np.where(free & (true_labels == label), _iou(box, true_boxes), 0)
        if fit.size and fit.max() >= min_iou:
            free[fit.argmax()] = False
            found += 1
    return Detection(found, len(boxes), len(true_boxes))


def _iou(box: NDArray[np.float32], others: Boxes) -> NDArray[np.float32]:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return shared / area


def nearest(vectors: NDArray[np.float32]) -> list[tuple[int, float]]:
    """Return, for each unit vector, which other one is most alike, and their cosine."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    best = cosines.argmax(axis=1)
    return [(int(other), float(cosines[row, other])) for row, other in enumerate(best)]
