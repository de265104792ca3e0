"""What a detector answers for one image: boxes, scores, classes.

Owns: the results' form. Refuses to know: models, decoders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import InvalidInputError
from tritonasync.core.values import Array
from tritonasync.handles.classifications import Json
from tritonasync.handles.vision.drawing import Box, Marked, cut, draw, pixels_of
from tritonasync.handles.vision.images import ImageLike

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Detection:
    """One object.

    Attributes:
        box: Left, top, right and bottom, in pixels of the image.
        score: How sure the model is.
        class_id: The class's number.
        label: The class's name.
    """

    box: Box
    score: float
    class_id: int
    label: str

    def to_dict(self) -> dict[str, Json]:
        """Return box, score, class_id and label, ready for JSON."""
        return {
            "box": list(self.box),
            "score": self.score,
            "class_id": self.class_id,
            "label": self.label,
        }


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Detections(Sequence[Detection]):
    """The objects of one image, best first: a sequence of :class:`Detection`.

    Attributes:
        boxes: float32 ``[M, 4]``: left, top, right, bottom in pixels of the image that was given,
            within it.
        scores: float32 ``[M]``.
        class_ids: int64 ``[M]``.
        labels: The class's name for each, ``[M]``.
        height: Rows of the image.
        width: Columns of the image.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    height: int = field(kw_only=True)
    width: int = field(kw_only=True)

    def __len__(self) -> int:
        return len(self.boxes)

    @overload
    def __getitem__(self, key: int) -> Detection: ...

    @overload
    def __getitem__(self, key: slice) -> Detections: ...

    def __getitem__(self, key: int | slice) -> Detection | Detections:
        if isinstance(key, slice):
            return Detections(
                self.boxes[key],
                self.scores[key],
                self.class_ids[key],
                self.labels[key],
                height=self.height,
                width=self.width,
            )
        left, top, right, bottom = map(float, self.boxes[key])
        return Detection(
            (left, top, right, bottom),
            float(self.scores[key]),
            int(self.class_ids[key]),
            self.labels[key],
        )

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    def to_dict(self) -> dict[str, Json]:
        """Return the image's height and width and all detections, ready for JSON."""
        found: list[Json] = [detection.to_dict() for detection in self]
        return {"height": self.height, "width": self.width, "detections": found}

    def draw(self, image: ImageLike) -> Image:
        """Return a copy of the image, in RGB, with the boxes, labels and scores drawn on it.

        A class has the same colour in every image. Files are read and decoded where this is
        called: from an event loop, call it in a worker thread.

        Args:
            image: The image that was given to the detector, or another of its size: an array
                ``[H, W]`` or ``[H, W, C]``, uint8 or float between 0 and 1, a Pillow image, an
                encoded image, or its path; the latter three are turned as their EXIF data says.

        Raises:
            MissingExtraError: Pillow is not installed.
            InvalidInputError: It is no image, or of another size.
        """
        return draw(
            pixels_of(image, self.height, self.width),
            [Marked(one.box, one.class_id, f"{one.label} {one.score:.2f}") for one in self],
        )

    def crops(self, image: ImageLike, *, margin: float = 0.0) -> list[Array]:
        """Return what is in each box, in order: ``[h, w]`` or ``[h, w, C]`` as the image is.

        They are views on the image if it is an array, and on the pixels decoded if not. A box is
        widened to whole pixels, and holds at least one.

        Args:
            image: The image that was given to the detector, of any kind that :meth:`draw` takes.
            margin: What is added on each side, as a share of the box's width or height, within the
                image.

        Raises:
            InvalidInputError: It is no image, or of another size, or ``margin`` is no
                number from 0 on.
            MissingExtraError: It is to be decoded, and Pillow is not installed.
        """
        try:
            possible = 0 <= margin < math.inf
        except TypeError:
            possible = False
        if not possible:
            raise InvalidInputError(f"margin is 0 or more, not {margin!r}")
        pixels = pixels_of(image, self.height, self.width)
        return [cut(pixels, one.box, margin) for one in self]

    def __repr__(self) -> str:
        shown = ", ".join(f"{found.label} {found.score:.3g}" for found in self[:4])
        more = ", …" if len(self) > 4 else ""
        return f"<Detections: {len(self)} in {self.height} x {self.width} pixels: {shown}{more}>"
