"""Hypothesis strategies: arrays of every datatype, in every memory layout, cut into row parts."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tritonasync.core.values import DATATYPES, Array, Datatype, InputTensor
from tritonasync.wire.dtypes import numpy_dtype

T = TypeVar("T")

FIXED_SIZE = [datatype for datatype in DATATYPES if datatype != "BYTES"]

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
datatypes = st.sampled_from(DATATYPES)
# Under Python 3.12's and numpy's rules alike: no lone surrogates, which UTF-8 cannot encode.
characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, max_size=300)
strings = st.one_of(st.binary(max_size=300), texts)


@st.composite
def string_arrays(draw: st.DrawFn, shape: tuple[int, ...]) -> Array:
    kind = draw(st.sampled_from(["bytes", "str", "mixed", "S", "U"]))
    if kind == "S":
        return draw(hnp.arrays(f"S{draw(st.integers(1, 20))}", shape))
    if kind == "U":
        dtype = np.dtype(f"U{draw(st.integers(1, 20))}")
        return draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, alphabet=characters)))
    element = {"bytes": st.binary(max_size=300), "str": texts, "mixed": strings}[kind]
    return draw(hnp.arrays(object, shape, elements=element, fill=element))


@st.composite
def fixed_size_arrays(draw: st.DrawFn, datatype: Datatype, shape: tuple[int, ...]) -> Array:
    dtype = numpy_dtype(datatype)
    if datatype == "BF16":
        return draw(hnp.arrays("<u2", shape)).view(dtype)
    return draw(hnp.arrays(dtype, shape))


def laid_out(array: Array, layout: str) -> Array:
    """The same number of axes, another memory layout; not the same values."""
    match layout:
        case "transposed":
            return array.T
        case "reversed":
            return array[(slice(None, None, -1),) * array.ndim]
        case "strided":
            return np.repeat(array, 2, axis=-1)[..., ::2]
        case "column-major":
            return np.asfortranarray(array)
        case "broadcast":
            return np.broadcast_to(array[:1], array.shape) if array.size else array
        case "byte-swapped" if array.dtype.kind in "iuf":
            return array.astype(array.dtype.newbyteorder(">"))
        case "foreign dtype object":  # as arrays have that were pickled: equal, not the same
            return array.view(array.dtype.newbyteorder("S").newbyteorder("S"))
        case _:
            return array


LAYOUTS = (
    "plain",
    "transposed",
    "reversed",
    "strided",
    "column-major",
    "broadcast",
    "byte-swapped",
    "foreign dtype object",
)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[Array, Datatype]:
    datatype = draw(datatypes)
    shape = draw(shapes)
    if datatype == "BYTES":
        array = draw(string_arrays(shape))
    else:
        array = draw(fixed_size_arrays(datatype, shape))
    return laid_out(array, draw(st.sampled_from(LAYOUTS))), datatype


@st.composite
def row_parts(draw: st.DrawFn, array: Array) -> tuple[Array, ...]:
    """The array in pieces along axis 0, some without a row."""
    cuts = sorted(draw(st.lists(st.integers(0, len(array)), max_size=6)))
    return tuple(array[a:b] for a, b in zip([0, *cuts], [*cuts, len(array)], strict=True))


@st.composite
def tensors(draw: st.DrawFn, name: str) -> tuple[InputTensor, Array]:
    """An input in parts, and the array that the parts make up."""
    array, datatype = draw(arrays())
    return InputTensor(name, datatype, array.shape, draw(row_parts(array))), array
