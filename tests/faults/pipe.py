"""What bytes wait for on their way in one direction: the pace of a link, and its length.

Owns: when a byte is on the wire (``Pacer``, pure) and the bytes between the two ends (``Pipe``).
Refuses to know: sockets, and what the bytes mean.

Invariants: bytes leave in the order in which they came, none before its due time; how long one
waits does not delay the next, so latency costs no throughput.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Final

MOST_AT_ONCE: Final = 64 * 1024
_SLICE_S: Final = 0.01
_CREDIT_S: Final = 0.02
"""What a timer that fires late may make up for, so that the rate holds on a busy machine."""


class Pacer:
    """The bandwidth of one direction, shared by the connections on it."""

    def __init__(self) -> None:
        self._free_at = -math.inf

    def reserve(self, nbytes: int, *, now: float, bytes_per_s: float) -> float:
        """Take the link for ``nbytes`` and return when the last of them is on it."""
        begin = max(self._free_at, now - _CREDIT_S)
        self._free_at = begin + nbytes / bytes_per_s
        return max(now, self._free_at)


def slice_bytes(bytes_per_s: float) -> int:
    """Return how much to pass on at once, so that a slow link trickles instead of bursting."""
    return max(1, int(min(MOST_AT_ONCE, bytes_per_s * _SLICE_S)))


class Pipe:
    """Bytes under way from one reader to one writer; an empty chunk is the end."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._came = asyncio.Event()
        self._gone = asyncio.Event()
        self._cut = False

    def put(self, chunk: bytes, due: float) -> None:
        """Send a chunk on its way, to come out at ``due``, or with the one before it if later."""
        if not self._cut:
            self._chunks.append((due, chunk))
            self._came.set()

    async def room(self) -> None:
        """Wait while a chunk is overdue: a receiver that does not keep up holds the sender back."""
        loop = asyncio.get_running_loop()
        while self._chunks and self._chunks[0][0] <= loop.time():
            self._gone.clear()
            await self._gone.wait()

    async def take(self) -> bytes:
        """Wait for the next chunk to be due and return it."""
        while not self._chunks:
            self._came.clear()
            await self._came.wait()
        await sleep_until(self._chunks[0][0])
        _, chunk = self._chunks.popleft()
        self._gone.set()
        return chunk

    def cut(self) -> None:
        """Drop what is under way and all that is still put. Nothing may be taken any more."""
        self._cut = True
        self._chunks.clear()
        self._gone.set()


async def sleep_until(when: float) -> None:
    """Sleep until the running loop's clock shows ``when``; at once if it does already."""
    left = when - asyncio.get_running_loop().time()
    if left > 0:
        await asyncio.sleep(left)
