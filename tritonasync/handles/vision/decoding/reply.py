"""A reply's outputs as decoders take them.

Owns: which outputs have a row for each image, and floating-point numbers as float32. Refuses to
know: what the outputs mean.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from tritonasync.core.values import Array, Reply, TensorSpec
from tritonasync.handles.binding import Binding

_FLOATS = ("FP16", "BF16", "FP32", "FP64")


def seen(binding: Binding, reply: Reply, rows: int) -> tuple[TensorSpec, ...]:
    """Return the outputs with the shapes that they have in a reply.

    Raises:
        ProtocolError: One is not there.
    """
    return tuple(
        replace(output, shape=_present(binding, reply, output, rows).shape)
        for output in binding.outputs
    )


def arrays(
    binding: Binding, reply: Reply, rows: int, names: Collection[str] | None, *, by_row: bool
) -> dict[str, Array]:
    """Return outputs by name, floating-point ones as float32.

    Args:
        binding: What was called.
        reply: Its reply.
        rows: How many images there were.
        names: The outputs wanted; ``None`` for all.
        by_row: Whether each must have a row for each image.

    Raises:
        ProtocolError: One is not there, or has another number of rows.
    """
    wanted = [output for output in binding.outputs if names is None or output.name in names]
    found: dict[str, Array] = {}
    for output in wanted:
        count = rows if by_row else len(_present(binding, reply, output, rows))
        reading = binding.floats if output.datatype in _FLOATS else binding.array
        found[output.name] = reading(reply, output, count)
    return found


def _present(binding: Binding, reply: Reply, output: TensorSpec, rows: int) -> Array:
    array = reply.outputs.get(output.name)
    return binding.array(reply, output, rows) if array is None or array.ndim == 0 else array


def any_free(outputs: Sequence[TensorSpec]) -> bool:
    """Return whether an axis is free, besides that of the batch."""
    return any(-1 in output.shape[1:] for output in outputs)
