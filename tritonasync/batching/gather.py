"""From the rows of a batch to one call, and from its reply to theirs.

Owns: which rows are whose. Refuses to know: queues, tasks, limits.

Invariants: pure; nothing is copied on the way down (the message is where the rows meet; only rows
that are filled up are copied) nor on the way up (outputs are views on the batch's).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import TypeVar

import numpy as np

from tritonasync.batching.group import Group
from tritonasync.batching.key import BatchKey
from tritonasync.batching.padding import to_longest
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import Array, Call, InputTensor, Reply

_T = TypeVar("_T")


def call_parts(call: Call) -> tuple[Array, ...]:
    """Return one array for each input of a call, in order.

    An input in several parts is put together, which copies it. No handle makes such a one; parts of
    parts would cost every row of every batch more than this costs those who do.
    """
    return tuple(
        [
            tensor.parts[0] if len(tensor.parts) == 1 else _put_together(tensor)
            for tensor in call.inputs
        ]
    )


def _put_together(tensor: InputTensor) -> Array:
    item = tensor.shape[1:]
    return np.concatenate([part[None] if part.shape == item else part for part in tensor.parts])


def gather(
    model: str, version: str, key: BatchKey, groups: Sequence[Group[_T]], deadline: Deadline
) -> Call:
    """Return the call that carries the rows of all groups, in their order."""
    rows = sum([group.rows for group in groups])
    columns = zip(*[group.columns for group in groups], strict=True)
    inputs = tuple(
        [
            InputTensor(name, datatype, (rows, *item), tuple(chain.from_iterable(parts)))
            for (name, datatype, item), parts in zip(key.inputs, columns, strict=True)
        ]
    )
    if key.padding is not None:
        inputs = to_longest(inputs, key.padding)
    return Call(
        model,
        version,
        inputs,
        rows,
        key.outputs,
        key.parameters,
        deadline=deadline,
        idempotent=key.idempotent,
        device=key.device,
        output_memory=key.output_memory,
        wanted_until=max([group.deadline_at for group in groups], default=math.inf),
    )


def check_rows(reply: Reply, rows: int) -> None:
    """Refuse a reply whose rows cannot be told apart.

    Raises:
        ProtocolError: An output has another number of rows than the batch.
    """
    for name, array in reply.outputs.items():
        if array.shape[:1] != (rows,):
            raise ProtocolError(
                f"model {reply.model!r}, output {name!r}: expected {rows} rows for a batch of "
                f"{rows}, got shape {list(array.shape)}. A model whose outputs do not follow its "
                "inputs' rows must not be batched: open its pool with batching=None",
                model=reply.model,
            )


def cut_out(reply: Reply, start: int, rows: int) -> Reply:
    """Return the reply to the rows from ``start`` on, as views on the batch's.

    The reply is one that :func:`check_rows` has let pass.
    """
    if not start and all(len(array) == rows for array in reply.outputs.values()):
        return reply  # the whole
    outputs = {name: array[start : start + rows] for name, array in reply.outputs.items()}
    return Reply(reply.model, reply.version, outputs, "", reply.parameters)
