"""One endpoint as routing and the pool see it.

Owns: nothing but the endpoint; puts together what calls it, asks it and closes it. Refuses to know:
other endpoints.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final, Literal

from tritonasync.core.deadline import Deadline
from tritonasync.core.policies import MemoryPolicy, StreamPolicy
from tritonasync.core.ports import Responses
from tritonasync.core.values import Call, ClassQuestion, ModelSpec, Reply
from tritonasync.memory.store import MemoryStore
from tritonasync.transport.auto import AutoInvoker
from tritonasync.transport.classes import ask_labels
from tritonasync.transport.control import Control
from tritonasync.transport.endpoint import TEARDOWN_S, Endpoint
from tritonasync.transport.loading import hosted
from tritonasync.transport.placement import Sharing
from tritonasync.transport.places import OutputNames
from tritonasync.transport.shared import Shared, may_share
from tritonasync.transport.statistics import EndpointStatistics
from tritonasync.transport.streamed import OneResponse, StreamedInvoker
from tritonasync.transport.streams import Streams
from tritonasync.transport.unary import UnaryInvoker

Transport = Literal["auto", "unary", "stream"]
"""How calls with one answer are sent."""

_STREAMS: Final = StreamPolicy()
_MEMORY: Final = MemoryPolicy()


def _nothing() -> None:
    """Do nothing."""


def _unknown(model: str, version: str) -> None:
    """Know no outputs."""
    del model, version


class EndpointBackend:
    """A server behind an :class:`Endpoint` (a :class:`~tritonasync.core.ports.Backend`).

    Args:
        endpoint: Where to. Owned from here on.
        transport: How calls with one answer are sent.
        streams: How streams are used.
        store: Where shared memory comes from; ``None`` for none.
        memory: How much of it, and from what size on.
        sharing: Which kind.
        on_shared: Called when the first call goes by shared memory.
        outputs_of: Tells the outputs of a model; without, they come in messages.

    Attributes:
        endpoint: The endpoint.
        control: Its administration calls.
        streams: The streams to it.
        infer: Runs one inference; as :meth:`UnaryInvoker.infer`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        transport: Transport = "unary",
        streams: StreamPolicy = _STREAMS,
        store: MemoryStore | None = None,
        memory: MemoryPolicy = _MEMORY,
        sharing: Sharing = "off",
        on_shared: Callable[[], None] = _nothing,
        outputs_of: OutputNames = _unknown,
    ) -> None:
        self.endpoint = endpoint
        self.control: Control = Control(endpoint)
        self.streams: Streams = Streams(endpoint.link, streams)
        self._unary = UnaryInvoker(endpoint).infer
        self._streamed = StreamedInvoker(self.streams, self._unary)
        self._auto = AutoInvoker(self._unary, self._streamed.infer, self.streams, self.control)
        ways = {"unary": self._unary, "stream": self._stream_plain, "auto": self._auto.infer}
        self._on_wire = ways[transport]
        self.infer: Callable[[Call], Coroutine[Any, Any, Reply]] = self._host
        self._shared: Shared | None = None
        if store is not None and may_share(endpoint.target, sharing):
            self._shared = Shared(
                endpoint,
                store,
                policy=memory,
                sharing=sharing,
                wire=self._on_wire,
                control=self.control,
                on_shared=on_shared,
                outputs_of=outputs_of,
            )
            self.infer = self._shared.infer  # itself: a method of ours would cost each call

    def _stream_plain(self, call: Call) -> Coroutine[Any, Any, Reply]:
        # A sequence by its parameters alone does not say when it ends.
        if not self.streams.plain or (call.sequence is None and call.in_sequence):
            return self._unary(call)
        return self._streamed.infer(call)

    def _host(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """Send a call whose arrays may be on a GPU, without shared memory."""
        return self._hosted(call) if call.device else self._on_wire(call)

    async def _hosted(self, call: Call) -> Reply:
        return await self._on_wire(await hosted(call))

    def stream(self, call: Call) -> Responses:
        """Return the responses to a call: of a model that is not decoupled there is one."""
        return self._streamed.stream(call) if call.decoupled else OneResponse(call, self.infer)

    def __repr__(self) -> str:
        return f"<EndpointBackend {self.target}>"

    @property
    def target(self) -> str:
        """The gRPC target, which names the endpoint."""
        return self.endpoint.target

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return the signature of a model as this endpoint serves it.

        Raises as :class:`Control`'s methods do; the questions below as well.
        """
        return await self.control.describe(model, version, deadline)

    async def labels(self, question: ClassQuestion, deadline: Deadline) -> tuple[str, ...]:
        """Return the names of an output's classes, as this endpoint's label file has them."""
        call = replace(question.call, deadline=deadline)
        return await ask_labels(self.endpoint, replace(question, call=await hosted(call)))

    async def ready(self, deadline: Deadline) -> bool:
        """Return whether the server says that it is ready."""
        return await self.control.ready(deadline)

    async def model_ready(self, model: str, version: str, deadline: Deadline) -> bool:
        """Return whether the server says that a model is ready."""
        return await self.control.model_ready(model, version, deadline)

    def silent_since(self) -> float:
        """Return since when calls are out and nothing was answered; see :class:`Endpoint`."""
        heard_at = self.endpoint.link.answered_at
        return min(self.endpoint.silent_since(), max(heard_at, self.streams.oldest()))

    def let_go(self, reason: str) -> None:
        """Let the callers of idempotent calls go, and reconnect; see :class:`Endpoint`."""
        self.streams.let_go(reason)
        self.endpoint.let_go(reason)

    def watch_reconnections(self, callback: Callable[[], None]) -> None:
        """Have a function called when a connection made anew was answered on first."""

        def reconnected() -> None:
            self._auto.doubt()
            if self._shared is not None:
                self._shared.restarted()
            callback()

        self.endpoint.link.watch_reconnections(reconnected)

    def held_regions(self) -> list[str]:
        """Return the names of regions of shared memory that the server may still have."""
        return [] if self._shared is None else self._shared.held()

    def statistics(self) -> EndpointStatistics:
        """Return what the endpoint has done so far."""
        calls, streams, tally = self.endpoint.statistics(), self.streams, self.streams.tally
        return replace(
            calls,
            in_flight=calls.in_flight + streams.in_flight,
            succeeded=calls.succeeded + tally.succeeded,
            failed=calls.failed + tally.failed,
            abandoned=calls.abandoned + tally.abandoned,
            streams=streams.open,
            choices=self._auto.report(),
            sharing=None if self._shared is None else self._shared.report(),
        )

    async def aclose(self, deadline: Deadline) -> None:
        """Close the endpoint, as :meth:`Endpoint.aclose` does; the streams first.

        Before that, the server is asked to let go of shared memory.
        """
        if self._shared is not None:
            await self._shared.aclose(deadline)
        self.endpoint.link.close()
        torn = await self.streams.drain(deadline)
        await self.endpoint.aclose(deadline)
        await self.streams.aclose()
        await self._auto.aclose()
        if torn:
            await asyncio.sleep(TEARDOWN_S)
            warnings.warn(
                f"{self.target}: {torn} requests were still out on streams when the pool's closing "
                f"time of {deadline.timeout_s:g} s was over; they were torn down",
                ResourceWarning,
                stacklevel=2,
            )
