"""``map`` without an event loop: the caller's thread reads the items and takes the results.

Owns: the way of many items to the pool's loop and back, a number of them at a time. Refuses to
know: order, keys and counts (``handles.ledger`` does), how an item is run (``handles.running``).

Invariant: the source, ``key``, ``progress`` and the books are used in the caller's thread alone;
what runs items, in the loop alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Final, Generic, Literal, Self, TypeVar, cast, overload

from tritonasync.core.errors import InvalidInputError, PoolClosedError, UsageError
from tritonasync.facade import Facade, here
from tritonasync.handles.flow.bulk import Mappable, books, fitting_in_flight
from tritonasync.handles.flow.ledger import Entry, ErrorChoice, Failed, Ledger, Progress
from tritonasync.handles.flow.running import Crew, Report, given_out, raise_item
from tritonasync.loop_thread import LoopThread

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_K = TypeVar("_K", bound=Hashable)
_K_co = TypeVar("_K_co", bound=Hashable, covariant=True)
_T_co = TypeVar("_T_co", covariant=True)

_READING_S: Final = 0.02
"""How long a source is read at a time, if it is a slow one, before results are looked for."""


class BlockingBulk(Generic[_K_co, _T_co]):
    """A :class:`BulkStream` that waits: a plain iterator, and a context manager.

    ::

        for result in handle.map(items):
            ...

    Items are read, and ``key`` and ``progress`` called, in the caller's thread, some items at a
    time: while that waits for a slow source, or works on a result, it hands over no more of them.
    Without ``with``, leaving the loop cancels what is still to be done as soon as nothing refers to
    this object.

    Args:
        thread: The pool's loop and thread.
        ledger: The books.
        items: What is read, in the caller's thread.
        one: Runs an item, in the loop.
        fitting: Finds ``max_in_flight`` if it was not given, in the loop.
        progress: Called now and then with how far it is.
    """

    def __init__(
        self,
        thread: LoopThread,
        ledger: Ledger[_K_co, object],
        items: Iterator[object],
        one: Callable[[object], Awaitable[object]],
        fitting: Callable[[], Coroutine[object, object, int]],
        *,
        progress: Callable[[Progress[_K_co]], object] | None,
    ) -> None:
        self._thread = thread
        self._ledger = ledger
        self._items: Iterator[object] | None = items
        self._crew = Crew[_K_co, object](one)
        self._fitting = fitting
        self._report = Report(ledger, progress)
        self._keyed = False
        self._begun = self._over = False
        self._taking = threading.Lock()

    def __repr__(self) -> str:
        phase = "over" if self._over else "begun" if self._begun else "new"
        return f"<BlockingBulk {phase}: {self._ledger.subject}>"

    @property
    def progress(self) -> Progress[_K_co]:
        """How far it is. The result that was given out last counts as done."""
        return self._report.progress()

    def keyed(self) -> BlockingBulk[_K_co, tuple[_K_co, _T_co]]:
        """Have each result come as a pair of the item's key (its index without ``key``) and it.

        Returns:
            This object.

        Raises:
            UsageError: The first result was asked for already.
        """
        if self._begun:
            raise UsageError(f"{self._ledger.subject}: keyed() comes before the first result")
        self._keyed = True
        return cast("BlockingBulk[_K_co, tuple[_K_co, _T_co]]", self)

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> _T_co:
        """Return the next result. Raises as :meth:`BulkStream.__anext__`, or StopIteration."""
        if not self._taking.acquire(blocking=False):
            raise UsageError(
                f"{self._ledger.subject}: another thread takes the next result; one at a time may, "
                "since each result is given out once"
            )
        try:
            entry = None if self._over else self._next()
        except BaseException:  # Ctrl-C, too: nobody knows what was handed over
            self.close()
            raise
        finally:
            self._taking.release()
        if entry is None:
            raise StopIteration
        return cast("_T_co", given_out(entry, keyed=self._keyed))

    def _next(self) -> Entry[_K_co, object] | None:
        ledger = self._ledger
        if self._begun:
            self._report.pause()
        else:
            self._begin()
        if ledger.room >= self._worthwhile():
            self._turn()
        while not ledger.ready:
            self._turn()
        entry = ledger.take()
        if entry is None:
            self._fail(ledger.take_source_error())
        elif entry.error is not None and not ledger.collect:
            self._fail(entry.take_error())
        return entry

    def _begin(self) -> None:
        self._begun = True
        self._report.begin()
        if self._ledger.max_in_flight is None:
            self._ledger.max_in_flight = self._thread.call(self._fitting)

    def _worthwhile(self) -> int:
        """Return for how much room the way to the loop is worth while, though results are there."""
        return max(1, (self._ledger.max_in_flight or 1) // 2)

    def _turn(self) -> None:
        """Hand over as many items as there is room for, and take what has been done."""
        entries = self._read()
        ledger = self._ledger
        if not (entries or ledger.in_flight):
            return
        for entry in self._thread.call(self._crew.turn, entries, wait=not ledger.ready):
            ledger.finish(entry)

    def _read(self) -> list[Entry[_K_co, object]]:
        ledger, until = self._ledger, time.monotonic() + _READING_S
        entries: list[Entry[_K_co, object]] = []
        while self._items is not None and ledger.room > 0:
            try:
                item = next(self._items)
            except StopIteration:
                ledger.close()
                self._items = None
            except Exception as error:  # noqa: BLE001 - raised after the rest
                ledger.close(error)
                self._items = None
            else:
                entry = ledger.read(here(item))
                if entry is not None:
                    entries.append(entry)
                if entries and time.monotonic() > until:
                    break
        return entries

    def _fail(self, error: Exception | None) -> None:
        """Come to the end, with an error if there is one."""
        try:
            self.close()
            try:
                self._report.end()
            finally:
                if error is not None:
                    raise_item(error)  # whatever the user's function raised meanwhile
        finally:
            del error  # or it, its traceback and this frame would hold one another

    def close(self) -> None:
        """Cancel what is still to be done, and wait until it has ended. May be repeated."""
        self._over = True
        self._items = None
        if self._crew.tasks.active:
            with suppress(PoolClosedError):  # all its tasks are over
                self._thread.call(self._crew.tasks.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        crew: Crew[_K_co, object] | None = getattr(self, "_crew", None)
        if crew is not None:
            crew.tasks.leave_soon()


@overload
def blocking_map(
    self: Facade[Mappable[_In, _Out]],
    items: Iterable[_In],
    *,
    ordered: bool = True,
    max_in_flight: int | None = None,
    errors: Literal["raise"] = "raise",
    progress: Callable[[Progress[int]], object] | None = None,
    key: None = None,
    start_after: int | None = None,
    timeout_s: float | None = None,
) -> BlockingBulk[int, _Out]: ...


@overload
def blocking_map(
    self: Facade[Mappable[_In, _Out]],
    items: Iterable[_In],
    *,
    ordered: bool = True,
    max_in_flight: int | None = None,
    errors: Literal["raise"] = "raise",
    progress: Callable[[Progress[_K]], object] | None = None,
    key: Callable[..., _K],
    start_after: _K | None = None,
    timeout_s: float | None = None,
) -> BlockingBulk[_K, _Out]: ...


@overload
def blocking_map(
    self: Facade[Mappable[_In, _Out]],
    items: Iterable[_In],
    *,
    ordered: bool = True,
    max_in_flight: int | None = None,
    errors: Literal["collect"],
    progress: Callable[[Progress[int]], object] | None = None,
    key: None = None,
    start_after: int | None = None,
    timeout_s: float | None = None,
) -> BlockingBulk[int, _Out | Failed[int]]: ...


@overload
def blocking_map(
    self: Facade[Mappable[_In, _Out]],
    items: Iterable[_In],
    *,
    ordered: bool = True,
    max_in_flight: int | None = None,
    errors: Literal["collect"],
    progress: Callable[[Progress[_K]], object] | None = None,
    key: Callable[..., _K],
    start_after: _K | None = None,
    timeout_s: float | None = None,
) -> BlockingBulk[_K, _Out | Failed[_K]]: ...


def blocking_map(
    self: Facade[Mappable[_In, _Out]],
    items: Iterable[_In],
    *,
    ordered: bool = True,
    max_in_flight: int | None = None,
    errors: ErrorChoice = "raise",
    progress: Callable[[Progress[_K]], object] | None = None,
    key: Callable[..., _K] | None = None,
    start_after: _K | None = None,
    timeout_s: float | None = None,
) -> BlockingBulk[_K, object]:
    """Run very many items, many at once: ``for result in handle.map(items)``.

    The items are read, and ``key`` and ``progress`` called, in the caller's thread. Otherwise as
    :meth:`Mappable.map`.
    """
    thread, runner = self._thread, self._inner  # pyright: ignore[reportPrivateUsage]
    ledger, one = books(
        runner,
        items,
        ordered=ordered,
        max_in_flight=max_in_flight,
        errors=errors,
        key=key,
        start_after=start_after,
        timeout_s=timeout_s,
    )
    if not hasattr(items, "__iter__"):
        raise InvalidInputError(
            f"{ledger.subject}: expected a plain iterable of items, got {type(items).__name__}; "
            "async iterables are for the pool with an event loop"
        )

    async def fitting() -> int:
        return await fitting_in_flight(runner, timeout_s)

    return BlockingBulk(thread, ledger, iter(items), one, fitting, progress=progress)
