"""Who is at the other end: the same server as before, or perhaps another, and of which version.

Owns: counting connections made anew, telling whoever watches of them, asking for the version on
each. Refuses to know: how a question is sent, and what a version means (``versions`` does).

Invariants: a version is believed only as long as the connection it was given on; a question is
asked beside the calls and holds up none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, Final, cast

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from tritonasync.core.errors import TritonError
from tritonasync.transport.lanes import Lane

_pb: Final = cast("ModuleType", service_pb2)  # which carries no types


class Peer:
    """The server at the other end of some channels.

    Args:
        ask: Sends ``ServerMetadata`` on a channel and gives the answer; ``None`` to ask nothing.

    Attributes:
        reconnections: Connections made anew that were answered on.
        on_reconnected: Called when there is one more. Must not raise.
    """

    def __init__(self, ask: Callable[[Lane], Awaitable[bytes]] | None) -> None:
        self.reconnections: int = 0
        self.on_reconnected: Callable[[], None] | None = None
        self._ask = ask
        self._questions: set[asyncio.Task[None]] = set()

    def heard(self, lane: Lane, connection: int) -> None:
        """Take note of the first answer on a connection."""
        lane.hear(connection)
        if connection > 1:
            self.reconnections += 1
            if self.on_reconnected is not None:
                self.on_reconnected()
        if self._ask is not None:
            question = asyncio.get_running_loop().create_task(self._learn(self._ask, lane))
            self._questions.add(question)
            question.add_done_callback(self._questions.discard)

    @staticmethod
    async def _learn(ask: Callable[[Lane], Awaitable[bytes]], lane: Lane) -> None:
        """Learn the version; without success it stays unknown until the next connection."""
        connection = lane.connection
        with contextlib.suppress(TritonError):
            lane.learn(_version_in(await ask(lane)), connection)

    def stop(self) -> None:
        """Ask no more; the calls beneath the questions go on to their end."""
        self._ask = None
        for question in self._questions:
            question.cancel()

    async def wait_stopped(self) -> None:
        """Return when no question is being asked any more."""
        await asyncio.gather(*self._questions, return_exceptions=True)


def _version_in(metadata: bytes) -> str | None:
    try:
        answer: Any = _pb.ServerMetadataResponse.FromString(metadata)
    except DecodeError:
        return None
    return str(answer.version) or None
