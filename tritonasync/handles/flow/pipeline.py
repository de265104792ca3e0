"""Models one after the other: a detector, then a classifier for each of its boxes.

Owns: the order of stages, the one deadline of all of them, which stage an error came from. Refuses
to know: how a stage is run (``pipeline_stages`` does), what travels between them.

Invariants: a pipeline is never changed, ``then`` and ``each`` make another one; a call leaves no
task, however it ends; an error leaves as what it is, with a note that names the stage.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from copy import copy
from typing import Generic, Literal, TypeVar, cast, overload

from tritonasync.core.checks import is_count
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConfigurationError, DeadlineExceededError, InvalidInputError
from tritonasync.handles.flow.bulk import IN_FLIGHT, Mappable
from tritonasync.handles.flow.pipeline_stages import (
    OWN_TIME,
    Step,
    at_once,
    each_of,
    is_iterable,
    step_of,
)

_In = TypeVar("_In")
_Out_co = TypeVar("_Out_co", covariant=True)
_Item = TypeVar("_Item")
_Next = TypeVar("_Next")


class Pipeline(Mappable[_In, _Out_co], Generic[_In, _Out_co]):
    """Stages through which an item goes: handles, other pipelines, functions.

    ::

        read = Pipeline(scenes).with_input().then(crops).each(digits)

        readings = await read.one(image)        # a list of Classification
        many = await read(images)               # for each image
        async for readings in read.map(images): ...

    Each item takes its stages one after the other, and many items are on their way at once, so that
    what different items give to a model shares batches.

    Args:
        stage: The first stage: a handle or pipeline, of which ``one`` is called; an async function;
            or a plain function, of one value each.
        in_thread: Whether a plain function runs in a worker thread, so that the event loop is free
            meanwhile. There is one for each processor at most.
        timeout_s: Seconds that all stages of an item may take together, for calls that say nothing
            else; ``None`` to give each handle the time that is its own.

    Raises:
        ConfigurationError: The stage is nothing that can be called, or an option makes no sense.
    """

    @overload
    def __init__(
        self,
        stage: Mappable[_In, _Out_co],
        *,
        in_thread: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        stage: Callable[[_In], Awaitable[_Out_co]],
        *,
        in_thread: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        stage: Callable[[_In], _Out_co],
        *,
        in_thread: bool = False,
        timeout_s: float | None = None,
    ) -> None: ...

    def __init__(
        self, stage: object, *, in_thread: bool = False, timeout_s: float | None = None
    ) -> None:
        Deadline.after(timeout_s)  # refuses what is no duration
        self._timeout_s = timeout_s
        self._steps: tuple[Step | None, ...] = (step_of(stage, in_thread=in_thread),)

    def __repr__(self) -> str:
        names = ["with its input" if step is None else step.name for step in self._steps]
        return f"<Pipeline {' → '.join(names)}>"

    # --- making one ---

    @overload
    def then(
        self, stage: Mappable[_Out_co, _Next], *, in_thread: Literal[False] = False
    ) -> Pipeline[_In, _Next]: ...

    @overload
    def then(
        self, stage: Callable[[_Out_co], Awaitable[_Next]], *, in_thread: Literal[False] = False
    ) -> Pipeline[_In, _Next]: ...

    @overload
    def then(
        self, stage: Callable[[_Out_co], _Next], *, in_thread: bool = False
    ) -> Pipeline[_In, _Next]: ...

    def then(self, stage: object, *, in_thread: bool = False) -> Pipeline[_In, object]:
        """Return a pipeline that gives what this one gives to another stage.

        Args:
            stage: As for the first one.
            in_thread: Whether a plain function runs in a worker thread.

        Raises:
            ConfigurationError: The stage is nothing that can be called.
        """
        return self._with(step_of(stage, in_thread=in_thread))

    @overload
    def each(
        self: Pipeline[_In, Iterable[_Item]],
        stage: Mappable[_Item, _Next],
        *,
        in_thread: Literal[False] = False,
        max_in_flight: int | None = None,
    ) -> Pipeline[_In, list[_Next]]: ...

    @overload
    def each(
        self: Pipeline[_In, Iterable[_Item]],
        stage: Callable[[_Item], Awaitable[_Next]],
        *,
        in_thread: Literal[False] = False,
        max_in_flight: int | None = None,
    ) -> Pipeline[_In, list[_Next]]: ...

    @overload
    def each(
        self: Pipeline[_In, Iterable[_Item]],
        stage: Callable[[_Item], _Next],
        *,
        in_thread: bool = False,
        max_in_flight: int | None = None,
    ) -> Pipeline[_In, list[_Next]]: ...

    def each(
        self: Pipeline[_In, Iterable[_Item]],
        stage: object,
        *,
        in_thread: bool = False,
        max_in_flight: int | None = None,
    ) -> Pipeline[_In, object]:
        """Return a pipeline that gives each item of what this one gives to another stage, at once.

        What comes is a list, in order; an empty one of no items. If one item fails, the others are
        left, and the error is the item's.

        Args:
            stage: As for the first one.
            in_thread: Whether a plain function runs in a worker thread.
            max_in_flight: The most items of one value at once; ``None`` for 64.

        Raises:
            ConfigurationError: The stage is nothing that can be called, or an option makes no
                sense.
        """
        return self._with(each_of(step_of(stage, in_thread=in_thread), max_in_flight))

    def with_input(self) -> Pipeline[_In, tuple[_In, _Out_co]]:
        """Return a pipeline that gives pairs: what it was given, and what this one gives.

        So a later stage has both the image and what was found on it.
        """
        return cast("Pipeline[_In, tuple[_In, _Out_co]]", self._with(None))

    def _with(self, step: Step | None) -> Pipeline[_In, object]:
        made = copy(cast("Pipeline[_In, object]", self))
        made._steps = (*self._steps, step)  # noqa: SLF001 - another one of this class
        return made

    # --- calling it ---

    async def one(self, item: _In, /, *, timeout_s: float | None = None) -> _Out_co:
        """Return what comes of one item.

        Args:
            item: What the first stage takes.
            timeout_s: Seconds for all stages together: each has what those before it left;
                ``None`` for the pipeline's, ``math.inf`` for no limit.

        Raises:
            DeadlineExceededError: The time ran out.
            Exception: What a stage raised, with a note that says which it was.
        """
        return cast("_Out_co", await self._run(item, self._deadline(timeout_s)))

    async def __call__(
        self,
        items: Iterable[_In],
        *,
        timeout_s: float | None = None,
        max_in_flight: int | None = None,
    ) -> list[_Out_co]:
        """Return what comes of each of several items, in order; for very many there is ``map``.

        Args:
            items: What the first stage takes.
            timeout_s: Seconds for all of it; ``None`` for the pipeline's.
            max_in_flight: The most items on their way at once; ``None`` for as many as fill several
                batches of the stages' models.

        Raises:
            InvalidInputError: ``items`` are no iterable of items.
            ConfigurationError: An option makes no sense.
            DeadlineExceededError: The time ran out.
            Exception: What a stage raised for an item; the others are left.
        """
        if not is_iterable(items):
            raise InvalidInputError(
                f"{self!r}: expected an iterable of items, got {type(items).__name__}; a single "
                "item goes to one(…)"
            )
        if max_in_flight is not None and not is_count(max_in_flight):
            raise ConfigurationError(
                f"{self!r}: max_in_flight is a whole number from 1 on, not {max_in_flight!r}"
            )
        deadline = self._deadline(timeout_s)
        given = list(items)
        most = max_in_flight
        if most is None and len(given) > 1:
            left_s = None if deadline is OWN_TIME else deadline.remaining()
            most = await self._fitting_in_flight(left_s)
        results = await at_once(lambda item: self._run(item, deadline), given, most or 1)
        return cast("list[_Out_co]", results)

    def _deadline(self, timeout_s: float | None) -> Deadline:
        said = self._timeout_s if timeout_s is None else timeout_s
        return OWN_TIME if said is None else Deadline.after(said)

    async def _run(self, item: object, deadline: Deadline) -> object:
        value = item
        for place, step in enumerate(self._steps):
            if step is None:
                value = (item, value)
                continue
            try:
                value = await step.run(value, deadline)
            except Exception as error:
                error.add_note(self._note(place, step, error, deadline))
                raise
        return value

    def _note(self, place: int, step: Step, error: Exception, deadline: Deadline) -> str:
        number = sum(each is not None for each in self._steps[: place + 1])
        stages = sum(each is not None for each in self._steps)
        note = f"in stage {number} of {stages} of a pipeline: {step.name}"
        if isinstance(error, DeadlineExceededError) and deadline.wait_s() is not None:
            return f"{note}; all stages together had {deadline.timeout_s:g} s"
        return note

    async def _fitting_in_flight(self, timeout_s: float | None) -> int:
        """Return how many items in flight fill the batches of the stages' models."""
        models = [step for step in self._steps if step is not None and step.runner is not None]
        return max([await step.fitting_in_flight(timeout_s) for step in models], default=IN_FLIGHT)
