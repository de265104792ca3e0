"""Detections in several outputs: boxes, scores, classes, and how many of them count.

Sources: README of TensorRT's EfficientNMS plugin (``num_detections [N, 1]``, boxes in corner
coding, only the first ``num_detections`` rows are valid); TensorFlow's object detection API
(``detection_boxes [N, M, 4]`` as ymin, xmin, ymax, xmax from 0 to 1, ``detection_classes`` by the
label map, whose numbers begin with 1, floats in many exports, ``num_detections [N]``).

The README calls the plugin's outputs as TensorFlow does, exporters of YOLO call them otherwise, and
NVIDIA's own EfficientDet even has the plugin's outputs in TensorFlow's coordinates. By themselves,
outputs called ``det_boxes``, ``nmsed_boxes``, ``bboxes`` or ``boxes`` are taken for the plugin's,
those called ``detection_boxes`` for TensorFlow's, whose classes and count are floats; if these are
integers, as the plugin's are, they may be of either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tritonasync.core.values import Array, TensorSpec
from tritonasync.handles.vision.decoding.candidates import Candidates, whole
from tritonasync.handles.vision.decoding.family import (
    Family,
    Known,
    Misfit,
    Roles,
    boxes_apart,
    by_name,
    no_classes,
    plain,
    same,
)

_NAMES: Final[Mapping[str, frozenset[str]]] = {
    "boxes": frozenset({"det_boxes", "nmsed_boxes", "bboxes", "boxes", "detection_boxes"}),
    "scores": frozenset({"det_scores", "nmsed_scores", "scores", "detection_scores"}),
    "classes": frozenset(
        {"det_classes", "nmsed_classes", "labels", "classes", "detection_classes"}
    ),
    "count": frozenset({"num_dets", "num_detections", "nmsed_num", "num"}),
}

_NEEDED: Final = ("boxes", "scores", "classes")


def _fit_plugin(outputs: Sequence[TensorSpec], known: Known) -> Roles | Misfit:
    found = _assigned(outputs, known)
    if isinstance(found, Misfit) or known.asked or known.roles:
        return found
    if "count" not in found:
        return Misfit("no output is the count [N, 1]")
    types = {tensor.name: tensor.datatype for tensor in outputs}
    counted = _is_whole(types[found["classes"]]) and _is_whole(types[found["count"]])
    if plain(found["boxes"]) == "detection_boxes" and not counted:
        return Misfit("an output named 'detection_boxes' is taken for TensorFlow's")
    return found


def _fit_tensorflow(outputs: Sequence[TensorSpec], known: Known) -> Roles | Misfit:
    found = _assigned(outputs, known)
    if isinstance(found, Misfit) or known.asked or known.roles:
        return found
    if plain(found["boxes"]) in _NAMES["boxes"] - {"detection_boxes"}:
        return Misfit(f"an output named {found['boxes']!r} is taken for the EfficientNMS plugin's")
    return found


def _assigned(outputs: Sequence[TensorSpec], known: Known) -> Roles | Misfit:
    """Return which output is which: as the user said, by name, by shape and type at last."""
    roles = dict(known.roles) or by_name(outputs, _NAMES)
    if "boxes" not in roles and (boxes := boxes_apart(outputs)):
        roles["boxes"] = boxes.name
    shapes = {tensor.name: tensor.shape for tensor in outputs}
    if "boxes" not in roles or len(shapes[roles["boxes"]]) != 3:
        return Misfit("no one output is the boxes [N, M, 4]")
    if not known.roles:
        _complete(roles, outputs, shapes[roles["boxes"]][1])
    if lacking := [role for role in _NEEDED if role not in roles]:
        return Misfit(
            f"no output is seen to be the {' or the '.join(lacking)} [N, M]; say which is which by "
            'outputs={"boxes": …, "scores": …, "classes": …, "count": …}'
        )
    return _checked(roles, shapes)


def _complete(roles: dict[str, str], outputs: Sequence[TensorSpec], count: int) -> None:
    """Add what name did not tell: classes are integers; a count is one number an image."""
    rest = [tensor for tensor in outputs if tensor.name not in roles.values()]
    lists = [t for t in rest if len(t.shape) == 2 and same(t.shape[1], count)]
    whole_lists = [t for t in lists if _is_whole(t.datatype)]
    if "classes" not in roles and len(whole_lists) == 1 and count != 1:
        roles["classes"] = whole_lists[0].name
    lists = [tensor for tensor in lists if tensor.name not in roles.values()]
    if "scores" not in roles and len(lists) == 1 and "classes" in roles:
        roles["scores"] = lists[0].name
    if "classes" not in roles and len(lists) == 1 and "scores" in roles:
        roles["classes"] = lists[0].name
    counts = [t for t in rest if t.shape[1:] in ((), (1,)) and t.name not in roles.values()]
    if "count" not in roles and len(counts) == 1:
        roles["count"] = counts[0].name


def _is_whole(datatype: str) -> bool:
    return datatype.startswith(("INT", "UINT"))


def _checked(roles: Roles, shapes: Mapping[str, tuple[int, ...]]) -> Roles | Misfit:
    """Return the roles if the shapes go together."""
    boxes = shapes[roles["boxes"]]
    if not same(boxes[2], 4):
        return Misfit(f"{roles['boxes']!r} is not the boxes [N, M, 4]")
    for role in ("scores", "classes"):
        shape = shapes[roles[role]]
        if len(shape) != 2 or not same(shape[1], boxes[1]):
            return Misfit(f"{roles[role]!r} is not the {role} [N, M] of the boxes")
    if "count" in roles and not all(same(axis, 1) for axis in shapes[roles["count"]][1:]):
        return Misfit(f"{roles['count']!r} is not the count [N] or [N, 1]")
    return roles


def _decode_plugin(tensors: Mapping[str, Array], floor: float, rows: int) -> list[Candidates]:
    return [
        Candidates(boxes, scores, class_ids)
        for boxes, scores, class_ids in _valid(tensors, floor, rows)
    ]


def _decode_tensorflow(tensors: Mapping[str, Array], floor: float, rows: int) -> list[Candidates]:
    return [
        Candidates(boxes[:, [1, 0, 3, 2]], scores, class_ids, normalized=True)
        for boxes, scores, class_ids in _valid(tensors, floor, rows)
    ]


def _valid(
    tensors: Mapping[str, Array], floor: float, rows: int
) -> list[tuple[Array, Array, Array]]:
    """Return boxes, scores and classes of each image that count and have a score."""
    boxes, scores, classes = tensors["boxes"], tensors["scores"], tensors["classes"]
    most = boxes.shape[1]
    counts = whole(tensors["count"].reshape(rows)) if "count" in tensors else [most] * rows
    found: list[tuple[Array, Array, Array]] = []
    for row, count in enumerate(map(int, counts)):
        valid = slice(0, max(0, count))
        keep = scores[row, valid] > floor
        found.append(
            (boxes[row, valid][keep], scores[row, valid][keep], whole(classes[row, valid][keep]))
        )
    return found


LISTED: Final = (
    Family(
        "efficientnms",
        "boxes [N, M, 4] (left, top, right, bottom in pixels), scores [N, M], classes [N, M], "
        "count [N, 1] (TensorRT's EfficientNMS)",
        _NAMES,
        _fit_plugin,
        no_classes,
        _decode_plugin,
        suppressed=True,
    ),
    Family(
        "ssd",
        "boxes [N, M, 4] (top, left, bottom, right, from 0 to 1), scores [N, M], classes [N, M] "
        "from 1, perhaps count [N] (TensorFlow's SSD, EfficientDet)",
        _NAMES,
        _fit_tensorflow,
        no_classes,
        _decode_tensorflow,
        suppressed=True,
        first_class=1,
    ),
)
