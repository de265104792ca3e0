"""A family of detectors: what its outputs look like, and how they are read.

Owns: the words for a layout, and finding out which output is which. Refuses to know: images,
thresholds of anybody's choosing, suppression of duplicates.

Invariants: a family either says which outputs it reads or why it cannot; nothing here raises for a
model that does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from tritonasync.core.values import Array, TensorSpec
from tritonasync.handles.vision.decoding.candidates import Candidates

DecoderName: TypeAlias = Literal[
    "yolov5", "yolov8", "end2end", "flat", "efficientnms", "ssd", "detr", "rtdetr"
]

Roles: TypeAlias = Mapping[str, str]
"""Names of outputs by what they hold: ``{"boxes": "det_boxes", …}``."""


ONE_OUTPUT: Final[Mapping[str, frozenset[str]]] = {"output": frozenset()}
"""The roles of a family that reads a single output, whatever its name."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model besides the shapes of its outputs.

    Attributes:
        asked: Whether the family was asked for by name; if not, it has to be told from others.
        labels: How many labels the user gave; ``None`` for none.
        size: Height and width of the model's input in pixels; ``None`` if free.
        batched: Whether the model has a batch axis by its configuration.
        roles: Which output is which, as the user said.
    """

    asked: bool = False
    labels: int | None = None
    size: tuple[int, int] | None = None
    batched: bool = True
    roles: Roles = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, eq=False)
class Misfit:
    """Why a family cannot read a model's outputs.

    Attributes:
        reason: In words, for a message.
    """

    reason: str


class Contradiction(Exception):  # noqa: N818 - caught within the package
    """Outputs contradict themselves; the text says how, without naming the model."""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One layout of outputs.

    Attributes:
        name: Its name.
        wants: The outputs it reads, in words.
        roles: What outputs it reads, and under which names they are known in lower case.
        fit: Says which output is which, or why none is.
        classes: Returns how many classes the outputs have; ``None`` if it does not show.
        decode: Makes candidates with a score above a floor of the outputs by role, for so many
            images. Class numbers are the model's own. Raises :class:`Contradiction`.
        suppressed: Whether the model has removed duplicates itself.
        by_row: Whether axis 0 of its outputs is the batch.
        first_class: The number of its first class; lower ones are background or nothing.
    """

    name: DecoderName
    wants: str
    roles: Mapping[str, frozenset[str]]
    fit: Callable[[Sequence[TensorSpec], Known], Roles | Misfit]
    classes: Callable[[Mapping[str, tuple[int, ...]]], int | None]
    decode: Callable[[Mapping[str, Array], float, int], list[Candidates]]
    suppressed: bool
    by_row: bool = True
    first_class: int = 0


def no_classes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Return that the number of classes does not show in the outputs."""
    del shapes


def plain(name: str) -> str:
    """Return an output's name without case and TensorFlow's ``:0``."""
    return name.split(":", maxsplit=1)[0].lower()


def by_name(outputs: Sequence[TensorSpec], names: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Return which output is which, for those that are named as is usual."""
    return {
        role: tensor.name
        for role, usual in names.items()
        for tensor in outputs
        if plain(tensor.name) in usual
    }


def only(found: Sequence[TensorSpec], wanted: str) -> Roles | Misfit:
    """Return the one output that fits, in the role ``"output"``."""
    if len(found) == 1:
        return {"output": found[0].name}
    if not found:
        return Misfit(f"no output is {wanted}")
    names = ", ".join(repr(tensor.name) for tensor in found)
    return Misfit(f"several outputs are: {names}; say which by outputs=[…]")


def has_boxes_apart(outputs: Sequence[TensorSpec]) -> bool:
    """Return whether some output is boxes and nothing else, ``[N, M, 4]``."""
    return any(len(tensor.shape) == 3 and tensor.shape[2] == 4 for tensor in outputs)


def boxes_apart(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """Return the output ``[N, M, 4]``, if there is exactly one."""
    found = [tensor for tensor in outputs if len(tensor.shape) == 3 and tensor.shape[2] == 4]
    return found[0] if len(found) == 1 else None


def same(one: int, other: int) -> bool:
    """Return whether two axes may be of the same length; -1 is free."""
    return one == other or -1 in (one, other)
