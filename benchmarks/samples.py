"""How figures are told: medians with their spread, ratios round by round.

Owns: the statistics, without I/O. A machine's speed drifts by tens of percent within minutes; two
sides that ran in the same round drifted together, so their ratio is taken in each round, and the
median of these is what is told.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """What several rounds gave.

    Attributes:
        values: One of each round, at least one.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a spread needs at least one value")

    @property
    def median(self) -> float:
        """The value in the middle."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The greatest."""
        return max(self.values)

    @property
    def noise(self) -> float:
        """Half of the range, as a share of the median; 0 where the median is 0."""
        return (self.high - self.low) / 2 / abs(self.median) if self.median else 0.0


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Spread | None:
    """Return ours over theirs by round; ``None`` if no round has both, or theirs is 0."""
    pairs = [(value, theirs[number]) for number, value in ours.items() if theirs.get(number)]
    return Spread(tuple(mine / other for mine, other in pairs)) if pairs else None


def spread(values: Mapping[int, float]) -> Spread | None:
    """Return the values of all rounds; ``None`` if there are none."""
    return Spread(tuple(values.values())) if values else None


@dataclass(frozen=True, slots=True)
class Figure:
    """A comparison within one process: a value of ours and of theirs from each round.

    Attributes:
        name: What was done.
        unit: Of the values; less is better.
        ours: One of each round.
        theirs: The same, of the stock client.
        goal: The most that the ratio should be; ``None`` if there is none.
    """

    name: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    goal: float | None

    @property
    def ratio(self) -> Spread:
        """Ours over theirs, round by round."""
        return Spread(tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True)))
