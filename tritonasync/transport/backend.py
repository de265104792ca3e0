"""One endpoint as routing and the pool see it.

Owns: nothing but the endpoint; puts together what calls it, asks it and closes it. Refuses to know:
other endpoints.
"""

from __future__ import annotations

from collections.abc import Callable

from tritonasync.core.deadline import Deadline
from tritonasync.core.values import ModelSpec
from tritonasync.transport.control import Control
from tritonasync.transport.endpoint import Endpoint
from tritonasync.transport.statistics import EndpointStatistics
from tritonasync.transport.unary import UnaryInvoker


class EndpointBackend:
    """A server behind an :class:`Endpoint` (a :class:`~tritonasync.core.ports.Backend`).

    Args:
        endpoint: Where to. Owned from here on.

    Attributes:
        endpoint: The endpoint.
        control: Its administration calls.
        infer: Runs one inference; as :meth:`UnaryInvoker.infer`.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.control = Control(endpoint)
        self.infer = UnaryInvoker(endpoint).infer  # itself: a method of ours would cost each call

    def __repr__(self) -> str:
        return f"<EndpointBackend {self.target}>"

    @property
    def target(self) -> str:
        """The gRPC target, which names the endpoint."""
        return self.endpoint.target

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        """Return the signature of a model as this endpoint serves it.

        Raises as :class:`Control`'s methods do; the questions below as well.
        """
        return await self.control.describe(model, version, deadline)

    async def ready(self, deadline: Deadline) -> bool:
        """Return whether the server says that it is ready."""
        return await self.control.ready(deadline)

    async def model_ready(self, model: str, version: str, deadline: Deadline) -> bool:
        """Return whether the server says that a model is ready."""
        return await self.control.model_ready(model, version, deadline)

    def silent_since(self) -> float:
        """Return since when calls are out and nothing was answered; see :class:`Endpoint`."""
        return self.endpoint.silent_since()

    def let_go(self, reason: str) -> None:
        """Let the callers of idempotent calls go, and reconnect; see :class:`Endpoint`."""
        self.endpoint.let_go(reason)

    def watch_reconnections(self, callback: Callable[[], None]) -> None:
        """Have a function called when a connection made anew was answered on first."""
        self.endpoint.watch_reconnections(callback)

    def statistics(self) -> EndpointStatistics:
        """Return what the endpoint has done so far."""
        return self.endpoint.statistics()

    async def aclose(self, deadline: Deadline) -> None:
        """Close the endpoint, as :meth:`Endpoint.aclose` does."""
        await self.endpoint.aclose(deadline)
