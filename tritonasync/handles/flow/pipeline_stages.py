"""The stages of a pipeline: what a step is, and running one on each item of a sequence.

Owns: how handles, functions and functions in threads are called with what is left of the time; a
number of items at once, and the first error of them. Refuses to know: which stages follow one
another.

Invariants: when a step ends, by a result, an error or being cancelled, its tasks have ended; an
error leaves as what it is, not in a group.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias, TypeVar, cast

from anyio import move_on_after

from tritonasync.core.checks import is_count
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConfigurationError, DeadlineExceededError, InvalidInputError
from tritonasync.core.offload import in_worker
from tritonasync.handles.base import Handle
from tritonasync.handles.flow.bulk import IN_FLIGHT, Mappable, fitting_in_flight
from tritonasync.handles.side_by_side import side_by_side

_T = TypeVar("_T")

EACH_IN_FLIGHT: Final = 64
"""Items of one value that are run at once, where ``each`` does not say."""

OWN_TIME: Final = Deadline(math.inf, math.inf)
"""Where nothing was said of the time: each handle has what is its own. Told apart by ``is``."""

Run: TypeAlias = Callable[[object, Deadline], Awaitable[object]]
"""Makes the next value of a value, within what is left of the time."""


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a pipeline.

    Attributes:
        name: What it is called in messages.
        run: Makes the next value.
        runner: The handle or pipeline that it calls, if it calls one.
    """

    name: str
    run: Run
    runner: Mappable[object, object] | None = None

    async def fitting_in_flight(self, timeout_s: float | None) -> int:
        """Return how many values at once fill the batches of its model."""
        if self.runner is None:
            return IN_FLIGHT
        return await fitting_in_flight(self.runner, timeout_s)


def step_of(stage: object, *, in_thread: bool) -> Step:
    """Return a step that calls a handle, a pipeline or a function.

    Raises:
        ConfigurationError: It is nothing that can be called with a value.
    """
    if not isinstance(in_thread, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"pipeline: in_thread is True or False, not {in_thread!r}")
    name = _name(stage)
    if isinstance(stage, Mappable):
        runner = cast("Mappable[object, object]", stage)
        _check_unthreaded(name, in_thread=in_thread)
        return Step(name, partial(_run_one, runner), runner)
    if isinstance(stage, Handle) or not callable(stage):
        raise ConfigurationError(
            f"pipeline: expected a stage with one(item), or a function of one value, got {name}; "
            "of a generator, give its method: .then(generator.text)"
        )
    function = cast("Callable[[object], object]", stage)
    if in_thread:
        if inspect.iscoroutinefunction(function):
            _check_unthreaded(name, in_thread=in_thread)
        return Step(name, partial(_run_in_thread, function, name))
    return Step(name, partial(_run_function, function, name))


def each_of(step: Step, max_in_flight: int | None) -> Step:
    """Return a step that runs another on each item of a value.

    Raises:
        ConfigurationError: ``max_in_flight`` is no count.
    """
    if max_in_flight is not None and not is_count(max_in_flight):
        raise ConfigurationError(
            f"pipeline: max_in_flight is a whole number from 1 on, not {max_in_flight!r}"
        )

    async def run(value: object, deadline: Deadline) -> object:
        items = _items(step.name, value)
        return await at_once(
            lambda item: step.run(item, deadline), items, max_in_flight or EACH_IN_FLIGHT
        )

    return Step(f"each {step.name}", run, step.runner)


def _name(stage: object) -> str:
    if isinstance(stage, Handle):
        return f"{type(stage).__name__.lower()} {stage.name!r}"
    name = getattr(stage, "__qualname__", None)
    return name if isinstance(name, str) else repr(stage)


def _check_unthreaded(name: str, *, in_thread: bool) -> None:
    if in_thread:
        raise _threaded(name)


def _threaded(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"pipeline: in_thread is for plain functions, and {name} is awaited: leave it out"
    )


def is_iterable(value: object) -> bool:
    """Return whether a value is an iterable of items, and not a single text or mapping."""
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        return False
    return getattr(value, "shape", None) != ()  # an array of no axes has no items


def _items(name: str, value: object) -> Sequence[object]:
    if not is_iterable(value):
        raise InvalidInputError(
            f"pipeline, each {name}: expected an iterable of items from the stage before, got "
            f"{type(value).__name__}"
        )
    return list(cast("Iterable[object]", value))


# --- within the time -----------------------------------------------------------------------------


def late(name: str, deadline: Deadline) -> DeadlineExceededError:
    """Return the error of a pipeline whose time ran out on this side."""
    return DeadlineExceededError(
        f"pipeline: the time of {deadline.timeout_s:g} s ran out at {name}",
        stage="encode",
        timeout_s=deadline.timeout_s,
    )


async def _run_one(runner: Mappable[object, object], value: object, deadline: Deadline) -> object:
    if deadline is OWN_TIME:
        return await runner.one(value)
    if deadline.expired():
        raise late(_name(runner), deadline)
    return await runner.one(value, timeout_s=deadline.remaining())


async def _run_function(
    function: Callable[[object], object], name: str, value: object, deadline: Deadline
) -> object:
    if deadline.expired():
        raise late(name, deadline)
    result = function(value)
    if not inspect.isawaitable(result):
        return result
    awaited = cast("Awaitable[object]", result)
    if deadline.at == math.inf:
        return await awaited
    with move_on_after(deadline.remaining()):
        return await awaited
    raise late(name, deadline)


async def _run_in_thread(
    function: Callable[[object], object], name: str, value: object, deadline: Deadline
) -> object:
    """Run a plain function in a worker thread; one that has begun is waited for."""
    with move_on_after(deadline.remaining()):
        result = await in_worker(partial(function, value), deadline=NEVER, model=name)
        if inspect.iscoroutine(result):
            result.close()
            raise _threaded(name)
        return result
    raise late(name, deadline)


# --- several at once -----------------------------------------------------------------------------


async def at_once(
    run: Callable[[object], Awaitable[_T]], items: Sequence[object], most: int
) -> list[_T]:
    """Return what ``run`` gives for each item, in order, ``most`` of them at a time.

    If one fails, the others are cancelled and waited for, and its error is raised, with a note that
    says which item it was.
    """

    async def noted(index: int) -> _T:
        try:
            return await run(items[index])
        except Exception as error:
            error.add_note(f"at item {index} (from 0) of {len(items)}")
            raise

    return await side_by_side(noted, range(len(items)), max_inflight=most)
