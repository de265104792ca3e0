"""Results as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compare import Change
from benchmarks.goals import Verdict, number, told
from benchmarks.peers import TITLES
from benchmarks.results import Measure, Results
from benchmarks.samples import Figure, spread
from benchmarks.thresholds import COMPARED, TITLE, Step, conclusions, label
from benchmarks.workloads import BY_NAME

COLUMNS: tuple[tuple[str, Measure], ...] = (
    ("rows/s", "rows_per_s"),
    ("CPU µs/row", "cpu_us_per_row"),
    ("p50 µs", "p50_us"),
    ("p99 µs", "p99_us"),
    ("RSS MiB", "peak_rss_mib"),
    ("rows/batch", "rows_per_execution"),
    ("limit share", "limit_share"),
    ("stall ms", "stall_ms"),
    ("typical ms", "typical_stall_ms"),
    ("by the clock ms", "gross_stall_ms"),
    ("idle ms", "idle_stall_ms"),
    ("on streams", "on_streams"),
    ("copies/row", "copies_per_row"),
    ("shared", "placed_share"),
    ("registrations/call", "registrations_per_call"),
)


def columns(results: Results, workload: str) -> list[tuple[str, Measure]]:
    """Return heading and measure of what any client of a workload has."""
    clients = results.clients_of(workload)
    return [
        (heading, measure)
        for heading, measure in COLUMNS
        if any(results.series(workload, client, measure) for client in clients)
    ]


def cells(results: Results, workload: str, client: str) -> list[str]:
    """Return a client's medians, those of rows/s with their spread, and a note on its errors."""
    row = []
    for _, measure in columns(results, workload):
        values = spread(results.series(workload, client, measure))
        if values is None:
            row.append("–")
        else:
            row.append(told(values) if measure == "rows_per_s" else number(values.median))
    errors = results.errors(workload, client)
    row.append(f"{errors} errors" if errors else "")
    return row


def workload_lines(results: Results, workload: str) -> Iterator[str]:
    """Yield the table of one workload."""
    yield ""
    yield BY_NAME[workload].title if workload in BY_NAME else workload
    headings = ["", *(heading for heading, _ in columns(results, workload)), ""]
    rows = [
        [TITLES.get(client, client), *cells(results, workload, client)]
        for client in results.clients_of(workload)
    ]
    yield from aligned([headings, *rows])


def figure_lines(name: str, figures: Sequence[Figure]) -> Iterator[str]:
    """Yield the table of comparisons in one process."""
    yield ""
    yield name
    rows = [["", "ours", "theirs", "ratio (spread)"]]
    rows += [figure_cells(figure) for figure in figures]
    yield from aligned(rows)


def figure_cells(figure: Figure) -> list[str]:
    """Return the cells of one comparison."""
    sides = [spread(dict(enumerate(side))) for side in (figure.ours, figure.theirs)]
    medians = [f"{number(side.median)} {figure.unit}" for side in sides if side is not None]
    return [figure.name, *medians, told(figure.ratio, "×")]


def threshold_lines(steps: Sequence[Step]) -> Iterator[str]:
    """Yield the table of the sweep of sizes, and what follows from it."""
    yield ""
    yield TITLE
    headings = ["", *(heading for heading, _ in COMPARED)]
    yield from aligned([headings, *(threshold_cells(step) for step in steps)])
    yield from conclusions(steps)


def threshold_cells(step: Step) -> list[str]:
    """Return the cells of one size."""
    ratios = ("–" if each is None else told(each, "×") for each in step.ratios)
    return [label(step), *ratios]


def verdict_lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield the table of goals."""
    yield ""
    rows = [["performance to reach", "goal", "measured (spread over rounds)", ""]]
    rows += [[v.work, v.wanted, v.measured, v.met.value] for v in verdicts]
    yield from aligned(rows, left={0, 2, 3})


def change_lines(changes: Sequence[Change]) -> Iterator[str]:
    """Yield what changed beyond noise, regressions first."""
    rows = [
        [
            "REGRESSED" if change.regressed else "improved",
            change.name,
            told(change.before),
            told(change.after),
            f"{change.difference:+.0%}, noise {change.allowed:.0%}",
        ]
        for change in sorted(changes, key=lambda change: change.difference)
        if change.regressed or change.improved
    ]
    if rows:
        yield from aligned(rows, left={0, 1})
    worse = sum(change.regressed for change in changes)
    yield f"{len(changes)} figures compared, {worse} regressed"


def aligned(rows: Sequence[Sequence[str]], left: set[int] | None = None) -> Iterator[str]:
    """Yield rows with columns of one width; the first column to the left, unless told."""
    left = {0} if left is None else left
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        parts = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(parts).rstrip()
