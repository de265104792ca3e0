"""Header compression, as far as gRPC's core uses it (RFC 7541).

Owns: one connection's table of headers, and reading the blocks that refer to it. Refuses to know:
frames, and Huffman coding: gRPC's core sends plain strings, but for values of ``-bin`` metadata.

Invariant: once a block could not be read the table is not known any more, and no later block of the
connection is read either.
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

Header: TypeAlias = tuple[bytes, bytes]

ENTRY_BYTES: Final = 32
"""What an entry counts besides its name and value (RFC 7541, section 4.1)."""

_STATIC: Final[tuple[Header, ...]] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", code) for code in (b"200", b"204", b"206", b"304", b"400", b"404", b"500")),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language accept-ranges accept access-control-allow-origin age allow "
            b"authorization cache-control content-disposition content-encoding content-language "
            b"content-length content-location content-range content-type cookie date etag expect "
            b"expires from host if-match if-modified-since if-none-match if-range "
            b"if-unmodified-since last-modified link location max-forwards proxy-authenticate "
            b"proxy-authorization range referer refresh retry-after server set-cookie "
            b"strict-transport-security transfer-encoding user-agent vary via www-authenticate"
        ).split()
    ),
)
"""RFC 7541, appendix A."""


class UnreadableHeadersError(Exception):
    """A header block, or one before it on its connection, cannot be read here."""


class HeaderTable:
    """Reads the header blocks of one direction of a connection, in their order."""

    def __init__(self) -> None:
        self._dynamic: deque[Header] = deque()
        self._nbytes = 0
        self._max_bytes = 4096
        self._lost = False

    def read(self, block: bytes) -> list[Header]:
        """Return the block's headers.

        Raises:
            UnreadableHeadersError: The block has Huffman-coded strings, or is broken, or an earlier
                one was.
        """
        if self._lost:
            raise UnreadableHeadersError("an earlier block could not be read")
        try:
            return self._read(_Cursor(block))
        except (UnreadableHeadersError, IndexError) as error:
            self._lost = True
            raise UnreadableHeadersError(str(error)) from error

    def _read(self, cursor: _Cursor) -> list[Header]:
        headers: list[Header] = []
        while not cursor.at_end:
            first = cursor.peek()
            if first & 0x80:  # indexed: section 6.1
                headers.append(self._entry(cursor.integer(7)))
            elif first & 0x40:  # literal, to be remembered: section 6.2.1
                headers.append(self._literal(cursor, 6))
                self._remember(headers[-1])
            elif first & 0x20:  # a new size of the table: section 6.3
                self._max_bytes = cursor.integer(5)
                self._evict()
            else:  # literal, not to be remembered, or never: sections 6.2.2 and 6.2.3
                headers.append(self._literal(cursor, 4))
        return headers

    def _literal(self, cursor: _Cursor, index_bits: int) -> Header:
        index = cursor.integer(index_bits)
        name = self._entry(index)[0] if index else cursor.string()
        return name, cursor.string()

    def _entry(self, index: int) -> Header:
        if index == 0:
            raise UnreadableHeadersError("index 0 names no header")
        if index <= len(_STATIC):
            return _STATIC[index - 1]
        return self._dynamic[index - 1 - len(_STATIC)]

    def _remember(self, header: Header) -> None:
        self._dynamic.appendleft(header)
        self._nbytes += _size(header)
        self._evict()

    def _evict(self) -> None:
        while self._nbytes > self._max_bytes:
            self._nbytes -= _size(self._dynamic.pop())


class _Cursor:
    """A place in a header block."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._block)

    def peek(self) -> int:
        return self._block[self._at]

    def integer(self, prefix_bits: int) -> int:
        """Section 5.1."""
        most = (1 << prefix_bits) - 1
        value = self._next() & most
        if value < most:
            return value
        shift = 0
        while True:
            byte = self._next()
            value += (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def string(self) -> bytes:
        """Section 5.2."""
        if self.peek() & 0x80:
            raise UnreadableHeadersError("a Huffman-coded string")
        end = self.integer(7) + self._at
        if end > len(self._block):
            raise UnreadableHeadersError("a string that runs over the end of its block")
        text = self._block[self._at : end]
        self._at = end
        return text

    def _next(self) -> int:
        self._at += 1
        return self._block[self._at - 1]


def _size(header: Header) -> int:
    return len(header[0]) + len(header[1]) + ENTRY_BYTES
