"""What routing has done so far: a frozen snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from tritonasync.routing.member import EndpointHealth


@dataclass(frozen=True, slots=True)
class RoutingStatistics:
    """What routing has done so far.

    Attributes:
        retries: Attempts made after one that failed.
        hedges: Attempts made beside one that was slow.
        hedge_wins: Those of them that answered first.
        over_budget: Retries and hedges that the budget did not allow.
        sequences: Sequences whose state is known to be on some endpoint.
        endpoints: How each endpoint fares.
    """

    retries: int = 0
    hedges: int = 0
    hedge_wins: int = 0
    over_budget: int = 0
    sequences: int = 0
    endpoints: tuple[EndpointHealth, ...] = ()
