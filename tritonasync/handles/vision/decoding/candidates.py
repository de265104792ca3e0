"""What a decoder makes of a model's outputs, for one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.values import Array

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What a model proposes for one image.

    Attributes:
        boxes: float32 ``[K, 4]``: left, top, right, bottom. In pixels of the model's input, unless
            one of the two below says otherwise.
        scores: float32 ``[K]``.
        class_ids: integers ``[K]``, as the model numbers its classes.
        normalized: Whether boxes are shares of width and height, from 0 to 1, and not pixels.
        image_size: Height and width of the image, if boxes are in it (in its pixels, or shares of
            it) and not in the model's input; nothing is undone then.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    normalized: bool = field(default=False, kw_only=True)
    image_size: tuple[int, int] | None = field(default=None, kw_only=True)


Decoder: TypeAlias = Callable[[Mapping[str, Array]], Sequence[Candidates]]
"""Makes the candidates of each image, in order, of the outputs by name: ``[N, ...]`` arrays,
floating-point ones as float32."""


def whole(numbers: Array) -> npt.NDArray[np.int64]:
    """Return class or image numbers as int64; NaN is -1, which is no class."""
    if numbers.dtype.kind in "iub":
        return numbers.astype(np.int64)
    kept = np.nan_to_num(np.rint(numbers), nan=-1, posinf=-1, neginf=-1)
    bounded: npt.NDArray[np.int64] = np.clip(kept, -1, 1 << 24).astype(np.int64)
    return bounded
