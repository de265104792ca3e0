"""Which family reads a model's outputs: by name, or told by names and shapes.

Invariants: there is one answer or an error that lists the outputs, and each family tried with what
it wants and why it does not fit. Outputs told by name win over those told by shape alone, and
families of several outputs over those of one (a model with boxes in an output of their own may well
have raw scores in another).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from tritonasync.core.errors import ConfigurationError, ProtocolError
from tritonasync.core.values import Array, TensorSpec
from tritonasync.handles.slot import tensor_text
from tritonasync.handles.vision.decoding.candidates import Candidates
from tritonasync.handles.vision.decoding.detr import DETR
from tritonasync.handles.vision.decoding.family import (
    Contradiction,
    DecoderName,
    Family,
    Known,
    Misfit,
    Roles,
    plain,
)
from tritonasync.handles.vision.decoding.listed import LISTED
from tritonasync.handles.vision.decoding.yolo import YOLO

Choice: TypeAlias = DecoderName | Literal["auto"]

FAMILIES: Final[Mapping[DecoderName, Family]] = {
    family.name: family for family in (*YOLO, *LISTED, *DETR)
}

CHOICES: Final[tuple[str, ...]] = ("auto", *FAMILIES)

ROLES: Final = frozenset(role for family in FAMILIES.values() for role in family.roles)


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A family with the outputs of a model that it reads.

    Attributes:
        family: The family.
        roles: Which output is which.
        model: The model's name, for errors.
    """

    family: Family
    roles: Roles
    model: str

    @property
    def by_name(self) -> bool:
        """Whether the outputs are named as is usual in the family, each of them."""
        names = self.family.roles
        return all(plain(output) in names[role] for role, output in self.roles.items())

    def classes(self, outputs: Mapping[str, Array]) -> int | None:
        """Return how many classes the outputs have, if it shows."""
        return self.family.classes({role: outputs[name].shape for role, name in self.roles.items()})

    def decode(self, outputs: Mapping[str, Array], floor: float, rows: int) -> list[Candidates]:
        """Return the candidates of each image whose score is above ``floor``.

        Raises:
            ProtocolError: The outputs contradict themselves.
        """
        tensors = {role: outputs[name] for role, name in self.roles.items()}
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are sorted out later
            try:
                return self.family.decode(tensors, floor, rows)
            except Contradiction as error:
                raise ProtocolError(f"model {self.model!r}: {error}", model=self.model) from error


def choose(name: Choice, outputs: Sequence[TensorSpec], known: Known, *, model: str) -> Reader:
    """Return who reads a model's outputs.

    Args:
        name: The family asked for, or ``"auto"``.
        outputs: The outputs; axes may be free (-1).
        known: What else is known of the model.
        model: The model's name, for the error.

    Raises:
        ConfigurationError: There is no one answer.
    """
    tried = list(FAMILIES.values()) if name == "auto" else [FAMILIES[name]]
    known = replace(known, asked=name != "auto")
    fits: list[Reader] = []
    reasons: dict[Family, str] = {}
    for family in tried:
        found = _fitted(family, outputs, known)
        if isinstance(found, Misfit):
            reasons[family] = found.reason
        else:
            fits.append(Reader(family, found, model))
    fits = [reader for reader in fits if reader.by_name] or fits
    if len(fits) == 1:
        return fits[0]
    got = "; ".join(tensor_text(tensor, batched=known.batched) for tensor in outputs) or "none"
    message = _several(fits, got) if fits else _none(name, reasons, got)
    raise ConfigurationError(f"model {model!r}: {message}", model=model)


def _fitted(family: Family, outputs: Sequence[TensorSpec], known: Known) -> Roles | Misfit:
    if strange := [role for role in known.roles if role not in family.roles]:
        return Misfit(f"it reads {', '.join(family.roles)}, not {', '.join(strange)}")
    return family.fit(outputs, known)


def _several(fits: Sequence[Reader], got: str) -> str:
    names = " or ".join(f"decode={reader.family.name!r}" for reader in fits)
    wants = "; ".join(f"{reader.family.name!r} reads {reader.family.wants}" for reader in fits)
    return f"several decoders fit its outputs {got}: {wants}. Say which by {names}"


def _none(name: Choice, reasons: Mapping[Family, str], got: str) -> str:
    fault = "no decoder fits" if name == "auto" else f"the decoder {name!r} does not fit"
    tried = "; ".join(
        f"{family.name!r} reads {family.wants}, but {reason}" for family, reason in reasons.items()
    )
    message = f"{fault} its outputs {got}. Tried: {tried}. Give a function as decode=…"
    return f"{message}, or a decoder's name if the shapes mislead" if name == "auto" else message
