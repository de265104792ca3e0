"""A model's signature, ready to check calls against it and to turn them into tensors.

Owns: names, shapes, the batch axis, the number of rows. Refuses to know: I/O, where signatures come
from, when they are out of date.

Invariants: what :meth:`Signature.bind` returns fits the signature in every respect; the tensors
come in the signature's order, whatever the caller's, so that equal calls look equal; arrays that
need no conversion are passed on, not copied.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

import numpy as np

from tritonasync.core.errors import InvalidInputError
from tritonasync.core.values import Array, InputTensor, ModelSpec
from tritonasync.handles.conversion import is_array, is_plain_array, to_array
from tritonasync.handles.slot import Casting, InputSlot, shape_text, tensor_text

_MISSING: Final = object()


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """What a model takes and gives.

    Attributes:
        spec: What it was made from.
        casting: Which arrays are converted unasked.
        slots: The inputs by name, in the model's order.
    """

    spec: ModelSpec
    casting: Casting
    slots: Mapping[str, InputSlot]

    def ready(
        self, inputs: Mapping[str, object], *, item: bool
    ) -> tuple[tuple[InputTensor, ...], int] | None:
        """Return what :meth:`bind` would if that is clear from a few comparisons, else ``None``.

        It is when each input is given, as an array of the very dtype, and all its axes are fixed:
        the case of one row among very many, where each microsecond counts.
        """
        if not inputs or len(inputs) != len(self.slots):
            return None
        tensors: list[InputTensor] = []
        rows = 0
        for name, slot in self.slots.items():
            array = inputs.get(name)
            if not is_plain_array(array) or array.dtype is not slot.dtype or not slot.item_shape:
                return None
            if slot.batched and not item:
                if array.shape[1:] != slot.item_shape or (tensors and len(array) != rows):
                    return None
                rows = len(array)
            elif array.shape != slot.item_shape:
                return None
            elif slot.batched:
                array, rows = array[np.newaxis], 1
            tensors.append(InputTensor(name, slot.datatype, array.shape, (array,)))
        return None if self.spec.batched and not rows else (tuple(tensors), rows)

    def bind(
        self, inputs: Mapping[str, object], *, item: bool = False
    ) -> tuple[tuple[InputTensor, ...], int]:
        """Return the tensors of a call, and its rows (0 for a model without a batch axis).

        Args:
            inputs: Arrays, or what :func:`~tritonasync.handles.conversion.to_array` makes into
                arrays, by input name. Borrowed: where nothing needs converting, the tensors refer
                to the caller's own memory.
            item: Whether each is one item without the batch axis; it is added as a view.

        Raises:
            InvalidInputError: Something does not fit; the message says what was expected.
        """
        ready = self.ready(inputs, item=item)
        if ready is not None:
            return ready
        batched = self.spec.batched
        tensors: list[InputTensor] = []
        for slot, array in self._arrays(inputs):
            _check_shape(slot, array, item=item)
            whole = array[np.newaxis] if item and batched else array
            tensors.append(InputTensor(slot.name, slot.datatype, whole.shape, (whole,)))
        return tuple(tensors), self._rows(tensors) if batched else 0

    def conversion_nbytes(self, inputs: Mapping[str, object]) -> int:
        """Return about how many bytes :meth:`bind` will write, to tell long work from short.

        Lists of Python's own values count as nothing: reading them holds the interpreter's lock,
        so another thread would not relieve the caller's.
        """
        total = 0
        for name, slot in self.slots.items():
            value = inputs.get(name)
            if is_array(value):
                if value.dtype != slot.dtype:
                    total += value.size * slot.dtype.itemsize
            elif isinstance(value, list | tuple) and value:
                rows = cast("Sequence[object]", value)
                total += len(rows) * rows[0].nbytes if is_array(rows[0]) else 0
        return total

    def outputs(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Return the names of the outputs to ask for; none means all.

        Raises:
            InvalidInputError: The model has no such output, or a name is given twice.
        """
        if names is None:
            return ()
        if isinstance(names, str):
            raise self._refuse(f"outputs is a list of names, not the string {names!r}")
        known = [output.name for output in self.spec.outputs]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise self._refuse(
                f"{_unknown_text('output', unknown, known)}; the model gives {_listed(known)}"
            )
        if len(set(names)) < len(names):
            raise self._refuse(f"an output is asked for twice: {_listed(names)}")
        return tuple(names)

    def inputs_text(self) -> str:
        """Return the inputs with datatypes and axes, for messages."""
        return "; ".join(
            tensor_text(tensor, batched=self.spec.batched) for tensor in self.spec.inputs
        )

    def _arrays(self, inputs: Mapping[str, object]) -> list[tuple[InputSlot, Array]]:
        found: list[tuple[InputSlot, object]] = []
        for name, slot in self.slots.items():
            value = inputs.get(name, _MISSING)
            if value is not _MISSING:
                found.append((slot, value))
            elif not slot.optional:
                raise self._wrong_names(inputs)
        if len(found) < len(inputs) or not found:
            raise self._wrong_names(inputs)
        return [(slot, to_array(value, slot)) for slot, value in found]

    def _wrong_names(self, inputs: Mapping[str, object]) -> InvalidInputError:
        known = list(self.slots)
        missing = [n for n, slot in self.slots.items() if not slot.optional and n not in inputs]
        unknown = [name for name in inputs if name not in self.slots]
        faults = [
            _unknown_text("input", unknown, known) if unknown else "",
            f"missing {_counted('input', missing)} {_listed(missing)}" if missing else "",
            "no input at all" if not inputs and not missing else "",
        ]
        return self._refuse(
            f"{' and '.join(filter(None, faults))}; the model takes {self.inputs_text()}"
        )

    def _rows(self, tensors: Sequence[InputTensor]) -> int:
        rows = tensors[0].shape[0]
        if any(tensor.shape[0] != rows for tensor in tensors):
            got = ", ".join(f"{tensor.name!r} has {tensor.shape[0]}" for tensor in tensors)
            raise self._refuse(f"all inputs must have the same number of rows (axis 0), but {got}")
        if rows == 0:
            shapes = ", ".join(f"{t.name!r} {shape_text(t.shape)}" for t in tensors)
            raise self._refuse(f"empty batch: expected at least one row, got {shapes}")
        return rows

    def _refuse(self, reason: str) -> InvalidInputError:
        return InvalidInputError(f"model {self.spec.name!r}: {reason}", model=self.spec.name)


@lru_cache(maxsize=512)
def signature_of(spec: ModelSpec, casting: Casting) -> Signature:
    """Return the signature of a model; equal specs share one, since handles are made freely."""
    return Signature(spec, casting, {t.name: InputSlot.of(spec, t, casting) for t in spec.inputs})


# --- shapes ------------------------------------------------------------------------------------


def _check_shape(slot: InputSlot, array: Array, *, item: bool) -> None:
    shape = array.shape
    if item and slot.batched:
        fits = slot.takes_item(shape)
    else:  # an array of 0 axes has none for the batch, nor for the message
        fits = bool(shape) and slot.takes_item(shape[1:] if slot.batched else shape)
    if fits:
        return
    raise slot.refuse(_wrong_shape(slot, shape, item=item))


def _wrong_shape(slot: InputSlot, shape: tuple[int, ...], *, item: bool) -> str:
    text = f"expected shape {slot.shape_text(item=item)}, got {shape_text(shape)}"
    if not shape:
        return f"{text}, a single value; a tensor has at least one axis: [value]"
    if not slot.batched:
        return text
    if not item and shape[0] == 0:
        return f"empty batch: {text}"
    if not item and slot.takes_item(shape):
        return f"{text}: one item without the batch axis; use handle.one(...), or array[None]"
    if item and slot.takes_item(shape[1:]):
        return f"{text}: a batch; call the handle itself, handle(...), or take one row"
    return text


# --- names -------------------------------------------------------------------------------------


def _unknown_text(kind: str, unknown: Sequence[str], known: Sequence[str]) -> str:
    named = [repr(name) + _suggestion(name, known) for name in unknown]
    return f"unknown {_counted(kind, unknown)} {', '.join(named)}"


def _suggestion(name: str, known: Iterable[str]) -> str:
    by_lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


def _counted(noun: str, items: Sequence[object]) -> str:
    return noun if len(items) == 1 else f"{noun}s"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
