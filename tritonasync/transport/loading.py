"""Tensors into shared memory: the one copy, and room for what comes back.

Owns: taking slots, writing a tensor's parts into them, telling what lies in our memory already.
Refuses to know: whether a call should be placed, messages, endpoints.

Invariant: a slot is called filled when all of its bytes are there, on a device, too.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import replace
from functools import partial
from typing import Final

from tritonasync.core.deadline import Deadline
from tritonasync.core.offload import in_worker
from tritonasync.core.ports import Region
from tritonasync.core.values import Call, InputTensor, MemoryKind
from tritonasync.memory.device import as_host, settled
from tritonasync.memory.lease import Lease
from tritonasync.memory.store import MemoryStore
from tritonasync.transport.cargo import Cargo, layout
from tritonasync.transport.placement import LEAST_NBYTES
from tritonasync.transport.registrar import Registrar
from tritonasync.wire.placed import contents, placeable

LONG_COPY_NBYTES: Final = 8 << 20
"""Larger copies are made in a worker thread. Memory is copied at 5 to 20 GB/s, so that this much
holds the event loop up for 2 ms at most; a thread would cost a batch 0.2 ms of processor time."""


class Loader:
    """Puts tensors where a server can reach them.

    Args:
        registrar: Tells what the server calls a region. Borrowed.
        store: Where slots come from. Borrowed.
    """

    def __init__(self, registrar: Registrar, store: MemoryStore) -> None:
        self._registrar = registrar
        self._store = store

    async def load(self, call: Call, kind: MemoryKind, cargo: Cargo, *, wait: bool) -> bool:
        """Put the inputs in place, and ``wait`` for room; return whether that could be done.

        Raises:
            InvalidInputError: Parts do not add up to their tensor.
            MemoryExhaustedError: There is no room.
            DeadlineExceededError: The call's deadline passed.
        """
        sizes = _loaded(call)
        copied: list[InputTensor] = []
        for tensor in call.inputs:
            if tensor.name not in sizes:
                continue
            # As the wire has it: what had to be put in its order does not lie there any more.
            parts = contents(tensor, call)
            place = self._store.find(parts[0]) if len(parts) == 1 else None
            if place is None or place[0].kind != kind:
                copied.append(tensor)
            elif not await self._named(place[0], call, cargo):
                return False
            else:
                cargo.borrow(tensor.name, parts[0], *place)
        if not copied:
            return True
        at, nbytes = layout([(tensor.name, sizes[tensor.name]) for tensor in copied])
        lease = await self._take(kind, nbytes, f"inputs of model {call.model!r}", call, wait=wait)
        cargo.stow(lease, at, sizes)
        if not await self._named(lease.region, call, cargo):
            return False
        await _fill(lease, _copies(lease, at, copied, call), nbytes, call)
        return True

    async def make_room(
        self, call: Call, kind: MemoryKind, sizes: dict[str, int], cargo: Cargo, *, wait: bool
    ) -> bool:
        """Take a slot for outputs of these sizes; return whether that could be done.

        Raises as :meth:`load`.
        """
        large = {name: n for name, n in sizes.items() if n >= LEAST_NBYTES}
        if not large:
            return True
        at, nbytes = layout(large.items())
        lease = await self._take(kind, nbytes, f"outputs of model {call.model!r}", call, wait=wait)
        cargo.reserve(lease, at, sizes)
        return await self._named(lease.region, call, cargo)

    async def _take(
        self, kind: MemoryKind, nbytes: int, purpose: str, call: Call, *, wait: bool
    ) -> Lease:
        lease = self._store.take_nowait(kind, nbytes, purpose)
        if lease is not None:
            return lease
        # A batch's deadline lies beyond those of its callers; nothing was sent yet.
        deadline = call.deadline
        if call.wanted_until < deadline.at:
            deadline = Deadline(call.wanted_until, deadline.timeout_s)
        return await self._store.take(kind, nbytes, purpose, deadline, call.model, wait=wait)

    async def _named(self, region: Region, call: Call, cargo: Cargo) -> bool:
        """Learn what the server calls a region; return whether it may be used."""
        name = self._registrar.known(region) or await self._registrar.name_for(
            region, call.deadline
        )
        if name is None:
            return False
        cargo.names[region.name] = name
        return True


def _loaded(call: Call) -> dict[str, int]:
    return {name: n for name, n in placeable(call).items() if n >= LEAST_NBYTES or call.device}


def loaded_nbytes(call: Call) -> int:
    """Return the bytes of the inputs that get a place, if any does."""
    return sum(_loaded(call).values())


def _copies(
    lease: Lease, at: dict[str, int], tensors: list[InputTensor], call: Call
) -> Callable[[], None]:
    """Return what copies tensors into a slot; it may block."""
    parts = [(at[tensor.name], contents(tensor, call)) for tensor in tensors]
    # Between a GPU and the host's memory lies a copy of CuPy's own, on the array's own stream.
    fetch = call.device and lease.region.kind == "system"

    def copy() -> None:
        for begin, arrays in parts:
            lease.write(begin, as_host(arrays) if fetch else arrays)

    return copy


async def _fill(lease: Lease, copy: Callable[[], None], nbytes: int, call: Call) -> None:
    """Copy, and return when the bytes are there."""
    if nbytes <= LONG_COPY_NBYTES and not call.device:
        copy()
    else:
        await in_worker(copy, deadline=call.deadline, model=call.model)
    for completion in list(lease.pending):
        await settled(completion)
    lease.filled()


async def hosted(call: Call, besides: Container[str] = ()) -> Call:
    """Return a call whose inputs are in the host's memory, fetched if need be.

    Args:
        call: The call.
        besides: Names of inputs that are left as they are.
    """
    if not call.device:
        return call
    work = partial(_fetched, call, besides)
    return await in_worker(work, deadline=call.deadline, model=call.model)


def _fetched(call: Call, besides: Container[str]) -> Call:
    inputs = tuple(
        [
            tensor
            if tensor.name in besides
            else replace(tensor, parts=tuple(as_host(tensor.parts)))
            for tensor in call.inputs
        ]
    )
    return replace(call, inputs=inputs, device=False)
