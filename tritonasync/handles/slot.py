"""What a model expects of one input, and the words for saying so.

Owns: the element type and axes of an input, ready to be compared, and how they read in a message.
Refuses to know: values, and what to do with them.

Invariants: every refusal names the model, the input, what was expected and what came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from tritonasync.core.errors import InvalidInputError
from tritonasync.core.values import Datatype, ModelSpec, TensorSpec
from tritonasync.wire.dtypes import numpy_dtype

Casting: TypeAlias = Literal["safe", "same_kind"]
"""Which arrays are converted to the model's dtype unasked, in numpy's words.

``"safe"`` keeps every value as it is (uint8 to float32, float16 to float32), but that numpy also
calls 64-bit integers to float64 safe, which rounds beyond 2**53; ``"same_kind"`` also
loses width (float64 to float32, int64 to int32), as ``array.astype`` does.
"""


def shape_text(axes: tuple[int, ...], *, batched: bool = False) -> str:
    """Return axes as a message shows them: ``[batch, 3, any, any]``."""
    words = ["any" if axis < 0 else str(axis) for axis in axes]
    if batched and words:
        words[0] = "batch"
    return f"[{', '.join(words)}]"


def tensor_text(tensor: TensorSpec, *, batched: bool) -> str:
    """Return name, datatype and axes of a tensor: ``'IMAGE' FP32 [batch, 3, 224, 224]``."""
    optional = " (optional)" if tensor.optional else ""
    shape = shape_text(tensor.shape, batched=batched)
    return f"{tensor.name!r} {tensor.datatype} {shape}{optional}"


@dataclass(frozen=True, slots=True)
class InputSlot:
    """One input of a model, ready to be compared with what is given for it.

    Attributes:
        model: The model's name.
        name: The input's name.
        datatype: Triton's name of the element type.
        dtype: Its numpy dtype, little-endian.
        casting: What is converted unasked.
        item_axes: The axes of one item: those of the model without the batch axis, -1 for any size.
        item_shape: The same when every axis is fixed, else ``None``.
        batched: Whether axis 0 of a call's array is the batch.
        optional: Whether it may be left out.
    """

    model: str
    name: str
    datatype: Datatype
    dtype: np.dtype[Any]
    casting: Casting
    item_axes: tuple[int, ...]
    item_shape: tuple[int, ...] | None
    batched: bool
    optional: bool

    @classmethod
    def of(cls, spec: ModelSpec, tensor: TensorSpec, casting: Casting) -> InputSlot:
        """Return the slot of one of the model's inputs."""
        axes = tensor.shape[1:] if spec.batched else tensor.shape
        return cls(
            model=spec.name,
            name=tensor.name,
            datatype=tensor.datatype,
            dtype=numpy_dtype(tensor.datatype),
            casting=casting,
            item_axes=axes,
            item_shape=None if -1 in axes else axes,
            batched=spec.batched,
            optional=tensor.optional,
        )

    def takes_item(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape is one item (or all, without a batch axis)."""
        if self.item_shape is not None:
            return shape == self.item_shape
        return len(shape) == len(self.item_axes) and all(
            want in (-1, got) for want, got in zip(self.item_axes, shape, strict=True)
        )

    def element_text(self) -> str:
        """Return the expected elements for a message: ``FP32 (float32)``."""
        if self.datatype == "BYTES":
            return "BYTES (str or bytes)"
        return f"{self.datatype} ({self.dtype})"

    def shape_text(self, *, item: bool = False) -> str:
        """Return the expected shape for a message, of a call's array or of one item."""
        if self.batched and not item:
            return shape_text((-1, *self.item_axes), batched=True)
        return shape_text(self.item_axes)

    def refuse(self, reason: str) -> InvalidInputError:
        """Return the error that names model and input before the reason."""
        return InvalidInputError(
            f"model {self.model!r}, input {self.name!r}: {reason}", model=self.model
        )
