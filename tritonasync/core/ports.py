"""The two seams: every stage is an :class:`Invoker`; signatures come by :class:`ModelCatalog`."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from tritonasync.core.deadline import Deadline
from tritonasync.core.values import Call, ModelSpec, Reply


class Invoker(Protocol):
    """A stage between a handle and the server: takes a call, gives its reply."""

    def infer(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """Run one inference (``async def``, or what gives the next stage's coroutine).

        A cancelled caller harms nobody: the stage below goes on with the request it has sent.

        Raises:
            DeadlineExceededError: ``call.deadline`` passed.
            TransportError: Nobody answered.
            ServerError: The server answered with an error.
        """
        ...


class ModelCatalog(Protocol):
    """Where a handle learns the signature of its model."""

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return the signature, from memory where it is known.

        Raises:
            DeadlineExceededError: ``deadline`` passed (stage ``"metadata"`` or ``"connect"``).
            ModelNotFoundError: The server has no such model or version.
            ModelNotReadyError: The model is known and has no version that can answer.
            TransportError: Nobody answered.
        """
        ...

    async def renew(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return the signature, asked anew; what was known stays until the answer is there.

        Raises as :meth:`describe`.
        """
        ...

    def known(self, model: str, version: str) -> ModelSpec | None:
        """Return the signature if it is in memory: the short way for each call but the first."""
        ...

    def forget(self, model: str) -> None:
        """Drop what is remembered of a model, because it may have been reloaded."""
        ...
