"""Rows of different lengths, filled up to one length on the way down and cut back on the way up.

Owns: the arithmetic of lengths, and the stage that applies it to single calls. Refuses to know:
which rows share a batch.

Invariants: a row's own elements come first, unchanged, in what is sent and in what is given back;
each row that is filled up is copied once, and one that has the length already is not.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tritonasync.core.errors import InvalidInputError
from tritonasync.core.offload import LONG_NBYTES, in_worker
from tritonasync.core.policies import Padding, PadValue
from tritonasync.core.ports import Invoker
from tritonasync.core.values import Array, Call, InputTensor, Reply


class Padder:
    """Fills calls up to their bucket, and cuts replies back (an ``Invoker``).

    A call without buckets goes on as it is: it is filled up with its batch.

    Args:
        next_stage: Where calls go.
    """

    def __init__(self, next_stage: Invoker) -> None:
        self._next = next_stage

    def infer(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """Run one inference.

        Raises:
            InvalidInputError: The inputs to be filled up differ in length, or are longer than the
                last bucket.
            TritonError: As the next stage raises it.
        """
        return self._next.infer(call) if call.padding is None else self._pad(call, call.padding)

    async def _pad(self, call: Call, padding: Padding) -> Reply:
        length = length_of(call, padding)
        if padding.buckets:
            fill = partial(_in_bucket, call, padding, length)
            long = _nbytes(call) * padding.buckets[-1] >= LONG_NBYTES * max(length, 1)
            call = (
                await in_worker(fill, deadline=call.deadline, model=call.model) if long else fill()
            )
        reply = await self._next.infer(call)
        return cut_back(reply, padding, length)


def _nbytes(call: Call) -> int:
    return sum([part.nbytes for tensor in call.inputs for part in tensor.parts])


def length_of(call: Call, padding: Padding) -> int:
    """Return the length of a call's rows along the axis that differs.

    Raises:
        InvalidInputError: The inputs to be filled up differ in it.
    """
    axis = padding.axis + 1
    lengths = {t.name: t.shape[axis] for t in call.inputs if _is_ragged(t, padding)}
    if len(set(lengths.values())) != 1:
        raise InvalidInputError(
            f"model {call.model!r}: inputs that are filled up together must have one length in "
            f"axis {axis}, but {', '.join(f'{n!r} has {v}' for n, v in lengths.items()) or 'none'}",
            model=call.model,
        )
    return lengths.popitem()[1]


def _is_ragged(tensor: InputTensor, padding: Padding) -> bool:
    return tensor.name in padding.inputs or tensor.name == padding.mask


def _in_bucket(call: Call, padding: Padding, length: int) -> Call:
    """Return the call filled up to its bucket."""
    bucket = next((bucket for bucket in padding.buckets if length <= bucket), None)
    if bucket is None:
        raise InvalidInputError(
            f"model {call.model!r}: rows of length {length} are longer than the last bucket, "
            f"{padding.buckets[-1]}; cut them, or give the Padding a longer one",
            model=call.model,
        )
    return replace(call, inputs=_filled_up(call.inputs, padding, bucket), padding=None)


def to_longest(inputs: tuple[InputTensor, ...], padding: Padding) -> tuple[InputTensor, ...]:
    """Return the inputs of a batch, with rows filled up to the longest.

    The parts of ragged inputs have their batch axis; the shapes have -1 where the length is to be.
    """
    axis = padding.axis + 1
    first = next(tensor for tensor in inputs if _is_ragged(tensor, padding))
    return _filled_up(inputs, padding, max([part.shape[axis] for part in first.parts]))


def _filled_up(
    inputs: Sequence[InputTensor], padding: Padding, length: int
) -> tuple[InputTensor, ...]:
    return tuple(
        [
            _tensor_filled_up(tensor, padding, length) if _is_ragged(tensor, padding) else tensor
            for tensor in inputs
        ]
    )


def _tensor_filled_up(tensor: InputTensor, padding: Padding, length: int) -> InputTensor:
    axis = padding.axis + 1
    value = padding.inputs.get(tensor.name, 0)  # the mask's is 0
    parts = tuple([_part_filled_up(part, axis, length, value) for part in tensor.parts])
    shape = (*tensor.shape[:axis], length, *tensor.shape[axis + 1 :])
    return InputTensor(tensor.name, tensor.datatype, shape, parts)


def _part_filled_up(part: Array, axis: int, length: int, value: PadValue) -> Array:
    own = part.shape[axis]
    if own == length:
        return part
    dtype = np.dtype(object) if part.dtype.kind in "SUT" else part.dtype  # any string fits
    whole = np.empty((*part.shape[:axis], length, *part.shape[axis + 1 :]), dtype)
    before = (slice(None),) * axis
    whole[(*before, slice(own))] = part
    whole[(*before, slice(own, None))] = value
    return whole


def cut_back(reply: Reply, padding: Padding, length: int) -> Reply:
    """Return the reply with its outputs at the rows' own length, as views."""
    axis = padding.axis + 1
    own = (slice(None),) * axis + (slice(length),)
    outputs = {
        name: array[own] if name in (padding.outputs or ()) and array.ndim > axis else array
        for name, array in reply.outputs.items()
    }
    return replace(reply, outputs=outputs)
