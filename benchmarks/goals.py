"""The goals, and whether a run meets them.

Owns: the table of docs and design, "performance to reach", as data, and the judgement. Pure.

A goal is met, missed, or not measured; what was not measured is never met. If calls of ours failed
it is missed, whatever the figures; if calls of the other side failed it is not measured.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.results import Measure, Results
from benchmarks.samples import Figure, Spread, ratio, spread

OURS = "ours"


class Met(enum.Enum):
    """How a goal came out."""

    YES = "met"
    NO = "MISSED"
    UNMEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table.

    Attributes:
        work: What is done.
        measure: What is compared.
        workload: Where it is measured; empty if nothing measures it yet.
        against: Who it is compared with, by name; ``None`` for the value itself.
        bound: The least, or the most.
        at_least: Whether the bound is the least.
        unit: Of the value; a multiplication sign for a ratio.
        reason: Why nothing measures it yet.
    """

    work: str
    measure: Measure
    workload: str
    against: str | None
    bound: float
    at_least: bool
    unit: str = "×"
    reason: str = ""

    @property
    def wanted(self) -> str:
        """The goal as text."""
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{_unit(self.unit)}"

    def reached_by(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a goal came out.

    Attributes:
        work: What is done.
        wanted: The goal as text.
        measured: The median and its spread as text, or why there is none.
        met: The judgement.
    """

    work: str
    wanted: str
    measured: str
    met: Met


def _more(work: str, workload: str, against: str, bound: float) -> Goal:
    return Goal(work, "rows_per_s", workload, against, bound, at_least=True)


def _less(work: str, measure: Measure, workload: str, against: str, bound: float) -> Goal:
    return Goal(work, measure, workload, against, bound, at_least=False)


def _later(work: str, bound: float, reason: str, *, at_least: bool = True) -> Goal:
    return Goal(work, "rows_per_s", "", None, bound, at_least, reason=reason)


GOALS = (
    _more("64 B rows, 1,024 callers: rows/s against tritonclient", "rows-1024", "aio", 40),
    Goal(
        "64 B rows, 1,024 callers: client CPU a row",
        "cpu_us_per_row", "rows-1024", None, 5, at_least=False, unit="µs",
    ),
    _more(
        "64 B rows, 1,024 callers: rows/s against async-batcher", "rows-1024", "async-batcher", 2.5
    ),
    _more("64 B rows, 1,024 callers: rows/s against perf_analyzer", "rows-1024", "perf", 20),
    _more("64 B rows, 64 callers: rows/s against tritonclient", "rows-64", "aio", 8),
    _more("64 B rows, 64 callers: rows/s against async-batcher", "rows-64", "async-batcher", 2.5),
    _more("whole batches, 4 callers: rows/s against tritonclient", "batches", "aio", 1.1),
    _more("whole batches, 4 callers: rows/s against perf_analyzer", "batches", "perf", 0.95),
    _less("64 B rows, one caller: p50 against tritonclient", "p50_us", "rows-1", "aio", 1.0),
    Goal(
        "slow model, 256 callers: share of the server's own limit",
        "limit_share", "slow", None, 0.95, at_least=True, unit="",
    ),
    _less(
        "open loop at half capacity: p99 against batching=None",
        "p99_us", "open", "ours-unbatched", 1.2,
    ),
    Goal(
        "19 MB request: longest stall of the event loop",
        "stall_ms", "stall-send", None, 5, at_least=False, unit="ms",
    ),
    _more("602,112 B rows over the wire, 64 callers: rows/s", "images-64", "aio", 1.2),
    _less(
        "602,112 B rows over the wire, 64 callers: client CPU",
        "cpu_us_per_row", "images-64", "aio", 0.75,
    ),
    _later("602,112 B rows, same host, 64 callers: rows/s", 4.5, "needs shared memory"),
    _later("602,112 B rows, same host: client CPU", 0.125, "needs shared memory", at_least=False),
    _later("decoupled stream, small responses: responses/s", 1.5, "needs the stream transport"),
    _later("1,000,000 requests: slope of RSS", 0, "measured by nox -s soak", at_least=False),
)  # fmt: skip


def judge(results: Results) -> list[Verdict]:
    """Return how every goal came out, those of the comparisons in one process included."""
    verdicts = [_judge(goal, results) for goal in GOALS]
    for figures in results.figures.values():
        verdicts += [_judge_figure(figure) for figure in figures if figure.goal is not None]
    return verdicts


def all_met(verdicts: Sequence[Verdict]) -> bool:
    """Whether no goal that was measured was missed."""
    return not any(verdict.met is Met.NO for verdict in verdicts)


def _judge(goal: Goal, results: Results) -> Verdict:
    if goal.reason:
        return Verdict(goal.work, goal.wanted, goal.reason, Met.UNMEASURED)
    for client, met in ((OURS, Met.NO), (goal.against, Met.UNMEASURED)):
        failed = results.errors(goal.workload, client) if client else 0
        if failed:
            return Verdict(goal.work, goal.wanted, f"{failed} calls of {client} failed", met)
    measured = _measured(goal, results)
    if measured is None:
        return Verdict(goal.work, goal.wanted, _why(goal, results), Met.UNMEASURED)
    met = Met.YES if goal.reached_by(measured.median) else Met.NO
    return Verdict(goal.work, goal.wanted, told(measured, goal.unit), met)


def _measured(goal: Goal, results: Results) -> Spread | None:
    ours = results.series(goal.workload, OURS, goal.measure)
    if goal.against is None:
        return spread(ours)
    return ratio(ours, results.series(goal.workload, goal.against, goal.measure))


def _why(goal: Goal, results: Results) -> str:
    """Return why a goal was not measured in this run."""
    for client in (OURS, goal.against):
        for key in (client, f"{client}/{goal.workload}"):
            if key in results.skipped:
                return f"{client}: {results.skipped[key]}"
    return "not in this run"


def _judge_figure(figure: Figure) -> Verdict:
    goal = figure.goal if figure.goal is not None else float("inf")
    met = Met.YES if figure.ratio.median <= goal else Met.NO
    return Verdict(figure.name, f"≤ {goal:g}×", told(figure.ratio, "×"), met)


def told(measured: Spread, unit: str = "") -> str:
    """Return median and spread as text; ratios so that 1.003 is not told as 1."""
    median, low, high = (
        f"{value:.3f}" if unit == "×" and abs(value) < 10 else number(value)
        for value in (measured.median, measured.low, measured.high)
    )
    return f"{median}{_unit(unit)} ({low} to {high})"


def number(value: float) -> str:
    """Return a number with three digits that count, thousands set apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _unit(unit: str) -> str:
    return unit if unit in {"", "×"} else f" {unit}"
