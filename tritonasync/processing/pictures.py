"""Encoded images and Pillow's, to arrays.

Owns: reading files, which formats are read, the limit on pixels, orientation, and what each of
Pillow's modes becomes. Refuses to know: models, tensors, sizes wanted.

Invariants: no pixel is decoded before the header's size was compared with the limit; whatever a
codec raises comes out as :class:`PictureError`; Pillow is imported when the first such image comes;
an image that is given is not changed (beyond being loaded).
"""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Final, TypeAlias, TypeGuard

import numpy as np

from tritonasync.core.errors import MissingExtraError
from tritonasync.core.values import Array
from tritonasync.processing.images import Window

if TYPE_CHECKING:
    from PIL.Image import Image

Encoded: TypeAlias = "bytes | bytearray | str | os.PathLike[str]"
"""The bytes of an image file, or its path."""

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded. Not all that Pillow knows: some of the rest run other programs (EPS), or hold an
image of another size than they say (ICO)."""

MAX_PIXELS: Final = 89_478_485
"""The default limit on pixels of an image: Pillow's own, 256 MiB of RGB."""

_ORIENTATION: Final = 0x0112
"""The tag in EXIF, of which 1 is upright."""

_HEADER_ERRORS: Final = (SyntaxError, IndexError, TypeError, struct.error)
"""What Pillow's plugins raise on a header that is none of theirs, by its own ``Image.open``."""

_BAND: Final = 256
"""Rows taken from Pillow at a time: less memory, and a third of the time of 12 million pixels."""

_LOCKS: Final = tuple(threading.Lock() for _ in range(64))
"""By the image's address: two threads must not load one image at a time, since it has one file."""


class PictureError(Exception):
    """An image cannot be used; the text says why, without naming it."""


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def is_encoded(value: object) -> TypeGuard[Encoded]:
    """Return whether a value is an image's file, as bytes or by its path."""
    return isinstance(value, (bytes, bytearray, str, os.PathLike))


def is_pillow(value: object) -> TypeGuard[Image]:
    """Return whether a value is a Pillow image; Pillow is not imported for it."""
    kind = getattr(sys.modules.get("PIL.Image"), "Image", None)
    return kind is not None and isinstance(value, kind)


def read(source: Encoded, max_pixels: int) -> Array:
    """Return an encoded image ``[H, W, C]``, upright; of an animated one the first frame.

    uint8 with 1 or 3 channels, or float32 between 0 and 1 with 1 channel (16 bits of grey).

    Raises:
        PictureError: It cannot be read or decoded, or has more pixels than ``max_pixels``.
        MissingExtraError: Pillow is not installed.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_path(source, max_pixels)
    data = bytes(source)
    if not data:
        raise PictureError("expected an encoded image, got 0 bytes")
    return _decode(io.BytesIO(data), max_pixels)


def from_pillow(image: Image, max_pixels: int) -> Array:
    """Return a Pillow image as :func:`read` does, at the frame it is at; it is loaded if need be.

    Raises:
        PictureError: It cannot be decoded, or has more pixels than ``max_pixels``.
    """
    with _LOCKS[(id(image) >> 4) % len(_LOCKS)]:  # addresses are multiples of 16
        _load(image, max_pixels)
        orientation = _orientation(image)
    return _pixels(image, orientation)


# --- files -------------------------------------------------------------------------------------


def _read_path(path: str | os.PathLike[str], max_pixels: int) -> Array:
    try:
        with open(path, "rb", opener=_open_regular) as file:
            return _decode(file, max_pixels)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise PictureError(f"cannot be read: {reason}{_path_hint(path)}") from error


def _open_regular(path: str, flags: int) -> int:
    # Not blocking: a named pipe would wait for its writer.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    raise PictureError(f"expected a file, got a {'directory' if stat.S_ISDIR(mode) else 'device'}")


def _path_hint(path: str | os.PathLike[str]) -> str:
    text = os.fsdecode(path)
    if "://" in text or text.startswith("data:"):
        return "; a str is the path of a file: fetch the image yourself, and give its bytes"
    return ""


def _decode(file: IO[bytes], max_pixels: int) -> Array:
    image = _opened(file)
    _load(image, max_pixels)
    return _pixels(image, _orientation(image))


# --- with Pillow -------------------------------------------------------------------------------


def _opened(file: IO[bytes]) -> Image:
    """Return the image with its header read.

    Not by ``Image.open``, which warns of large images, or refuses them, by a limit of its own.
    """
    try:
        from PIL import Image  # noqa: PLC0415 - an extra, imported when used
    except ImportError as error:
        raise MissingExtraError("pillow", extra="images", purpose="an encoded image") from error
    Image.init()
    prefix = file.read(16)
    damaged = ""
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or accept is None or not _accepted(accept, prefix):
            continue
        image = _header(file, name, factory)
        if image is not None:
            return image
        damaged = name
    if damaged:
        raise PictureError(f"its {damaged} header is truncated or damaged")
    raise PictureError(f"expected {_listed(FORMATS)}, got bytes that begin with {prefix!r}")


def _accepted(accept: Callable[[bytes], bool | str], prefix: bytes) -> bool:
    try:
        accepted = accept(prefix)
    except IndexError:  # a file of fewer bytes than the plugin looks at
        return False
    if isinstance(accepted, str):  # Pillow was built without the codec
        raise PictureError(accepted)
    return bool(accepted)


def _header(file: IO[bytes], name: str, factory: Callable[[IO[bytes], str], Image]) -> Image | None:
    """Return the image, or ``None`` if the header is not one of this format after all."""
    file.seek(0)
    try:
        return factory(file, "")
    except _HEADER_ERRORS:
        return None
    except Exception as error:
        raise _unusable(name, "header", error) from error


def _load(image: Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise PictureError(f"expected at least one pixel, got {width} x {height}")
    if width * height > max_pixels:
        raise PictureError(
            f"expected at most {max_pixels} pixels, got {width} x {height}, and it was not "
            "decoded; max_pixels=… moves the limit"
        )
    try:
        image.load()
    except Exception as error:
        what = f"data ({width} x {height} pixels)"
        raise _unusable(image.format or "pixel", what, error) from error


def _unusable(name: str, what: str, error: Exception) -> PictureError:
    # As an error, or as a warning that the process takes for one.
    if type(error).__name__.startswith("DecompressionBomb"):
        limit = "PIL.Image.MAX_IMAGE_PIXELS"
        return PictureError(f"{name} has Pillow's own limit besides, {limit}: {error}")
    return PictureError(f"its {name} {what} is truncated or damaged: {error}")


def _pixels(image: Image, orientation: object) -> Array:
    """Return the pixels of whatever mode as ``[H, W, 1]`` or ``[H, W, 3]``, upright."""
    if image.mode == "I" and image.format is None:
        raise PictureError(
            "expected pixels whose white is known, got Pillow's mode 'I'; give a float array "
            "between 0 and 1"
        )
    try:
        array = _array(_plain(_upright(image, orientation)))
    except Exception as error:
        raise PictureError(f"its pixels (mode {image.mode!r}) are of no use: {error}") from error
    if array.ndim == 2:
        array = array[..., None]
    return _sixteen_bits(array) if array.dtype.kind in "iu" and array.dtype != np.uint8 else array


def _array(image: Image) -> Array:
    """Return the pixels, taken in bands: at once, Pillow would hold them twice for a while."""
    width, height = image.size
    first = np.asarray(image.crop((0, 0, width, min(height, _BAND))))
    if height <= _BAND:
        return first
    array = np.empty((height, *first.shape[1:]), first.dtype)
    array[:_BAND] = first
    for top in range(_BAND, height, _BAND):
        bottom = min(top + _BAND, height)
        array[top:bottom] = image.crop((0, top, width, bottom))
    return array


def _orientation(image: Image) -> object:
    """Return what its EXIF data says, by one thread at a time.

    Pillow takes it for read from the moment on that somebody begins.
    """
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged metadata is no reason to refuse the pixels
        return 1


def _upright(image: Image, orientation: object) -> Image:
    """Return the image turned and mirrored as its orientation asks for."""
    from PIL.Image import Transpose  # noqa: PLC0415 - there is an image, so it is imported

    steps: dict[object, Transpose] = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    step = steps.get(orientation)
    return image if step is None else image.transpose(step)


def _plain(image: Image) -> Image:
    """Return the image in a mode of one or three channels."""
    mode = image.mode
    if mode in ("L", "RGB", "F") or mode.startswith("I"):
        return image
    if mode in ("1", "LA"):
        return image.convert("L")
    if mode == "La":
        return image.convert("LA").convert("L")
    if mode in ("P", "PA", "RGBa"):  # P by way of RGBA: Pillow warns of a transparent palette else
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _sixteen_bits(array: Array) -> Array:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 0xFFFF:
        raise PictureError(
            f"expected grey values of 16 bits, from 0 to 65535, got {low} to {high}; give a float "
            "array between 0 and 1"
        )
    return np.divide(array, 0xFFFF, dtype=np.float32)


# --- resizing ----------------------------------------------------------------------------------


def resize_smoothly(image: Array, height: int, width: int, window: Window) -> Array:
    """Return a part of ``[H, W, C]`` at another size: bilinear, smoothed before it shrinks.

    uint8 gives uint8, rounded; whatever else, float32.

    Args:
        image: uint8, or floating-point.
        height: Rows of the whole result.
        width: Columns of the whole result.
        window: The part of the result to work out.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image  # noqa: PLC0415 - an extra, imported when used
    except ImportError as error:
        purpose = "smoothing an image as it shrinks (antialias=True; antialias=False does without)"
        raise MissingExtraError("pillow", extra="images", purpose=purpose) from error
    (top, bottom), (left, right) = window
    y, x = image.shape[0] / height, image.shape[1] / width
    box = (left * x, top * y, min(right * x, image.shape[1]), min(bottom * y, image.shape[0]))
    size, channels = (right - left, bottom - top), image.shape[2]
    if image.dtype == np.uint8 and channels == 3:
        resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box)
        return np.asarray(resized)
    plane_dtype = np.uint8 if image.dtype == np.uint8 else np.float32
    planes = [
        np.asarray(
            Image.fromarray(image[..., channel].astype(plane_dtype, copy=False)).resize(
                size, Image.Resampling.BILINEAR, box
            )
        )
        for channel in range(channels)
    ]
    return np.stack(planes, axis=-1)
