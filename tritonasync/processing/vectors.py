"""Scores and embeddings: softmax, sigmoid, L2 normalisation.

Owns: the arithmetic, safe at both ends of the floating-point range. Refuses to know: tensors and
models.

Invariants: the last axis is the vector; the result is a new float32 array of the argument's shape,
and the argument is left alone; no numpy warning is given. A NaN makes its own vector NaN and no
other.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Vectors: TypeAlias = npt.NDArray[np.float32]
"""``[..., D]``."""


def softmax(logits: Vectors) -> Vectors:
    """Return the probabilities that ``logits [..., C]`` stand for; each vector adds up to 1.

    A vector with ``+inf``, or with nothing but ``-inf``, has no answer and becomes NaN.
    """
    with np.errstate(invalid="ignore", under="ignore"):  # inf - inf, and 0 / 0 after it
        peak = logits.max(axis=-1, keepdims=True, initial=-np.inf)
        powers: Vectors = np.exp(logits - peak)
        powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def sigmoid(logits: Vectors) -> Vectors:
    """Return ``1 / (1 + exp(-x))`` of each element, exact to rounding at both ends."""
    with np.errstate(under="ignore"):
        decay: Vectors = np.exp(-np.abs(logits))  # never above 1, so it cannot overflow
        share: Vectors = np.where(logits >= 0, 1, decay).astype(np.float32)
        share /= 1 + decay
    return share


def l2_normalise(vectors: Vectors) -> Vectors:
    """Return ``vectors [..., D]`` scaled to length 1; a zero vector stays zero.

    Each vector is divided by its largest element first, so that squares of very large or very small
    elements neither overflow nor vanish.
    """
    with np.errstate(invalid="ignore", under="ignore"):
        scaled = vectors / _zero_to_one(np.abs(vectors).max(axis=-1, keepdims=True, initial=0))
        scaled /= _zero_to_one(np.sqrt(np.square(scaled).sum(axis=-1, keepdims=True)))
    return scaled


def _zero_to_one(divisor: Vectors) -> Vectors:
    return np.where(divisor == 0, np.float32(1), divisor)
