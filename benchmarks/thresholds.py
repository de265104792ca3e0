"""From what size on it pays to place a message in shared memory: the sweep, as one table. Pure.

Owns: what is compared, and when placing pays. Refuses to know: how anything was measured or shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.results import Measure, Results
from benchmarks.samples import Spread, ratio
from benchmarks.workloads import PLACING, SIZES, SWEEP, size_text

COMPARED: tuple[tuple[str, Measure], ...] = (
    ("rows/s", "rows_per_s"),
    ("client CPU", "cpu_us_per_row"),
    ("p50", "p50_us"),
)
"""Ratios of placed to on the wire; of the first more is better, of the others less."""

TITLE = "In shared memory against on the wire, each call alone"


@dataclass(frozen=True, slots=True)
class Step:
    """One size of message, with one number of callers.

    Attributes:
        nbytes: Of the input, and of the output.
        callers: How many.
        ratios: Of each measure of :data:`COMPARED`, in that order; ``None`` where there is none.
    """

    nbytes: int
    callers: int
    ratios: tuple[Spread | None, ...]

    def pays(self, index: int) -> bool:
        """Whether placing is better by a measure: by the median of the rounds' ratios."""
        found = self.ratios[index]
        if found is None:
            return False
        return found.median > 1 if index == 0 else found.median < 1


def steps(results: Results) -> list[Step]:
    """Return what was measured of the sweep, by callers and size."""
    found = []
    for callers, sweep in SWEEP.items():
        for nbytes, workload in zip(SIZES, sweep, strict=True):
            ratios = tuple(
                ratio(*(results.series(workload.name, client, measure) for client in PLACING))
                for _, measure in COMPARED
            )
            if any(ratios):
                found.append(Step(nbytes, callers, ratios))
    return found


def threshold(found: Sequence[Step], callers: int, index: int) -> int | None:
    """Return the size from which on placing is always better by a measure; ``None`` for never."""
    least: int | None = None
    for step in sorted(found, key=lambda step: -step.nbytes):
        if step.callers == callers:
            if not step.pays(index):
                break
            least = step.nbytes
    return least


def conclusions(found: Sequence[Step]) -> list[str]:
    """Return for every number of callers, in a sentence, from where on placing pays."""
    said = []
    for callers in dict.fromkeys(step.callers for step in found):
        parts = []
        for index, (heading, _) in enumerate(COMPARED):
            least = threshold(found, callers, index)
            since = "never" if least is None else f"from {size_text(least)} on"
            parts.append(f"in {heading} {since}")
        said.append(f"{_who(callers)}: placing is better {', '.join(parts)}")
    return said


def label(step: Step) -> str:
    """Return what a step is called."""
    return f"{size_text(step.nbytes)}, {_who(step.callers)}"


def _who(callers: int) -> str:
    return "one caller" if callers == 1 else f"{callers} callers"
