"""Runs the workloads: every client in turn, round by round, so that all see the same machine.

Owns: the order of rounds, the clients' processes, and what happens when one of them, or the
server, fails. Refuses to know: goals and reports.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.child import Child, ChildError
from benchmarks.clients.protocol import QUANTILES, Order, Outcome
from benchmarks.environments import EnvironmentMissingError
from benchmarks.results import MEASURES, Results, Round
from benchmarks.server import Counts, Server, ServerGoneError
from benchmarks.workloads import BY_NAME, CAPACITY, PARTS, Workload


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        quick: Whether only the clients of ``--quick`` run.
        rounds: Of every workload.
        seconds: Of every round, for every client.
    """

    quick: bool
    rounds: int
    seconds: float

    def clients(self, workload: Workload) -> tuple[str, ...]:
        """Return who runs a workload."""
        return workload.quick if self.quick else workload.clients


class Starts(Protocol):
    """What starts clients' processes."""

    def prepare(self, name: str) -> None:
        """Make what the client lives in; raises EnvironmentMissingError."""

    def start(self, name: str, *, precise: bool) -> Child:
        """Start the client; raises ChildError."""


class Runner:
    """Runs workloads against one server.

    Args:
        server: It.
        starter: Starts clients.
        settings: How much is measured.
        results: Where rounds and reasons go.
        say: Told what is done.
    """

    def __init__(
        self,
        server: Server,
        starter: Starts,
        settings: Settings,
        results: Results,
        say: Callable[[str], None],
    ) -> None:
        self._server = server
        self._starter = starter
        self._settings = settings
        self._results = results
        self._say = say
        self._children: dict[tuple[str, bool], Child] = {}

    def close(self) -> None:
        """End all clients."""
        while self._children:
            _, child = self._children.popitem()
            child.close()

    def prepare(self, workloads: Sequence[Workload]) -> None:
        """Make the environments of all clients, before anything is measured."""
        names = {name: None for each in workloads for name in self._settings.clients(each)}
        for name in names:
            try:
                self._starter.prepare(name)
            except EnvironmentMissingError as error:
                self._skip(name, str(error))

    def run(self, workload: Workload) -> None:
        """Run one workload: warm every client up, then the rounds, the order turning."""
        rate = self._rate() if workload.kind == "open" else 0.0
        if rate is None:
            self._skip(f"ours/{workload.name}", f"{' of '.join(CAPACITY[::-1])} is not known")
            return
        names = [n for n in self._settings.clients(workload) if n not in self._results.skipped]
        names = [n for n in names if self._warm_up(workload, n, rate)]
        for number in range(self._settings.rounds):
            turn = number % len(names) if names else 0
            for name in [*names[turn:], *names[:turn]]:
                order = Order(workload.name, self._settings.seconds, rate, seed=number)
                if not self._round(workload, name, order, number):
                    names.remove(name)

    def _warm_up(self, workload: Workload, name: str, rate: float) -> bool:
        order = Order(workload.name, workload.warm_s, rate, seed=-1, prepare=True)
        return self._round(workload, name, order, None)

    def _round(self, workload: Workload, name: str, order: Order, number: int | None) -> bool:
        """Run one round; a client that fails is out of the workload. Whether it did well."""
        try:
            child = self._child(name, precise=workload.precise)
            before = self._server.counts(workload)
            outcome = child.carry_out(order)
            counts = self._server.counts(workload) - before
        except (ChildError, ServerGoneError) as error:
            self._lose(name, workload, str(error))
            return False
        if number is not None:
            values = values_of(outcome, counts, workload)
            self._results.rounds.append(_round(workload, name, number, outcome, values))
        if outcome.errors:
            self._say(f"{workload.name}, {name}: {outcome.errors} errors: {outcome.first_error}")
        return True

    def _child(self, name: str, *, precise: bool) -> Child:
        key = (name, precise)
        if key not in self._children:
            self._children[key] = self._starter.start(name, precise=precise)
            self._results.clients[name] = self._children[key].versions
        return self._children[key]

    def _lose(self, name: str, workload: Workload, reason: str) -> None:
        """Go on without a client; with a new server if it took the server with it."""
        self._skip(f"{name}/{workload.name}", reason)
        child = self._children.pop((name, workload.precise), None)
        if child is not None:
            child.close(patience_s=0)
        if self._server.revive():
            self._say("the server had ended and was started again")
            self.close()

    def _skip(self, key: str, reason: str) -> None:
        self._results.skipped[key] = reason
        self._say(f"{key} is skipped: {reason}")

    def _rate(self) -> float | None:
        """Return the open loop's calls a second; ``None`` if the capacity was not measured."""
        rates = self._results.series(*CAPACITY, "rows_per_s").values()
        return statistics.median(rates) / 2 if rates else None


def values_of(outcome: Outcome, counts: Counts, workload: Workload) -> dict[str, float]:
    """Return what a round measured, by name."""
    values = {
        "rows_per_s": outcome.rows / outcome.seconds,
        "peak_rss_mib": outcome.peak_rss_mib,
        **outcome.extras,
    }
    if outcome.rows:
        values["cpu_us_per_row"] = outcome.cpu_s / outcome.rows * 1e6
    if counts.executions:
        values["rows_per_execution"] = counts.rows / counts.executions
    for name, quantile in (("p50_us", 0.5), ("p99_us", 0.99)):
        at = QUANTILES.index(quantile)
        value = outcome.latency_us[at] if len(outcome.latency_us) > at else None
        if value is not None:
            values[name] = value
    limit = counts.limit_rows_per_s(workload) if workload.limited else None
    if limit:
        values["limit_rows_per_s"] = limit
        values["limit_share"] = values["rows_per_s"] / limit
    return {name: value for name, value in values.items() if name in MEASURES}


def _round(
    workload: Workload, client: str, number: int, outcome: Outcome, values: dict[str, float]
) -> Round:
    return Round(
        workload=workload.name,
        client=client,
        number=number,
        values=values,
        latency_us=outcome.latency_us,
        checked=outcome.checked,
        errors=outcome.errors,
        first_error=outcome.first_error,
    )


def needed(names: Sequence[str]) -> list[Workload]:
    """Return the workloads of these names, with what they depend on, in their order."""
    wanted = {each for name in names for each in PARTS.get(name, (name,))}
    if "open" in wanted:
        wanted.add(CAPACITY[0])
    return [workload for workload in BY_NAME.values() if workload.name in wanted]
