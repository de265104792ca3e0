"""Models that find objects: images in, boxes in the images' own pixels out.

Owns: the way from images to the model's input and from its outputs to boxes. Refuses to know: where
images come from, what the objects are, how the outputs of a family are read
(:mod:`~tritonasync.handles.vision.decoding`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Unpack, cast

import numpy.typing as npt

from tritonasync.core.deadline import Deadline
from tritonasync.core.offload import reply_nbytes
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import InputTensor, Reply
from tritonasync.handles.architecture import Plug
from tritonasync.handles.binding import Binding, bind_some
from tritonasync.handles.flow.bulk import Mappable
from tritonasync.handles.labels import LabelsLike, LabelSource
from tritonasync.handles.signature import Signature
from tritonasync.handles.typed import Feed, TypedHandle
from tritonasync.handles.vision.canvas import has_array
from tritonasync.handles.vision.decoding.candidates import Candidates, Decoder
from tritonasync.handles.vision.decoding.family import DecoderName
from tritonasync.handles.vision.detections import Detection, Detections
from tritonasync.handles.vision.images import (
    Canvas,
    ImageLike,
    ImageOptions,
    Placement,
    are_images,
    canvas_of,
    image_rules,
)
from tritonasync.handles.vision.reading import (
    DecoderChoice,
    OutputChoice,
    Placed,
    Reading,
    output_names,
)
from tritonasync.handles.vision.selection import IouThreshold, ScoreThreshold, Selection
from tritonasync.memory.device import is_device_array
from tritonasync.processing.pictures import is_encoded, is_pillow

__all__ = [
    "Candidates",
    "Decoder",
    "DecoderChoice",
    "DecoderName",
    "Detection",
    "Detections",
    "Detector",
    "ImageLike",
]

_DECODING_WEIGHT: Final = 64
"""How many bytes of other work a byte of output is worth, at the worst: of 3,000 boxes of a class
in 24 bytes each, 300 stay after 5 milliseconds."""


class Detector(TypedHandle[list[Detections], Placed], Mappable[ImageLike, Detections]):
    """A model that gives boxes with scores and classes.

    Images may be of any size, also within a batch: each is scaled to fit the model's input, its
    proportions kept, and the rest of the input is grey (a letterbox; ``resize`` chooses another
    way). Boxes come back in the pixels of the image that was given, upright as its EXIF data says.
    An array of the model's own shape goes to it as it is, if no image option was given.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        input_name: The input for images; may be left out if there is only one.
        outputs: The outputs to read, by name; ``None`` for all. A mapping says which is which,
            where their names and shapes do not: ``{"boxes": "OUT_1", "scores": "OUT_2", …}``.
        labels: The classes' names, by class number from 0, or the path of a file with one a line;
            ``None`` for those that come with the model, if its repository is here, else numbers.
        decode: What the outputs mean: a decoder's name, ``"auto"`` to tell by their names and
            shapes, or a function that is given the outputs by name and gives the ``Candidates`` of
            each image.
        score_threshold: Candidates with a score above it count. By class, too: ``{"person": 0.5,
            "*": 0.3}``, where ``"*"`` is all others (0.25 if it is left out).
        iou_threshold: Of two boxes (of a class) that overlap by more, the better stays; ``None``
            keeps both. ``"auto"`` is 0.45, but ``None`` for decoders of models that remove
            duplicates themselves.
        max_detections: The most detections of an image, best first.
        class_agnostic: Whether boxes of different classes are duplicates of one another, too.
        class_offset: The number that the model gives to the first class; those below are background
            and dropped. ``None`` is 0, but 1 for the decoder ``"ssd"``.
        plug: An architecture of the user's, in place of the steps before and after the model.
        images: How images are prepared; see ``ImageOptions``. ``resize`` is ``"letterbox"`` unless
            it is given.

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
        outputs: OutputChoice = None,
        labels: LabelsLike | None = None,
        decode: DecoderChoice = "auto",
        score_threshold: ScoreThreshold = 0.25,
        iou_threshold: IouThreshold = "auto",
        max_detections: int = 300,
        class_agnostic: bool = False,
        class_offset: int | None = None,
        plug: Plug | None = None,
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(
            name, version, invoker, catalog, timeout_s=timeout_s, casting="same_kind", plug=plug
        )
        subject = f"detector {name!r}"
        self._input_name = input_name
        self._outputs = output_names(subject, outputs)
        self._rules = image_rules(subject, images, resize="letterbox")
        self._labels = LabelSource(subject, labels, catalog, model=name)
        self._reading = Reading(
            name,
            self._labels,
            decode,
            roles=outputs if isinstance(outputs, Mapping) else {},
            selection=Selection(
                score_threshold, iou_threshold, max_detections, class_agnostic, class_offset
            ),
        )

    async def __call__(
        self, images: Iterable[ImageLike] | npt.ArrayLike, *, timeout_s: float | None = None
    ) -> list[Detections]:
        """Find the objects in each of several images.

        Args:
            images: Images of any sizes and kinds, or one array ``[N, H, W, C]`` or ``[N, H, W]``.
                Read, and possibly in a worker thread: do not change them before the call is
                answered.
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
        return await self._run(_gathered(images), timeout_s, item=False)

    async def one(self, image: ImageLike, *, timeout_s: float | None = None) -> Detections:
        """Find the objects in one image: an array, a Pillow image, an encoded one, or its path.

        Raises:
            TritonError: As the call on several.
        """
        return (await self._run([image], timeout_s, item=False))[0]

    # --- before ---

    def _bind(self, signature: Signature) -> Binding:
        binding = bind_some(signature, self._input_name, self._outputs)
        if self._plug is None or self._plug.postprocess is None:
            self._reading.check(binding, fixed_size(canvas_of(binding, self._rules)))
        return binding

    def _tensor_of(self, binding: Binding, value: object) -> bool:
        """Return whether a value goes to the model as it is."""
        if are_images(value, binding, item=False, rules=self._rules):
            return False
        if not isinstance(value, list):
            return has_array(value)
        items = cast("list[object]", value)
        return bool(items) and all(map(has_array, items))

    def _work_nbytes(self, binding: Binding, value: object, *, item: bool) -> int:
        del item
        return canvas_of(binding, self._rules).work_nbytes(
            value
        )  # a tensor is no more work than images

    def _feed(
        self, binding: Binding, value: object, *, item: bool, deadline: Deadline
    ) -> Feed[Placed]:
        del item
        canvas = canvas_of(binding, self._rules)
        if self._tensor_of(binding, value):
            tensors, rows = binding.tensors(value, item=False)
            height, width = size = _size(canvas, tensors[0].shape)
            place = Placement.fit(height, width, height, width)
            return Feed(tensors, rows, Placed([place] * rows, size, fixed_size(canvas)))
        rendered = canvas.render(value, deadline)
        placed = Placed(rendered.places, _size(canvas, rendered.tensor.shape), fixed_size(canvas))
        return Feed(*binding.tensors(rendered.tensor, item=False), placed)

    # --- between ---

    def _lacks(self, binding: Binding) -> bool:
        return self._labels.lacks(binding)

    async def _learn(
        self, binding: Binding, inputs: tuple[InputTensor, ...], reply: Reply, deadline: Deadline
    ) -> None:
        del inputs, reply
        await self._labels.learn(binding, deadline)

    # --- after ---

    def _reading_nbytes(self, reply: Reply) -> int:
        return reply_nbytes(reply) * _DECODING_WEIGHT

    def _read(self, binding: Binding, reply: Reply, rows: int, context: Placed) -> list[Detections]:
        return self._reading.detections(binding, reply, rows, context)

    def _adopt(self, made: object, rows: int, reply: Reply) -> list[Detections]:
        del reply
        return self._reading.adopted(made, rows)


def _gathered(images: object) -> object:
    """Return images so that they can be looked at twice: what is no array, as a list."""
    if has_array(images) or is_device_array(images) or is_encoded(images) or is_pillow(images):
        return images
    return list(cast("Iterable[object]", images)) if isinstance(images, Iterable) else images


def _size(canvas: Canvas, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width of a tensor of images."""
    return (shape[2], shape[3]) if canvas.layout == "NCHW" else (shape[1], shape[2])


def fixed_size(canvas: Canvas) -> tuple[int, int] | None:
    return (canvas.height, canvas.width) if min(canvas.height, canvas.width) > 0 else None
