"""What a classifier answers: scores by class, and the best class of each row.

Owns: the results' form. Refuses to know: models, activations.

Invariants: of two classes with equal scores the first is the better; NaN is worse than any number,
so a row of nothing but NaN is of class 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

Scores: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.int64]
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | None"
"""What :mod:`json` can write."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class and its score.

    Attributes:
        label: The class's name.
        index: The class's number.
        score: Its score.
    """

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """The classes of one item.

    Attributes:
        label: The best class's name.
        index: The best class's number.
        score: The best class's score.
        scores: float32 ``[C]``, the scores of all classes; a view on the batch's.
        classes: The names of all classes.
    """

    label: str
    index: int
    score: float
    scores: Scores = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)

    def top(self, k: int) -> tuple[ClassScore, ...]:
        """Return the ``k`` best classes, best first; all if there are fewer.

        Raises:
            ValueError: ``k`` is below 1.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, not {k}")
        best = map(int, _ranked(self.scores)[:k])
        return tuple(ClassScore(self.classes[i], i, float(self.scores[i])) for i in best)

    def to_dict(self) -> dict[str, Json]:
        """Return label, index and score, ready for JSON."""
        return {"label": self.label, "index": self.index, "score": self.score}


class Classifications(Sequence[Classification]):
    """The classes of a batch: a sequence of one :class:`Classification` a row.

    Attributes:
        scores: float32 ``[N, C]``. A read-only view on the received message if the model gives
            FP32 and the activation is ``"none"``.
        classes: The names of all classes.
        model: The model that answered.
        version: The version that answered.
    """

    __slots__ = ("_indices", "_labels", "classes", "model", "scores", "version")

    def __init__(
        self, scores: Scores, classes: tuple[str, ...], *, model: str = "", version: str = ""
    ) -> None:
        self.scores = scores
        self.classes = classes
        self.model = model
        self.version = version
        self._indices: Indices | None = None
        self._labels: tuple[str, ...] | None = None

    @property
    def indices(self) -> Indices:
        """The best class of each row, int64 ``[N]``."""
        if self._indices is None:
            self._indices = _best(self.scores)
        return self._indices

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each row's best class, ``[N]``."""
        if self._labels is None:
            self._labels = tuple(self.classes[index] for index in map(int, self.indices))
        return self._labels

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, key: int) -> Classification: ...

    @overload
    def __getitem__(self, key: slice) -> Classifications: ...

    def __getitem__(self, key: int | slice) -> Classification | Classifications:
        if isinstance(key, slice):
            return Classifications(
                self.scores[key], self.classes, model=self.model, version=self.version
            )
        return classification(self.scores[key], self.classes)

    def __iter__(self) -> Iterator[Classification]:
        return (self[row] for row in range(len(self)))

    def to_dict(self) -> dict[str, Json]:
        """Return model, version and the best class of each row, ready for JSON."""
        rows: list[Json] = [row.to_dict() for row in self]
        return {"model": self.model, "version": self.version, "classifications": rows}

    def __repr__(self) -> str:
        shown = ", ".join(f"{row.label} {row.score:.3g}" for row in self[:4])
        more = ", …" if len(self) > 4 else ""
        return f"<Classifications of {self.model!r}, {len(self)} rows: {shown}{more}>"


def classification(scores: Scores, classes: tuple[str, ...]) -> Classification:
    """Return the classification of one item by its scores ``[C]``."""
    index = int(scores.argmax())
    score = float(scores[index])
    if math.isnan(score):  # argmax takes NaN for the highest
        index = int(_ranked(scores)[0])
        score = float(scores[index])
    return Classification(classes[index], index, score, scores, classes)


def _best(scores: Scores) -> Indices:
    best = _ranked(scores)[:, 0] if np.isnan(scores).any() else scores.argmax(axis=1)
    return np.asarray(best, dtype=np.int64)


def _ranked(scores: Scores) -> Indices:
    """Return the classes of each row, best first; NaN goes to the end."""
    return np.asarray(np.argsort(-scores, axis=-1, kind="stable"), dtype=np.int64)
