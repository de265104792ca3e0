"""One ``ModelStreamInfer`` call: a connection within the connection, for many requests at once.

Owns: the gRPC call, the task that writes to it and the task that reads from it, telling those who
wait what came. Refuses to know: which stream a request goes on (``streams`` does), deadlines, what
a request or an answer is about; what each message means for its request is ``multiplex``'s word.

Invariants: the call is never cancelled, since Triton 2.51 dies (SIGSEGV) of a stream that is
cancelled with requests out; it is half-closed, and read to its end (but see :meth:`Stream.cancel`).
Nobody's writing waits for another's: what is to be sent is queued, and one task sends it. Nobody's
reading waits for another's: what came is handed over at once, and reading pauses only when none of
those who wait on this stream has room for more.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, cast

import grpc
import grpc.aio

from tritonasync.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    ModelNotReadyError,
    ProtocolError,
    ServerError,
    ServerNotReadyError,
    TransportError,
    UnsupportedError,
)
from tritonasync.transport.channel import Metadata
from tritonasync.transport.lanes import Lane, StreamCall
from tritonasync.transport.link import Link
from tritonasync.transport.multiplex import Event, ModelKey, Multiplex, Request, State, Verdict
from tritonasync.transport.sinks import Feed, Single
from tritonasync.transport.status import error_from_stream
from tritonasync.wire.stream import StreamResponse, read_stream_response

Sink: TypeAlias = Single | Feed
"""Who waits for what comes of a request."""

Waiting: TypeAlias = "Request[Sink]"


@dataclass(slots=True)
class Tally:
    """What became of requests so far.

    Attributes:
        succeeded: Requests that ended with an answer.
        failed: Requests that ended with an error.
        abandoned: Those of both that nobody waited for any more.
    """

    succeeded: int = 0
    failed: int = 0
    abandoned: int = 0


_TAKES_NONE: Final = (AccessDeniedError, UnsupportedError)
"""What a stream ends with on a server that takes no streams, or none from here."""


class Watcher(Protocol):
    """Who wants to know what becomes of a stream."""

    def freed(self, stream: Stream) -> None:
        """Take note that all requests it had are over."""
        ...

    def unready(self) -> None:
        """Take note that the server said of itself, or of a model, that it is not ready."""
        ...

    def ended(self, stream: Stream) -> None:
        """Take note that it is over, in whichever way."""
        ...


class Stream:
    """A stream, open from now on. Made in the running event loop.

    Args:
        link: The way to the server. Borrowed.
        lane: The channel that the stream is on.
        metadata: The headers it is opened with.
        tally: Counts what becomes of its requests.
        watcher: Told of what becomes of the stream.

    Attributes:
        lane: The channel.
        connection: The number of the lane's connection when the stream was opened.
        requests: What is out on it.
        queued: Requests that were not sent yet.
        retired: Whether it takes no more requests.
        shared: Whether it is for whoever comes.
        alone: Whether each request on it has it to itself.
        only: The decoupled model that it is for; ``None`` if it is for others.
        used_at: When something was last put on it, or came from it, on the monotonic clock.
        heard_at: When something last came from it, or it was opened.
    """

    def __init__(
        self,
        link: Link,
        lane: Lane,
        metadata: Metadata,
        tally: Tally,
        watcher: Watcher,
    ) -> None:
        self._link = link
        self._tally = tally
        self.lane = lane
        self.connection: int = lane.connection
        self.requests: Multiplex[Sink] = Multiplex()
        self.retired: bool = False
        self.shared = True
        self.alone = False
        self.only: ModelKey | None = None
        self.used_at: float = time.monotonic()
        self.heard_at: float = self.used_at
        self._watcher = watcher
        self._queue: deque[Waiting] = deque()
        self.queued: int = 0
        self._heard = self._connected = False
        self._draining = False
        self._call: StreamCall = lane.open_stream(metadata)
        lane.in_flight += 1
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._more: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._writing = loop.create_task(self._write())
        self._reading = loop.create_task(self._read())

    def __repr__(self) -> str:
        return f"<Stream to {self._link.target} {len(self.requests)} out>"

    # --- requests -------------------------------------------------------------------------------

    @property
    def load(self) -> int:
        """Requests that are out or about to be, those that nobody waits for among them."""
        return len(self.requests)

    def put(self, request: Waiting) -> None:
        """Have a request sent, after those that were put before it."""
        self.requests.add(request)
        self._queue.append(request)
        self.queued += 1
        self.used_at = time.monotonic()
        self._send_on()
        self._read_on()  # whoever comes new has room

    def leave(self, request: Waiting) -> None:
        """Take note that nobody waits for a request any more; what comes of it is dropped."""
        if self.requests.note(request, Event.LEAVING) is Verdict.WITHDRAW:
            self._withdraw()
        request.sink.place = None  # which holds the request, which holds the sink
        self._read_on()
        self._tell_free()

    def _withdraw(self) -> None:
        self.queued -= 1
        if len(self._queue) > 2 * self.queued:  # so that it costs little, and holds little
            self._queue = deque([each for each in self._queue if each.state is State.QUEUED])

    def _tell_free(self) -> None:
        """Tell that it has nothing to do."""
        if not self.retired and not self.requests:
            self._watcher.freed(self)

    def make_room(self, request: Waiting) -> None:
        """Take note that who waits for a request has room for more again."""
        self.requests.fill(request, full=False)
        self._read_on()

    def retire(self) -> None:
        """Take no more requests: half-close the stream when those it has are sent."""
        self.retired = True
        self._send_on()

    def drain(self) -> None:
        """Take no more requests, and read to the end whoever has room: all is to be closed."""
        self._draining = True
        self.retire()
        self._read_on()
        if not (self._connected or self.requests):
            self._call.cancel()  # a server knows nothing of it yet

    def on_lane(self) -> bool:
        """Return whether new requests on its channel would go out on its connection.

        Not so when the channel is to be closed, or the server has said that the connection is
        (GOAWAY): what is out may be answered there still.
        """
        lane = self.lane
        if lane.retired or self.connection != lane.connection:
            return False
        return not lane.ready or lane.connected()

    def waits_since(self) -> float:
        """Return when its oldest request was put on it; infinity if its silence says nothing."""
        oldest = self.requests.oldest()
        if oldest is None or (self.lane.retired and not self.requests.waited_for):
            return math.inf
        return oldest.sink.sent_at

    def cancel(self) -> None:
        """Cancel the stream. Only where the server is known to live through it."""
        self._call.cancel()

    # --- writing --------------------------------------------------------------------------------

    def _send_on(self) -> None:
        more = self._more
        if more is not None and not more.done():
            more.set_result(None)

    async def _write(self) -> None:
        call, requests = self._call, self.requests
        try:
            await call.wait_for_connection()
            self._connected = True
            while True:
                while self._queue:
                    request = self._queue.popleft()
                    if request.state is State.QUEUED:
                        self.queued -= 1
                        requests.note(request, Event.SENDING)
                        message, request.message = request.message, b""
                        await call.write(message)
                        del message
                    del request  # not held while there is nothing to do
                if self.retired:
                    break
                self._more = self._loop.create_future()
                await self._more
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the stream is over, and reading tells how
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise

    # --- reading --------------------------------------------------------------------------------

    def _read_on(self) -> None:
        room = self._room
        held = self.requests.held and not self._draining
        if room is not None and not room.done() and not held:
            room.set_result(None)

    async def _read(self) -> None:
        failure: BaseException | None = None
        try:
            await self._read_all()
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            failure = error
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        finally:
            self._end(failure)
            del failure  # which holds this frame

    async def _read_all(self) -> None:
        read, requests = self._call.read, self.requests
        while True:
            while requests.held and not self._draining:
                self._room = self._loop.create_future()
                await self._room
            message = await read()
            if message is grpc.aio.EOF:
                return
            self._take(cast("bytes", message))

    def _take(self, message: bytes) -> None:
        """Hand a message to whom it is for."""
        self._heard = True
        self._link.answered(self.lane, self.connection)
        self.used_at = self.heard_at = self._link.answered_at
        try:
            response = _read(message)
        except ProtocolError as error:
            # One of them was answered and cannot be told which, so all are.
            self.retire()
            self._break(ProtocolError(f"{self._link.target}: {error}", endpoint=self._link.target))
            return
        request = self.requests.find(response.request_id)
        if request is None:
            return
        left = request.state is State.LEFT and not request.failed
        verdict = self.requests.note(request, _event(response, request))
        if verdict is Verdict.DELIVER:
            if not request.sink.deliver(response):
                self.requests.fill(request, full=True)
        elif verdict is Verdict.FINISH:
            request.sink.finish(response)
        elif response.error:
            self._fail(request, response.error, told=verdict is Verdict.FAIL)
        if request.state is State.OVER:
            request.sink.place = None
            self._count(failed=request.failed or bool(response.error), left=left)
            self._tell_free()

    def _fail(self, request: Waiting, details: str, *, told: bool) -> None:
        """Tell who waits of an error, if somebody does, and heed what it says of the server."""
        error = error_from_stream(details, endpoint=self._link.target, model=request.sink.model)
        if isinstance(error, (ModelNotReadyError, ServerNotReadyError)):
            # A server that goes down unloads its models first, and then waits for the end of all
            # streams, for 30 s and more.
            self._watcher.unready()
            if self.alone:
                self.retire()
        if told:
            request.sink.fail(error)

    def _count(self, *, failed: bool, left: bool) -> None:
        tally = self._tally
        tally.succeeded += not failed
        tally.failed += failed
        tally.abandoned += left

    # --- the end --------------------------------------------------------------------------------

    def _end(self, failure: BaseException | None) -> None:
        self.retired = True
        self._queue.clear()
        self.queued = 0
        self._writing.cancel()  # gRPC never wakes who waits for a connection that nobody makes
        self._break(self._meaning(failure))
        self._link.land(self.lane)
        self._watcher.ended(self)

    def _meaning(self, failure: BaseException | None) -> TransportError | ServerError:
        """Return what the end of the stream means for those who wait."""
        if isinstance(failure, grpc.aio.AioRpcError):
            error = self._link.failure(failure, self.lane, self.connection, None)
            # A status is about the stream, and says nothing of requests that were read from it; but
            # some say that the server takes none.
            if isinstance(error, ConnectionLostError) or not self._connected:
                return error
            if isinstance(error, _TAKES_NONE) and not self._heard:
                return error
            return self._link.lost(None, f"the stream broke: {error.message}")
        if failure is not None:
            why = "; the pool's time for closing was over" if self._link.closing else ""
            return self._link.lost(None, f"the stream was torn down with its connection{why}")
        return self._link.lost(None, "the server ended the stream, with requests on it")

    def _break(self, error: TransportError | ServerError) -> None:
        self._tally.failed += len(self.requests)
        self._tally.abandoned += sum(
            [each.state is State.LEFT and not each.failed for each in self.requests]
        )
        for sink, verdict in self.requests.end():
            sink.place = None
            own = error.copy()
            own.message = f"model {sink.model!r} at {error.message}"  # which begins with the target
            own.model = sink.model
            if verdict is Verdict.NOT_SENT and error.may_have_executed:
                own = self._link.not_sent(sink.model, f"the stream broke ({error.message})")
            sink.fail(own)

    async def wait_ended(self) -> None:
        """Return when the stream is over and its tasks as well."""
        await asyncio.wait({self._reading, self._writing})


def _read(message: bytes) -> StreamResponse:
    response = read_stream_response(message)
    if response.error and not response.request_id:
        raise ProtocolError(f"an error that names no request: {response.error}")
    return response


def _event(response: StreamResponse, request: Waiting) -> Event:
    final = response.final
    if response.error:
        return Event.FAILURE if final is False else Event.REFUSAL
    if final is None:  # which Triton 2.51 never leaves out
        return Event.LAST if request.ordered else Event.RESPONSE
    return Event.LAST if final else Event.RESPONSE
