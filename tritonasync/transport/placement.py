"""Whether the tensors of a call travel in the message or in shared memory, and in which. Pure.

Owns: the choice for one call. Refuses to know: what a server takes (it is told), slots, messages.

The kinds: ``"system"`` is the host's memory, ``"cuda"`` a GPU's. A call whose arrays are on a GPU
goes through that GPU's memory where the server and the model can use it; any other through the
host's, from a measured size on. What the user insists on is done whatever the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tritonasync.core.values import Call, MemoryKind

Sharing = Literal["auto", "off", "system", "cuda"]
"""Which memory is shared with servers: what is worth it, none, or one kind whatever the size."""

LEAST_NBYTES: Final = 4096
"""Smaller tensors travel in the message, even beside placed ones: as many bytes of names and
numbers would go with a place."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where a call's tensors are to be.

    Attributes:
        inputs: The memory for inputs; ``None`` for the message.
        outputs: The memory for outputs; ``None`` for the message.
        insisted: Whether anything else is an error.
    """

    inputs: MemoryKind | None
    outputs: MemoryKind | None
    insisted: bool = False


def choose(
    call: Call,
    sharing: Sharing,
    *,
    min_nbytes: int,
    input_nbytes: int,
    output_nbytes: int,
    gpu: bool,
) -> Wanted:
    """Return where a call's tensors are to be.

    Args:
        call: The call.
        sharing: What the user chose.
        min_nbytes: The least that is worth a place.
        input_nbytes: Bytes of its inputs that can be placed.
        output_nbytes: Bytes of its outputs that can be placed, as far as is known.
        gpu: Whether the server and the model can use that GPU's memory, as far as is known.
    """
    to_gpu = call.output_memory == "gpu"
    if sharing == "off":
        return Wanted(None, None)
    if sharing == "auto":
        inputs: MemoryKind = "cuda" if call.device and gpu else "system"
        outputs: MemoryKind = "cuda" if to_gpu and gpu else "system"
        least = min_nbytes
    else:
        inputs = sharing
        outputs = "cuda" if sharing == "cuda" and to_gpu else "system"
        least = LEAST_NBYTES
    # A model that ran cannot be run again because a place turned out too small.
    place_outputs = output_nbytes >= least and call.idempotent
    return Wanted(
        inputs if input_nbytes >= least or (inputs == "cuda" and input_nbytes) else None,
        outputs if place_outputs else None,
        insisted=sharing in {"system", "cuda"},
    )
