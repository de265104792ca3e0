"""The first stage of all: who may call, and how many are inside.

Owns: the states of a pool (a table below), its event loop and process, the count of calls that are
inside, on which closing waits. Refuses to know: what a call is about.

Invariant: what was let in may run to its end; what comes after closing began is refused.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Final, Self

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import PoolClosedError, UsageError, WrongContextError
from tritonasync.core.ports import Invoker, ItemLane, ModelCatalog, Responses, SequenceKeeper
from tritonasync.core.values import Call, ClassQuestion, ModelSpec, Reply, TensorSpec
from tritonasync.memory.lease import Lease
from tritonasync.memory.store import Order

_generation = 0
"""Counts forks: cheaper to compare on each call than the process id, which is a system call."""


def _note_fork() -> None:
    global _generation  # noqa: PLW0603 - one number for the process
    _generation += 1


os.register_at_fork(after_in_child=_note_fork)


class GateState(Enum):
    """Whether calls are let in; the value is what a refused caller is told."""

    NEW = "the pool is not open: use `async with TritonPool(...)` or `await pool.open()`"
    OPEN = "open"
    CLOSING = "the pool is closing"
    CLOSED = "the pool is closed"


_NEXT: Final[dict[GateState, tuple[GateState, ...]]] = {
    GateState.NEW: (GateState.OPEN, GateState.CLOSED),
    GateState.OPEN: (GateState.CLOSING, GateState.CLOSED),
    GateState.CLOSING: (GateState.CLOSED,),
    GateState.CLOSED: (),
}


class Gate:
    """Lets calls through to the stages of an open pool (an ``Invoker`` and a ``ModelCatalog``).

    Handles hold the gate, so that they can be made before the pool is open and outlive it.
    """

    def __init__(self) -> None:
        self._state = GateState.NEW
        self._generation = _generation
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stages: tuple[Invoker, ModelCatalog] | None = None  # while open
        self._streamer: SequenceKeeper | None = None
        self._lend: Callable[[Order], Awaitable[Lease]] | None = None
        self._lane: Callable[[Call, ModelSpec, float], ItemLane | None] | None = None
        self._inside = 0
        self._empty: asyncio.Event | None = None

    @property
    def state(self) -> GateState:
        """Whether calls are let in."""
        return self._state

    @property
    def inside(self) -> int:
        """Calls let in that have not come out."""
        return self._inside

    @property
    def forked(self) -> bool:
        """Whether this is another process than the one that made the pool."""
        return self._generation != _generation

    def _move(self, state: GateState) -> None:
        if state not in _NEXT[self._state]:
            raise PoolClosedError(
                "the pool is open already"
                if self._state is GateState.OPEN
                else f"{self._state.value}; make a new one"
            )
        self._state = state

    def open(self) -> None:
        """Bind to the running event loop; :meth:`lead_to` then says where calls go.

        Raises:
            PoolClosedError: It was opened before.
            WrongContextError: No asyncio event loop is running.
        """
        loop = running_loop()
        self._move(GateState.OPEN)
        self._loop = loop

    def lead_to(
        self,
        invoker: Invoker,
        catalog: ModelCatalog,
        lane: Callable[[Call, ModelSpec, float], ItemLane | None] | None = None,
        *,
        streamer: SequenceKeeper | None = None,
        lend: Callable[[Order], Awaitable[Lease]] | None = None,
    ) -> None:
        """Let calls in, to the given stages; ``lane`` gives the short way of items like a call's.

        ``lend`` gives slots in shared memory.

        What takes the short way is not counted here: the stage that gave it sees it to its end.
        Nor are streams after their first response: closing waits for the server's end of them, and
        not for who reads what has come.
        """
        self._stages = invoker, catalog
        self._streamer = streamer
        self._lane = lane
        self._lend = lend

    def check(self) -> tuple[Invoker, ModelCatalog]:
        """Return the stages behind the gate.

        Raises:
            PoolClosedError: The pool is not open.
            WrongContextError: This is another event loop or process than the pool's.
        """
        stages = self._stages
        if stages is None:
            raise PoolClosedError(self._state.value)
        self.check_context()
        return stages

    def check_context(self) -> None:
        """Refuse another event loop, or process, than the one that the pool was opened in.

        Raises:
            WrongContextError: This is another.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is self._loop and self._generation == _generation:
            return
        raise WrongContextError(
            "the pool was opened before this process was forked, and gRPC does not survive a "
            "fork: open a pool of its own in the child, or start it by 'spawn'"
            if self.forked
            else "the pool belongs to another event loop: open one in each loop, and call it from "
            "there (asyncio.run makes a new loop each time)"
        )

    async def infer(self, call: Call) -> Reply:
        """Let a call through. Raises as :meth:`check` and the stages behind do."""
        invoker, _ = self.check()
        self._inside += 1
        try:
            return await invoker.infer(call)
        finally:
            self._leave()

    def stream(self, call: Call) -> Responses:
        """Let a call with many responses through. Raises as :meth:`check` does."""
        self.check()
        assert self._streamer is not None  # noqa: S101 - led to, with the others
        responses = self._streamer.stream(call)
        return _Gated(responses, self.enter, self._leave, self.check_context)

    def enter(self) -> None:
        """Count a call that is let in. Raises as :meth:`check` does."""
        self.check()
        self._inside += 1

    def lane(self, call: Call, timeout_s: float) -> ItemLane | None:
        """Return the short way of items like that of a call, if the pool has one for them."""
        spec = self.known(call.model, call.version)
        return None if self._lane is None or spec is None else self._lane(call, spec, timeout_s)

    async def lend(self, order: Order) -> Lease:
        """Give a slot in shared memory.

        Raises:
            UsageError: The pool shares none.
            TritonError: As :meth:`check` and the store raise it.
        """
        self.check()
        if self._lend is None:
            raise UsageError(
                f"model {order.model!r}: the pool was opened with shared_memory='off'",
                model=order.model,
            )
        return await self._lend(order)

    def known(self, model: str, version: str) -> ModelSpec | None:
        """Return a signature from memory; ``None`` where the pool is not open."""
        stages = self._stages
        return None if stages is None else stages[1].known(model, version)

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Let a question for a signature through. Raises as :meth:`check` and the catalog do."""
        _, catalog = self.check()
        return await catalog.describe(model, version, deadline)

    async def renew(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Let a question anew through. Raises as :meth:`check` and the catalog do."""
        _, catalog = self.check()
        return await catalog.renew(model, version, deadline)

    def forget(self, model: str) -> None:
        """Drop what is remembered of a model; nothing to do where the pool is not open."""
        if self._stages is not None:
            self._stages[1].forget(model)

    def known_labels(
        self, model: str, version: str, output: str, *, asking: bool
    ) -> tuple[str, ...] | None:
        """Return names of classes from memory; ``None`` where the pool is not open."""
        stages = self._stages
        if stages is None:
            return None
        return stages[1].known_labels(model, version, output, asking=asking)

    async def labels(
        self,
        spec: ModelSpec,
        output: TensorSpec,
        question: ClassQuestion | None,
        deadline: Deadline,
    ) -> tuple[str, ...]:
        """Let a question for names through. Raises as :meth:`check` and the catalog do."""
        _, catalog = self.check()
        return await catalog.labels(spec, output, question, deadline)

    def forget_sequence(self, model: str, version: str, number: int | str) -> None:
        """Pass on that a sequence is over; nothing to do where the pool is not open."""
        if self._stages is not None and self._streamer is not None:
            self._streamer.forget_sequence(model, version, number)

    def _leave(self) -> None:
        self._inside -= 1
        if self._empty is not None and not self._inside:
            self._empty.set()

    async def close(self, deadline: Deadline) -> None:
        """Refuse new calls, and wait until those inside are out or the deadline passes."""
        self._move(GateState.CLOSING)
        self._stages = None
        self._empty = asyncio.Event()
        if self._inside:
            waiting = asyncio.ensure_future(self._empty.wait())
            await asyncio.wait({waiting}, timeout=deadline.wait_s())
            waiting.cancel()

    def shut(self) -> None:
        """Take note that everything behind the gate is closed."""
        self._move(GateState.CLOSED)


class _Gated:
    """Responses that are counted as inside while the first is awaited."""

    __slots__ = ("_begun", "_check", "_enter", "_leave", "_responses")

    def __init__(
        self,
        responses: Responses,
        enter: Callable[[], None],
        leave: Callable[[], None],
        check: Callable[[], None],
    ) -> None:
        self._check = check
        self._responses = responses
        self._enter = enter
        self._leave = leave
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        if self._begun:
            self._check()
            return await self._responses.__anext__()
        self._enter()
        self._begun = True
        try:
            return await self._responses.__anext__()
        finally:
            self._leave()

    def leave(self) -> None:
        self._responses.leave()


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running asyncio loop.

    Raises:
        WrongContextError: None is running: plain code, or another async library such as trio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise WrongContextError(
            "no asyncio event loop is running here: gRPC's asynchronous client needs asyncio "
            "(under anyio: anyio.run(main, backend='asyncio'); trio is not supported)"
        ) from error
