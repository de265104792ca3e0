"""The seams: stages are invokers, endpoints backends, signatures a catalog's; items have a lane.

And below them: memory that is shared with a server, of one kind or another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from tritonasync.core.deadline import Deadline
from tritonasync.core.values import (
    Array,
    Call,
    ClassQuestion,
    MemoryKind,
    ModelSpec,
    Reply,
    TensorSpec,
)


class Invoker(Protocol):
    """A stage between a handle and the server: takes a call, gives its reply."""

    def infer(self, call: Call, /) -> Coroutine[Any, Any, Reply]:
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

    async def labels(self, question: ClassQuestion, deadline: Deadline) -> tuple[str, ...]:
        """Return the names of an output's classes, ``""`` where one has none."""
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

    def known_labels(
        self, model: str, version: str, output: str, *, asking: bool
    ) -> tuple[str, ...] | None:
        """Return the names of an output's classes if they are in memory: the short way.

        Args:
            model: The model.
            version: The version asked for.
            output: The output's name.
            asking: Whether the server would be asked, if there is no file of them.

        Returns:
            ``""`` stands for a class without a name; empty if it is known that there are none, and
            ``None`` if :meth:`labels` has to find out.
        """
        ...

    async def labels(
        self,
        spec: ModelSpec,
        output: TensorSpec,
        question: ClassQuestion | None,
        deadline: Deadline,
    ) -> tuple[str, ...]:
        """Return the names that come with a model, from its folder, or by asking the server.

        Args:
            spec: The model.
            output: The output.
            question: What to ask; ``None`` not to. It is not asked where it could do harm.
            deadline: When the caller stops waiting; the question goes on.

        Returns:
            As :meth:`known_labels`; empty also if they could not be had.

        Raises:
            DeadlineExceededError: ``deadline`` passed (stage ``"metadata"`` or ``"connect"``).
            PoolClosedError: The pool was closed meanwhile.
        """
        ...


class Completion(Protocol):
    """Work on a device's memory that was enqueued and may not be done yet."""

    def done(self) -> bool:
        """Return whether it is done; never blocks.

        Raises:
            DeviceError: It failed.
        """
        ...

    def wait(self) -> None:
        """Block until it is done: for a worker thread. Raises as :meth:`done`."""
        ...


class Region(Protocol):
    """Memory that a server on this machine can map: one OS mapping, or one cudaMalloc.

    It knows nothing of who uses which part of it. Offsets are in bytes; one that does not lie
    within the region is refused with a ``ValueError``, whatever the array library would do.
    """

    @property
    def kind(self) -> MemoryKind:
        """Whose memory it is: the host's or a device's."""
        ...

    @property
    def name(self) -> str:
        """A name that no other region on this machine has."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size; what was asked for, or a little more."""
        ...

    @property
    def key(self) -> str:
        """What a server opens it by, with a leading slash; ``""`` for a device's memory."""
        ...

    @property
    def handle(self) -> bytes:
        """The 64 bytes that a server opens a device's memory by; ``b""`` for the host's."""
        ...

    @property
    def device_id(self) -> int:
        """The number of its device in this process; 0 for the host's memory."""
        ...

    def view(
        self,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        owner: object,
        *,
        writable: bool,
    ) -> Array:
        """Return an array on a part of it (numpy, or CuPy on a device).

        ``owner`` is kept alive until the last view on the array has died, and nothing else is.
        """
        ...

    def write(self, offset: int, parts: Sequence[Array]) -> Completion | None:
        """Copy arrays into it, one behind the other, without gaps; the one copy there is.

        Parts may be strided, and of the host's or a device's memory; their dtype is the wire's.

        Returns:
            What tells when the bytes are there and the parts are not read any more; ``None`` if
            that is so already.
        """
        ...

    def fence(self) -> Completion | None:
        """Return what is done when all work on it that was enqueued before is; ``None`` if none."""
        ...

    def close(self) -> None:
        """Give it back to the system; views on it must not be used any more. May be repeated."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a region of shared memory.

    Attributes:
        region: Whose part it is.
        offset: Where it begins, in bytes; a multiple of 256.
        nbytes: Its size, which may be more than was asked for.
    """

    region: Region
    offset: int
    nbytes: int


class Memory(Protocol):
    """A kind of memory, of which regions are made."""

    @property
    def kind(self) -> MemoryKind:
        """Whose memory it is."""
        ...

    def create(self, nbytes: int) -> Region:
        """Return a new region of so many bytes at least.

        Raises:
            MemoryExhaustedError: The system, or a limit, does not give so much.
            WrongContextError: This process was forked from the one that the memory belongs to.
        """
        ...


class Blocks(Protocol):
    """A source of parts of regions (a memory resource): they can be put on top of each other."""

    def take(self, nbytes: int, purpose: str) -> Block:
        """Return a block of so many bytes at least, aligned to 256 bytes.

        Args:
            nbytes: 1 or more.
            purpose: What it is for, to be named by who reports: a model and a tensor.

        Raises:
            MemoryExhaustedError: There is none.
        """
        ...

    def give(self, block: Block) -> None:
        """Take a block back that :meth:`take` returned."""
        ...
