"""The handles of a pool.

Owns: which kinds of handles a pool makes, and their options. Refuses to know: what is behind the
gate that they call.

Invariants: making a handle does no I/O, and is possible before the pool is open; the same options
give the same handle, which is not for changing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Concatenate, Final, ParamSpec, TypeVar, Unpack, cast

import numpy.typing as npt

from tritonasync.batching.padding import Padder
from tritonasync.core.errors import ConfigurationError
from tritonasync.core.policies import Padding
from tritonasync.handles.base import Handle
from tritonasync.handles.classifier import Activation, Classifier
from tritonasync.handles.detector import Detector
from tritonasync.handles.encoder import Encoder
from tritonasync.handles.generator import Generator
from tritonasync.handles.labels import LabelsLike
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.registry.config import HandleConfig, HandleParts, expected_config
from tritonasync.handles.registry.configs import ClassifierConfig, DetectorConfig, EncoderConfig
from tritonasync.handles.registry.registry import ModelRegistry, default_registry
from tritonasync.handles.slot import Casting
from tritonasync.handles.text.pooling import Pooling
from tritonasync.handles.text.tokenizer import TokenizerLike
from tritonasync.handles.vision.images import ImageOptions
from tritonasync.handles.vision.reading import DecoderChoice, OutputChoice
from tritonasync.handles.vision.selection import IouThreshold, ScoreThreshold
from tritonasync.transport.gate import Gate

_H = TypeVar("_H")
_K = TypeVar("_K", bound=Handle)
_P = ParamSpec("_P")

_MOST_KEPT: Final = 256
"""Handles that a pool keeps, those made last."""


def kept(
    make: Callable[Concatenate[HandleFactory, _P], _K],
) -> Callable[Concatenate[HandleFactory, _P], _K]:
    """Have a factory give the same handle for the same options.

    Handles are made where they are needed, for each request of a web service, say: that costs 15 us
    anew, and what a handle has learned of its model and has ready for the next call would be lost.
    """

    @wraps(make)
    def give(self: HandleFactory, /, *args: _P.args, **options: _P.kwargs) -> _K:
        handles = self._handles  # pyright: ignore[reportPrivateUsage]
        key = make, *map(_key, args), *[(name, _key(value)) for name, value in options.items()]
        try:
            known = handles.get(key)
        except TypeError:  # an option that is no key, as a mapping
            return make(self, *args, **options)
        if known is None:
            known = make(self, *args, **options)
            if len(handles) >= _MOST_KEPT:
                del handles[next(iter(handles))]
            handles[key] = known
        return cast("_K", known)

    return give


def _key(value: object) -> object:
    """Return what an option is told by: ``True`` and ``1`` are equal, and are not the same."""
    kind: type = type(value)
    if kind is list or kind is tuple:  # a thousand labels, say: no Python for each
        items = tuple(cast("list[object]", value))
        return kind, tuple(map(type, items)), items
    return kind, value


class HandleFactory:
    """Makes handles; a pool is one.

    Args:
        gate: The first stage.
        timeout_s: Seconds for a call that gives none of its own.
        registry: The model types and architectures of configs; ``None`` for the default one.

    Raises:
        ConfigurationError: ``registry`` is none.
    """

    def __init__(self, gate: Gate, timeout_s: float, registry: ModelRegistry | None = None) -> None:
        if not (registry is None or isinstance(registry, ModelRegistry)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"registry must be a ModelRegistry or None, not {registry!r}; ModelRegistry() "
                "makes one"
            )
        self._gate = gate
        self._timeout_s = timeout_s
        self._registry = default_registry if registry is None else registry
        self._handles: dict[object, Handle] = {}

    def create(self, config: HandleConfig[_H]) -> _H:
        """Return the handle that a config describes: a `Detector` of a `DetectorConfig`. No I/O.

        Raises:
            ConfigurationError: It is no config, its model type or architecture is not registered,
                or an option makes no sense.
        """
        gate = self._gate
        parts = HandleParts(gate, Padder(gate), gate, self._timeout_s, lane=gate.lane)
        return self._registry.create(config, parts)

    def create_classifier(self, config: ClassifierConfig | Mapping[str, object]) -> Classifier:
        """Return the classifier that a config, or a mapping of its fields, describes. No I/O.

        Raises:
            ConfigurationError: As `create`, or a field is unknown, missing, or not of its type.
        """
        return self.create(expected_config(ClassifierConfig, config))

    def create_detector(self, config: DetectorConfig | Mapping[str, object]) -> Detector:
        """Return the detector that a config, or a mapping of its fields, describes. No I/O.

        Raises:
            ConfigurationError: As `create`, or a field is unknown, missing, or not of its type.
        """
        return self.create(expected_config(DetectorConfig, config))

    def create_encoder(self, config: EncoderConfig | Mapping[str, object]) -> Encoder:
        """Return the encoder that a config, or a mapping of its fields, describes. No I/O.

        Raises:
            ConfigurationError: As `create`, or a field is unknown, missing, or not of its type.
        """
        return self.create(expected_config(EncoderConfig, config))

    @kept
    def model(
        self,
        name: str,
        version: str = "",
        *,
        casting: Casting = "safe",
        padding: Padding | None = None,
        idempotent: bool = True,
    ) -> ModelHandle:
        """Return a handle that takes and gives tensors by name. No I/O; make it where needed.

        Args:
            name: The model's name.
            version: A version of it; empty for the server's choice (its latest).
            casting: Which arrays are converted to the model's dtype unasked, in numpy's words.
            padding: How rows of different lengths share a batch, for a model with a free axis.
            idempotent: Whether it does no harm if the model runs twice. If not, a call is sent
                again only where it certainly did not run. (Classifiers, detectors and encoders are
                taken to be idempotent.)

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return ModelHandle(
            name,
            version,
            self._gate if padding is None else Padder(self._gate),
            self._gate,
            timeout_s=self._timeout_s,
            casting=casting,
            padding=padding,
            idempotent=idempotent,
            lane=self._gate.lane,
            streamer=self._gate,
            lend=self._gate.lend,
        )

    @kept
    def classifier(
        self,
        name: str,
        version: str = "",
        *,
        input_name: str | None = None,
        output_name: str | None = None,
        labels: LabelsLike | None = None,
        activation: Activation = "softmax",
        top_k: int | None = None,
        threshold: float | None = None,
        casting: Casting = "safe",
        **images: Unpack[ImageOptions],
    ) -> Classifier:
        """Return a handle that gives a score for each class. The options are `Classifier`'s.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return Classifier(
            name,
            version,
            self._gate,
            self._gate,
            timeout_s=self._timeout_s,
            input_name=input_name,
            output_name=output_name,
            labels=labels,
            activation=activation,
            top_k=top_k,
            threshold=threshold,
            casting=casting,
            lane=self._gate.lane,
            **images,
        )

    @kept
    def detector(
        self,
        name: str,
        version: str = "",
        *,
        input_name: str | None = None,
        outputs: OutputChoice = None,
        labels: LabelsLike | None = None,
        decode: DecoderChoice = "auto",
        score_threshold: ScoreThreshold = 0.25,
        iou_threshold: IouThreshold = "auto",
        max_detections: int = 300,
        class_agnostic: bool = False,
        class_offset: int | None = None,
        **images: Unpack[ImageOptions],
    ) -> Detector:
        """Return a handle that finds objects in images. The options are `Detector`'s.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return Detector(
            name,
            version,
            self._gate,
            self._gate,
            timeout_s=self._timeout_s,
            input_name=input_name,
            outputs=outputs,
            labels=labels,
            decode=decode,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            class_agnostic=class_agnostic,
            class_offset=class_offset,
            **images,
        )

    @kept
    def encoder(
        self,
        name: str,
        version: str = "",
        *,
        input_name: str | None = None,
        output_name: str | None = None,
        normalize: bool = False,
        pooling: Pooling | None = None,
        tokenizer: TokenizerLike | None = None,
        max_length: int | None = None,
        truncate: bool = False,
        buckets: Sequence[int] | None = None,
        mask_name: str | None = None,
        token_types_name: str | None = None,
        positions_name: str | None = None,
        casting: Casting = "safe",
        **images: Unpack[ImageOptions],
    ) -> Encoder:
        """Return a handle that gives a vector for each row. The options are `Encoder`'s.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return Encoder(
            name,
            version,
            self._gate if tokenizer is None else Padder(self._gate),
            self._gate,
            timeout_s=self._timeout_s,
            input_name=input_name,
            output_name=output_name,
            normalize=normalize,
            pooling=pooling,
            tokenizer=tokenizer,
            max_length=max_length,
            truncate=truncate,
            buckets=buckets,
            mask_name=mask_name,
            token_types_name=token_types_name,
            positions_name=positions_name,
            casting=casting,
            lane=self._gate.lane,
            **images,
        )

    def generator(
        self,
        name: str,
        version: str = "",
        *,
        prompt_input: str | None = None,
        output_name: str | None = None,
        cumulative: bool = False,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        errors: str = "replace",
    ) -> Generator:
        """Return a handle that generates text, piece by piece. The options are `Generator`'s.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return Generator(
            name,
            version,
            self._gate,
            self._gate,
            self._gate,
            timeout_s=self._timeout_s,
            prompt_input=prompt_input,
            output_name=output_name,
            cumulative=cumulative,
            inputs=inputs,
            errors=errors,
        )
