"""Which of a model's candidates become detections.

Owns: thresholds, the numbering of classes, suppression of duplicates, and the way back into the
pixels of the image. Refuses to know: how candidates came out of the model, where names come from.

Invariants: pure; scores fall; boxes lie within the image, and have an area.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Final, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import ConfigurationError
from tritonasync.handles.decoding.candidates import Candidates, Floats, whole
from tritonasync.handles.detections import Detections
from tritonasync.processing.boxes import clip, suppress
from tritonasync.processing.images import Placement

ScoreThreshold: TypeAlias = float | Mapping[str | int, float]
"""One for all classes, or by a class's name or number, ``"*"`` being all others."""

IouThreshold: TypeAlias = float | Literal["auto"] | None

Naming: TypeAlias = Callable[[npt.NDArray[np.int64]], tuple[str, ...]]
"""Names classes by their numbers."""

SCORE: Final = 0.25
"""The score threshold of classes that none was given for."""

IOU: Final = 0.45
"""The overlap at which boxes are duplicates, where the model does not remove them itself."""

OTHERS: Final = "*"

_FAR: Final = 1 << 20
"""Pixels beside the image at which boxes are cut before anything is computed of them: far out of
any image, and no product of two such numbers is too large."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which candidates become detections.

    Attributes:
        score: Those with a score above it; may be by class.
        iou: Of two (of a class) that overlap by more the better stays; ``None`` keeps both,
            ``"auto"`` goes by whether the model removes duplicates itself.
        max_detections: The most of an image, best first.
        class_agnostic: Whether boxes of different classes are duplicates of one another, too.
        class_offset: The number of the first class; ``None`` for the decoder's.
    """

    score: ScoreThreshold = SCORE
    iou: IouThreshold = "auto"
    max_detections: int = 300
    class_agnostic: bool = False
    class_offset: int | None = None

    @property
    def floor(self) -> float:
        """What no candidate may lie below, whatever its class."""
        if not isinstance(self.score, Mapping):
            return self.score
        return min([self.score.get(OTHERS, SCORE), *self.score.values()])

    def limits(
        self, class_ids: npt.NDArray[np.int64], labels: tuple[str, ...] | None, subject: str
    ) -> float | Floats:
        """Return the score threshold, or that of each of some classes.

        Raises:
            ConfigurationError: A threshold is for a name that is none of the labels.
        """
        if not isinstance(self.score, Mapping):
            return self.score
        limits = np.full(class_ids.shape, self.score.get(OTHERS, SCORE), np.float32)
        for name, limit in self.score.items():
            if name != OTHERS:
                limits[class_ids == _number(name, labels, subject)] = limit
        return limits


def check_thresholds(selection: Selection, labels: tuple[str, ...] | None, subject: str) -> None:
    """Refuse thresholds for classes that there are none of.

    Raises:
        ConfigurationError: A threshold is for a name that is none of the labels.
    """
    selection.limits(np.zeros(0, np.int64), labels, subject)


def _number(name: str | int, labels: tuple[str, ...] | None, subject: str) -> int:
    if not isinstance(name, str):
        return int(name)
    if labels is None or name not in labels:
        known = "there are no labels" if labels is None else f"the labels are {', '.join(labels)}"
        raise ConfigurationError(
            f"{subject}: score_threshold is given for class {name!r}, but {known}"
        )
    return labels.index(name)


def detected(
    found: Candidates,
    selection: Selection,
    place: Placement | None,
    canvas: tuple[int, int] | None,
    *,
    labels: tuple[str, ...] | None,
    naming: Naming,
    subject: str,
) -> Detections:
    """Return what is left of an image's candidates, in its pixels.

    Args:
        found: The candidates.
        selection: What is to be left of them.
        place: Where the image lies in the model's input.
        canvas: Height and width of the model's input. Both are ``None`` where candidates are in the
            image already.
        labels: The names that there are, for thresholds by name.
        naming: Names classes.
        subject: Whose they are, for messages.

    Raises:
        ConfigurationError: The candidates' arrays do not fit one another, or a threshold or name is
            for no class.
    """
    boxes, scores, class_ids = _arrays(found, subject)
    class_ids = class_ids - (selection.class_offset or 0)  # below 0: background, or nothing
    limits = selection.limits(class_ids, labels, subject)
    keep = (scores > limits) & (class_ids >= 0) & np.isfinite(boxes).all(axis=1)
    keep &= np.isfinite(scores)
    boxes, scores, class_ids = boxes[keep], scores[keep], class_ids[keep]
    boxes = np.clip(boxes, -_FAR, _FAR)
    boxes, (height, width) = _in_image(boxes, found, place, canvas)
    best = suppress(
        boxes,
        scores,
        None if selection.class_agnostic else class_ids,
        iou_threshold=np.inf if selection.iou is None else cast("float", selection.iou),
        limit=selection.max_detections,
    )
    boxes = clip(boxes[best], height, width)
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    class_ids = class_ids[best][inside]
    return Detections(
        boxes[inside],
        scores[best][inside],
        class_ids,
        naming(class_ids),
        height=height,
        width=width,
    )


def _arrays(found: Candidates, subject: str) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    with np.errstate(over="ignore"):
        boxes = np.asarray(found.boxes, np.float32)
        scores = np.asarray(found.scores, np.float32)
    class_ids = whole(np.asarray(found.class_ids))
    if boxes.size == 0:
        boxes = boxes.reshape(-1, 4)
    if boxes.shape != (len(scores), 4) or scores.shape != class_ids.shape or scores.ndim != 1:
        raise ConfigurationError(
            f"{subject}: expected candidates with boxes [K, 4], scores [K] and class_ids [K], got "
            f"{list(boxes.shape)}, {list(scores.shape)} and {list(class_ids.shape)}"
        )
    return boxes, scores, class_ids


def _in_image(
    boxes: Floats, found: Candidates, place: Placement | None, canvas: tuple[int, int] | None
) -> tuple[Floats, tuple[int, int]]:
    """Return boxes in pixels of the image, and the image's height and width."""
    size = found.image_size or canvas
    assert size is not None  # noqa: S101 - the caller has seen to it
    if found.normalized:
        height, width = size
        boxes = boxes * np.array([width, height, width, height], np.float32)
    if found.image_size is not None or place is None:
        return boxes, size
    return place.to_image(boxes), (place.image_height, place.image_width)


# --- options -----------------------------------------------------------------------------------


def faults_of(selection: Selection) -> list[str]:
    """Return what is wrong with the options, in words."""
    rules = {
        "score_threshold is a number from 0 to 1, or such numbers by class name or number": (
            all(map(_is_share, selection.score.values()))
            and all(isinstance(key, str | Integral) for key in selection.score)
            if isinstance(selection.score, Mapping)
            else _is_share(selection.score)
        ),
        'iou_threshold is a number from 0 to 1, None, or "auto"': selection.iou in (None, "auto")
        or _is_share(selection.iou),
        "max_detections is 1 or more": _is_count(selection.max_detections, 1),
        "class_offset is a whole number from 0 on, or None": selection.class_offset is None
        or _is_count(selection.class_offset, 0),
        "class_agnostic is True or False": _is_flag(selection.class_agnostic),
    }
    return [rule for rule, holds in rules.items() if not holds]


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, Integral) and int(value) >= least


def _is_share(value: object) -> bool:
    return isinstance(value, Real) and 0 <= float(value) <= 1
