"""What a sequence does beneath its steps: entering, taking turns, closing.

Owns: one step at a time, in the order in which they were asked for; the closing of a sequence that
nobody ended; the timer of one that nobody goes on with. Refuses to know: which step may come next
and what a failed one means (``course`` does), which endpoint has the state (the router does).

Invariants: a step is sent when the one before it was answered, or given up; nothing is ever sent
twice here; what was entered and has begun is closed at the end of its block whatever ended it,
where the model allows it, within ``close_timeout_s``; the stages below are told that it is over,
closed or not; whatever closes it runs in a task that the end of the block waits for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self, TypeAlias, TypeVar

import numpy.typing as npt
from anyio import CancelScope

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    TritonError,
    UsageError,
)
from tritonasync.core.ports import Invoker, ModelCatalog, Responses, SequenceKeeper, StreamInvoker
from tritonasync.core.values import ModelSpec, Parameters, ParameterValue, Reply, SequenceStep
from tritonasync.handles.base import Prepared, Request, no_work
from tritonasync.handles.course import Course, Phase, check_end, check_id, make_id
from tritonasync.handles.named import NamedHandle
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import Casting
from tritonasync.handles.stream import Begun

_C = TypeVar("_C")

CLOSE_TIMEOUT_S: Final = 5.0
"""How long leaving a sequence may take, unless told otherwise."""

_OWN_PARAMETERS: Final = frozenset({"sequence_id", "sequence_start", "sequence_end"})

Inputs: TypeAlias = Mapping[str, npt.ArrayLike]


class Steps(NamedHandle):
    """The steps of one sequence, taken one at a time; see ``SequenceHandle`` for the arguments."""

    _many = "sequence.stream(…)"

    def __init__(
        self,
        name: str,
        version: str,
        invoker: Invoker,
        catalog: ModelCatalog,
        *,
        timeout_s: float | None,
        casting: Casting = "safe",
        streamer: StreamInvoker | None = None,
        number: int | str | None = None,
        closing: Inputs | None = None,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        idle_timeout_s: float | None = None,
    ) -> None:
        super().__init__(
            name, version, invoker, catalog, timeout_s=timeout_s, casting=casting, idempotent=False
        )
        self._streamer = streamer
        self._keeper = streamer if isinstance(streamer, SequenceKeeper) else None
        self._number = None if number is None else check_id(name, number)
        self._closing = None if closing is None else self._named(closing, {})
        self._close_s = Deadline.after(close_timeout_s, name="close_timeout_s").timeout_s
        self._idle_s = Deadline.after(idle_timeout_s, name="idle_timeout_s").timeout_s
        self._course = Course(name)
        self._spec: ModelSpec | None = None
        self._turns = asyncio.Lock()  # first come, first served
        self._coming = 0  # steps of which responses may still come after the first
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.Task[None] | None = None

    @property
    def id(self) -> int | str:
        """The sequence's id.

        Raises:
            UsageError: It was not entered, and none was given.
        """
        number = self._number if self._course.id is None else self._course.id
        if number is None:
            raise UsageError(
                f"model {self._name!r}: the sequence has no id before it is entered",
                model=self._name,
            )
        return number

    def __repr__(self) -> str:
        number = self._number if self._course.id is None else self._course.id
        phase = self._course.phase.name.lower()
        return f"<{type(self).__name__} {number!r} of {self._name!r}: {phase}>"

    # --- beginning and end ----------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Make sure that the model takes sequences, and give the sequence its id.

        Raises:
            UsageError: The model takes no sequences, or no such id; or this one was used before.
            TritonError: As ``spec()`` raises it.
        """
        prepared = await self._prepared(self._checked, no_work, self._deadline(None), many=True)
        self._spec = spec = prepared.context
        made = make_id(text=spec.sequence_ids == "string")
        self._course.enter(made if self._number is None else self._number)
        return self

    def _checked(self, signature: Signature) -> Prepared[ModelSpec]:
        spec = signature.spec
        if not spec.stateful:
            raise UsageError(
                f"model {self._name!r} takes no sequences: its configuration has no "
                "sequence_batching { }",
                model=self._name,
            )
        given = "string" if isinstance(self._number, str) else "integer"
        if self._number is not None and spec.sequence_ids not in {"any", given}:
            # A server that gives a model of the one kind an id of the other ends (seen on 2.51).
            raise InvalidInputError(
                f"model {self._name!r}: its configuration asks for {spec.sequence_ids}s as ids of "
                f"sequences (CONTROL_SEQUENCE_CORRID), not {self._number!r}",
                model=self._name,
            )
        if self._closing is not None:
            signature.bind(self._closing)
        return Prepared((), 0, spec)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leaving = asyncio.get_running_loop().create_task(self._leave())
        try:
            await _outlast(leaving)
        except TritonError:
            if error is None:
                raise
        finally:
            del leaving  # whose error holds this frame

    async def _leave(self) -> None:
        """Close the sequence when the steps before have had their turn."""
        request = Request(Deadline.after(self._close_s))
        try:
            await self._take_turn(request.deadline)
        except TritonError:
            self._forget(self._course.leave()[0])
            raise
        try:
            request.sequence, must = self._course.leave()
            await self._close(request, must=must)
        finally:
            self._turns.release()

    async def _close(self, request: Request, *, must: bool) -> None:
        spec = self._spec
        try:
            if request.sequence is None or spec is None or not self._closable(spec):
                return
            if spec.decoupled:
                await self._close_decoupled(request)
            else:
                await self._infer(self._last, no_work, request)
        except TritonError as error:
            if must:
                self._raise_loss(self._course.unclosed(error), error)
                raise
        finally:
            self._forget(request.sequence)

    async def _close_decoupled(self, request: Request) -> None:
        responses, _ = await self._begin(self._last, no_work, request)
        try:
            async with asyncio.timeout(request.deadline.wait_s()):
                async for _ in responses:
                    pass
        except DeadlineExceededError:
            raise
        except TimeoutError:
            raise request.deadline.error("responses", model=self._name) from None
        finally:
            responses.leave()

    def _forget(self, step: SequenceStep | None) -> None:
        """Say that the sequence is over, if the step that was to close it says that it was not."""
        if step is not None and self._keeper is not None:
            self._keeper.forget_sequence(self._name, self._version, step.id)

    def _closable(self, spec: ModelSpec) -> bool:
        return self._closing is not None or all(tensor.optional for tensor in spec.inputs)

    def _last(self, signature: Signature) -> Prepared[None]:
        if self._closing is None:
            return Prepared((), 1 if signature.spec.batched else 0, None)
        return Prepared(*signature.bind(self._closing), None)

    # --- steps ----------------------------------------------------------------------------------

    def _parameters(
        self,
        parameters: Mapping[str, ParameterValue] | None,
        priority: int,
        queue_timeout_us: int,
    ) -> Parameters:
        given = super()._parameters(parameters, priority, queue_timeout_us)
        for name, _ in given:
            if name in _OWN_PARAMETERS:
                raise self._refuse(
                    f"the parameter {name!r} is the sequence's own: give the id to "
                    "model.sequence(…), and end=True to the last step"
                )
        return given

    def _is_last(self, end: object) -> bool:
        return check_end(self._name, end)

    async def _step(
        self,
        prepare: Callable[[Signature], Prepared[_C]],
        work_nbytes: Callable[[Signature], int],
        request: Request,
        *,
        end: bool,
    ) -> tuple[int, Reply]:
        """Run a step when its turn has come; return its rows and the reply."""
        await self._take_turn(request.deadline)
        try:
            request.sequence = step = self._course.step(end=end)
            try:
                prepared, reply = await self._infer(prepare, work_nbytes, request)
            except BaseException as error:
                self._raise_loss(self._course.failed(step, error), error)
                raise
            self._course.answered(step)
            return prepared.rows, reply
        finally:
            self._end_turn()

    async def _first_response(
        self,
        prepare: Callable[[Signature], Prepared[_C]],
        work_nbytes: Callable[[Signature], int],
        request: Request,
        *,
        end: bool,
    ) -> Begun:
        """Begin a step with many responses when its turn has come; the turn ends with the first."""
        await self._take_turn(request.deadline)
        try:
            request.sequence = step = self._course.step(end=end)
            try:
                responses, first = await self._begin(prepare, work_nbytes, request)
            except BaseException as error:
                self._raise_loss(self._course.failed(step, error), error)
                raise
            self._course.answered(step)
            self._coming += 1
            return _Watched(responses, self._broke, self._come), first
        finally:
            self._end_turn()

    def _come(self) -> None:
        """Take note that no more responses to a step are to come."""
        self._coming -= 1
        self._rest()

    def _broke(self, error: TritonError) -> None:
        self._raise_loss(self._course.broke(error), error)

    @staticmethod
    def _raise_loss(lost: TritonError | None, error: BaseException) -> None:
        """Raise an error from another, if there is one."""
        if lost is None:
            return
        try:
            raise lost from error
        finally:
            del lost, error  # which hold this frame, and with it each other

    # --- turns ----------------------------------------------------------------------------------

    async def _take_turn(self, deadline: Deadline) -> None:
        """Wait until all who asked before have had their turn."""
        try:
            async with asyncio.timeout(deadline.wait_s()):
                await self._turns.acquire()
        except TimeoutError:
            raise deadline.error("queue", model=self._name) from None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_turn(self) -> None:
        self._turns.release()
        self._rest()

    def _rest(self) -> None:
        """Let the idle time begin if nothing is out."""
        if self._idle_s == math.inf or self._course.phase is not Phase.UNDERWAY:
            return
        if self._timer is None and not self._coming and not self._turns.locked():
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._idle_s, self._expire)

    def _expire(self) -> None:
        """Close a sequence that nobody goes on with."""
        self._timer = None
        why = f"no step came for {self._idle_s:g} s, its idle_timeout_s"
        step = self._course.expire(why)
        if step is not None:
            # Once, for it is lost now. It takes its turn before the end of the block does, which
            # so waits for it; and its time is up before that of the end.
            self._expiry = asyncio.get_running_loop().create_task(self._close_idle(step))

    async def _close_idle(self, step: SequenceStep) -> None:
        request = Request(Deadline.after(self._close_s), sequence=step)
        await self._turns.acquire()  # of steps that are refused at once
        try:
            await self._close(request, must=False)
        finally:
            self._turns.release()


async def _outlast(task: asyncio.Task[None]) -> None:
    """Wait for a task, however often the waiting is cancelled, and raise its error.

    The shield holds off anyio's cancelling, and the loop asyncio's, which takes effect at the end.
    """
    cancelled: asyncio.CancelledError | None = None
    try:
        with CancelScope(shield=True):
            while not task.done():
                try:
                    await asyncio.wait({task})
                except asyncio.CancelledError as error:
                    cancelled = error
        if cancelled is not None:
            if not task.cancelled():
                task.exception()  # which gives way, and is not to be complained about
            raise cancelled
        task.result()
    finally:
        del cancelled, task  # which hold this frame, and with it each other


class _Watched:
    """Responses of which the sequence is told when they break off, and when they are left."""

    def __init__(
        self,
        responses: Responses,
        broke: Callable[[TritonError], None],
        over: Callable[[], None],
    ) -> None:
        self._responses = responses
        self._broke = broke
        self._over: Callable[[], None] | None = over

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        try:
            return await self._responses.__anext__()
        except TritonError as error:
            self._broke(error)
            raise

    def leave(self) -> None:  # a ``ResponseStream`` does so at the end, too
        self._responses.leave()
        over, self._over = self._over, None
        if over is not None:
            over()
