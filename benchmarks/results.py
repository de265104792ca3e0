"""What a run gave, as values and as JSON.

Owns: the form of the file, with its version. Refuses to know: how anything was measured or shown.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.clients.protocol import QUANTILES
from benchmarks.samples import Figure

FORMAT = 1

Measure = Literal[
    "rows_per_s", "cpu_us_per_row", "p50_us", "p99_us", "peak_rss_mib", "rows_per_execution",
    "limit_rows_per_s", "limit_share",
    "stall_ms", "typical_stall_ms", "gross_stall_ms", "idle_stall_ms", "on_streams",
    "copies_per_row", "placed_share", "registrations_per_call",
]  # fmt: skip
MEASURES: tuple[Measure, ...] = get_args(Measure)


class ResultsError(Exception):
    """A file holds no results that this version can read."""


@dataclass(frozen=True, slots=True)
class Round:
    """One client's round of a workload.

    Attributes:
        workload: Its name.
        client: Its name.
        number: The round's, from 0; clients of the same number ran right after one another.
        values: What was measured, by name.
        latency_us: At each of the protocol's quantiles; ``None`` where it is not known.
        checked: How many answers were compared with their inputs.
        errors: How many calls failed, or were answered wrongly.
        first_error: What the first said.
    """

    workload: str
    client: str
    number: int
    values: dict[str, float]
    latency_us: tuple[float | None, ...]
    checked: int
    errors: int = 0
    first_error: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """When, where and how a run was made.

    Attributes:
        date: In ISO 8601, with the zone.
        machine: Facts by name.
        versions: Of the server and of what the session runs.
        settings: Rounds, seconds, and what else decides what the figures are worth.
    """

    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, str]


@dataclass(slots=True)
class Results:
    """All of a run.

    Attributes:
        taken: When, where and how.
        clients: The versions of what each client that ran uses, by its name.
        skipped: Why a client did not run, by its name, or by ``client/workload``.
        rounds: In the order in which they ran.
        figures: Comparisons within one process, by the benchmark's name.
    """

    taken: Taken
    clients: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    figures: dict[str, list[Figure]] = field(default_factory=dict)

    def series(self, workload: str, client: str, measure: Measure) -> dict[int, float]:
        """Return what was measured, by the round's number; of rounds without errors."""
        return {
            each.number: each.values[measure]
            for each in self.rounds
            if each.workload == workload and each.client == client and not each.errors
            if measure in each.values
        }

    def errors(self, workload: str, client: str) -> int:
        """Return how many calls failed, or were answered wrongly."""
        return sum(
            each.errors
            for each in self.rounds
            if each.workload == workload and each.client == client
        )

    def clients_of(self, workload: str) -> list[str]:
        """Return who ran a workload, in the order of the first round."""
        names = (each.client for each in self.rounds if each.workload == workload)
        return list(dict.fromkeys(names))

    def workloads(self) -> list[str]:
        """Return what was run, in order."""
        return list(dict.fromkeys(each.workload for each in self.rounds))

    def quantiles(self, workload: str, client: str) -> list[tuple[float, float]]:
        """Return quantile and latency in µs: the median over the rounds of each."""
        rounds = [r for r in self.rounds if r.workload == workload and r.client == client]
        points = []
        for index, quantile in enumerate(QUANTILES):
            known = sorted(
                value
                for each in rounds
                if len(each.latency_us) > index and (value := each.latency_us[index]) is not None
            )
            if known:
                points.append((quantile, known[len(known) // 2]))
        return points


def to_json(results: Results) -> str:
    """Return the results as a JSON document."""
    return json.dumps({"format": FORMAT, **asdict(results)}, indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> Results:
    """Return the results of a document.

    Raises:
        ResultsError: It is none, or of another version.
    """
    try:
        document = json.loads(text)
        if document.pop("format") != FORMAT:
            raise ResultsError(f"not of format {FORMAT}")
        return Results(
            taken=Taken(**document.pop("taken")),
            rounds=[_round(each) for each in document.pop("rounds")],
            figures={
                name: [Figure(**figure) for figure in figures]
                for name, figures in document.pop("figures").items()
            },
            **document,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"no results of a benchmark: {error}") from error


def load(path: Path) -> Results:
    """Read results from a file.

    Raises:
        ResultsError: It cannot be read, or holds none.
    """
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}") from error


def _round(fields: dict[str, Any]) -> Round:
    return Round(**{**fields, "latency_us": tuple(fields["latency_us"])})
