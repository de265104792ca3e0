"""Steady load whose every answer is checked against its input."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from tritonasync import TritonPool
from tritonasync.serving import EmbeddedTriton


def server(model: str = "ident") -> EmbeddedTriton:
    """A server with one model, which may be killed; not yet started."""
    return EmbeddedTriton(
        "tests/models", model_control="explicit", load_models=[model], metrics=False
    )


@dataclass(slots=True)
class Tally:
    """What became of the calls.

    Attributes:
        sent: Numbers of the calls made.
        answered: How often each number was answered.
        wrong: Numbers whose answer was another's.
        errors: What calls failed of, by class and message.
        slowest_s: The longest that an answer took.
        latencies_s: How long each answer took, if that is to be remembered.
        count: How many calls were answered.
    """

    sent: int = 0
    answered: Counter[int] = field(default_factory=Counter)
    wrong: list[int] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    count: int = 0

    def check(self) -> None:
        """Fail unless every call was answered, once, in time and with its own answer."""
        assert not self.errors, self.errors.most_common(5)
        assert not self.wrong, self.wrong[:5]
        assert self.count == self.sent, (self.count, self.sent)
        if self.answered:
            assert set(self.answered) == set(range(self.sent))
            assert set(self.answered.values()) == {1}


class Load:
    """Callers who call one after the other, until told to stop.

    Args:
        pool: The pool.
        callers: How many there are.
        timeout_s: The deadline of each call.
        pause_s: How long a caller rests after each answer.
        remember: Whether the number and the latency of each answered call are kept; a million
            take 130 MB.
        most: How many calls are made at most.
    """

    def __init__(
        self,
        pool: TritonPool,
        *,
        callers: int = 200,
        timeout_s: float = 20.0,
        pause_s: float = 0.0,
        remember: bool = True,
        most: int | None = None,
    ) -> None:
        self._model = pool.model("ident")
        self._callers = callers
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._remember = remember
        self._numbers = itertools.count()
        self._most = most
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []
        self.tally = Tally()

    async def __aenter__(self) -> Self:
        await self._model.spec()
        self._tasks = [asyncio.create_task(self._call_on()) for _ in range(self._callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def finished(self) -> None:
        """Wait until ``most`` calls were made."""
        await asyncio.gather(*self._tasks)

    async def _call_on(self) -> None:
        while not self._stop and (self._most is None or self.tally.sent < self._most):
            await self._call(next(self._numbers))
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    async def _call(self, number: int) -> None:
        tally = self.tally
        tally.sent += 1
        row = np.full(16, number % 2**24, np.float32)  # whole numbers that float32 can tell apart
        row[1] = number // 2**24
        began = time.monotonic()
        try:
            answer = (await self._model.one(INPUT0=row, timeout_s=self._timeout_s))["OUTPUT0"]
        except Exception as error:
            tally.errors[f"{type(error).__name__}: {error}"] += 1
            return
        took_s = time.monotonic() - began
        tally.slowest_s = max(tally.slowest_s, took_s)
        if answer.shape != (16,) or not (answer == row).all():
            tally.wrong.append(number)
        tally.count += 1
        if self._remember:
            tally.answered[number] += 1
            tally.latencies_s.append(took_s)

    async def rate(self, seconds: float) -> float:
        """Return the answers per second of the next so many seconds."""
        before, began = self.tally.count, time.monotonic()
        await asyncio.sleep(seconds)
        return (self.tally.count - before) / (time.monotonic() - began)

    async def rates(self, windows: int, seconds: float = 0.25) -> list[float]:
        """Return the answers per second of so many windows, one after the other."""
        return [await self.rate(seconds) for _ in range(windows)]


async def until_healthy(pool: TritonPool) -> None:
    """Wait until every endpoint has its full share again."""
    async with asyncio.timeout(30):
        while {health.state for health in pool.statistics().routing.endpoints} != {"healthy"}:
            await asyncio.sleep(0.02)
