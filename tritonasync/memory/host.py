"""Bytes of the host as arrays, and arrays into them.

Owns: bounds, views that keep their owner and the bytes alive, the copy. Refuses to know: where the
bytes come from, who else sees them.

Invariants: nothing outside of the bytes is read or written, whatever is asked for; no Python object
is ever read out of them or put into them, since others write there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter, countOf
from typing import Any, Final

import numpy as np

from tritonasync.core.values import Array

_BYTE: Final = np.dtype(np.uint8)
_dtype_of: Final = attrgetter("dtype")
_nbytes_of: Final = attrgetter("nbytes")


class HostBytes:
    """A run of bytes of the host.

    Args:
        buffer: Where they are; writable. It is kept alive by this object and by each view.
        name: What errors call it.
    """

    __slots__ = ("_address", "_bytes", "_name", "nbytes")

    def __init__(self, buffer: Any, name: str) -> None:  # noqa: ANN401 - a buffer, before 3.12
        self._bytes: Array = np.frombuffer(buffer, _BYTE)
        self._address: int = self._bytes.ctypes.data
        self._name = name
        self.nbytes: int = self._bytes.nbytes

    def view(
        self,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        owner: object,
        *,
        writable: bool,
    ) -> Array:
        """Return an array on a part of the bytes, aligned or not.

        ``owner`` is kept alive until the last view on the array has died. An array that is not
        writable cannot be made so.

        Raises:
            ValueError: It would not lie within the bytes, or ``dtype`` is one of Python objects.
        """
        _check_dtype(dtype)
        if min(shape, default=0) < 0:
            raise ValueError(f"shape {list(shape)} has a negative axis")
        nbytes = math.prod(shape) * dtype.itemsize
        self._check(offset, nbytes)
        # As bytes first: the protocol has no name for some dtypes, such as BF16's.
        base = _Base(self._address + offset, nbytes, (owner, self._bytes), writable=writable)
        return np.ndarray(shape, dtype, np.asarray(base))

    def write(self, offset: int, parts: Sequence[Array]) -> None:
        """Copy arrays into the bytes, one behind the other. Large ones leave other threads running.

        Args:
            offset: Where the first one goes.
            parts: Arrays of any layout, or what has a device's bytes and CuPy's ``get``.

        Raises:
            ValueError: They would not lie within the bytes, or one is of Python objects.
        """
        dtype = parts[0].dtype if parts else _BYTE
        alike = countOf(map(_dtype_of, parts), dtype) == len(parts)
        if alike and countOf(map(type, parts), np.ndarray) == len(parts):
            self._write_at_once(offset, parts, dtype)
        else:
            self.check(offset, parts)
            self._write_each(offset, parts)

    def check(self, offset: int, parts: Sequence[Array]) -> None:
        """Refuse what :meth:`write` does.

        Raises as :meth:`write`.
        """
        self._check(offset, sum(map(_nbytes_of, parts)))
        for part in parts:
            _check_dtype(part.dtype)

    def fill(self, value: int) -> None:
        """Set every byte to a value."""
        self._bytes.fill(value)

    def _write_at_once(self, offset: int, parts: Sequence[Array], dtype: np.dtype[Any]) -> None:
        _check_dtype(dtype)
        nbytes = sum(map(_nbytes_of, parts))
        self._check(offset, nbytes)
        if nbytes:
            # A loop in C over many rows: 0.06 us for one of 64 bytes, against 0.8 us one by one.
            np.concatenate(parts, axis=None, out=self._flat(offset, nbytes, dtype))

    def _write_each(self, offset: int, parts: Sequence[Array]) -> None:
        for part in parts:
            if part.nbytes:
                space = self._flat(offset, part.nbytes, part.dtype).reshape(part.shape)
                fetch = getattr(part, "get", None)
                if fetch is None:
                    np.copyto(space, part)
                else:
                    fetch(out=space)
                offset += part.nbytes

    def _flat(self, offset: int, nbytes: int, dtype: np.dtype[Any]) -> Array:
        return np.ndarray((nbytes // dtype.itemsize,), dtype, self._bytes, offset)

    def _check(self, offset: int, nbytes: int) -> None:
        if not 0 <= offset <= self.nbytes - nbytes:
            raise ValueError(
                f"{nbytes} bytes at offset {offset} do not lie within {self._name}, "
                f"which has {self.nbytes}"
            )


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise ValueError(f"dtype {dtype} has Python objects, which cannot be shared")


class _Base:
    """What a view stands on; numpy keeps it for as long as any view is there."""

    __slots__ = ("__array_interface__", "_kept")

    def __init__(self, address: int, nbytes: int, kept: object, *, writable: bool) -> None:
        self.__array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, not writable),
            "version": 3,
        }
        self._kept = kept
