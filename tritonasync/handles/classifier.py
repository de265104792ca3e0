"""Models that tell classes: one input, one output of scores.

Owns: what scores mean (activation, labels). Refuses to know: what is classified; the input is the
model's own, checked as any model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import numpy.typing as npt

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConfigurationError, ProtocolError
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import Reply
from tritonasync.handles.architecture import Plug
from tritonasync.handles.binding import Binding, Floats, bind_one
from tritonasync.handles.classifications import Classification, Classifications, ClassScore
from tritonasync.handles.labels import checked_labels, numbers
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import Casting, shape_text
from tritonasync.handles.typed import Feed, TypedHandle
from tritonasync.processing.vectors import sigmoid, softmax

__all__ = ["Activation", "ClassScore", "Classification", "Classifications", "Classifier"]

Activation: TypeAlias = Literal["softmax", "sigmoid", "none"]
"""What makes scores of a model's output: ``"softmax"`` where exactly one class is right,
``"sigmoid"`` where each may be, ``"none"`` where the model has done so itself."""

_ACTIVATIONS: Final = {"softmax": softmax, "sigmoid": sigmoid, "none": None}


class Classifier(TypedHandle[Classifications, None]):
    """A model that gives a score for each class.

    Its output is ``[batch, C]``; further axes are allowed if they are 1 long. A model whose
    ``max_batch_size`` is 0 may have its batch in axis 0 all the same.

    NaN in an input goes to the model as it is, and what the model makes of it into the scores.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        input_name: The input to feed; may be left out if there is only one.
        output_name: The output to read; may be left out if there is only one.
        labels: The classes' names in the order of the output; ``None`` names them by number.
        activation: What makes scores of the output.
        casting: Which arrays are converted to the model's dtype unasked.
        plug: An architecture of the user's, in place of the steps before and after the model.

    Raises:
        ConfigurationError: An option makes no sense.
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
        labels: Sequence[str] | None = None,
        activation: Activation = "softmax",
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
        if activation not in _ACTIVATIONS:
            raise ConfigurationError(
                f"classifier {name!r}: activation is one of {', '.join(_ACTIVATIONS)}, "
                f"not {activation!r}"
            )
        self._labels = checked_labels(f"classifier {name!r}", labels)
        self._activation = activation

    async def __call__(
        self, batch: npt.ArrayLike, *, timeout_s: float | None = None
    ) -> Classifications:
        """Classify a batch: axis 0 is the batch, the others are those of the model's input.

        Args:
            batch: The input, in the model's dtype or one that is safely converted to it.
            timeout_s: Seconds for this call; ``None`` for the pool's, ``math.inf`` for no limit.

        Raises:
            InvalidInputError: The batch does not fit the model's input.
            ConfigurationError: The options do not fit the model: input, output, labels.
            UsageError: The model is decoupled.
            DeadlineExceededError: The time ran out; ``stage`` says where.
            TransportError: Nobody answered, or not with scores.
            ServerError: The server answered with an error.
        """
        return await self._run(batch, timeout_s, item=False)

    async def one(self, item: npt.ArrayLike, *, timeout_s: float | None = None) -> Classification:
        """Classify one item: the model's input without the batch axis.

        Raises:
            TritonError: As the call on a batch.
        """
        return (await self._run(item, timeout_s, item=True))[0]

    def _bind(self, signature: Signature) -> Binding:
        binding = bind_one(signature, self._input_name, self._output_name)
        output, axes = binding.output, binding.output.shape[1:]
        if output.datatype in ("BYTES", "BOOL") or not axes or not {1, -1}.issuperset(axes[1:]):
            raise binding.misfit(output, "of scores: numbers of shape [batch, C]")
        if self._labels is not None and axes[0] not in (-1, len(self._labels)):
            raise self._wrong_labels(axes[0])
        return binding

    def _feed(
        self, binding: Binding, value: object, *, item: bool, deadline: Deadline
    ) -> Feed[None]:
        del deadline
        return Feed(*binding.tensors(value, item=item), None)

    def _work_nbytes(self, binding: Binding, value: object) -> int:
        return binding.signature.conversion_nbytes({binding.input.name: value})

    def _adopt(self, made: object, rows: int, reply: Reply) -> Classifications:
        raise TypeError(made, rows, reply)

    def _read(self, binding: Binding, reply: Reply, rows: int, context: None) -> Classifications:
        del context
        raw = binding.floats(reply, binding.output, rows)
        scores = self._activated(_by_class(raw, reply, binding))
        classes = self._labels or numbers(scores.shape[1])
        if len(classes) != scores.shape[1]:
            raise self._wrong_labels(scores.shape[1])
        return Classifications(scores, classes, model=reply.model, version=reply.version)

    def _activated(self, scores: Floats) -> Floats:
        function = _ACTIVATIONS[self._activation]
        return function(scores) if function else scores

    def _wrong_labels(self, classes: int) -> ConfigurationError:
        assert self._labels is not None  # noqa: S101 - only then can they be wrong
        return ConfigurationError(
            f"classifier {self._name!r}: expected {classes} labels, one for each class of the "
            f"model's output, got {len(self._labels)}",
            model=self._name,
        )


def _by_class(raw: Floats, reply: Reply, binding: Binding) -> Floats:
    """Return ``[N, C]`` of ``[N, C]`` or ``[N, C, 1, 1]``."""
    if raw.ndim < 2 or raw.shape[1] < 1 or raw.size != raw.shape[0] * raw.shape[1]:
        raise ProtocolError(
            f"model {reply.model!r}, output {binding.output.name!r}: expected scores [batch, C], "
            f"got {shape_text(raw.shape)}",
            model=reply.model,
        )
    return raw.reshape(raw.shape[:2])
