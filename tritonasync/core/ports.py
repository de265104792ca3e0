"""The seams: stages are invokers, endpoints backends, signatures a catalog's; items have a lane."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Protocol, Self, runtime_checkable

from tritonasync.core.deadline import Deadline
from tritonasync.core.values import Call, ModelSpec, Reply


class Invoker(Protocol):
    """A stage between a handle and the server: takes a call, gives its reply."""

    def infer(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """Run one inference (``async def``, or what gives the next stage's coroutine).

        A cancelled caller harms nobody: the stage below goes on with the request it has sent.

        Raises:
            DeadlineExceededError: ``call.deadline`` passed.
            TransportError: Nobody answered.
            ServerError: The server answered with an error.
        """
        ...


class Responses(Protocol):
    """The responses to one call, as they come: an async iterator.

    Nothing is sent before the first is asked for. Cancelling who waits for the first response is to
    leave; cancelling who waits for a later one takes nothing away, and it may be asked for again.
    """

    def __aiter__(self) -> Self:
        """Return itself."""
        ...

    async def __anext__(self) -> Reply:
        """Return the next response.

        Raises:
            StopAsyncIteration: There are no more, or :meth:`leave` was called.
            DeadlineExceededError: The first took longer than the call's deadline, or another one
                longer than its ``idle_s`` (stage ``"responses"``). Nothing comes after it.
            ResponseOverflowError: More came than there is room for, and they were not asked for.
            TransportError: Nobody answered, or the connection broke.
            ServerError: The server answered with an error. What came before it was returned first.
        """
        ...

    def leave(self) -> None:
        """Let go of what is still to come; without effect after the end, or a second time."""
        ...


class StreamInvoker(Protocol):
    """A stage that takes a call and gives its responses: none, one or many."""

    def stream(self, call: Call) -> Responses:
        """Return the responses to a call, of which nothing is sent yet."""
        ...


@runtime_checkable
class SequenceKeeper(StreamInvoker, Protocol):
    """A stage that remembers where the states of sequences are."""

    def forget_sequence(self, model: str, version: str, number: int | str) -> None:
        """Take note that a sequence is over, told of its end or not; it may be unknown."""
        ...


class Backend(Invoker, StreamInvoker, Protocol):
    """One endpoint as routing sees it: it answers calls and questions, or does not."""

    @property
    def target(self) -> str:
        """The gRPC target, which names the endpoint."""
        ...

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return the signature of a model as this endpoint serves it."""
        ...

    async def ready(self, deadline: Deadline) -> bool:
        """Return whether the server says that it is ready."""
        ...

    async def model_ready(self, model: str, version: str, deadline: Deadline) -> bool:
        """Return whether the server says that a model is ready."""
        ...

    def silent_since(self) -> float:
        """Return since when calls are out and nothing was answered, on the monotonic clock.

        Infinity while nothing is out.
        """
        ...

    def let_go(self, reason: str) -> None:
        """Let the callers of idempotent calls go with a ``ConnectionLostError``, and reconnect.

        Their requests go on and are abandoned; what is sent next goes out on a new connection.
        """
        ...


class ItemLane(Protocol):
    """The short way of items that all look alike: what was checked once is compared after that."""

    @property
    def valid(self) -> bool:
        """Whether it still takes items: not after the model changed, or closing began."""
        ...

    def enter(self, arrays: Mapping[str, object]) -> Awaitable[tuple[Reply, int] | None] | None:
        """Let an item wait for a batch; ``None`` if it should go the long way, by a call.

        Args:
            arrays: An array for each input, without the batch axis. Borrowed until the end.

        Returns:
            What gives the reply to a batch and the item's row in it, or ``None`` if the item should
            go the long way after all; it raises as :meth:`Invoker.infer` does.
        """
        ...


class ModelCatalog(Protocol):
    """Where a handle learns the signature of its model."""

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return the signature, from memory where it is known.

        Raises:
            DeadlineExceededError: ``deadline`` passed (stage ``"metadata"`` or ``"connect"``).
            ModelNotFoundError: The server has no such model or version.
            ModelNotReadyError: The model is known and has no version that can answer.
            TransportError: Nobody answered.
        """
        ...

    async def renew(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return the signature, asked anew; what was known stays until the answer is there.

        Raises as :meth:`describe`.
        """
        ...

    def known(self, model: str, version: str) -> ModelSpec | None:
        """Return the signature if it is in memory: the short way for each call but the first."""
        ...

    def forget(self, model: str) -> None:
        """Drop what is remembered of a model, because it may have been reloaded."""
        ...
