"""The pool for programs without an event loop: scripts, notebooks, threads.

Owns: classes whose methods are the asynchronous ones without ``await``. Refuses to know: what a
call does, how it is waited for (``facade`` does), how a pool is made (``pool`` imports this file,
and is met here as a protocol).

Invariant: what touches the pool runs in its loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar, cast, overload

from tritonasync.blocking_bulk import BlockingBulk, blocking_map
from tritonasync.core.errors import (
    InvalidInputError,
    PoolClosedError,
    TritonError,
    UsageError,
)
from tritonasync.core.resilience import EndpointSpec
from tritonasync.core.values import ParameterValue
from tritonasync.facade import BlockingStream, Facade, here, making, streaming, waiting
from tritonasync.factory import HandleFactory
from tritonasync.handles.base import Handle
from tritonasync.handles.classifier import Classifier
from tritonasync.handles.config import HandleConfig
from tritonasync.handles.course import check_end
from tritonasync.handles.detector import Detector
from tritonasync.handles.encoder import Encoder
from tritonasync.handles.generator import Generator
from tritonasync.handles.lease import LeasedInputs, Lending
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.outputs import Outputs
from tritonasync.handles.sequence import SequenceHandle
from tritonasync.handles.steps import Inputs
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
    "BlockingModel",
    "BlockingPool",
    "BlockingSequence",
    "BlockingStream",
    "BlockingTask",
]

_H_co = TypeVar("_H_co", bound=Handle, covariant=True)
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


class _BlockingHandle(Facade[_H_co]):
    @property
    def name(self) -> str:
        """The model's name."""
        return self._inner.name

    @property
    def version(self) -> str:
        """The version asked for; ``""`` for the server's choice."""
        return self._inner.version

    spec: Final = waiting(Handle.spec)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._inner!r}>"


class BlockingSequence(_BlockingHandle[SequenceHandle]):
    """A :class:`SequenceHandle` that waits: the same methods without ``await``, in plain ``with``.

    ::

        with model.sequence() as sequence:
            out = sequence({"VALUE": [[3]]})
    """

    @property
    def id(self) -> int | str:
        """The sequence's id. Raises as :attr:`SequenceHandle.id`."""
        return self._inner.id

    __call__: Final = waiting(SequenceHandle.__call__)
    one: Final = waiting(SequenceHandle.one)
    stream: Final = streaming(SequenceHandle.stream)

    def map(
        self,
        source: Iterable[Inputs],
        *,
        end: bool = False,
        item: bool = False,
        timeout_s: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        priority: int = 0,
        queue_timeout_us: int = 0,
    ) -> Iterator[Outputs]:
        """Run a step for each mapping of a source, and yield what each gave, in order.

        The source is read in the caller's thread. Otherwise as :meth:`SequenceHandle.map`.
        """
        if not isinstance(source, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInputError(
                f"model {self.name!r}: expected an iterable of mappings, not {source!r}",
                model=self.name,
            )
        step = self.one if item else self
        for inputs, last in _flagged(source, end=check_end(self.name, end)):
            yield step(
                inputs,
                end=last,
                timeout_s=timeout_s,
                outputs=outputs,
                parameters=parameters,
                priority=priority,
                queue_timeout_us=queue_timeout_us,
            )

    def __enter__(self) -> Self:
        self._thread.call(self._inner.__aenter__)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._thread.call(self._inner.__aexit__, kind, error, traceback)
        except TritonError:  # the pool was closed, for one: then the sequence is over as well
            if error is None:
                raise


def _flagged(source: Iterable[Inputs], *, end: bool) -> Iterator[tuple[Inputs, bool]]:
    """Yield each item of a source and whether a sequence ends with it: the last one, if asked.

    If the source raises, what it gave before comes first, and none of it is the last.
    """
    items = iter(source)
    for held in items:
        if end:
            try:
                for item in items:
                    yield held, False
                    held = item  # noqa: PLW2901 - one item is held back
            except Exception:
                yield held, False
                raise
        yield held, end


class BlockingLease(Facade[Lending]):
    """Input arrays in shared memory, lent in plain ``with``: ``with model.lease(8) as slot``."""

    _enter: Final = waiting(Lending.__aenter__)
    _leave: Final = waiting(Lending.__aexit__)

    def __enter__(self) -> LeasedInputs:
        """Take the arrays. Raises as :meth:`ModelHandle.lease` says."""
        return self._enter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(kind, error, traceback)


class BlockingModel(_BlockingHandle[ModelHandle]):
    """A :class:`ModelHandle` that waits: the same methods without ``await``."""

    __call__: Final = waiting(ModelHandle.__call__)
    one: Final = waiting(ModelHandle.one)
    map = blocking_map
    stream: Final = streaming(ModelHandle.stream)
    sequence: Final = making(ModelHandle.sequence, BlockingSequence)
    lease: Final = making(ModelHandle.lease, BlockingLease)


class BlockingClassifier(_BlockingHandle[Classifier]):
    """A :class:`Classifier` that waits: the same methods without ``await``."""

    __call__: Final = waiting(Classifier.__call__)
    one: Final = waiting(Classifier.one)
    map = blocking_map


class BlockingDetector(_BlockingHandle[Detector]):
    """A :class:`Detector` that waits: the same methods without ``await``."""

    __call__: Final = waiting(Detector.__call__)
    one: Final = waiting(Detector.one)
    map = blocking_map


class BlockingEncoder(_BlockingHandle[Encoder]):
    """An :class:`Encoder` that waits: the same methods without ``await``."""

    __call__: Final = waiting(Encoder.__call__)
    one: Final = waiting(Encoder.one)
    map = blocking_map


class BlockingTask(_BlockingHandle[TaskHandle[_In, _Out]], Generic[_In, _Out]):
    """A :class:`TaskHandle` that waits: the same methods without ``await``."""

    def __call__(
        self, batch: Iterable[_In] | Mapping[str, object], *, timeout_s: float | None = None
    ) -> list[_Out]:
        """Return the result of each of several items, as :class:`TaskHandle` does."""
        brought = cast("Iterable[_In]", here(batch))
        return self._thread.call(self._inner, brought, timeout_s=timeout_s)

    def one(self, item: _In, *, timeout_s: float | None = None) -> _Out:
        """Return the result of one item. Raises as the call on several."""
        return self._thread.call(self._inner.one, cast("_In", here(item)), timeout_s=timeout_s)

    map = blocking_map


class BlockingGenerator(_BlockingHandle[Generator]):
    """A :class:`Generator` that waits: the same methods without ``await``, in plain loops."""

    __call__: Final = streaming(Generator.__call__)
    text: Final = waiting(Generator.text)


_FACES: Final[tuple[tuple[type[Handle], Callable[[LoopThread, Handle], object]], ...]] = cast(
    "tuple[tuple[type[Handle], Callable[[LoopThread, Handle], object]], ...]",
    (
        (Classifier, BlockingClassifier),
        (Detector, BlockingDetector),
        (Encoder, BlockingEncoder),
        (TaskHandle, BlockingTask),
        (ModelHandle, BlockingModel),
        (Generator, BlockingGenerator),
    ),
)
"""What a handle looks like to those who wait, by its class."""


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
        make = cast("Callable[[HandleConfig[object]], Handle]", getattr(self._inner, "create"))  # noqa: B009
        handle = make(config)
        for kind, face in _FACES:
            if isinstance(handle, kind):
                return face(self._thread, handle)
        raise UsageError(
            f"pool.create: a {type(handle).__name__} has no counterpart that waits; expected a "
            f"handle that derives from {', '.join(kind.__name__ for kind, _ in _FACES)}. Use "
            "TritonPool and its create in an event loop"
        )

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
