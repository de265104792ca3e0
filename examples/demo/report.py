"""What the demo says: a line for each step, and a table at the end.

Owns: the layout, and whether every goal was met. Refuses to know: what is measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number and its goal, both as parts of one."""

    name: str
    goal: float
    measured: float

    @property
    def met(self) -> bool:
        return self.measured >= self.goal


@dataclass(frozen=True, slots=True)
class Rate:
    """Rows a second of one model: asked for one by one, and in whole batches."""

    model: str
    one_by_one: float
    batches: float


@dataclass(slots=True)
class Report:
    """Prints as it goes, and remembers what belongs in the tables."""

    figures: list[Figure] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def step(self, text: str) -> None:
        """Say what begins now, and how many seconds have gone by."""
        print(f"[{time.monotonic() - self.started:5.1f} s] {text}", flush=True)

    def title(self, text: str) -> None:
        print(f"\n{text}\n{'-' * len(text)}", flush=True)

    def line(self, text: str = "") -> None:
        print(f"  {text}" if text else "", flush=True)

    def figure(self, name: str, measured: float, *, goal: float) -> None:
        self.figures.append(Figure(name, goal, measured))

    def finish(self) -> bool:
        """Print the summary and return whether every goal was met."""
        self.title("Summary")
        self.line(f"{'':42} {'goal':>8} {'measured':>9}")
        for figure in self.figures:
            verdict = "met" if figure.met else "MISSED"
            numbers = f"{figure.goal:>8.1%} {figure.measured:>9.1%}"
            self.line(f"{figure.name:42} {numbers}  {verdict}")
        self.line()
        self.line(f"{'rows a second':42} {'one by one':>10} {'batches':>10}")
        for rate in self.rates:
            self.line(f"{rate.model:42} {rate.one_by_one:>10,.0f} {rate.batches:>10,.0f}")
        self.line()
        met = bool(self.figures) and all(figure.met for figure in self.figures)
        taken = f"{time.monotonic() - self.started:.0f} s"
        self.line(f"{'every goal met' if met else 'a goal was MISSED'}, in {taken}")
        return met
