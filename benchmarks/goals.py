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
        against: Who it is compared with, by name: with the best of them. Empty for the value
            itself.
        bound: The least, or the most.
        at_least: Whether the bound is the least.
        unit: Of the value; a multiplication sign for a ratio.
        reason: Why nothing measures it yet.
        subject: Whose value it is.
    """

    work: str
    measure: Measure
    workload: str
    against: tuple[str, ...]
    bound: float
    at_least: bool
    unit: str = "×"
    reason: str = ""
    subject: str = OURS

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


def _more(work: str, workload: str, against: str, bound: float, subject: str = OURS) -> Goal:
    return Goal(work, "rows_per_s", workload, (against,), bound, at_least=True, subject=subject)


def _less(
    work: str, measure: Measure, workload: str, against: str, bound: float, *, subject: str = OURS
) -> Goal:
    return Goal(work, measure, workload, (against,), bound, at_least=False, subject=subject)


def _most(
    work: str, measure: Measure, workload: str, bound: float, unit: str = "", *, subject: str = OURS
) -> Goal:
    return Goal(work, measure, workload, (), bound, at_least=False, unit=unit, subject=subject)


def _either_way(work: str, workload: str) -> Goal:
    return Goal(
        f"{work}: rows/s of 'auto' against the better of calls and streams",
        "rows_per_s", workload, ("ours-unary", "ours-stream"), 0.95, at_least=True,
        subject="ours-auto",
    )  # fmt: skip


def _later(work: str, bound: float, reason: str, *, at_least: bool = True) -> Goal:
    return Goal(work, "rows_per_s", "", (), bound, at_least, reason=reason)


GOALS = (
    _more("64 B rows, 1,024 callers: rows/s against tritonclient", "rows-1024", "aio", 40),
    _most("64 B rows, 1,024 callers: client CPU a row", "cpu_us_per_row", "rows-1024", 5, "µs"),
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
        "limit_share", "slow", (), 0.95, at_least=True, unit="",
    ),
    _less(
        "open loop at half capacity: p99 against batching=None",
        "p99_us", "open", "ours-unbatched", 1.2,
    ),
    _most("19 MB request: longest stall of the event loop", "stall_ms", "stall-send", 5, "ms"),
    _most(
        "19 MB request over the wire: longest stall of the event loop",
        "stall_ms", "stall-send", 5, "ms", subject="ours-wire",
    ),
    _more("602,112 B rows over the wire, 64 callers: rows/s", "images-64", "aio", 1.2, "ours-wire"),
    _less(
        "602,112 B rows over the wire, 64 callers: client CPU",
        "cpu_us_per_row", "images-64", "aio", 0.75, subject="ours-wire",
    ),
    _more("602,112 B rows, same host, 64 callers: rows/s", "images-64", "aio", 4.5),
    _less(
        "602,112 B rows, same host, 64 callers: client CPU",
        "cpu_us_per_row", "images-64", "aio", 0.125,
    ),
    _most("602,112 B rows, same host: copies a row", "copies_per_row", "images-64", 1),
    _most(
        "602,112 B rows, same host: registrations a call", "registrations_per_call", "images-64", 0
    ),
    _more(
        "602,112 B rows, same host, written in place: rows/s",
        "images-64", "aio", 5.5, "ours-leased",
    ),
    _most(
        "602,112 B rows, same host, written in place: copies a row",
        "copies_per_row", "images-64", 0, subject="ours-leased",
    ),
    _most(
        "602,112 B rows, same host, written in place: registrations a call",
        "registrations_per_call", "images-64", 0, subject="ours-leased",
    ),
    _more(
        "64 B rows on one stream, 64 callers: rows/s against stream_infer",
        "stream-rows-64", "stream", 1.4, "ours-one-stream",
    ),
    _more(
        "64 B rows, 1,024 callers, batches on streams: rows/s against stream_infer",
        "stream-rows-1024", "stream", 40, "ours-batched-stream",
    ),
    _more("decoupled model, small responses: responses/s", "decoupled", "stream", 1.5),
    _less(
        "decoupled model: median time to the first response",
        "p50_us", "first-token", "stream", 1.05,
    ),
    _either_way("64 B rows, one caller", "auto-1"),
    _either_way("64 B rows, 64 callers", "auto-64"),
    _either_way("whole batches, 4 callers", "auto-batches"),
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
    for client in (goal.subject, *goal.against):
        failed = results.errors(goal.workload, client)
        if failed:
            met = Met.NO if client == goal.subject else Met.UNMEASURED
            return Verdict(goal.work, goal.wanted, f"{failed} calls of {client} failed", met)
    measured = _measured(goal, results)
    if measured is None:
        return Verdict(goal.work, goal.wanted, _why(goal, results), Met.UNMEASURED)
    met = Met.YES if goal.reached_by(measured.median) else Met.NO
    return Verdict(goal.work, goal.wanted, told(measured, goal.unit), met)


def _measured(goal: Goal, results: Results) -> Spread | None:
    ours = results.series(goal.workload, goal.subject, goal.measure)
    if not goal.against:
        return spread(ours)
    others = [results.series(goal.workload, name, goal.measure) for name in goal.against]
    ratios = [ratio(ours, other) for other in others]
    if any(each is None for each in ratios):
        return None
    # Who is the best is told by the medians: the best of each round would be the luckiest.
    worst = min if goal.at_least else max
    return worst([each for each in ratios if each is not None], key=lambda each: each.median)


def _why(goal: Goal, results: Results) -> str:
    """Return why a goal was not measured in this run."""
    for client in (goal.subject, *goal.against):
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
