"""The shared memory of one endpoint: what is put together for it, and whether it is tried at all.

Owns: making registrar and invoker, whether the server can use a GPU's memory for a model, the
report. Refuses to know: how a call is placed (``placed``), other endpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConfigurationError, DeviceError, MissingExtraError
from tritonasync.core.near import is_near
from tritonasync.core.policies import MemoryPolicy
from tritonasync.core.values import Call
from tritonasync.memory.store import MemoryStore
from tritonasync.transport.channel import balanced
from tritonasync.transport.control import Control
from tritonasync.transport.endpoint import Endpoint
from tritonasync.transport.placed import Infer, PlacedInvoker
from tritonasync.transport.placement import Sharing
from tritonasync.transport.places import OutputNames, Places
from tritonasync.transport.regions import RegionControl
from tritonasync.transport.registrar import Registrar
from tritonasync.transport.statistics import SharingReport


def check_sharing(target: str, sharing: Sharing) -> None:
    """Refuse to insist on shared memory with a name that stands for several servers.

    Raises:
        ConfigurationError: It is insisted on, and the target is ``dns:`` or ``xds:``.
    """
    if sharing in {"system", "cuda"} and balanced(target):
        raise ConfigurationError(
            f"shared_memory={sharing!r} needs the addresses of servers on this machine: behind "
            f"{target!r} may be several, of which one would have the memory"
        )


def may_share(target: str, sharing: Sharing) -> bool:
    """Return whether it makes sense to try shared memory with a server.

    Unasked only if its address says that it is on this machine; never behind a name that stands for
    several servers, since a region is registered with one of them.
    """
    if sharing == "off" or balanced(target):
        return False
    return sharing != "auto" or is_near(target)


_LEAST_S: Final = 1.0
"""The least time that unregistering is given, which takes milliseconds."""


class Shared:
    """The shared memory of one endpoint.

    Args:
        endpoint: The endpoint. Borrowed.
        store: Where slots come from. Borrowed.
        policy: From what size on, and what to do without room.
        sharing: Which kind.
        wire: How a call goes that has nothing in shared memory.
        control: Asked for the configuration of models.
        on_shared: Called when the first call goes by shared memory.
        outputs_of: Tells the outputs of a model.

    Attributes:
        registrar: The regions that the server knows.
        infer: Runs one inference.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: MemoryStore,
        *,
        policy: MemoryPolicy,
        sharing: Sharing,
        wire: Infer,
        control: Control,
        on_shared: Callable[[], None],
        outputs_of: OutputNames,
    ) -> None:
        self._store = store
        self._control = control
        self._on_gpu: dict[tuple[str, str], bool] = {}
        self.registrar: Registrar = Registrar(RegionControl(endpoint, policy.devices))
        self._places = Places(
            self.registrar,
            store,
            policy=policy,
            sharing=sharing,
            gpu=self._gpu,
            outputs_of=outputs_of,
        )
        placed = PlacedInvoker(
            endpoint,
            self.registrar,
            store,
            self._places,
            wait=self._places.insisted and policy.when_full == "wait",
            wire=wire,
            on_shared=on_shared,
        )
        self.infer: Infer = placed.infer

    async def _gpu(self, call: Call) -> bool:
        """Return whether the server, and the model, can use this process's GPU memory."""
        key = call.model, call.version
        known = self._on_gpu.get(key)
        if known is None:
            known = await self._control.uses_gpu(call.model, call.version, call.deadline)
            self._on_gpu[key] = known
        return known and self._has_gpu()

    def _has_gpu(self) -> bool:
        try:
            return self._store.available("cuda")
        except (DeviceError, MissingExtraError):
            return False

    def restarted(self) -> None:
        """Take note that the server may be another process, with other models."""
        self._on_gpu.clear()
        self._places.restarted()
        self.registrar.restarted()

    def report(self) -> SharingReport:
        """Return what was shared so far."""
        return self._places.report()

    async def aclose(self, deadline: Deadline) -> None:
        """Have the server let go of all regions, as far as the deadline allows, or a little longer.

        A question that is torn down can crash a server as any call can.
        """
        await self.registrar.aclose(Deadline.after(max(deadline.remaining(), _LEAST_S)))

    def held(self) -> list[str]:
        """Return the names of regions that the server may still have."""
        return self.registrar.held()
