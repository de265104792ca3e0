"""A user's padding, seen with a model's signature.

Owns: making the mask; which outputs are cut back. Refuses to know: filling up and cutting back
(``batching.padding`` does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.policies import Padding, PadValue
from tritonasync.handles.conversion import is_array
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import InputSlot


class RaggedRows:
    """What a padding means for the model of a handle.

    Args:
        padding: The user's.

    Raises:
        ConfigurationError: It is no padding.
    """

    def __init__(self, padding: Padding) -> None:
        if not isinstance(padding, Padding):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"padding is a Padding(inputs={{…}}) or None, not {padding!r}")
        self._padding = padding
        self._known: tuple[Signature, Padding] | None = None

    def for_model(self, signature: Signature) -> Padding:
        """Return the padding with the outputs to cut back named.

        Raises:
            ConfigurationError: The model has no such input or output, or its axis is not free.
        """
        if self._known is None or self._known[0] is not signature:
            self._known = signature, self._resolved(signature)
        return self._known[1]

    def _resolved(self, signature: Signature) -> Padding:
        padding, spec = self._padding, signature.spec
        if not spec.batched:
            raise self._misfit(signature, "its max_batch_size is 0: rows share no batch")
        axis = padding.axis + 1
        for name, value in padding.inputs.items():
            if name in signature.slots and not _is_element(value, signature.slots[name]):
                kind = signature.slots[name].element_text()
                raise self._misfit(signature, f"{value!r} is no {kind} to fill up {name!r} with")
        for name in (*padding.inputs, *filter(None, (padding.mask,))):
            slot = signature.slots.get(name)
            if slot is None:
                raise self._misfit(signature, f"it has no input {name!r}")
            if slot.item_axes[padding.axis : axis] != (-1,):
                raise self._misfit(signature, f"axis {axis} of its input {name!r} is not free")
        free = {output.name for output in spec.outputs if output.shape[axis : axis + 1] == (-1,)}
        if padding.outputs is None:
            return replace(padding, outputs=tuple(sorted(free)))
        unknown = set(padding.outputs) - {output.name for output in spec.outputs}
        if unknown:
            raise self._misfit(signature, f"it has no output {', '.join(map(repr, unknown))}")
        return padding

    def _misfit(self, signature: Signature, reason: str) -> ConfigurationError:
        spec = signature.spec
        return ConfigurationError(
            f"model {spec.name!r} cannot have its rows filled up by {self._padding}: {reason}; it "
            f"takes {signature.inputs_text()}",
            model=spec.name,
        )

    def with_mask(
        self, arrays: Mapping[str, npt.ArrayLike], signature: Signature, *, item: bool
    ) -> Mapping[str, npt.ArrayLike]:
        """Return the arrays with the mask of their elements, unless the user gave one.

        Raises:
            ConfigurationError: The model's mask has more free axes than the one filled up.
            InvalidInputError: The rows of the call differ in length.
        """
        padding = self.for_model(signature)
        name = padding.mask
        given = [arrays[ragged] for ragged in padding.inputs if ragged in arrays]
        if name is None or name in arrays or not given:
            return arrays
        slot = signature.slots[name]
        if slot.item_axes.count(-1) > 1:
            raise self._misfit(signature, f"its mask {name!r} has several free axes; give it")
        try:
            shape = given[0].shape if is_array(given[0]) else np.shape(given[0])
        except ValueError as error:
            raise slot.refuse(
                "the rows of one call must have one length; call handle.one(...) for each, and "
                f"they are filled up to share a batch ({error})"
            ) from error
        return {**arrays, name: _ones(slot, shape, padding.axis, item=item)}


def _is_element(value: PadValue, slot: InputSlot) -> bool:
    """Return whether an input can hold a value as it is."""
    if slot.datatype == "BYTES":
        return isinstance(value, str | bytes)
    if not isinstance(value, int | float | np.number):
        return False
    try:
        element = slot.dtype.type(value)
    except (ValueError, OverflowError):
        return False
    return slot.dtype.kind not in "iub" or bool(element == value)


def _ones(
    slot: InputSlot, shape: tuple[int, ...], axis: int, *, item: bool
) -> npt.NDArray[np.generic]:
    """Return a mask for rows of a shape; for a shape of too few axes, one that is refused too."""
    rows, of_item = ((), shape) if item else (shape[:1], shape[1:])
    length = of_item[axis] if axis < len(of_item) else 0
    return np.ones((*rows, *[length if size < 0 else size for size in slot.item_axes]), slot.dtype)
