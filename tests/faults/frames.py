"""HTTP/2 frames: bytes in, frames out, and the few frames that a fault needs.

Owns: where frames begin and end (RFC 9113, section 4.1), and how those are built that are put in or
answered with. Refuses to know: sockets, time, and what a header block says.

Invariants: frames do not depend on how the bytes were cut into chunks; payloads of DATA are counted
and never kept, so that a message of any size costs its frame heads only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final
from urllib.parse import quote_from_bytes

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends before its first frame (RFC 9113, section 3.4)."""

HEAD_BYTES: Final = 9
LAST_OF_ALL: Final = 2**31 - 1
"""The highest stream id: a GOAWAY that names it ends no stream."""

NO_ERROR: Final = 0x0
ENHANCE_YOUR_CALM: Final = 0xB


class Kind(IntEnum):
    """Types of frames. A frame may have others, which pass as they are."""

    DATA = 0x0
    HEADERS = 0x1
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


class Flag(IntFlag):
    """Flags; ``ACK`` is of SETTINGS and PING, and has the same bit as ``END_STREAM``."""

    ACK = 0x1
    END_STREAM = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


_HEADER_BLOCKS: Final = (Kind.HEADERS, Kind.PUSH_PROMISE, Kind.CONTINUATION)


class NotHttp2Error(Exception):
    """The bytes do not begin as a client's of HTTP/2 do."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that has passed whole.

    Attributes:
        kind: Its type, one of ``Kind`` or another number.
        flags: Its flags.
        stream: Its stream; 0 is the connection.
        nbytes: The length of its payload.
        payload: The payload; empty for DATA.
        end: Where it ended in the chunk that completed it.
    """

    kind: int
    flags: int
    stream: int
    nbytes: int
    payload: bytes
    end: int

    @property
    def leaves_block_open(self) -> bool:
        """Whether only a CONTINUATION may follow (RFC 9113, section 6.10)."""
        return self.kind in _HEADER_BLOCKS and not self.flags & Flag.END_HEADERS

    @property
    def header_fragment(self) -> bytes:
        """The part of a header block in a HEADERS or CONTINUATION, without padding and priority."""
        if self.kind != Kind.HEADERS:
            return self.payload
        start, stop = 0, len(self.payload)
        if self.flags & Flag.PADDED:
            start, stop = 1, stop - self.payload[0]
        if self.flags & Flag.PRIORITY:
            start += 5
        return self.payload[start:stop]


class FrameReader:
    """Finds the frames in one direction of a connection.

    Args:
        preface: What comes before the first frame: ``PREFACE`` in the client's direction.
    """

    def __init__(self, preface: bytes = b"") -> None:
        self._preface = preface
        self._head = bytearray()
        self._missing = 0
        self._payload = bytearray()
        self._before_first = True
        self._block_open = False

    @property
    def may_insert(self) -> bool:
        """Whether a frame of one's own may follow the last byte that was fed.

        Not before the first frame, which must be the SETTINGS, and not within a header block.
        """
        return not (self._head or self._block_open or self._before_first)

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take the next bytes and return the frames that they complete.

        Raises:
            NotHttp2Error: The preface is another.
        """
        frames: list[Frame] = []
        at = self._skip_preface(chunk)
        while True:
            if len(self._head) < HEAD_BYTES:
                at = self._take_head(chunk, at)
                if len(self._head) < HEAD_BYTES:
                    return frames
            at = self._take_payload(chunk, at)
            if self._missing:
                return frames
            frames.append(self._close(at))

    def _skip_preface(self, chunk: bytes) -> int:
        taken = min(len(self._preface), len(chunk))
        if not self._preface.startswith(chunk[:taken]):
            raise NotHttp2Error(f"expected {self._preface!r}, got {chunk[:taken]!r}")
        self._preface = self._preface[taken:]
        return taken

    def _take_head(self, chunk: bytes, at: int) -> int:
        taken = chunk[at : at + HEAD_BYTES - len(self._head)]
        self._head += taken
        if len(self._head) == HEAD_BYTES:
            self._missing = int.from_bytes(self._head[:3])
        return at + len(taken)

    def _take_payload(self, chunk: bytes, at: int) -> int:
        end = min(at + self._missing, len(chunk))
        if self._head[3] != Kind.DATA:
            self._payload += chunk[at:end]
        self._missing -= end - at
        return end

    def _close(self, end: int) -> Frame:
        frame = Frame(
            kind=self._head[3],
            flags=self._head[4],
            stream=int.from_bytes(self._head[5:]) & LAST_OF_ALL,  # the first bit is reserved
            nbytes=int.from_bytes(self._head[:3]),
            payload=bytes(self._payload),
            end=end,
        )
        self._head.clear()
        self._payload.clear()
        self._before_first = False
        self._block_open = frame.leaves_block_open
        return frame


def frame(kind: int, *, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame's bytes."""
    head = len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4)
    return head + payload


def goaway(last_stream: int = LAST_OF_ALL, error: int = NO_ERROR, debug: bytes = b"") -> bytes:
    """Return a GOAWAY: no stream above ``last_stream`` was or will be handled."""
    payload = last_stream.to_bytes(4) + error.to_bytes(4) + debug
    return frame(Kind.GOAWAY, payload=payload)


def acknowledgement(asked: Frame) -> bytes | None:
    """Return the answer that a SETTINGS or PING calls for; of other frames, None."""
    if asked.kind not in {Kind.SETTINGS, Kind.PING} or asked.flags & Flag.ACK:
        return None
    echoed = asked.payload if asked.kind == Kind.PING else b""
    return frame(asked.kind, flags=Flag.ACK, payload=echoed)


def status_only(stream: int, code: int, details: str) -> bytes:
    """Return a HEADERS that ends a gRPC call with a status and no message ("Trailers-Only").

    The headers are literals that are not indexed, so the state of the connection's compression
    does not matter.
    """
    # Printable ASCII but "%" stands for itself (gRPC over HTTP/2, "Status-Message").
    message = quote_from_bytes(
        details.encode(), safe=bytes(range(0x20, 0x7F)).replace(b"%", b"").decode()
    )
    block = b"".join(
        literal(name, value)
        for name, value in (
            (b":status", b"200"),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", str(code).encode()),
            (b"grpc-message", message.encode()),
        )
    )
    flags = Flag.END_STREAM | Flag.END_HEADERS
    return frame(Kind.HEADERS, flags=flags, stream=stream, payload=block)


def literal(name: bytes, value: bytes) -> bytes:
    """Return a literal header field without indexing (RFC 7541, section 6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    """RFC 7541, section 5.2, without Huffman coding; the length as in section 5.1."""
    if len(text) < 0x7F:
        return bytes((len(text),)) + text
    length = bytearray((0x7F,))
    rest = len(text) - 0x7F
    while rest >= 0x80:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return bytes(length) + text
