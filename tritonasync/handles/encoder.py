"""Models that turn texts, images or vectors into embeddings.

Owns: the form of texts that the model takes, and the length of the vectors. Refuses to know: what
is encoded; tokens (the model's server does that).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import InvalidInputError, ProtocolError
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import Reply
from tritonasync.handles.architecture import Plug
from tritonasync.handles.binding import Binding, bind_one
from tritonasync.handles.conversion import is_array
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import Casting, shape_text
from tritonasync.handles.typed import Feed, TypedHandle
from tritonasync.processing.vectors import l2_normalise

Embeddings: TypeAlias = npt.NDArray[np.float32]
"""``[N, D]``, or ``[D]`` of one item."""


class Encoder(TypedHandle[Embeddings, None]):
    """A model that gives one vector for each row.

    A model with a BYTES input takes texts: a list of ``str`` (sent as UTF-8) or ``bytes``. Any
    other takes arrays, checked as any model's. Its output is ``[batch, D]``. A model whose
    ``max_batch_size`` is 0 may have its batch in axis 0 all the same.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        input_name: The input to feed; may be left out if there is only one.
        output_name: The output to read; may be left out if there is only one.
        normalize: Whether vectors are scaled to length 1 (a zero vector stays zero).
        casting: Which arrays are converted to the model's dtype unasked.
        plug: An architecture of the user's, in place of the steps before and after the model.
    """

    def __init__(
        self,
        name: str,
        version: str,
        invoker: Invoker,
        catalog: ModelCatalog,
        *,
        timeout_s: float | None,
        input_name: str | None = None,
        output_name: str | None = None,
        normalize: bool = False,
        casting: Casting = "safe",
        plug: Plug | None = None,
    ) -> None:
        super().__init__(
            name,
            version,
            invoker,
            catalog,
            timeout_s=timeout_s,
            casting=casting,
            plug=plug,
        )
        self._input_name = input_name
        self._output_name = output_name
        self._normalize = normalize

    async def __call__(self, batch: npt.ArrayLike, *, timeout_s: float | None = None) -> Embeddings:
        """Encode a batch.

        Args:
            batch: A list of texts, or an array whose axis 0 is the batch.
            timeout_s: Seconds for this call; ``None`` for the pool's, ``math.inf`` for no limit.

        Returns:
            float32 ``[N, D]``. A read-only view on the received message if the model gives FP32 and
            ``normalize`` is off; an array of your own otherwise.

        Raises:
            InvalidInputError: The batch does not fit the model's input.
            ConfigurationError: The options do not fit the model: input, output, its shape.
            UsageError: The model is decoupled.
            DeadlineExceededError: The time ran out; ``stage`` says where.
            TransportError: Nobody answered, or not with vectors.
            ServerError: The server answered with an error.
        """
        return await self._run(batch, timeout_s, item=False)

    async def one(self, item: npt.ArrayLike, *, timeout_s: float | None = None) -> Embeddings:
        """Encode one item: a text, or the model's input without the batch axis.

        Returns:
            float32 ``[D]``, as of a batch.

        Raises:
            TritonError: As the call on a batch.
        """
        vectors = await self._run(item, timeout_s, item=True)
        return cast("Embeddings", vectors[0])

    def _feed(
        self, binding: Binding, value: object, *, item: bool, deadline: Deadline
    ) -> Feed[None]:
        del deadline
        return Feed(*binding.tensors(_texts(binding, value, item=item), item=item), None)

    def _work_nbytes(self, binding: Binding, value: object) -> int:
        return binding.signature.conversion_nbytes({binding.input.name: value})

    def _adopt(self, made: object, rows: int, reply: Reply) -> Embeddings:
        raise TypeError(made, rows, reply)

    def _bind(self, signature: Signature) -> Binding:
        binding = bind_one(signature, self._input_name, self._output_name)
        output = binding.output
        if output.datatype in ("BYTES", "BOOL") or len(output.shape) != 2:
            raise binding.misfit(output, "of one vector a row: numbers of shape [batch, D]")
        return binding

    def _read(self, binding: Binding, reply: Reply, rows: int, context: None) -> Embeddings:
        del context
        vectors = binding.floats(reply, binding.output, rows)
        if vectors.ndim != 2:
            raise ProtocolError(
                f"model {self._name!r}, output {binding.output.name!r}: expected [batch, D], got "
                f"{shape_text(vectors.shape)}",
                model=self._name,
            )
        return l2_normalise(vectors) if self._normalize else vectors


def _texts(binding: Binding, value: object, *, item: bool) -> object:
    """Return texts in the form of the model's BYTES input: ``[N]`` or ``[N, 1]``.

    Raises:
        InvalidInputError: A batch is a single text.
    """
    axes = binding.input.shape[1:]
    if binding.input.datatype != "BYTES":
        return value
    single = isinstance(value, (str, bytes))
    if single and not item:
        raise InvalidInputError(
            f"model {binding.spec.name!r}, input {binding.input.name!r}: expected a list of texts, "
            f"got a single {type(value).__name__}; use handle.one(text)",
            model=binding.spec.name,
        )
    if len(axes) != 1:
        return value
    if item:
        return [value] if single else value
    if is_array(value):
        return value[:, None] if value.ndim == 1 else value
    if isinstance(value, (list, tuple)):
        rows = cast("Sequence[object]", value)
        nested = any(isinstance(row, (list, tuple)) for row in rows)
        return rows if nested else [[row] for row in rows]
    return value
