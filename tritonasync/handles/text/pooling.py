"""One vector a row, of what a model gives: already one, or one for each token.

Owns: which poolings there are, and reading an output by one. Refuses to know: where masks come
from, scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import numpy as np

from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import Reply
from tritonasync.handles.binding import Binding
from tritonasync.handles.slot import shape_text
from tritonasync.processing.vectors import (
    TokenMask,
    Vectors,
    first_token,
    last_token,
    mean_of_tokens,
)

Pooling: TypeAlias = Literal["mean", "cls", "last", "none"]
"""How the vectors of a row's tokens become one: their mean, that of the first (which is [CLS] with
BERT's relatives), that of the last (with GPT's); ``"none"`` where the model gives one a row."""

POOLS: Final[dict[str, Callable[[Vectors, TokenMask], Vectors]]] = {
    "mean": mean_of_tokens,
    "cls": first_token,
    "last": last_token,
}


def pooled(
    binding: Binding, reply: Reply, rows: int, mask: TokenMask | None, pooling: Pooling | None
) -> Vectors:
    """Return one vector a row, of which the real tokens are those of the mask, or all.

    Raises:
        ProtocolError: The output is of another shape.
    """
    raw = binding.floats(reply, binding.output, rows)
    pool = POOLS.get(pooling or "none")
    if pool is None:
        if raw.ndim < 2 or any(axis != 1 for axis in raw.shape[2:]):
            raise _wrong_shape(binding, "[batch, D]", raw)
        return raw.reshape(raw.shape[:2])
    least = 1 if mask is None else mask.shape[1]
    if raw.ndim != 3 or raw.shape[1] < least:
        raise _wrong_shape(binding, f"[batch, {least} tokens or more, D]", raw)
    if mask is None:
        mask = np.ones(raw.shape[:2], np.bool_)
    return pool(raw[:, : mask.shape[1]], mask)


def _wrong_shape(binding: Binding, expected: str, got: Vectors) -> ProtocolError:
    model = binding.spec.name
    return ProtocolError(
        f"model {model!r}, output {binding.output.name!r}: expected {expected}, got "
        f"{shape_text(got.shape)}",
        model=model,
    )
