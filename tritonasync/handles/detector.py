"""Models that find objects: images in, boxes in the images' own pixels out.

Owns: the way from images to the model's input and from its outputs to boxes. Refuses to know: where
images come from, what the objects are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConfigurationError
from tritonasync.core.offload import reply_nbytes
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import Array, Reply
from tritonasync.handles.architecture import Plug
from tritonasync.handles.binding import Binding, bind_some
from tritonasync.handles.decoders import Candidates, Decoder, DecoderName, decode, pick
from tritonasync.handles.detections import Detection, Detections
from tritonasync.handles.frames import Canvas, Layout, canvas_of, frames, work_nbytes
from tritonasync.handles.labels import checked_labels
from tritonasync.handles.signature import Signature
from tritonasync.handles.typed import Feed, TypedHandle, floats_of
from tritonasync.processing.boxes import clip, suppress
from tritonasync.processing.images import Letterbox

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Candidates", "Decoder", "Detection", "Detections", "Detector", "ImageLike", "Layout"]

ImageLike: TypeAlias = "npt.ArrayLike | Image"
"""An array ``[H, W]`` or ``[H, W, C]``, or a Pillow image."""

DecoderChoice: TypeAlias = DecoderName | Literal["auto"] | Decoder
"""A decoder by name, by the outputs' shapes, or a function."""

_DECODING_WEIGHT: Final = 64
"""How many bytes of other work a byte of output is worth: suppressing duplicates takes some 20
microseconds for each box kept, so that 16 KiB of output can keep a thread busy for milliseconds."""


@dataclass(frozen=True, slots=True)
class _Thresholds:
    """Which candidates become detections."""

    score: float
    iou: float | None
    max_detections: int
    class_agnostic: bool
    labels: tuple[str, ...] | None


class Detector(TypedHandle[list[Detections], list[Letterbox]]):
    """A model that gives boxes with scores and classes.

    Images may be of any size, also within a batch: each is scaled to fit the model's input, its
    proportions kept, and the rest of the input is grey (a letterbox). Boxes come back in the pixels
    of the image that was given. Images are uint8, or float between 0 and 1; the model gets 0 to 1,
    or 0 to 255 if its input is UINT8. Grey images are given to RGB models with three equal
    channels, RGB images to grey models as their brightness (ITU-R BT.601). NaN pixels go to the
    model; scaling spreads them to their neighbours.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        input_name: The input for images; may be left out if there is only one.
        outputs: The outputs to read; ``None`` for all.
        labels: The classes' names, by class number; ``None`` names them by number.
        decoder: What the outputs mean: ``"yolov8"`` (``[N, 4 + C, A]``: centre, size, class
            scores), ``"xyxy"`` (``[N, M, 6]``: left, top, right, bottom, score, class), ``"auto"``
            to tell by the shapes, or a function that gives the candidates of each image.
        layout: The order of the input's axes; ``None`` to tell by where the 1 or 3 channels are.
        image_size: Height and width to scale to, if the input's are free.
        score_threshold: Candidates with a score above it count.
        iou_threshold: Of two boxes (of a class) that overlap by more, the better stays; ``None``
            keeps both, for models that have removed duplicates themselves.
        max_detections: The most detections of an image, best first.
        class_agnostic: Whether boxes of different classes are duplicates of one another, too.
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
        outputs: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        decoder: DecoderChoice = "auto",
        layout: Layout | None = None,
        image_size: tuple[int, int] | None = None,
        score_threshold: float = 0.25,
        iou_threshold: float | None = 0.45,
        max_detections: int = 300,
        class_agnostic: bool = False,
        plug: Plug | None = None,
    ) -> None:
        super().__init__(name, version, invoker, catalog, timeout_s=timeout_s, plug=plug)
        subject = f"detector {name!r}"
        self._input_name = input_name
        if isinstance(outputs, str):
            raise ConfigurationError(f"{subject}: outputs is a list of names, not {outputs!r}")
        self._outputs = None if outputs is None else tuple(outputs)
        self._decoder: DecoderChoice = decoder
        self._layout: Layout | None = layout
        self._image_size = image_size
        self._thresholds = _Thresholds(
            score_threshold,
            iou_threshold,
            max_detections,
            class_agnostic,
            checked_labels(subject, labels),
        )
        self._fit: tuple[Binding, Canvas] | None = None
        _check_options(subject, decoder, layout, image_size, self._thresholds)

    async def __call__(
        self, images: Iterable[ImageLike] | npt.ArrayLike, *, timeout_s: float | None = None
    ) -> list[Detections]:
        """Find the objects in each of several images.

        Args:
            images: Images of any sizes, or one array ``[N, H, W, C]`` or ``[N, H, W]``. Read, and
                possibly in a worker thread: do not change them before the call is answered.
            timeout_s: Seconds for this call; ``None`` for the pool's, ``math.inf`` for no limit.

        Returns:
            The detections of each image, in order.

        Raises:
            InvalidInputError: One is no image that the model can take, or there is none.
            ConfigurationError: The options do not fit the model: input, outputs, layout, decoder,
                labels.
            UsageError: The model is decoupled.
            DeadlineExceededError: The time ran out; ``stage`` says where.
            TransportError: Nobody answered, or not with boxes.
            ServerError: The server answered with an error.
        """
        given = list(images) if isinstance(images, Iterator) else images  # it is looked at twice
        return await self._run(given, timeout_s, item=False)

    async def one(self, image: ImageLike, *, timeout_s: float | None = None) -> Detections:
        """Find the objects in one image, ``[H, W]`` or ``[H, W, C]``.

        Raises:
            TritonError: As the call on several.
        """
        return (await self._run([image], timeout_s, item=False))[0]

    # --- before ---

    def _canvas(self, binding: Binding) -> Canvas:
        if self._fit is None or self._fit[0] is not binding:
            self._fit = binding, canvas_of(binding, self._layout, self._image_size)
        return self._fit[1]

    def _bind(self, signature: Signature) -> Binding:
        binding = bind_some(signature, self._input_name, self._outputs)
        shapes = {output.name: output.shape for output in binding.outputs}
        if not callable(self._decoder) and all(-1 not in s[1:] for s in shapes.values()):
            pick(self._decoder, shapes, model=self._name)  # known now: better than after the call
        return binding

    def _work_nbytes(self, binding: Binding, value: object) -> int:
        return work_nbytes(value, self._canvas(binding))

    def _feed(
        self, binding: Binding, value: object, *, item: bool, deadline: Deadline
    ) -> Feed[list[Letterbox]]:
        del item
        canvas = self._canvas(binding)
        tensor, places = canvas.render(frames(value, canvas), deadline)
        return Feed(*binding.tensors(tensor, item=False), places)

    # --- after ---

    def _reading_nbytes(self, reply: Reply) -> int:
        return reply_nbytes(reply) * _DECODING_WEIGHT

    def _adopt(self, made: object, rows: int, reply: Reply) -> list[Detections]:
        raise TypeError(made, rows, reply)

    def _read(
        self, binding: Binding, reply: Reply, rows: int, context: list[Letterbox]
    ) -> list[Detections]:
        candidates = self._decoded(floats_of(binding, reply, rows))
        if len(candidates) != rows:
            raise ConfigurationError(
                f"detector {self._name!r}: expected the decoder to give the candidates of {rows} "
                f"images, got {len(candidates)}",
                model=self._name,
            )
        return [
            _detections(found, place, self._thresholds, self._name)
            for found, place in zip(candidates, context, strict=True)
        ]

    def _decoded(self, outputs: Mapping[str, Array]) -> Sequence[Candidates]:
        if callable(self._decoder):
            return self._decoder(outputs)
        shapes = {name: array.shape for name, array in outputs.items()}
        decoder, name = pick(self._decoder, shapes, model=self._name)
        labels = self._thresholds.labels
        if decoder == "yolov8" and labels and len(labels) != shapes[name][1] - 4:
            raise _wrong_labels(self._name, f"{shapes[name][1] - 4} classes", labels)
        return decode(decoder, outputs[name])


def _detections(
    found: Candidates, place: Letterbox, thresholds: _Thresholds, model: str
) -> Detections:
    """Return what is left of the candidates, in the pixels of the image."""
    boxes = np.asarray(found.boxes, np.float32)
    scores = np.asarray(found.scores, np.float32)
    keep = (scores > thresholds.score) & np.isfinite(boxes).all(axis=1)
    class_ids = np.asarray(found.class_ids, np.int64)[keep]
    boxes, scores = boxes[keep], scores[keep]
    best = suppress(
        boxes,
        scores,
        None if thresholds.class_agnostic else class_ids,
        iou_threshold=np.inf if thresholds.iou is None else thresholds.iou,
        limit=thresholds.max_detections,
    )
    height, width = place.image_height, place.image_width
    boxes = clip(place.to_image(boxes[best]), height, width)
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    class_ids = class_ids[best][inside]
    return Detections(
        boxes[inside],
        scores[best][inside],
        class_ids,
        _names(class_ids, thresholds.labels, model),
        height=height,
        width=width,
    )


def _names(
    class_ids: npt.NDArray[np.int64], labels: tuple[str, ...] | None, model: str
) -> tuple[str, ...]:
    ids = [int(class_id) for class_id in class_ids]
    if labels is None:
        return tuple(map(str, ids))
    for class_id in ids:
        if not 0 <= class_id < len(labels):
            raise _wrong_labels(model, f"one for class {class_id} that the model gave", labels)
    return tuple(labels[class_id] for class_id in ids)


def _wrong_labels(model: str, expected: str, labels: tuple[str, ...]) -> ConfigurationError:
    return ConfigurationError(
        f"detector {model!r}: expected labels for {expected}, got {len(labels)} labels",
        model=model,
    )


def _is_size(value: tuple[int, int]) -> bool:
    try:
        height, width = value
    except (TypeError, ValueError):  # not two, or no sequence at all
        return False
    return _is_count(height) and _is_count(width)


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and int(value) >= 1


def _is_share(value: object) -> bool:
    return isinstance(value, Real) and 0 <= float(value) <= 1


def _check_options(
    subject: str,
    decoder: DecoderChoice,
    layout: Layout | None,
    image_size: tuple[int, int] | None,
    thresholds: _Thresholds,
) -> None:
    faults = {
        'decoder is "auto", "yolov8", "xyxy" or a function': callable(decoder)
        or decoder in ("auto", "yolov8", "xyxy"),
        'layout is "NCHW" or "NHWC"': layout in (None, "NCHW", "NHWC"),
        "image_size is (height, width), each 1 or more": image_size is None or _is_size(image_size),
        "score_threshold is a number from 0 to 1": _is_share(thresholds.score),
        "iou_threshold is a number from 0 to 1, or None": thresholds.iou is None
        or _is_share(thresholds.iou),
        "max_detections is 1 or more": _is_count(thresholds.max_detections),
    }
    wrong = [rule for rule, holds in faults.items() if not holds]
    if wrong:
        raise ConfigurationError(f"{subject}: {'; '.join(wrong)}")
