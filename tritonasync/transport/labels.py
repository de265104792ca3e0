"""What is remembered of the names of models' classes.

Owns: where the names that come with a model are looked for (first the label file in its folder, if
that is on this machine, then the server), one question at a time per output however many callers
want the answer, and when a server must not be asked. Refuses to know: how it is asked (a function
does that), what the user calls the classes.

Invariants: a caller's deadline or cancellation ends that caller's wait only; what failed is not
tried again until the names are forgotten, which they are when the model's signature is renewed; an
answer that was on its way by then is given to those who waited and is not remembered; names are
never what a call fails of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import PoolClosedError, Stage, TritonError
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
    """

    def __init__(
        self,
        ask: Callable[[ClassQuestion, Deadline], Awaitable[Names]],
        repository: Path | None = None,
        waits_for: Callable[[], Stage] = lambda: "metadata",
    ) -> None:
        self._ask = ask
        self._repository = repository
        self._waits_for = waits_for
        self._names: dict[_Key, Names] = {}
        self._questions: dict[_Key, asyncio.Task[Names]] = {}
        self._tasks: set[asyncio.Task[Names]] = set()

    def known(self, model: str, version: str, output: str, *, asking: bool) -> Names | None:
        """Return the names if they are in memory; empty if it is known that there are none."""
        return self._names.get(_Key(model, version, output, asking))

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
        known = self._names.get(key)
        if known is not None:
            return known
        if question is not None and not _may_ask(spec, output, question):
            question = None
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
            if not names and question is not None:
                names = await self._asked(question)
            if self._questions.get(key) is task:
                self._names[key] = names
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

    async def _asked(self, question: ClassQuestion) -> Names:
        try:
            return await self._ask(question, Deadline.after(_TIMEOUT_S))
        except PoolClosedError:
            raise
        except TritonError as error:
            _log.warning(
                "model %r: its server does not name the classes of output %r: %s",
                question.call.model,
                question.output,
                str(error),  # not itself: it holds what it passed through
            )
            return ()

    def forget(self, model: str, version: str | None = None) -> None:
        """Drop the names of a model, in one version asked for or in all."""
        for book in (self._names, self._questions):
            for key in [key for key in book if key.model == model]:
                if version in (None, key.version):
                    del book[key]

    async def aclose(self) -> None:
        """End the questions that are out; the calls beneath them go on to their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
