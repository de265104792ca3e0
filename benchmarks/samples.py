"""How figures are taken and told: both sides in turn, medians with their spread, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One comparison: a figure of ours and of theirs from each round."""

    name: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    goal: float | None
    lower_is_better: bool = True

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, round by round, so that a machine's drift cancels out."""
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def met(self) -> bool:
        """Whether the median ratio reaches the goal, if there is one."""
        if self.goal is None:
            return True
        ratio = statistics.median(self.ratios)
        return ratio <= self.goal if self.lower_is_better else ratio >= self.goal

    def line(self) -> str:
        """One line of the table."""
        ratio = statistics.median(self.ratios)
        low, high = min(self.ratios), max(self.ratios)
        goal = "no goal"
        if self.goal is not None:
            sign = "≤" if self.lower_is_better else "≥"
            goal = f"goal {sign} {self.goal:g}×   {'met' if self.met else 'MISSED'}"
        return (
            f"{self.name:<44} {statistics.median(self.ours):>9.1f} "
            f"{statistics.median(self.theirs):>9.1f} {self.unit:<5} "
            f"{ratio:>5.2f}× ({low:.2f} to {high:.2f})   {goal}"
        )


HEADER = f"{'':<44} {'ours':>9} {'theirs':>9}       ratio (spread over rounds)"
