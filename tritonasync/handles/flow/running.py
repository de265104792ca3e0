"""The tasks that run the items of a ``map``, and who waits for them.

Owns: tasks, reading a source while there is room, reporting now and then. Refuses to know: order,
keys and counts (``ledger`` does), who takes the results.

Invariants: a task that waits holds the run, but nothing that the user holds, so that what nobody
refers to any more can end its tasks; a task that ends as nobody expected is told to who waits.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import suppress
from typing import Final, Generic, TypeVar, cast

from anyio import CancelScope

from tritonasync.core.errors import ConfigurationError
from tritonasync.handles.flow.ledger import Entry, Failed, Ledger, Progress

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")

REPORT_INTERVAL_S: Final = 0.1
"""The least time between two calls of a ``progress`` function, but for the last."""

_SKIPPED_AT_ONCE: Final = 1000
"""So many items are skipped before others have their turn: some 0.2 ms."""


class Tasks:
    """The tasks of a run, and who waits for news of them."""

    def __init__(self) -> None:
        self.left: bool = False
        self.broken: BaseException | None = None  # a task was cancelled by others, or worse
        self.loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._news: asyncio.Future[None] | None = None

    @property
    def active(self) -> bool:
        """Whether there is a task that has not ended."""
        return bool(self._tasks)

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Have something run."""
        if self.loop is None:
            self.loop = asyncio.get_running_loop()
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and not self.left:
            self.broken = error
            self.tell()

    def check(self) -> None:
        """Raise what a task ended with that nobody expected."""
        error, self.broken = self.broken, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or it, its traceback and this frame would hold one another

    def tell(self) -> None:
        """Wake who waits for news."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def news(self) -> None:
        """Wait until there may be something new."""
        self._news = asyncio.get_running_loop().create_future()
        try:
            await self._news
        finally:
            self._news = None

    def leave(self) -> None:
        """Cancel all tasks; what they have sent goes on."""
        self.left = True
        for task in self._tasks:
            task.cancel()
        self.tell()

    async def aclose(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        self.leave()
        tasks = self._tasks - {asyncio.current_task()}
        if tasks:
            with CancelScope(shield=True):  # they have been told, and take a turn or two
                await asyncio.wait(tasks)

    def leave_soon(self) -> None:
        """Cancel all tasks from any thread, also in the garbage collector's turn."""
        if self.loop is not None and self._tasks and not self.left:
            with suppress(RuntimeError):  # the loop is closed, and all tasks with it
                self.loop.call_soon_threadsafe(self.leave)


def own(error: Exception) -> Exception:
    """Return an error without the frame that has caught it, which may hold what holds the error."""
    return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)


async def run_entry(one: Callable[[object], Awaitable[_T]], entry: Entry[_K, _T]) -> None:
    """Put down what became of an item."""
    try:
        entry.value = await one(entry.item)
    except Exception as error:  # noqa: BLE001 - given out in its turn
        entry.error = own(error)


class Run(Generic[_K, _T]):
    """A run over a source, in the event loop.

    Each task goes from item to item as long as there is room; another is made only with an item for
    it at hand. Items of an async source have a task each, since only one may wait for the source.
    """

    def __init__(
        self,
        ledger: Ledger[_K, _T],
        items: Iterable[object] | AsyncIterable[object],
        one: Callable[[object], Awaitable[_T]],
        fitting: Callable[[], Awaitable[int]],
    ) -> None:
        self.ledger = ledger
        self.tasks: Tasks = Tasks()
        self._items: Iterable[object] | AsyncIterable[object] | None = items
        self._one = one
        self._fitting = fitting
        self._plain: Iterator[object] | None = None  # once it is read
        self._reader: asyncio.Future[None] | None = None  # waits for room

    def begin(self) -> None:
        """Begin to read and to run."""
        self.tasks.start(self._open())

    async def _open(self) -> None:
        items, self._items = self._items, None
        try:
            if self.ledger.max_in_flight is None:
                self.ledger.max_in_flight = await self._fitting()
            if isinstance(items, AsyncIterable):
                await self._read_async(aiter(items))
            else:
                await self._read_plain(iter(cast("Iterable[object]", items)))
        except Exception as error:  # noqa: BLE001 - given out after the rest
            self.ledger.close(own(error))
        self.tasks.tell()

    # --- a plain source ---

    async def _read_plain(self, items: Iterator[object]) -> None:
        ledger = self.ledger
        self._plain = items
        while ledger.skipping and not ledger.closed:
            for _ in range(_SKIPPED_AT_ONCE):
                if not ledger.skipping or self._pull(items) is not None or ledger.closed:
                    break
            await asyncio.sleep(0)
        self.fill()

    def _pull(self, items: Iterator[object]) -> Entry[_K, _T] | None:
        """Read an item; return ``None`` for one that is skipped, and at the end."""
        try:
            item = next(items)
        except StopIteration:
            self.ledger.close()
        except Exception as error:  # noqa: BLE001 - given out after the rest
            self.ledger.close(own(error))
        else:
            return self.ledger.read(item)
        return None

    def fill(self) -> None:
        """Have items run as long as there is room."""
        if self._plain is None:
            self._tell_reader()
            return
        while self.ledger.room > 0:
            entry = self._pull(self._plain)
            if entry is None:
                return
            self.tasks.start(self._work(entry))

    async def _work(self, entry: Entry[_K, _T] | None) -> None:
        """Run an item, and others after it while there are any and there is room."""
        ledger, tasks = self.ledger, self.tasks
        while entry is not None:
            await run_entry(self._one, entry)
            ledger.finish(entry)
            if self._plain is None:
                self._tell_reader()
                entry = None
            else:
                entry = self._pull(self._plain) if ledger.room > 0 else None
            if ledger.ready:
                tasks.tell()

    # --- an async source ---

    async def _read_async(self, items: AsyncIterator[object]) -> None:
        ledger = self.ledger
        count = 0
        while await self._room():
            try:
                item = await anext(items)
            except StopAsyncIteration:
                ledger.close()
                return
            if ledger.closed:
                return
            entry = ledger.read(item)
            if entry is not None:
                self.tasks.start(self._work(entry))
            count += 1
            if count % _SKIPPED_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _room(self) -> bool:
        """Wait for room; return whether another item is to be read."""
        while self.ledger.room <= 0 and not self.ledger.closed:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return not self.ledger.closed

    def _tell_reader(self) -> None:
        if self._reader is not None and not self._reader.done() and self.ledger.room > 0:
            self._reader.set_result(None)

    def drop_source(self) -> None:
        """Read no more; a generator that nobody else refers to is closed by that."""
        self._items = self._plain = None


class Crew(Generic[_K, _T]):
    """Runs items for one who reads the source and takes the results in another thread.

    All its methods are called in the event loop.

    Args:
        one: Runs an item.
    """

    def __init__(self, one: Callable[[object], Awaitable[_T]]) -> None:
        self.tasks: Tasks = Tasks()
        self._one = one
        self._finished: list[Entry[_K, _T]] = []

    async def turn(self, entries: Sequence[Entry[_K, _T]], *, wait: bool) -> list[Entry[_K, _T]]:
        """Have items run, and return those that came to their end; if told, wait for the first."""
        for entry in entries:
            self.tasks.start(self._work(entry))
        while wait and not self._finished and not self.tasks.left and self.tasks.broken is None:
            await self.tasks.news()
        self.tasks.check()
        finished, self._finished = self._finished, []
        return finished

    async def _work(self, entry: Entry[_K, _T]) -> None:
        await run_entry(self._one, entry)
        self._finished.append(entry)
        self.tasks.tell()


# --- what goes to the user -----------------------------------------------------------------------


class Report(Generic[_K]):
    """Calls a ``progress`` function now and then.

    Args:
        ledger: The books.
        call: The function; ``None`` for none.

    Raises:
        ConfigurationError: It is none, or one that is to be awaited.
    """

    def __init__(
        self, ledger: Ledger[_K, object], call: Callable[[Progress[_K]], object] | None
    ) -> None:
        if call is not None and (not callable(call) or inspect.iscoroutinefunction(call)):
            raise ConfigurationError(
                f"{ledger.subject}: progress is a plain function that takes a Progress, not "
                f"{call!r}"
            )
        self._ledger = ledger
        self._call = call
        self._begun: float | None = None
        self._ended: float | None = None
        self._next = 0.0

    def begin(self) -> None:
        """Count seconds from now."""
        self._begun = time.monotonic()
        self._next = self._begun + REPORT_INTERVAL_S

    def end(self) -> None:
        """Count no more seconds, and call the function a last time."""
        if self._ended is None:
            self._ended = time.monotonic()
            if self._call is not None:
                self._call(self.progress())

    def pause(self) -> None:
        """Call the function if it is due."""
        if self._call is not None and time.monotonic() >= self._next:
            self._call(self.progress())
            self._next = time.monotonic() + REPORT_INTERVAL_S

    def progress(self) -> Progress[_K]:
        """Return how far it is."""
        if self._begun is None:
            return self._ledger.progress(0.0)
        until = time.monotonic() if self._ended is None else self._ended
        return self._ledger.progress(until - self._begun)


def given_out(entry: Entry[_K, object], *, keyed: bool) -> object:
    """Return what the user gets of an item that may be given out."""
    result = entry.value
    if entry.error is not None:
        result = Failed(entry.key, entry.index, entry.item, entry.error)
    return (entry.key, result) if keyed else result


def raise_item(error: Exception) -> None:
    """Raise what an item or the source failed with, but nothing that would end a loop in silence.

    Raises:
        Exception: ``error``, always.
    """
    try:
        if isinstance(error, (StopIteration, StopAsyncIteration)):
            message = f"an item, or the source, raised {error!r}"
            raise RuntimeError(message) from error  # noqa: TRY004 - as a generator does
        raise error
    finally:
        del error  # or it, its traceback and this frame would hold one another
