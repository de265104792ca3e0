"""NVIDIA's C++ load generator: a process of its own for each round.

It does not batch: it sends single rows with as many out as there are callers, or whole batches.
Never with its ``--streaming``, which kills a server when it closes its stream (seen on 2.51).
"""

from __future__ import annotations

import asyncio
import csv
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as grpcclient

from benchmarks.clients.base import Client
from benchmarks.clients.data import Array
from benchmarks.clients.protocol import QUANTILES, Order, Outcome
from benchmarks.workloads import Workload

BINARY = "BENCHMARK_LOAD_GENERATOR"
"""The variable that names it; LD_LIBRARY_PATH names the folder of what it wants."""

WINDOWS = 3
"""It judges whether it is stable by three windows; any variation is allowed, so that it ends."""

WINDOW_MS = 200
"""The least that a window may be: with shorter ones it gives up as unstable."""

BATCHES = 4
"""In flight where a model is slow: enough that it never waits for the next."""

MOST = 64
"""It has a thread for each call that is out; with 1,024 it was slower than with 64."""

COLUMNS = {0.5: "p50 latency", 0.9: "p90 latency", 0.95: "p95 latency", 0.99: "p99 latency"}


@dataclass(frozen=True, slots=True)
class Load:
    """How much it sends at once."""

    concurrency: int
    rows: int


class PerfAnalyzer(Client):
    """``perf_analyzer -i grpc``, with its defaults otherwise."""

    async def open(self, url: str) -> None:
        """Remember the server, and connect for its count of rows."""
        self.url = url
        self.counting = grpcclient.InferenceServerClient(url)

    async def aclose(self) -> None:
        """Close the channel of the counts."""
        self.counting.close()

    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run it for the seconds asked for or longer; its start and end come on top."""
        del items
        return await asyncio.to_thread(self._run, workload, order)

    def _run(self, workload: Workload, order: Order) -> Outcome:
        before = self._rows(workload)
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder, "table.csv")
            process = subprocess.Popen(
                command(workload, self.url, order.seconds, table),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            with process:
                said = process.stderr.read() if process.stderr else ""
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                raise RuntimeError(f"perf_analyzer exited with {process.returncode}: {said[-500:]}")
            measured = next(csv.DictReader(table.read_text().splitlines()))
        seconds = window_ms(order.seconds) * WINDOWS / 1000
        rows = round(float(measured["Inferences/Second"]) * seconds)
        # It also sends before and after its windows: CPU is that of all rows the server saw.
        cpu_a_row = (usage.ru_utime + usage.ru_stime) / (self._rows(workload) - before)
        return Outcome(
            rows=rows,
            seconds=seconds,
            cpu_s=cpu_a_row * rows,
            latency_us=tuple(
                float(measured[COLUMNS[q]]) if q in COLUMNS else None for q in QUANTILES
            ),
            peak_rss_mib=usage.ru_maxrss / 1024,
            checked=0,
        )

    def _rows(self, workload: Workload) -> int:
        statistics = self.counting.get_inference_statistics(workload.model)
        return int(statistics.model_stats[0].inference_count)


def load(workload: Workload) -> Load:
    """Return what it sends: the workload's rows or batches; full batches where a model is slow."""
    if workload.limited:
        return Load(BATCHES, workload.max_batch_size)
    return Load(min(workload.callers, MOST), workload.rows_per_call)


def command(workload: Workload, url: str, seconds: float, table: Path) -> list[str]:
    """Return its command line."""
    sent = load(workload)
    shape = ",".join(map(str, workload.shape))
    return [
        os.environ[BINARY], "-m", workload.model, "-u", url, "-i", "grpc",
        "--shape", f"INPUT0:{shape}", "-b", str(sent.rows),
        "--concurrency-range", f"{sent.concurrency}:{sent.concurrency}",
        "--max-threads", str(os.cpu_count() or 1),
        "-p", str(window_ms(seconds)), "-s", "999", "-r", str(WINDOWS),
        "-f", str(table),
    ]  # fmt: skip


def window_ms(seconds: float) -> int:
    """Return how long each of its windows is."""
    return max(WINDOW_MS, round(seconds * 1000 / WINDOWS))
