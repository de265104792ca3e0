"""Small plots as SVG, drawn by hand: they need nobody's script, and read on light and dark.

Owns: scales, marks and labels. Refuses to know: what is shown. Every chart stands alone, with its
style inside, so that it works within a page and as a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
WIDTH = 760
LEFT = 215
RIGHT = 130
ROW = 24
TOP = 46
BOTTOM = 34

STYLE = """<style>
svg { --ink: #1b1f24; --faint: #c9ced6; --mark: #6b7785; --ours: #0b6bcb; --back: #ffffff }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6e9ee; --faint: #3a414b; --mark: #9aa5b1; --ours: #5db0ff; --back: #14171c } }
text { font: 12px system-ui, sans-serif; fill: var(--ink) }
.title { font-weight: 600; font-size: 13px } .end { text-anchor: end } .mid { text-anchor: middle }
.tick { stroke: var(--faint); stroke-width: 1 } .back { fill: var(--back) }
.line { stroke: var(--mark); stroke-width: 2; fill: none } .dot { fill: var(--mark) }
.faint { fill: var(--mark); opacity: .35 }
.curve { stroke-width: 2; fill: none }
.ours .line { stroke: var(--ours) } .ours .dot, .ours .faint { fill: var(--ours) }
</style>"""

PALETTE = (
    "#d9730d", "#2a9d55", "#9065e0", "#d0435b", "#149a9a", "#a0703c", "#7d8896", "#cf5f9b",
)  # fmt: skip
"""Of the curves that are not ours, in turn: told apart on light and on dark."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of a chart of dots.

    Attributes:
        label: Whose it is.
        values: Of each round, or of each quantile.
        middle: Where the large dot is.
        note: Written at the end.
        ours: Whether it stands out.
    """

    label: str
    values: tuple[float, ...]
    middle: float
    note: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart of latencies.

    Attributes:
        label: Whose it is.
        points: Quantile (0 to 1) and value.
        colour: As CSS has it.
        dashed: Whether it is dashed, to tell two of a colour apart.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    colour: str = "var(--ours)"
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to positions.

    Attributes:
        low: The value at ``start``.
        high: The value at ``end``.
        start: A position.
        end: Another.
        logarithmic: Whether equal ratios have equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def __call__(self, value: float) -> float:
        """Return a value's position, within the two ends."""
        if self.logarithmic:
            low, high, at = (math.log10(max(v, 1e-9)) for v in (self.low, self.high, value))
        else:
            low, high, at = self.low, self.high, value
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values to write along the scale."""
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if self.high / self.low <= 200 else (1,)
            every = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        else:
            step = _round_step((self.high - self.low) / 4)
            every = [index * step for index in range(math.floor(self.high / step) + 1)]
        return [tick for tick in every if self.low <= tick <= self.high * (1 + 1e-9)]


def scale_for(values: Iterable[float], start: float, end: float) -> Scale:
    """Return a scale that shows all values: from 0, or of powers of ten if they lie far apart."""
    known = [value for value in values if value > 0] or [1.0]
    low, high = min(known), max(known)
    if high / low > 15:
        return Scale(low * 0.8, high * 1.1, start, end, logarithmic=True)
    return Scale(0.0, high * 1.05, start, end, logarithmic=False)


def dots(title: str, bars: Sequence[Bar]) -> str:
    """Return a chart with a line for each client: its range, its rounds, its median."""
    scale = scale_for((v for bar in bars for v in bar.values), LEFT, WIDTH - RIGHT)
    height = TOP + ROW * len(bars) + BOTTOM
    parts = [_axis(scale, TOP - 8, height - BOTTOM + 4, height - 14)]
    for index, bar in enumerate(bars):
        y = TOP + ROW * index + ROW / 2
        parts.append(_dotted(bar, scale, y))
    return _svg(title, height, parts)


def curves(title: str, lines: Sequence[Curve]) -> str:
    """Return a chart of latency by quantile, both so that the tail is seen."""
    height = 330
    bottom = height - 44
    values = [value for line in lines for _, value in line.points]
    up = scale_for(values, bottom, TOP)
    across = Scale(0.0, 3.0, 64, WIDTH - 250, logarithmic=False)
    parts = []
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<path class="tick" d="M64 {y:.1f}H{WIDTH - 250}"/>')
        parts.append(f'<text class="end" x="58" y="{y + 4:.1f}">{_short(tick)}</text>')
    for quantile in (0.0, 0.5, 0.9, 0.99, 0.999):
        x = across(_nines(quantile))
        parts.append(f'<text class="mid" x="{x:.1f}" y="{bottom + 18}">{quantile * 100:g} %</text>')
    for index, line in enumerate(lines):
        parts.append(_curve(line, across, up, TOP + 10 + 20 * index))
    return _svg(title, height, parts)


def _dotted(bar: Bar, scale: Scale, y: float) -> str:
    low, high = scale(min(bar.values)), scale(max(bar.values))
    small = "".join(
        f'<circle class="faint" cx="{scale(value):.1f}" cy="{y}" r="3"/>' for value in bar.values
    )
    return (
        f'<g class="{"ours" if bar.ours else "other"}">'
        f'<text class="end" x="{LEFT - 10}" y="{y + 4}">{escape(bar.label)}</text>'
        f'<path class="line" d="M{low:.1f} {y}H{high:.1f}"/>{small}'
        f'<circle class="dot" cx="{scale(bar.middle):.1f}" cy="{y}" r="5"/>'
        f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4}">{escape(bar.note)}</text></g>'
    )


def _curve(line: Curve, across: Scale, up: Scale, legend_y: float) -> str:
    shown = [(across(_nines(q)), up(value)) for q, value in line.points if q < 1]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in shown)
    dashes = ' stroke-dasharray="5 3"' if line.dashed else ""
    pen = f'class="curve" style="stroke:{line.colour}"{dashes}'
    x = WIDTH - 232
    return (
        f'<path {pen} d="M{path}"/><path {pen} d="M{x} {legend_y - 4}h24"/>'
        f'<text x="{x + 32}" y="{legend_y}">{escape(line.label)}</text>'
    )


def _axis(scale: Scale, top: float, bottom: float, labels: float) -> str:
    return "".join(
        f'<path class="tick" d="M{scale(tick):.1f} {top}V{bottom}"/>'
        f'<text class="mid" x="{scale(tick):.1f}" y="{labels}">{_short(tick)}</text>'
        for tick in scale.ticks()
    )


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    name = escape(title)
    return (
        f'<svg{NAMESPACE} viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{name}">{STYLE}<rect class="back" width="100%" height="100%" rx="6"/>'
        f'<text class="title" x="12" y="22">{name}</text>{"".join(parts)}</svg>'
    )


def _nines(quantile: float) -> float:
    """Return how many nines a quantile has: 0.9 has one, 0.99 two."""
    return -math.log10(max(1 - quantile, 1e-3))


def _round_step(rough: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))


def _short(value: float) -> str:
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
