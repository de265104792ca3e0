"""Boxes in images: forms, overlap, suppression of near-duplicates.

Owns: the geometry. A box is four float32 numbers in pixels. ``xyxy`` is left, top, right, bottom on
the *edges* of pixels, so that an image of width W spans 0 to W; ``cxcywh`` is centre and size.

Refuses to know: models, images, thresholds of anybody's choosing.

Invariants: arguments are left alone; a box whose right is left of its left has no area.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.values import Array

Boxes: TypeAlias = npt.NDArray[np.float32]
"""``[..., 4]``, xyxy unless said otherwise."""

Floats: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.int64]


def cxcywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Return boxes ``[..., 4]`` given by centre and size as left, top, right, bottom."""
    centre = boxes[..., :2]
    half = boxes[..., 2:] * np.float32(0.5)
    near: Boxes = np.subtract(centre, half)
    far: Boxes = np.add(centre, half)
    return np.concatenate((near, far), axis=-1)


def xyxy_to_cxcywh(boxes: Boxes) -> Boxes:
    """Return boxes ``[..., 4]`` given by left, top, right, bottom as centre and size."""
    near, far = boxes[..., :2], boxes[..., 2:]
    centre: Boxes = np.add(near, far) * np.float32(0.5)
    size: Boxes = np.subtract(far, near)
    return np.concatenate((centre, size), axis=-1)


def clip(boxes: Boxes, height: int, width: int) -> Boxes:
    """Return xyxy boxes ``[..., 4]`` cut to an image of ``height`` and ``width`` pixels."""
    limit = np.array([width, height, width, height], np.float32)
    clipped: Boxes = np.clip(boxes, 0, limit)
    return clipped


def area(boxes: Boxes) -> Floats:
    """Return the areas ``[...]`` of xyxy boxes ``[..., 4]``, in square pixels."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    pixels: Floats = np.maximum(width, 0) * np.maximum(height, 0)
    return pixels


def iou_matrix(first: Boxes, second: Boxes) -> Floats:
    """Return intersection over union ``[A, B]`` of xyxy boxes ``[A, 4]`` and ``[B, 4]``.

    Two boxes without any area between them have an overlap of 0.
    """
    return _overlap(first[:, None], area(first)[:, None], second[None], area(second)[None])


def _overlap(first: Boxes, first_area: Floats, second: Boxes, second_area: Floats) -> Floats:
    """Return the overlap of boxes ``[..., 4]`` that broadcast against each other."""
    right = np.minimum(first[..., 2], second[..., 2])
    bottom = np.minimum(first[..., 3], second[..., 3])
    width = right - np.maximum(first[..., 0], second[..., 0])
    height = bottom - np.maximum(first[..., 1], second[..., 1])
    shared: Floats = np.maximum(width, 0) * np.maximum(height, 0)
    union: Floats = first_area + second_area - shared
    shared /= np.where(union > 0, union, np.float32(1))
    return shared


def suppress(
    boxes: Boxes,
    scores: Floats,
    class_ids: Array | None = None,
    *,
    iou_threshold: float,
    limit: int | None = None,
) -> Indices:
    """Return which boxes to keep: greedy non-maximum suppression, best score first.

    A box goes when it overlaps a better box that stays by more than ``iou_threshold``. Memory and
    each step are linear in the number of boxes, and there is one step per box *kept*.

    Args:
        boxes: xyxy ``[K, 4]``.
        scores: ``[K]``, without NaN; of equal scores the earlier box is the better.
        class_ids: ``[K]``; only boxes of one class suppress each other. ``None``: all do.
        iou_threshold: The overlap that two kept boxes (of a class) may have.
        limit: Stop after so many.

    Returns:
        Indices into ``boxes``, in falling order of score.
    """
    waiting = np.argsort(-scores, kind="stable")
    areas = area(boxes)
    kept: list[int] = []
    while waiting.size and (limit is None or len(kept) < limit):
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        overlap = _overlap(boxes[best], areas[best], boxes[waiting], areas[waiting])
        clash = overlap > iou_threshold
        if class_ids is not None:
            clash &= class_ids[waiting] == class_ids[best]
        waiting = waiting[~clash]
    return np.array(kept, dtype=np.int64)
