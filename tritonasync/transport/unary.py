"""Inference by unary calls: one message for a call, one reply for its answer.

Owns: where a message is built. A large one is built in a worker thread, since the event loop must
not stand still for it: a 19 MB request held the stock client's loop for 44 ms.

Refuses to know: which endpoint (the stage above picked it), what a batch is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from tritonasync.core.errors import ProtocolError
from tritonasync.core.offload import LONG_NBYTES, in_worker
from tritonasync.core.values import Array, Call, Reply
from tritonasync.transport.endpoint import Endpoint
from tritonasync.wire.decode import NOWHERE, View, decode_response
from tritonasync.wire.encode import encode_request, encode_small

LONG_STRINGS_NBYTES: Final = 1 << 17
"""Answers with strings from this size on are read in a worker thread: a string may be as short as
its 4 bytes of length, and takes 0.1 to 0.2 µs, so that this many bytes take up to 5 ms. Fixed-size
outputs are views, made in microseconds whatever their size."""

_DATATYPE_BYTES: Final = b"BYTES"
_HEAD_NBYTES: Final = 4096
"""How much of an answer is searched for that word; a miss costs time in the loop, and no more."""


_NOTHING: Final = np.empty(0, np.uint8)


class UnaryInvoker:
    """Sends each call as one ``ModelInfer`` (an :class:`~tritonasync.core.ports.Invoker`).

    Args:
        endpoint: Where to. Borrowed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

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
        message = encode_small(call, LONG_NBYTES)
        if message is None:
            message = await in_worker(
                partial(encode_request, call), deadline=call.deadline, model=call.model
            )
        answer = await self._endpoint.exchange(
            "ModelInfer",
            message,
            call.deadline,
            model=call.model,
            repeatable=call.idempotent,
        )
        return await read_answer(answer, call, self._endpoint.target)


async def read_answer(
    answer: bytes, call: Call, target: str, placed: Mapping[str, View] = NOWHERE
) -> Reply:
    """Return what an answer says; one with many strings is read in a worker thread.

    Raises:
        ProtocolError: It is no Triton response.
    """
    try:
        if len(answer) < LONG_STRINGS_NBYTES or _DATATYPE_BYTES not in answer[:_HEAD_NBYTES]:
            return decode_response(answer, placed=placed)
        return await _read_in_worker(answer, call, placed)
    except ProtocolError as error:
        raise blame(error, call, target) from error


async def _read_in_worker(answer: bytes, call: Call, placed: Mapping[str, View]) -> Reply:
    """Read an answer beside the event loop, in which the views of slots must be made."""
    seen: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    later = {name: partial(_later, seen, name) for name in placed}
    read = partial(decode_response, answer, placed=later)
    reply = await in_worker(read, deadline=call.deadline, model=call.model)
    for name, (shape, dtype) in seen.items():
        try:
            reply.outputs[name] = placed[name](shape, dtype)
        except ValueError as error:  # larger than its place
            raise ProtocolError(f"output {name!r}: {error}", model=call.model) from error
    return reply


def _later(
    seen: dict[str, tuple[tuple[int, ...], np.dtype[Any]]],
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Array:
    """Take note of what is to be seen in a place."""
    seen[name] = shape, dtype
    return _NOTHING


def blame(error: ProtocolError, call: Call, target: str) -> ProtocolError:
    """Return the error that says whose answer it was."""
    return ProtocolError(
        f"model {call.model!r} at {target}: {error}", model=call.model, endpoint=target
    )
