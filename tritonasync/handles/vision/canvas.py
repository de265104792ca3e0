"""Images of many sizes and kinds in, one tensor out.

Owns: which images are taken, and writing each to its place in the tensor. Refuses to know: boxes,
servers, where the model's size and the user's options come from.

Invariants: every refusal names model, input and image; an image is read, never changed; images are
decoded one at a time, so that no more than one is held besides the tensor; NaN goes through to the
model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

import numpy as np

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import InvalidInputError
from tritonasync.core.offload import LONG_NBYTES
from tritonasync.core.values import Array, ImageLayout
from tritonasync.handles.conversion import is_array
from tritonasync.handles.slot import shape_text
from tritonasync.memory.device import as_host, host_array, is_device_array
from tritonasync.processing.images import Placement, Resize, resize_bilinear, rgb_to_grey
from tritonasync.processing.pictures import (
    PictureError,
    from_pillow,
    is_encoded,
    is_pillow,
    read,
    resize_smoothly,
)
from tritonasync.processing.scaling import FloatImage, Scaling

ChannelOrder: TypeAlias = Literal["rgb", "bgr"]

CHANNELS: Final = (1, 3)
"""What a model may take, grey or colour; each is made into the other if the model wants it."""

_TAKEN: Final = (1, 3, 4)
"""What an image may have; the fourth is alpha, and is dropped."""

_FEW: Final = 2
"""Images that may be prepared on the event loop: each takes 50 µs at least."""

_SHOWN: Final = 200
"""Characters of a path that a message shows."""

_TOLERANCE: Final = 1e-3
"""How far a float pixel may lie outside 0 to 1, for the sake of earlier rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """A batch of images as the model takes it.

    Attributes:
        tensor: ``[N, C, H, W]`` or ``[N, H, W, C]``.
        places: Where each image lies in it.
    """

    tensor: Array
    places: list[Placement]


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """What the model takes of an image, and how an image becomes that.

    Attributes:
        model: The model's name.
        name: The input's name.
        layout: The order of axes.
        channels: 1 or 3.
        height: Rows; -1 for those of the images, which are not resized then.
        width: Columns, in the same way.
        dtype: Of the tensor: floating-point, or uint8; uint16 for the bits of BF16.
        resize: How an image comes to that size.
        scaling: How pixels become numbers; of no effect on uint8.
        channel_order: In which order the model takes colours.
        antialias: Whether images are smoothed before they shrink.
        pad_value: Grey of the canvas beside the image, of 255.
        max_pixels: The most pixels of an encoded or Pillow image.
    """

    model: str
    name: str
    layout: ImageLayout
    channels: int
    height: int
    width: int
    dtype: np.dtype[np.generic]
    resize: Resize
    scaling: Scaling
    channel_order: ChannelOrder
    antialias: bool
    pad_value: int
    max_pixels: int

    def refuse(self, reason: str) -> InvalidInputError:
        """Return the error that names model and input before the reason."""
        return InvalidInputError(
            f"model {self.model!r}, input {self.name!r}: {reason}", model=self.model
        )

    def render(self, images: object, deadline: Deadline) -> Rendered:
        """Return the batch as the model takes it; blocks, so call it in a worker thread.

        Args:
            images: A sequence of images of any sizes and kinds, or one array ``[N, H, W, C]`` or
                ``[N, H, W]``.
            deadline: Looked at before each image.

        Raises:
            InvalidInputError: There is none, or one is no image that the model can take.
            MissingExtraError: Pillow is needed, and not installed.
            DeadlineExceededError: The deadline passed, stage ``"encode"``.
        """
        each = list(self._each(images))
        if not each:
            raise self.refuse("empty batch: expected at least one image, got none")
        tensor: Array | None = None
        places: list[Placement] = []
        for index, image in enumerate(each):
            deadline.check("encode", model=self.model)
            pixels = self._frame(image, index)
            if tensor is None:
                tensor = self._tensor(len(each), pixels)
            places.append(self._draw(tensor[index], pixels, index))
        assert tensor is not None  # noqa: S101 - there is an image
        return Rendered(tensor, places)

    def work_nbytes(self, images: object) -> int:
        """Return about how many bytes it takes to render the images, those in between too.

        What must be read, decoded or fetched from a device counts as long work, and so do more than
        a few images: hundreds of calls may be prepared in one turn of the event loop.
        """
        if isinstance(images, np.ndarray):
            array = cast("Array", images)
            return self._nbytes(1 if _is_single(array) else len(array), array.nbytes)
        if not isinstance(images, (list, tuple)):
            return LONG_NBYTES
        each = cast("Sequence[object]", images)
        if len(each) > _FEW:
            return LONG_NBYTES
        arrays = [image for image in each if is_array(image)]
        if len(arrays) < len(each):
            return LONG_NBYTES
        return self._nbytes(len(arrays), sum([image.nbytes for image in arrays]))

    def _nbytes(self, count: int, read: int) -> int:
        floats = count * max(self.height, 1) * max(self.width, 1) * self.channels * 4
        # All is read to be smoothed or to become grey, and the pixels that are needed otherwise.
        read = read if self.antialias or self.channels == 1 else min(read, 2 * floats)
        return 8 * (floats + read) + count * LONG_NBYTES // _FEW // 2

    # --- one image onto the canvas ---

    def _tensor(self, count: int, first: Array) -> Array:
        height = self.height if self.height > 0 else first.shape[0]
        width = self.width if self.width > 0 else first.shape[1]
        if self.layout == "NHWC":
            return np.empty((count, height, width, self.channels), self.dtype)
        return np.empty((count, self.channels, height, width), self.dtype)

    def _draw(self, canvas: Array, image: Array, index: int) -> Placement:
        """Write an image ``[H, W, C]`` to its place on one item of the tensor."""
        rows = canvas if self.layout == "NHWC" else canvas.transpose(1, 2, 0)
        if self.channel_order == "bgr":
            rows = rows[..., ::-1]
        height, width = rows.shape[:2]
        if self.resize == "none" and image.shape[:2] != (height, width):
            raise self._wrong_size(image, index, (height, width))
        if self.channels < image.shape[2] and image.dtype == np.uint8:
            image = rgb_to_grey(image)  # before it is resized, as Triton's client and OpenCV's do
        place = Placement.fit(image.shape[0], image.shape[1], height, width, self.resize)
        if place.height < height or place.width < width:
            pad = np.full((1, 1, 1), self.pad_value, np.uint8)
            self._write(pad, rows, top=255)
        pixels = self._resized(image, place, height, width)
        if self.channels < pixels.shape[2]:
            pixels = rgb_to_grey(pixels)
        top = 255 if image.dtype == np.uint8 else 1
        if top == 1:
            self._check_scale(index, pixels)
        self._write(pixels, place.place(rows), top=top)
        return place

    def _resized(self, image: Array, place: Placement, height: int, width: int) -> Array:
        window = place.window(height, width)
        if image.shape[:2] == (place.height, place.width):
            (top, bottom), (left, right) = window
            return image[top:bottom, left:right]
        if self.antialias:
            return resize_smoothly(image, place.height, place.width, window)
        return resize_bilinear(image, place.height, place.width, window)

    def _write(self, pixels: Array, into: Array, *, top: int) -> None:
        """Write pixels, of which ``top`` is white, as the model's numbers."""
        if self.dtype == np.float32:
            self.scaling.write(pixels, into, top=top)
        elif self.dtype == np.uint8:
            into[...] = _bytes(pixels, top)
        else:
            numbers: FloatImage = np.empty((*pixels.shape[:2], self.channels), np.float32)
            self.scaling.write(pixels, numbers, top=top)
            with np.errstate(over="ignore"):
                into[...] = _bf16_bits(numbers) if self.dtype == np.uint16 else numbers

    def _wrong_size(self, image: Array, index: int, size: tuple[int, int]) -> InvalidInputError:
        whose = "the model's size" if self.height > 0 and self.width > 0 else "one size in a batch"
        return self.refuse(
            f"image {index}: expected {whose}, {size[0]} x {size[1]} (height x width), since "
            f'resize="none", got {image.shape[0]} x {image.shape[1]}'
        )

    def _check_scale(self, index: int, pixels: Array) -> None:
        low, high = np.fmin.reduce(pixels, axis=None), np.fmax.reduce(pixels, axis=None)
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise self.refuse(
                f"image {index}: expected float pixels between 0 and 1, got {low:g} to {high:g}; "
                "divide by 255, or give uint8"
            )

    # --- what the user gave ---

    def _each(self, images: object) -> Iterable[object]:
        kind = type(images).__name__
        if is_encoded(images) or is_pillow(images):
            raise self.refuse(f"expected a list of images, got one, {kind}; use handle.one(image)")
        if has_array(images) or is_device_array(images):
            try:
                array = _array(images)
            except (PictureError, InvalidInputError) as error:
                raise self.refuse(f"expected a list of images: {error}") from error
            return self._batch(array)
        if _is_masked(images) or isinstance(images, Mapping) or not isinstance(images, Iterable):
            raise self.refuse(f"expected a list of images, got {kind}")
        return cast("Iterable[object]", images)

    def _batch(self, array: Array) -> Array:
        single = _is_single(array)
        if single or array.ndim not in (3, 4):
            hint = ": one image; use handle.one(image)" if single and array.ndim > 1 else ""
            raise self.refuse(
                "expected a list of images, or an array [N, H, W, C] or [N, H, W], got "
                f"{shape_text(array.shape)}{hint}"
            )
        return array

    def _frame(self, image: object, index: int) -> Array:
        """Return an image as ``[H, W, C]`` of 1 or 3 channels: a view if it is an array already."""
        try:
            if is_encoded(image):
                return read(image, self.max_pixels)
            if is_pillow(image):
                return from_pillow(image, self.max_pixels)
            array = _checked(_array(image))
        except (PictureError, InvalidInputError) as error:
            raise self.refuse(f"image {index}{_file_text(image)}: {error}") from error
        return array


def _is_single(array: Array) -> bool:
    """Return whether an array is one image rather than several."""
    return array.ndim <= 2 or (array.ndim == 3 and array.shape[2] in _TAKEN)


def _file_text(image: object) -> str:
    """Return which file it is, for a message; nothing for what is no path."""
    if not isinstance(image, (str, os.PathLike)):
        return ""
    path = os.fsdecode(cast("str | os.PathLike[str]", image))
    shown = path if len(path) <= _SHOWN else f"{path[:_SHOWN]}…"  # it may be a whole data: URL
    return f", file {shown!r}"


def _bytes(pixels: Array, top: int) -> Array:
    """Return pixels rounded to uint8, which has no NaN: it becomes 0."""
    if pixels.dtype == np.uint8:
        return pixels
    numbers = np.nan_to_num(np.multiply(pixels, 255 / top, dtype=np.float32))
    whole: Array = np.clip(np.rint(numbers), 0, 255).astype(np.uint8)
    return whole


def _bf16_bits(numbers: FloatImage) -> Array:
    """Return numbers as the bits of bfloat16, rounded to the nearest, ties to even."""
    bits = numbers.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    whole: Array = np.where(np.isnan(numbers), 0x7FC0, rounded).astype(np.uint16)
    return whole


# --- arrays ------------------------------------------------------------------------------------


def has_array(value: object) -> bool:
    """Return whether numpy can read the value as an array, without loss."""
    if _is_masked(value):  # numpy would drop the mask without a word
        return False
    kind = type(value)  # of a Pillow image itself, asking for the attribute decodes it
    return hasattr(kind, "__array__") or hasattr(kind, "__array_interface__")


def is_float(dtype: np.dtype[np.generic]) -> bool:
    """Return whether numbers of a dtype are floating-point, bfloat16 too."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _is_masked(value: object) -> bool:
    return isinstance(value, np.ma.MaskedArray)


def _array(value: object) -> Array:
    """Return an array of whatever library as numpy has it.

    Raises:
        PictureError: It is none.
        InvalidInputError: Its owner does not hand it out.
    """
    if is_device_array(value):
        return as_host([value])[0]
    if not has_array(value):
        hint = "; give the bytes: file.read()" if hasattr(value, "read") else ""
        raise PictureError(
            "expected an array, a Pillow image, or an encoded image as bytes or by its path, got "
            f"{type(value).__name__}{hint}"
        )
    array = host_array(value)  # torch's may need a gradient, which numpy refuses
    if array is not None:
        return array
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PictureError(f"{type(value).__name__} cannot be read as an array: {error}") from error


def _checked(whole: Array) -> Array:
    """Return an array as an image ``[H, W, C]``, without alpha.

    Raises:
        PictureError: It has the wrong shape or dtype.
    """
    array = whole[:, :, None] if whole.ndim == 2 else whole
    if array.ndim != 3 or array.shape[2] not in _TAKEN or 0 in array.shape:
        raise PictureError(
            "expected shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], no axis being 0, got "
            f"{shape_text(whole.shape)}{_shape_hint(whole)}"
        )
    if not (array.dtype == np.uint8 or is_float(array.dtype)):
        raise PictureError(f"expected uint8, or float between 0 and 1, got {array.dtype}")
    return array[..., :3]


def _shape_hint(array: Array) -> str:
    if array.ndim == 3 and array.shape[0] in _TAKEN:
        return "; channels come last: image.permute(1, 2, 0) in torch, np.moveaxis(image, 0, -1)"
    if array.ndim == 1 and array.dtype == np.uint8:
        return "; if it is an encoded image, give its bytes: array.tobytes()"
    return ""
