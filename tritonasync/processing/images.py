"""Images on their way into a model: resizing, letterboxing, channels, scaling.

Owns: the pixel arithmetic. An image is ``[H, W, C]`` (or ``[H, W]`` for :func:`resize_bilinear`).

Refuses to know: files and codecs, models, batches.

Invariants: arguments are left alone. A NaN pixel is never repaired or refused: it goes on to the
model, and resizing spreads it over the pixels that are blended from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.values import Array

FloatImage: TypeAlias = npt.NDArray[np.float32]

Boxes: TypeAlias = npt.NDArray[np.float32]

_BAND = 16
"""Target rows resized at a time: what they need stays in the cache, which halves the time
(measured: 1080 x 1920 to 384 x 640, 8 ms against 17 ms), and no single numpy call is long."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in brightness: ITU-R BT.601, as Pillow's and OpenCV's grey."""


def resize_bilinear(image: Array, height: int, width: int) -> FloatImage:
    """Return the image at another size, as float32 on the scale of its own values.

    Pixel centres lie at half-integers and edges are repeated: OpenCV's ``INTER_LINEAR`` and
    torch's ``interpolate(mode="bilinear", align_corners=False)``. There is no smoothing before
    shrinking, as there is none in the pipelines that detectors are trained with.

    Args:
        image: ``[H, W]`` or ``[H, W, C]`` of any real dtype, each axis at least 1 long.
        height: Rows of the result, at least 1.
        width: Columns of the result, at least 1.
    """
    if image.shape[:2] == (height, width):
        return image.astype(np.float32)
    rows, columns, depth = image.shape[0], image.shape[1], math.prod(image.shape[2:])
    above, below, lower_share = _taps(rows, height)
    left, right, right_share = _taps(columns, width)
    lines, right_share = image.reshape(rows, -1), right_share.repeat(depth)
    result = np.empty((height, width * depth), np.float32)
    for start in range(0, height, _BAND):
        band = slice(start, start + _BAND)
        tall = _blend(
            lines.take(above[band], 0), lines.take(below[band], 0), lower_share[band, None]
        )
        pixels = tall.reshape(-1, columns, depth)
        near, far = pixels.take(left, 1), pixels.take(right, 1)
        result[band] = _blend(near.reshape(len(tall), -1), far.reshape(len(tall), -1), right_share)
    return result.reshape(height, width, *image.shape[2:])


def _taps(source: int, target: int) -> tuple[Array, Array, FloatImage]:
    """Return, for each target pixel, its two source pixels and the weight of the second."""
    centres = (np.arange(target) + 0.5) * (source / target) - 0.5
    centres = np.clip(centres, 0, source - 1)
    first = centres.astype(np.intp)
    return first, np.minimum(first + 1, source - 1), (centres - first).astype(np.float32)


def _blend(first: Array, second: Array, share: FloatImage) -> FloatImage:
    """Return ``first + (second - first) * share``; a float32 ``first`` may be overwritten."""
    base = first.astype(np.float32, copy=False)
    step = np.subtract(second, base, dtype=np.float32)
    step *= share
    base += step
    return base


def to_unit(image: Array) -> FloatImage:
    """Return pixel values 0 to 255 as float32 between 0 and 1."""
    unit: FloatImage = np.divide(image, 255, dtype=np.float32)
    return unit


def grey_to_rgb(image: Array) -> Array:
    """Return ``[H, W, 1]`` as ``[H, W, 3]`` with three equal channels (a read-only view)."""
    return np.broadcast_to(image, (*image.shape[:2], 3))


def rgb_to_grey(image: Array) -> FloatImage:
    """Return ``[H, W, 3]`` as the brightness ``[H, W, 1]`` (BT.601), on the same scale."""
    return (image.astype(np.float32, copy=False) @ _LUMA)[..., None]


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where an image lies on a canvas: scaled to fit, in the middle, its proportions kept.

    Attributes:
        image_height: Rows of the image before.
        image_width: Columns of the image before.
        height: Rows that it takes on the canvas.
        width: Columns that it takes on the canvas.
        top: Canvas rows above it.
        left: Canvas columns left of it.
    """

    image_height: int
    image_width: int
    height: int
    width: int
    top: int
    left: int

    @classmethod
    def fit(
        cls, image_height: int, image_width: int, canvas_height: int, canvas_width: int
    ) -> Letterbox:
        """Return the largest placement of an image on a canvas; all sizes at least 1 pixel."""
        scale = min(canvas_height / image_height, canvas_width / image_width)
        height = min(canvas_height, max(1, round(image_height * scale)))
        width = min(canvas_width, max(1, round(image_width * scale)))
        top, left = (canvas_height - height) // 2, (canvas_width - width) // 2
        return cls(image_height, image_width, height, width, top, left)

    def place(self, canvas: Array) -> Array:
        """Return the image's place on ``canvas [H', W', C]``, as a view."""
        return canvas[self.top : self.top + self.height, self.left : self.left + self.width]

    def to_canvas(self, boxes: Boxes) -> Boxes:
        """Return xyxy boxes ``[..., 4]`` in image pixels as canvas pixels."""
        return boxes * self._scale() + self._offset()

    def to_image(self, boxes: Boxes) -> Boxes:
        """Return xyxy boxes ``[..., 4]`` in canvas pixels as image pixels, not clipped."""
        return (boxes - self._offset()) / self._scale()

    def _scale(self) -> Boxes:
        """Return canvas pixels per image pixel for left, top, right, bottom.

        Taken from the whole pixels that were resized to: x and y differ a little by rounding.
        """
        x, y = self.width / self.image_width, self.height / self.image_height
        return np.array([x, y, x, y], np.float32)

    def _offset(self) -> Boxes:
        return np.array([self.left, self.top, self.left, self.top], np.float32)
