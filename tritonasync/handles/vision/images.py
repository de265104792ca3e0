"""What a handle for images is told about them, and what its model takes.

Owns: the options and their defaults; size, layout and channels by the model's signature; which
values are images to be prepared, and which are tensors that go as they are. Refuses to know: pixels
(:mod:`~tritonasync.handles.vision.canvas` writes them), boxes, classes.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import index
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict, cast, get_args

import numpy.typing as npt

from tritonasync.core.checks import is_count
from tritonasync.core.errors import ConfigurationError
from tritonasync.core.values import ImageLayout, TensorSpec
from tritonasync.handles.binding import Binding
from tritonasync.handles.conversion import is_plain_array
from tritonasync.handles.vision.canvas import (
    CHANNELS,
    Canvas,
    ChannelOrder,
    Rendered,
    has_array,
)
from tritonasync.memory.device import as_device_array, is_device_array
from tritonasync.processing.images import Placement, Resize
from tritonasync.processing.pictures import MAX_PIXELS, is_encoded, is_pillow
from tritonasync.processing.scaling import SCALINGS, Scaling, ScalingName, named
from tritonasync.wire.dtypes import numpy_dtype

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Canvas",
    "ChannelOrder",
    "ImageLike",
    "ImageOptions",
    "ImageRules",
    "Layout",
    "Placement",
    "Rendered",
    "Resize",
    "Scaling",
    "ScalingLike",
    "ScalingName",
    "are_images",
    "canvas_of",
    "held",
    "image_rules",
]

Layout: TypeAlias = ImageLayout

ScalingLike: TypeAlias = ScalingName | Scaling
"""A scaling by its name, or one's own."""

ImageLike: TypeAlias = "npt.ArrayLike | Image | bytes | str | os.PathLike[str]"
"""An array ``[H, W]`` or ``[H, W, C]``, a Pillow image, an encoded image, or the path of one."""

_DATATYPES: Final = ("UINT8", "FP16", "BF16", "FP32", "FP64")
"""Of inputs that images may go into."""

PAD: Final = 114
"""Grey of the canvas beside the image, of 255: what YOLO models are trained with."""


class ImageOptions(TypedDict, total=False):
    """Options of handles that take images.

    Attributes:
        layout: The order of the input's axes; by default as the model's configuration says, or
            where the 1 or 3 channels are.
        image_size: Height and width to scale to, or one number for both, if the input's are free.
        scaling: How pixels from 0 to 255 become the model's numbers: a name or a ``Scaling``;
            ``"unit"`` by default, ``"none"`` for UINT8 inputs.
        resize: How an image comes to the model's size: ``"letterbox"``, ``"stretch"``, ``"crop"``
            or ``"none"``.
        channel_order: In which order the model takes colours: ``"rgb"`` or ``"bgr"``. Images are
            given in RGB always.
        antialias: Whether images are smoothed as they shrink (by Pillow); by default they are, but
            not where ``resize`` is ``"letterbox"``.
        pad_value: Grey of what a letterbox leaves free, from 0 to 255.
        max_pixels: The most pixels of an encoded or Pillow image: more are refused undecoded.
    """

    layout: Layout
    image_size: tuple[int, int] | int
    scaling: ScalingLike
    resize: Resize
    channel_order: ChannelOrder
    antialias: bool
    pad_value: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class ImageRules:
    """Options that were checked, with the handle's defaults.

    Attributes:
        given: Whether the user gave any option.
        resize: How an image comes to the model's size.
        antialias: Whether images are smoothed as they shrink.
        layout: The order of axes; ``None`` to tell by the model.
        image_size: Height and width; ``None`` for the model's.
        scaling: A scaling; ``None`` for what goes with the model's datatype.
        channel_order: In which order the model takes colours.
        pad_value: Grey of what a letterbox leaves free.
        max_pixels: The most pixels of an encoded or Pillow image.
    """

    given: bool
    resize: Resize
    antialias: bool
    layout: Layout | None = None
    image_size: tuple[int, int] | None = None
    scaling: ScalingLike | None = None
    channel_order: ChannelOrder = "rgb"
    pad_value: int = PAD
    max_pixels: int = MAX_PIXELS


# --- from the user -----------------------------------------------------------------------------


def image_rules(subject: str, options: ImageOptions, *, resize: Resize) -> ImageRules:
    """Return the options checked.

    Args:
        subject: Whose they are, for messages: ``"detector 'scenes'"``.
        options: As the user gave them.
        resize: The handle's default.

    Raises:
        ConfigurationError: One is unknown, or makes no sense.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    faults = [_unknown(name) for name in given if name not in _RULES]
    for name, (rule, holds) in _RULES.items():
        if name in given and not holds(given[name]):
            faults.append(f"{name} is {rule}, got {given[name]!r}")
    if faults:
        raise ConfigurationError(f"{subject}: {'; '.join(faults)}")
    rules = ImageRules(given=bool(given), resize=resize, antialias=_smooths(resize))
    if "resize" in given:
        rules = replace(rules, antialias=_smooths(given["resize"]))
    if "image_size" in given:
        given["image_size"] = _pair(given["image_size"])
    return replace(rules, **given)


def _smooths(resize: Resize) -> bool:
    return resize != "letterbox"


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _RULES, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else f"; it takes {', '.join(_RULES)}"
    return f"unknown option {name!r}{hint}"


def _pair(size: object) -> tuple[int, int]:
    one = not isinstance(size, Iterable)
    height, width = cast("Iterable[int]", (size, size) if one else size)
    return index(height), index(width)


def _is_size(value: object) -> bool:
    try:
        return min(_pair(value)) >= 1 and not isinstance(value, bool)
    except (TypeError, ValueError):  # not two, or no whole numbers
        return False


def _is_grey(value: object) -> bool:
    return is_count(value, least=0) and cast("int", value) <= 255


def _is_scaling(value: object) -> bool:
    return isinstance(value, Scaling) or value in SCALINGS


def _one_of(*names: str) -> tuple[str, Callable[[object], bool]]:
    listed = [f'"{name}"' for name in names]
    return f"{', '.join(listed[:-1])} or {listed[-1]}", lambda value: value in names


_RULES: Final[Mapping[str, tuple[str, Callable[[object], bool]]]] = {
    "layout": _one_of(*get_args(ImageLayout)),
    "image_size": ("(height, width), each 1 or more, or one number for both", _is_size),
    "scaling": (f"{_one_of(*SCALINGS)[0]}, or a Scaling", _is_scaling),
    "resize": _one_of(*get_args(Resize)),
    "channel_order": _one_of(*get_args(ChannelOrder)),
    "antialias": ("True or False", lambda value: isinstance(value, bool)),
    "pad_value": ("a whole number from 0 to 255", _is_grey),
    "max_pixels": ("a whole number from 1 on", is_count),
}
"""What each option must be, in words and as a test."""


# --- from the signature ------------------------------------------------------------------------


@lru_cache(maxsize=512)
def canvas_of(binding: Binding, rules: ImageRules) -> Canvas:
    """Return what the model takes of an image, by its input and the user's options.

    Raises:
        ConfigurationError: The input is not for images, or layout, size or scaling do not fit it.
    """
    tensor = binding.input
    if not _may_take_images(tensor):
        raise binding.misfit(
            tensor, "for images: [batch, C, H, W] or [batch, H, W, C] of a float type or UINT8"
        )
    layout = rules.layout or tensor.layout or _guessed(tensor)
    if layout is None:
        raise binding.misfit(
            tensor, 'with 1 or 3 channels in one place; say which by layout="NCHW" or "NHWC"'
        )
    axes = tensor.shape[1:]
    channels, height, width = axes if layout == "NCHW" else (axes[2], axes[0], axes[1])
    if channels not in CHANNELS:
        raise binding.misfit(tensor, f"with 1 or 3 channels (in layout {layout!r})")
    height, width = _size(binding, (height, width), rules)
    return Canvas(
        binding.spec.name,
        tensor.name,
        layout,
        channels,
        height,
        width,
        numpy_dtype(tensor.datatype),
        rules.resize,
        _scaling(binding, channels, rules),
        _order(binding, channels, rules),
        rules.antialias,
        rules.pad_value,
        rules.max_pixels,
    )


def _may_take_images(tensor: TensorSpec) -> bool:
    return len(tensor.shape) == 4 and tensor.datatype in _DATATYPES


def _guessed(tensor: TensorSpec) -> Layout | None:
    first, last = tensor.shape[1] in CHANNELS, tensor.shape[3] in CHANNELS
    return None if first == last else "NCHW" if first else "NHWC"


def _size(binding: Binding, axes: tuple[int, int], rules: ImageRules) -> tuple[int, int]:
    size = rules.image_size
    if size is None:
        if min(axes) < 1 and rules.resize != "none":
            raise binding.misfit(
                binding.input,
                'of a fixed size; give image_size=(height, width), or resize="none" for images of '
                "one size",
            )
        return axes
    if any(axis not in (-1, length) for axis, length in zip(axes, size, strict=True)):
        raise binding.misfit(binding.input, f"that takes the image_size {size}")
    return size


def _scaling(binding: Binding, channels: int, rules: ImageRules) -> Scaling:
    whole = binding.input.datatype == "UINT8"
    chosen = rules.scaling or ("none" if whole else "unit")
    if whole and chosen != "none":
        raise binding.misfit(
            binding.input, f"of a float type for scaling={chosen!r} (UINT8 gets pixels as they are)"
        )
    scaling = chosen if isinstance(chosen, Scaling) else named(chosen, channels)
    if scaling.channels > channels:
        raise binding.misfit(binding.input, f"with 3 channels for {scaling!r}")
    return scaling


def _order(binding: Binding, channels: int, rules: ImageRules) -> ChannelOrder:
    if channels == 1 and rules.channel_order == "bgr":
        raise binding.misfit(binding.input, 'with 3 channels for channel_order="bgr"')
    return rules.channel_order


# --- images or tensors? ------------------------------------------------------------------------


def held(value: object) -> object:
    """Return what a user gave so that it may be looked at twice, and in another thread.

    An iterator becomes a list. An array in a GPU's memory, alone or in a list, is taken over with
    the stream that it is made on, which only the caller's thread knows.

    Raises:
        InvalidInputError: The owner of an array does not hand it out.
        MissingExtraError: CuPy is needed for it, and not installed.
        DeviceError: The driver failed.
    """
    if is_plain_array(value) or _is_file(value):  # a file is an iterator, too, of lines
        return value
    if is_device_array(value):
        return as_device_array(value)
    if not isinstance(value, (Iterator, list, tuple)):
        return value
    given = cast("Iterable[object]", value)
    each = list(given) if isinstance(given, Iterator) else given
    if any(map(is_device_array, each)):
        return [as_device_array(item) if is_device_array(item) else item for item in each]
    return each


def are_images(value: object, binding: Binding, *, item: bool, rules: ImageRules) -> bool:
    """Return whether what a user gave is images, to be prepared, and no tensor, to go as it is.

    An array of the model's own shape is a tensor, unless the user gave image options. (uint8 of the
    fixed size ``[H, W, C]`` is an image for a model that takes floats, and floats for one of UINT8:
    another size would be one as well.) Nothing is decoded or copied to tell.

    Args:
        value: One item, or a batch.
        binding: The input.
        item: Whether it is one item.
        rules: The user's options.
    """
    tensor = binding.input
    if rules.given:
        return True  # where that does not fit the input, the canvas says so
    if not _may_take_images(tensor) or (tensor.layout or _guessed(tensor)) is None:
        return False
    if item or is_encoded(value) or is_pillow(value):  # one, not several: the canvas says so
        return _is_image(value, binding)
    shape = _shape_of(value)
    if shape is not None:
        return _are_pixels(value, shape, shape[1:], binding)
    if not isinstance(value, (list, tuple)):
        return False
    return any(_is_image(image, binding) for image in cast("Iterable[object]", value))


def _is_image(value: object, binding: Binding) -> bool:
    shape = _shape_of(value)
    if shape is None:
        return is_encoded(value) or is_pillow(value) or _is_file(value)
    return _are_pixels(value, (1, *shape), shape, binding)


def _is_file(value: object) -> bool:
    """Return whether it is an image as it should not be given: the canvas says how."""
    if isinstance(value, memoryview):
        return value.ndim == 1 and value.itemsize == 1
    return hasattr(value, "read")


def _are_pixels(
    value: object, shape: tuple[int, ...], item: tuple[int, ...], binding: Binding
) -> bool:
    """Return whether an array is images rather than a tensor; ``item`` are the axes of one."""
    name = _dtype_name(value)
    if len(shape) not in (3, 4) or not (name == "uint8" or "float" in name):
        return False
    own = binding.signature.slots[binding.input.name].takes_item(item)
    return not own or _takes_scaled(binding.input, name)


def _takes_scaled(tensor: TensorSpec, name: str) -> bool:
    """Return whether images of the input's own shape would have to be scaled: ``[H, W, C]``."""
    fixed = -1 not in tensor.shape[1:]
    scaled = (name == "uint8") != (tensor.datatype == "UINT8")
    return scaled and fixed and (tensor.layout or _guessed(tensor)) == "NHWC"


def _shape_of(value: object) -> tuple[int, ...] | None:
    if is_plain_array(value):
        return value.shape
    if not (has_array(value) or is_device_array(value)):
        return None
    shape: object = getattr(value, "shape", None)
    return cast("tuple[int, ...]", shape) if isinstance(shape, tuple) else None


def _dtype_name(value: object) -> str:
    """Return the name of an array's dtype, ``torch.uint8`` as ``uint8``."""
    return str(getattr(value, "dtype", "")).rpartition(".")[2]
