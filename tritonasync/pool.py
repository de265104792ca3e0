"""The pool: what a user opens, and the only file that knows the order of the stages.

::

    handle → (Padder) → Gate → Splitter → Batcher → UnaryInvoker → Endpoint
                         ├────── Lane ───────┘                       │
                         └──→ Catalog → Control ─────────────────────┘

Owns: opening and closing. Every task below belongs to the stage that started it, and
:meth:`TritonPool.aclose` awaits them all, from the top down.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Final, Self

import anyio

from tritonasync.batching.batcher import Batcher
from tritonasync.batching.padding import Padder
from tritonasync.batching.splitter import Splitter
from tritonasync.batching.statistics import BatchingStatistics
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConfigurationError
from tritonasync.core.policies import BatchPolicy, HeaderSource, Padding, TlsConfig
from tritonasync.handles.classifier import Activation, Classifier
from tritonasync.handles.detector import DecoderChoice, Detector
from tritonasync.handles.encoder import Encoder
from tritonasync.handles.frames import Layout
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.slot import Casting
from tritonasync.transport.admin import Admin
from tritonasync.transport.catalog import Catalog
from tritonasync.transport.channel import HeaderSupply, open_channels
from tritonasync.transport.control import Control
from tritonasync.transport.endpoint import Endpoint, EndpointStatistics
from tritonasync.transport.gate import Gate, GateState
from tritonasync.transport.target import parse_target
from tritonasync.transport.unary import UnaryInvoker

_BATCHING: Final = BatchPolicy()
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot of a pool.

    Attributes:
        in_flight: Calls inside the pool, whose callers wait.
        endpoints: What each endpoint has done so far.
        batching: What became of the rows of each model that was called.
    """

    in_flight: int
    endpoints: tuple[EndpointStatistics, ...]
    batching: tuple[BatchingStatistics, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stages:
    """What exists while a pool is open."""

    endpoint: Endpoint
    control: Control
    catalog: Catalog
    batcher: Batcher | None


class TritonPool:
    """Calls the models of a Triton server.

    A pool belongs to the event loop it was opened in::

        async with TritonPool("localhost:8001") as pool:
            result = await pool.classifier("digits")(batch)

    A call that was sent is seen to its end, even if its caller is cancelled or its time is up:
    below version 2.59 a server can crash of cancelled calls.

    Args:
        url: ``host:port`` of the server's gRPC service, or a target that gRPC resolves itself
            (``dns:///name:port``, ``unix:/path``, …).
        batching: How the rows of many callers become batches; ``None`` to send each call alone.
        timeout_s: Seconds that a call may take unless it says otherwise; ``math.inf`` for no limit.
        channels: Connections to the server. One carries most loads; several help where large
            messages hold up small ones.
        tls: How to talk TLS; ``None`` for plain text.
        headers: gRPC metadata of every call, or a plain or async function that gives it for each.
        protocol_keys: Key and value of each restricted protocol, as the server has them in
            ``--grpc-restricted-protocol=<protocols>:<key>=<value>``.
        close_timeout_s: Seconds that closing waits for calls in flight.

    Raises:
        ConfigurationError: An argument makes no sense; nothing was opened.
    """

    def __init__(
        self,
        url: str,
        *,
        batching: BatchPolicy | None = _BATCHING,
        timeout_s: float = 30.0,
        channels: int = 1,
        tls: TlsConfig | None = None,
        headers: HeaderSource = _NO_HEADERS,
        protocol_keys: Mapping[str, str] = _NO_HEADERS,
        close_timeout_s: float = 30.0,
    ) -> None:
        self._gate = Gate()
        self._target = parse_target(url)
        if not (isinstance(channels, int) and channels >= 1):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"channels must be 1 or more, a whole number, not {channels!r}"
            )
        if not (tls is None or isinstance(tls, TlsConfig)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"tls must be a TlsConfig(ca=…) or None, not {tls!r}")
        if not (batching is None or isinstance(batching, BatchPolicy)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"batching must be a BatchPolicy or None, not {batching!r}")
        Deadline.after(timeout_s, name="timeout_s")  # refuses what is no duration
        Deadline.after(close_timeout_s, name="close_timeout_s")
        self._batching = batching
        self._timeout_s = timeout_s
        self._close_timeout_s = close_timeout_s
        self._channels = channels
        self._tls = tls
        self._headers = HeaderSupply(headers, protocol_keys)
        self._stages: _Stages | None = None
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<TritonPool {self._target} {self._gate.state.name.lower()}>"

    async def open(self) -> Self:
        """Open the pool in the running event loop. Nothing is sent before the first call.

        Raises:
            PoolClosedError: It was opened before.
            WrongContextError: No asyncio event loop is running (plain code, trio).
        """
        self._gate.open()
        try:
            channels = open_channels(self._target, count=self._channels, tls=self._tls)
        except BaseException:
            self._gate.shut()
            raise
        endpoint = Endpoint(self._target, channels, self._headers)
        control = Control(endpoint)
        catalog = Catalog(control.describe, endpoint.waits_for)
        invoker = UnaryInvoker(endpoint)
        policy = self._batching
        if policy is None:
            self._stages = _Stages(endpoint, control, catalog, None)
            self._gate.lead_to(Splitter(invoker, catalog), catalog)
            return self
        batcher = Batcher(invoker, catalog, policy, endpoint.answers_by)
        self._stages = _Stages(endpoint, control, catalog, batcher)
        limit = min(policy.max_rows or policy.max_queued_rows, policy.max_queued_rows)
        splitter = Splitter(batcher, catalog, max_rows=limit, max_out_rows=policy.max_queued_rows)
        self._gate.lead_to(splitter, catalog, batcher.lane)
        return self

    async def aclose(self) -> None:
        """Refuse new calls, wait for those in flight, close the connections. May be repeated.

        Waits ``close_timeout_s`` at most; calls still out then are torn down with a
        ``ResourceWarning``. Cancelling this call takes effect when the pool is closed.

        Raises:
            WrongContextError: This is another event loop or process than the pool's.
        """
        if self._stages is None:
            if self._gate.state is GateState.NEW:
                self._gate.shut()
            return
        self._gate.check_context()
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(self._stages))
        # Closing a channel that has calls out can crash the server, so that cancelling must not cut
        # the waiting short: neither anyio's, which the shield holds off, nor asyncio's, which is
        # put off until the end. Only the end of the event loop itself is stronger.
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not self._closing.done():
                try:
                    await asyncio.wait({self._closing})
                except asyncio.CancelledError as error:
                    cancelled = error
        failure = self._closing.exception()
        if cancelled is not None:
            raise cancelled
        if failure is not None:
            raise failure

    async def _close(self, stages: _Stages) -> None:
        deadline = Deadline.after(self._close_timeout_s)
        batcher = stages.batcher
        try:
            if batcher is not None:
                batcher.hasten()
            await self._gate.close(deadline)
            if batcher is not None:
                await batcher.drain(deadline)
            await stages.catalog.aclose()
            await stages.endpoint.aclose(deadline)
            if batcher is not None:
                await batcher.aclose()
        finally:
            self._gate.shut()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        gate: Gate | None = getattr(self, "_gate", None)  # missing if __init__ raised
        if gate is not None and gate.state is GateState.OPEN and not gate.forked:
            warnings.warn(
                f"unclosed {self!r}: use `async with`, or await its aclose()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def model(
        self,
        name: str,
        version: str = "",
        *,
        casting: Casting = "safe",
        padding: Padding | None = None,
    ) -> ModelHandle:
        """Return a handle that takes and gives tensors by name. No I/O; make it where needed.

        Args:
            name: The model's name.
            version: A version of it; empty for the server's choice (its latest).
            casting: Which arrays are converted to the model's dtype unasked, in numpy's words.
            padding: How rows of different lengths share a batch, for a model with a free axis.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return ModelHandle(
            name,
            version,
            self._gate if padding is None else Padder(self._gate),
            self._gate,
            timeout_s=self._timeout_s,
            casting=casting,
            padding=padding,
            lane=self._gate.lane,
        )

    def classifier(
        self,
        name: str,
        version: str = "",
        *,
        input_name: str | None = None,
        output_name: str | None = None,
        labels: Sequence[str] | None = None,
        activation: Activation = "softmax",
        casting: Casting = "safe",
    ) -> Classifier:
        """Return a handle that gives a score for each class. The options are `Classifier`'s.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return Classifier(
            name,
            version,
            self._gate,
            self._gate,
            timeout_s=self._timeout_s,
            input_name=input_name,
            output_name=output_name,
            labels=labels,
            activation=activation,
            casting=casting,
        )

    def detector(
        self,
        name: str,
        version: str = "",
        *,
        input_name: str | None = None,
        outputs: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        decoder: DecoderChoice = "auto",
        layout: Layout | None = None,
        image_size: tuple[int, int] | None = None,
        score_threshold: float = 0.25,
        iou_threshold: float | None = 0.45,
        max_detections: int = 300,
        class_agnostic: bool = False,
    ) -> Detector:
        """Return a handle that finds objects in images. The options are `Detector`'s.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return Detector(
            name,
            version,
            self._gate,
            self._gate,
            timeout_s=self._timeout_s,
            input_name=input_name,
            outputs=outputs,
            labels=labels,
            decoder=decoder,
            layout=layout,
            image_size=image_size,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            class_agnostic=class_agnostic,
        )

    def encoder(
        self,
        name: str,
        version: str = "",
        *,
        input_name: str | None = None,
        output_name: str | None = None,
        normalize: bool = False,
        casting: Casting = "safe",
    ) -> Encoder:
        """Return a handle that gives a vector for each row. The options are `Encoder`'s."""
        return Encoder(
            name,
            version,
            self._gate,
            self._gate,
            timeout_s=self._timeout_s,
            input_name=input_name,
            output_name=output_name,
            normalize=normalize,
            casting=casting,
        )

    @property
    def admin(self) -> Admin:
        """What can be asked of the server beside inference: readiness, index, load, …."""
        return Admin(self._control, self._gate, self._timeout_s)

    def _control(self) -> Control:
        self._gate.check()
        assert self._stages is not None  # noqa: S101 - an open gate has stages behind it
        return self._stages.control

    def statistics(self) -> PoolStatistics:
        """Return a snapshot of what the pool is doing and has done."""
        stages = self._stages
        if stages is None:
            return PoolStatistics(self._gate.inside, ())
        endpoints, batcher = (stages.endpoint.statistics(),), stages.batcher
        if batcher is None:
            return PoolStatistics(self._gate.inside, endpoints)
        in_flight = self._gate.inside + batcher.items()
        return PoolStatistics(in_flight, endpoints, batcher.statistics())
