"""One round of a workload, for any client: who calls when, and what is counted.

Owns: the loops, the clocks, the check of answers. Refuses to know: which client it is.

Every call that was begun is waited for, and counts, as do its seconds: below 2.59 a server can
crash of calls that are cancelled, and a cut at a fixed time would rob slow clients of more.
"""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import threading
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.clients.data import Array, fits
from benchmarks.clients.protocol import QUANTILES, Order, Outcome
from benchmarks.workloads import Workload

PROBE_S = 0.001
"""How often the probe of an event loop wants to be woken."""

_REFERENCES = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_SCHEDULED = Path("/proc/thread-self/schedstat")

Call = Callable[[], Awaitable[Array]]
"""Sends one caller's item once, as the client's user would, and returns the answer's array."""


@dataclass(slots=True)
class Tally:
    """What one round adds up.

    Attributes:
        latencies: Seconds of each call.
        answers: The last answer of each caller.
        errors: What failed.
    """

    latencies: array[float] = field(default_factory=lambda: array("d"))
    answers: dict[int, Array] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def failed(self, error: Exception) -> None:
        """Count a call that raised."""
        self.errors.append(f"{type(error).__name__}: {error}")


class Span:
    """The time and CPU between its making and :meth:`outcome`."""

    def __init__(self) -> None:
        gc.collect()  # what earlier rounds left is not this one's
        _forget_peak()
        self._cpu = cpu_s()
        self._begin = perf_counter()

    def outcome(
        self,
        workload: Workload,
        items: Sequence[Array],
        tally: Tally,
        extras: dict[str, float] | None = None,
    ) -> Outcome:
        """Return what the round gave, with the answers checked."""
        seconds, cpu = perf_counter() - self._begin, cpu_s() - self._cpu
        peak = _peak_mib()
        for index, answer in tally.answers.items():
            if not fits(workload, items[index], answer):
                tally.errors.append(f"caller {index} was answered with other values than it sent")
        latency: Iterable[float] = []
        if tally.latencies:
            latency = np.quantile(tally.latencies, QUANTILES) * 1e6
        return Outcome(
            rows=len(tally.latencies) * workload.rows_per_call,
            seconds=seconds,
            cpu_s=cpu,
            latency_us=tuple(float(value) for value in latency),
            peak_rss_mib=peak,
            checked=len(tally.answers),
            errors=len(tally.errors),
            first_error=tally.errors[0] if tally.errors else "",
            extras=extras or {},
        )


async def run(
    workload: Workload, items: Sequence[Array], calls: Sequence[Call], order: Order
) -> Outcome:
    """Run one round in the event loop."""
    if workload.kind == "stall":
        return await _stall(workload, items, calls, order)
    tally, span = Tally(), Span()
    if workload.kind == "open" and order.rate:
        await _open(calls, order, tally)
    else:
        await _closed(calls, order.seconds, tally)
    return span.outcome(workload, items, tally)


async def _closed(calls: Sequence[Call], seconds: float, tally: Tally) -> None:
    ends = perf_counter() + seconds
    await asyncio.gather(*(_caller(i, call, ends, tally) for i, call in enumerate(calls)))


async def _caller(index: int, call: Call, ends: float, tally: Tally) -> None:
    """Call again and again; after an error no more, since errors come faster than answers."""
    record = tally.latencies.append
    then = perf_counter()
    try:
        while True:
            answer = await call()
            now = perf_counter()
            record(now - then)
            then = now
            if now >= ends:
                break
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is counted
        tally.failed(error)
    else:
        tally.answers[index] = answer


async def _open(calls: Sequence[Call], order: Order, tally: Tally) -> None:
    """Begin calls at their scheduled times.

    A latency counts from the scheduled time, not from when the loop came to it: otherwise a client
    that holds up the loop would hide just the calls that it delays ("coordinated omission").
    """
    begin = perf_counter()
    tasks = set()
    for number, at in enumerate(arrivals(order.rate, order.seconds, order.seed)):
        due = begin + at
        wait = due - perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        index = number % len(calls)
        tasks.add(asyncio.create_task(_scheduled(index, calls[index], due, tally)))
    await asyncio.gather(*tasks)


async def _scheduled(index: int, call: Call, due: float, tally: Tally) -> None:
    try:
        tally.answers[index] = await call()
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is counted
        tally.failed(error)
    else:
        tally.latencies.append(perf_counter() - due)


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Return the times of a Poisson process, in seconds from its begin."""
    source = random.Random(seed)
    times = []
    at = source.expovariate(rate)
    while at < seconds:
        times.append(at)
        at += source.expovariate(rate)
    return times


async def _stall(
    workload: Workload, items: Sequence[Array], calls: Sequence[Call], order: Order
) -> Outcome:
    """Call one after another while a probe watches the loop; watch it idle for comparison."""
    idle = await watched(asyncio.sleep(order.seconds / 4))
    tally, span = Tally(), Span()
    stalls: list[Stall] = []
    ends = perf_counter() + order.seconds
    while True:
        before = len(tally.latencies)
        stalls.append(await watched(_caller(0, calls[0], 0.0, tally)))
        if perf_counter() >= ends or len(tally.latencies) == before:
            break
    extras = {
        "stall_ms": max(each.own_s for each in stalls) * 1e3,
        "typical_stall_ms": float(np.median([each.own_s for each in stalls])) * 1e3,
        "gross_stall_ms": max(each.gross_s for each in stalls) * 1e3,
        "idle_stall_ms": idle.own_s * 1e3,
    }
    return span.outcome(workload, items, tally, extras)


@dataclass(slots=True)
class Stall:
    """How much later than asked a probe was woken at worst.

    Attributes:
        gross_s: By the clock, in seconds.
        own_s: Without what the thread, ready to run, waited for a core that another had.
    """

    gross_s: float = 0.0
    own_s: float = 0.0


async def watched(work: Awaitable[object]) -> Stall:
    """Return the worst stall of the running loop while ``work`` is awaited."""
    worst = Stall()
    done = False

    async def probe() -> None:
        with core_waits() as waited:
            then, had_waited = perf_counter(), waited()
            while not done:
                await asyncio.sleep(PROBE_S)
                now, has_waited = perf_counter(), waited()
                late = now - then - PROBE_S
                worst.gross_s = max(worst.gross_s, late)
                worst.own_s = max(worst.own_s, late - (has_waited - had_waited))
                then, had_waited = now, has_waited

    watching = asyncio.create_task(probe())
    await asyncio.sleep(0)
    try:
        await work
    finally:
        done = True
        await watching
    return worst


@contextmanager
def core_waits() -> Iterator[Callable[[], float]]:
    """Yield what tells how long this thread has waited for a core so far, in seconds.

    The second number of Linux's ``schedstat``; 0 where there is none.
    """
    try:
        file = _SCHEDULED.open("rb", buffering=0)
    except OSError:
        yield lambda: 0.0
        return

    def waited() -> float:
        file.seek(0)
        return int(file.read().split()[1]) / 1e9

    with file:
        yield waited


def run_threads(
    workload: Workload, items: Sequence[Array], calls: Sequence[Callable[[], Array]], order: Order
) -> Outcome:
    """Run one closed round with a thread for each caller."""
    tallies = [Tally() for _ in calls]
    start = threading.Barrier(len(calls) + 1)
    with ThreadPoolExecutor(len(calls)) as pool:
        for index, call in enumerate(calls):
            pool.submit(_thread, start, index, call, order.seconds, tallies[index])
        span = Span()
        start.wait()
    total = Tally()
    for tally in tallies:
        total.latencies.extend(tally.latencies)
        total.answers.update(tally.answers)
        total.errors.extend(tally.errors)
    return span.outcome(workload, items, total)


def _thread(
    start: threading.Barrier, index: int, call: Callable[[], Array], seconds: float, tally: Tally
) -> None:
    start.wait()
    then = perf_counter()
    ends = then + seconds
    try:
        while then < ends:
            answer = call()
            now = perf_counter()
            tally.latencies.append(now - then)
            then = now
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is counted
        tally.failed(error)
    else:
        tally.answers[index] = answer


def cpu_s() -> float:
    """Return the user and system time of this process, all its threads, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _forget_peak() -> None:
    """Start the peak of memory anew where the kernel can (proc(5), clear_refs)."""
    try:
        _REFERENCES.write_text("5")
    except OSError:
        return


def _peak_mib() -> float:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
