"""YOLO's outputs, with and without suppression inside.

Sources: YOLOv5's ``non_max_suppression`` (score is objectness times class score); Ultralytics'
guide to end-to-end detection (``(N, nc + 4, 8400)`` and ``(N, 300, 6)`` of x1, y1, x2, y2,
confidence, class); YOLOv7's ``models/experimental.py``, ``ONNX_ORT`` (rows of batch index, box,
class, score). Boxes are in pixels of the model's input.

Candidates are sifted by score before anything else is computed of them: of 8,400 anchors a few
hundred are left, and only theirs are looked at closely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from tritonasync.core.values import Array, TensorSpec
from tritonasync.handles.vision.decoding.candidates import Candidates, Floats, whole
from tritonasync.handles.vision.decoding.family import (
    ONE_OUTPUT,
    Contradiction,
    Family,
    Known,
    Misfit,
    Roles,
    has_boxes_apart,
    no_classes,
    only,
)
from tritonasync.processing.boxes import cxcywh_to_xyxy

_MOST_LISTED: Final = 1000
"""Rows of six numbers up to which they are taken for what is left after suppression (Ultralytics
gives 300); more are anchors of a model with one or two classes."""

_STRIDES: Final = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32))
"""Pixels of a cell in the grids of YOLO's heads: the usual three, P6 models, tiny ones, P2 ones."""


_MOST_SCORE: Final = 2.0
"""Scores end at 1, but for rounding, of which a model in 8 bits may have much."""


# --- raw anchors: YOLOv5 (also v6 and v7), YOLOv8 (also 9, 11, 12) ---


def _fit_v5(outputs: Sequence[TensorSpec], known: Known) -> Roles | Misfit:
    if not known.asked and (other := _of_another_kind(outputs)):
        return other
    found = [t for t in outputs if len(t.shape) == 3 and t.shape[2] > 5 and _are_anchors(t, known)]
    result = only(found, "[N, A, 5 + C]" + ("" if known.asked else " with A above 5 + C"))
    if known.asked or isinstance(result, Misfit):
        return result
    return _told_apart(found[0], known, "yolov5") or result


def _fit_v8(outputs: Sequence[TensorSpec], known: Known) -> Roles | Misfit:
    if not known.asked and (other := _of_another_kind(outputs)):
        return other
    found = [t for t in outputs if len(t.shape) == 3 and _is_v8(t, known)]
    result = only(found, "[N, 4 + C, A] or [N, A, 4 + C]" + ("" if known.asked else ", A the more"))
    if known.asked or isinstance(result, Misfit) or not _is_transposed(found[0].shape):
        return result
    return _told_apart(found[0], known, "yolov8") or result


def _of_another_kind(outputs: Sequence[TensorSpec]) -> Misfit | None:
    """Return why an output of rows is no more than a part of what is found, if it shows."""
    if has_boxes_apart(outputs):
        return Misfit("boxes have an output of their own")
    masks = [tensor.name for tensor in outputs if len(tensor.shape) == 4]
    if masks:
        return Misfit(f"{masks[0]!r} is for masks, whose numbers are behind the class scores")
    return None


def _is_v8(tensor: TensorSpec, known: Known) -> bool:
    _, first, second = tensor.shape
    if _is_transposed(tensor.shape):
        return second > 4 and _are_anchors(tensor, known)
    return first > 4 and (known.asked or second == -1 or first < second != 6)


def _is_transposed(shape: tuple[int, ...]) -> bool:
    """Return whether anchors come before their numbers: there are more of them.

    A free axis is that of anchors.
    """
    _, first, second = shape
    if first == -1 or second == -1:
        return first == -1
    return first > second > 4


def _are_anchors(tensor: TensorSpec, known: Known) -> bool:
    """Return whether rows ``[N, A, W]`` are anchors and not what suppression left of them."""
    _, count, width = tensor.shape
    if known.asked:
        return True
    return (count == -1 or count > width) and (width != 6 or count > _MOST_LISTED)


def _told_apart(tensor: TensorSpec, known: Known, name: str) -> Misfit | None:
    """Return why rows of anchors are not of this family but of the other, if it shows."""
    _, count, width = tensor.shape
    if known.labels in (width - 5, width - 4):
        if known.labels == width - (5 if name == "yolov5" else 4):
            return None
        return Misfit(f"with {known.labels} labels, {tensor.name!r} has the width of the other")
    per_cell = _boxes_per_cell(count, known.size)
    if per_cell == 3 and name == "yolov8":
        return Misfit(f"{tensor.name!r} has three anchors a cell, and YOLOv8 has one")
    return None


def _boxes_per_cell(anchors: int, size: tuple[int, int] | None) -> int | None:
    if size is None or anchors < 1:
        return None
    height, width = size
    for strides in _STRIDES:
        cells = sum((height // stride) * (width // stride) for stride in strides)
        if cells and anchors % cells == 0 and anchors // cells in (1, 3):
            return anchors // cells
    return None


def _decode_v5(tensors: Mapping[str, Array], floor: float, rows: int) -> list[Candidates]:
    del rows
    return [_v5(anchors, floor) for anchors in tensors["output"]]


def _v5(anchors: Floats, floor: float) -> Candidates:
    """Read ``[A, 5 + C]``: an object's score is at most its objectness, which is looked at first.

    Objectness and class scores are both from 0 to 1.
    """
    likely = anchors[anchors[:, 4] > floor]
    scores = likely[:, 5:] * likely[:, 4:5]
    class_ids = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), class_ids]
    _check_scores(best)
    keep = best > floor
    return Candidates(cxcywh_to_xyxy(likely[keep, :4]), best[keep], class_ids[keep])


def _decode_v8(tensors: Mapping[str, Array], floor: float, rows: int) -> list[Candidates]:
    del rows
    output = tensors["output"]
    if _is_transposed(output.shape):
        output = output.transpose(0, 2, 1)
    return [_v8(image, floor) for image in output]


def _v8(image: Floats, floor: float) -> Candidates:
    """Read ``[4 + C, A]``: each anchor is of its best class."""
    scores = image[4:]
    keep = np.flatnonzero(scores.max(axis=0) > floor)
    likely = scores[:, keep]
    class_ids = likely.argmax(axis=0)
    best = likely[class_ids, np.arange(len(keep))]
    _check_scores(best)
    return Candidates(cxcywh_to_xyxy(image[:4, keep].T), best, class_ids)


def _check_scores(scores: Floats) -> None:
    """Refuse what cannot be class scores, such as the places of joints that a pose model gives.

    Raises:
        Contradiction: One is far above 1.
    """
    most = scores[np.isfinite(scores)].max(initial=0)
    if most > _MOST_SCORE:
        raise Contradiction(
            f"expected class scores from 0 to 1, got {most:g}; outputs that have other numbers "
            "behind the class scores, or scores without sigmoid, need a function as decode=…"
        )


def _classes_v5(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return shapes["output"][2] - 5


def _classes_v8(shapes: Mapping[str, tuple[int, ...]]) -> int:
    shape = shapes["output"]
    return shape[2 if _is_transposed(shape) else 1] - 4


# --- suppression inside: YOLOv10, YOLO26, exports with nms=True; YOLOv7's rows ---


def _fit_end2end(outputs: Sequence[TensorSpec], known: Known) -> Roles | Misfit:
    found = [t for t in outputs if len(t.shape) == 3 and t.shape[2] == 6]
    if known.asked:
        return only(found, "[N, M, 6]")
    listed = [t for t in found if _may_be_listed(t.shape[1], known)]
    return only(listed, "[N, M, 6], or its rows are anchors")


def _may_be_listed(count: int, known: Known) -> bool:
    anchors = known.labels in (1, 2) or _boxes_per_cell(count, known.size) is not None
    return count <= _MOST_LISTED or not anchors


def _decode_end2end(tensors: Mapping[str, Array], floor: float, rows: int) -> list[Candidates]:
    del rows
    return [_listed(image, floor) for image in tensors["output"]]


def _listed(image: Floats, floor: float) -> Candidates:
    """Read ``[M, 6]``: left, top, right, bottom, score, class; unused rows have score 0."""
    found = image[image[:, 4] > floor]
    return Candidates(found[:, :4], found[:, 4], whole(found[:, 5]))


def _fit_flat(outputs: Sequence[TensorSpec], known: Known) -> Roles | Misfit:
    found = [t for t in outputs if len(t.shape) == 2 and t.shape[1] == 7]
    result = only(found, "[M, 7]")
    if known.batched and not isinstance(result, Misfit):
        return Misfit(
            "axis 0 is the batch, one row an image: these outputs need a model whose "
            "max_batch_size is 0"
        )
    return result


def _decode_flat(tensors: Mapping[str, Array], floor: float, rows: int) -> list[Candidates]:
    output = tensors["output"]
    found = output[output[:, 6] > floor]
    images = whole(found[:, 0])
    if len(images) and (images.min() < 0 or images.max() >= rows):
        raise Contradiction(
            f"expected image numbers from 0 to {rows - 1} in column 0 of the detections, got "
            f"{images.min()} to {images.max()}"
        )
    return [_of_image(found[images == image]) for image in range(rows)]


def _of_image(found: Floats) -> Candidates:
    return Candidates(found[:, 1:5], found[:, 6], whole(found[:, 5]))


YOLO: Final = (
    Family(
        "yolov5",
        "[N, A, 5 + C]: centre, size, objectness, class scores (YOLOv5, v6, v7)",
        ONE_OUTPUT,
        _fit_v5,
        _classes_v5,
        _decode_v5,
        suppressed=False,
    ),
    Family(
        "yolov8",
        "[N, 4 + C, A] or [N, A, 4 + C]: centre, size, class scores (YOLOv8, v9, 11, 12)",
        ONE_OUTPUT,
        _fit_v8,
        _classes_v8,
        _decode_v8,
        suppressed=False,
    ),
    Family(
        "end2end",
        "[N, M, 6]: left, top, right, bottom, score, class (YOLOv10, 26)",
        ONE_OUTPUT,
        _fit_end2end,
        no_classes,
        _decode_end2end,
        suppressed=True,
    ),
    Family(
        "flat",
        "[M, 7]: image, left, top, right, bottom, class, score (YOLOv7 end2end)",
        ONE_OUTPUT,
        _fit_flat,
        no_classes,
        _decode_flat,
        suppressed=True,
        by_row=False,
    ),
)
