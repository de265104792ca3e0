"""Inference over streams: one answer, or as many as come.

Owns: from a call to a message, and from what came to replies. Large messages are built, and long
strings read, in a worker thread, by whoever waits for them: nobody else on the stream is held up.

Refuses to know: which stream a request goes on, and when (``streams`` does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Self

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ProtocolError
from tritonasync.core.offload import LONG_NBYTES, in_worker
from tritonasync.core.values import Call, Reply
from tritonasync.transport.loading import hosted
from tritonasync.transport.sinks import Feed, Single
from tritonasync.transport.streams import Streams
from tritonasync.transport.unary import LONG_STRINGS_NBYTES, blame
from tritonasync.wire.encode import encode_request, encode_small
from tritonasync.wire.stream import StreamResponse


class StreamedInvoker:
    """Sends calls over streams (an ``Invoker`` and a ``StreamInvoker`` of ``core.ports``).

    :meth:`infer` is for models that are not decoupled, and :meth:`stream` for those that are: a
    server does not bear both on streams (see ``streams``).

    Args:
        streams: The streams to a server. Borrowed.
        otherwise: Runs what may not go on a stream.
    """

    def __init__(
        self, streams: Streams, otherwise: Callable[[Call], Coroutine[Any, Any, Reply]]
    ) -> None:
        self._streams = streams
        self._otherwise = otherwise
        self._loop = asyncio.get_running_loop()

    async def infer(self, call: Call) -> Reply:
        """Run one inference.

        Raises:
            DeadlineExceededError: The call's deadline passed (stages ``"encode"``, ``"headers"``,
                ``"connect"``, ``"server"``); the server may finish the request all the same.
            DecoupledModelError: The model gives many responses.
            InvalidInputError: A tensor cannot be put on the wire.
            MessageTooLargeError: The request is over gRPC's limit.
            ServerError: The server answered with an error.
            TransportError: Nobody answered, or not with a Triton response.
        """
        streams = self._streams
        name = streams.name(call)
        message = await _message(call, name)
        single = Single(call, streams.link.target, self._loop)
        if not await streams.put(call, single, name, message, ordered=True):
            return await self._otherwise(call)  # those of a decoupled model came meanwhile
        try:
            response = await single.waiter
        except asyncio.CancelledError:
            single.leave()
            raise
        finally:
            del single  # its waiter holds the error, which holds this frame, and so the message
        return await _reply(call, response, streams.link.target, call.deadline)

    def stream(self, call: Call) -> StreamedResponses:
        """Return the responses to a call, of which nothing is sent yet."""
        return StreamedResponses(call, self._streams)


class StreamedResponses:
    """The responses to one call (:class:`~tritonasync.core.ports.Responses`).

    Args:
        call: The call.
        streams: Where to send it.
    """

    def __init__(self, call: Call, streams: Streams) -> None:
        self._call = call
        self._streams = streams
        self._feed: Feed | None = None
        self._unread: StreamResponse | None = None
        self._over = False

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Reply:
        """Return the next response; see :class:`~tritonasync.core.ports.Responses`."""
        if self._over:
            raise StopAsyncIteration
        first = self._feed is None
        try:
            feed = self._feed or await self._begin()
            response = self._unread or await feed.next()
            reply = None if response is None else await self._reply(response, first=first)
        except asyncio.CancelledError:
            if first:
                self.leave()
            raise
        except BaseException:
            self.leave()
            raise
        if reply is None:
            self._over = True
            raise StopAsyncIteration
        return reply

    async def _reply(self, response: StreamResponse, *, first: bool) -> Reply:
        # A later one is there, whatever the time: the call's deadline is that of the first.
        deadline = self._call.deadline if first else NEVER
        self._unread = response  # to be read again if whoever waits is cancelled
        reply = await _reply(self._call, response, self._streams.link.target, deadline)
        self._unread = None
        return reply

    async def _begin(self) -> Feed:
        call, streams = self._call, self._streams
        name = streams.name(call)
        message = await _message(await hosted(call), name)
        feed = Feed(call, streams.link.target, streams.policy, streams.expect)
        await streams.put(call, feed, name, message, ordered=False)
        self._feed = feed
        if self._over:  # left meanwhile
            feed.drop()
        return feed

    def leave(self) -> None:
        """Let go of what is still to come."""
        self._over = True
        self._unread = None
        if self._feed is not None:
            self._feed.drop()


class OneResponse:
    """The one response to a call of a model that is not decoupled (``core.ports.Responses``).

    Args:
        call: The call.
        infer: Runs it.
    """

    def __init__(self, call: Call, infer: Callable[[Call], Awaitable[Reply]]) -> None:
        self._call = call
        self._infer = infer
        self._over = False

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Reply:
        """Return the response, once."""
        if self._over:
            raise StopAsyncIteration
        self._over = True
        return await self._infer(self._call)

    def leave(self) -> None:
        """Let go of it."""
        self._over = True


async def _message(call: Call, name: str) -> bytes:
    message = encode_small(call, LONG_NBYTES, name)
    if message is not None:
        return message
    return await in_worker(
        partial(encode_request, call, stream_id=name), deadline=call.deadline, model=call.model
    )


async def _reply(call: Call, response: StreamResponse, target: str, deadline: Deadline) -> Reply:
    read = partial(response.reply, request_id=call.request_id)
    try:
        if response.strings_nbytes < LONG_STRINGS_NBYTES:
            return read()
        return await in_worker(read, deadline=deadline, model=call.model)
    except ProtocolError as error:
        raise blame(error, call, target) from error
