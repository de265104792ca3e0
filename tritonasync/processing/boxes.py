"""Boxes in images: forms, overlap, suppression of near-duplicates.

Owns: the geometry. A box is four float32 numbers in pixels. ``xyxy`` is left, top, right, bottom on
the *edges* of pixels, so that an image of width W spans 0 to W; ``cxcywh`` is centre and size.

Refuses to know: models, images, thresholds of anybody's choosing.

Invariants: arguments are left alone; a box whose right is left of its left has no area.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.values import Array

Boxes: TypeAlias = npt.NDArray[np.float32]
"""``[..., 4]``, xyxy unless said otherwise."""

_TINY: Final = np.float32(np.finfo(np.float32).tiny)
"""In place of a union of 0: nothing is shared then, and 0 / 0 is to be 0."""

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
    shared = _extent(first, second, 0)
    shared *= _extent(first, second, 1)
    union = np.asarray(np.add(first_area, second_area))
    union -= shared
    shared /= np.maximum(union, _TINY, out=union)
    return shared


def _extent(first: Boxes, second: Boxes, axis: int) -> Floats:
    """Return how far boxes overlap along an axis: 0 is x, 1 is y."""
    extent: Floats = np.asarray(np.minimum(first[..., axis + 2], second[..., axis + 2]))
    extent -= np.maximum(first[..., axis], second[..., axis])
    return np.maximum(extent, 0, out=extent)


def suppress(
    boxes: Boxes,
    scores: Floats,
    class_ids: Array | None = None,
    *,
    iou_threshold: float,
    limit: int | None = None,
) -> Indices:
    """Return which boxes to keep: greedy non-maximum suppression, best score first.

    A box goes when it overlaps a better box that stays by more than ``iou_threshold``. Boxes are
    settled in blocks, best first, so that memory is linear in their number and nothing is computed
    for boxes that are gone. Measured on one core: 0.1 ms for 300 boxes around 30 objects, 1 ms for
    3,000 around 50, 4 ms for 3,000 of which 300 stay.

    Args:
        boxes: xyxy ``[K, 4]``.
        scores: ``[K]``, without NaN; of equal scores the earlier box is the better.
        class_ids: ``[K]``; only boxes of one class suppress each other. ``None``: all do.
        iou_threshold: The overlap that two kept boxes (of a class) may have.
        limit: Stop after so many.

    Returns:
        Indices into ``boxes``, in falling order of score.
    """
    order = np.argsort(-scores, kind="stable")
    group = _Group.of(boxes[order], None if class_ids is None else class_ids[order])
    room = len(order) if limit is None else limit
    kept: list[Indices] = [order[:0]]
    waiting = np.arange(len(order))
    while waiting.size and room > 0:
        block, waiting = waiting[:_BLOCK], waiting[_BLOCK:]
        stay = block[_settled(group.clashes(block, block, iou_threshold))][:room]
        kept.append(order[stay])
        room -= len(stay)
        if room > 0:
            waiting = group.without_clashes(waiting, stay, iou_threshold)
    return np.concatenate(kept)


_BLOCK: Final = 128
"""Boxes settled at a time: fewer cost more calls, more cost pairs that did not matter."""

_PAIRS: Final = 1 << 14
"""Pairs of boxes compared at a time: what they need stays in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Boxes to compare with one another, their columns each in one piece of memory."""

    columns: Boxes
    areas: Floats
    class_ids: Array | None

    @classmethod
    def of(cls, boxes: Boxes, class_ids: Array | None) -> _Group:
        return cls(np.ascontiguousarray(boxes.T), area(boxes), class_ids)

    def clashes(
        self, first: Indices, second: Indices, iou_threshold: float
    ) -> npt.NDArray[np.bool_]:
        """Return for each pair ``[A, B]`` whether one of the two has to go."""
        clash = (
            _overlap(
                self.columns[:, first].T[:, None],
                self.areas[first, None],
                self.columns[:, second].T[None],
                self.areas[None, second],
            )
            > iou_threshold
        )
        if self.class_ids is not None:
            clash &= self.class_ids[first, None] == self.class_ids[None, second]
        return clash

    def without_clashes(self, waiting: Indices, stay: Indices, iou_threshold: float) -> Indices:
        """Return those waiting that clash with none of those that stay."""
        start = 0
        while start < len(stay) and waiting.size:
            some = stay[start : start + max(1, _PAIRS // len(waiting))]
            waiting = waiting[~self.clashes(some, waiting, iou_threshold).any(axis=0)]
            start += len(some)
        return waiting


def _settled(clashes: npt.NDArray[np.bool_]) -> list[int]:
    """Return which of some boxes stay, best first, by who clashes with whom ``[K, K]``.

    Rows are taken as integers of a bit for each box: one step in Python for each box, and short.
    """
    rows = np.packbits(clashes, axis=1, bitorder="little")
    gone = 0
    stay: list[int] = []
    for index, row in enumerate(rows):
        if not gone >> index & 1:
            stay.append(index)
            gone |= int.from_bytes(row.tobytes(), "little")
    return stay
