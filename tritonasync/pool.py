"""The pool: what a user opens.

Owns: opening, closing, the options of a pool. Refuses to know: what is behind the gate (``stages``
does), what handles there are (``factory`` does).
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Final, ParamSpec, Self

import anyio

from tritonasync.blocking import BlockingPool
from tritonasync.core.deadline import Deadline
from tritonasync.core.policies import (
    BatchPolicy,
    HeaderSource,
    MemoryPolicy,
    StreamPolicy,
    TlsConfig,
)
from tritonasync.core.resilience import EndpointSpec, HealthPolicy, RetryPolicy
from tritonasync.factory import HandleFactory
from tritonasync.handles.registry.registry import ModelRegistry
from tritonasync.options import Options, endpoints_of, repository_of
from tritonasync.stages import PoolStatistics, Stages
from tritonasync.transport.admin import Admin
from tritonasync.transport.backend import Transport
from tritonasync.transport.channel import HeaderSupply
from tritonasync.transport.control import Control
from tritonasync.transport.gate import Gate, GateState
from tritonasync.transport.placement import Sharing
from tritonasync.transport.target import parse_target

_P = ParamSpec("_P")

_BATCHING: Final = BatchPolicy()
_RETRY: Final = RetryPolicy()
_HEALTH: Final = HealthPolicy()
_STREAMS: Final = StreamPolicy()
_MEMORY: Final = MemoryPolicy()
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class TritonPool(HandleFactory):
    """Calls the models of a Triton server.

    A pool belongs to the event loop it was opened in::

        async with TritonPool("localhost:8001") as pool:
            result = await pool.classifier("digits")(batch)

    A call that was sent is seen to its end, even if its caller is cancelled or its time is up:
    below version 2.59 a server can crash of cancelled calls.

    Args:
        url: ``host:port`` of the server's gRPC service, or a target that gRPC resolves itself
            (``dns:///name:port``, ``unix:/path``, …); or a list of them, each a URL or an
            :class:`EndpointSpec`, among which calls are balanced.
        batching: How the rows of many callers become batches; ``None`` to send each call alone.
        retry: When what failed is sent again, and what is slow is sent twice.
        health: When an endpoint is left out, and how it comes back.
        prefer_loopback: Whether endpoints on this machine (the loopback interface, a Unix socket)
            come first, as long as one of them is well.
        timeout_s: Seconds that a call may take unless it says otherwise; ``math.inf`` for no limit.
        transport: How calls with one answer are sent: ``"unary"``, each as a call of its own,
            ``"stream"``, over streams that they share, or ``"auto"``, whichever turns out to be
            faster by model and size (see the page on streams). Responses of decoupled models always
            come over streams.
        streams: How streams are shared, and how much is kept for slow readers of responses.
        shared_memory: Whether large tensors lie in memory that is shared with servers of this
            machine, instead of travelling in messages: ``"auto"`` where that works and pays,
            ``"off"``, or ``"system"`` or ``"cuda"`` to insist on the host's or a GPU's: then it is
            an error where that cannot be had (see the page on shared memory).
        memory: How much of it, and from what size on.
        channels: Connections to the server. One carries most loads; several help where large
            messages hold up small ones.
        tls: How to talk TLS; ``None`` for plain text.
        headers: gRPC metadata of every call, or a plain or async function that gives it for each.
        protocol_keys: Key and value of each restricted protocol, as the server has them in
            ``--grpc-restricted-protocol=<protocols>:<key>=<value>``.
        model_repository: The folder with the models' folders, as the server has it, if it is on
            this machine: label files are read there, instead of asking the server.
        registry: The model types and architectures of configs; ``None`` for the default one, which
            ``register_model`` and installed plugins add to.
        close_timeout_s: Seconds that closing waits for calls in flight.

    Raises:
        ConfigurationError: An argument makes no sense; nothing was opened.
    """

    def __init__(
        self,
        url: str | EndpointSpec | Sequence[str | EndpointSpec],
        *,
        batching: BatchPolicy | None = _BATCHING,
        retry: RetryPolicy = _RETRY,
        health: HealthPolicy = _HEALTH,
        prefer_loopback: bool = False,
        timeout_s: float = 30.0,
        transport: Transport = "auto",
        streams: StreamPolicy = _STREAMS,
        shared_memory: Sharing = "auto",
        memory: MemoryPolicy = _MEMORY,
        channels: int = 1,
        tls: TlsConfig | None = None,
        headers: HeaderSource = _NO_HEADERS,
        protocol_keys: Mapping[str, str] = _NO_HEADERS,
        model_repository: str | os.PathLike[str] | None = None,
        registry: ModelRegistry | None = None,
        close_timeout_s: float = 30.0,
    ) -> None:
        gate = Gate()
        Deadline.after(timeout_s, name="timeout_s")  # refuses what is no duration
        super().__init__(gate, timeout_s, registry)
        Deadline.after(close_timeout_s, name="close_timeout_s")
        self._options = Options(
            endpoints=endpoints_of(url),
            batching=batching,
            retry=retry,
            health=health,
            prefer_loopback=prefer_loopback,
            transport=transport,
            streams=streams,
            shared_memory=shared_memory,
            memory=memory,
            channels=channels,
            tls=tls,
            headers=HeaderSupply(headers, protocol_keys),
            model_repository=repository_of(model_repository),
        )
        self._close_timeout_s = close_timeout_s
        self._stages: Stages | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod  # pyright: ignore[reportArgumentType] - to pyright, `type[T]` makes an object
    def blocking(
        cls: Callable[_P, TritonPool],
        /,
        *args: _P.args,
        **options: _P.kwargs,
    ) -> BlockingPool:
        """Return a pool for scripts and notebooks, whose methods wait instead of being awaited.

        The arguments are the pool's own. Use it in ``with``, or ``open()`` and ``close()`` it.

        Raises:
            ConfigurationError: An argument makes no sense; nothing was opened.
        """
        return BlockingPool(cls(*args, **options))

    def __repr__(self) -> str:
        targets = ", ".join(self._targets())
        return f"<TritonPool {targets} {self._gate.state.name.lower()}>"

    def _targets(self) -> tuple[str, ...]:
        if self._stages is not None:
            return tuple(self._stages.controls())
        return tuple([endpoint.url for endpoint in self._options.endpoints])

    async def open(self) -> Self:
        """Open the pool in the running event loop. Nothing is sent before the first call.

        Raises:
            PoolClosedError: It was opened before.
            WrongContextError: No asyncio event loop is running (plain code, trio).
        """
        self._gate.open()
        anyio.get_cancelled_exc_class()  # has anyio import its part for asyncio: 30 ms
        try:
            self._stages = Stages(self._options, self._gate)
        except BaseException:
            self._gate.shut()
            raise
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

    async def _close(self, stages: Stages) -> None:
        try:
            await stages.close(Deadline.after(self._close_timeout_s))
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

    async def add_endpoint(self, url: str | EndpointSpec) -> None:
        """Take another server in; it gets its share of the calls from now on.

        Raises:
            ConfigurationError: The URL makes no sense, or is an endpoint of this pool already.
            PoolClosedError: The pool is not open.
            WrongContextError: This is another event loop or process than the pool's.
        """
        (spec,) = endpoints_of([url])
        self._open_stages().add(spec)

    async def remove_endpoint(self, url: str, *, timeout_s: float | None = None) -> None:
        """Send nothing new to a server, wait for what is out on it, then disconnect from it.

        Cancelling this call leaves the server removed, and what is out goes on.

        Args:
            url: The URL as it was given.
            timeout_s: Seconds to wait for calls, and for sequences whose state is there; ``None``
                for the pool's ``close_timeout_s``. Calls still out then are torn down with a
                ``ResourceWarning``, as when the pool is closed.

        Raises:
            ConfigurationError: It is no endpoint of this pool, or the last one.
            PoolClosedError: The pool is not open.
            WrongContextError: This is another event loop or process than the pool's.
        """
        stages = self._open_stages()
        seconds = self._close_timeout_s if timeout_s is None else timeout_s
        await stages.remove(parse_target(url), Deadline.after(seconds))

    @property
    def admin(self) -> Admin:
        """What can be asked of the servers beside inference: readiness, index, load, …."""
        return Admin(self._controls, self._gate, self._timeout_s)

    def _controls(self) -> dict[str, Control]:
        return self._open_stages().controls()

    def _open_stages(self) -> Stages:
        self._gate.check()
        assert self._stages is not None  # noqa: S101 - an open gate has stages behind it
        return self._stages

    def statistics(self) -> PoolStatistics:
        """Return a snapshot of what the pool is doing and has done."""
        if self._stages is None:
            return PoolStatistics(self._gate.inside, ())
        return self._stages.statistics()
