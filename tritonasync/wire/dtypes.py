"""Triton's element types and numpy's: which is which, and how wide.

Owns: the one table of datatypes. Refuses to know: models, messages, values.

Invariants: every dtype given here is little-endian, as the wire is, whatever the host; each of
numpy's own is the very object that arrays of that dtype carry on a little-endian host, so that
``is`` is a quick first comparison.

BF16 has no numpy dtype of its own. It is ``ml_dtypes.bfloat16`` where the package ml_dtypes is
installed (newer tritonclients bring it along); elsewhere it is ``uint16``, the raw bits: the upper
half of a float32's. ml_dtypes is looked for when BF16 is first asked for, not on import.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Final, cast

import numpy as np

from tritonasync.core.errors import InvalidInputError
from tritonasync.core.values import DATATYPES, Datatype

_NUMPY: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}

# By kind and width, not by dtype: byte order and numpy's several names of one width (intc, long,
# longlong) make no difference on the wire.
_TRITON: Final[dict[tuple[str, int], Datatype]] = {
    (dtype.kind, dtype.itemsize): cast("Datatype", name)
    for name, dtype in _NUMPY.items()
    if name != "BYTES"
}

_STRING_KINDS: Final = frozenset("OSUT")
"""Objects, fixed-width bytes, fixed-width str, and numpy 2's variable-width str."""


@cache
def _bfloat16() -> np.dtype[Any]:
    try:
        module = import_module("ml_dtypes")
    except ImportError:
        return np.dtype("<u2")
    dtype: np.dtype[Any] = np.dtype(module.bfloat16)
    return dtype


def numpy_dtype(datatype: Datatype) -> np.dtype[Any]:
    """Return the numpy dtype, little-endian, of arrays that hold ``datatype``.

    BYTES are objects. BF16 is ``ml_dtypes.bfloat16``, or ``uint16`` without ml_dtypes.

    Raises:
        InvalidInputError: Triton has no datatype of this name.
    """
    dtype = _bfloat16() if datatype == "BF16" else _NUMPY.get(datatype)
    if dtype is None:
        raise InvalidInputError(
            f"{datatype!r} is not a Triton datatype; there are {', '.join(DATATYPES)}"
        )
    return dtype


def datatype_of(dtype: np.dtype[Any]) -> Datatype:
    """Return Triton's name of the elements of an array, in whatever byte order they are.

    Objects, ``S``, ``U`` and numpy 2's ``StringDType`` are BYTES. A ``uint16`` array is UINT16,
    also where it stands for BF16.

    Raises:
        InvalidInputError: Triton has no datatype for it: complex, dates, long double, structured.
    """
    if dtype.kind in _STRING_KINDS:
        return "BYTES"
    datatype = _TRITON.get((dtype.kind, dtype.itemsize))
    if datatype is not None:
        return datatype
    if dtype.name == "bfloat16":
        return "BF16"
    raise InvalidInputError(
        f"Triton has no datatype for numpy's {dtype}; there are {', '.join(DATATYPES)}"
    )


def item_size(datatype: Datatype) -> int:
    """Return the bytes of one element on the wire; 0 for BYTES, whose elements vary.

    Raises:
        InvalidInputError: Triton has no datatype of this name.
    """
    return 0 if datatype == "BYTES" else numpy_dtype(datatype).itemsize
