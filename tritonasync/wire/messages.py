"""The seam to protobuf: the parts of Triton's messages that carry no tensor data.

Owns: building and parsing them by protobuf's generated classes. No other file of the layer handles
protobuf's objects; plain values go in and come out.

Refuses to know: raw tensor contents, numpy views, caches, the layout of a whole message.

A serialised protobuf message may be cut into its top-level fields and put together in any order,
which is what allows a head to be written here and the raw contents to be appended elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from tritonasync.core.errors import InvalidInputError
from tritonasync.core.values import Array, Datatype, Parameters, ParameterValue
from tritonasync.wire.framing import MalformedError
from tritonasync.wire.schema import pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tritonasync.wire.schema import Output, Parameter, Placeable

InputHead = tuple[str, Datatype, tuple[int, ...]]
"""Name, datatype and shape of an input, as it stands in a request's head."""


class Place(NamedTuple):
    """Where in shared memory a tensor lies.

    Attributes:
        region: The name under which the server knows the region.
        offset: Where the tensor begins, in bytes from the region's beginning.
        nbytes: Its size; for an output the room that it has.
    """

    region: str
    offset: int
    nbytes: int


_INT64: Final = range(-(2**63), 2**63)
_UINT64: Final = range(2**64)

# KServe v2's InferTensorContents: which field holds which datatype, and the width it has there.
# FP16 and BF16 have none: they travel raw only.
_CONTENTS: Final[dict[str, tuple[str, str]]] = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "<i4"),
    "INT16": ("int_contents", "<i4"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT8": ("uint_contents", "<u4"),
    "UINT16": ("uint_contents", "<u4"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
    "BYTES": ("bytes_contents", "O"),
}


@dataclass(frozen=True, slots=True)
class OutputHead:
    """One output as a response's head describes it.

    Attributes:
        name: The output's name.
        datatype: The server's word, not yet known to be a datatype.
        shape: The axes, not yet known to be possible ones.
        values: The elements, flat, if the server sent them in typed fields (``contents``) rather
            than raw; objects for BYTES, else numbers that may be wider than the datatype.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Array | None


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response without its id and its raw contents."""

    model: str
    version: str
    parameters: Parameters
    outputs: tuple[OutputHead, ...]


def request_head(
    model: str, version: str, inputs: tuple[InputHead, ...], outputs: tuple[str, ...]
) -> bytes:
    """Return a ``ModelInferRequest`` with names and shapes, and neither data nor parameters.

    Raises:
        InvalidInputError: A name is no valid text, or an axis is over int64.
    """
    return placed_head(
        model, version, [(*head, None) for head in inputs], [(name, None) for name in outputs]
    )


def placed_head(
    model: str,
    version: str,
    inputs: Iterable[tuple[*InputHead, Place | None]],
    outputs: Iterable[tuple[str, Place | None]],
) -> bytes:
    """Return the same for tensors of which some are placed in shared memory.

    Raises:
        InvalidInputError: As :func:`request_head`.
    """
    try:
        request = pb.ModelInferRequest(model_name=model, model_version=version)
        for name, datatype, shape, place in inputs:
            _place(request.inputs.add(name=name, datatype=datatype, shape=shape), place)
        for name, place in outputs:
            _place(request.outputs.add(name=name), place)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"model {model!r}: its names and shapes do not fit a request: {error}", model=model
        ) from error
    return request.SerializeToString()


def _place(tensor: Placeable, place: Place | None) -> None:
    if place is None:
        return
    tensor.parameters["shared_memory_region"].string_param = place.region
    tensor.parameters["shared_memory_byte_size"].int64_param = place.nbytes
    if place.offset:
        tensor.parameters["shared_memory_offset"].int64_param = place.offset


def request_parameters(model: str, parameters: Parameters) -> bytes:
    """Return a ``ModelInferRequest`` that holds the parameters and nothing else.

    Integers go as int64, those from 2**63 on as uint64 (which Triton 2.51 takes for ``priority``
    alone; the server has the last word).

    Raises:
        InvalidInputError: A value is of another type than bool, int, float, str, or is out of
            range.
    """
    request = pb.ModelInferRequest()
    for key, value in parameters:
        try:
            setattr(request.parameters[key], _parameter_field(value), value)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"model {model!r}: parameter {key!r} cannot be sent: {error}", model=model
            ) from error
    return request.SerializeToString()


def _parameter_field(value: ParameterValue) -> str:
    if isinstance(value, bool):  # before int: a bool is one
        return "bool_param"
    if isinstance(value, str):
        return "string_param"
    if isinstance(value, float):
        return "double_param"
    if not isinstance(value, int):  # pyright: ignore[reportUnnecessaryIsInstance] -- untyped callers
        raise TypeError(f"{type(value).__name__} is none of bool, int, float and str")
    if value in _INT64:
        return "int64_param"
    if value in _UINT64:
        return "uint64_param"
    raise ValueError(f"{value} does not fit 64 bits")


def response_head(head: bytes) -> ResponseHead:
    """Parse a ``ModelInferResponse`` from which the raw contents were taken out.

    Raises:
        MalformedError: The bytes are not such a message.
    """
    try:
        response = pb.ModelInferResponse.FromString(head)
    except DecodeError as error:
        raise MalformedError(f"protobuf cannot parse it ({error})") from error
    return ResponseHead(
        model=response.model_name,
        version=response.model_version,
        parameters=_parameters(response.parameters),
        outputs=tuple(_output(output) for output in response.outputs),
    )


def _parameters(entries: Mapping[str, Parameter]) -> Parameters:
    """Return the parameters by name; one without a value (a newer type than ours) is left out."""
    pairs: list[tuple[str, ParameterValue]] = []
    for key in sorted(entries):
        field = entries[key].WhichOneof("parameter_choice")
        if field is not None:
            pairs.append((key, getattr(entries[key], field)))
    return tuple(pairs)


def _output(output: Output) -> OutputHead:
    typed = bool(output.contents.ListFields())
    return OutputHead(
        name=output.name,
        datatype=output.datatype,
        shape=tuple(output.shape),
        values=_values(output) if typed else None,
    )


def _values(output: Output) -> Array:
    field, dtype = _CONTENTS.get(output.datatype, (None, None))
    if field is None:
        raise MalformedError(
            f"output {output.name!r}: {output.datatype!r} has no typed contents, only raw ones"
        )
    values = getattr(output.contents, field)
    return np.fromiter(values, dtype, len(values))
