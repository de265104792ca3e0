"""Boxes on pictures: drawing them, and cutting them out.

Owns: reading an image of whatever kind as pixels, colours, letters, and which pixels a box covers.
Refuses to know: models, thresholds.

Pillow is imported when something is drawn or decoded, not before. Files are read and decoded where
the caller is: from an event loop, call these in a worker thread.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import InvalidInputError, MissingExtraError
from tritonasync.core.values import Array
from tritonasync.handles.vision.canvas import has_array
from tritonasync.memory.device import as_host, is_device_array
from tritonasync.processing.pictures import (
    MAX_PIXELS,
    PictureError,
    from_pillow,
    is_encoded,
    is_pillow,
    read,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

Box: TypeAlias = tuple[float, float, float, float]
Colour: TypeAlias = tuple[int, int, int]

_COLOURS: Final[tuple[Colour, ...]] = (
    *((230, 25, 75), (60, 180, 75), (67, 99, 216), (245, 130, 49), (145, 30, 180)),
    *((66, 212, 244), (240, 50, 230), (154, 99, 36), (128, 128, 0), (0, 128, 128)),
)
"""Those of the first classes: easily told apart."""

_TURN: Final = 0.618034
"""Of the circle of hues, from one class to the next: the golden ratio, so that none comes twice."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A box to draw.

    Attributes:
        box: Left, top, right and bottom in pixels.
        class_id: Chooses the colour.
        text: Is written on it.
    """

    box: Box
    class_id: int
    text: str


def pixels_of(image: object, height: int, width: int) -> Array:
    """Return an image's pixels ``[H, W]`` or ``[H, W, C]``, upright: a view if it is an array.

    Args:
        image: An array, a Pillow image, an encoded image, or its path.
        height: Rows that it must have.
        width: Columns that it must have.

    Raises:
        InvalidInputError: It is no image, or cannot be read, or is of another size.
        MissingExtraError: Pillow is needed, and not installed.
    """
    try:
        pixels = _read(image, max(MAX_PIXELS, height * width))
    except PictureError as error:
        name = f"file {os.fspath(image)!r}: " if isinstance(image, (str, os.PathLike)) else ""
        raise InvalidInputError(f"image: {name}{error}") from error
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise _no_image(pixels)
    if pixels.shape[:2] != (height, width):
        raise InvalidInputError(
            f"expected the image that these detections are of, {height} x {width} pixels (rows x "
            f"columns), got {pixels.shape[0]} x {pixels.shape[1]}"
        )
    return pixels


def _read(image: object, max_pixels: int) -> Array:
    if is_encoded(image):
        return read(image, max_pixels)
    if is_pillow(image):
        return from_pillow(image, max_pixels)
    if is_device_array(image):
        return as_host([image])[0]
    if not has_array(image):
        kind = type(image).__name__
        raise PictureError(f"expected an array, a Pillow image, bytes or a path, got {kind}")
    return np.asarray(image)


def _no_image(array: Array) -> InvalidInputError:
    return InvalidInputError(
        "expected an image, [H, W] or [H, W, C] of uint8 or float between 0 and 1, got "
        f"{array.dtype} {list(array.shape)}"
    )


# --- cutting out -------------------------------------------------------------------------------


def cut(pixels: Array, box: Box, margin: float) -> Array:
    """Return the pixels that a box touches, as a view; at least one.

    Args:
        pixels: ``[H, W]`` or ``[H, W, C]``.
        box: Left, top, right and bottom in pixels.
        margin: What is added on each side, as a share of the box's width or height.
    """
    height, width = pixels.shape[:2]
    columns = _span(box[0], box[2], margin, width)
    return pixels[_span(box[1], box[3], margin, height), columns]


def _span(low: float, high: float, margin: float, length: int) -> slice:
    extra = margin * max(high - low, 0)
    start = min(max(floor(low - extra), 0), length - 1)
    return slice(start, max(start + 1, min(ceil(high + extra), length)))


# --- drawing -----------------------------------------------------------------------------------


def draw(pixels: Array, boxes: Sequence[Marked]) -> Image:
    """Return a copy of an image in RGB with boxes and text drawn on it, the first on top.

    Raises:
        MissingExtraError: Pillow is not installed.
        InvalidInputError: The pixels are neither uint8 nor floats.
    """
    try:
        from PIL import Image, ImageDraw  # noqa: PLC0415 - an extra, imported when used
    except ImportError as error:
        raise MissingExtraError("pillow", extra="images", purpose="Detections.draw()") from error
    picture = Image.fromarray(_rgb(pixels))
    pen = ImageDraw.Draw(picture)
    pen.font = _font(min(picture.size))
    line = max(2, min(picture.size) // 300)
    for marked in reversed(boxes):
        _draw_one(pen, marked, line, picture.size)
    return picture


def _font(side: int) -> FreeTypeFont | ImageFont:
    """Return letters of a size that can be read on an image whose shorter side is so long."""
    from PIL.ImageFont import load_default  # noqa: PLC0415

    return load_default(size=max(11, side // 45))


def _rgb(pixels: Array) -> npt.NDArray[np.uint8]:
    if pixels.dtype != np.uint8 and pixels.dtype.kind != "f":
        raise _no_image(pixels)
    image = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
    if image.dtype.kind == "f":
        image = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255)
    return np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.uint8)


def colour_of(class_id: int) -> Colour:
    """Return the colour of a class, the same in every image."""
    if 0 <= class_id < len(_COLOURS):
        return _COLOURS[class_id]
    red, green, blue = colorsys.hsv_to_rgb(class_id * _TURN % 1, 0.85, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _ink(colour: Colour) -> str:
    """Return what can be read on a colour: white, or black where it is bright (BT.601)."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _draw_one(pen: ImageDraw, marked: Marked, line: int, size: tuple[int, int]) -> None:
    colour = colour_of(marked.class_id)
    left, top, right, bottom = marked.box
    corner = (max(left, right - 1), max(top, bottom - 1))
    pen.rectangle((left, top, *corner), outline=colour, width=line)
    x0, y0, x1, y1 = pen.textbbox((0, 0), marked.text)
    width, height = x1 - x0 + 4, y1 - y0 + 4
    left = max(0.0, min(left, size[0] - width))
    above = top - height if top >= height else min(top, max(0.0, size[1] - height))
    pen.rectangle((left, above, left + width, above + height), fill=colour)
    pen.text((left + 2 - x0, above + 2 - y0), marked.text, fill=_ink(colour))
