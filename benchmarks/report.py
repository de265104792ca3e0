"""Results as one HTML page that needs nothing else: no script, no font, no address."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape

from benchmarks import charts, tables, thresholds
from benchmarks.goals import OURS, Met, Verdict, number
from benchmarks.peers import PEERS, TITLES
from benchmarks.results import Measure, Results
from benchmarks.samples import Figure, spread
from benchmarks.workloads import BY_NAME, PARTS

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --back: #f5f6f8; --card: #fff; --faint: #d5d9e0;
  --good: #0a7a3d; --bad: #b42318; --dim: #5a6572 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --back: #0e1013; --card: #14171c;
  --faint: #3a414b; --good: #4cc38a; --bad: #ff7b72; --dim: #9aa5b1 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
section { background: var(--card); border: 1px solid var(--faint); border-radius: 8px;
  padding: .5rem 1.2rem 1rem; margin: 1rem 0; overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0 }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--faint);
  white-space: nowrap; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left; white-space: normal }
.words td { text-align: left; white-space: normal }
svg { max-width: 100%; height: auto; display: block; margin: .6rem 0 }
.met { color: var(--good); font-weight: 600 } .missed { color: var(--bad); font-weight: 600 }
.unmeasured, .dim { color: var(--dim) } h1 { font-size: 1.5rem } h2 { font-size: 1.1rem }
"""

CLASSES = {Met.YES: "met", Met.NO: "missed", Met.UNMEASURED: "unmeasured"}

PLOTS: tuple[tuple[Measure, str], ...] = (
    ("rows_per_s", "rows a second (right is better)"),
    ("cpu_us_per_row", "client CPU a row, µs (left is better)"),
)
STALLS: tuple[tuple[Measure, str], ...] = (
    ("stall_ms", "longest stall of the event loop, ms (left is better)"),
)


def page(results: Results, verdicts: Sequence[Verdict]) -> str:
    """Return the report."""
    sections = [_goals(verdicts), *_plots_and_tables(results)]
    sections += [_sweep(results)]
    sections += [_figures(name, figures) for name, figures in results.figures.items()]
    sections += [_skipped(results.skipped), _notes(), _circumstances(results)]
    body = "".join(f"<section>{section}</section>\n" for section in sections if section)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>tritonasync, measured</title><style>{STYLE}</style></head><body>"
        f"<h1>tritonasync, measured</h1><p class=dim>{escape(results.taken.date)}. "
        "Medians over the rounds; in parentheses, and as small dots, the spread. In a round all "
        "clients run right after one another; ratios are taken in each round.</p>"
        f"{body}</body></html>\n"
    )


def plots(results: Results) -> dict[str, str]:
    """Return every chart as an SVG document, by a name for its file."""
    found = _plots_of_sweep(results)
    for workload in _shown(results):
        for measure, about in STALLS if _stalls(workload) else PLOTS:
            chart = _dots(results, workload, measure, about)
            if chart:
                found[f"{workload}-{measure}"] = chart
        found[f"{workload}-latency"] = _latency(results, workload)
    return found


def _plots_and_tables(results: Results) -> Iterator[str]:
    drawn = plots(results)
    for workload in _shown(results):
        title = BY_NAME[workload].title if workload in BY_NAME else workload
        charts_of = "".join(c for n, c in drawn.items() if n.rpartition("-")[0] == workload)
        charts_of = charts_of.replace(charts.NAMESPACE, "")  # only a file of its own needs it
        headings = ["", *(heading for heading, _ in tables.columns(results, workload)), ""]
        rows = [
            [TITLES.get(client, client), *tables.cells(results, workload, client)]
            for client in results.clients_of(workload)
        ]
        yield f"<h2>{escape(title)}</h2>{charts_of}{_table(headings, rows)}"


def _shown(results: Results) -> list[str]:
    """Return the workloads that are shown each for itself; a sweep is shown as a whole."""
    return [name for name in results.workloads() if name not in PARTS["placing"]]


def _sweep(results: Results) -> str:
    steps = thresholds.steps(results)
    if not steps:
        return ""
    headings = ["", *(heading for heading, _ in thresholds.COMPARED)]
    table = _table(headings, [tables.threshold_cells(step) for step in steps])
    said = "".join(f"<p>{escape(each)}</p>" for each in thresholds.conclusions(steps))
    drawn = "".join(_plots_of_sweep(results).values()).replace(charts.NAMESPACE, "")
    return f"<h2>{escape(thresholds.TITLE)}</h2>{drawn}{table}{said}"


def _plots_of_sweep(results: Results) -> dict[str, str]:
    """Return a chart for each measure of the sweep: the ratios by size."""
    drawn, steps = {}, thresholds.steps(results)
    for index, (heading, measure) in enumerate(thresholds.COMPARED):
        bars = [
            charts.Bar(
                thresholds.label(step),
                found.values,
                found.median,
                f"{found.median:.2f}×",
                ours=step.pays(index),
            )
            for step in steps
            if (found := step.ratios[index]) is not None
        ]
        if bars:
            drawn[f"placing-{measure}"] = charts.dots(f"{thresholds.TITLE}: {heading}", bars)
    return drawn


def _stalls(workload: str) -> bool:
    return workload in BY_NAME and BY_NAME[workload].kind == "stall"


def _title(workload: str, about: str) -> str:
    return f"{BY_NAME[workload].title if workload in BY_NAME else workload}: {about}"


def _dots(results: Results, workload: str, measure: Measure, about: str) -> str:
    bars = []
    for client in results.clients_of(workload):
        values = spread(results.series(workload, client, measure))
        if values is not None:
            bars.append(
                charts.Bar(
                    TITLES.get(client, client),
                    values.values,
                    values.median,
                    number(values.median),
                    ours=client.startswith("ours"),
                )
            )
    return charts.dots(_title(workload, about), bars) if bars else ""


def _latency(results: Results, workload: str) -> str:
    lines = []
    colours = itertools.cycle(charts.PALETTE)
    for client in results.clients_of(workload):
        curve = charts.Curve(TITLES.get(client, client), tuple(results.quantiles(workload, client)))
        if client.startswith("ours"):
            curve = replace(curve, dashed=client != OURS)
        else:
            curve = replace(curve, colour=next(colours))
        if len(curve.points) > 1:
            lines.append(curve)
    return charts.curves(_title(workload, "latency of a call by quantile, µs"), lines)


def _goals(verdicts: Sequence[Verdict]) -> str:
    rows = "".join(
        f"<tr><td>{escape(v.work)}</td><td>{escape(v.wanted)}</td><td>{escape(v.measured)}</td>"
        f'<td class="{CLASSES[v.met]}">{v.met.value}</td></tr>'
        for v in verdicts
    )
    head = "<tr><th>work</th><th>goal</th><th>measured</th><th></th></tr>"
    return f"<h2>Performance to reach</h2><table>{head}{rows}</table>"


def _figures(name: str, figures: Sequence[Figure]) -> str:
    rows = [tables.figure_cells(figure) for figure in figures]
    return f"<h2>{escape(name)}</h2>{_table(['', 'ours', 'theirs', 'ratio'], rows)}"


def _skipped(skipped: Mapping[str, str]) -> str:
    if not skipped:
        return ""
    rows = [[TITLES.get(name, name), reason] for name, reason in skipped.items()]
    return f"<h2>Not measured</h2>{_table(['who', 'why'], rows, 'words')}"


NOTES = """
Every client runs in a process of its own, with the server on the same machine, so that they share
its cores; what counts is the ratio within a round.

A closed loop's caller calls again as soon as it is answered. Calls that are out when the time is up
are waited for and counted, with their seconds.

Client CPU is user and system time of the client's process, all its threads (getrusage). The C++
load generator's includes its start and end.

The open loop's latencies count from the scheduled arrival; all clients of a round have the same
arrivals.

The limit of a slow model is the rows/s of full batches run without a break, from the server's own
statistics of the same round.

A stall is how much later than asked a probe in the client's event loop was woken, without the time
in which the thread waited for a core (schedstat); the worst of the round.

Copies a row are the bytes that the pool copied into shared memory, by its own statistics, over
those of the rows' inputs; shared is how many of the calls that were to have a place there had one.
Rows that are written in place are written before the round, as those that others send exist
before it.

Peak RSS is that of a round. Answers are compared with what was sent: every caller's last.
"""


def _notes() -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in NOTES.strip().split("\n\n"))
    rows = [[peer.title, peer.how] for peer in PEERS]
    table = _table(["client", "its callers"], rows, "words")
    return f"<h2>How it is measured</h2><ul>{items}</ul>{table}"


def _circumstances(results: Results) -> str:
    taken = results.taken
    rows = [
        [name, value]
        for facts in (taken.machine, taken.versions, taken.settings)
        for name, value in facts.items()
    ]
    rows += [
        [TITLES.get(client, client), ", ".join(f"{n} {v}" for n, v in versions.items())]
        for client, versions in results.clients.items()
    ]
    return f"<h2>Circumstances</h2>{_table(['', ''], rows, 'words')}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table class={kind}>{line('th', headings)}{body}</table>"
