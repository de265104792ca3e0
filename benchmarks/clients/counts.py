"""What a pool does for its calls that they do not show: copies, places, registrations.

Owns: the counts of a round, from the pool's own statistics; registrations, which it does not tell,
by a wrapper around the one call that makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

from benchmarks.clients.protocol import Outcome
from benchmarks.workloads import Workload
from tritonasync import TritonPool
from tritonasync.core.deadline import Deadline
from tritonasync.core.ports import Region
from tritonasync.transport.regions import RegionControl


@dataclass(frozen=True, slots=True)
class Counts:
    """What a pool has done so far, or in a round.

    Attributes:
        copied_nbytes: Bytes that it copied into shared memory.
        placed: Attempts with a tensor in shared memory.
        on_wire: Calls that were to have one, and went on the wire.
        registrations: Regions that were offered to a server.
    """

    copied_nbytes: int
    placed: int
    on_wire: int
    registrations: int

    def __sub__(self, earlier: Counts) -> Counts:
        """Return what came since."""
        return Counts(
            self.copied_nbytes - earlier.copied_nbytes,
            self.placed - earlier.placed,
            self.on_wire - earlier.on_wire,
            self.registrations - earlier.registrations,
        )

    def extras(self, workload: Workload, outcome: Outcome, row_nbytes: int) -> dict[str, float]:
        """Return the measures of a round; none if nothing was placed, or to be placed.

        Args:
            workload: What was run.
            outcome: What came of it.
            row_nbytes: Of the inputs of one row.
        """
        calls, shared = outcome.rows / workload.rows_per_call, self.placed + self.on_wire
        if not calls or not shared:
            return {}
        return {
            "copies_per_row": self.copied_nbytes / (outcome.rows * row_nbytes),
            "placed_share": self.placed / shared,
            "registrations_per_call": self.registrations / calls,
        }


def count_registrations() -> Callable[[], int]:
    """Return what tells how many regions this process has offered to servers from now on."""
    register, count = RegionControl.register, 0

    @wraps(register)
    async def counted(
        control: RegionControl, name: str, region: Region, deadline: Deadline
    ) -> None:
        nonlocal count
        count += 1
        await register(control, name, region, deadline)

    setattr(RegionControl, register.__name__, counted)
    return lambda: count


def counts_of(pool: TritonPool, registrations: int) -> Counts:
    """Return what a pool of one endpoint has done so far."""
    now = pool.statistics()
    (endpoint,) = now.endpoints
    memory, sharing = now.memory.get("system"), endpoint.sharing
    return Counts(
        copied_nbytes=memory.copied_nbytes if memory else 0,
        placed=sharing.placed if sharing else 0,
        on_wire=sharing.on_wire if sharing else 0,
        registrations=registrations,
    )
