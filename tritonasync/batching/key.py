"""What rows must have in common to share a request.

Owns: the comparison, and what follows from what is equal. Refuses to know: queues, limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import TypeAlias

from tritonasync.core.policies import Padding
from tritonasync.core.values import Call, Datatype, InputTensor, ModelSpec, OutputMemory, Parameters
from tritonasync.wire.dtypes import numpy_dtype

InputRow: TypeAlias = tuple[str, Datatype, tuple[int, ...]]
"""An input's name, datatype, and the shape of one row of it; -1 for the axis to be filled up."""


@dataclass(frozen=True, slots=True)
class BatchKey:
    """A kind of rows: those of one model with equal keys can be sent in one request.

    Attributes:
        inputs: The inputs, in the order of the model's signature.
        outputs: Names of the outputs wanted; empty for all.
        said: The request parameters (priority and queue timeout are among them) as they read.
            ``True``, ``1`` and ``1.0``, ``0.0`` and ``-0.0`` are equal, and say different things to
            the server; and what is no parameter at all is not for a comparison to refuse.
        padding: How rows are filled up to one length, if they may differ.
        idempotent: Whether it does no harm if the model runs twice.
        device: Whether rows are in a GPU's memory.
        output_memory: Where outputs are wanted.
        parameters: The parameters themselves.
        row_nbytes: The bytes of a row's inputs; ``None`` if they differ from row to row.
    """

    inputs: tuple[InputRow, ...]
    outputs: tuple[str, ...]
    said: tuple[tuple[str, type, str], ...]
    padding: Padding | None = None
    idempotent: bool = True
    device: bool = False
    output_memory: OutputMemory = "host"
    parameters: Parameters = field(default=(), compare=False)
    row_nbytes: int | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_nbytes", _row_nbytes(self.inputs))


def is_batched(spec: ModelSpec) -> bool:
    """Return whether the rows of different calls of a model may share a request at all."""
    return spec.batched and not spec.stateful and not spec.decoupled


def key_of(call: Call) -> BatchKey:
    """Return the key of a call's rows. The order of its parameters makes no difference."""
    inputs: tuple[InputRow, ...] = tuple([(t.name, t.datatype, t.shape[1:]) for t in call.inputs])
    memory = call.device, call.output_memory
    if call.padding is None and not call.parameters:
        return _plain_key(inputs, call.outputs, call.idempotent, memory)
    if call.padding is not None:
        inputs = tuple([_ragged_row(tensor, call.padding) for tensor in call.inputs])
    said = [(repr(name), type(value), repr(value)) for name, value in call.parameters]
    said.sort(key=itemgetter(0))
    return BatchKey(
        inputs,
        call.outputs,
        tuple(said),
        call.padding,
        call.idempotent,
        *memory,
        parameters=call.parameters,
    )


@lru_cache(maxsize=1024)
def _plain_key(
    inputs: tuple[InputRow, ...],
    outputs: tuple[str, ...],
    idempotent: bool,  # noqa: FBT001 - part of the cache's key
    memory: tuple[bool, OutputMemory],
) -> BatchKey:
    return BatchKey(inputs, outputs, (), None, idempotent, *memory)


def _ragged_row(tensor: InputTensor, padding: Padding) -> InputRow:
    name, shape = tensor.name, tensor.shape[1:]
    if name in padding.inputs or name == padding.mask:
        shape = (*shape[: padding.axis], -1, *shape[padding.axis + 1 :])
    return name, tensor.datatype, shape


def _row_nbytes(inputs: tuple[InputRow, ...]) -> int | None:
    if any(datatype == "BYTES" or -1 in shape for _, datatype, shape in inputs):
        return None
    return sum([numpy_dtype(datatype).itemsize * math.prod(shape) for _, datatype, shape in inputs])
