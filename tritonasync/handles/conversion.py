"""One value given for an input becomes an array with the elements that the model takes.

Owns: which conversions happen unasked. Refuses to know: shapes (beyond raggedness), batches, calls.

Rules:

- An array (or numpy scalar, or anything that numpy reads as an array, such as a Pillow image or a
  torch tensor on the CPU) has a dtype of its own. It is converted if numpy calls the cast safe
  (``numpy.can_cast(..., "safe")``), or by ``casting="same_kind"``, and is refused otherwise.
- Python's own numbers, alone or in lists, have none, as numpy's promotion (NEP 50) also says. They
  take the model's dtype if their kind goes into it (int and bool into integers, these and float
  into floats, bool into BOOL, str and bytes into BYTES) and each value is in range.
- An array in a GPU's memory stays there, as a CuPy array (DLPack, ``__cuda_array_interface__``).
- Nothing is copied when nothing needs converting. An array in the other byte order is left as it
  is: the message is written in the right order with no copy in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, TypeGuard

import numpy as np

from tritonasync.core.values import Array
from tritonasync.handles.slot import InputSlot
from tritonasync.memory.device import (
    as_device_array,
    converted,
    host_array,
    is_device_array,
)

_PYTHON: Final = (bool, int, float, str, bytes)
"""Types without a dtype of their own; bool stands before int, whose subclass it is."""

_TAKES: Final[dict[str, frozenset[type]]] = {
    "b": frozenset({bool}),
    "i": frozenset({bool, int}),
    "u": frozenset({bool, int}),
    "f": frozenset({bool, int, float}),
    "O": frozenset({str, bytes}),
}
"""Python types that go into a dtype, by the dtype's kind."""

_STRINGS: Final = frozenset("OSUT")
_NUMBERS: Final = frozenset("biuf")

_DEEPEST: Final = 64
"""numpy's own limit of axes."""

_SHOWN: Final = 8
"""How many lengths or shapes a message lists."""


def is_array(value: object) -> TypeGuard[Array]:
    """Return whether the value is a numpy array, and say so to the type checker."""
    return isinstance(value, np.ndarray)


def is_plain_array(value: object) -> TypeGuard[Array]:
    """Return whether the value is a numpy array and of no subclass, such as a masked array."""
    return type(value) is np.ndarray


def to_array(value: object, slot: InputSlot) -> Array:
    """Return the value as an array of the slot's elements: the same array if it is one already.

    Object arrays, ``S``, ``U`` and StringDType arrays go to a BYTES input as they are.

    Raises:
        InvalidInputError: It cannot be converted without being asked, it is ragged, masked, or no
            array at all.
    """
    if type(value) is np.ndarray and value.dtype == slot.dtype:
        return value  # the common case, in a tenth of the time
    if is_device_array(value):
        return _on_device(value, slot)
    if isinstance(value, np.ma.MaskedArray):
        raise slot.refuse(
            "got a masked array, and a model knows no mask; fill it first: array.filled(value)"
        )
    if _is_list(type(value)) or _python_type(type(value)):
        return _from_python(value, slot)
    return _cast(_read(value, slot), slot)


def _read(value: object, slot: InputSlot) -> Array:
    """Return whatever numpy can read as an array, without a copy where that can be."""
    kind: type = type(value)
    if not (_is_array_like(kind) or kind in (memoryview, bytearray)):
        array = host_array(value)  # by DLPack
        if array is not None:
            return array
        raise slot.refuse(f"expected an array of {slot.element_text()}, got {_type_name(kind)}")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # torch: on a GPU, or needs grad
        raise slot.refuse(f"{_type_name(kind)} cannot be read as an array: {error}") from error


def _on_device(value: object, slot: InputSlot) -> Array:
    """Return an array in a GPU's memory as CuPy has it, converted there if that is safe."""
    array = as_device_array(value)
    if array.dtype == slot.dtype:
        return array
    if slot.dtype.kind == "O" or not np.can_cast(array.dtype, slot.dtype, slot.casting):
        raise slot.refuse(
            f"expected {slot.element_text()}, got {array.dtype} on a GPU; convert it there first"
        )
    return converted(array, slot.dtype)


def _python_type(kind: type) -> type | None:
    """Return which of Python's own types it is, or a subclass of; numpy's scalars are none."""
    if issubclass(kind, np.generic):  # float64 is a float, too
        return None
    return next((own for own in _PYTHON if issubclass(kind, own)), None)


def _is_array_like(kind: type) -> bool:
    return hasattr(kind, "__array__") or hasattr(kind, "__array_interface__")


def _is_list(kind: type) -> bool:
    return issubclass(kind, (list, tuple, range))


def _type_name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


# --- values with a dtype of their own ----------------------------------------------------------


def _cast(array: Array, slot: InputSlot) -> Array:
    if array.dtype == slot.dtype:
        return array
    if slot.datatype == "BYTES":
        if array.dtype.kind in _STRINGS:
            return array
        raise _wrong_dtype(array, slot)
    if np.can_cast(array.dtype, slot.dtype, "equiv"):  # the other byte order
        return array
    if not _is_number(array.dtype) or _is_raw_bfloat16(slot):
        raise _wrong_dtype(array, slot)
    if not np.can_cast(array.dtype, slot.dtype, slot.casting):
        raise _wrong_dtype(array, slot)
    with np.errstate(over="ignore"):  # same_kind: the user has asked for it
        return array.astype(slot.dtype)


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in _NUMBERS or dtype.name == "bfloat16"


def _is_raw_bfloat16(slot: InputSlot) -> bool:
    """Return whether ``uint16`` stands for the bits of a BF16, so that no number goes into it."""
    return slot.datatype == "BF16" and slot.dtype.kind == "u"


def _wrong_dtype(array: Array, slot: InputSlot) -> Exception:
    expected = f"expected {slot.element_text()}, got {array.dtype}"
    if slot.datatype == "BYTES":
        return slot.refuse(f"{expected}; give str or bytes, or array.astype(str)")
    if _is_raw_bfloat16(slot):
        return slot.refuse(
            f"{expected}; without the package ml_dtypes, BF16 is given as its raw bits in uint16: "
            "pip install ml_dtypes, and convert with array.astype(ml_dtypes.bfloat16)"
        )
    if slot.datatype == "BF16" and array.dtype == np.uint16:
        return slot.refuse(f"{expected}; if these are raw bits: array.view(ml_dtypes.bfloat16)")
    return slot.refuse(f"{expected}; {_remedy(array, slot)}")


def _remedy(array: Array, slot: InputSlot) -> str:
    module = "ml_dtypes" if slot.datatype == "BF16" else "numpy"
    name = "bool_" if slot.datatype == "BOOL" else slot.dtype.name
    convert = f"convert it with array.astype({module}.{name})"
    if _is_number(array.dtype) and np.can_cast(array.dtype, slot.dtype, "same_kind"):
        return f'{convert}, or make the handle with casting="same_kind"'
    return f"{convert} if that is what you mean"


# --- Python's own values -----------------------------------------------------------------------


def _from_python(value: object, slot: InputSlot) -> Array:
    shape, leaves = _unnest(value, slot)
    kinds = set(map(type, leaves))
    owns = {own for kind in kinds if (own := _python_type(kind))}
    if len(owns) < len({_python_type(kind) for kind in kinds}):
        return _from_mixed(value, leaves, kinds, slot)
    takes = (
        frozenset[type]() if _is_raw_bfloat16(slot) else _TAKES.get(slot.dtype.kind, _TAKES["f"])
    )
    if not owns <= takes:
        raise _wrong_leaves(owns - takes, slot)
    if slot.datatype == "BYTES":
        strings = np.empty(len(leaves), dtype=object)
        strings[:] = leaves
        return strings.reshape(shape)
    convert = _whole_numbers if slot.dtype.kind in "biu" else _floats
    return convert(leaves, slot).reshape(shape)


def _unnest(value: object, slot: InputSlot) -> tuple[tuple[int, ...], Sequence[Any]]:
    """Return the shape of nested lists and all that is in the innermost ones, in order."""
    shape: list[int] = []
    level: list[Any] = [value]
    while nested := set(map(_is_list, set(map(type, level)))):
        if nested == {False}:
            break
        if len(nested) > 1:
            raise slot.refuse("ragged: lists and single values stand side by side in it")
        lengths = list(map(len, level))
        if len(set(lengths)) > 1:
            raise slot.refuse(f"ragged: {_ragged_text(lengths)}")
        shape.append(lengths[0])
        if len(shape) > _DEEPEST:  # as a list that holds itself is
            raise slot.refuse(f"lists nested deeper than {_DEEPEST} levels")
        level = list(chain.from_iterable(level))
    return tuple(shape), level


def _ragged_text(lengths: Sequence[object]) -> str:
    """Return each length with the first row that has it: ``3 (row 0), 2 (row 17)``."""
    rows = {str(length): row for row, length in reversed(list(enumerate(lengths)))}
    first = sorted(rows.items(), key=lambda entry: entry[1])
    shown = ", ".join(f"{length} (row {row})" for length, row in first[:_SHOWN])
    more = ", …" if len(first) > _SHOWN else ""
    return f"its rows differ in length: {shown}{more}; pad them to one length, or call row by row"


def _from_mixed(
    value: object, leaves: Sequence[Any], kinds: Iterable[type], slot: InputSlot
) -> Array:
    """Return a list that has arrays (or numpy scalars) in it as one array, with numpy's dtype."""
    for kind in kinds:
        if not (_python_type(kind) or _is_array_like(kind)):
            got = f"a list with {_type_name(kind)} in it"
            raise slot.refuse(f"expected an array of {slot.element_text()}, got {got}")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shapes = [list(np.shape(leaf)) for leaf in leaves]
        raise slot.refuse(f"ragged: {_ragged_text(shapes)}") from error
    return _cast(array, slot)


def _wrong_leaves(kinds: Iterable[type], slot: InputSlot) -> Exception:
    got = " and ".join(sorted(kind.__name__ for kind in kinds))
    if _is_raw_bfloat16(slot):
        hint = "; pip install ml_dtypes to give numbers for BF16"
    elif float in kinds and slot.dtype.kind in "biu":
        hint = "; round them yourself if that is what you mean"
    else:
        hint = ""
    return slot.refuse(f"expected {slot.element_text()}, got a list of Python's {got}{hint}")


def _whole_numbers(leaves: Sequence[Any], slot: InputSlot) -> Array:
    if slot.dtype.kind == "b" or not leaves:
        return np.array(leaves, dtype=slot.dtype)
    limits = np.iinfo(slot.dtype)
    for value in (min(leaves), max(leaves)):
        if not limits.min <= value <= limits.max:
            raise _out_of_range(value, slot, limits.min, limits.max)
    return np.array(leaves, dtype=slot.dtype)


def _floats(leaves: Sequence[Any], slot: InputSlot) -> Array:
    try:
        wide = np.array(leaves, dtype=np.float64)
    except OverflowError as error:  # an int beyond 1.8e308
        raise _out_of_range(max(leaves, key=abs), slot) from error
    with np.errstate(over="ignore"):
        narrow = wide.astype(slot.dtype)
    lost = np.isfinite(wide) & ~np.isfinite(narrow.astype(np.float64))
    if lost.any():
        raise _out_of_range(leaves[int(lost.argmax())], slot)
    return narrow


def _out_of_range(
    value: float, slot: InputSlot, low: int | None = None, high: int | None = None
) -> Exception:
    span = "" if low is None else f", which holds {low} to {high}"
    long = isinstance(value, int) and value.bit_length() > 64  # Python refuses to print the longest
    shown = f"an integer of {int(value).bit_length()} bits" if long else repr(value)
    return slot.refuse(f"{shown} is out of range for {slot.element_text()}{span}")
