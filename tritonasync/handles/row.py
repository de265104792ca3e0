"""Handles that make one answer of each row: those of a batch are read together, once.

Owns: the short way of an item, and what a batch's reply was read as, for all items in it. Refuses
to know: what the rows mean.

Among very many callers of ``one`` each microsecond of the event loop counts. Reading a reply is a
handful of numpy calls, which take 20 us whether for one row or for two hundred; so the first item
of a batch that comes by has all of it read, and the others take their rows.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TypeVar, cast

import numpy as np

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import InvalidRequestError, ModelNotFoundError
from tritonasync.core.offload import LONG_NBYTES
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import Array, InputTensor, Reply
from tritonasync.handles.architecture import Plug
from tritonasync.handles.binding import Binding
from tritonasync.handles.lanes import FindLane, Lanes, no_lane
from tritonasync.handles.slot import Casting
from tritonasync.handles.typed import Feed, TypedHandle

_R = TypeVar("_R")


class RowHandle(TypedHandle[_R, None]):
    """A typed handle whose results ``_R`` have one for each row, by index.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        casting: Which arrays are converted to the model's dtype unasked.
        plug: An architecture of the user's, which takes the place of the handle's own steps.
        lane: Gives the short way of items like those of a call, if there is one.
    """

    def __init__(
        self,
        name: str,
        version: str,
        invoker: Invoker,
        catalog: ModelCatalog,
        *,
        timeout_s: float | None,
        casting: Casting = "safe",
        plug: Plug | None = None,
        lane: FindLane = no_lane,
    ) -> None:
        super().__init__(
            name, version, invoker, catalog, timeout_s=timeout_s, casting=casting, plug=plug
        )
        self._lanes = Lanes(lane, name, version)
        self._lane_binding: Binding | None = None
        self._lane_timeout_s = self._deadline(None).timeout_s
        self._latest: tuple[Reply, _R] | None = None

    @abstractmethod
    def _goes_as_it_is(self, binding: Binding, value: object) -> bool:
        """Return whether a value is an array that the model takes without any step before."""

    async def _one(self, item: object, timeout_s: float | None) -> tuple[_R, int]:
        """Return results, and which of them is the item's."""
        lanes = self._lanes
        binding = self._lane_binding
        if (
            lanes.ways
            and binding is not None
            and item.__class__ is np.ndarray
            and (timeout_s is None or isinstance(timeout_s, float | int))  # pyright: ignore[reportUnnecessaryIsInstance]
        ):
            lane = lanes.ways.get(self._lane_timeout_s if timeout_s is None else timeout_s)
            landed = None if lane is None else lane.enter({binding.inputs[0].name: item})
            if landed is not None:
                try:
                    answer = await landed
                except (InvalidRequestError, ModelNotFoundError):
                    self._doubt_signature()
                    raise
                if answer is not None:
                    latest = self._latest
                    if latest is not None and latest[0] is answer[0]:
                        return latest[1], answer[1]
                    array, deadline = cast("Array", item), self._deadline(timeout_s)
                    return await self._landed(binding, *answer, array, deadline)
        return await self._run(item, timeout_s, item=True), 0

    def _forget(self) -> None:
        self._latest = None

    def _open_lane(
        self, binding: Binding, value: object, feed: Feed[None], deadline: Deadline
    ) -> None:
        if (
            binding.batched
            and len(binding.outputs) == len(binding.spec.outputs)
            and self._goes_as_it_is(binding, value)
        ):
            self._lane_binding = binding
            self._lanes.open(binding.signature, feed.tensors, deadline.timeout_s)

    async def _landed(
        self, binding: Binding, reply: Reply, row: int, item: Array, deadline: Deadline
    ) -> tuple[_R, int]:
        """Read the reply of the batch that an item was in, if nobody did so before."""
        output = reply.outputs.get(binding.output.name)
        if output is not None and not self._lacks(binding) and output.nbytes < LONG_NBYTES:
            results = self._read(binding, reply, len(output), None)
            self._latest = reply, results
            # All items of a batch are told in one turn of the loop, and this is the next. Not for
            # longer: a reply may lie in memory that is shared with the server.
            asyncio.get_running_loop().call_soon(self._forget)
            return results, row
        # Its own row alone, as if it had come alone: there is something to ask for, or so much to
        # read that others would wait for it.
        outputs = {name: array[row : row + 1] for name, array in reply.outputs.items()}
        own = Reply(reply.model, reply.version, outputs, reply.request_id, reply.parameters)
        if self._lacks(binding):
            name, kind = binding.input.name, binding.input.datatype
            sent = (InputTensor(name, kind, (1, *item.shape), (item[None],)),)
            await self._learn(binding, sent, own, deadline)
        return self._read(binding, own, 1, None), 0
