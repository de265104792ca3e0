"""A user's own steps before and after a model, in place of a handle's.

Owns: calling ``preprocess`` and ``postprocess``, and what they may give. Refuses to know: where
architectures are registered, what results mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import numpy.typing as npt

from tritonasync.core.errors import ConfigurationError, InvalidInputError
from tritonasync.core.values import Array
from tritonasync.handles.binding import Binding

_C_co = TypeVar("_C_co", covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Preprocessed(Generic[_C_co]):
    """What ``preprocess`` may return to have ``postprocess`` get more than the outputs.

    Attributes:
        inputs: The model's inputs by name, axis 0 being the batch.
        context: Given to ``postprocess`` as its second argument.
    """

    inputs: Mapping[str, npt.ArrayLike]
    context: _C_co


@dataclass(frozen=True, slots=True, eq=False)
class Plug:
    """An architecture, ready to be called.

    Attributes:
        subject: Which it is, for messages: ``architecture 'custom_detector'``.
        preprocess: Makes the inputs of a batch of items.
        postprocess: Makes the results of the outputs, one for each item.
    """

    subject: str
    preprocess: Callable[[Sequence[object]], object]
    postprocess: Callable[..., object]

    def prepared(
        self, value: object, binding: Binding, *, item: bool
    ) -> tuple[Mapping[str, object], object]:
        """Return the model's inputs by name, and the context (``None`` if there is none)."""
        made = self.preprocess([value] if item else self._items(value))
        if isinstance(made, Preprocessed):
            return made.inputs, made
        if isinstance(made, Mapping):
            return cast("Mapping[str, object]", made), None
        if len(binding.inputs) == 1:
            return {binding.input.name: made}, None
        raise ConfigurationError(
            f"model {binding.spec.name!r}: expected the preprocess of {self.subject} to return a "
            f"mapping of input names to arrays, got {type(made).__name__}",
            model=binding.spec.name,
        )

    def results(self, outputs: Mapping[str, Array], context: object) -> object:
        """Return what ``postprocess`` makes of the outputs."""
        if isinstance(context, Preprocessed):
            return self.postprocess(outputs, cast("Preprocessed[object]", context).context)
        return self.postprocess(outputs)

    def _items(self, value: object) -> Sequence[object]:
        try:
            return list(cast("Sequence[object]", value))
        except TypeError as error:
            raise InvalidInputError(
                f"{self.subject}: expected a batch of items, got {type(value).__name__}"
            ) from error
