"""DETR's outputs: class logits and a box for each of some queries.

Sources: ``DetrForObjectDetection`` and ``RTDetrForObjectDetection`` of Hugging Face's transformers
with their ``post_process_object_detection``: boxes are centre and size as shares of the image.
DETR: softmax over the classes and, last, "no object"; a query is of its best class. RT-DETR (also
Deformable DETR, D-FINE and others trained with the focal loss): sigmoid, no such class; each class
of a query that is likely enough counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from tritonasync.core.values import Array, TensorSpec
from tritonasync.handles.vision.decoding.candidates import Candidates
from tritonasync.handles.vision.decoding.family import (
    Family,
    Known,
    Misfit,
    Roles,
    boxes_apart,
    by_name,
    same,
)
from tritonasync.processing.boxes import cxcywh_to_xyxy
from tritonasync.processing.vectors import sigmoid, softmax

_NAMES: Final[Mapping[str, frozenset[str]]] = {
    "boxes": frozenset({"pred_boxes", "dets"}),
    "logits": frozenset({"logits", "pred_logits"}),
}

_MOST_QUERIES: Final = 1000
"""DETR has 100 queries, RT-DETR 300, two-stage models up to 900."""


def _fit(outputs: Sequence[TensorSpec], known: Known, *, classes_less: int) -> Roles | Misfit:
    roles = dict(known.roles) or by_name(outputs, _NAMES)
    if len(roles) < len(_NAMES) and not known.roles:
        roles = _by_shape(outputs)
    shapes = {tensor.name: tensor.shape for tensor in outputs}
    if set(roles) != {"boxes", "logits"}:
        return Misfit("no two outputs are seen to be the logits [N, Q, K] and boxes [N, Q, 4]")
    boxes, logits = shapes[roles["boxes"]], shapes[roles["logits"]]
    matched = len(boxes) == len(logits) == 3 and same(boxes[2], 4) and same(boxes[1], logits[1])
    if not matched:
        return Misfit(
            f"{roles['logits']!r} and {roles['boxes']!r} are not the logits [N, Q, K] and boxes "
            "[N, Q, 4] of the same queries"
        )
    if not known.asked and logits[1] > _MOST_QUERIES:
        return Misfit(f"{logits[1]:,} rows are anchors rather than queries")
    count = logits[2] - classes_less
    if not known.asked and known.labels in (logits[2], logits[2] - 1) and known.labels != count:
        return Misfit(f"there are {known.labels} labels, and {count} classes it would have")
    return roles


def _fit_detr(outputs: Sequence[TensorSpec], known: Known) -> Roles | Misfit:
    return _fit(outputs, known, classes_less=1)


def _fit_rtdetr(outputs: Sequence[TensorSpec], known: Known) -> Roles | Misfit:
    return _fit(outputs, known, classes_less=0)


def _by_shape(outputs: Sequence[TensorSpec]) -> dict[str, str]:
    boxes = boxes_apart(outputs)
    if boxes is None:
        return {}
    logits = [
        tensor
        for tensor in outputs
        if tensor is not boxes and len(tensor.shape) == 3 and same(tensor.shape[1], boxes.shape[1])
    ]
    return {"boxes": boxes.name, "logits": logits[0].name} if len(logits) == 1 else {}


def _decode_detr(tensors: Mapping[str, Array], floor: float, rows: int) -> list[Candidates]:
    scores = softmax(tensors["logits"])[..., :-1]
    class_ids = scores.argmax(axis=2) if scores.size else np.zeros(scores.shape[:2], np.int64)
    best = scores.max(axis=2, initial=0)
    boxes = cxcywh_to_xyxy(tensors["boxes"])
    keep = best > floor
    return [
        Candidates(
            boxes[row][keep[row]],
            best[row][keep[row]],
            class_ids[row][keep[row]],
            normalized=True,
        )
        for row in range(rows)
    ]


def _decode_rtdetr(tensors: Mapping[str, Array], floor: float, rows: int) -> list[Candidates]:
    scores = sigmoid(tensors["logits"])
    boxes = cxcywh_to_xyxy(tensors["boxes"])
    found: list[Candidates] = []
    for row in range(rows):
        queries, class_ids = np.nonzero(scores[row] > floor)
        likely = scores[row][queries, class_ids]
        found.append(Candidates(boxes[row][queries], likely, class_ids, normalized=True))
    return found


def _classes_detr(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return shapes["logits"][2] - 1


def _classes_rtdetr(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return shapes["logits"][2]


DETR: Final = (
    Family(
        "detr",
        "logits [N, Q, C + 1] with “no object” last, boxes [N, Q, 4] (centre and size, from 0 to "
        "1) (DETR)",
        _NAMES,
        _fit_detr,
        _classes_detr,
        _decode_detr,
        suppressed=True,
    ),
    Family(
        "rtdetr",
        "logits [N, Q, C], boxes [N, Q, 4] (centre and size, from 0 to 1) (RT-DETR, Deformable "
        "DETR)",
        _NAMES,
        _fit_rtdetr,
        _classes_rtdetr,
        _decode_rtdetr,
        suppressed=True,
    ),
)
