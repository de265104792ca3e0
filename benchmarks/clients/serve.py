"""The process of one client: ``python -m benchmarks.clients.serve NAME URL [--precise]``.

Reads orders from standard input, answers on standard output, ends when its input ends. What
libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import selectors
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import BinaryIO

from benchmarks.clients import data
from benchmarks.clients.base import Client
from benchmarks.clients.protocol import Failure, Hello, Message, Order, Outcome, from_line, to_line
from benchmarks.workloads import BY_NAME, Workload

MODULES = {
    "ours": ("ours", "Batched"),
    "ours-wire": ("ours", "Wire"),
    "ours-leased": ("leases", "Leased"),
    "ours-leased-anew": ("leases", "LeasedAnew"),
    "ours-unbatched": ("ours", "Unbatched"),
    "ours-placed": ("ours", "Placed"),
    "ours-unplaced": ("ours", "Unplaced"),
    "ours-unary": ("ours", "Unary"),
    "ours-stream": ("ours", "Streams"),
    "ours-one-stream": ("ours", "OneStream"),
    "ours-batched-stream": ("ours", "BatchedStreams"),
    "ours-auto": ("ours", "Auto"),
    "aio": ("aio", "Aio"),
    "aio-shared": ("aio_shared", "AioShared"),
    "stream": ("stream", "Stream"),
    "threads": ("threads", "Threads"),
    "pytriton": ("pytriton", "PyTriton"),
    "tritony": ("tritony", "Tritony"),
    "async-batcher": ("async_batcher", "AsyncBatcher"),
    "batched": ("batched", "Batched"),
    "perf": ("perf", "PerfAnalyzer"),
}


@dataclass(slots=True)
class Bench:
    """A client with the data of the workload that it runs at present."""

    client: Client
    workload: Workload | None = None
    items: list[data.Array] = field(default_factory=list)

    async def carry_out(self, order: Message) -> Outcome:
        """Run the round that is ordered."""
        if not isinstance(order, Order):
            raise TypeError(f"not an order: {order}")
        if order.prepare:
            self.workload = BY_NAME[order.workload]
            self.items = data.items(self.workload)
        if self.workload is None or self.workload.name != order.workload:
            raise LookupError(f"{order.workload} was not prepared")
        return await self.client.run(self.workload, self.items, order)


def make(name: str) -> Client:
    """Return the client of a name, not connected; imports its package."""
    module, kind = MODULES[name]
    client: Client = getattr(import_module(f"benchmarks.clients.{module}"), kind)()
    return client


async def serve(client: Client, url: str, orders: BinaryIO, answers: BinaryIO) -> None:
    """Answer orders until there are no more."""

    def answer(message: Message) -> None:
        answers.write(to_line(message))
        answers.flush()

    try:
        await client.open(url)
    except Exception as error:  # noqa: BLE001 - told to the other side
        answer(_failure(error))
        return
    answer(Hello(_versions(client.packages)))
    bench = Bench(client)
    while line := await asyncio.to_thread(orders.readline):
        try:
            result: Message = await bench.carry_out(from_line(line))
        except Exception as error:  # noqa: BLE001 - told to the other side
            result = _failure(error)
        answer(result)
    await client.aclose()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one client."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients.serve", description=__doc__)
    parser.add_argument("name", choices=MODULES)
    parser.add_argument("url")
    # epoll rounds a timer up to the next millisecond, which would be most of a latency here.
    parser.add_argument("--precise", action="store_true", help="timers of microseconds")
    options = parser.parse_args(arguments)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    factory = _precise_loop if options.precise else None
    try:
        client = make(options.name)
    except Exception as error:  # noqa: BLE001 - told to the other side
        answers.write(to_line(_failure(error)))
        return
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(client, options.url, sys.stdin.buffer, answers))


def _precise_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def _failure(error: Exception) -> Failure:
    return Failure(f"{type(error).__name__}: {error}")


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


if __name__ == "__main__":
    main()
