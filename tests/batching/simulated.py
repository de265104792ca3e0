"""A server, a way to it, callers and a batching driver in virtual time, to try limiters on.

Deterministic: the same seed gives the same run. The server is first come, first served, so that a
batch's answer is known when it is sent; the driver sends whenever rows wait and the limit allows.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

Noise = Callable[[random.Random], float]


def steady(rng: random.Random) -> float:
    return 1.0


def scattered(rng: random.Random) -> float:
    """A factor with a standard deviation of a third and mean 1."""
    return math.exp(rng.gauss(-0.05, 0.32))


def stalling(rng: random.Random) -> float:
    """Mostly 0.8 to 1.2; one in fifty takes ten times as long, as when a heap is collected."""
    return rng.uniform(0.8, 1.2) * (10 if rng.random() < 0.02 else 1)


@dataclass(frozen=True)
class Server:
    """``instances`` that each take ``batch_s + rows * row_s`` seconds, ``way_s`` away.

    ``noise`` multiplies what the instances take; ``lateness`` is by how much more of the unloaded
    latency the client notices an answer late, while the server goes on.
    """

    instances: int = 1
    batch_s: float = 0.010
    row_s: float = 0.0
    way_s: float = 0.000_25
    noise: Noise = steady
    lateness: Noise = lambda rng: 0.0

    def unloaded_s(self, rows: int) -> float:
        return self.batch_s + rows * self.row_s + 2 * self.way_s


class Limit(Protocol):
    limit: int

    def answered(self, *, rows: int, latency_s: float, in_flight: int, now: float) -> None: ...


class Fixed:
    """What an adaptive limit is measured against."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def answered(self, *, rows: int, latency_s: float, in_flight: int, now: float) -> None:
        pass


class Crowd:
    """More callers than any limit has use for: each batch is full, or of the next of ``sizes``."""

    def __init__(self, *sizes: int) -> None:
        self.arrival = math.inf
        self.sizes = itertools.cycle(sizes) if sizes else None

    def take(self, most: int) -> list[float] | int:
        return min(most, next(self.sizes)) if self.sizes else most

    def arrive(self, rng: random.Random) -> None: ...

    def back(self, rows: int, now: float, rng: random.Random) -> None: ...


class Poisson:
    """``rate`` rows per second, whatever becomes of them."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.arrival = 0.0
        self.waiting: deque[float] = deque()

    def take(self, most: int) -> list[float] | int:
        return [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]

    def arrive(self, rng: random.Random) -> None:
        self.waiting.append(self.arrival)
        self.arrival += rng.expovariate(self.rate)

    def back(self, rows: int, now: float, rng: random.Random) -> None: ...


class Callers:
    """``count`` callers: each asks for a row, thinks for ``think_s`` on average, asks again."""

    def __init__(self, count: int, think_s: float) -> None:
        self.think_s = think_s
        self.arrivals = [0.0] * count
        self.waiting = 0

    @property
    def arrival(self) -> float:
        return self.arrivals[0] if self.arrivals else math.inf

    def take(self, most: int) -> list[float] | int:
        rows = min(most, self.waiting)
        self.waiting -= rows
        return rows

    def arrive(self, rng: random.Random) -> None:
        heapq.heappop(self.arrivals)
        self.waiting += 1

    def back(self, rows: int, now: float, rng: random.Random) -> None:
        for _ in range(rows):
            heapq.heappush(self.arrivals, now + rng.expovariate(1 / self.think_s))


class Sent(NamedTuple):
    answer_at: float
    order: int
    rows: int
    sent_at: float
    in_flight: int
    arrived_at: list[float]


class Answer(NamedTuple):
    at: float
    rows: int
    limit: int


class Simulation:
    """Runs callers against a server under a limit, and keeps what happened.

    Attributes:
        now: Virtual seconds since the start.
        answers: Each answered batch, with the limit after it.
        waits: Of each row of Poisson arrivals, when it was answered and after how long.
    """

    def __init__(
        self,
        server: Server,
        limiter: Limit,
        callers: Crowd | Poisson | Callers | None = None,
        *,
        max_rows: int = 256,
        seed: int = 1,
    ) -> None:
        self.server = server
        self.limiter = limiter
        self.callers = callers or Crowd()
        self.max_rows = max_rows
        self.rng = random.Random(seed)
        self.now = 0.0
        self.answers: list[Answer] = []
        self.waits: list[tuple[float, float]] = []
        self._out: list[Sent] = []
        self._order = 0
        self._free_at = [0.0] * server.instances

    def change(self, **fields: object) -> None:
        """Make the server another one; what it has begun ends as it would have."""
        before = len(self._free_at)
        self.server = replace(self.server, **fields)
        after = self.server.instances
        busiest = sorted(self._free_at)[-after:]
        self._free_at = busiest + [self.now] * (after - before)
        heapq.heapify(self._free_at)

    def run(self, *, batches: int) -> Simulation:
        """Go on until so many more batches are answered."""
        target = len(self.answers) + batches
        self._send()
        while len(self.answers) < target:
            answer_at = self._out[0].answer_at if self._out else math.inf
            if self.callers.arrival <= answer_at:
                self.now = self.callers.arrival
                self.callers.arrive(self.rng)
            else:
                self._answer(heapq.heappop(self._out))
            self._send()
        return self

    def _send(self) -> None:
        while len(self._out) < self.limiter.limit:
            taken = self.callers.take(self.max_rows)
            rows, arrived_at = (taken, []) if isinstance(taken, int) else (len(taken), taken)
            if not rows:
                return
            self._order += 1
            sent = Sent(
                self._serve(rows), self._order, rows, self.now, len(self._out) + 1, arrived_at
            )
            heapq.heappush(self._out, sent)

    def _serve(self, rows: int) -> float:
        server = self.server
        work_s = (server.batch_s + rows * server.row_s) * server.noise(self.rng)
        done_at = max(self.now + server.way_s, self._free_at[0]) + work_s
        heapq.heapreplace(self._free_at, done_at)
        return done_at + server.way_s + server.lateness(self.rng) * server.unloaded_s(rows)

    def _answer(self, sent: Sent) -> None:
        self.now = sent.answer_at
        self.callers.back(sent.rows, self.now, self.rng)
        self.limiter.answered(
            rows=sent.rows,
            latency_s=self.now - sent.sent_at,
            in_flight=sent.in_flight,
            now=self.now,
        )
        self.answers.append(Answer(self.now, sent.rows, self.limiter.limit))
        self.waits += [(self.now, self.now - at) for at in sent.arrived_at]

    def row_rate(self, first: int = 0, last: int | None = None) -> float:
        """Return the rows per second between the answers of two batches, counted from 0."""
        some = self.answers[first:last]
        return sum(answer.rows for answer in some[1:]) / (some[-1].at - some[0].at)

    def limit(self, first: int = 0, last: int | None = None) -> int:
        """Return the median limit between two answers."""
        limits = sorted(answer.limit for answer in self.answers[first:last])
        return limits[len(limits) // 2]

    def wait_s(self, share: float, *, after_s: float) -> float:
        """Return a quantile of the rows' time from arriving to the answer."""
        waits = sorted(wait_s for at, wait_s in self.waits if at > after_s)
        return waits[int(share * len(waits))]
