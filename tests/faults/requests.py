"""Which requests a client opens on a connection: what counts as an attempt.

Owns: putting header blocks together and telling a request from trailers. Refuses to know: sockets.
"""

from __future__ import annotations

from typing import Final

from tests.faults.frames import PREFACE, Flag, Frame, FrameReader, Kind
from tests.faults.hpack import HeaderTable, UnreadableHeadersError

UNREADABLE: Final = "?"
"""The path of a request whose headers cannot be read: it counts all the same."""


class RequestReader:
    """Finds the requests in what one connection's client sends."""

    def __init__(self) -> None:
        self._frames = FrameReader(PREFACE)
        self._table = HeaderTable()
        self._block = bytearray()
        self._highest = 0

    def feed(self, chunk: bytes) -> list[str]:
        """Take the client's next bytes and return the paths of the requests that they complete.

        Raises:
            NotHttp2Error: The client does not speak HTTP/2.
        """
        return [path for frame in self._frames.feed(chunk) for path in self._opened_by(frame)]

    def _opened_by(self, frame: Frame) -> list[str]:
        if frame.kind not in {Kind.HEADERS, Kind.CONTINUATION}:
            return []
        self._block += frame.header_fragment
        if not frame.flags & Flag.END_HEADERS:
            return []
        # Trailers too, since they change the table.
        path = self._path(bytes(self._block))
        self._block.clear()
        # A client's new stream has a higher id than all before (RFC 9113, section 5.1.1).
        is_new, self._highest = frame.stream > self._highest, max(frame.stream, self._highest)
        return [path] if is_new else []

    def _path(self, block: bytes) -> str:
        try:
            headers = dict(self._table.read(block))
        except UnreadableHeadersError:
            return UNREADABLE
        return headers.get(b":path", b"").decode(errors="replace")
