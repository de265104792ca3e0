"""Which of several streams a request goes on, or whether there is to be another.

Pure: looks at the streams, and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from tritonasync.transport.multiplex import ModelKey
from tritonasync.transport.stream import Stream

GROW_AT: Final = 8
"""With so many requests out on each stream, another one is worth its while."""

MAX_CROWDED: Final = 64
"""Streams set aside for slow readers; with more, they share the others."""


def choose(
    streams: Sequence[Stream], key: ModelKey, *, ordered: bool, max_streams: int
) -> Stream | None:
    """Return the stream for a request; ``None`` if it is to be a new one.

    Args:
        streams: Those that requests of the kind may share.
        key: The request's model and version.
        ordered: Whether the request is answered in turn.
        max_streams: How many there may be, those of slow readers not counted.
    """
    best: Stream | None = None
    spare: Stream | None = None
    least = least_of_all = math.inf
    count = crowded = 0
    for stream in streams:
        load, requests = stream.load, stream.requests
        if load < least_of_all:
            spare, least_of_all = stream, load
        if requests.crowded:
            crowded += 1
            continue
        count += 1
        if load < least and not (ordered and requests.held_up_by_others(key)):
            best, least = stream, load
    room = count < max_streams and crowded < MAX_CROWDED
    if best is not None and (least < GROW_AT or not room):
        return best
    return None if room else spare
