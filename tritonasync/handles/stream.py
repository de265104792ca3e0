"""The responses to one call, as the user's loop takes them.

Owns: the life of a stream from its first response to its end, what is made of each response, who
may wait, letting go. Refuses to know: how a call is begun, and what a response means.

Invariants: nothing is done before the first response is asked for; what came before an error was
given out before it; after the end, an error or :meth:`ResponseStream.aclose` nothing more comes; a
stream that nobody refers to any more lets go of what is still to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Generic, Self, TypeAlias, TypeVar

from anyio import CancelScope

from tritonasync.core.errors import UsageError
from tritonasync.core.ports import Responses
from tritonasync.core.values import Reply

_T_co = TypeVar("_T_co", covariant=True)

Begun: TypeAlias = tuple[Responses, Reply | None]
"""The responses still to come, and the first; ``None`` if there was none."""


def _nothing() -> None:
    """Return what a stream has left to give at its end, where it holds nothing back."""


class ResponseStream(Generic[_T_co]):
    """The responses to one call as they come: none, one or many.

    ::

        async for out in model.stream({"COUNT": [3]}):
            ...

    Nothing is sent before the first response is asked for. Leaving the loop early lets go of what
    is still to come as soon as nothing refers to the stream; leaving ``async with`` does so for
    certain, whatever else refers to it::

        async with model.stream({"COUNT": [3]}) as responses:
            async for out in responses:
                ...

    The server is not told (see the page on generation): it finishes what it has begun, and what it
    sends is dropped.

    A stream belongs to one task at a time. If a task is cancelled while it waits for the first
    response, the stream is over, and who asks for another one is told so, once; while it waits for
    a later one, nothing is lost, and the next ``async for`` over the same stream goes on.

    Args:
        model: The model's name, for messages.
        begin: Sends the call, once, and returns what it led to.
        read: What to give out for a response; ``None`` for nothing.
        finish: What to give out at the end of all responses; ``None`` for nothing.
    """

    _over = False
    _deserted = False  # over, for who waited for the first response was cancelled
    _responses: Responses | None = None

    def __init__(
        self,
        model: str,
        begin: Callable[[], Awaitable[Begun]],
        read: Callable[[Reply], _T_co | None],
        finish: Callable[[], _T_co | None] = _nothing,
    ) -> None:
        self._model = model
        self._begin: Callable[[], Awaitable[Begun]] | None = begin
        self._read = read
        self._finish = finish
        self._loop: asyncio.AbstractEventLoop | None = None
        self._first_scope: CancelScope | None = None  # while somebody waits for the first
        self._waiting = False

    def __repr__(self) -> str:
        begun = "waiting" if self._waiting else "new" if self._begin else "begun"
        return f"<ResponseStream of {self._model!r} {'over' if self._over else begun}>"

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> _T_co:
        """Return what comes next.

        Raises:
            StopAsyncIteration: There is no more.
            UsageError: Another task is waiting for it; the call was refused before it was sent; or
                who waited for the first response was cancelled.
            DeadlineExceededError: The first response took longer than ``timeout_s``, or another one
                longer than ``idle_timeout_s`` (stage ``"responses"``).
            ResponseOverflowError: The loop fell too far behind.
            TransportError: Nobody answered, or the connection broke.
            ServerError: The server answered with an error.
        """
        if self._waiting:
            raise UsageError(
                f"model {self._model!r}: another task is waiting for the next response of this "
                "stream; one task at a time may, since each response is given out once",
                model=self._model,
            )
        if self._deserted:
            raise self._desertion()
        self._waiting = True
        try:
            while not self._over:
                pending = self._responses
                reply = await (self._first() if pending is None else pending.__anext__())
                item = self._read(reply)
                if item is not None and not self._over:
                    return item
        except StopAsyncIteration:
            pass
        except Exception:
            self._leave()
            raise
        finally:
            self._waiting = False
        return self._last()

    def _desertion(self) -> UsageError:
        """Return the error of a stream that would look like an empty one otherwise."""
        self._deserted = False
        return UsageError(
            f"model {self._model!r}: the stream is over: it was cancelled before its first "
            "response, which is to leave it",
            model=self._model,
        )

    async def _first(self) -> Reply:
        begin, self._begin = self._begin, None  # what is sent may be freed
        begun: Begun | None = None
        try:
            assert begin is not None  # noqa: S101 - only a stream that is over has begun before
            with CancelScope() as self._first_scope:
                begun = await begin()
        except BaseException as error:
            self._over = True  # cancelled, too: who begins a call and leaves has left it
            self._deserted = isinstance(error, asyncio.CancelledError)
            raise
        finally:
            self._first_scope = None
        if begun is None:  # left by somebody else meanwhile
            raise StopAsyncIteration
        responses, first = begun
        if self._over:
            responses.leave()
            raise StopAsyncIteration
        self._responses, self._loop = responses, asyncio.get_running_loop()
        if first is None:
            raise StopAsyncIteration
        return first

    def _last(self) -> _T_co:
        """Return what was held back, at the end of all responses."""
        if not self._over:
            self._leave()
            tail = self._finish()
            if tail is not None:
                return tail
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Let go of what is still to come. May be repeated, and called while another task waits."""
        self._leave()

    def _leave(self) -> None:
        self._over = True
        self._deserted = False
        if self._first_scope is not None:
            self._first_scope.cancel()
        responses, self._responses = self._responses, None
        if responses is not None:
            responses.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        responses, loop = self._responses, self.__dict__.get("_loop")
        if responses is None or loop is None:
            return
        # Not from here: this may be any thread, or the garbage collector's turn in the midst of
        # what the stages below are doing.
        with suppress(RuntimeError):  # the loop is closed, and all streams with it
            loop.call_soon_threadsafe(responses.leave)
