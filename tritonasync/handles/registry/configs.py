"""The configs of classifiers, detectors and encoders.

Owns: their fields, which are the handles' options. Refuses to know: what the options mean, and
which values make sense: the handles check that when they are made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol, cast, runtime_checkable

from tritonasync.core.errors import ConfigurationError
from tritonasync.handles.architecture import Plug
from tritonasync.handles.classifier import Activation, Classifier
from tritonasync.handles.detector import Detector
from tritonasync.handles.encoder import Encoder
from tritonasync.handles.labels import LabelsLike
from tritonasync.handles.registry.config import HandleConfig, HandleParts
from tritonasync.handles.slot import Casting
from tritonasync.handles.text.pooling import Pooling
from tritonasync.handles.vision.decoding.choice import CHOICES
from tritonasync.handles.vision.images import (
    ChannelOrder,
    ImageOptions,
    Layout,
    Resize,
    ScalingLike,
)
from tritonasync.handles.vision.reading import DecoderChoice, OutputChoice
from tritonasync.handles.vision.selection import IouThreshold, ScoreThreshold

if TYPE_CHECKING:
    from tokenizers import Tokenizer
else:

    @runtime_checkable
    class Tokenizer(Protocol):
        """What looks like one: the package is an extra, and whether it is one, the encoder sees."""

        def encode_batch(self, *args: object, **options: object) -> object: ...


__all__ = [
    "ClassifierConfig",
    "DetectorConfig",
    "EncoderConfig",
    "HandleConfig",
    "HandleParts",
    "ImageFields",
]


@dataclass(frozen=True, kw_only=True)
class ImageFields:
    """The fields of a config of a model that takes images; ``None`` for the handle's default.

    Attributes:
        layout: The order of the input's axes: ``"NCHW"`` or ``"NHWC"``.
        image_size: Height and width to scale to, or one number for both.
        scaling: How pixels become the model's numbers: a name, or a ``Scaling`` (in a file, a table
            of ``mean``, ``std`` and ``scale``).
        resize: ``"letterbox"``, ``"stretch"``, ``"crop"`` or ``"none"``.
        channel_order: ``"rgb"`` or ``"bgr"``.
        antialias: Whether images are smoothed as they shrink.
        pad_value: Grey of what a letterbox leaves free.
        max_pixels: The most pixels of an encoded or Pillow image.
    """

    layout: Layout | None = None
    image_size: tuple[int, int] | int | None = None
    scaling: ScalingLike | None = None
    resize: Resize | None = None
    channel_order: ChannelOrder | None = None
    antialias: bool | None = None
    pad_value: int | None = None
    max_pixels: int | None = None

    def image_options(self) -> ImageOptions:
        """Return those that are given, as a handle takes them."""
        given = {name: getattr(self, name) for name in ImageOptions.__annotations__}
        return cast("ImageOptions", {name: v for name, v in given.items() if v is not None})


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(ImageFields, HandleConfig[Classifier]):
    """What a :class:`Classifier` is made of: its options as fields.

    Raises:
        ConfigurationError: A field is unknown, missing, or not of its type.
    """

    model_type: ClassVar[str] = "classifier"
    arch_types: ClassVar[tuple[str, ...]] = ("classifier",)

    input_name: str | None = None
    output_name: str | None = None
    labels: LabelsLike | None = None
    activation: Activation = "softmax"
    top_k: int | None = None
    threshold: float | None = None
    casting: Casting = "safe"

    def build(self, parts: HandleParts) -> Classifier:
        """Return a new classifier. No I/O.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return Classifier(
            self.name,
            self.version,
            parts.invoker,
            parts.catalog,
            timeout_s=self.timeout_of(parts),
            input_name=self.input_name,
            output_name=self.output_name,
            labels=self.labels,
            activation=self.activation,
            top_k=self.top_k,
            threshold=self.threshold,
            casting=self.casting,
            plug=parts.plug,
            lane=parts.lane,
            **self.image_options(),
        )


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(ImageFields, HandleConfig[Detector]):
    """What a :class:`Detector` is made of: its options as fields.

    ``arch_type`` is the name of a decoder, ``"auto"``, or of a registered class. A class with
    ``postprocess`` alone is a decoder: it gives the ``Candidates`` of each image in pixels of the
    model's input, and they become boxes in the image's own.

    Raises:
        ConfigurationError: A field is unknown, missing, or not of its type.
    """

    model_type: ClassVar[str] = "detector"
    arch_types: ClassVar[tuple[str, ...]] = CHOICES

    input_name: str | None = None
    outputs: OutputChoice = None
    labels: LabelsLike | None = None
    decode: DecoderChoice | None = None
    score_threshold: ScoreThreshold = 0.25
    iou_threshold: IouThreshold = "auto"
    max_detections: int = 300
    class_agnostic: bool = False
    class_offset: int | None = None

    def build(self, parts: HandleParts) -> Detector:
        """Return a new detector. No I/O.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        decode, plug = self._decode(parts.plug)
        return Detector(
            self.name,
            self.version,
            parts.invoker,
            parts.catalog,
            timeout_s=self.timeout_of(parts),
            input_name=self.input_name,
            outputs=self.outputs,
            labels=self.labels,
            decode=decode,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            max_detections=self.max_detections,
            class_agnostic=self.class_agnostic,
            class_offset=self.class_offset,
            plug=plug,
            **self.image_options(),
        )

    def _decode(self, plug: Plug | None) -> tuple[DecoderChoice, Plug | None]:
        """Return what the outputs mean, and an architecture that does more than to say that."""
        if plug is not None and plug.postprocess is not None:
            if self.decode is not None:
                raise self._two_decoders()
            if plug.preprocess is not None:
                return "auto", plug
            decode = partial(plug.results, context=None, model=self.name)
            return cast("DecoderChoice", decode), None  # the detector sees what it gives
        named = self.arch_type if plug is None and self.arch_type else "auto"
        if named != "auto" and self.decode not in (None, named):
            raise self._two_decoders()
        return self.decode or cast("DecoderChoice", named), plug

    def _two_decoders(self) -> ConfigurationError:
        return ConfigurationError(
            f"detector {self.name!r}: arch_type={self.arch_type!r} says what the outputs mean, and "
            f"so does decode={self.decode!r}; give one of the two",
            model=self.name,
        )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ImageFields, HandleConfig[Encoder]):
    """What an :class:`Encoder` is made of: its options as fields.

    Raises:
        ConfigurationError: A field is unknown, missing, or not of its type.
    """

    model_type: ClassVar[str] = "encoder"
    arch_types: ClassVar[tuple[str, ...]] = ("encoder",)

    input_name: str | None = None
    output_name: str | None = None
    normalize: bool = False
    pooling: Pooling | None = None
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None
    max_length: int | None = None
    truncate: bool = False
    buckets: Sequence[int] | None = None
    mask_name: str | None = None
    token_types_name: str | None = None
    positions_name: str | None = None
    casting: Casting = "safe"

    def build(self, parts: HandleParts) -> Encoder:
        """Return a new encoder. No I/O.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        if parts.plug is not None and self.tokenizer is not None:
            raise ConfigurationError(
                f"encoder {self.name!r}: {parts.plug.subject} makes the model's inputs itself, so "
                "that tokenizer has no use; leave one of the two out",
                model=self.name,
            )
        return Encoder(
            self.name,
            self.version,
            parts.invoker if self.tokenizer is None else parts.padder,
            parts.catalog,
            timeout_s=self.timeout_of(parts),
            input_name=self.input_name,
            output_name=self.output_name,
            normalize=self.normalize,
            pooling=self.pooling,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            truncate=self.truncate,
            buckets=self.buckets,
            mask_name=self.mask_name,
            token_types_name=self.token_types_name,
            positions_name=self.positions_name,
            casting=self.casting,
            plug=parts.plug,
            lane=parts.lane,
            **self.image_options(),
        )
