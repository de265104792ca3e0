"""Names of classes: given by the user, in a file, known to the model's server, or else numbers.

Owns: the option ``labels``, which source counts, and the row that a server is asked with. Refuses
to know: how a server is asked, and where a model's folder is (the catalog does).

Invariants: what the user gave always counts, and must name as many classes as there are; of the
names that come with a model, missing and empty ones are numbers, and those beyond the classes are
left out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
from anyio import Lock, move_on_after

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConfigurationError
from tritonasync.core.names import read_names
from tritonasync.core.offload import in_worker
from tritonasync.core.ports import ModelCatalog
from tritonasync.core.values import Call, ClassQuestion, InputTensor, Reply, TensorSpec
from tritonasync.handles.binding import Binding
from tritonasync.handles.devices import on_device

LabelsLike: TypeAlias = Sequence[str] | str | os.PathLike[str]
"""Names in the order of the classes, or the path of a file with one name a line."""


class LabelSource:
    """Where one handle's names of classes come from.

    A handle's ``_lacks`` and ``_learn`` call :meth:`lacks` and :meth:`learn`; after them
    :meth:`of` and :attr:`names` tell what is known.

    Args:
        subject: Whose labels they are, for messages: ``"classifier 'digits'"``.
        labels: The user's option; ``None`` for the names that come with the model.
        catalog: Knows those.
        model: The model's name, for errors.
        ask: Whether its server may be asked, if it has a file of them that is not here: by one more
            call of the model, so that the output must be one of scores.

    Raises:
        ConfigurationError: ``labels`` is neither a list of strings nor a path.
    """

    def __init__(
        self,
        subject: str,
        labels: LabelsLike | None,
        catalog: ModelCatalog,
        *,
        model: str | None = None,
        ask: bool = False,
    ) -> None:
        self._subject = subject
        self._catalog = catalog
        self._model = model
        self._ask = ask
        self._path = _path_of(subject, labels)
        self._given = None if self._path is not None else checked_labels(subject, labels)
        self._found: tuple[str, ...] | None = None
        self._filled: tuple[tuple[str, ...], int, tuple[str, ...]] | None = None
        self._reading = Lock()
        self._bound: tuple[Binding, TensorSpec | None] | None = None

    @property
    def given(self) -> tuple[str, ...] | None:
        """The names that the user gave, in a list or in a file that was read."""
        return self._given

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names as far as they are known now, ``""`` for none; ``None`` if there are none."""
        return self._given or self._found

    def lacks(self, binding: Binding) -> bool:
        """Return whether :meth:`learn` is to be awaited before the names are used."""
        if self._given is not None:
            return False
        if self._path is not None:
            return True
        output = self._labelled(binding)
        if output is None:
            self._found = None
            return False
        spec = binding.spec
        names = self._catalog.known_labels(spec.name, spec.version, output.name, asking=self._ask)
        if names is not None:
            self._found = names or None
        return names is None

    def _labelled(self, binding: Binding) -> TensorSpec | None:
        """Return the first output that has names, if one does."""
        if self._bound is None or self._bound[0] is not binding:
            outputs = (output for output in binding.outputs if output.label_filename)
            self._bound = binding, next(outputs, None)
        return self._bound[1]

    async def learn(
        self,
        binding: Binding,
        deadline: Deadline,
        *,
        inputs: tuple[InputTensor, ...] = (),
        reply: Reply | None = None,
    ) -> None:
        """Read the names, or ask for them with a row of a call that was answered.

        Args:
            binding: What was called.
            deadline: When the caller stops waiting.
            inputs: The call's inputs.
            reply: Its reply; ``None`` to ask no server.

        Raises:
            ConfigurationError: The user's file cannot be read, or names nothing.
            DeadlineExceededError: ``deadline`` passed.
            PoolClosedError: The pool was closed meanwhile.
        """
        if self._path is not None:
            await self._read(self._path, binding.spec.name, deadline)
            return
        output = self._labelled(binding)
        if output is None:
            return
        question = None
        if self._ask and reply is not None:
            question = _question(binding, output, inputs, reply)
        names = await self._catalog.labels(binding.spec, output, question, deadline)
        self._found = names or None

    async def _read(self, path: Path, model: str, deadline: Deadline) -> None:
        with move_on_after(deadline.remaining()):
            async with self._reading:  # once, however many begin with it
                if self._given is None:
                    read = partial(_names_in, path, self._subject)
                    self._given = await in_worker(read, deadline=NEVER, model=model)
            return
        raise deadline.error("metadata", model=model)

    def of(self, classes: int) -> tuple[str, ...]:
        """Return the names of so many classes.

        Raises:
            ConfigurationError: The user gave another number of names.
        """
        given = self._given
        if given is not None:
            if len(given) != classes:
                raise self.misfit(classes)
            return given
        found = self._found
        if found is None:
            return numbers(classes)
        filled = self._filled
        if filled is None or filled[0] is not found or filled[1] != classes:
            filled = self._filled = found, classes, _numbered(found[:classes], classes)
        return filled[2]

    def misfit(self, classes: int) -> ConfigurationError:
        """Return the error that the user gave another number of names than there are classes."""
        where = "" if self._path is None else f" in {str(self._path)!r}"
        return ConfigurationError(
            f"{self._subject}: expected {classes} labels, one for each class of the model's "
            f"output, got {len(self._given or ())}{where}",
            model=self._model,
        )


def _path_of(subject: str, labels: object) -> Path | None:
    if not _is_path(labels):
        return None
    try:
        path = Path(cast("str", labels))
    except TypeError:  # of bytes
        path = None
    if path is None or labels == "":
        raise _neither(subject, labels)
    return path.expanduser()


def _is_path(labels: object) -> bool:
    return isinstance(labels, str | os.PathLike)


def _names_in(path: Path, subject: str) -> tuple[str, ...]:
    """Return the names in a user's file; blocks."""
    try:
        names = read_names(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{subject}: labels={str(path)!r} is no file that can be read: {error}. It is the path "
            "of a file with one name a line; give names themselves in a list"
        ) from error
    if not names:
        raise ConfigurationError(f"{subject}: there are no labels in {str(path)!r}")
    return _numbered(names, len(names))


def _numbered(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Return so many names: numbers for those that are empty or missing."""
    rest = numbers(count)
    return (*[name or rest[i] for i, name in enumerate(names)], *rest[len(names) :])


def _question(
    binding: Binding, output: TensorSpec, inputs: tuple[InputTensor, ...], reply: Reply
) -> ClassQuestion | None:
    """Return the question with the first row whose scores are numbers, if there is one.

    A server sorts the classes by score. That is not defined with a NaN among them: C++'s sort may
    leave its array.
    """
    scores = reply.outputs.get(output.name)
    if scores is not None and binding.alone:
        scores = scores[np.newaxis]
    if scores is None or scores.ndim < 2 or not scores.size:
        return None
    by_row = scores.reshape(len(scores), -1)
    row = 0
    if by_row.dtype.kind == "f":
        spoilt: npt.NDArray[np.bool_] = np.asarray(np.isnan(by_row).any(axis=1))
        row = int(spoilt.argmin())
        if spoilt[row]:
            return None
    if any(len(tensor.parts) != 1 for tensor in inputs):
        return None
    # Copied: the question may outlive the call whose arrays these are.
    one = tuple(_only(tensor, None if binding.alone else row) for tensor in inputs)
    spec = binding.spec
    call = Call(spec.name, spec.version, one, binding.call_rows(1), device=on_device(one))
    return ClassQuestion(call, output.name, by_row.shape[1])


def _only(tensor: InputTensor, row: int | None) -> InputTensor:
    """Return a copy of one row of a tensor, or of all of it."""
    (part,) = tensor.parts
    if row is None:
        return replace(tensor, parts=(part.copy(),))
    return replace(tensor, shape=(1, *tensor.shape[1:]), parts=(part[row : row + 1].copy(),))


def checked_labels(subject: str, labels: object) -> tuple[str, ...] | None:
    """Return labels as a tuple of strings.

    Raises:
        ConfigurationError: They are no list, or not all strings, or none.
    """
    if labels is None:
        return None
    given = _plain(labels)
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        items = cast("Sequence[object]", given)
        names = tuple([name for name in items if isinstance(name, str)])
        if names and len(names) == len(items):
            return names
    raise _neither(subject, labels)


def _plain(labels: object) -> object:
    return cast("object", labels.tolist()) if isinstance(labels, np.ndarray) else labels


def _neither(subject: str, labels: object) -> ConfigurationError:
    return ConfigurationError(
        f"{subject}: labels is a list of strings, one for each class, or the path of a file with "
        f"one a line, not {labels!r}"
    )


@lru_cache(maxsize=32)
def numbers(count: int) -> tuple[str, ...]:
    """Return the labels of classes that have no names: ``"0"``, ``"1"``, …."""
    return tuple(map(str, range(count)))
