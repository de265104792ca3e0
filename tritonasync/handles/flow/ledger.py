"""Which items of a long source are out, which results come next, how far all of it is done. Pure.

Owns: order, room, keys, skipping, counting. Refuses to know: how an item becomes a result, time
(``now`` is an argument), tasks, threads.

Invariants: each item read gives exactly one result, unless all is over before; of those read and
not yet given out there are never more than ``2 * max_in_flight``, so that memory is bounded
whatever the source and the order of results; every item up to ``resume_key`` was given out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from tritonasync.core.checks import is_count
from tritonasync.core.errors import ConfigurationError, InvalidInputError

_K = TypeVar("_K", bound=Hashable)
_K_co = TypeVar("_K_co", bound=Hashable, covariant=True)
_T = TypeVar("_T")

ErrorChoice: TypeAlias = Literal["raise", "collect"]
"""What becomes of an item that fails: its error is raised, or is a result among the others."""

WINDOW: Final = 2
"""How many times ``max_in_flight`` items may be read and not yet given out: as many as are out wait
for an earlier one, or for a slow consumer."""


@dataclass(frozen=True, slots=True, eq=False)
class Failed(Generic[_K_co]):
    """An item that failed, among the results of ``map(…, errors="collect")``.

    Attributes:
        key: The item's key; its index in the source if no ``key`` was given.
        index: Where it is in the source, from 0.
        item: The item.
        error: What ``one`` raised for it.
    """

    key: _K_co
    index: int
    item: object
    error: Exception


@dataclass(frozen=True, slots=True)
class Progress(Generic[_K_co]):
    """How far a ``map`` has come.

    Attributes:
        done: Items whose results were given out, failed ones included.
        failed: Those of them that failed.
        in_flight: Items that are out now.
        total: All items there are, those skipped not counted; ``None`` if the source does not say.
        elapsed_s: Seconds since the first result was asked for.
        rate: Items done per second.
        resume_key: Give it as ``start_after`` to go on from here: the key of the last item before
            which, itself included, every result was given out; ``None`` if there is none yet.
    """

    done: int
    failed: int
    in_flight: int
    total: int | None
    elapsed_s: float
    rate: float
    resume_key: _K_co | None


@dataclass(slots=True)  # not frozen: made for each item
class Entry(Generic[_K, _T]):
    """An item on its way to its result.

    Attributes:
        index: Where it is in the source.
        key: Its key.
        before: The key of the item before it.
        item: The item.
        value: What came of it.
        error: Why nothing did.
    """

    index: int
    key: _K
    before: _K | None
    item: object
    value: _T | None = None
    error: Exception | None = None

    def take_error(self) -> Exception | None:
        """Return the error to raise it, and forget it: its traceback will hold this."""
        error, self.error = self.error, None
        return error


class Ledger(Generic[_K, _T]):
    """The books of one ``map``.

    Args:
        subject: Whose it is, for messages.
        ordered: Whether results are given out in the order of the source.
        max_in_flight: The most items out at once; ``None`` if it is set later, before reading.
        errors: What becomes of an item that fails.
        key: Gives the key of an item; ``None`` for its index.
        start_after: The key of the last item that is skipped; ``None`` to skip none.
        total: How many items the source has; ``None`` if it does not say.

    Raises:
        ConfigurationError: An option makes no sense.
    """

    def __init__(
        self,
        subject: str,
        *,
        ordered: bool,
        max_in_flight: int | None,
        errors: ErrorChoice,
        key: Callable[..., _K] | None,
        start_after: _K | None,
        total: int | None,
    ) -> None:
        _check(subject, ordered, max_in_flight, errors, key)
        self.subject = subject
        self.max_in_flight = max_in_flight
        self.collect: bool = errors == "collect"
        self.skipping: bool = start_after is not None
        self._ordered = ordered
        self._key = key
        self._start_after = start_after
        self._skipped = 0
        self._total = total
        self._read = 0  # skipped ones included
        self._last_key: _K | None = start_after
        self._in_flight = 0
        self._outstanding: dict[int, Entry[_K, _T]] = {}  # read and not given out, oldest first
        self._finished: dict[int, Entry[_K, _T]] = {}  # of these, what waits for its turn
        self._come: deque[Entry[_K, _T]] = deque()  # or what waits, unordered
        self._turn = 0  # the index that is next in order
        self._done = self._failed = 0
        self._closed = False
        self._source_error: Exception | None = None

    # --- reading ---

    @property
    def room(self) -> int:
        """How many more items may be read now."""
        most = self.max_in_flight
        if self._closed or most is None:
            return 0
        return min(most - self._in_flight, WINDOW * most - len(self._outstanding))

    @property
    def in_flight(self) -> int:
        """How many items are out now."""
        return self._in_flight

    @property
    def closed(self) -> bool:
        """Whether nothing is read any more."""
        return self._closed

    def read(self, item: object) -> Entry[_K, _T] | None:
        """Take note of an item that was read; return ``None`` for one that is skipped.

        What ``key`` raises ends the source, as if the source had raised it.
        """
        index = self._read
        try:
            key: _K = index if self._key is None else self._key(item)  # type: ignore[assignment]
        except Exception as error:  # noqa: BLE001 - given out in its turn
            self.close(error)
            return None
        self._read = index + 1
        if self.skipping:
            self._skipped += 1
            self._turn = self._read
            self.skipping = key != self._start_after
            return None
        entry = Entry[_K, _T](index, key, self._last_key, item)
        self._last_key = key
        self._outstanding[index] = entry
        self._in_flight += 1
        return entry

    def close(self, error: Exception | None = None) -> None:
        """Take note that the source has no more, or raised; the first time counts."""
        if self._closed:
            return
        self._closed = True
        if error is None and self.skipping:
            error = InvalidInputError(
                f"{self.subject}: start_after={self._start_after!r} is the key of none of the "
                f"{self._skipped} items of the source; expected the resume_key of a run over the "
                "same items, with the same key function"
            )
        self._source_error = error

    # --- results ---

    def finish(self, entry: Entry[_K, _T]) -> None:
        """Take note that an item has its value or its error."""
        self._in_flight -= 1
        if entry.error is None:
            entry.item = None  # it may be large
        elif not self.collect:
            self._closed = True  # what is read from now on would be run for nothing
        if self._ordered:
            self._finished[entry.index] = entry
        else:
            self._come.append(entry)

    @property
    def ready(self) -> bool:
        """Whether there is something to be given out now, be it the end."""
        if self._ordered:
            return self._turn in self._finished or self.over
        return bool(self._come) or self.over

    @property
    def over(self) -> bool:
        """Whether everything that was read was given out, and nothing more is read."""
        return self._closed and not self._outstanding

    def take(self) -> Entry[_K, _T] | None:
        """Return what is to be given out next, and count it; ``None`` if there is nothing yet.

        An error that is to be raised is not counted: its item is still to be done.
        """
        if self._ordered:
            entry = self._finished.pop(self._turn, None)
        else:
            entry = self._come.popleft() if self._come else None
        if entry is None:
            return None
        if entry.error is not None:
            if not self.collect:
                return entry
            self._failed += 1
        self._turn += 1
        self._done += 1
        del self._outstanding[entry.index]
        return entry

    def take_source_error(self) -> Exception | None:
        """Return what the source raised, once."""
        error, self._source_error = self._source_error, None
        return error

    # --- figures ---

    @property
    def resume_key(self) -> _K | None:
        """The key of the last item before which, itself included, all was given out."""
        oldest = next(iter(self._outstanding.values()), None)
        return self._last_key if oldest is None else oldest.before

    def progress(self, elapsed_s: float) -> Progress[_K]:
        """Return how far it is."""
        total = self._total
        if total is not None:
            total = max(0, total - self._skipped)
        return Progress(
            done=self._done,
            failed=self._failed,
            in_flight=self._in_flight,
            total=total,
            elapsed_s=elapsed_s,
            rate=self._done / elapsed_s if elapsed_s > 0 else 0.0,
            resume_key=self.resume_key,
        )


def _check(
    subject: str,
    ordered: object,
    max_in_flight: object,
    errors: object,
    key: object,
) -> None:
    if not isinstance(ordered, bool):
        raise ConfigurationError(f"{subject}: ordered is True or False, not {ordered!r}")
    if errors not in ("raise", "collect"):
        raise ConfigurationError(f"{subject}: errors is 'raise' or 'collect', not {errors!r}")
    if max_in_flight is not None and not is_count(max_in_flight):
        raise ConfigurationError(
            f"{subject}: max_in_flight is a whole number from 1 on, not {max_in_flight!r}"
        )
    if key is not None and (not callable(key) or iscoroutinefunction(key)):
        raise ConfigurationError(
            f"{subject}: key is a plain function that gives the key of an item, not {key!r}"
        )
