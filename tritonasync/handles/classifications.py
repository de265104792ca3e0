"""What a classifier answers: scores by class, and the best classes of each row.

Owns: the results' form. Refuses to know: models, activations, where names come from.

Invariants: of two classes with equal scores the first is the better; NaN is worse than any number,
so a row of nothing but NaN is of class 0; what :mod:`json` is given has no NaN and no infinity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import ClassVar, Final, SupportsIndex, TypeAlias, overload

import numpy as np
import numpy.typing as npt

Scores: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.int64]
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | None"
"""What :mod:`json` can write."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which classes of a row count.

    Attributes:
        top_k: How many at most, best first; ``None`` for one without a threshold, any with one.
        threshold: Those with a score above it; ``None`` for any.
    """

    top_k: int | None = None
    threshold: float | None = None

    @property
    def given(self) -> bool:
        """Whether it is more than the best class."""
        return self.top_k is not None or self.threshold is not None


BEST: Final = Choice()


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

    def to_dict(self) -> dict[str, Json]:
        """Return label, index and score, ready for JSON: ``None`` for a score that is no number."""
        return {"label": self.label, "index": self.index, "score": _number(self.score)}


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """The classes of one item.

    Two are equal if they have the same classes and the same scores.

    Attributes:
        label: The best class's name.
        index: The best class's number.
        score: The best class's score.
        scores: float32 ``[C]``, the scores of all classes; a view on the batch's.
        classes: The names of all classes.
        choice: Which classes count, as the handle was told.
    """

    label: str
    index: int
    score: float
    scores: Scores = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    choice: Choice = field(repr=False, default=BEST)

    @property
    def predictions(self) -> tuple[ClassScore, ...]:
        """The classes that count, best first, by the handle's ``top_k`` and ``threshold``.

        The best class alone if neither was given; none if no score is above the threshold.
        """
        top_k, threshold = self.choice.top_k, self.choice.threshold
        if threshold is not None:
            return self.above(threshold)[:top_k]
        return self.top(top_k or 1)

    def top(self, k: int) -> tuple[ClassScore, ...]:
        """Return the ``k`` best classes, best first; all if there are fewer.

        Raises:
            ValueError: ``k`` is below 1.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, not {k}")
        return self._at(_ranked(self.scores)[:k])

    def above(self, threshold: float) -> tuple[ClassScore, ...]:
        """Return the classes with a score above a threshold, best first: of several labels."""
        ranked = _ranked(self.scores)
        return self._at(ranked[self.scores[ranked] > threshold])

    def _at(self, indices: Indices) -> tuple[ClassScore, ...]:
        scores = self.scores
        return tuple([ClassScore(self.classes[i], i, float(scores[i])) for i in map(int, indices)])

    def to_dict(self) -> dict[str, Json]:
        """Return label, index and score, ready for JSON: ``None`` for a score that is no number.

        With ``"predictions"``, a list of such, if the handle has ``top_k`` or ``threshold``.
        """
        best: dict[str, Json] = {
            "label": self.label,
            "index": self.index,
            "score": _number(self.score),
        }
        if self.choice.given:
            best["predictions"] = [each.to_dict() for each in self.predictions]
        return best

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Classification):
            return NotImplemented
        return self.classes == other.classes and _same(self.scores, other.scores)

    def __hash__(self) -> int:
        return hash((self.label, self.index))


class Classifications(Sequence[Classification]):
    """The classes of a batch: a sequence of one :class:`Classification` a row.

    Two are equal if they have the same classes and the same scores, whoever answered.

    Args:
        scores: float32 ``[N, C]``.
        classes: The names of all classes.
        model: The model that answered.
        version: The version that answered.
        choice: Which classes of a row count.

    Attributes:
        scores: float32 ``[N, C]``. A read-only view on the received message if the model gives
            FP32 and the activation is ``"none"``.
        classes: The names of all classes.
        model: The model that answered.
        version: The version that answered.
        choice: Which classes of a row count, as the handle was told.
    """

    __slots__ = ("_indices", "_labels", "_rows", "choice", "classes", "model", "scores", "version")
    __hash__: ClassVar[None]  # type: ignore[assignment]  # as a list has none

    def __init__(
        self,
        scores: Scores,
        classes: tuple[str, ...],
        *,
        model: str = "",
        version: str = "",
        choice: Choice = BEST,
    ) -> None:
        self.scores: Scores = scores
        self.classes: tuple[str, ...] = classes
        self.model: str = model
        self.version: str = version
        self.choice: Choice = choice
        self._indices: Indices | None = None
        self._rows: tuple[list[int], list[float]] | None = None
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
            self._labels = tuple([self.classes[best] for best in map(int, self.indices)])
        return self._labels

    def _best_of_rows(self) -> tuple[list[int], list[float]]:
        """Return the best class and its score of each row, found for all together."""
        if self._rows is None:
            indices = self.indices
            scores: list[float] = self.scores[np.arange(len(indices)), indices].tolist()
            self._rows = indices.tolist(), scores
        return self._rows

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, key: SupportsIndex) -> Classification: ...

    @overload
    def __getitem__(self, key: slice) -> Classifications: ...

    def __getitem__(self, key: SupportsIndex | slice) -> Classification | Classifications:
        if not isinstance(key, slice):
            indices, scores = self._best_of_rows()
            row = index(key)
            best = indices[row]
            return Classification(
                self.classes[best], best, scores[row], self.scores[row], self.classes, self.choice
            )
        return Classifications(
            self.scores[key],
            self.classes,
            model=self.model,
            version=self.version,
            choice=self.choice,
        )

    def __iter__(self) -> Iterator[Classification]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Classifications):
            return NotImplemented
        return self.classes == other.classes and _same(self.scores, other.scores)

    def to_dict(self) -> dict[str, Json]:
        """Return model, version and what each row's own ``to_dict`` gives, ready for JSON."""
        rows: list[Json] = [row.to_dict() for row in self]
        return {"model": self.model, "version": self.version, "classifications": rows}

    def __repr__(self) -> str:
        shown = ", ".join(f"{row.label} {row.score:.3g}" for row in self[:4])
        more = ", …" if len(self) > 4 else ""
        return f"<Classifications of {self.model!r}, {len(self)} rows: {shown}{more}>"


def _best(scores: Scores) -> Indices:
    best = _ranked(scores)[:, 0] if np.isnan(scores).any() else scores.argmax(axis=1)
    return np.asarray(best, dtype=np.int64)


def _ranked(scores: Scores) -> Indices:
    """Return the classes of each row, best first; NaN goes to the end."""
    return np.asarray(np.argsort(-scores, axis=-1, kind="stable"), dtype=np.int64)


def _same(scores: Scores, others: Scores) -> bool:
    return np.array_equal(scores, others, equal_nan=True)


def _number(score: float) -> float | None:
    """Return a score as JSON has it: there is no NaN and no infinity."""
    return score if math.isfinite(score) else None


def stacked(rows: Sequence[Classification]) -> tuple[Scores, tuple[str, ...]] | None:
    """Return the scores ``[N, C]`` and the classes of rows; ``None`` if these are not the same."""
    classes = rows[0].classes
    if any(row.classes != classes for row in rows):
        return None
    return np.stack([row.scores for row in rows]), classes
