"""The pool for programs without an event loop: scripts, notebooks, threads.

Owns: the pool and its administration, whose methods are the asynchronous ones without ``await``.
Refuses to know: its handles (``blocking_handles`` does), how a call is waited for (``facade``), how
a pool is made (``pool`` imports this file, and is met here as a protocol).

Invariant: what touches the pool runs in its loop.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar, cast, overload

from tritonasync.blocking_bulk import BlockingBulk
from tritonasync.blocking_handles import (
    BlockingClassifier,
    BlockingDetector,
    BlockingEncoder,
    BlockingGenerator,
    BlockingLease,
    BlockingModel,
    BlockingSequence,
    BlockingTask,
    face_of,
)
from tritonasync.core.errors import PoolClosedError
from tritonasync.core.resilience import EndpointSpec
from tritonasync.facade import BlockingStream, Facade, making, waiting
from tritonasync.factory import HandleFactory
from tritonasync.handles.classifier import Classifier
from tritonasync.handles.detector import Detector
from tritonasync.handles.encoder import Encoder
from tritonasync.handles.generator import Generator
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.registry.config import HandleConfig
from tritonasync.handles.task import TaskHandle
from tritonasync.loop_thread import LoopThread
from tritonasync.stages import PoolStatistics
from tritonasync.transport.admin import Admin

__all__ = [
    "AsyncPool",
    "BlockingAdmin",
    "BlockingBulk",
    "BlockingClassifier",
    "BlockingDetector",
    "BlockingEncoder",
    "BlockingGenerator",
    "BlockingLease",
    "BlockingModel",
    "BlockingPool",
    "BlockingSequence",
    "BlockingStream",
    "BlockingTask",
]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class AsyncPool(Protocol):
    """A ``TritonPool``, as far as it is needed here, but for the handles that it makes."""

    async def open(self) -> object:
        """Open the pool in the running event loop."""

    async def aclose(self) -> None:
        """Refuse new calls, wait for those in flight, close the connections."""

    async def add_endpoint(self, url: str | EndpointSpec) -> None:
        """Take another server in; it gets its share of the calls from now on."""

    async def remove_endpoint(self, url: str, *, timeout_s: float | None = None) -> None:
        """Send nothing new to a server, wait for what is out on it, then disconnect from it."""

    @property
    def admin(self) -> Admin:
        """What can be asked of the servers beside inference."""
        ...

    def statistics(self) -> PoolStatistics:
        """Return a snapshot of what the pool is doing and has done."""
        ...


class BlockingAdmin(Facade[Admin]):
    """An :class:`Admin` that waits: the same methods without ``await``."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The gRPC targets of the pool's endpoints."""
        return self._in_loop(lambda: self._inner.endpoints)

    def at(self, url: str) -> BlockingAdmin:
        """Return the same calls for one endpoint of the pool. Raises as :meth:`Admin.at`."""
        return BlockingAdmin(self._thread, self._in_loop(self._inner.at, url))

    live: Final = waiting(Admin.live)
    ready: Final = waiting(Admin.ready)
    wait_until_ready: Final = waiting(Admin.wait_until_ready)
    server_metadata: Final = waiting(Admin.server_metadata)
    metadata: Final = waiting(Admin.metadata)
    config: Final = waiting(Admin.config)
    index: Final = waiting(Admin.index)
    statistics: Final = waiting(Admin.statistics)
    load: Final = waiting(Admin.load)
    unload: Final = waiting(Admin.unload)


class BlockingPool(Facade[AsyncPool]):
    """A pool for programs without an event loop; made by ``TritonPool.blocking(...)``.

    ::

        with TritonPool.blocking("localhost:8001") as pool:
            result = pool.classifier("digits")(batch)

    Its methods and those of its handles are the asynchronous pool's, and wait instead of being
    awaited. Any number of threads may use it at once, and rows of all of them share batches. Ctrl-C
    while one waits leaves the call, which goes on; the pool stays usable.

    Args:
        pool: A pool that is not open.
    """

    def __init__(self, pool: AsyncPool) -> None:
        super().__init__(LoopThread(pool), pool)

    def __repr__(self) -> str:
        return f"<BlockingPool of {self._inner!r}>"

    def open(self) -> Self:
        """Open the pool, in a thread of its own. Nothing is sent before the first call.

        Raises:
            PoolClosedError: It was opened or closed before.
            WrongContextError: This process was forked from the one that made the pool.
        """
        self._thread.open()
        return self

    def close(self) -> None:
        """Refuse new calls, wait for those in flight, end the thread. May be repeated.

        Waits for the pool's ``close_timeout_s`` at most, as ``TritonPool.aclose`` does. Ctrl-C ends
        the waiting, and the closing goes on; so does a pool that is dropped unclosed.

        Raises:
            WrongContextError: This is the thread of the pool's event loop, or a forked child.
        """
        self._thread.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        thread: LoopThread | None = getattr(self, "_thread", None)  # missing if __init__ raised
        if thread is not None and thread.state == "open" and not thread.forked:
            thread.leave()
            thread.warn_unclosed(self)

    model: Final = making(HandleFactory.model, BlockingModel)
    classifier: Final = making(HandleFactory.classifier, BlockingClassifier)
    detector: Final = making(HandleFactory.detector, BlockingDetector)
    encoder: Final = making(HandleFactory.encoder, BlockingEncoder)
    generator: Final = making(HandleFactory.generator, BlockingGenerator)
    create_classifier: Final = making(HandleFactory.create_classifier, BlockingClassifier)
    create_detector: Final = making(HandleFactory.create_detector, BlockingDetector)
    create_encoder: Final = making(HandleFactory.create_encoder, BlockingEncoder)
    add_endpoint: Final = waiting(AsyncPool.add_endpoint)
    remove_endpoint: Final = waiting(AsyncPool.remove_endpoint)

    @overload
    def create(self, config: HandleConfig[Classifier]) -> BlockingClassifier: ...

    @overload
    def create(self, config: HandleConfig[Detector]) -> BlockingDetector: ...

    @overload
    def create(self, config: HandleConfig[Encoder]) -> BlockingEncoder: ...

    @overload
    def create(self, config: HandleConfig[TaskHandle[_In, _Out]]) -> BlockingTask[_In, _Out]: ...

    @overload
    def create(self, config: HandleConfig[ModelHandle]) -> BlockingModel: ...

    @overload
    def create(self, config: HandleConfig[Generator]) -> BlockingGenerator: ...

    def create(self, config: HandleConfig[object]) -> object:
        """Return the handle that a config describes, to be called without ``await``. No I/O.

        Raises:
            ConfigurationError: As :meth:`TritonPool.create`.
            UsageError: The config makes a handle of a class that only the pool with an event loop
                can give.
        """
        make = cast("Callable[[HandleConfig[object]], object]", getattr(self._inner, "create"))  # noqa: B009
        return face_of(self._thread, make(config))

    @property
    def admin(self) -> BlockingAdmin:
        """What can be asked of the servers beside inference: readiness, index, load, …."""
        return BlockingAdmin(self._thread, self._inner.admin)

    def statistics(self) -> PoolStatistics:
        """Return a snapshot of what the pool is doing and has done."""
        try:
            return self._in_loop(self._inner.statistics)
        except PoolClosedError:  # no loop runs that could be at work on it
            return self._inner.statistics()
