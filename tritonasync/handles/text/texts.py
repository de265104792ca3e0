"""Texts as users give them: lists, arrays, single ones.

Owns: which values are texts, and the form that a BYTES input takes them in. Refuses to know:
tokens, what is made of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import numpy as np

from tritonasync.core.errors import InvalidInputError
from tritonasync.core.values import Array
from tritonasync.handles.binding import Binding
from tritonasync.handles.conversion import is_array

_WRONG: Final = "expected a list of texts"


def is_text(value: object) -> bool:
    """Return whether a value is one text."""
    return isinstance(value, (str, bytes))


def in_form(binding: Binding, value: object, *, item: bool) -> object:
    """Return texts in the form of the model's BYTES input: ``[N]`` or ``[N, 1]``.

    Raises:
        InvalidInputError: A batch is a single text.
    """
    axes = binding.input.shape[1:]
    single = is_text(value)
    if single and not item:
        raise InvalidInputError(
            f"model {binding.spec.name!r}, input {binding.input.name!r}: expected a list of texts, "
            f"got a single {type(value).__name__}; use handle.one(text)",
            model=binding.spec.name,
        )
    if len(axes) != 1:
        return value
    if item:
        return [value] if single else value
    if is_array(value):
        return value[:, None] if value.ndim == 1 else value
    if isinstance(value, (list, tuple)):
        rows = cast("Sequence[object]", value)
        nested = any(isinstance(row, (list, tuple)) for row in rows)
        return rows if nested else [[row] for row in rows]
    return value


def texts_nbytes(value: object) -> int:
    """Return about how many characters there are, to tell long work from short.

    A long list counts as many, so that it need not be walked through to know.
    """
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (list, tuple)) and len(rows := cast("Sequence[object]", value)) <= _FEW:
        return sum([len(row) for row in rows if isinstance(row, (str, bytes))])
    return _MANY


_FEW: Final = 256
_MANY: Final = 1 << 20


def text_list(value: object, model: str, *, item: bool) -> list[str]:
    """Return the texts of a call as strings.

    Args:
        value: A list or tuple of texts, or what numpy reads as an array of them; one text if it is
            an item.
        model: For messages.
        item: Whether it is one text.

    Raises:
        InvalidInputError: Something in it is no text, or no UTF-8; or there is nothing in it.
    """
    if item:
        return [_text(value, "the text", model)]
    if is_text(value):
        raise _refuse(model, f"{_WRONG}, got a single {_kind(value)}; use handle.one(text)")
    if not isinstance(value, (list, tuple)):
        value = _unpacked(value, model)
    rows = cast("Sequence[object]", value)
    if not rows:
        raise _refuse(model, f"empty batch: {_WRONG}, got none")
    return [
        row if type(row) is str and row.isascii() else _text(row, f"text {index}", model)
        for index, row in enumerate(rows)
    ]


def _unpacked(value: object, model: str) -> Sequence[object]:
    if not hasattr(value, "__array__"):
        raise _refuse(model, f"{_WRONG}, got {_kind(value)}")
    array: Array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "OSUT":
        raise _refuse(model, f"{_WRONG}, got an array of {array.dtype} {list(array.shape)}")
    return cast("list[object]", array.tolist())


def _text(value: object, name: str, model: str) -> str:
    """Return one text as a string that UTF-8 can write."""
    if isinstance(value, str):
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _refuse(model, f"{name} cannot be written in UTF-8: {error}") from error
        return text
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise _refuse(model, f"{name} is no UTF-8: {error}") from error
    raise _refuse(model, f"expected {name} to be a str, or bytes of UTF-8, got {_kind(value)}")


def _kind(value: object) -> str:
    return type(value).__name__


def _refuse(model: str, reason: str) -> InvalidInputError:
    return InvalidInputError(f"model {model!r}: {reason}", model=model)
