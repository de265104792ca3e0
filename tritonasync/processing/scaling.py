"""From pixels to the numbers that a model was trained on.

Owns: the named scalings, and their arithmetic. A pixel is a number from 0 to 255. Refuses to know:
images' sizes, tensors' layouts, models.

Invariants: channels are in RGB order here, whatever order the model wants them in: a mean belongs
to its colour. Every element is worked out in float32, by one division and one subtraction at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.values import Array

FloatImage: TypeAlias = npt.NDArray[np.float32]

ScalingName: TypeAlias = Literal["none", "unit", "symmetric", "imagenet", "vgg", "inception"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a pixel from 0 to 255 becomes a number: ``(pixel * scale - mean) / std``.

    Args:
        mean: Subtracted: one number, or three for red, green and blue.
        std: Divided by after that, in the same way.
        scale: Multiplied by first: ``1 / 255`` for ``mean`` and ``std`` of pixels from 0 to 1,
            ``1`` for such of pixels from 0 to 255; below 0 to turn dark into light
            (``Scaling(mean=-1, scale=-1 / 255)`` has black as 1 and white as 0).

    Raises:
        ConfigurationError: A number is not finite, ``std`` is not above 0, ``scale`` is 0, or there
            are neither one nor three.
    """

    mean: Sequence[float] | float = 0.0
    std: Sequence[float] | float = 1.0
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        for name, (rule, holds) in _RULES.items():
            value: object = getattr(self, name)
            numbers = _numbers(value)
            if len(numbers) not in ((1,) if name == "scale" else (1, 3)):
                raise _misfit(name, "a number" + ", or three" * (name != "scale"), value)
            if not all(math.isfinite(number) and holds(number) for number in numbers):
                raise _misfit(name, rule, value)
            # A list, as files have it, makes no key.
            object.__setattr__(self, name, numbers[0] if len(numbers) == 1 else numbers)

    @property
    def channels(self) -> int:
        """3 if it tells the colours apart, else 1."""
        return max(len(_numbers(self.mean)), len(_numbers(self.std)))

    def terms(self, channels: int, *, top: int = 255) -> tuple[FloatImage, FloatImage]:
        """Return divisor and offset ``[channels]``: a number is ``pixel / divisor - offset``.

        Args:
            channels: 1 or 3; not 1 if the scaling tells the colours apart.
            top: What white is: 255, or 1 for pixels from 0 to 1.
        """
        mean, std = np.array(_numbers(self.mean)), np.array(_numbers(self.std))
        divisor = np.broadcast_to(std / self.scale * (top / 255), channels)
        return divisor.astype(np.float32), np.broadcast_to(mean / std, channels).astype(np.float32)

    def write(self, pixels: Array, into: FloatImage, *, top: int = 255) -> None:
        """Write the numbers of pixels ``[H, W, 1]`` or ``[H, W, C]`` into ``[H, W, C]``."""
        divisor, offset = self.terms(into.shape[2], top=top)
        for channel in range(into.shape[2]):  # an inner loop over three channels is slow
            plane = into[..., channel]
            np.divide(
                pixels[..., channel % pixels.shape[2]],
                divisor[channel],
                out=plane,
                dtype=np.float32,
            )
            if offset[channel]:
                plane -= offset[channel]


def _numbers(value: object) -> tuple[float, ...]:
    """Return the numbers that a value has, or none if it is something else."""
    listed = cast("Iterable[float]", value if isinstance(value, Iterable) else (value,))
    try:
        return tuple(map(float, listed))
    except (TypeError, ValueError):
        return ()


_RULES: Final[Mapping[str, tuple[str, Callable[[float], bool]]]] = {
    "mean": ("finite", lambda _: True),
    "std": ("finite, and above 0", lambda number: number > 0),
    "scale": ("finite, and not 0", bool),
}
"""What each number must be, in words and as a test."""


def _misfit(name: str, rule: str, value: object) -> ConfigurationError:
    return ConfigurationError(f"Scaling: {name} is {rule}, got {value!r}")


_INCEPTION: Final = Scaling(mean=1.0, scale=1 / 127.5)

_COLOUR: Final[Mapping[ScalingName, Scaling]] = MappingProxyType(
    {
        "none": Scaling(scale=1),
        "unit": Scaling(),
        "symmetric": _INCEPTION,
        "inception": _INCEPTION,
        "imagenet": Scaling((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "vgg": Scaling((123.0, 117.0, 104.0), scale=1),
    }
)

_GREY: Final[Mapping[ScalingName, Scaling]] = MappingProxyType(
    {**_COLOUR, "imagenet": Scaling(0.449, 0.226), "vgg": Scaling(128.0, scale=1)}
)

SCALINGS: Final = tuple(_COLOUR)
"""The names."""


def named(name: ScalingName, channels: int) -> Scaling:
    """Return a scaling by its name, for a model with so many channels.

    ``vgg`` and ``inception`` are those of Triton's own image client. Of ``imagenet``, one channel
    has the mean of the three.
    """
    return (_GREY if channels == 1 else _COLOUR)[name]
