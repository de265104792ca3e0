"""Which of several endpoints gets the next batch: power of two choices, and whether one is near.

Owns: the choice. Refuses to know: what health is (the caller leaves out the unhealthy and scales
the shares of the recovering), clocks, calls.

Two different candidates are drawn in proportion to their shares, and the one with fewer rows in
flight for its pace gets the batch. To ask two and not one makes the longest queue of n grow with
log log n where random choice has log n (Mitzenmacher, "The Power of Two Choices in Randomized Load
Balancing", 2001). To take the least loaded of all would send the batches of many clients to the
same endpoint at the same time, since each client sees only its own rows.

How closely the rows follow the shares: in proportion while calls come one after another, since of
two idle ones the first drawn wins; and in proportion when there is much in flight, since the loads
then keep the same ratio as the shares. In between whole batches round the ratio, and an endpoint
with a small share may get nothing while the others have fewer rows out for their shares.

Invariants: what is chosen is one of the candidates; the two compared are never the same one.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Generic, Protocol, TypeVar


class Candidate(Protocol):
    """An endpoint as it is compared with others."""

    @property
    def load(self) -> int:
        """Rows in flight."""
        ...

    @property
    def share(self) -> float:
        """Its weight times its health, above 0."""
        ...

    @property
    def pace(self) -> float:
        """Its share, less where its answers take much longer than others'; above 0."""
        ...

    @property
    def near(self) -> bool:
        """Whether it is reached without leaving this machine: see ``core.near``."""
        ...


C = TypeVar("C", bound=Candidate)


class Balancer(Generic[C]):
    """Chooses among candidates.

    Args:
        prefer_near: Whether those on this machine are chosen while there are any. The caller has
            left out the unhealthy ones before, so that locality yields to health; it does not
            yield to load.
        random: Gives numbers from 0 up to, but not including, 1.
    """

    __slots__ = ("_prefer_near", "_random")

    def __init__(
        self, *, prefer_near: bool = False, random: Callable[[], float] = random.random
    ) -> None:
        self._prefer_near = prefer_near
        self._random = random

    def choose(self, candidates: Sequence[C], rows: int = 1) -> C:
        """Return the candidate for the next batch (about 0.5 µs for three with equal shares).

        Args:
            candidates: At least one.
            rows: Rows of the batch.
        """
        if self._prefer_near:
            candidates = [candidate for candidate in candidates if candidate.near] or candidates
        count = len(candidates)
        if count == 1:
            return candidates[0]
        paces = [candidate.pace for candidate in candidates]
        if paces.count(paces[0]) < count:
            return self._by_share(candidates, rows)
        draw = self._random
        index = int(draw() * count)
        other = int(draw() * (count - 1))
        first = candidates[index]
        second = candidates[other if other < index else other + 1]
        return second if second.load < first.load else first

    def _by_share(self, candidates: Sequence[C], rows: int) -> C:
        shares = [candidate.share for candidate in candidates]
        index = _drawn(shares, self._random())
        first = candidates[index]
        del shares[index]
        other = _drawn(shares, self._random())
        second = candidates[other if other < index else other + 1]
        at_pace = first.pace == first.share and second.pace == second.share
        if at_pace and not (first.load or second.load):
            # Nobody waits at either. The larger would win each time by the rule below, and the
            # smaller would stand idle while calls come one by one.
            return first
        better = (second.load + rows) / second.pace < (first.load + rows) / first.pace
        return second if better else first


def _drawn(shares: Sequence[float], point: float) -> int:
    """Return the index that ``point``, from 0 to 1, falls on when the shares are laid end to end.

    The sum is of these shares, not what is left of an earlier sum: beside 1e300, 1 would be lost.
    """
    bounds = list(accumulate(shares))
    # The last is open upwards: a product with a subnormal or infinite sum may round up to it.
    return bisect_right(bounds, point * bounds[-1], 0, len(bounds) - 1)
