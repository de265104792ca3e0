"""Models that tell classes: one input, one output of scores.

Owns: what scores mean (activation, labels, which classes count). Refuses to know: how images become
tensors (``images``), where names come from (``labels``); any other input is the model's own,
checked as any model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Final, Literal, TypeAlias, Unpack, cast

import numpy as np
import numpy.typing as npt

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConfigurationError, ProtocolError
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import InputTensor, Reply, TensorSpec
from tritonasync.handles.architecture import Plug
from tritonasync.handles.binding import Binding, Floats, Kind, bind_one
from tritonasync.handles.classifications import (
    Choice,
    Classification,
    Classifications,
    ClassScore,
    stacked,
)
from tritonasync.handles.flow.bulk import Mappable
from tritonasync.handles.labels import LabelsLike, LabelSource
from tritonasync.handles.lanes import FindLane, no_lane
from tritonasync.handles.row import RowHandle
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import Casting, shape_text
from tritonasync.handles.typed import Feed
from tritonasync.handles.vision.images import (
    ImageLike,
    ImageOptions,
    are_images,
    canvas_of,
    image_rules,
)
from tritonasync.processing.vectors import sigmoid, softmax

__all__ = ["Activation", "ClassScore", "Classification", "Classifications", "Classifier"]

Activation: TypeAlias = Literal["softmax", "sigmoid", "none"]
"""What makes scores of a model's output: ``"softmax"`` where exactly one class is right,
``"sigmoid"`` where each may be, ``"none"`` where the model has done so itself."""

_ACTIVATIONS: Final = {"softmax": softmax, "sigmoid": sigmoid, "none": None}


def _are_scores(tensor: TensorSpec) -> bool:
    axes = tensor.shape[1:]
    return tensor.datatype not in ("BYTES", "BOOL") and bool(axes) and {1, -1}.issuperset(axes[1:])


_SCORES: Final = Kind("of scores: numbers of shape [batch, C]", _are_scores)


class Classifier(RowHandle[Classifications], Mappable[ImageLike, Classification]):
    """A model that gives a score for each class.

    Its output is ``[batch, C]``; further axes are allowed if they are 1 long. A model whose
    ``max_batch_size`` is 0 may have its batch in axis 0 all the same.

    A model whose input is for images takes images as well as tensors: see :class:`ImageOptions`. An
    array of the model's own shape is a tensor, unless an image option is given.

    NaN in an input goes to the model as it is, and what the model makes of it into the scores.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures and names of classes come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        input_name: The input to feed; may be left out if only one is required.
        output_name: The output to read; may be left out if only one is numbers of shape
            ``[batch, C]``.
        labels: The classes' names in the order of the output: a list, or the path of a file with
            one a line. ``None`` for those that come with the model: its label file if the pool's
            ``model_repository`` has it, else as its server names them; else by number.
        activation: What makes scores of the output.
        top_k: How many classes count as predictions, at most.
        threshold: Classes with a score above it count as predictions; ``None`` for any score.
        casting: Which arrays are converted to the model's dtype unasked.
        plug: An architecture of the user's, in place of the steps before and after the model.
        lane: Gives the short way of items like those of a call, if there is one.
        images: How images become the model's input; stretched to its size unless ``resize`` says
            otherwise.

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
        labels: LabelsLike | None = None,
        activation: Activation = "softmax",
        top_k: int | None = None,
        threshold: float | None = None,
        casting: Casting = "safe",
        plug: Plug | None = None,
        lane: FindLane = no_lane,
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(
            name,
            version,
            invoker,
            catalog,
            timeout_s=timeout_s,
            casting=casting,
            plug=plug,
            lane=lane,
        )
        subject = f"classifier {name!r}"
        self._input_name = input_name
        self._output_name = output_name
        _check_options(subject, activation, top_k, threshold)
        self._labels = LabelSource(subject, labels, catalog, model=name, ask=True)
        self._activation = activation
        self._choice = Choice(top_k, threshold)
        self._rules = image_rules(subject, images, resize="stretch")

    async def __call__(
        self, batch: npt.ArrayLike | Sequence[ImageLike], *, timeout_s: float | None = None
    ) -> Classifications:
        """Classify a batch.

        Args:
            batch: Axis 0 is the batch, the others are those of the model's input, in the model's
                dtype or one that is safely converted to it. Or, for a model of images, a list of
                images of any sizes (arrays ``[H, W]`` or ``[H, W, C]``, Pillow images, encoded
                images as ``bytes``, paths of such), or one array ``[N, H, W]`` or ``[N, H, W, C]``.
                Read, and possibly in a worker thread: do not change them before the call is
                answered.
            timeout_s: Seconds for this call; ``None`` for the pool's, ``math.inf`` for no limit.

        Raises:
            InvalidInputError: The batch does not fit the model's input, or has something in it that
                is no image.
            ConfigurationError: The options do not fit the model: input, output, labels, images; or
                a label file cannot be read.
            MissingExtraError: Pillow is needed for an image, and not installed.
            UsageError: The model is decoupled.
            DeadlineExceededError: The time ran out; ``stage`` says where.
            TransportError: Nobody answered, or not with scores.
            ServerError: The server answered with an error.
        """
        return await self._run(batch, timeout_s, item=False)

    async def one(
        self, item: npt.ArrayLike | ImageLike, *, timeout_s: float | None = None
    ) -> Classification:
        """Classify one item: the model's input without the batch axis, or one image.

        Raises:
            TritonError: As the call on a batch.
        """
        results, row = await self._one(item, timeout_s)
        return results[row]

    # --- before ---

    def _bind(self, signature: Signature) -> Binding:
        binding = bind_one(signature, self._input_name, self._output_name, fits_output=_SCORES)
        output = binding.output
        if not _are_scores(output):
            raise binding.misfit(output, _SCORES.text)
        given, classes = self._labels.given, output.shape[1]
        if given is not None and classes not in (-1, len(given)):
            raise self._labels.misfit(classes)
        return binding

    def _goes_as_it_is(self, binding: Binding, value: object) -> bool:
        return not self._rules.given and binding.is_plain(value)

    def _work_nbytes(self, binding: Binding, value: object, *, item: bool) -> int:
        if self._goes_as_it_is(binding, value):
            return 0
        if are_images(value, binding, item=item, rules=self._rules):
            return canvas_of(binding, self._rules).work_nbytes([value] if item else value)
        return binding.signature.conversion_nbytes({binding.input.name: value})

    def _feed(
        self, binding: Binding, value: object, *, item: bool, deadline: Deadline
    ) -> Feed[None]:
        if not self._rules.given:
            ready = binding.ready(value, item=item)
            if ready is not None:
                return Feed(ready[0], ready[1], None)
        if not are_images(value, binding, item=item, rules=self._rules):
            return Feed(*binding.tensors(value, item=item), None)
        rendered = canvas_of(binding, self._rules).render([value] if item else value, deadline)
        return Feed(*binding.tensors(rendered.tensor, item=False), None)

    # --- after ---

    def _lacks(self, binding: Binding) -> bool:
        return self._labels.lacks(binding)

    async def _learn(
        self, binding: Binding, inputs: tuple[InputTensor, ...], reply: Reply, deadline: Deadline
    ) -> None:
        await self._labels.learn(binding, deadline, inputs=inputs, reply=reply)

    def _read(self, binding: Binding, reply: Reply, rows: int, context: None) -> Classifications:
        del context
        raw = binding.floats(reply, binding.output, rows)
        function = _ACTIVATIONS[self._activation]
        scores = _by_class(raw, reply, binding)
        if function is not None:
            scores = function(scores)
        classes = self._labels.of(scores.shape[1])
        return Classifications(
            scores, classes, model=reply.model, version=reply.version, choice=self._choice
        )

    def _signed(
        self, scores: Floats, classes: tuple[str, ...], reply: Reply, choice: Choice
    ) -> Classifications:
        """Return results that say who answered."""
        return Classifications(
            scores, classes, model=reply.model, version=reply.version, choice=choice
        )

    # --- what an architecture gave ---

    def _adopt(self, made: object, rows: int, reply: Reply) -> Classifications:
        kind = type(made).__name__
        if isinstance(made, Classifications):
            if len(made) != rows:
                raise self._misfit(f"Classifications of {len(made)} rows", rows)
            choice = made.choice if made.choice.given else self._choice
            return self._signed(made.scores, made.classes, reply, choice)
        if isinstance(made, Sequence) and made:
            items = cast("Sequence[object]", made)
            given = [item for item in items if isinstance(item, Classification)]
            if len(given) == len(items):
                return self._gathered(given, rows, reply)
        try:
            scores = np.asarray(cast("npt.ArrayLike", made))
        except (TypeError, ValueError) as error:
            raise self._misfit(f"{kind} ({error})", rows) from error
        if scores.dtype.kind not in "iuf" or scores.ndim != 2:
            raise self._misfit(f"{kind} as {_array_text(scores)}", rows)
        if len(scores) != rows or not scores.shape[1]:
            raise self._misfit(_array_text(scores), rows)
        floats = scores.astype(np.float32, copy=False)
        return self._signed(floats, self._labels.of(floats.shape[1]), reply, self._choice)

    def _gathered(self, given: list[Classification], rows: int, reply: Reply) -> Classifications:
        together = stacked(given)
        if len(given) != rows or together is None:
            unlike = "" if together else " with different classes"
            raise self._misfit(f"{len(given)} of Classification{unlike}", rows)
        return self._signed(*together, reply, self._choice)

    def _misfit(self, got: str, rows: int) -> ConfigurationError:
        subject = (
            "postprocess" if self._plug is None else f"the postprocess of {self._plug.subject}"
        )
        return ConfigurationError(
            f"classifier {self._name!r}: expected {subject} to return Classifications or scores "
            f"[{rows}, C] (one row for each item), got {got}",
            model=self._name,
        )


def _array_text(array: npt.NDArray[np.generic]) -> str:
    return f"{array.dtype} {shape_text(array.shape)}"


def _by_class(raw: Floats, reply: Reply, binding: Binding) -> Floats:
    """Return ``[N, C]`` of ``[N, C]`` or ``[N, C, 1, 1]``."""
    if raw.ndim == 2 and raw.shape[1]:
        return raw
    if raw.ndim < 2 or raw.shape[1] < 1 or raw.size != raw.shape[0] * raw.shape[1]:
        raise ProtocolError(
            f"model {reply.model!r}, output {binding.output.name!r}: expected scores [batch, C], "
            f"got {shape_text(raw.shape)}",
            model=reply.model,
        )
    return raw.reshape(raw.shape[:2])


def _check_options(subject: str, activation: object, top_k: object, threshold: object) -> None:
    faults: list[str] = []
    if activation not in _ACTIVATIONS:
        faults.append(f"activation is one of {', '.join(_ACTIVATIONS)}, not {activation!r}")
    if top_k is not None and not (_is_number(top_k, Integral) and cast("int", top_k) >= 1):
        faults.append(f"top_k is a whole number from 1 on, or None, not {top_k!r}")
    if threshold is not None and not _is_threshold(threshold, activation):
        span = "a number" if activation == "none" else "a number from 0 to 1"
        faults.append(f"threshold is {span}, or None, not {threshold!r}")
    if faults:
        raise ConfigurationError(f"{subject}: {'; '.join(faults)}")


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_threshold(value: object, activation: object) -> bool:
    if not _is_number(value, Real):
        return False
    number = float(cast("float", value))
    return number == number if activation == "none" else 0 <= number <= 1  # noqa: PLR0124 - NaN
