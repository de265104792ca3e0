"""What one attempt at a call has in shared memory.

Owns: the slots that were taken for it and the arrays that were there already, their places, and
what becomes of them when the attempt ends. Refuses to know: why a tensor is placed, messages.

Invariants: what was taken is released once, whoever leaves; what a server may still read or write
is handed to the registrar, which lets go of it when the server surely does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from tritonasync.core.ports import Region
from tritonasync.core.values import Array
from tritonasync.memory.arena import aligned
from tritonasync.memory.lease import Lease
from tritonasync.transport.registrar import Registrar
from tritonasync.wire.decode import View
from tritonasync.wire.messages import Place


def layout(sizes: Iterable[tuple[str, int]]) -> tuple[dict[str, int], int]:
    """Return where in a slot each tensor begins, aligned, and the size of the slot."""
    at: dict[str, int] = {}
    end = 0
    for name, nbytes in sizes:
        at[name] = end
        end += aligned(nbytes)
    return at, end


def _view(
    lease: Lease, begin: int, room: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """Return an output's array, within its own room."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > room:
        raise ValueError(f"{nbytes} bytes of shape {shape} are not in a place of {room}")
    return lease.view(begin, shape, dtype)


class _Borrowed:
    """An array of somebody else's in our memory, kept until a server is done with it."""

    __slots__ = ("array",)

    def __init__(self, array: Array) -> None:
        self.array: Array | None = array

    def confirm(self) -> None:
        self.array = None


class Cargo:
    """The slots and arrays of one attempt.

    Args:
        registrar: Told of what is in use, and given what is not sure to be free.

    Attributes:
        inputs: Where each placed input is: region, offset, bytes.
        outputs: The same for the room of each placed output.
        asked: The outputs to ask for, if one has a place.
        names: What the server calls the regions.
        views: What gives the arrays of placed outputs.
    """

    __slots__ = (
        "_borrowed",
        "_leases",
        "_registrar",
        "asked",
        "inputs",
        "names",
        "outputs",
        "views",
    )

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar
        self._leases: list[Lease] = []
        self._borrowed: list[tuple[Region, Array]] = []
        self.views: dict[str, View] = {}
        self.inputs: dict[str, tuple[Region, int, int]] = {}
        self.outputs: dict[str, tuple[Region, int, int]] = {}
        self.names: dict[str, str] = {}
        self.asked: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is placed."""
        return bool(self.inputs or self.outputs)

    # --- loading --------------------------------------------------------------------------------

    def borrow(self, name: str, array: Array, region: Region, offset: int) -> None:
        """Have an input sent from where it is."""
        self._borrowed.append((region, array))
        self.inputs[name] = region, offset, array.nbytes

    def stow(self, lease: Lease, at: dict[str, int], sizes: dict[str, int]) -> None:
        """Have inputs sent from a slot, whose taker it is from now on."""
        self._leases.append(lease)
        for name, begin in at.items():
            self.inputs[name] = lease.region, lease.offset + begin, sizes[name]

    def reserve(self, lease: Lease, at: dict[str, int], sizes: dict[str, int]) -> None:
        """Have outputs written to a slot, whose taker it is from now on.

        ``sizes`` has those without a place, too.
        """
        self.asked = tuple(sizes)
        lease.filled()
        self._leases.append(lease)
        for name, begin in at.items():
            self.outputs[name] = lease.region, lease.offset + begin, sizes[name]
            self.views[name] = partial(_view, lease, begin, sizes[name])

    def unload(self) -> None:
        """Give up what was taken: nothing was sent."""
        self.release()
        self._borrowed.clear()
        for places in (self.views, self.inputs, self.outputs, self.names):
            places.clear()
        self.asked = ()

    # --- sending --------------------------------------------------------------------------------

    def regions(self) -> dict[str, Region]:
        """Return the regions that are used, by their own names."""
        used = (*self.inputs.values(), *self.outputs.values())
        return {region.name: region for region, _, _ in used}

    def places(self, tensors: dict[str, tuple[Region, int, int]]) -> dict[str, Place]:
        """Return places as a server knows them."""
        names = self.names
        return {
            name: Place(names[region.name], offset, nbytes)
            for name, (region, offset, nbytes) in tensors.items()
        }

    def depart(self) -> Departed:
        """Take note that it goes out; return what is to be told of the end."""
        return Departed(
            self._registrar,
            list(self.regions().values()),
            dict(self.names),
            list(self._leases),
            list(self._borrowed),
        )

    def release(self) -> None:
        """Drop our own hold on all slots; what is out or viewed holds them further."""
        leases, self._leases = self._leases, []
        for lease in leases:
            lease.release()


class Departed:
    """What an RPC that is out has in shared memory; it keeps all of it until the RPC ends."""

    __slots__ = ("_borrowed", "_leases", "_names", "_regions", "_registrar")

    def __init__(
        self,
        registrar: Registrar,
        regions: list[Region],
        names: dict[str, str],
        leases: list[Lease],
        borrowed: list[tuple[Region, Array]],
    ) -> None:
        self._registrar = registrar
        self._regions = regions
        self._names = names
        self._leases = leases
        self._borrowed = borrowed
        for region in regions:
            registrar.enter(region)
        for lease in leases:
            lease.sent()

    def over(self, done: bool) -> None:  # noqa: FBT001 - what an endpoint calls
        """Take note of the RPC's end; ``done``: the server surely is done with it, too."""
        for region in self._regions:
            self._registrar.leave(region)
        for lease in self._leases:
            if done:
                lease.landed()
            else:
                lease.lost()
                self._retire(lease, lease.region)
        if not done:
            for region, array in self._borrowed:
                self._retire(_Borrowed(array), region)
        self._leases, self._borrowed = [], []

    def _retire(self, used: Lease | _Borrowed, region: Region) -> None:
        self._registrar.retire(used, region, self._names[region.name])
