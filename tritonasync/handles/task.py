"""Models of a kind that this package does not know: what goes in and comes out is the user's.

Owns: that there is one result for each item. Refuses to know: what items and results are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar, cast

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConfigurationError, InvalidInputError
from tritonasync.core.values import Reply
from tritonasync.handles.binding import Binding, bind_all
from tritonasync.handles.flow.bulk import Mappable
from tritonasync.handles.signature import Signature
from tritonasync.handles.typed import Feed, TypedHandle, floats_of

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class TaskHandle(TypedHandle[list[_Out], None], Mappable[_In, _Out], Generic[_In, _Out]):
    """A model that makes an ``_Out`` of each ``_In``, by a class of the user's.

    Without a ``preprocess``, a batch is the model's input, or a mapping of its inputs by name;
    without a ``postprocess``, the result of an item is a mapping of its rows of the outputs.
    """

    async def __call__(
        self, batch: Iterable[_In] | Mapping[str, object], *, timeout_s: float | None = None
    ) -> list[_Out]:
        """Return the result of each of several items, in order.

        Args:
            batch: The items. They are read in a worker thread: do not change them before the call
                is answered.
            timeout_s: Seconds for this call; ``None`` for the config's, or the pool's.

        Raises:
            InvalidInputError: The items are none, or do not fit the model's inputs.
            ConfigurationError: What ``preprocess`` or ``postprocess`` gave does not fit.
            UsageError: The model is decoupled.
            DeadlineExceededError: The time ran out; ``stage`` says where.
            TransportError: Nobody answered.
            ServerError: The server answered with an error.
            Exception: What ``preprocess`` and ``postprocess`` raise, as it is.
        """
        return await self._run(batch, timeout_s, item=False)

    async def one(self, item: _In, *, timeout_s: float | None = None) -> _Out:
        """Return the result of one item. Raises as the call on several."""
        return (await self._run(item, timeout_s, item=True))[0]

    def _bind(self, signature: Signature) -> Binding:
        return bind_all(signature)

    def _feed(
        self, binding: Binding, value: object, *, item: bool, deadline: Deadline
    ) -> Feed[None]:
        del deadline
        return Feed(*binding.bind(self._named(binding, value), item=item), None)

    def _work_nbytes(self, binding: Binding, value: object, *, item: bool) -> int:
        del item
        return binding.signature.conversion_nbytes(self._named(binding, value))

    def _named(self, binding: Binding, value: object) -> Mapping[str, object]:
        if isinstance(value, Mapping):
            return cast("Mapping[str, object]", value)
        required = [tensor for tensor in binding.inputs if not tensor.optional] or binding.inputs
        if len(required) == 1:
            return {required[0].name: value}
        names = ", ".join(repr(tensor.name) for tensor in required)
        raise InvalidInputError(
            f"model {self._name!r}: expected a mapping of its inputs {names} to arrays, got "
            f"{type(value).__name__}",
            model=self._name,
        )

    def _read(self, binding: Binding, reply: Reply, rows: int, context: None) -> list[_Out]:
        del context
        outputs = floats_of(binding, reply, rows)
        results = [{name: outputs[name][row] for name in outputs} for row in range(rows)]
        return cast("list[_Out]", results)  # as the class's arguments say: there is no postprocess

    def _adopt(self, made: object, rows: int, reply: Reply) -> list[_Out]:
        results = _listed(made)
        if results is not None and len(results) == rows:
            return cast("list[_Out]", results)
        got = type(made).__name__ if results is None else str(len(results))
        subject = "the architecture" if self._plug is None else self._plug.subject
        raise ConfigurationError(
            f"model {reply.model!r}: expected the postprocess of {subject} to return {rows} "
            f"result(s), one for each item, got {got}",
            model=self._name,
        )


def _listed(made: object) -> list[object] | None:
    """Return results as a list; ``None`` if they are something else."""
    if isinstance(made, str | bytes | Mapping):
        return None
    try:
        return list(cast("Iterable[object]", made))
    except TypeError:
        return None
