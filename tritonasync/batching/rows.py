"""Cutting a call by rows, and putting the replies together again.

Owns: which rows go where. Refuses to know: I/O, tasks, why a call is cut.

Invariants: pure; the rows of the parts, one after the other, are the rows of the call; no part has
more rows than the limit, or none; inputs are cut as views, never copied; each output is copied
once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from tritonasync.core.errors import InvalidInputError, ProtocolError
from tritonasync.core.values import Array, Call, InputTensor, Reply
from tritonasync.memory.device import as_host


def sizes(rows: int, limit: int) -> list[int]:
    """Return the rows of each part: full parts of ``limit`` rows, then the rest.

    Full parts rather than even ones: models are tuned for their largest batch, and backends plan
    for a batch size when they first see it, so few different sizes are better than many.
    """
    full, rest = divmod(rows, limit)
    return [limit] * full + [rest] * bool(rest)


def check_strings(call: Call) -> None:
    """Refuse what cannot be sent as a string, before the first part is sent.

    Raises:
        InvalidInputError: An element of a BYTES input is neither ``bytes`` nor ``str``; it is named
            by its row in the whole call.
    """
    for tensor in call.inputs:
        first_row = 0
        for part in tensor.parts:
            if part.dtype == object:
                _check_elements(call, tensor.name, part, first_row)
            first_row += len(part)


def _check_elements(call: Call, name: str, part: Array, first_row: int) -> None:
    elements: list[object] = part.ravel().tolist()
    kinds: set[type] = set(map(type, elements))
    if all(issubclass(kind, bytes | str) for kind in kinds):
        return
    index = next(i for i, element in enumerate(elements) if not isinstance(element, bytes | str))
    row = first_row + index // (part.size // len(part))
    raise InvalidInputError(
        f"model {call.model!r}, input {name!r}: row {row} holds a "
        f"{type(elements[index]).__name__}, and BYTES are bytes or str",
        model=call.model,
    )


def cut(call: Call, limit: int) -> list[Call]:
    """Return calls of at most ``limit`` rows each that together are the call.

    Each has the outputs, parameters, id and deadline of the whole.
    """
    counts = sizes(call.rows, limit)
    columns = [_cut_tensor(tensor, counts) for tensor in call.inputs]
    return [
        replace(call, inputs=inputs, rows=count)
        for count, inputs in zip(counts, zip(*columns, strict=True), strict=True)
    ]


def _cut_tensor(tensor: InputTensor, counts: Sequence[int]) -> Iterator[InputTensor]:
    """Give a tensor of each number of rows in turn, whose parts are views on the tensor's."""
    item = tensor.shape[1:]
    parts = iter(tensor.parts)
    part, used = next(parts), 0
    for count in counts:
        views: list[Array] = []
        missing = count
        while missing:
            if used == len(part):
                part, used = next(parts), 0
                continue
            taken = min(missing, len(part) - used)
            views.append(part[used : used + taken])
            used += taken
            missing -= taken
        yield InputTensor(tensor.name, tensor.datatype, (count, *item), tuple(views))


def join(call: Call, parts: Sequence[Call], replies: Sequence[Reply]) -> Reply:
    """Return one reply from those to the parts, in order, with one copy of each output.

    Parameters are the first reply's. The version names all that answered, as ``"1,2"``, should the
    model have been replaced between two parts.

    Raises:
        ProtocolError: A reply lacks an output that another has, has other rows than its part, or
            has another shape or dtype than the rest.
    """
    first = replies[0]
    names = dict.fromkeys(name for reply in replies for name in reply.outputs)
    outputs = {name: _joined(call, name, parts, replies) for name in names}
    versions = dict.fromkeys(reply.version for reply in replies)
    return Reply(first.model, ",".join(versions), outputs, call.request_id, first.parameters)


def _joined(call: Call, name: str, parts: Sequence[Call], replies: Sequence[Reply]) -> Array:
    arrays: list[Array] = []
    for part, reply in zip(parts, replies, strict=True):
        array = reply.outputs.get(name)
        if array is None or array.shape[:1] != (part.rows,):
            got = "none" if array is None else f"shape {list(array.shape)}"
            raise _unjoinable(call, name, f"expected {part.rows} rows for {part.rows}, got {got}")
        arrays.append(array)
    if len({(array.shape[1:], array.dtype) for array in arrays}) > 1:
        got = ", ".join(sorted({f"{a.dtype}{list(a.shape[1:])}" for a in arrays}))
        raise _unjoinable(call, name, f"its rows are not alike in all replies: {got}")
    # Of a GPU, or of both sides: whoever wants them there moves the whole.
    return np.concatenate(as_host(arrays))


def _unjoinable(call: Call, name: str, reason: str) -> ProtocolError:
    return ProtocolError(
        f"model {call.model!r}, output {name!r}: the replies to the parts of a call of {call.rows} "
        f"rows cannot be joined: {reason}. Send no more than the model's max_batch_size at once",
        model=call.model,
    )
