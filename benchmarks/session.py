"""One run from beginning to end: the server, the clients, the comparisons in one process.

Owns: the order, and how much a quick and a full run measure.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks import compiled, imports, routing, tables, web, wire_bytes
from benchmarks.machine import machine, versions
from benchmarks.peers import Starter
from benchmarks.results import Results, Taken
from benchmarks.runner import Runner, Settings, needed
from benchmarks.server import Server
from benchmarks.workloads import Workload
from tritonasync.serving import ensure_runtime

Say = Callable[[str], None]
Show = Callable[[Iterable[str]], None]

IN_PROCESS = {"imports": imports, "routing": routing, "wire": wire_bytes, "web": web}
WHEN_NAMED = {"web"}
TITLES = {
    "imports": "What an import costs, beside what it cannot do without",
    "routing": "What routing costs a batch, CPU time",
    "web": "A web application beside the same one with tritonclient",
    "wire": "The wire layer beside tritonclient's own functions, CPU time",
}

QUICK = Settings(quick=True, rounds=3, seconds=0.4)
FULL = Settings(quick=False, rounds=5, seconds=1.5)


def measure(
    names: Sequence[str],
    *,
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    say: Say,
    show: Show,
) -> Results:
    """Measure what is named.

    Args:
        names: Of workloads, and of comparisons in one process.
        quick: Whether to measure less.
        rounds: How often; ``None`` for what is usual.
        seconds: How long each client's round is; ``None`` for what is usual.
        say: Told what goes on.
        show: Given the lines of each table when it is there.
    """
    usual = QUICK if quick else FULL
    settings = Settings(quick, rounds or usual.rounds, seconds or usual.seconds)
    results = Results(
        Taken(
            date=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
            machine=machine(),
            versions=versions(),
            settings={
                "quick": "yes" if quick else "no",
                "rounds": str(settings.rounds),
                "seconds a round": f"{settings.seconds:g}",
            },
        )
    )
    for name, benchmark in IN_PROCESS.items():
        if name in names:
            say(name)
            results.figures[TITLES[name]] = list(benchmark.run(quick=quick))
            show(tables.figure_lines(TITLES[name], results.figures[TITLES[name]]))
    _run_workloads(names, settings, results, say, show)
    return results


def _run_workloads(
    names: Sequence[str], settings: Settings, results: Results, say: Say, show: Show
) -> None:
    workloads = [each for each in needed(names) if settings.clients(each)]
    for group in kept_apart(workloads):
        _run_on_one_server(group, settings, results, say, show)


def kept_apart(workloads: Sequence[Workload]) -> list[list[Workload]]:
    """Return what may run on one server: decoupled models on one, all others on another.

    Triton does not bear streams to both kinds at once, and no stream is chosen for single rows
    where a decoupled model is loaded.
    """
    plain = [each for each in workloads if each.responses is None]
    decoupled = [each for each in workloads if each.responses is not None]
    return [group for group in (plain, decoupled) if group]


def _run_on_one_server(
    workloads: Sequence[Workload], settings: Settings, results: Results, say: Say, show: Show
) -> None:
    runtime = ensure_runtime(progress=say)
    with ExitStack() as stack:
        make_folder = partial(tempfile.TemporaryDirectory, prefix="tritonasync-bench-")
        scratch, repository = (Path(stack.enter_context(make_folder())) for _ in range(2))
        workloads = _made(workloads, repository, results, say)
        if not workloads:
            return
        server = stack.enter_context(Server(workloads, runtime, repository))
        results.taken.versions["tritonserver"] = server.version()
        starter = Starter(server.url, runtime, scratch, say)
        runner = Runner(server, starter, settings, results, say)
        try:
            runner.prepare(workloads)
            for workload in workloads:
                say(workload.name)
                runner.run(workload)
                if workload.name in results.workloads():
                    show(tables.workload_lines(results, workload.name))
        finally:
            runner.close()


def _made(
    workloads: Sequence[Workload], repository: Path, results: Results, say: Say
) -> list[Workload]:
    """Make the models that are compiled; return the workloads whose model is there."""
    missing: dict[str, str] = {}
    for model in compiled.MODELS & {workload.model for workload in workloads}:
        try:
            compiled.make(model, repository)
        except compiled.NotCompiledError as error:
            missing[model] = str(error)
            say(str(error))
    for workload in workloads:
        if workload.model in missing:
            results.skipped[f"ours/{workload.name}"] = missing[workload.model]
    return [workload for workload in workloads if workload.model not in missing]
