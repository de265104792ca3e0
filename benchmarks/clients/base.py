"""What a client's module offers to the process that runs it."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable

from benchmarks.clients import responses, rounds
from benchmarks.clients.data import Array
from benchmarks.clients.protocol import Order, Outcome
from benchmarks.clients.responses import Ask
from benchmarks.clients.rounds import Call
from benchmarks.workloads import Workload


class Client(abc.ABC):
    """One way to put load on a Triton server."""

    packages: tuple[str, ...] = ()
    """Whose versions the report tells."""

    async def open(self, url: str) -> None:  # noqa: B027 - a generator of load has nothing to open
        """Connect to the server's gRPC port."""

    async def aclose(self) -> None:  # noqa: B027 - the same
        """Close in order, nothing being in flight."""

    @abc.abstractmethod
    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run one round."""


class AsyncClient(Client):
    """A client whose callers are tasks."""

    @abc.abstractmethod
    async def caller(self, workload: Workload, item: Array) -> Call:
        """Return what one of the workload's callers does over and over."""

    async def reader(self, workload: Workload, item: Array) -> Ask:
        """Return what one of the workload's readers of many responses does over and over."""
        raise LookupError(f"{type(self).__name__} cannot read many responses")

    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run one round, a task for each caller."""
        if workload.responses is not None:
            asks = [await self.reader(workload, item) for item in items]
            return await responses.run(workload, items, asks, order)
        calls = [await self.caller(workload, item) for item in items]
        return await rounds.run(workload, items, calls, order)


class ThreadedClient(Client):
    """A client that blocks: its callers are threads."""

    most_threads: int

    @abc.abstractmethod
    def blocking_caller(self, workload: Workload, item: Array) -> Callable[[], Array]:
        """Return what a thread does over and over."""

    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run one round, in as many threads as there are callers, up to ``most_threads``."""
        some = items[: self.most_threads]
        calls = [self.blocking_caller(workload, item) for item in some]
        return await asyncio.to_thread(rounds.run_threads, workload, some, calls, order)
