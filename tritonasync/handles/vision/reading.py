"""From a detector's reply to detections: who reads the outputs, how classes are named.

Owns: the option ``decode``, what it and an architecture may give, and labels by class number.
Refuses to know: how images came into the model's input, but for where they lie in it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.values import Array, Reply, TensorSpec
from tritonasync.handles.binding import Binding
from tritonasync.handles.labels import LabelSource
from tritonasync.handles.vision.decoding.candidates import Candidates, Decoder
from tritonasync.handles.vision.decoding.choice import CHOICES, ROLES, Choice, Reader, choose
from tritonasync.handles.vision.decoding.family import Known
from tritonasync.handles.vision.decoding.reply import any_free, arrays, seen
from tritonasync.handles.vision.detections import Detections
from tritonasync.handles.vision.selection import (
    IOU,
    Selection,
    check_thresholds,
    detected,
    faults_of,
)
from tritonasync.processing.images import Placement

DecoderChoice: TypeAlias = Choice | Decoder
"""A decoder by name, ``"auto"`` to tell by the outputs, or a function."""

OutputChoice: TypeAlias = Sequence[str] | Mapping[str, str] | None
"""The outputs to read by name, or by what they hold: ``{"boxes": "OUT_1", "scores": …}``."""

Size: TypeAlias = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """What is remembered of the images of a call.

    Attributes:
        places: Where each lies in the model's input.
        size: How large that is.
        fixed: How large it always is; ``None`` if that differs.
    """

    places: Sequence[Placement]
    size: Size
    fixed: Size | None


class Reading:
    """How one handle reads replies.

    Args:
        model: The model's name.
        labels: Names of classes.
        decode: The user's option.
        roles: Which output is which, as the user said.
        selection: What is to be left of the candidates.

    Raises:
        ConfigurationError: An option makes no sense.
    """

    def __init__(
        self,
        model: str,
        labels: LabelSource,
        decode: DecoderChoice,
        *,
        roles: Mapping[str, str],
        selection: Selection,
    ) -> None:
        self._model = model
        self._subject = f"detector {model!r}"
        self._labels = labels
        self._choice: Choice | None = None if callable(decode) else decode
        self._function: Decoder | None = decode if callable(decode) else None
        self._roles = roles
        self._selection = selection
        self._last: tuple[object, Reader] | None = None
        _check_options(self._subject, decode, selection)
        if labels.given is not None:
            check_thresholds(selection, labels.given, self._subject)

    def check(self, binding: Binding, size: Size | None) -> None:
        """Refuse a model whose outputs fit no decoder, if that can be told before a call.

        Raises:
            ConfigurationError: No decoder fits, or several do.
        """
        if self._choice is None or any_free(binding.outputs) or self._labels.lacks(binding):
            return  # labels tell some decoders apart
        self._reader(self._choice, binding, binding.outputs, size)

    def detections(
        self, binding: Binding, reply: Reply, rows: int, placed: Placed
    ) -> list[Detections]:
        """Return the detections of each image.

        Raises:
            ConfigurationError: No one decoder fits the outputs, or labels do not fit the classes,
                or a function of the user's gave something else than candidates.
            ProtocolError: The reply lacks an output, or has another number of rows.
        """
        found, selection = self._candidates(binding, reply, rows, placed)
        return [
            self._detected(one, selection, place, placed.size)
            for one, place in zip(found, placed.places, strict=True)
        ]

    def adopted(self, made: object, rows: int) -> list[Detections]:
        """Return what an architecture's ``postprocess`` gave as detections.

        Detections are taken as they are. Candidates are sifted, freed of duplicates, cut to the
        image and named as those of a decoder; they are in the image already.

        Raises:
            ConfigurationError: It is something else, or not one for each image.
        """
        return [self._adopted(result) for result in self._each(made, rows, "postprocess")]

    def _adopted(self, result: object) -> Detections:
        if isinstance(result, Detections):
            return result
        if not isinstance(result, Candidates):
            raise self._wrong("postprocess to give Detections or Candidates", type(result).__name__)
        if result.image_size is None:
            raise self._wrong(
                "the Candidates of postprocess to be in an image of image_size=(height, width)",
                "image_size=None",
            )
        return self._detected(result, self._settled(None), None, None)

    def _candidates(
        self, binding: Binding, reply: Reply, rows: int, placed: Placed
    ) -> tuple[Sequence[Candidates], Selection]:
        if self._function is not None:
            outputs = arrays(binding, reply, rows, None, by_row=binding.batched)
            return self._by_function(self._function, outputs, rows), self._settled(None)
        assert self._choice is not None  # noqa: S101 - it is one or the other
        reader = self._reader(self._choice, binding, seen(binding, reply, rows), placed.fixed)
        names = reader.roles.values()
        outputs = arrays(binding, reply, rows, names, by_row=reader.family.by_row)
        self._check_labels(reader.classes(outputs))
        return reader.decode(outputs, self._selection.floor, rows), self._settled(reader)

    def _by_function(
        self, decode: Decoder, outputs: Mapping[str, Array], rows: int
    ) -> Sequence[Candidates]:
        found = self._each(decode(outputs), rows, "decode")
        for one in found:
            if not isinstance(one, Candidates):
                raise self._wrong("decode to give Candidates", type(one).__name__)
        return cast("Sequence[Candidates]", found)

    def _each(self, made: object, rows: int, whose: str) -> Sequence[object]:
        """Return what a function of the user's made, if it is one for each image."""
        expected = f"{whose} to give a list of one for each image, {rows} in all"
        if not isinstance(made, Sequence) or isinstance(made, Detections | str | bytes):
            raise self._wrong(expected, type(made).__name__)
        results = cast("Sequence[object]", made)
        if len(results) != rows:
            raise self._wrong(expected, str(len(results)))
        return results

    def _reader(
        self, choice: Choice, binding: Binding, outputs: tuple[TensorSpec, ...], size: Size | None
    ) -> Reader:
        """Return who reads outputs of these shapes; chosen anew only when something differs."""
        labels = self._labels.names
        key = (binding, outputs, labels, size)
        last = self._last  # worker threads of other calls may put theirs meanwhile
        if last is None or last[0] != key:
            known = Known(
                labels=None if labels is None else len(labels),
                size=size,
                batched=binding.batched,
                roles=self._roles,
            )
            last = self._last = key, choose(choice, outputs, known, model=self._model)
        return last[1]

    def _settled(self, reader: Reader | None) -> Selection:
        """Return what is to be left, with what goes by the decoder filled in."""
        given = self._selection
        suppressed = reader is not None and reader.family.suppressed
        iou = given.iou if given.iou != "auto" else None if suppressed else IOU
        first = 0 if reader is None else reader.family.first_class
        offset = first if given.class_offset is None else given.class_offset
        return replace(given, iou=iou, class_offset=offset)

    def _detected(
        self, found: Candidates, selection: Selection, place: Placement | None, size: Size | None
    ) -> Detections:
        return detected(
            found,
            selection,
            place,
            size,
            labels=self._labels.names,
            naming=self._named,
            subject=self._subject,
        )

    # --- classes ---

    def _named(self, class_ids: npt.NDArray[np.int64]) -> tuple[str, ...]:
        """Return the names of classes: of the user's all must be there, of a model's some may lack.

        Raises:
            ConfigurationError: The user's labels end before a class.
        """
        names = self._labels.names or ()
        numbers: list[int] = class_ids.tolist()
        given = self._labels.given
        if given is not None and numbers and max(numbers) >= len(given):
            raise self._wrong(
                f"labels for all classes, also for class {max(numbers)} that the model gave",
                f"{len(given)} labels",
            )
        return tuple(
            names[number] if number < len(names) and names[number] else str(number)
            for number in numbers
        )

    def _check_labels(self, classes: int | None) -> None:
        """Refuse labels of the user's that are not as many as the model's classes, if that shows.

        Raises:
            ConfigurationError: There are more or less of them.
        """
        given, first = self._labels.given, self._selection.class_offset or 0
        if given is not None and classes is not None and len(given) != classes - first:
            raise self._labels.misfit(classes - first)

    def _wrong(self, expected: str, got: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self._subject}: expected {expected}, got {got}", model=self._model
        )


# --- options -----------------------------------------------------------------------------------


def output_names(subject: str, outputs: OutputChoice) -> tuple[str, ...] | None:
    """Return the names of the outputs that are read, ``None`` for all.

    Raises:
        ConfigurationError: They are neither a list of names nor names by what they hold.
    """
    if outputs is None:
        return None
    given = cast("object", outputs)
    if isinstance(given, Mapping):
        roles = cast("Mapping[object, object]", given)
        if strange := [role for role in roles if role not in ROLES]:
            raise ConfigurationError(
                f"{subject}: outputs says which is which by {', '.join(sorted(ROLES))}, not by "
                f"{', '.join(map(repr, strange))}"
            )
        given = list(roles.values())
    listed = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    names = cast("Sequence[object]", given) if listed else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"{subject}: outputs is a list of names, not {outputs!r}")
    return tuple(cast("Sequence[str]", names))


def _check_options(subject: str, decode: object, selection: Selection) -> None:
    faults = faults_of(selection)
    if inspect.iscoroutinefunction(decode):
        faults.insert(0, "decode is a plain function, not an async one: it runs in worker threads")
    if not callable(decode) and decode not in CHOICES:
        names = ", ".join(f'"{name}"' for name in CHOICES)
        faults.insert(0, f"decode is {names} or a function, not {decode!r}")
    if faults:
        raise ConfigurationError(f"{subject}: {'; '.join(faults)}")
