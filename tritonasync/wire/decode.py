"""The bytes of a ``ModelInferResponse`` to a reply whose arrays are views on them.

Owns: putting head and raw contents of a response together and checking one against the other.

Refuses to know: transport, shared-memory regions, what a model should have answered.

Invariants: nothing of the server's is trusted; whatever the bytes, there is a reply or a
:class:`~tritonasync.core.errors.ProtocolError`, and no allocation beyond a small multiple of the
message. Fixed-size outputs from raw contents are never copied.

The head of a model's answers is the same each time that the shapes are (the id and the data are no
part of it), so that its parsed form comes from a bounded cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np

from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import DATATYPES, Array, Parameters, Reply
from tritonasync.wire.dtypes import numpy_dtype
from tritonasync.wire.framing import (
    MalformedError,
    Span,
    split_response,
)
from tritonasync.wire.messages import OutputHead, response_head
from tritonasync.wire.strings import decode_strings

# A head with typed contents or long parameters is of no use a second time.
MAX_CACHED_HEAD_NBYTES: Final = 4096

_FINAL: Final = "triton_final_response"

View: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any]], Array]
"""Gives the array of a shape and dtype on a place in shared memory; ``ValueError`` if it does not
fit there."""

NOWHERE: Final[Mapping[str, View]] = MappingProxyType({})
"""No output is placed."""


@dataclass(frozen=True, slots=True)
class _Output:
    """An output as the head describes it, checked as far as the head alone allows.

    Attributes:
        dtype: The numpy dtype; object for BYTES.
        count: Elements, as the shape says.
        nbytes: Bytes of the raw content; unused for BYTES.
        values: The elements from typed contents, in ``dtype`` and shape; else None.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    count: int
    nbytes: int
    values: Array | None


@dataclass(frozen=True, slots=True)
class Head:
    """All but id and raw contents.

    Attributes:
        final: Whether it is the last response to its request; ``None`` if it does not say so.
        strings: Whether an output is BYTES.
    """

    model: str
    version: str
    parameters: Parameters
    outputs: tuple[_Output, ...]
    final: bool | None = None
    strings: bool = False


@dataclass(frozen=True, slots=True)
class _Layout:
    """An answer that was read, without the elements of its one output.

    Of two answers of a length, with equal bytes up to the elements, only the elements differ: the
    second is read in a third of the time (2 us).

    Attributes:
        prefix: All bytes before the elements, which reach to the message's end.
        head: What they say.
    """

    prefix: bytes
    head: Head

    def reply(self, message: bytes) -> Reply:
        head = self.head
        output = head.outputs[0]
        view = np.ndarray(output.shape, output.dtype, message, len(self.prefix))
        return Reply(head.model, head.version, {output.name: view}, "", head.parameters)


_layouts: Final[dict[int, _Layout]] = {}
"""The last layout seen of each length of message; few lengths come again and again."""

MAX_LAYOUTS: Final = 1024


def _remember_layout(message: bytes, output: _Output, head: Head, span: Span) -> None:
    start, end = span
    fixed = output.dtype.kind != "O" and start < end == len(message)
    if not fixed or start > MAX_CACHED_HEAD_NBYTES:
        return
    if len(_layouts) >= MAX_LAYOUTS:
        _layouts.clear()
    _layouts[end] = _Layout(message[:start], head)


def decode_response(message: bytes, *, placed: Mapping[str, View] = NOWHERE) -> Reply:
    """Return what a serialised ``ModelInferResponse`` says.

    Outputs of fixed-size datatypes are read-only views on ``message``, in the shape the server
    gave, little-endian, and aligned only by chance; they keep the message alive. BYTES, and outputs
    of servers that answer in typed ``contents``, are arrays of their own.

    A message with BYTES takes up to 0.2 us an element; others take a few us, whatever their size.

    Args:
        message: What the server sent. Kept alive by the views.
        placed: Of the outputs that the request placed in shared memory, by name, what gives the
            array in its place for a shape and dtype. The message does not have their elements,
            unless the server sent them all the same. (The answer does not tell by itself: Triton
            2.51 gives such an output an empty raw content and no parameter.)

    Raises:
        ProtocolError: The bytes are not such a message, or contradict themselves.
    """
    layout = _layouts.get(len(message))
    if layout is not None and message.startswith(layout.prefix):
        return layout.reply(message)
    model: str | None = None
    try:
        head_bytes, request_id, spans = split_response(message)
        head = parsed_head(head_bytes)
        model = head.model
        outputs = read_outputs(message, head.outputs, spans, placed)
        if not request_id and len(spans) == 1:
            _remember_layout(message, head.outputs[0], head, spans[0])
        return Reply(
            model=model,
            version=head.version,
            outputs=outputs,
            request_id=request_id.decode(),
            parameters=head.parameters,
        )
    except (MalformedError, UnicodeDecodeError) as error:
        raise no_response(error, model) from error


def no_response(error: Exception, model: str | None) -> ProtocolError:
    """Return the error for bytes that are no response."""
    whose = "the answer" if model is None else f"the answer of model {model!r}"
    return ProtocolError(f"{whose} is not a valid response: {error}", model=model)


def parsed_head(head: bytes) -> Head:
    """Return what a head says, from the cache if it was read before.

    Raises:
        MalformedError: The bytes are no head, or contradict themselves.
    """
    return _head(head) if len(head) <= MAX_CACHED_HEAD_NBYTES else _head.__wrapped__(head)


@lru_cache(maxsize=1024)
def _head(head: bytes) -> Head:
    parsed = response_head(head)
    outputs = tuple(map(_output, parsed.outputs))
    if len({output.name for output in outputs}) != len(outputs):
        raise MalformedError("two outputs have one name")
    # Whether it is the last is for whoever routes it, and no parameter of the model's.
    others = tuple([pair for pair in parsed.parameters if pair[0] != _FINAL])
    final = dict(parsed.parameters).get(_FINAL)
    said = final if isinstance(final, bool) else None
    strings = any(output.dtype.kind == "O" for output in outputs)
    return Head(parsed.model, parsed.version, others, outputs, said, strings)


def _output(head: OutputHead) -> _Output:
    if head.datatype not in DATATYPES:
        raise MalformedError(f"output {head.name!r} has the unknown datatype {head.datatype!r}")
    if min(head.shape, default=0) < 0:
        raise MalformedError(f"output {head.name!r} has the impossible shape {head.shape}")
    dtype = numpy_dtype(head.datatype)
    count = math.prod(head.shape)
    return _Output(
        name=head.name,
        dtype=dtype,
        shape=head.shape,
        count=count,
        nbytes=count * dtype.itemsize,
        values=None if head.values is None else _typed(head, head.values, dtype, count),
    )


def _typed(head: OutputHead, values: Array, dtype: np.dtype[Any], count: int) -> Array:
    """Return values from typed contents in the datatype's own width, in the output's shape."""
    if values.size != count:
        raise MalformedError(f"output {head.name!r} of shape {head.shape} has {values.size} values")
    narrowed = values.astype(dtype)
    if dtype.kind in "iu" and (narrowed != values).any():
        raise MalformedError(f"output {head.name!r} has values that do not fit {head.datatype}")
    return _shaped(narrowed, head.name, head.shape)


def _shaped(flat: Array, name: str, shape: tuple[int, ...]) -> Array:
    try:
        return flat.reshape(shape)
    except ValueError as error:
        raise MalformedError(f"output {name!r} has the impossible shape {shape}") from error


def read_outputs(
    message: bytes,
    outputs: tuple[_Output, ...],
    spans: list[Span],
    placed: Mapping[str, View] = NOWHERE,
) -> dict[str, Array]:
    """Return the outputs that a head describes, their contents at ``spans`` of ``message``.

    Those placed elsewhere are as :func:`decode_response` says.

    Raises:
        MalformedError: The contents are not what the head says.
    """
    if spans and len(spans) != len(outputs):
        raise MalformedError(f"{len(outputs)} outputs have {len(spans)} raw contents")
    return {
        output.name: _elsewhere(output, placed[output.name])
        if output.name in placed and not _is_here(output, span)
        else _without_raw(output)
        if span is None
        else _raw(message, output, span)
        for output, span in zip(outputs, spans or repeat(None))  # noqa: B905 -- repeat has no end
    }


def _elsewhere(output: _Output, view: View) -> Array:
    if output.dtype.kind == "O":
        raise MalformedError(f"output {output.name!r} has strings in a place for fixed sizes")
    try:
        return view(output.shape, output.dtype)
    except ValueError as error:  # larger than its place
        raise MalformedError(f"output {output.name!r}: {error}") from error


def _is_here(output: _Output, span: Span | None) -> bool:
    """Return whether the message has the elements of a placed output, if it has any."""
    sent = span is not None and span[0] != span[1]
    return sent or output.values is not None or output.count == 0


def _without_raw(output: _Output) -> Array:
    if output.values is not None:
        return output.values.copy()  # the head may be a cached one
    if output.count:
        raise MalformedError(f"output {output.name!r} of shape {output.shape} has no contents")
    return _shaped(np.empty(0, output.dtype), output.name, output.shape)


def _raw(message: bytes, output: _Output, span: Span) -> Array:
    if output.values is not None:
        raise MalformedError(f"output {output.name!r} has typed contents and raw ones")
    if output.dtype.kind == "O":
        try:
            flat = decode_strings(message, span, output.count)
        except MalformedError as error:
            raise MalformedError(f"output {output.name!r}: {error}") from error
        return _shaped(flat, output.name, output.shape)
    start, end = span
    if end - start != output.nbytes:
        raise MalformedError(
            f"output {output.name!r} of shape {output.shape} and {output.dtype} should have "
            f"{output.nbytes} bytes, but has {end - start}"
        )
    try:
        return np.ndarray(output.shape, output.dtype, message, start)
    except ValueError as error:  # too many axes, or an axis of zero beside one that is too long
        raise MalformedError(
            f"output {output.name!r} has the impossible shape {output.shape}"
        ) from error
