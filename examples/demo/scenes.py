"""Scenes: several digits of varying size on one noisy, cluttered canvas, with their true boxes.

Owns: how a scene is drawn. Refuses to know: networks, files, servers.

Invariants: the same digits and the same seed give the same scenes; every box lies on the canvas
and bounds the ink of one digit; two digits hardly overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from examples.demo.digits import Digits

SIDE = 128  # pixels, of the canvas
SMALLEST, LARGEST = 16, 40  # pixels, the height of a digit's 8x8 square
MOST_DIGITS = 7
INK = 0.25  # a pixel with more ink than this belongs to the digit's box
MOST_OVERLAP = 0.05  # of the smaller of two boxes

Box = NDArray[np.float32]
Canvas = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scene:
    """One image and what is on it.

    Attributes:
        image: uint8 ``[128, 128]``, grey.
        boxes: float32 ``[M, 4]``: x1, y1, x2, y2 in pixels.
        labels: int64 ``[M]``: the digit in each box.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def scenes(digits: Digits, *, seed: int) -> Iterator[Scene]:
    """Draw scenes of ``digits`` without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield _scene(digits, rng)


def _scene(digits: Digits, rng: Generator) -> Scene:
    canvas = _background(rng)
    boxes: list[Box] = []
    labels: list[np.int64] = []
    for _ in range(rng.integers(2, MOST_DIGITS + 1)):
        chosen = rng.integers(len(digits))
        box = _place(canvas, _glyph(digits.images[chosen], rng), boxes, rng)
        if box is not None:
            boxes.append(box)
            labels.append(digits.labels[chosen])
    canvas += rng.normal(0, rng.uniform(0.02, 0.07), canvas.shape).astype(np.float32)
    image = np.rint(canvas.clip(0, 1) * 255).astype(np.uint8)
    return Scene(image, np.array(boxes, np.float32), np.array(labels, np.int64))


def _background(rng: Generator) -> Canvas:
    """Return a dark slope with faint strokes on it."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    slope = rng.uniform(-0.1, 0.1, 2)
    canvas = 0.15 + (slope[0] * x + slope[1] * y) / SIDE
    for _ in range(rng.integers(0, 11)):
        canvas = np.maximum(canvas, rng.uniform(0.2, 0.4) * _stroke(x, y, rng))
    return canvas.astype(np.float32)


def _stroke(x: Canvas, y: Canvas, rng: Generator) -> Canvas:
    """Return a straight line of random place, direction, length and width, 0 to 1."""
    start = rng.uniform(0, SIDE, 2)
    angle, length, width = rng.uniform(0, np.pi), rng.uniform(4, 60), rng.uniform(0.5, 1.5)
    along = (x - start[0]) * np.cos(angle) + (y - start[1]) * np.sin(angle)
    across = (y - start[1]) * np.cos(angle) - (x - start[0]) * np.sin(angle)
    distance = np.hypot(along - along.clip(0, length), across)
    return (width + 0.5 - distance).clip(0, 1).astype(np.float32)


def _glyph(digit: NDArray[np.float32], rng: Generator) -> Canvas:
    """Return the digit at a random size, up to a fifth narrower or wider than it was written."""
    height = int(rng.integers(SMALLEST, LARGEST + 1))
    width = round(height * rng.uniform(0.8, 1.2))
    return _stretch(height) @ digit @ _stretch(width).T


def _stretch(size: int) -> Canvas:
    """Return the matrix ``[size, 8]`` that resizes eight pixels linearly."""
    position = ((np.arange(size) + 0.5) * 8 / size - 0.5).clip(0, 7)
    return (1 - np.abs(position[:, None] - np.arange(8))).clip(0, 1).astype(np.float32)


def _place(canvas: Canvas, glyph: Canvas, taken: list[Box], rng: Generator) -> Box | None:
    """Draw the glyph where it is free and return its box; ``None`` if no free place is found."""
    height, width = glyph.shape
    ink = _bounds(glyph > INK)
    for _ in range(25):
        left, top = rng.integers(0, SIDE - width + 1), rng.integers(0, SIDE - height + 1)
        box = ink + np.array([left, top, left, top], np.float32)
        if all(_overlap(box, other) <= MOST_OVERLAP for other in taken):
            part = canvas[top : top + height, left : left + width]
            part += glyph * (rng.uniform(0.7, 1.0) - part)
            return box
    return None


def _bounds(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _overlap(one: Box, other: Box) -> float:
    """Return the shared area as a part of the smaller box."""
    sides = (np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])).clip(0)
    smaller = min(np.prod(one[2:] - one[:2]), np.prod(other[2:] - other[:2]))
    return float(sides.prod() / smaller)
