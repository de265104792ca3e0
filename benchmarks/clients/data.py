"""The rows that are sent, and whether the answers are theirs."""

from __future__ import annotations

import random
import string

import numpy as np
import numpy.typing as npt

from benchmarks.workloads import Workload

Array = npt.NDArray[np.generic]


def items(workload: Workload) -> list[Array]:
    """Return one item for each caller: a row without a batch axis, or a batch."""
    shape = workload.shape if workload.rows is None else (workload.rows, *workload.shape)
    make = _strings if workload.datatype == "BYTES" else _floats
    return [make(shape, seed) for seed in range(workload.callers)]


def fits(workload: Workload, item: Array, answer: Array) -> bool:
    """Whether an answer, with or without a batch axis of one, belongs to the item."""
    wanted = item if workload.echoes else item[..., 0, 0, :1]
    return answer.size == wanted.size and np.array_equal(answer.reshape(wanted.shape), wanted)


def _floats(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def _strings(shape: tuple[int, ...], seed: int) -> Array:
    source = random.Random(seed)
    count = int(np.prod(shape))
    texts = [
        "".join(source.choices(string.ascii_letters, k=source.randint(8, 40))) for _ in range(count)
    ]
    return np.array([text.encode() for text in texts], dtype=object).reshape(shape)
