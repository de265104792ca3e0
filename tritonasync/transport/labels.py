"""What is remembered of the names of models' classes.

Owns: where the names that come with a model are looked for (first the label file in its folder, if
that is on this machine, then the server), one question at a time per output however many callers
want the answer, and when a server must not be asked. Refuses to know: how it is asked (a function
does that), what the user calls the classes.

Invariants: a caller's deadline or cancellation ends that caller's wait only; what failed for good
is not tried again until the names are forgotten, which they are when the model's signature is
renewed, and what may pass is tried again after a while, when nobody waits for it; an answer that
was on its way when names were forgotten is given to those who waited and is not remembered; no
failure to find names is the call's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    DeadlineExceededError,
    PoolClosedError,
    QueueTimeoutError,
    Stage,
    TritonError,
)
from tritonasync.core.names import read_names
from tritonasync.core.offload import in_worker
from tritonasync.core.values import ClassQuestion, Datatype, ModelSpec, TensorSpec

Names: TypeAlias = tuple[str, ...]

_log: Final = logging.getLogger("tritonasync")

_RANKED: Final[frozenset[Datatype]] = frozenset(
    {
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FP32",
        "FP64",
    }
)
"""What a server can rank. It refuses FP16 and BF16, and BYTES kill it (SIGFPE, seen on 2.51)."""

_TIMEOUT_S: Final = 60.0
"""How long a question may take, whoever waits for it."""

_AGAIN_S: Final = 10.0
"""The least time until a question is asked again that failed of what may pass: a model is answered
by number meanwhile, and not for as long as the pool lives."""


@dataclass(frozen=True, slots=True)
class _Key:
    """Which names, and whether the server may be asked for them."""

    model: str
    version: str
    output: str
    asking: bool


class LabelBook:
    """Remembers the names of classes, by model, version and output.

    Args:
        ask: Asks a server; see :meth:`tritonasync.core.ports.Backend.labels`.
        repository: A folder with the models' folders; ``None`` if there is none here.
        waits_for: Tells what a question waits for, to be named by those who run out of time.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        ask: Callable[[ClassQuestion, Deadline], Awaitable[Names]],
        repository: Path | None = None,
        waits_for: Callable[[], Stage] = lambda: "metadata",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._repository = repository
        self._waits_for = waits_for
        self._clock = clock
        self._names: dict[_Key, Names] = {}
        self._again: dict[_Key, float] = {}  # when what failed may be asked again
        self._questions: dict[_Key, asyncio.Task[Names]] = {}
        self._tasks: set[asyncio.Task[Names]] = set()

    def known(self, model: str, version: str, output: str, *, asking: bool) -> Names | None:
        """Return the names if they are in memory; empty if it is known that there are none.

        ``None`` as well if it is time to ask again.
        """
        key = _Key(model, version, output, asking)
        return None if self._is_due(key) else self._names.get(key)

    def _is_due(self, key: _Key) -> bool:
        again = self._again.get(key)
        return again is not None and self._clock() >= again and key not in self._questions

    async def names(
        self,
        spec: ModelSpec,
        output: TensorSpec,
        question: ClassQuestion | None,
        deadline: Deadline,
    ) -> Names:
        """Return the names, found out if they are not known.

        Raises as :meth:`tritonasync.core.ports.ModelCatalog.labels`.
        """
        key = _Key(spec.name, spec.version, output.name, question is not None)
        if question is not None and not _may_ask(spec, output, question):
            question = None
        known = self._names.get(key)
        if known is not None:
            if self._is_due(key):
                self._start(key, output, question)
            return known
        asked = self._questions.get(key) or self._start(key, output, question)
        await asyncio.wait({asked}, timeout=deadline.wait_s())
        if not asked.done():
            raise deadline.error(self._waits_for(), model=spec.name)
        if asked.cancelled():
            raise PoolClosedError("the pool was closed while it asked for labels", model=spec.name)
        error = asked.exception()
        if isinstance(error, TritonError):
            raise error.copy()  # its own for each waiter
        return asked.result()

    def _start(
        self, key: _Key, output: TensorSpec, question: ClassQuestion | None
    ) -> asyncio.Task[Names]:
        task = asyncio.get_running_loop().create_task(self._learn(key, output, question))
        self._questions[key] = task
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[Names]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen here, should every waiter have left

    async def _learn(self, key: _Key, output: TensorSpec, question: ClassQuestion | None) -> Names:
        task = asyncio.current_task()
        try:
            names = await self._filed(key.model, output.label_filename)
            again = None
            if not names and question is not None:
                names, again = await self._asked(question)
            if self._questions.get(key) is task:
                self._names[key] = names
                self._again.pop(key, None)
                if again is not None:
                    self._again[key] = again
            return names
        finally:
            if self._questions.get(key) is task:
                del self._questions[key]
            del task

    async def _filed(self, model: str, filename: str) -> Names:
        path = _within(self._repository, model, filename)
        if path is None:
            return ()
        try:
            return await in_worker(lambda: read_names(path), deadline=NEVER, model=model)
        except (OSError, ValueError) as error:
            _log.warning("model %r: its label file cannot be read here: %s", model, error)
            return ()

    async def _asked(self, question: ClassQuestion) -> tuple[Names, float | None]:
        """Return the server's names, and when to ask again if it did not tell them."""
        try:
            return await self._ask(question, Deadline.after(_TIMEOUT_S)), None
        except PoolClosedError:
            raise
        except TritonError as error:
            passes = _may_pass(error)
            _log.warning(
                "model %r: its server does not name the classes of output %r: %s%s",
                question.call.model,
                question.output,
                str(error),  # not itself: it holds what it passed through
                f"; asked again in {_AGAIN_S:g} s at the earliest" if passes else "",
            )
            return (), self._clock() + _AGAIN_S if passes else None

    def forget(self, model: str, version: str | None = None) -> None:
        """Drop the names of a model, in one version asked for or in all."""
        for book in (self._names, self._again, self._questions):
            for key in [key for key in book if key.model == model]:
                if version in (None, key.version):
                    del book[key]

    async def aclose(self) -> None:
        """End the questions that are out; the calls beneath them go on to their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _may_pass(error: TritonError) -> bool:
    """Return whether the same question may be answered later."""
    return error.retriable or isinstance(error, DeadlineExceededError | QueueTimeoutError)


def _may_ask(spec: ModelSpec, output: TensorSpec, question: ClassQuestion) -> bool:
    """Return whether a call for the sake of the names can do no harm."""
    return (
        bool(output.label_filename)
        and output.datatype in _RANKED
        and question.classes > 0
        and question.call.idempotent
        and not spec.decoupled
        and not spec.stateful
    )


def _within(repository: Path | None, model: str, filename: str) -> Path | None:
    """Return a file in a model's folder, and none outside of it, whatever a server says."""
    parts = PurePosixPath(filename).parts
    if repository is None or not parts or ".." in parts or filename.startswith("/"):
        return None
    if len(PurePosixPath(model).parts) != 1 or model in {"..", "/"}:
        return None
    return repository.joinpath(model, *parts)
