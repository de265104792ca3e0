"""The pool for programs without an event loop: scripts, notebooks, threads.

Owns: classes whose methods are the asynchronous ones without ``await``. Refuses to know: what a
call does, the thread that it runs in (``loop_thread`` does), how a pool is made (``pool`` imports
this file, and is met here as a protocol).

Invariant: what touches the pool runs in its loop.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from types import TracebackType
from typing import Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from tritonasync.core.errors import PoolClosedError
from tritonasync.core.policies import Padding
from tritonasync.core.resilience import EndpointSpec
from tritonasync.handles.base import Handle
from tritonasync.handles.classifier import Activation, Classifier
from tritonasync.handles.detector import DecoderChoice, Detector
from tritonasync.handles.encoder import Encoder
from tritonasync.handles.frames import Layout
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.slot import Casting
from tritonasync.loop_thread import LoopThread
from tritonasync.stages import PoolStatistics
from tritonasync.transport.admin import Admin

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S")
_A_co = TypeVar("_A_co", covariant=True)
_H_co = TypeVar("_H_co", bound=Handle, covariant=True)


class AsyncPool(Protocol):
    """A ``TritonPool``, as far as it is needed here. The options are described there."""

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

    def model(
        self,
        name: str,
        version: str = "",
        *,
        casting: Casting = "safe",
        padding: Padding | None = None,
        idempotent: bool = True,
    ) -> ModelHandle:
        """Return a handle that takes and gives tensors by name, as ``TritonPool.model``."""
        ...

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
        """Return a handle that gives a score for each class. The options are `Classifier`'s."""
        ...

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
        """Return a handle that finds objects in images. The options are `Detector`'s."""
        ...

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
        ...


class _Blocking(Generic[_A_co]):
    """An object of a pool, called from other threads than its own."""

    def __init__(self, thread: LoopThread, inner: _A_co) -> None:
        self._thread = thread
        self._inner = inner

    def _in_loop(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what a plain function returns, run in the loop."""

        async def run() -> _R:
            return function(*args, **kwargs)

        return self._thread.call(run)


def _blocking(
    method: Callable[Concatenate[_S, _P], Coroutine[object, object, _R]],
) -> Callable[Concatenate[_Blocking[_S], _P], _R]:
    """Return a method that waits for what ``method`` gives."""

    @wraps(method)
    def call(self: _Blocking[_S], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        thread, inner = self._thread, self._inner  # pyright: ignore[reportPrivateUsage]
        bound: Callable[_P, Coroutine[object, object, _R]] = getattr(inner, call.__name__)
        return thread.call(bound, *args, **kwargs)

    return call


def _making(
    method: Callable[Concatenate[AsyncPool, _P], _S],
    face: Callable[[LoopThread, _S], _R],
) -> Callable[Concatenate[BlockingPool, _P], _R]:
    """Return a method that makes a handle with the options of ``method``."""

    @wraps(method)
    def make(self: BlockingPool, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        thread, inner = self._thread, self._inner  # pyright: ignore[reportPrivateUsage]
        bound: Callable[_P, _S] = getattr(inner, make.__name__)
        return face(thread, bound(*args, **kwargs))

    return make


class _BlockingHandle(_Blocking[_H_co]):
    @property
    def name(self) -> str:
        """The model's name."""
        return self._inner.name

    @property
    def version(self) -> str:
        """The version asked for; ``""`` for the server's choice."""
        return self._inner.version

    spec = _blocking(Handle.spec)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._inner!r}>"


class BlockingModel(_BlockingHandle[ModelHandle]):
    """A :class:`ModelHandle` that waits: the same methods without ``await``."""

    __call__ = _blocking(ModelHandle.__call__)
    one = _blocking(ModelHandle.one)


class BlockingClassifier(_BlockingHandle[Classifier]):
    """A :class:`Classifier` that waits: the same methods without ``await``."""

    __call__ = _blocking(Classifier.__call__)
    one = _blocking(Classifier.one)


class BlockingDetector(_BlockingHandle[Detector]):
    """A :class:`Detector` that waits: the same methods without ``await``."""

    __call__ = _blocking(Detector.__call__)
    one = _blocking(Detector.one)


class BlockingEncoder(_BlockingHandle[Encoder]):
    """An :class:`Encoder` that waits: the same methods without ``await``."""

    __call__ = _blocking(Encoder.__call__)
    one = _blocking(Encoder.one)


class BlockingAdmin(_Blocking[Admin]):
    """An :class:`Admin` that waits: the same methods without ``await``."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The gRPC targets of the pool's endpoints."""
        return self._in_loop(lambda: self._inner.endpoints)

    def at(self, url: str) -> BlockingAdmin:
        """Return the same calls for one endpoint of the pool. Raises as :meth:`Admin.at`."""
        return BlockingAdmin(self._thread, self._in_loop(self._inner.at, url))

    live = _blocking(Admin.live)
    ready = _blocking(Admin.ready)
    wait_until_ready = _blocking(Admin.wait_until_ready)
    server_metadata = _blocking(Admin.server_metadata)
    metadata = _blocking(Admin.metadata)
    config = _blocking(Admin.config)
    index = _blocking(Admin.index)
    statistics = _blocking(Admin.statistics)
    load = _blocking(Admin.load)
    unload = _blocking(Admin.unload)


class BlockingPool(_Blocking[AsyncPool]):
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

    model = _making(AsyncPool.model, BlockingModel)
    classifier = _making(AsyncPool.classifier, BlockingClassifier)
    detector = _making(AsyncPool.detector, BlockingDetector)
    encoder = _making(AsyncPool.encoder, BlockingEncoder)
    add_endpoint = _blocking(AsyncPool.add_endpoint)
    remove_endpoint = _blocking(AsyncPool.remove_endpoint)

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
