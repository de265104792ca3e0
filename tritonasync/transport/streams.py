"""The streams to one server: which one a request goes on, and when there is to be another.

Owns: opening streams, choosing among them, the deadlines of those who wait, closing what has
nothing to do or is stuck. Refuses to know: what a message says, how many responses are wanted.

A server answers in turn on one stream, so that a slow answer holds up those behind it, whatever
their model (seen on 2.51; responses of decoupled models are not held up). So a stream is for
requests of one model at a time as far as their number allows, another is opened when those there
are have enough to do (four carry half as many small requests again as one), and one whose oldest
request is not answered for seconds, and given up by its caller, takes no more.

Requests of decoupled models and of others are never on streams at the same time, and each of the
former has a stream to itself, since a server dies of anything else: ``choosing`` tells how.

Invariants: a stream that takes no more requests is half-closed and read to its end; what was
opened is known here until its end; after the first request of a decoupled model there is no other
on any stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import Final, TypeAlias

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import QueueFullError, Stage
from tritonasync.core.policies import StreamPolicy
from tritonasync.core.values import Call
from tritonasync.core.watch import Watch
from tritonasync.transport.channel import Metadata
from tritonasync.transport.choosing import Spares, choose
from tritonasync.transport.link import Link
from tritonasync.transport.multiplex import ModelKey, Request, State
from tritonasync.transport.stream import Sink, Stream, Tally, Waiting

MAX_QUEUED: Final = 16_384
"""Requests of one stream that wait to be sent: the server takes them more slowly than they come."""

MAX_SEQUENCES: Final = 256
"""Sequences that have a stream of their own: on a shared one, a step that waits for a slot on the
server would hold up the answers of those steps that are to free it. Others do without streams."""

_SequenceKey: TypeAlias = tuple[str, str, int | str]

SETTLING_S: Final = 0.1
"""How long a server may take to put the record of a request away which it has answered."""

_POLL_S: Final = 0.005
SWEEP_S: Final = 1.0
STUCK_S: Final = 5.0
"""A stream is stuck when its oldest request was given up, and nothing came for so long."""


class _Place:
    """Where a request is: on a stream, which may be its own."""

    __slots__ = ("_alone", "_request", "_stream", "_streams")

    def __init__(self, streams: Streams, stream: Stream, request: Waiting, *, alone: bool) -> None:
        self._streams = streams
        self._stream = stream
        self._request = request
        self._alone = alone

    def leave(self) -> None:
        stream, link = self._stream, self._streams.link
        stream.leave(self._request)
        self._streams.left_at_most += 1
        if self._alone and stream.load and link.cancels(stream.lane, stream.connection):
            stream.cancel()

    def make_room(self) -> None:
        self._stream.make_room(self._request)

    def stage(self) -> Stage:
        if not self._stream.lane.connected():
            return "connect"
        return "server" if self.sent else "send"

    @property
    def sent(self) -> bool:
        return self._request.state is not State.QUEUED

    def surprise(self) -> None:
        self._streams.plain = False


class Streams:
    """Puts requests on streams. Must be made in the running event loop.

    Args:
        link: The way to the server. Borrowed.
        policy: How many streams there are.

    Attributes:
        link: The way to the server.
        policy: How many streams there are.
        tally: What became of requests so far.
        plain: Whether requests of models that are not decoupled may go on streams.
        left_at_most: Requests that nobody waits for, or some that are over by now.
    """

    def __init__(self, link: Link, policy: StreamPolicy) -> None:
        self.link = link
        self.policy = policy
        self.tally: Tally = Tally()
        self.plain: bool = True
        self.left_at_most: int = 0
        self._settled: asyncio.Task[None] | None = None
        self._plain_used = False
        self._streams: list[Stream] = []  # those that are not over
        self._spares = Spares()
        self._sequences: dict[_SequenceKey, Stream] = {}  # those of them that are a sequence's own
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._watch = Watch(loop, self._look)
        self._sweeper: asyncio.TimerHandle | None = None
        self._all_over = asyncio.Event()  # while a stream is open
        self._numbers = 0
        self._unready_at = -math.inf

    def name(self, call: Call) -> str:
        """Return an id for a request, its own on all streams: it begins with the call's."""
        self._numbers += 1
        return f"{call.request_id}#{self._numbers:x}" if call.request_id else f"{self._numbers:x}"

    async def put(
        self, call: Call, sink: Sink, name: str, message: bytes, *, ordered: bool
    ) -> bool:
        """Have a request sent; return whether it may be, on a stream.

        Args:
            call: What is asked.
            sink: Who waits.
            name: The request's id, which the message has.
            message: The serialised request.
            ordered: Whether it is answered in turn: its model is not decoupled. Only while
                :attr:`plain`, which may have ended since the caller looked.

        Raises:
            DeadlineExceededError: The deadline passed; nothing was sent.
            PoolClosedError: The pool is closed or closing.
            QueueFullError: Too many requests are out, or not sent yet.
        """
        link = self.link
        # Alone, it can be cancelled without harm to others, too, where a server lives through it.
        sharing = self.policy.share_decoupled and call.sequence is None and not link.may_cancel
        alone = not (ordered or sharing)
        self._admit(call)
        if not ordered and (self.plain or self._plain_used):
            await self._settle(call)
        stream = await self._stream_for(call, ordered=ordered, alone=alone)
        if stream is None:
            return False
        if stream.queued >= MAX_QUEUED:
            raise link.full(
                call.model,
                "too many requests are not sent yet",
                f"{stream.queued} requests wait to be sent on one stream, since the server takes "
                "them more slowly than they come: slow down, or add endpoints",
            )
        request: Waiting = Request(name, (call.model, call.version), ordered, sink, message)
        sink.sent_at = time.monotonic()
        sink.place = _Place(self, stream, request, alone=alone)
        stream.put(request)
        ended = ordered and call.sequence is not None and call.sequence.end
        if ended or (alone and link.headers.fixed is None):  # the next one has headers of its own
            stream.retire()
        self._watch.expect(sink.due_at)
        return True

    async def _stream_for(self, call: Call, *, ordered: bool, alone: bool) -> Stream | None:
        """Return the stream for a request, perhaps a new one; ``None`` if it may be on none."""
        if not self._may(call, ordered=ordered):
            return None
        self._plain_used |= ordered
        stream = self._find(call, ordered=ordered, alone=alone)
        metadata = self.link.headers.fixed
        if stream is None and metadata is None:
            metadata = await self.link.ask_headers(call.deadline, call.model)
            self._admit(call)
            if not self._may(call, ordered=ordered):
                return None
            stream = self._find(call, ordered=ordered, alone=alone)  # others came, too
        return stream or self._open(metadata or (), call, ordered=ordered, alone=alone)

    def _may(self, call: Call, *, ordered: bool) -> bool:
        """Return whether a request may go on a stream, now."""
        if not ordered:
            return True
        room = call.sequence is None or len(self._sequences) < MAX_SEQUENCES
        return self.plain and (room or _sequence(call) in self._sequences)

    async def _settle(self, call: Call) -> None:
        """Have those of models that are not decoupled go elsewhere, and wait for their answers."""
        self.plain = False
        if not self._plain_used:
            return
        if self._settled is None:
            self._settled = self._loop.create_task(self._settling())
        try:
            async with asyncio.timeout(call.deadline.wait_s()):
                await asyncio.shield(self._settled)
        except TimeoutError as error:
            raise call.deadline.error(
                "send", model=call.model, endpoint=self.link.target
            ) from error
        self._admit(call)

    async def _settling(self) -> None:
        give_up_at = (
            time.monotonic() + STUCK_S
        )  # on what nobody waits for and will never be answered
        while ordered := [
            request for stream in self._streams for request in stream.requests if request.ordered
        ]:
            forsaken = all(request.state is State.LEFT for request in ordered)
            if self.link.closing or (forsaken and time.monotonic() >= give_up_at):
                break
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(SETTLING_S)
        for stream in self._streams:
            stream.retire()
        self._plain_used = False
        self._settled = None

    def _admit(self, call: Call) -> None:
        """Refuse what cannot be sent now."""
        try:
            self.link.admit(self.left_at_most, call.model)
        except (
            QueueFullError
        ):  # counted anew, since some are over by now; rarely, for it takes long
            self.left_at_most = sum([stream.requests.left for stream in self._streams])
            self.link.admit(self.left_at_most, call.model)
        call.deadline.check("send", model=call.model, endpoint=self.link.target)

    # --- choosing -------------------------------------------------------------------------------

    def _find(self, call: Call, *, ordered: bool, alone: bool) -> Stream | None:
        """Return the stream for a request; ``None`` if it is to be a new one."""
        if alone:
            return self._spares.take(time.monotonic())
        if call.sequence is None:
            key = call.model, call.version
            shared = self._shared(None if ordered else key)
            return choose(shared, key, ordered=ordered, max_streams=self.policy.max_streams)
        stream = self._sequences.get(_sequence(call))
        return None if stream is None or stream.retired or not stream.on_lane() else stream

    def freed(self, stream: Stream) -> None:
        """Keep a stream that a request had to itself for another one."""
        if stream.alone:
            self._spares.add(stream)

    def unready(self) -> None:
        """Close what can be closed: a server that goes down waits for the end of all streams.

        Once a second at most, for it may be a single model that is not ready.
        """
        self._spares.retire()
        now = time.monotonic()
        if now >= self._unready_at + SWEEP_S:
            self._unready_at = now
            for stream in self._streams:
                if stream.shared:
                    stream.retire()

    def _shared(self, only: ModelKey | None) -> list[Stream]:
        """Return the streams that requests may share, all of one model or of none in particular."""
        shared = [s for s in self._streams if s.shared and s.only == only and not s.retired]
        for stream in shared:
            if not stream.on_lane():
                stream.retire()
        return [stream for stream in shared if not stream.retired]

    def _open(self, metadata: Metadata, call: Call, *, ordered: bool, alone: bool) -> Stream:
        stream = Stream(self.link, self.link.lane(), metadata, self.tally, self)
        self._streams.append(stream)
        stream.only = None if ordered else (call.model, call.version)
        stream.shared = call.sequence is None and not alone
        stream.alone = alone
        if not alone and call.sequence is not None:
            self._sequences[_sequence(call)] = stream
        self._all_over.clear()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        return stream

    def ended(self, stream: Stream) -> None:
        """Forget a stream that is over."""
        self._streams.remove(stream)
        self._spares.drop(stream)
        if not stream.shared:
            for key in [key for key, held in self._sequences.items() if held is stream]:
                del self._sequences[key]
        if not self._streams:
            self._all_over.set()

    # --- time -----------------------------------------------------------------------------------

    def _waiting(self) -> list[Sink]:
        """Return who waits."""
        return [
            request.sink
            for stream in self._streams
            for request in stream.requests
            if request.state is not State.LEFT
        ]

    def _look(self, now: float) -> float:
        """Let those go whose time is up; return when the next one's is."""
        next_at = math.inf
        for sink in self._waiting():
            if sink.due_at <= now:
                sink.late()
            else:
                next_at = min(next_at, sink.due_at)
        return next_at

    def expect(self, at: float) -> None:
        """Take note of when somebody's time will be up."""
        self._watch.expect(at)

    def _sweep(self) -> None:
        """Close what has nothing to do, and what is stuck or on a channel that is not used."""
        now = time.monotonic()
        for stream in self._streams:
            idle = not stream.load and now - stream.used_at >= self.policy.idle_close_s
            if not stream.retired and (idle or not stream.on_lane() or _is_stuck(stream, now)):
                stream.retire()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if self._streams else None

    # --- the link -------------------------------------------------------------------------------

    def oldest(self) -> float:
        """Return when the oldest request was sent whose silence says something."""
        return min([stream.waits_since() for stream in self._streams], default=math.inf)

    def let_go(self, reason: str) -> None:
        """Let those go who can send their request again; streams take no more."""
        for sink in self._waiting():
            if sink.place is not None and not sink.place.sent:
                sink.fail(self.link.not_sent(sink.model, f"its caller was let go: {reason}"))
                sink.leave()
            elif sink.repeatable:
                sink.fail(self.link.lost(sink.model, f"its caller was let go: {reason}"))
                sink.leave()
        for stream in self._streams:
            stream.retire()

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet ended, abandoned ones included."""
        return sum([stream.load for stream in self._streams])

    @property
    def open(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    async def drain(self, deadline: Deadline) -> int:
        """Half-close all streams, and wait for their ends; return how many requests are left."""
        for stream in self._streams:
            stream.drain()
        if self._streams:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline.wait_s()):
                    await self._all_over.wait()
        return self.in_flight

    async def aclose(self) -> None:
        """Wait for the tasks of what was torn down with the channels; stop the timers."""
        streams = list(self._streams)
        await asyncio.gather(*[stream.wait_ended() for stream in streams])
        self._watch.close()
        if self._settled is not None:
            await self._settled
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None


def _sequence(call: Call) -> _SequenceKey:
    assert call.sequence is not None  # noqa: S101 - asked by the caller
    return call.model, call.version, call.sequence.id


def _is_stuck(stream: Stream, now: float) -> bool:
    """Return whether nothing comes any more, and the first in turn was given up."""
    oldest = stream.requests.oldest()
    if oldest is None or not oldest.ordered or oldest.state is not State.LEFT:
        return False
    return now - max(stream.heard_at, oldest.sink.sent_at) >= STUCK_S
