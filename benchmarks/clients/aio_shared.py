"""tritonclient's ``grpc.aio`` with its helper for system shared memory, as its examples do."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc.aio as grpcclient
from tritonclient.utils import shared_memory

from benchmarks.clients import aio
from benchmarks.clients.data import Array
from benchmarks.clients.protocol import Order, Outcome
from benchmarks.clients.rounds import Call
from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True)
class Place:
    """A region that is registered: a caller's input, and behind it the output.

    Attributes:
        name: Its name on the server.
        handle: The helper's.
        nbytes: Of the input, and of the output.
    """

    name: str
    handle: Any
    nbytes: int


class AioShared(aio.Aio):
    """A region for each caller, registered once: the fewest calls that the helper allows.

    Answers are views: each is gone with the caller's next call.
    """

    async def open(self, url: str) -> None:
        """Connect."""
        await super().open(url)
        self.places: dict[int, Place] = {}
        self.numbers = itertools.count()

    async def aclose(self) -> None:
        """Unregister and remove the regions, then close the channel."""
        await self._let_go()
        await super().aclose()

    async def run(self, workload: Workload, items: list[Array], order: Order) -> Outcome:
        """Run one round; a new workload gets new regions."""
        if order.prepare:
            await self._let_go()
        return await super().run(workload, items, order)

    async def caller(self, workload: Workload, item: Array) -> Call:
        """Return a call; the batch axis is there before."""
        batch = item[None] if workload.rows is None else item
        if id(item) not in self.places:
            self.places[id(item)] = await self._place(batch.nbytes)
        place = self.places[id(item)]
        tensor = grpcclient.InferInput("INPUT0", list(batch.shape), workload.datatype)
        tensor.set_shared_memory(place.name, place.nbytes)
        wanted = grpcclient.InferRequestedOutput("OUTPUT0")
        wanted.set_shared_memory(place.name, place.nbytes, offset=place.nbytes)

        async def call() -> Array:
            shared_memory.set_shared_memory_region(place.handle, [batch])
            await self.client.infer(workload.model, [tensor], outputs=[wanted])
            answer: Array = shared_memory.get_contents_as_numpy(
                place.handle, batch.dtype, list(batch.shape), offset=place.nbytes
            )
            return answer

        return call

    async def _place(self, nbytes: int) -> Place:
        name = f"tritonclient-bench-{os.getpid()}-{next(self.numbers)}"
        handle = shared_memory.create_shared_memory_region(name, f"/{name}", 2 * nbytes)
        place = Place(name, handle, nbytes)
        try:
            await self.client.register_system_shared_memory(name, f"/{name}", 2 * nbytes)
        except BaseException:
            shared_memory.destroy_shared_memory_region(handle)
            raise
        return place

    async def _let_go(self) -> None:
        while self.places:
            _, place = self.places.popitem()
            await self.client.unregister_system_shared_memory(place.name)
            shared_memory.destroy_shared_memory_region(place.handle)
