"""Very many items, one after the other: ``async for result in handle.map(items)``.

Owns: the options of a ``map``, its results as the user's loop takes them, leaving the loop. Refuses
to know: order, keys and counts (``ledger`` does), the tasks that run items (``running`` does).

Invariants: nothing is read or sent before the first result is asked for; the source is read only
while results are taken, so that memory is bounded; a stream which nobody refers to any more ends
its tasks; what a pool has sent goes on to its end, whoever has left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable, Hashable, Iterable, Mapping, Sized
from math import prod
from types import TracebackType
from typing import Final, Generic, Literal, Self, TypeVar, cast, overload

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import InvalidInputError, UsageError
from tritonasync.core.values import ModelSpec
from tritonasync.handles.base import Handle
from tritonasync.handles.flow.ledger import Entry, ErrorChoice, Failed, Ledger, Progress
from tritonasync.handles.flow.running import Report, Run, given_out, raise_item

__all__ = ["BulkStream", "Failed", "Mappable", "Progress"]

_In_contra = TypeVar("_In_contra", contravariant=True)
_Out_co = TypeVar("_Out_co", covariant=True)
_K = TypeVar("_K", bound=Hashable)
_K_co = TypeVar("_K_co", bound=Hashable, covariant=True)
_T_co = TypeVar("_T_co", covariant=True)

IN_FLIGHT: Final = 64
"""Items in flight where no model says how many rows it takes at once."""

_FULL_BATCHES: Final = 4
"""One batch runs, one waits at the server, and two are being filled and read meanwhile."""

_MOST_IN_FLIGHT: Final = 1024
_MOST_NBYTES: Final = 128 << 20
_LEAST_IN_FLIGHT: Final = 16


def in_flight_for(spec: ModelSpec) -> int:
    """Return how many items in flight fill the batches of a model, with inputs of 128 MiB at most.

    An axis of free size counts as 1.
    """
    rows = min(max(IN_FLIGHT, _FULL_BATCHES * spec.max_batch_size), _MOST_IN_FLIGHT)
    first = 1 if spec.batched else 0
    nbytes = sum(4 * prod([max(1, axis) for axis in each.shape[first:]]) for each in spec.inputs)
    return max(_LEAST_IN_FLIGHT, min(rows, _MOST_NBYTES // max(1, nbytes)))


class Mappable(ABC, Generic[_In_contra, _Out_co]):
    """What makes a result of an item by ``one``, and so of very many by ``map``."""

    @abstractmethod
    async def one(self, item: _In_contra, /, *, timeout_s: float | None = None) -> _Out_co:
        """Return what becomes of one item."""

    @overload
    def map(
        self,
        items: Iterable[_In_contra] | AsyncIterable[_In_contra],
        *,
        ordered: bool = True,
        max_in_flight: int | None = None,
        errors: Literal["raise"] = "raise",
        progress: Callable[[Progress[int]], object] | None = None,
        key: None = None,
        start_after: int | None = None,
        timeout_s: float | None = None,
    ) -> BulkStream[int, _Out_co]: ...

    @overload
    def map(
        self,
        items: Iterable[_In_contra] | AsyncIterable[_In_contra],
        *,
        ordered: bool = True,
        max_in_flight: int | None = None,
        errors: Literal["raise"] = "raise",
        progress: Callable[[Progress[_K]], object] | None = None,
        key: Callable[..., _K],
        start_after: _K | None = None,
        timeout_s: float | None = None,
    ) -> BulkStream[_K, _Out_co]: ...

    @overload
    def map(
        self,
        items: Iterable[_In_contra] | AsyncIterable[_In_contra],
        *,
        ordered: bool = True,
        max_in_flight: int | None = None,
        errors: Literal["collect"],
        progress: Callable[[Progress[int]], object] | None = None,
        key: None = None,
        start_after: int | None = None,
        timeout_s: float | None = None,
    ) -> BulkStream[int, _Out_co | Failed[int]]: ...

    @overload
    def map(
        self,
        items: Iterable[_In_contra] | AsyncIterable[_In_contra],
        *,
        ordered: bool = True,
        max_in_flight: int | None = None,
        errors: Literal["collect"],
        progress: Callable[[Progress[_K]], object] | None = None,
        key: Callable[..., _K],
        start_after: _K | None = None,
        timeout_s: float | None = None,
    ) -> BulkStream[_K, _Out_co | Failed[_K]]: ...

    def map(
        self,
        items: Iterable[_In_contra] | AsyncIterable[_In_contra],
        *,
        ordered: bool = True,
        max_in_flight: int | None = None,
        errors: ErrorChoice = "raise",
        progress: Callable[[Progress[_K]], object] | None = None,
        key: Callable[..., _K] | None = None,
        start_after: _K | None = None,
        timeout_s: float | None = None,
    ) -> BulkStream[_K, object]:
        """Run very many items, many at once: ``async for result in handle.map(items)``.

        Items are read as results are taken: never more than twice ``max_in_flight`` of them are
        read whose results were not. Nothing is read before the first result is asked for.

        Args:
            items: What ``one`` takes, any number of it. A plain iterable is read in the event loop,
                which waits for it: hand over paths rather than read files in a generator, or give
                an async iterable.
            ordered: Whether results come in the order of the items, or as they come.
            max_in_flight: The most items out at once; ``None`` for as many as fill several batches
                of the model.
            errors: ``"raise"`` ends the loop with the error of an item that fails, when its turn
                comes; ``"collect"`` gives out a :class:`Failed` in its place, and goes on.
            progress: Called with a :class:`Progress` between two results, ten times a second at
                most, and at the end.
            key: Gives the key of an item, to resume by; ``None`` for its index, from 0.
            start_after: The key of the last item to be skipped, as ``Progress.resume_key`` was when
                another run stopped; ``None`` to begin with the first item.
            timeout_s: Seconds for each item, as for ``one``.

        Returns:
            An async iterator, and async context manager, that raises as
            :meth:`BulkStream.__anext__` says.

        Raises:
            InvalidInputError: ``items`` are no iterable of items.
            ConfigurationError: An option makes no sense.
        """
        ledger, one = books(
            self,
            items,
            ordered=ordered,
            max_in_flight=max_in_flight,
            errors=errors,
            key=key,
            start_after=start_after,
            timeout_s=timeout_s,
        )

        async def fitting() -> int:
            return await self._fitting_in_flight(timeout_s)

        return BulkStream(Run(ledger, items, one, fitting), progress)

    async def _fitting_in_flight(self, timeout_s: float | None) -> int:
        """Return how many items in flight fill the batches: what ``max_in_flight=None`` means."""
        if isinstance(self, Handle):
            return in_flight_for(await self.spec(timeout_s=timeout_s))
        return IN_FLIGHT


async def fitting_in_flight(runner: Mappable[_In_contra, object], timeout_s: float | None) -> int:
    """Return how many items in flight fill the batches: what ``max_in_flight=None`` means."""
    return await runner._fitting_in_flight(timeout_s)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def books(
    runner: Mappable[_In_contra, object],
    items: object,
    *,
    ordered: bool,
    max_in_flight: int | None,
    errors: ErrorChoice,
    key: Callable[..., _K] | None,
    start_after: _K | None,
    timeout_s: float | None,
) -> tuple[Ledger[_K, object], Callable[[object], Awaitable[object]]]:
    """Return the books of a new ``map``, its options checked, and what runs an item.

    Raises:
        InvalidInputError: ``items`` are no iterable of items.
        ConfigurationError: An option makes no sense.
    """
    subject = f"map of {runner!r}"
    _check_items(subject, items)
    Deadline.after(timeout_s)  # refuses what is no duration
    ledger = Ledger[_K, object](
        subject,
        ordered=ordered,
        max_in_flight=max_in_flight,
        errors=errors,
        key=key,
        start_after=start_after,
        total=len(items) if isinstance(items, Sized) else None,
    )
    one = cast("Callable[..., Awaitable[object]]", runner.one)
    if timeout_s is None:
        return ledger, one
    return ledger, lambda item: one(item, timeout_s=timeout_s)


def _check_items(subject: str, items: object) -> None:
    kind = type(items).__name__
    single = isinstance(items, (str, bytes, Mapping))
    if single or not (hasattr(items, "__iter__") or hasattr(items, "__aiter__")):
        hint = "; a single item goes to one(…)" if single else ""
        raise InvalidInputError(
            f"{subject}: expected an iterable or async iterable of items, got {kind}{hint}"
        )


class BulkStream(Generic[_K_co, _T_co]):
    """The results of a ``map``, as they are asked for.

    ::

        async for result in handle.map(items):
            ...

    Leaving the loop early cancels what is still to be done as soon as nothing refers to the stream;
    leaving ``async with`` does so for certain, and waits for it::

        async with handle.map(items) as results:
            async for result in results:
                ...

    A request that was sent is not cancelled: the pool sees it to its end, and its answer is
    dropped. If a task is cancelled while it waits for a result, nothing is lost, and the next
    ``async for`` over the same stream goes on.

    Args:
        run: What is behind it.
        progress: Called now and then with how far it is.
    """

    def __init__(
        self, run: Run[_K_co, object], progress: Callable[[Progress[_K_co]], object] | None
    ) -> None:
        self._run = run
        self._report = Report(run.ledger, progress)
        self._keyed = False
        self._phase: Literal["new", "begun", "over"] = "new"
        self._waiting = False
        self._error: Exception | None = None  # what it ends with, until that is raised

    def __repr__(self) -> str:
        return f"<BulkStream {self._phase}: {self._run.ledger.subject}>"

    @property
    def progress(self) -> Progress[_K_co]:
        """How far it is. The result that was given out last counts as done."""
        return self._report.progress()

    def keyed(self) -> BulkStream[_K_co, tuple[_K_co, _T_co]]:
        """Have each result come as a pair of the item's key (its index without ``key``) and it.

        ::

            async for path, found in detector.map(paths, key=str, ordered=False).keyed():
                ...

        Returns:
            This stream.

        Raises:
            UsageError: The first result was asked for already.
        """
        if self._phase != "new":
            raise UsageError(f"{self._run.ledger.subject}: keyed() comes before the first result")
        self._keyed = True
        return cast("BulkStream[_K_co, tuple[_K_co, _T_co]]", self)

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> _T_co:
        """Return the next result.

        Raises:
            StopAsyncIteration: There is no more.
            Exception: What ``one`` raised for an item (unless errors are collected), or the source,
                or the ``key`` function; what came before it was given out before.
            UsageError: Another task waits for the next result.
            InvalidInputError: ``start_after`` is the key of no item.
        """
        if self._waiting:
            raise UsageError(
                f"{self._run.ledger.subject}: another task waits for the next result; one task at "
                "a time may, since each result is given out once"
            )
        self._waiting = True
        try:
            entry = await self._next()
        finally:
            self._waiting = False
        if entry is None:
            raise StopAsyncIteration
        return cast("_T_co", given_out(entry, keyed=self._keyed))

    async def _next(self) -> Entry[_K_co, object] | None:
        run, ledger = self._run, self._run.ledger
        if self._error is not None:  # who was to be told of it was cancelled before
            await self._fail(self._error)
        if self._phase == "new":
            self._phase = "begun"
            self._report.begin()
            run.begin()
        elif self._phase == "begun":
            await self._pause()
        while self._phase != "over":
            entry = ledger.take()
            if entry is not None:
                if entry.error is not None and not ledger.collect:
                    await self._fail(entry.take_error())
                if ledger.room > 0:
                    run.fill()
                return entry
            if ledger.over:
                await self._end()
            else:
                await self._news()
        return None

    async def _pause(self) -> None:
        try:
            self._report.pause()
        except BaseException:
            await self.aclose()
            raise

    async def _news(self) -> None:
        tasks = self._run.tasks
        if tasks.broken is None:
            await tasks.news()
        if tasks.broken is not None:
            await self.aclose()
            tasks.check()

    async def _end(self) -> None:
        await self._fail(self._run.ledger.take_source_error())

    async def _fail(self, error: Exception | None) -> None:
        """End the stream, with an error if there is one."""
        self._error = error
        try:
            await self.aclose()
            self._error = None
            try:
                self._report.end()
            finally:
                if error is not None:
                    raise_item(error)  # whatever the user's function raised meanwhile
        finally:
            del error  # or it, its traceback and this frame would hold one another

    async def aclose(self) -> None:
        """Cancel what is still to be done, and wait until it has ended. May be repeated."""
        self._phase = "over"
        self._run.drop_source()
        await self._run.tasks.aclose()

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
        run: Run[_K_co, object] | None = getattr(self, "_run", None)
        if run is not None:
            run.tasks.leave_soon()
