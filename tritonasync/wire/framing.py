"""Protobuf's framing, as far as a tensor's raw bytes need it: tags, lengths, top-level fields.

Owns: variable-length integers, the walk over the fields of a response. The walk finds where raw
tensor contents lie without copying them, which protobuf's own parser cannot.

Refuses to know: what the fields mean, beyond telling the id and the raw contents from the rest.

Invariant: whatever the bytes, the walk ends, allocates in proportion to the message at most, and
either accounts for every byte or raises :class:`MalformedError`.
"""

from __future__ import annotations

from typing import Final

# Tags are (field number << 3 | wire type); wire type 2 is length-delimited. Numbers as in
# KServe v2's grpc_predict_v2.proto.
REQUEST_ID_TAG: Final = 3 << 3 | 2
REQUEST_RAW_TAG: Final = 7 << 3 | 2
RESPONSE_ID_TAG: Final = 3 << 3 | 2
RESPONSE_RAW_TAG: Final = 6 << 3 | 2
STREAM_ERROR_TAG: Final = 1 << 3 | 2
STREAM_RESPONSE_TAG: Final = 2 << 3 | 2

MAX_FIELDS: Final = 1 << 16
"""More top-level fields than any model's answer has; the walk over a hostile one stops there."""

_TAKEN: Final = frozenset((RESPONSE_ID_TAG, RESPONSE_RAW_TAG))
_FIXED_WIDTHS: Final = {1: 8, 5: 4}
_MAX_VARINT_NBYTES: Final = 10

Span = tuple[int, int]
"""Where a field's payload begins and ends, in bytes from the message's start."""


class MalformedError(Exception):
    """Bytes from a server break the protocol; the text says how. It does not leave the layer."""


def field_prefix(tag: int, nbytes: int) -> bytes:
    """Return the tag and length that go before a payload of ``nbytes`` bytes."""
    prefix = bytearray((tag,))
    while nbytes > 0x7F:
        prefix.append(nbytes & 0x7F | 0x80)
        nbytes >>= 7
    prefix.append(nbytes)
    return bytes(prefix)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the integer at ``at`` and where it ends."""
    value = 0
    for index, byte in enumerate(message[at : at + _MAX_VARINT_NBYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise MalformedError(f"the integer at byte {at} has no end")


def _field(message: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the field at ``at``, and where its payload begins and ends."""
    tag, start = _varint(message, at)
    wire_type = tag & 7
    if wire_type == 2:
        length, start = _varint(message, start)
        return tag, start, start + length
    if wire_type == 0:
        return tag, start, _varint(message, start)[1]
    if wire_type in _FIXED_WIDTHS:
        return tag, start, start + _FIXED_WIDTHS[wire_type]
    raise MalformedError(f"the wire type {wire_type} at byte {at} is none of protobuf's")


def split_response(
    message: bytes, at: int = 0, size: int | None = None
) -> tuple[bytes, bytes, list[Span]]:
    """Cut a ``ModelInferResponse`` into its head, its id, and the places of its raw contents.

    Args:
        message: Bytes that have it.
        at: Where in them it begins.
        size: Where it ends; ``None`` for their end.

    Returns:
        All fields but the id and the raw contents, put together again (equal for all responses of
        a model with the same shapes); the id's bytes; where each raw content lies in ``message``.

    Raises:
        MalformedError: The bytes are not a sequence of protobuf fields.
    """
    size = len(message) if size is None else size
    kept: list[bytes] = []
    request_id = b""
    raw: list[Span] = []
    kept_to = at
    for _ in range(MAX_FIELDS):
        if at >= size:
            break
        # All of a response's fields have a tag of one byte and a length, mostly of one byte too:
        # that is not worth a call.
        tag = message[at]
        if tag & 0x87 == 2 and at + 1 < size:
            length, start = message[at + 1], at + 2
            if length > 0x7F:
                length, start = _varint(message, at + 1)
            end = start + length
        else:
            tag, start, end = _field(message, at)
        if tag in _TAKEN:
            kept.append(message[kept_to:at])
            kept_to = end
            if tag == RESPONSE_RAW_TAG:
                raw.append((start, end))
            else:
                request_id = message[start:end]
        at = end
    else:
        raise MalformedError(f"it has {MAX_FIELDS} fields or more")
    if at > size:
        raise MalformedError(f"its last field ends {at - size} bytes after the message")
    kept.append(message[kept_to:size])
    return b"".join(kept), request_id, raw


def id_span(message: bytes, at: int) -> Span:
    """Return where the id of the response lies that begins at ``at`` and ends with the message.

    The response was split before, so that it is known to be one. Empty if it has no id; the last
    one if it has several.
    """
    span = at, at
    while at < len(message):
        tag, start, at = _field(message, at)
        if tag == RESPONSE_ID_TAG:
            span = start, at
    return span


def split_stream_response(message: bytes) -> tuple[bytes, Span]:
    """Return a ``ModelStreamInferResponse``'s error message, and where its response lies.

    An error message that is missing is empty, and so is a response's span.

    Raises:
        MalformedError: The bytes are not a sequence of protobuf fields.
    """
    size = len(message)
    error, span, at = b"", (0, 0), 0
    for _ in range(MAX_FIELDS):
        if at >= size:
            break
        tag, start, at = _field(message, at)
        if at > size:
            raise MalformedError(f"its last field ends {at - size} bytes after the message")
        if tag == STREAM_ERROR_TAG:
            error = message[start:at]
        elif tag == STREAM_RESPONSE_TAG:
            span = start, at
    else:
        raise MalformedError(f"it has {MAX_FIELDS} fields or more")
    return error, span
