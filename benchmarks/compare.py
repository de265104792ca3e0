"""What became worse between two runs, beyond noise: ``--compare before.json after.json``.

The rule: of every workload that this project's clients ran in both, rows/s, client CPU a row, p50
and p99 are compared. Where tritonclient's ``grpc.aio``, or else its stream, ran in the same rounds,
its figure divides ours first, so that a slower machine is no regression. Stalls of the event loop,
the share of a slow model's limit, and copies a row are compared as they are. A regression is a
median that is worse by more than 5 % and by more than the two runs' noise together, in runs whose
ranges do not overlap. A run's noise is half of the range over its rounds, as a share of the median.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.peers import PEERS
from benchmarks.results import Measure, Results
from benchmarks.samples import Spread, ratio, spread

TOLERANCE = 0.05
REFERENCES = ("aio", "stream")
SUBJECTS = tuple(peer.name for peer in PEERS if peer.name.startswith("ours"))

AS_THEY_ARE: tuple[Measure, ...] = ("limit_share", "stall_ms", "copies_per_row")

HIGHER_IS_BETTER: dict[Measure, bool] = {
    "rows_per_s": True,
    "cpu_us_per_row": False,
    "p50_us": False,
    "p99_us": False,
    "limit_share": True,
    "stall_ms": False,
    "copies_per_row": False,
}


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both runs.

    Attributes:
        name: Workload, client, measure, and whether it is a ratio to tritonclient.
        before: In the first run.
        after: In the second.
        higher_is_better: Whether more is good.
    """

    name: str
    before: Spread
    after: Spread
    higher_is_better: bool

    @property
    def difference(self) -> float:
        """How much the median has changed, as a share of what it was; negative is worse."""
        share = self.after.median / self.before.median - 1 if self.before.median else 0.0
        return share if self.higher_is_better else -share

    @property
    def allowed(self) -> float:
        """How much is noise."""
        return max(TOLERANCE, self.before.noise + self.after.noise)

    @property
    def apart(self) -> bool:
        """Whether no round of one run reaches into the range of the other."""
        return self.after.low > self.before.high or self.after.high < self.before.low

    @property
    def regressed(self) -> bool:
        """Whether it is worse beyond noise."""
        return self.apart and self.difference < -self.allowed

    @property
    def improved(self) -> bool:
        """Whether it is better beyond noise."""
        return self.apart and self.difference > self.allowed


def changes(before: Results, after: Results) -> list[Change]:
    """Return every figure that both runs have."""
    found = list(_of_workloads(before, after))
    found += _of_figures(before, after)
    return found


def _of_workloads(before: Results, after: Results) -> Iterator[Change]:
    for workload in before.workloads():
        for client in SUBJECTS:
            for measure, better in HIGHER_IS_BETTER.items():
                pair = _pair(before, after, workload, client, measure)
                if pair is not None:
                    name, first, second = pair
                    yield Change(name, first, second, better)


def _pair(
    before: Results, after: Results, workload: str, client: str, measure: Measure
) -> tuple[str, Spread, Spread] | None:
    """Return name and figures: ratios if both runs have the reference, else values."""
    runs = (before, after)
    values = [run.series(workload, client, measure) for run in runs]
    name = f"{workload}: {client}, {measure}"
    if measure not in AS_THEY_ARE:
        for reference in REFERENCES:
            references = [run.series(workload, reference, measure) for run in runs]
            first, second = (ratio(a, b) for a, b in zip(values, references, strict=True))
            if first is not None and second is not None:
                return f"{name} against {reference}", first, second
    first, second = (spread(each) for each in values)
    if first is None or second is None:
        return None
    return name, first, second


def _of_figures(before: Results, after: Results) -> Iterator[Change]:
    for name, figures in before.figures.items():
        others = {figure.name: figure for figure in after.figures.get(name, [])}
        for figure in figures:
            if figure.name in others:
                yield Change(
                    f"{name}: {figure.name}",
                    figure.ratio,
                    others[figure.name].ratio,
                    higher_is_better=False,
                )
