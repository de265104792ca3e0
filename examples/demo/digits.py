"""scikit-learn's handwritten digits, split once and for all.

Owns: the scale of the pixels (0 to 1) and the split. Every fourth digit is held out: no network is
trained on it, and every figure of the demo is taken on it. The rule needs no random numbers, so it
is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

CLASSES = [str(digit) for digit in range(10)]
"""The ten labels, in the order of the networks' outputs."""

HELD_OUT_EVERY = 4


@dataclass(frozen=True, slots=True)
class Digits:
    """Handwritten digits.

    Attributes:
        images: float32 ``[N, 8, 8]``, 0 (paper) to 1 (ink).
        labels: int64 ``[N]``, 0 to 9.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def training() -> Digits:
    """Return the 1,348 digits that networks are trained on."""
    return _digits(held_out=False)


def held_out() -> Digits:
    """Return the 449 digits that no network has seen."""
    return _digits(held_out=True)


def _digits(*, held_out: bool) -> Digits:
    images, labels = load_digits(return_X_y=True)
    chosen = (np.arange(len(labels)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out
    pixels = images[chosen].reshape(-1, 8, 8) / 16  # the data set counts ink from 0 to 16
    return Digits(pixels.astype(np.float32), labels[chosen].astype(np.int64))
