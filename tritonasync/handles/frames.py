"""Images on their way into a detector: many sizes and kinds in, one tensor out.

Owns: which images are taken, the model's layout and size, and the record of where each image lies
in the tensor. Refuses to know: boxes, servers.

Invariants: every refusal names model, input and image; an image is read, never changed; NaN goes
through to the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

import numpy as np

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import InvalidInputError
from tritonasync.core.offload import LONG_NBYTES
from tritonasync.core.values import Array, TensorSpec
from tritonasync.handles.binding import Binding
from tritonasync.handles.conversion import is_array
from tritonasync.handles.slot import shape_text
from tritonasync.memory.device import as_host, is_device_array
from tritonasync.processing.images import (
    FloatImage,
    Letterbox,
    resize_bilinear,
    rgb_to_grey,
    to_unit,
)
from tritonasync.wire.dtypes import numpy_dtype

Layout: TypeAlias = Literal["NCHW", "NHWC"]

_CHANNELS: Final = (1, 3)
"""What an image may have, grey or RGB; each is made into the other if the model wants it."""

_TOLERANCE: Final = 1e-3
"""How far a float pixel may lie outside 0 to 1, for the sake of earlier rounding."""

PAD: Final = 114
"""Grey of the canvas beside the image, of 255: what YOLO models are trained with."""


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """What the model takes of an image.

    Attributes:
        model: The model's name.
        name: The input's name.
        layout: The order of axes.
        channels: 1 or 3.
        height: Rows.
        width: Columns.
        dtype: Of the tensor: floating-point, for pixels from 0 to 1; or uint8, from 0 to 255.
    """

    model: str
    name: str
    layout: Layout
    channels: int
    height: int
    width: int
    dtype: np.dtype[np.generic]

    def refuse(self, reason: str) -> InvalidInputError:
        """Return the error that names model and input before the reason."""
        return InvalidInputError(
            f"model {self.model!r}, input {self.name!r}: {reason}", model=self.model
        )

    def render(self, images: Sequence[Array], deadline: Deadline) -> tuple[Array, list[Letterbox]]:
        """Return the tensor ``[N, C, H, W]`` or ``[N, H, W, C]``, and where each image lies in it.

        Args:
            images: ``[H, W, C]``, as :func:`frames` gives them.
            deadline: Looked at before each image.

        Raises:
            DeadlineExceededError: The deadline passed.
            InvalidInputError: A float image has values outside 0 to 1.
        """
        shape = (len(images), self.height, self.width, self.channels)
        pad = PAD if self.dtype == np.uint8 else PAD / 255
        if self.layout == "NHWC":
            tensor = by_rows = np.full(shape, pad, self.dtype)
        else:
            tensor = np.full((shape[0], shape[3], shape[1], shape[2]), pad, self.dtype)
            by_rows = tensor.transpose(0, 2, 3, 1)
        places: list[Letterbox] = []
        for index, image in enumerate(images):
            deadline.check("encode", model=self.model)
            place = Letterbox.fit(image.shape[0], image.shape[1], self.height, self.width)
            place.place(by_rows[index])[...] = self._pixels(index, image, place)
            places.append(place)
        return tensor, places

    def _pixels(self, index: int, image: Array, place: Letterbox) -> Array:
        """Return an image at its size on the canvas, with the model's channels and scale."""
        pixels = resize_bilinear(image, place.height, place.width)
        if self.channels < pixels.shape[2]:
            pixels = rgb_to_grey(pixels)
        if image.dtype != np.uint8:
            self._check_scale(index, pixels)
            return pixels if self.dtype != np.uint8 else _bytes(pixels * np.float32(255))
        return to_unit(pixels) if self.dtype != np.uint8 else _bytes(pixels)

    def _check_scale(self, index: int, pixels: FloatImage) -> None:
        low, high = np.fmin.reduce(pixels, axis=None), np.fmax.reduce(pixels, axis=None)
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise self.refuse(
                f"image {index}: expected float pixels between 0 and 1, got {low:g} to {high:g}; "
                "divide by 255, or give uint8"
            )


def _bytes(pixels: FloatImage) -> Array:
    """Return pixels rounded to uint8, which has no NaN: it becomes 0."""
    return np.clip(np.rint(np.nan_to_num(pixels)), 0, 255).astype(np.uint8)


# --- from the signature ------------------------------------------------------------------------


def canvas_of(
    binding: Binding, layout: Layout | None, image_size: tuple[int, int] | None
) -> Canvas:
    """Return what the model takes of an image, by its input and the user's options.

    Raises:
        ConfigurationError: The input is not for images, or layout or size cannot be told.
    """
    tensor = binding.input
    axes = tensor.shape[1:]
    dtype = numpy_dtype(tensor.datatype)
    if len(axes) != 3 or not (tensor.datatype == "UINT8" or _is_float(dtype)):
        raise binding.misfit(
            tensor, "for images: [batch, C, H, W] or [batch, H, W, C] of a float type or UINT8"
        )
    chosen = layout or _layout(binding, tensor)
    channels, height, width = axes if chosen == "NCHW" else (axes[2], axes[0], axes[1])
    if channels not in _CHANNELS:
        raise binding.misfit(tensor, f"with 1 or 3 channels (in layout {chosen!r})")
    height, width = _size(binding, tensor, (height, width), image_size)
    return Canvas(binding.spec.name, tensor.name, chosen, channels, height, width, dtype)


def _is_float(dtype: np.dtype[np.generic]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _layout(binding: Binding, tensor: TensorSpec) -> Layout:
    first, last = tensor.shape[1] in _CHANNELS, tensor.shape[3] in _CHANNELS
    if first == last:
        raise binding.misfit(
            tensor, 'with 1 or 3 channels in one place; say which by layout="NCHW" or "NHWC"'
        )
    return "NCHW" if first else "NHWC"


def _size(
    binding: Binding,
    tensor: TensorSpec,
    axes: tuple[int, int],
    image_size: tuple[int, int] | None,
) -> tuple[int, int]:
    if image_size is None:
        if min(axes) < 1:
            raise binding.misfit(tensor, "of a fixed size; give image_size=(height, width)")
        return axes
    if any(axis not in (-1, size) for axis, size in zip(axes, image_size, strict=True)):
        raise binding.misfit(tensor, f"that takes the image_size {image_size}")
    return image_size


# --- from the user -----------------------------------------------------------------------------


def frames(images: object, canvas: Canvas) -> list[Array]:
    """Return images as ``[H, W, C]`` arrays: views wherever they are arrays already.

    Args:
        images: A sequence of images of any sizes, or one array ``[N, H, W, C]`` or ``[N, H, W]``.
        canvas: What the model takes, for the messages.

    Raises:
        InvalidInputError: There is none, or one is no image that the model can take.
    """
    found = [_frame(image, canvas, index) for index, image in enumerate(_each(images, canvas))]
    if not found:
        raise canvas.refuse("empty batch: expected at least one image, got none")
    return found


def work_nbytes(images: object, canvas: Canvas) -> int:
    """Return about how many bytes it takes to read and render the images, those in between too."""
    each = list(_each(images, canvas))
    floats = canvas.height * canvas.width * canvas.channels * 4
    return sum(image.nbytes // 4 + 4 * floats if is_array(image) else LONG_NBYTES for image in each)


def _each(images: object, canvas: Canvas) -> Iterable[object]:
    if is_device_array(images):
        images = as_host([images])[0]
    if has_array(images):
        return _batch(np.asarray(images), canvas)
    if isinstance(images, (str, bytes)) or _is_masked(images) or not isinstance(images, Iterable):
        raise canvas.refuse(f"expected a list of images, got {type(images).__name__}")
    return cast("Iterable[object]", images)


def has_array(value: object) -> bool:
    """Return whether numpy can read the value as an array, without loss."""
    if _is_masked(value):  # numpy would drop the mask without a word
        return False
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _is_masked(value: object) -> bool:
    return isinstance(value, np.ma.MaskedArray)


def _batch(array: Array, canvas: Canvas) -> Array:
    single = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if single or array.ndim not in (3, 4):
        hint = ": one image; use handle.one(image)" if single else ""
        raise canvas.refuse(
            "expected a list of images, or an array [N, H, W, C] or [N, H, W], got "
            f"{shape_text(array.shape)}{hint}"
        )
    return array


def _frame(image: object, canvas: Canvas, index: int) -> Array:
    if is_device_array(image):
        image = as_host([image])[0]
    if not has_array(image):
        kind = type(image).__name__
        raise canvas.refuse(f"image {index}: expected an array or a Pillow image, got {kind}")
    whole = np.asarray(image)
    array = whole[:, :, None] if whole.ndim == 2 else whole
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or 0 in array.shape:
        raise canvas.refuse(
            f"image {index}: expected shape [H, W], [H, W, 1] or [H, W, 3], no axis being 0, got "
            f"{shape_text(whole.shape)}"
        )
    if not (array.dtype == np.uint8 or _is_float(array.dtype)):
        raise canvas.refuse(
            f"image {index}: expected uint8, or float between 0 and 1, got {array.dtype}"
        )
    return array
