"""The calls about shared memory of one server: register, unregister, status, of both kinds.

Owns: the protobuf messages of these calls; above this file they are values of ``core``, and two of
its own. Refuses to know: when a region is registered, and under what name (``registrar`` does).

Invariants: a region is registered from its first byte on and as a whole, since an offset is applied
twice before 2.60 (server #8330): tensors are addressed by their own offsets. Nothing is ever
unregistered without a name, which would drop everybody's regions.

Sources: Triton's extensions of the KServe v2 protocol for shared memory, ``grpc_server.cc`` and
``shared_memory_manager.cc`` of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import DeviceError, RegionNotFoundError
from tritonasync.core.ports import Region
from tritonasync.core.values import MemoryKind
from tritonasync.transport.endpoint import Endpoint
from tritonasync.transport.protobuf import ask, pb
from tritonasync.transport.versions import ServerFeatures

_METHODS: Final[dict[MemoryKind, str]] = {
    "system": "SystemSharedMemory",
    "cuda": "CudaSharedMemory",
}
"""How the methods and messages of a kind begin."""

_HANDLE_NBYTES: Final = 64
"""The size of a ``cudaIpcMemHandle_t``. The server copies so many without looking."""

_ALIKE: Final[Mapping[int, int]] = MappingProxyType({})
"""The server counts its GPUs as this process does."""


@dataclass(frozen=True, slots=True)
class RegisteredRegion:
    """A region as a server has it registered.

    Attributes:
        name: Its name on the server, one name space for all kinds and clients.
        key: What the server opened it by; ``""`` for a device's memory.
        nbytes: How much of it.
    """

    name: str
    key: str
    nbytes: int


class RegionControl:
    """The typed calls about shared memory of one endpoint.

    Every method raises :class:`~tritonasync.core.errors.DeadlineExceededError` when its deadline
    passes, ``ServerError`` and ``TransportError`` as the call failed.

    Args:
        endpoint: Where to. Borrowed.
        devices: Which GPU of the server a GPU of this process is, where the numbers differ.
    """

    def __init__(self, endpoint: Endpoint, devices: Mapping[int, int] = _ALIKE) -> None:
        self._endpoint = endpoint
        self._devices = devices

    @property
    def target(self) -> str:
        """The gRPC target of the server."""
        return self._endpoint.target

    async def register(self, name: str, region: Region, deadline: Deadline) -> None:
        """Have the server map a region, known by a name from then on.

        Raises:
            DeviceError: The handle of a device's region is no handle.
            RegionExistsError: The name is taken; the server goes on with the mapping it has.
            RegionInvalidError: The server cannot open it, or it is smaller than it says.
            UnsupportedError: The server takes no shared memory from clients.
        """
        prefix = _METHODS[region.kind]
        request = getattr(pb, f"{prefix}RegisterRequest")(name=name, byte_size=region.nbytes)
        if region.kind == "system":
            request.key = region.key
        else:
            request.raw_handle = self._handle(region)
            request.device_id = self._devices.get(region.device_id, region.device_id)
        await ask(self._endpoint, f"{prefix}Register", request, deadline)

    def _handle(self, region: Region) -> bytes:
        handle = region.handle
        if len(handle) != _HANDLE_NBYTES:
            raise DeviceError(
                f"region {region.name!r} has a handle of {len(handle)} bytes, not {_HANDLE_NBYTES}",
                endpoint=self.target,
            )
        return handle

    async def unregister(self, name: str, kind: MemoryKind, deadline: Deadline) -> None:
        """Have the server let go of a region; nothing happens if it does not know the name.

        While requests use it: 2.50 to 2.52 refuse, later servers say yes and put it off (ask
        :meth:`registered`), and those before die of it.

        Raises:
            RegionInvalidError: It is in use.
            ValueError: The name is empty: that would drop the regions of all clients.
        """
        if not name:
            raise ValueError("a region is unregistered by its name; without, all clients' would go")
        prefix = _METHODS[kind]
        request = getattr(pb, f"{prefix}UnregisterRequest")(name=name)
        await ask(self._endpoint, f"{prefix}Unregister", request, deadline)

    async def registered(self, name: str, kind: MemoryKind, deadline: Deadline) -> bool:
        """Return whether the server has a region of this name."""
        try:
            return any(found.name == name for found in await self._status(name, kind, deadline))
        except RegionNotFoundError:
            return False

    async def names(self, kind: MemoryKind, deadline: Deadline) -> list[RegisteredRegion]:
        """Return all regions of a kind that the server has, those of other clients too."""
        return await self._status("", kind, deadline)

    async def _status(
        self, name: str, kind: MemoryKind, deadline: Deadline
    ) -> list[RegisteredRegion]:
        prefix = _METHODS[kind]
        request = getattr(pb, f"{prefix}StatusRequest")(name=name)
        answer = await ask(self._endpoint, f"{prefix}Status", request, deadline)
        return [
            RegisteredRegion(found.name, found.key if kind == "system" else "", found.byte_size)
            for found in answer.regions.values()
        ]

    async def guards_use(self, deadline: Deadline) -> bool:
        """Return whether the server, by its version, lets no region go that a request uses."""
        answer = await ask(self._endpoint, "ServerMetadata", pb.ServerMetadataRequest(), deadline)
        # The errors of streams and the guard of regions in use came with the same release, 2.50.
        return ServerFeatures.of(answer.version).stream_error_header
