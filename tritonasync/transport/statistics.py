"""What an endpoint has done so far: a frozen snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from tritonasync.transport.choice import TransportChoice


@dataclass(frozen=True, slots=True)
class SharingReport:
    """What an endpoint's calls had in shared memory.

    Attributes:
        placed: Attempts with a tensor in shared memory.
        on_wire: Calls that were to have one, and went on the wire all the same.
        reason: Why, the last time; ``None`` if there were none.
    """

    placed: int = 0
    on_wire: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """What an endpoint has done so far.

    Attributes:
        target: The gRPC target.
        in_flight: Calls sent and not yet ended, abandoned ones included.
        succeeded: Calls that ended with an answer.
        failed: Calls that ended with an error, those cancelled on the server included.
        abandoned: Calls whose caller had left, been let go, or run out of time before they ended.
        reconnections: Connections made anew that were answered on, all channels together.
        streams: Streams that are open.
        sharing: What its calls had in shared memory; ``None`` where that is not tried.
        choices: How calls are sent by model and size, where that is chosen (``transport="auto"``).
        server_version: The version the server gave, if it was asked (``cancel_on_server``).
    """

    target: str
    in_flight: int
    succeeded: int
    failed: int
    abandoned: int
    reconnections: int = 0
    server_version: str | None = None
    streams: int = 0
    choices: tuple[TransportChoice, ...] = ()
    sharing: SharingReport | None = None
