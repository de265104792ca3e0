"""Which of several streams a request goes on, or whether there is to be another.

Owns: the choice among streams that are shared, those that wait for their next request. Refuses to
know: how a stream is opened, what a request is.

Triton does not bear requests of models that are decoupled and of such that are not on streams at
the same time. On one stream it writes two answers at once and dies (2.51: SIGSEGV, 28 of 28 runs,
from 4 requests out on). On two it marks a request as complete after answering it, when its record
may be another request's already: that one's responses are cut short, or it dies (5 of 11 runs).
Neither is mended in its sources up to 2.73. So the first request of a decoupled model waits until
the others have been answered, and from then on those of other models do not go on streams to this
server (``Streams.plain``); a call of its own, beside a stream, harms nobody (8 of 8 runs).

A refusal of a model or version that the server does not have is no answer of a decoupled model to
it, and kills it beside such on the same stream (2.51: SIGSEGV, 6 of 6 runs of 10,000 requests, one
in 20 refused; and 3 of 3 runs in which a decoupled model was unloaded under load). On streams of
their own nothing of the kind was seen (0 of 6, 0 of 3). So a request of a decoupled model has a
stream to itself as long as it lasts, and the stream is used again for the next one; who knows that
models stay may have them share, by model and version (``StreamPolicy.share_decoupled``).
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from tritonasync.transport.multiplex import ModelKey
from tritonasync.transport.stream import Stream

GROW_AT: Final = 8
"""With so many requests out on each stream, another one is worth its while."""

MAX_CROWDED: Final = 64
"""Streams set aside for slow readers; with more, they share the others."""

MAX_SPARES: Final = 64
"""Streams kept for the next requests that are to have one to themselves."""

REST_S: Final = 0.02
"""How long such a stream rests. The server may have answered a request, and not taken note that it
has; a refusal of the next one then kills it, as one beside a response does (3 of 21 runs in which a
decoupled model was unloaded under load; without using streams again, 0 of 15)."""


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


class Spares:
    """Streams that a request had to itself, for the next ones.

    Those that have rested longest are taken first; those that were closed meanwhile are dropped.
    """

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: deque[Stream] = deque()

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: Stream) -> None:
        """Keep a stream, unless there are enough."""
        if len(self._streams) >= MAX_SPARES:
            self._streams = deque([spare for spare in self._streams if not spare.retired])
        if len(self._streams) < MAX_SPARES:
            self._streams.append(stream)
        else:
            stream.retire()

    def take(self, now: float) -> Stream | None:
        """Return a stream that has rested, if there is one."""
        streams = self._streams
        while streams and streams[0].used_at <= now - REST_S:
            stream = streams.popleft()
            if not stream.retired and stream.on_lane():
                return stream
            stream.retire()
        return None

    def drop(self, stream: Stream) -> None:
        """Forget a stream that is over: its call keeps the connection."""
        with contextlib.suppress(ValueError):
            self._streams.remove(stream)

    def retire(self) -> None:
        """Close them all."""
        for stream in self._streams:
            stream.retire()
        self._streams.clear()
