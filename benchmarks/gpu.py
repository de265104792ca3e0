"""Measure the ways to a model on a GPU beside each other, and beside what physics allows.

    python -m benchmarks.gpu --url 127.0.0.1:8001 --model ident_gpu --json gpu.json

No part of ``nox -s bench``: it needs a running server on this machine with a model that hands its
input INPUT0, FP32 [-1], back as OUTPUT0 (``ident_gpu`` of the rig, see docs/gpu.md), and does what
it can where something is missing: without a GPU, the wire and system shared memory.

Each way runs ``--seconds`` at each size and number of callers. The floor of a way is the time of an
empty call plus the bytes it has to move, at the bandwidths measured here at the start; whatever the
model does is in both. "stall" is the longest time for which the event loop did not turn.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_ways import (
    NO_HELPER,
    Call,
    Way,
    cupy,
    cupyx,
    has_gpu,
    helper,
    our_ways,
    race_of_ours,
    race_of_stock,
    stock_way,
)
from tritonasync import TritonPool

KIB, MIB = 1 << 10, 1 << 20
SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB, 256 * MIB)
CALLERS = (1, 8, 64)
MOST_OUT = 4 << 30
"""Of bytes that all callers together have out: what would be more is left out, and said to be."""


@dataclass(frozen=True)
class Machine:
    """What was measured on; bandwidths in bytes a second, 0 where there is no GPU."""

    date: str
    host: str
    python: str
    packages: dict[str, str]
    server: str
    gpu: str = ""
    driver: int = 0
    runtime: int = 0
    device_to_device: float = 0.0
    host_to_device: float = 0.0
    device_to_host: float = 0.0


@dataclass(frozen=True)
class Row:
    """One way at one size and number of callers; times in microseconds."""

    way: str
    nbytes: int
    callers: int
    calls: int
    p50_us: float
    p99_us: float
    floor_us: float
    stall_us: float
    copies_per_call: float | None = None
    regions_per_call: float | None = None

    @property
    def of_floor(self) -> float:
        return self.floor_us / self.p50_us if self.p50_us else 0.0


@dataclass
class Report:
    machine: Machine
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def note(report: Report, text: str) -> None:
    report.notes.append(text)
    print(f"note: {text}", file=sys.stderr, flush=True)


# --- the machine --------------------------------------------------------------------------------


def bandwidth(copy: Callable[[], object], nbytes: int, repeats: int = 20) -> float:
    """Bytes a second of the fastest of several copies, by the GPU's own clock."""
    copy()
    times = []
    for _ in range(repeats):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        copy()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
    return nbytes / min(times)


def look_at_gpu() -> dict[str, Any]:
    nbytes = 256 * MIB
    first, second = cupy.empty(nbytes, "u1"), cupy.empty(nbytes, "u1")
    pinned = cupyx.empty_pinned((nbytes,), "u1")
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return {
        "gpu": bytes(properties["name"]).decode(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "device_to_device": bandwidth(lambda: first.data.copy_from_device_async(
            second.data, nbytes), nbytes),
        "host_to_device": bandwidth(lambda: first.set(pinned), nbytes),
        "device_to_host": bandwidth(lambda: first.get(out=pinned), nbytes),
    }  # fmt: skip


def installed(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


async def look(pool: TritonPool) -> Machine:
    server = await pool.admin.server_metadata()
    return Machine(
        date=dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
        python=platform.python_version(),
        packages=installed(
            "tritonasync", "grpcio", "numpy", "cupy-cuda12x", "cupy-cuda13x", "tritonclient"
        ),
        server=f"{server.name} {server.version}",
        host=f"{platform.system()} {platform.machine()}",
        **(look_at_gpu() if has_gpu() else {}),
    )


# --- measuring ----------------------------------------------------------------------------------


def quantile(times: list[float], q: float) -> float:
    """The nearest rank, as a time that was really measured."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


@dataclass(frozen=True)
class Setting:
    """What all rows have in common; ``empty_us`` is the p50 of an empty call."""

    machine: Machine
    empty_us: float
    seconds: float


def floor_us(way: Way, nbytes: int, setting: Setting) -> float:
    """What an empty call takes, and moving the bytes; 0 where no bandwidth of a GPU bounds it."""
    if not way.passes:
        return 0.0
    moved = 0.0
    for name in way.passes:
        rate = getattr(setting.machine, name)
        if not rate:
            return 0.0
        moved += nbytes / rate * 1e6
    return setting.empty_us + moved


async def longest_stall(over: list[bool]) -> float:
    worst, before = 0.0, time.perf_counter()
    while not over:
        await asyncio.sleep(0)
        now = time.perf_counter()
        worst, before = max(worst, now - before), now
    return worst * 1e6


async def load(calls: list[Call], seconds: float) -> list[float]:
    """Call in a loop for each caller; return the times in microseconds."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def keep_calling(call: Call) -> None:
        while True:
            begin = time.perf_counter()
            await call()
            end = time.perf_counter()
            times.append((end - begin) * 1e6)
            if end >= until:
                return

    await asyncio.gather(*[keep_calling(call) for call in calls])
    return times


async def worst_stall(calls: list[Call], seconds: float) -> float:
    """The same once more, watched: watching takes the event loop's idle time, and so is apart."""
    over: list[bool] = []
    watching = asyncio.create_task(longest_stall(over))
    try:
        await load(calls, seconds)
    finally:
        over.append(True)
    return await watching


def counts(way: Way) -> tuple[int, int] | None:
    """Copies into shared memory so far, and regions, each of which is registered once."""
    if way.pool is None:
        return None
    memory = way.pool.statistics().memory.values()
    return sum(kind.copies for kind in memory), sum(kind.regions for kind in memory)


async def measure(way: Way, nbytes: int, callers: int, setting: Setting) -> Row:
    async with AsyncExitStack() as stack:
        make = await way.open(stack, nbytes)
        calls = [await make(number) for number in range(callers)]
        # All at once, so that every region that they need together is there.
        await load(calls, 0.2)
        before = counts(way)
        times = await load(calls, setting.seconds)
        after = counts(way)
        stall = await worst_stall(calls, setting.seconds / 4)
    per_call = [
        None if before is None or after is None else (new - old) / len(times)
        for old, new in zip(before or (0, 0), after or (0, 0), strict=True)
    ]
    return Row(
        way.name, nbytes, callers, len(times), quantile(times, 0.5), quantile(times, 0.99),
        floor_us(way, nbytes, setting), stall, *per_call,
    )  # fmt: skip


async def empty_call_us(pool: TritonPool, model: str, seconds: float) -> float:
    """The p50 of a call of 4 bytes, on the wire."""
    handle, row = pool.model(model), np.zeros((1, 1), np.float32)
    times = await load([lambda: handle(INPUT0=row)], seconds)
    return quantile(times, 0.5)


async def check(way: Way, nbytes: int) -> None:
    """Refuse to measure what gives wrong answers."""
    if way.pool is None:
        return
    async with AsyncExitStack() as stack:
        call = await (await way.open(stack, nbytes))(7)
        outputs: Any = await call()
        if not bool((outputs["OUTPUT0"] == 7).all()):
            raise SystemExit(f"{way.name}, {nbytes} bytes: the answer is not the input")


# --- the script ---------------------------------------------------------------------------------


HEADINGS = ("way", "bytes", "callers", "calls", "p50 us", "p99 us", "floor us", "floor/p50",
            "stall us", "copies/call", "regions/call")  # fmt: skip


def cells(row: Row) -> list[str]:
    optional = (row.copies_per_call, row.regions_per_call)
    return [
        row.way, f"{row.nbytes:,}", str(row.callers), str(row.calls), f"{row.p50_us:,.0f}",
        f"{row.p99_us:,.0f}", f"{row.floor_us:,.1f}" if row.floor_us else "-",
        f"{row.of_floor:.2f}" if row.floor_us else "-", f"{row.stall_us:,.0f}",
        *["-" if value is None else f"{value:.3f}" for value in optional],
    ]  # fmt: skip


def show(cells_: tuple[str, ...] | list[str]) -> None:
    widths = (24, 12, 7, 8, 9, 9, 9, 9, 9, 11, 12)
    columns = [cells_[0].ljust(widths[0])]
    columns += [cell.rjust(width) for cell, width in zip(cells_[1:], widths[1:], strict=True)]
    print(" ".join(columns), flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--url", default="127.0.0.1:8001", help="[%(default)s]")
    made.add_argument("--model", default="ident_gpu", help="[%(default)s]")
    made.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="BYTES")
    made.add_argument("--callers", type=int, nargs="+", default=CALLERS, metavar="COUNT")
    made.add_argument("--seconds", type=float, default=2.0, help="for each row [%(default)s]")
    made.add_argument("--ways", nargs="+", metavar="WORD", help="only ways with one of these words")
    made.add_argument("--races", type=int, default=100, help="calls from a side stream [100]")
    made.add_argument("--json", type=Path, help="write everything here as well")
    return made


async def run(options: argparse.Namespace) -> Report:
    async with AsyncExitStack() as stack:
        ways = await our_ways(stack, options)
        plain = ways[0].pool
        assert plain is not None
        report = Report(await look(plain))
        print(json.dumps(asdict(report.machine), indent=2))
        if not has_gpu():
            note(report, "no CUDA GPU here: only the wire and system shared memory are measured")
        elif helper is None:
            note(report, f"tritonclient's CUDA helper is not measured: {NO_HELPER}")
        else:
            ways.append(stock_way(options))
        empty_us = await empty_call_us(plain, options.model, options.seconds)
        note(report, f"an empty call on the wire takes {empty_us:,.0f} us (p50)")
        show(HEADINGS)
        for nbytes in options.sizes:
            for way in ways:
                if options.ways and not any(word in way.name for word in options.ways):
                    continue
                setting = Setting(report.machine, empty_us, options.seconds)
                await one_way(report, way, nbytes, setting, options.callers)
        if has_gpu() and options.races:
            await race(report, ways, options)
        return report


async def race(report: Report, ways: list[Way], options: argparse.Namespace) -> None:
    """Count requests that left before their input was computed, on a stream of its own."""
    cuda = next(way.pool for way in ways if way.name == "cuda, cupy")
    assert cuda is not None
    wrong = await race_of_ours(cuda, options.model, options.races)
    note(report, f"side stream: {wrong} of {options.races} answers of ours were wrong")
    if helper is not None:
        wrong = await race_of_stock(options, options.races)
        note(report, f"side stream: {wrong} of {options.races} of the stock helper's were wrong")


async def one_way(
    report: Report, way: Way, nbytes: int, setting: Setting, counts_: list[int]
) -> None:
    try:
        await check(way, nbytes)
        for callers in counts_:
            if 2 * callers * nbytes > MOST_OUT:
                note(report, f"{way.name}, {nbytes} bytes, {callers} callers: left out, too much")
                continue
            row = await measure(way, nbytes, callers, setting)
            report.rows.append(row)
            show(cells(row))
    except Exception as error:  # noqa: BLE001 - one way that fails is a result, too
        note(report, f"{way.name}, {nbytes} bytes: {type(error).__name__}: {error}")


def main() -> None:
    options = parser().parse_args()
    report = asyncio.run(run(options))
    if options.json:
        text = json.dumps(asdict(report), indent=2)
        options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
