"""How what is awaited is waited for: the machinery of the pool without an event loop.

Owns: methods and streams that wait in the caller's thread for what runs in the pool's loop. Refuses
to know: which methods there are (``blocking`` does), the thread of the loop (``loop_thread`` does).

Invariant: what touches the pool runs in its loop; a stream is made, and dropped, in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial, wraps
from types import TracebackType
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar, cast

from tritonasync.core.errors import PoolClosedError
from tritonasync.handles.stream import ResponseStream
from tritonasync.loop_thread import LoopThread
from tritonasync.memory.device import as_device_array, is_device_array

_P = ParamSpec("_P")
_M = TypeVar("_M")
_R = TypeVar("_R")
_S = TypeVar("_S")
_A_co = TypeVar("_A_co", covariant=True)
_T_co = TypeVar("_T_co", covariant=True)


class Facade(Generic[_A_co]):
    """An object of a pool, called from other threads than its own.

    Args:
        thread: The pool's loop and thread.
        inner: The object.
    """

    def __init__(self, thread: LoopThread, inner: _A_co) -> None:
        self._thread = thread
        self._inner = inner

    def _in_loop(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what a plain function returns, run in the loop."""

        async def run() -> _R:
            return function(*args, **kwargs)

        return self._thread.call(run)


class BlockingStream(Facade[ResponseStream[_T_co]]):
    """A :class:`ResponseStream` that waits: a plain iterator, and a context manager.

    ::

        with model.stream({"COUNT": [3]}) as responses:
            for out in responses:
                ...

    Without ``with``, leaving the loop lets go of what is still to come as soon as nothing refers to
    the stream. Ctrl-C while the first response is waited for ends the stream; who asks for another
    one then is told so, by a ``UsageError``.
    """

    def __repr__(self) -> str:
        return f"<BlockingStream of {self._inner!r}>"

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> _T_co:
        """Return what comes next. Raises as :meth:`ResponseStream.__anext__`, or StopIteration."""
        try:
            return self._thread.call(self._inner.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Let go of what is still to come. May be repeated, and called by another thread."""
        with suppress(PoolClosedError):  # all its streams are over
            self._thread.call(self._inner.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def here(value: object) -> object:
    """Return an argument with a GPU's arrays brought in: their stream is the caller's thread's."""
    if is_device_array(value):
        return as_device_array(value)
    if type(value) is not dict:
        return value
    named = cast("dict[object, object]", value)
    if not any(map(is_device_array, named.values())):
        return named
    return {name: here(each) for name, each in named.items()}


def waiting(
    method: Callable[Concatenate[_S, _P], Coroutine[object, object, _R]],
) -> Callable[Concatenate[Facade[_S], _P], _R]:
    """Return a method that waits for what ``method`` gives."""

    @wraps(method)
    def call(self: Facade[_S], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        thread, inner = self._thread, self._inner  # pyright: ignore[reportPrivateUsage]
        bound: Callable[..., Coroutine[object, object, _R]] = getattr(inner, call.__name__)
        named = {name: here(value) for name, value in kwargs.items()}
        return thread.call(partial(bound, *map(here, args), **named))

    return call


def making(
    method: Callable[Concatenate[_S, _P], _M],
    face: Callable[[LoopThread, _M], _R],
) -> Callable[Concatenate[Facade[object], _P], _R]:
    """Return a method that gives a face to what ``method`` makes without I/O."""

    @wraps(method)
    def make(self: Facade[object], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        thread, inner = self._thread, self._inner  # pyright: ignore[reportPrivateUsage]
        bound: Callable[_P, _M] = getattr(inner, make.__name__)
        return face(thread, bound(*args, **kwargs))

    return make


def streaming(
    method: Callable[Concatenate[_S, _P], ResponseStream[_R]],
) -> Callable[Concatenate[Facade[_S], _P], BlockingStream[_R]]:
    """Return a method that gives the responses that ``method`` gives, to a plain loop."""

    @wraps(method)
    def call(self: Facade[_S], /, *args: _P.args, **kwargs: _P.kwargs) -> BlockingStream[_R]:
        thread, inner = self._thread, self._inner  # pyright: ignore[reportPrivateUsage]
        bound: Callable[..., ResponseStream[_R]] = getattr(inner, call.__name__)
        named = {name: here(value) for name, value in kwargs.items()}
        return BlockingStream(thread, bound(*map(here, args), **named))

    return call
