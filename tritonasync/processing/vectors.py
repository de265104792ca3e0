"""Scores and embeddings: softmax, sigmoid, L2 normalisation, pooling of tokens, similarity.

Owns: the arithmetic, safe at both ends of the floating-point range. Refuses to know: tensors and
models.

Invariants: the last axis is the vector; the result is a new float32 array, and the argument is left
alone; no numpy warning is given. A NaN makes its own vector NaN and no other; what stands where
the mask is false makes no difference, NaN included.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import InvalidInputError

Vectors: TypeAlias = npt.NDArray[np.float32]
"""``[..., D]``."""

TokenMask: TypeAlias = npt.NDArray[np.bool_]
"""``[N, T]``: which tokens are real. They need not begin at the first."""


def softmax(logits: Vectors) -> Vectors:
    """Return the probabilities that ``logits [..., C]`` stand for; each vector adds up to 1.

    A vector with ``+inf``, or with nothing but ``-inf``, has no answer and becomes NaN.
    """
    with np.errstate(invalid="ignore", under="ignore", over="ignore"):  # inf - inf, 0 / 0 after it
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


# --- one vector of many ------------------------------------------------------------------------


def mean_of_tokens(tokens: Vectors, mask: TokenMask) -> Vectors:
    """Return the mean ``[N, D]`` of the real ones of ``tokens [N, T, D]``; of none it is zero.

    Added up in float64, so that the sum of large elements does not overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # float64 back to float32; inf - inf
        total = tokens.sum(axis=1, where=mask[:, :, None], dtype=np.float64)
        total /= np.maximum(mask.sum(axis=1), 1)[:, None]
        mean: Vectors = total.astype(np.float32)
    return mean


def first_token(tokens: Vectors, mask: TokenMask) -> Vectors:
    """Return the first real one ``[N, D]`` of ``tokens [N, T, D]``; of none, zero."""
    return _picked(tokens, mask, mask.argmax(axis=1))


def last_token(tokens: Vectors, mask: TokenMask) -> Vectors:
    """Return the last real one ``[N, D]`` of ``tokens [N, T, D]``; of none, zero.

    It is found by the mask, so that rows may be filled up on either side.
    """
    return _picked(tokens, mask, mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1))


def _picked(tokens: Vectors, mask: TokenMask, places: npt.NDArray[np.intp]) -> Vectors:
    vectors: Vectors = tokens[np.arange(len(tokens)), places]
    vectors[~mask.any(axis=1)] = 0
    return vectors


# --- how alike ---------------------------------------------------------------------------------


def similarity(a: npt.ArrayLike, b: npt.ArrayLike) -> Vectors:
    """Return the cosine of the angle between each vector of ``a`` and each of ``b``, from -1 to 1.

    They need not be of length 1. A zero vector is like nothing: 0, to itself as well. A vector with
    NaN or an infinity gives NaN, in its own row or column.

    Args:
        a: ``[N, D]``, or one vector ``[D]``.
        b: ``[M, D]``, or one vector ``[D]``.

    Returns:
        float32 ``[N, M]``; without the axis of what is one vector: ``[M]``, ``[N]``, or an array of
        no axes, which ``float()`` takes.

    Raises:
        InvalidInputError: They are no vectors of numbers, or differ in length.
    """
    left, right = _vectors_of(a, "a"), _vectors_of(b, "b")
    if left.shape[-1] != right.shape[-1]:
        raise InvalidInputError(
            "similarity: expected vectors of one length, got a "
            f"{list(left.shape)} and b {list(right.shape)}"
        )
    with np.errstate(invalid="ignore", under="ignore"):  # NaN
        cosines = l2_normalise(left) @ l2_normalise(right).T
        return np.asarray(np.clip(cosines, -1, 1), np.float32)  # rounding goes beyond 1


def _vectors_of(value: npt.ArrayLike, name: str) -> Vectors:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # of another library, with its advice
        raise InvalidInputError(f"similarity: {name} is no array: {error}") from error
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2):
        raise InvalidInputError(
            f"similarity: expected {name} to be real numbers [N, D], or one vector [D], got "
            f"{array.dtype} {list(array.shape)}"
        )
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)
