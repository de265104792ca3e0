"""The bytes of a ``ModelStreamInferResponse`` to whose they are, and what they say.

Owns: reading a message of a stream in two steps. The first finds out whose it is, in microseconds
whatever its size; the second, which may be long, is for its owner.

Refuses to know: streams, who waits for what.

Invariants: those of ``decode``; what is wrong with a message whose owner is known is raised to him.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import Reply
from tritonasync.wire.decode import (
    MAX_CACHED_HEAD_NBYTES,
    MAX_LAYOUTS,
    Head,
    no_response,
    parsed_head,
    read_outputs,
)
from tritonasync.wire.framing import (
    MalformedError,
    Span,
    id_span,
    split_response,
    split_stream_response,
)


@dataclass(slots=True)
class StreamResponse:
    """One message of a stream, of which as much was read as to know whose it is.

    Attributes:
        request_id: The id of the request that it answers.
        error: What the server says is wrong; empty if it is an answer.
        final: Whether it is the last one to its request; ``None`` where the message does not say:
            refusals do not, and nothing follows them.
        empty: Whether it has no outputs: an end without a response of its own.
    """

    request_id: str
    error: str
    final: bool | None
    empty: bool
    _message: bytes
    _head: Head | ProtocolError
    _spans: list[Span]
    _plain: bool = False
    """Whether its layout is known: one output of a fixed size, or none."""

    @property
    def nbytes(self) -> int:
        """The bytes of the message, which it keeps alive."""
        return len(self._message)

    @property
    def strings_nbytes(self) -> int:
        """The bytes of its BYTES outputs, which take a time to read."""
        if self._plain or isinstance(self._head, ProtocolError) or not self._head.strings:
            return 0
        spans = zip(self._head.outputs, self._spans, strict=False)
        return sum(end - start for output, (start, end) in spans if output.dtype.kind == "O")

    def reply(self, *, request_id: str = "") -> Reply:
        """Return the answer; it takes what :func:`decode_response` takes.

        Args:
            request_id: What it shall have for an id.

        Raises:
            ProtocolError: The message is no valid response, or contradicts itself.
        """
        head = self._head
        if isinstance(head, ProtocolError):
            raise head.copy()  # the traceback of the one kept here would hold it in a cycle
        if self._plain:
            outputs = {
                output.name: np.ndarray(output.shape, output.dtype, self._message, start)
                for output, (start, _) in zip(head.outputs, self._spans, strict=True)
            }
            return Reply(head.model, head.version, outputs, request_id, head.parameters)
        try:
            outputs = read_outputs(self._message, head.outputs, self._spans)
        except MalformedError as error:
            raise no_response(error, head.model) from error
        return Reply(head.model, head.version, outputs, request_id, head.parameters)


@dataclass(frozen=True, slots=True)
class _StreamLayout:
    """A message of a stream that was read, without its id and the elements of its one output.

    What :class:`_Layout` is to an answer of its own: ids differ from message to message, and lie in
    the midst of it.

    Attributes:
        before: All bytes before the id.
        after: All bytes behind it, up to the elements, which reach to the message's end.
        id_ends: Where the id ends.
        head: What they say.
        spans: Where the elements are, if there is an output.
    """

    before: bytes
    after: bytes
    id_ends: int
    head: Head
    spans: list[Span]

    def response(self, message: bytes) -> StreamResponse | None:
        if not (message.startswith(self.after, self.id_ends) and message.startswith(self.before)):
            return None
        name = message[len(self.before) : self.id_ends]
        if not name.isascii():
            return None
        head = self.head
        return StreamResponse(
            name.decode(), "", head.final, not self.spans, message, head, self.spans, _plain=True
        )


_stream_layouts: Final[dict[int, list[_StreamLayout]]] = {}
"""The last layouts seen of each length of message: the last message is as long as those before."""

_LAYOUTS_A_LENGTH: Final = 4


def _remember_stream_layout(message: bytes, start: int, head: Head, spans: list[Span]) -> None:
    """Remember a message without an error, whose response begins at ``start``."""
    if len(spans) != len(head.outputs) or len(spans) > 1 or head.strings:
        return
    size = len(message)
    elements, end = spans[0] if spans else (size, size)
    try:
        id_starts, id_ends = id_span(message, start)
        # Now, and so for all like it: whether the elements are what the shape says.
        read_outputs(message, head.outputs, spans)
    except MalformedError:
        return
    if not (id_starts < id_ends <= elements <= MAX_CACHED_HEAD_NBYTES and end == size):
        return
    if len(_stream_layouts) >= MAX_LAYOUTS:
        _stream_layouts.clear()
    known = _stream_layouts.setdefault(size, [])
    del known[_LAYOUTS_A_LENGTH - 1 :]
    known.insert(
        0, _StreamLayout(message[:id_starts], message[id_ends:elements], id_ends, head, spans)
    )


def read_stream_response(message: bytes) -> StreamResponse:
    """Read whose message of a stream this is, in a few us whatever its size.

    Args:
        message: A serialised ``ModelStreamInferResponse``. Kept alive by what is returned.

    Raises:
        ProtocolError: Nobody can tell whose it is. (One whose owner is known is raised to him, by
            :meth:`StreamResponse.reply`.)
    """
    for layout in _stream_layouts.get(len(message), ()):
        response = layout.response(message)
        if response is not None:
            return response
    try:
        error, (start, end) = split_stream_response(message)
        head_bytes, request_id, spans = split_response(message, start, end)
        name = request_id.decode()
    except (MalformedError, UnicodeDecodeError) as failure:
        raise no_response(failure, None) from failure
    text = error.decode(errors="replace")
    try:
        head = parsed_head(head_bytes)
    except MalformedError as failure:
        broken = no_response(failure, None)
        return StreamResponse(name, text, True, False, message, broken, spans)  # noqa: FBT003
    if not error and end == len(message):
        _remember_stream_layout(message, start, head, spans)
    return StreamResponse(name, text, head.final, not head.outputs, message, head, spans)
