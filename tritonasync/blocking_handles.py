"""The handles of a pool without an event loop.

Owns: classes whose methods are the asynchronous ones without ``await``, and which of them stands
for a handle. Refuses to know: what a call does, how it is waited for (``facade`` does), pools.

Invariant: what touches the pool runs in its loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final, Generic, Self, TypeAlias, TypeVar, cast

from tritonasync.blocking_bulk import blocking_map
from tritonasync.core.errors import InvalidInputError, TritonError, UsageError
from tritonasync.core.values import ParameterValue
from tritonasync.facade import Facade, here, making, streaming, waiting
from tritonasync.handles.base import Handle
from tritonasync.handles.classifier import Classifier
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

__all__ = [
    "BlockingClassifier",
    "BlockingDetector",
    "BlockingEncoder",
    "BlockingGenerator",
    "BlockingLease",
    "BlockingModel",
    "BlockingSequence",
    "BlockingTask",
    "face_of",
]

_H_co = TypeVar("_H_co", bound=Handle, covariant=True)
_In = TypeVar("_In")
_Out = TypeVar("_Out")


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


_Face: TypeAlias = Callable[[LoopThread, Handle], object]

_FACES: Final = cast(
    "tuple[tuple[type[Handle], _Face], ...]",
    (
        (Classifier, BlockingClassifier),
        (Detector, BlockingDetector),
        (Encoder, BlockingEncoder),
        (TaskHandle, BlockingTask),
        (ModelHandle, BlockingModel),
        (Generator, BlockingGenerator),
    ),
)
"""What stands for a handle, by its class."""


def face_of(thread: LoopThread, handle: object) -> object:
    """Return what stands for a handle before those who wait.

    Raises:
        UsageError: It is of a class that only the pool with an event loop can give.
    """
    for kind, face in _FACES:
        if isinstance(handle, kind):
            return face(thread, handle)
    raise UsageError(
        f"pool.create: {type(handle).__name__} has no counterpart that waits; expected a "
        f"handle that derives from {', '.join(kind.__name__ for kind, _ in _FACES)}. Use "
        "TritonPool and its create in an event loop"
    )
