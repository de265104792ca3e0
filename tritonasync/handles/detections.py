"""What a detector answers for one image: boxes, scores, classes.

Owns: the results' form, and drawing them. Refuses to know: models, decoders.

Pillow is imported when something is drawn, not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import InvalidInputError, MissingExtraError
from tritonasync.core.values import Array
from tritonasync.handles.classifications import Json

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Box: TypeAlias = tuple[float, float, float, float]

_COLOURS: Final = (
    *((230, 25, 75), (60, 180, 75), (67, 99, 216), (245, 130, 49), (145, 30, 180)),
    *((66, 212, 244), (240, 50, 230), (154, 99, 36), (128, 128, 0), (0, 128, 128)),
)
"""One for each class in turn: dark enough for white letters, and easily told apart."""


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

    def draw(self, image: npt.ArrayLike | Image) -> Image:
        """Return a copy of the image, in RGB, with the boxes, labels and scores drawn on it.

        Args:
            image: The image that was given to the detector, or another of its size: an array
                ``[H, W]`` or ``[H, W, C]``, uint8 or float between 0 and 1, or a Pillow image.

        Raises:
            MissingExtraError: Pillow is not installed.
            InvalidInputError: It is no image, or of another size.
        """
        try:
            from PIL import Image, ImageDraw  # noqa: PLC0415 - an extra, imported when used
        except ImportError as error:
            raise MissingExtraError(
                "pillow", extra="images", purpose="Detections.draw()"
            ) from error
        picture = Image.fromarray(_rgb(np.asarray(image)))
        if picture.size != (self.width, self.height):
            raise InvalidInputError(
                f"expected the image that these detections are of, {self.height} x {self.width} "
                f"pixels (rows x columns), got {picture.height} x {picture.width}"
            )
        pen = ImageDraw.Draw(picture)
        for detection in reversed(self):  # the best on top
            _draw_one(pen, detection)
        return picture

    def __repr__(self) -> str:
        shown = ", ".join(f"{found.label} {found.score:.3g}" for found in self[:4])
        more = ", …" if len(self) > 4 else ""
        return f"<Detections: {len(self)} in {self.height} x {self.width} pixels: {shown}{more}>"


def _rgb(image: Array) -> npt.NDArray[np.uint8]:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.dtype.kind not in "uf":
        raise InvalidInputError(
            "expected an image, [H, W] or [H, W, C] of uint8 or float between 0 and 1, got "
            f"{image.dtype} {list(image.shape)}"
        )
    if image.dtype.kind == "f":
        image = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255)
    return np.broadcast_to(image[..., :3], (*image.shape[:2], 3)).astype(np.uint8)


def _draw_one(pen: ImageDraw, found: Detection) -> None:
    colour = _COLOURS[found.class_id % len(_COLOURS)]
    left, top, right, bottom = found.box
    pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
    text = f"{found.label} {found.score:.2f}"
    _, _, width, height = pen.textbbox((0, 0), text)
    above = max(0.0, top - height - 2)
    pen.rectangle((left, above, left + width + 3, above + height + 2), fill=colour)
    pen.text((left + 2, above + 1), text, fill="white")
