"""Inference by unary calls: one message for a call, one reply for its answer.

Owns: where a message is built. A large one is built in a worker thread, since the event loop must
not stand still for it: a 19 MB request held the stock client's loop for 44 ms.

Refuses to know: which endpoint (the stage above picked it), what a batch is.
"""

from __future__ import annotations

from typing import Final

import anyio.to_thread

from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import Call, Reply
from tritonasync.transport.endpoint import Endpoint
from tritonasync.wire.decode import decode_response
from tritonasync.wire.encode import encode_request, request_nbytes

OFFLOAD_NBYTES: Final = 1 << 20
"""Messages from this size on, in bytes, are built in a worker thread: copying 1 MiB takes about
0.2 ms, going to a thread and back about 0.1 ms."""


_DATATYPE_BYTES: Final = b"BYTES"
_HEAD_NBYTES: Final = 4096
"""Where to look for the word: a head this long may hold it. Fixed-size outputs are views, made in
microseconds whatever their size; strings take 0.1 µs each, so that many go to a thread as well."""


class UnaryInvoker:
    """Sends each call as one ``ModelInfer`` (an :class:`~tritonasync.core.ports.Invoker`).

    Args:
        endpoint: Where to. Borrowed.
        limiter: Bounds the worker threads that build messages.
    """

    def __init__(self, endpoint: Endpoint, limiter: anyio.CapacityLimiter) -> None:
        self._endpoint = endpoint
        self._limiter = limiter

    async def infer(self, call: Call) -> Reply:
        """Run one inference.

        Raises:
            DeadlineExceededError: The call's deadline passed (stages ``"encode"``, ``"connect"``,
                ``"server"``); the server may finish the request all the same.
            InvalidInputError: A tensor cannot be put on the wire.
            MessageTooLargeError: The request is over gRPC's limit.
            ServerError: The server answered with an error.
            TransportError: Nobody answered, or not with a Triton response.
        """
        if request_nbytes(call) < OFFLOAD_NBYTES:
            message = encode_request(call)
        else:
            message = await anyio.to_thread.run_sync(encode_request, call, limiter=self._limiter)
            call.deadline.check("encode", model=call.model, endpoint=self._endpoint.target)
        answer = await self._endpoint.exchange(
            "ModelInfer", message, call.deadline, model=call.model
        )
        try:
            if len(answer) < OFFLOAD_NBYTES or _DATATYPE_BYTES not in answer[:_HEAD_NBYTES]:
                return decode_response(answer)
            return await anyio.to_thread.run_sync(decode_response, answer, limiter=self._limiter)
        except ProtocolError as error:
            raise ProtocolError(
                f"model {call.model!r} at {self._endpoint.target}: {error}",
                model=call.model,
                endpoint=self._endpoint.target,
            ) from error
