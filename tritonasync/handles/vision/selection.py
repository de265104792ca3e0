"""Which of a model's candidates become detections.

Owns: thresholds, the numbering of classes, suppression of duplicates, and the way back into the
pixels of the image. Refuses to know: how candidates came out of the model, where names come from.

Invariants: pure; scores fall; boxes lie within the image, and have an area.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from operator import index
from typing import Final, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import ConfigurationError
from tritonasync.handles.vision.decoding.candidates import Candidates, Floats, whole
from tritonasync.handles.vision.detections import Detections
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


def check_thresholds(selection: Selection, labels: tuple[str, ...], subject: str) -> None:
    """Refuse thresholds for classes that there are none of.

    Args:
        selection: The thresholds.
        labels: The names of all classes.
        subject: Whose they are, for messages.

    Raises:
        ConfigurationError: A threshold is for a name that is none of the labels, or a number that
            none of them has.
    """
    if not isinstance(selection.score, Mapping):
        return
    for name in selection.score:
        if name != OTHERS and not 0 <= _number(name, labels, subject) < len(labels):
            raise ConfigurationError(
                f"{subject}: score_threshold is given for class {name}, but there are "
                f"{len(labels)} labels, for classes from 0 on"
            )


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
    given = _image_size(found, subject)
    if given is not None:
        place, canvas = None, given
    assert canvas is not None  # noqa: S101 - the caller has seen to it
    boxes, (height, width) = _in_image(boxes, place, canvas, normalized=found.normalized)
    seen = clip(boxes, height, width)
    inside = (seen[:, 2] > seen[:, 0]) & (seen[:, 3] > seen[:, 1])  # others take nobody's place
    boxes, seen, scores, class_ids = boxes[inside], seen[inside], scores[inside], class_ids[inside]
    best = suppress(
        boxes,
        scores,
        None if selection.class_agnostic else class_ids,
        iou_threshold=np.inf if selection.iou is None else cast("float", selection.iou),
        limit=selection.max_detections,
    )
    names = naming(class_ids[best])
    return Detections(seen[best], scores[best], class_ids[best], names, height=height, width=width)


def _arrays(found: Candidates, subject: str) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    expected = f"{subject}: expected candidates with boxes [K, 4], scores [K] and class_ids [K]"
    try:
        with np.errstate(over="ignore"):
            boxes = np.asarray(found.boxes, np.float32)
            scores = np.asarray(found.scores, np.float32)
        class_ids = whole(np.asarray(found.class_ids))
    except (TypeError, ValueError, RuntimeError) as error:  # also of the library that they are of
        raise ConfigurationError(f"{expected}, of numbers: {error}") from error
    if boxes.size == 0:
        boxes = boxes.reshape(-1, 4)
    if scores.ndim != 1 or class_ids.shape != scores.shape or boxes.shape != (*scores.shape, 4):
        raise ConfigurationError(
            f"{expected}, got {list(boxes.shape)}, {list(scores.shape)} and {list(class_ids.shape)}"
        )
    return boxes, scores, class_ids


def _image_size(found: Candidates, subject: str) -> tuple[int, int] | None:
    """Return the size that candidates say their image has, if they do.

    Raises:
        ConfigurationError: It is none.
    """
    if found.image_size is None:
        return None
    try:
        height, width = map(index, found.image_size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ConfigurationError(
            f"{subject}: expected candidates with image_size=(height, width) in pixels, got "
            f"{found.image_size!r}"
        )
    return height, width


def _in_image(
    boxes: Floats, place: Placement | None, canvas: tuple[int, int], *, normalized: bool
) -> tuple[Floats, tuple[int, int]]:
    """Return boxes in pixels of the image, and the image's height and width."""
    if normalized:
        height, width = canvas
        boxes = boxes * np.array([width, height, width, height], np.float32)
    if place is None:
        return boxes, canvas
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
        'iou_threshold is a number from 0 to 1, None, or "auto"': selection.iou is None
        or _is_auto(selection.iou)
        or _is_share(selection.iou),
        "max_detections is 1 or more": _is_count(selection.max_detections, 1),
        "class_offset is a whole number from 0 on, or None": selection.class_offset is None
        or _is_count(selection.class_offset, 0),
        "class_agnostic is True or False": _is_flag(selection.class_agnostic),
    }
    return [rule for rule, holds in rules.items() if not holds]


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value == "auto"


def _is_count(value: object, least: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def _is_share(value: object) -> bool:
    return isinstance(value, Real) and 0 <= float(value) <= 1
