"""Rows of different lengths: which go together, and filled up to one length as an array.

Owns: the arithmetic. Refuses to know: what the rows are; batches of several callers
(:mod:`tritonasync.batching` makes them).

Invariants: each row is in one group, and the rows of a group keep their order; shorter groups come
first. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.values import Array

Mask: TypeAlias = npt.NDArray[np.bool_]

_STEPS: Final = tuple(16 << doubled for doubled in range(17))


def buckets_up_to(limit: int | None) -> tuple[int, ...]:
    """Return the lengths that rows are filled up to: 16, 32, 64, … and ``limit``, the last.

    Each is twice the one before, so that less than half of a row of more than 8 is filling. Without
    a limit they end at 2**20.
    """
    if limit is None:
        return _STEPS
    return (*[step for step in _STEPS if step < limit], limit)


def by_bucket(lengths: Sequence[int], buckets: Sequence[int]) -> list[list[int]]:
    """Return the indices of rows by the bucket that each fits into; no row is longer than all."""
    return _grouped([bisect_left(buckets, length) for length in lengths])


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Return the indices of rows by their very length."""
    return _grouped(lengths)


def _grouped(keys: Sequence[int]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return [groups[key] for key in sorted(groups)]


def mask_of(lengths: Sequence[int], length: int) -> Mask:
    """Return ``[N, length]``: true for the first so many of each row."""
    return np.arange(length) < np.asarray(lengths, np.intp)[:, None]


def filled_up(rows: Iterable[Sequence[int]], mask: Mask, value: int, dtype: np.dtype[Any]) -> Array:
    """Return rows as one array of the mask's shape, with ``value`` where there is nothing."""
    array = np.full(mask.shape, value, dtype)
    array[mask] = np.fromiter(chain.from_iterable(rows), dtype, int(mask.sum()))
    return array
