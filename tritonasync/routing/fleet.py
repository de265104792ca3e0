"""The endpoints of a pool: which there are, which may be picked, and picking.

Owns: membership, and the list of those that may be picked, made anew only when something changed.
Refuses to know: what a call is, what is done when it fails.

Invariants: there is always somebody to pick (if nobody is well, everybody is tried: a try beats a
certain failure); a draining endpoint is picked by nobody; what is picked is loaded by the caller in
the same turn of the event loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from typing import Final

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.ports import Backend
from tritonasync.core.resilience import HealthPolicy
from tritonasync.routing.balancer import Balancer
from tritonasync.routing.health import HealthState
from tritonasync.routing.member import Member, ModelKey

_STEP_S: Final = 0.25
"""How often shares are worked out anew: they grow for endpoints that came back, and shrink for
those that are much slower than others."""


class Fleet:
    """The endpoints of a pool.

    Args:
        policy: When an endpoint is left out.
        prefer_near: Whether endpoints on the loopback interface come first.

    Attributes:
        members: The endpoints.
        on_trial: Whether what was picked last is on trial.
    """

    def __init__(self, policy: HealthPolicy, *, prefer_near: bool = False) -> None:
        self._policy = policy
        self._balancer: Balancer[Member] = Balancer(prefer_near=prefer_near)
        self.members: list[Member] = []
        self.on_trial: bool = False
        self._ready: list[Member] = []
        self._plain = True  # nobody is half open, and no model is ill anywhere
        self._due_at = -math.inf
        self._looked_at = time.monotonic()

    # --- membership -----------------------------------------------------------------------------

    def check_new(self, target: str) -> None:
        """Refuse a target that is there already.

        Raises:
            ConfigurationError: It is.
        """
        for member in self.members:
            if member.target == target:
                state = "is still being removed" if member.draining else "is there already"
                raise ConfigurationError(f"{target}: an endpoint of this pool; it {state}")

    def add(self, backend: Backend, *, weight: float) -> Member:
        """Take an endpoint in.

        Raises:
            ConfigurationError: It is there already.
        """
        self.check_new(backend.target)
        member = Member(backend, weight=weight, policy=self._policy, changed=self._touch)
        self.members.append(member)
        self._touch()
        return member

    def find(self, target: str) -> Member:
        """Return the endpoint with a target.

        Raises:
            ConfigurationError: There is none.
        """
        for member in self.members:
            if member.target == target:
                return member
        known = ", ".join([member.target for member in self.members])
        raise ConfigurationError(f"{target} is no endpoint of this pool, only: {known}")

    def retire(self, target: str) -> Member:
        """Send nothing new to an endpoint, and return it: the router then drains it.

        Raises:
            ConfigurationError: There is none, no other would be left, or it is being removed
                already.
        """
        member = self.find(target)
        if member.draining:
            raise ConfigurationError(f"{member.target} is being removed already")
        if all(other is member or other.draining for other in self.members):
            raise ConfigurationError(
                f"{member.target} is the pool's last endpoint: add another one first, or close the "
                "pool"
            )
        member.draining = True
        self._touch()
        return member

    def drop(self, member: Member) -> None:
        """Forget an endpoint."""
        self.members.remove(member)
        self._touch()

    def _touch(self) -> None:
        self._due_at = -math.inf

    # --- picking --------------------------------------------------------------------------------

    def pick(self, key: ModelKey, now: float, rows: int = 1) -> Member:
        """Return the endpoint for the first attempt at a call of a model.

        :attr:`on_trial` says whether this call is to find out if all is well there again.
        """
        self.on_trial = False
        if now >= self._due_at:
            self.refresh(now)
        ready = self._ready
        if not self._plain:
            trial = self._trial(key, now)
            if trial is not None:
                self.on_trial = True
                return trial
            ready = [member for member in ready if member.takes(key)] or ready
        return ready[0] if len(ready) == 1 else self._balancer.choose(ready, rows)

    @property
    def width(self) -> int:
        """How many endpoints share the calls, at least 1."""
        return len(self._ready) or 1

    def pick_other(self, key: ModelKey, tried: Collection[Member], now: float) -> Member:
        """Return the endpoint for another attempt: one that was not tried, if there is any."""
        if now >= self._due_at:
            self.refresh(now)
        well = [member for member in self._ready if member.takes(key)]
        staying = [member for member in self.members if not member.draining]
        for candidates in (
            [member for member in well if member not in tried],
            [member for member in staying if member not in tried and member.well],
            [] if well else [member for member in staying if member not in tried],
            well,
        ):
            if candidates:
                return self._choose(candidates)
        return self._choose(staying)

    def _choose(self, candidates: Sequence[Member]) -> Member:
        # Those that are left out have no share to be weighed by.
        weighed = [member for member in candidates if member.share > 0]
        return self._balancer.choose(weighed) if weighed else min(candidates, key=_load)

    def has_other(self, tried: Collection[Member]) -> bool:
        """Return whether there is an endpoint in use that was not tried."""
        return any(member not in tried for member in self._ready)

    def has_well_other(self, member: Member) -> bool:
        """Return whether an endpoint other than this one is well."""
        return any(other is not member and other.well for other in self.members)

    def _trial(self, key: ModelKey, now: float) -> Member | None:
        """Return an endpoint on which this call may find out whether all is well again."""
        for member in self.members:
            if member.draining:
                continue
            if member.health.state is HealthState.HALF_OPEN:
                if member.health.take_trial(now):
                    return member
            elif member.models:
                model = member.models.get(key)
                if (
                    model is not None
                    and model.state is HealthState.HALF_OPEN
                    and model.take_trial(now)
                ):
                    return member
        return None

    def refresh(self, now: float | None = None) -> None:
        """Work out anew who may be picked."""
        now = time.monotonic() if now is None else now
        due = math.inf
        for member in self.members:
            due = min(due, member.advance(now))
        staying = [member for member in self.members if not member.draining]
        self._ready = [member for member in staying if member.share > 0]
        if not self._ready:  # nobody is well, so everybody is tried
            self._ready = staying
            for member in staying:
                member.share = member.pace = member.weight
        self._plain = not any(
            member.models or member.health.state is HealthState.HALF_OPEN for member in staying
        )
        if len(staying) > 1:
            self._slow_down(now)
            due = min(due, now + _STEP_S)
        self._due_at = due

    def _slow_down(self, now: float) -> None:
        elapsed_s, self._looked_at = now - self._looked_at, now
        heard = [member.latency_s for member in self._ready if member.latency_s]
        if heard:
            best_s = min(heard)
            for member in self._ready:
                member.slow_down(best_s, elapsed_s)


def _load(member: Member) -> int:
    return member.load
