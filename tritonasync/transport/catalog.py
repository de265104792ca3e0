"""What is remembered of models' signatures.

Owns: one question at a time per model, however many callers want the answer; forgetting, and with
a signature what belongs to it (``labels``).
Refuses to know: how a signature is asked for (a function does that).

Invariants: a caller's deadline or cancellation ends that caller's wait only, never the question
that others wait for too; an answer that was on its way when its model was forgotten is given to
those who waited for it and is not remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import DeadlineExceededError, PoolClosedError, Stage, TritonError
from tritonasync.core.values import ClassQuestion, ModelSpec, TensorSpec
from tritonasync.transport.labels import LabelBook

_Key: TypeAlias = tuple[str, str]

ASK_TIMEOUT_S: Final = 60.0
"""How long a question may take, whoever waits for it."""


class Catalog:
    """Remembers signatures (a :class:`~tritonasync.core.ports.ModelCatalog`).

    Args:
        ask: Asks a server for a model's signature.
        waits_for: Tells what a question waits for, to be named by those who run out of time.
        labels: The names of classes that come with models; ``None`` if nobody looks for any.
    """

    def __init__(
        self,
        ask: Callable[[str, str, Deadline], Awaitable[ModelSpec]],
        waits_for: Callable[[], Stage] = lambda: "metadata",
        *,
        labels: LabelBook | None = None,
    ) -> None:
        self._ask = ask
        self._labels = labels
        self._waits_for = waits_for
        self._specs: dict[_Key, ModelSpec] = {}
        self._questions: dict[_Key, asyncio.Task[ModelSpec]] = {}
        self._tasks: set[asyncio.Task[ModelSpec]] = set()
        self._closed = False

    def known(self, model: str, version: str) -> ModelSpec | None:
        """Return the signature if it is in memory."""
        return self._specs.get((model, version))

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return the signature, from memory where it is known.

        Raises:
            DeadlineExceededError: ``deadline`` passed (stage ``"metadata"``).
            PoolClosedError: The pool was closed while the question was out.
            ServerError: The server answered with an error, such as ``ModelNotFoundError``.
            TransportError: Nobody answered.
        """
        return self._specs.get((model, version)) or await self.renew(model, version, deadline)

    async def renew(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return the signature, asked anew; what was known stays known until the answer is there.

        Raises as :meth:`describe`.
        """
        question = self._questions.get((model, version)) or self._start((model, version))
        await asyncio.wait({question}, timeout=deadline.wait_s())
        if not question.done():
            raise deadline.error(self._waits_for(), model=model)
        if question.cancelled():
            raise PoolClosedError("the pool was closed while it asked for a signature", model=model)
        error = question.exception()
        if isinstance(error, DeadlineExceededError) and not deadline.expired():
            return await self.renew(model, version, deadline)  # the question's time, not ours
        if isinstance(error, TritonError):
            raise error.copy()  # its own for each waiter: a raised object belongs to one task
        return question.result()

    def _start(self, key: _Key) -> asyncio.Task[ModelSpec]:
        question = asyncio.get_running_loop().create_task(self._learn(key))
        self._questions[key] = question
        self._tasks.add(question)
        question.add_done_callback(self._end)
        return question

    def _end(self, question: asyncio.Task[ModelSpec]) -> None:
        self._tasks.discard(question)
        if not question.cancelled():
            question.exception()  # seen here, should every waiter have left

    async def _learn(self, key: _Key) -> ModelSpec:
        question = asyncio.current_task()
        try:
            spec = await self._ask(*key, Deadline.after(ASK_TIMEOUT_S))
            if self._labels is not None:
                self._labels.forget(*key)  # it may have been reloaded with others
            known = self._specs.get(key)
            if known is not None and known == spec:
                return known  # the same object, for those who compare what they made of it
            if self._questions.get(key) is question:
                self._specs[key] = spec
            return spec
        finally:
            if self._questions.get(key) is question:
                del self._questions[key]
            # An error of this task has this frame in its traceback: they would hold one another,
            # and with them gRPC's call and its connection, until a collection.
            del question

    def refresh(self) -> None:
        """Have all that is known asked for anew, since a server may be another one by now.

        What is known stays known until the answers are there, so that nobody is held up.
        """
        for key in self._specs:
            if key not in self._questions and not self._closed:
                self._start(key)

    def forget(self, model: str) -> None:
        """Drop what is remembered of a model, in all versions."""
        for key in [key for key in self._specs if key[0] == model]:
            del self._specs[key]
        for key in [key for key in self._questions if key[0] == model]:
            del self._questions[key]

        if self._labels is not None:
            self._labels.forget(model)

    def known_labels(
        self, model: str, version: str, output: str, *, asking: bool
    ) -> tuple[str, ...] | None:
        """Return names of classes if they are in memory; see :class:`LabelBook`."""
        return (
            ()
            if self._labels is None
            else self._labels.known(model, version, output, asking=asking)
        )

    async def labels(
        self,
        spec: ModelSpec,
        output: TensorSpec,
        question: ClassQuestion | None,
        deadline: Deadline,
    ) -> tuple[str, ...]:
        """Return names of classes, found out if they are not known; see :class:`LabelBook`."""
        if self._labels is None:
            return ()
        return await self._labels.names(spec, output, question, deadline)

    async def aclose(self) -> None:
        """End the questions that are out; the calls beneath them go on to their end."""
        self._closed = True
        if self._labels is not None:
            await self._labels.aclose()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
