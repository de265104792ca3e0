"""From a detector's raw outputs to candidate boxes.

Owns: the layouts of outputs that are known by name, and telling them apart by shape. Refuses to
know: images, thresholds, suppression of duplicates.

Invariants: pure; boxes are xyxy in pixels of the model's input; nothing is filtered here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.values import Array
from tritonasync.handles.slot import shape_text
from tritonasync.processing.boxes import cxcywh_to_xyxy


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What a model proposes for one image.

    Attributes:
        boxes: float32 ``[K, 4]``: left, top, right, bottom in pixels of the model's input.
        scores: float32 ``[K]``.
        class_ids: integers ``[K]``.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]


Floats: TypeAlias = npt.NDArray[np.float32]

Decoder: TypeAlias = Callable[[Mapping[str, Array]], Sequence[Candidates]]
"""Makes the candidates of each image, in order, of the outputs by name: ``[N, ...]`` arrays,
floating-point ones as float32."""

DecoderName: TypeAlias = Literal["yolov8", "xyxy"]


def yolov8(output: Floats) -> list[Candidates]:
    """Decode ``[N, 4 + C, A]``: centre, size, and a score for each class, of each of A anchors.

    The layout of YOLOv8 and YOLO11 as exported without suppression.
    """
    return [_best_class(image.T) for image in output]


def _best_class(anchors: Floats) -> Candidates:
    scores = anchors[:, 4:]
    class_ids = scores.argmax(axis=1)
    best = np.take_along_axis(scores, class_ids[:, None], axis=1)[:, 0]
    return Candidates(cxcywh_to_xyxy(anchors[:, :4]), best, class_ids)


def xyxy(output: Floats) -> list[Candidates]:
    """Decode ``[N, M, 6]``: left, top, right, bottom, score, class; unused rows have score 0."""
    return [_as_listed(rows) for rows in output]


def _as_listed(rows: Floats) -> Candidates:
    class_ids = np.nan_to_num(rows[:, 5]).astype(np.int64)
    return Candidates(rows[:, :4], rows[:, 4], class_ids)


_DECODERS: Final[dict[DecoderName, Callable[[Floats], list[Candidates]]]] = {
    "yolov8": yolov8,
    "xyxy": xyxy,
}

_LAYOUTS: Final[dict[DecoderName, str]] = {
    "yolov8": "[N, 4 + C, A] with more anchors A than 4 + C",
    "xyxy": "[N, M, 6]",
}


def _reads(decoder: DecoderName, shape: tuple[int, ...], *, alone: bool) -> bool:
    """Return whether a decoder can read an output of this shape; ``alone``: it was asked for.

    Between the two, an output that ends in 6 is ``"xyxy"``: six anchors would be an odd model.
    """
    if len(shape) != 3:
        return False
    if decoder == "xyxy":
        return shape[2] == 6
    return shape[1] > 4 and (alone or shape[1] < shape[2] != 6)


def pick(
    name: DecoderName | Literal["auto"], shapes: Mapping[str, tuple[int, ...]], *, model: str
) -> tuple[DecoderName, str]:
    """Return which decoder reads which output.

    Args:
        name: The decoder to use, or ``"auto"`` to tell by the shapes.
        shapes: The shapes of the outputs by name.
        model: The model's name, for the error.

    Raises:
        ConfigurationError: There is no one answer.
    """
    candidates: tuple[DecoderName, ...] = tuple(_DECODERS) if name == "auto" else (name,)
    fits: list[tuple[DecoderName, str]] = [
        (decoder, output)
        for output, shape in shapes.items()
        for decoder in candidates
        if _reads(decoder, shape, alone=name != "auto")
    ]
    if len(fits) == 1:
        return fits[0]
    got = "; ".join(
        f"{output!r} {shape_text(shape, batched=shape[:1] == (-1,))}"
        for output, shape in shapes.items()
    )
    known = "; ".join(f"{decoder!r} reads {layout}" for decoder, layout in _LAYOUTS.items())
    fault = "several outputs fit" if fits else "no output fits"
    raise ConfigurationError(
        f"model {model!r}: {fault} the decoder {name!r}: the outputs are {got}; {known}. Say which "
        "by decoder=… and outputs=[…], or give a function as the decoder",
        model=model,
    )


def decode(decoder: DecoderName, output: Floats) -> list[Candidates]:
    """Return the candidates of each image by the decoder of this name."""
    return _DECODERS[decoder](output)
