"""Measure tritonasync beside its peers, in one run on one server: ``python -m benchmarks``.

Exits with 0 if every goal that was measured is met, or, comparing, if nothing regressed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import compare, report, tables, thresholds
from benchmarks.goals import all_met, judge
from benchmarks.results import Results, ResultsError, load, to_json
from benchmarks.session import IN_PROCESS, WHEN_NAMED, measure
from benchmarks.workloads import BY_NAME, PARTS, WORKLOADS

OUTPUT = Path("bench-output")
USUAL = (
    *(name for name in IN_PROCESS if name not in WHEN_NAMED),
    *(workload.name for workload in WORKLOADS),
)
NAMES = (*IN_PROCESS, *PARTS, *BY_NAME)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"names: {', '.join(USUAL)}; and only when named: "
        f"{', '.join(name for name in NAMES if name not in USUAL)}",
    )
    made.add_argument(
        "--quick", action="store_true", help="fewer clients, workloads and rounds: under 2 minutes"
    )
    made.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help="measure only these")
    made.add_argument("--rounds", type=_count, help="rounds of each workload")
    made.add_argument("--seconds", type=_seconds, help="seconds of each client's round")
    made.add_argument("--json", type=Path, default=OUTPUT / "bench.json", help="[%(default)s]")
    made.add_argument("--html", type=Path, default=OUTPUT / "bench.html", help="[%(default)s]")
    made.add_argument("--plots", type=Path, metavar="FOLDER", help="write each chart as SVG, too")
    made.add_argument(
        "--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"),
        help="measure nothing: name what became worse between two JSON files, beyond noise",
    )  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    options = parser().parse_args(arguments)
    if options.compare:
        return _compare(*options.compare)
    results = measure(
        options.only or USUAL,
        quick=options.quick,
        rounds=options.rounds,
        seconds=options.seconds,
        say=_say,
        show=_show,
    )
    if found := thresholds.steps(results):
        _show(tables.threshold_lines(found))
    verdicts = judge(results)
    _show(tables.verdict_lines(verdicts))
    _write(options.json, to_json(results))
    _write(options.html, report.page(results, verdicts))
    if options.plots:
        for name, chart in report.plots(results).items():
            _write(options.plots / f"{name}.svg", chart)
    return 0 if all_met(verdicts) else 1


def _compare(before: Path, after: Path) -> int:
    try:
        runs: tuple[Results, Results] = (load(before), load(after))
    except ResultsError as error:
        _say(str(error))
        return 2
    changes = compare.changes(*runs)
    if runs[0].taken.machine.get("processor") != runs[1].taken.machine.get("processor"):
        _say("the two runs are of different machines")
    if any(run.taken.settings.get("quick") == "yes" for run in runs):
        _say("a quick run has few and short rounds: repeat what it finds with a full one")
    _show(tables.change_lines(changes))
    return 1 if any(change.regressed for change in changes) else 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}")


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 600:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and below 600")
    return value


if __name__ == "__main__":
    sys.exit(main())
