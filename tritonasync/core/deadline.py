"""One absolute deadline per call, taken at the door.

Owns: the arithmetic. A public call turns its ``timeout_s`` into a :class:`Deadline` once; every
stage below takes the deadline and none takes a timeout, so that time spent in one stage is not
given again to the next.

Refuses to know: timers, loops, tasks. ``now`` is an argument wherever that keeps a decision pure;
its clock is :func:`time.monotonic`, which is also asyncio's.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

from tritonasync.core.errors import ConfigurationError, DeadlineExceededError, Stage


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock, with the budget it was made from.

    Attributes:
        at: Seconds on :func:`time.monotonic`; infinity for none.
        timeout_s: The whole budget in seconds, for messages; infinity for none.
    """

    at: float
    timeout_s: float

    @classmethod
    def after(
        cls, timeout_s: float | None, *, now: float | None = None, name: str = "timeout_s"
    ) -> Deadline:
        """Return the deadline ``timeout_s`` seconds from ``now``; ``None`` means no deadline.

        A ``timeout_s`` of zero is a deadline that has already passed. ``name`` is the option's name
        for the error.

        Raises:
            ConfigurationError: ``timeout_s`` is negative or not a number.
        """
        if timeout_s is None or timeout_s == math.inf:
            return NEVER
        try:
            possible = timeout_s >= 0  # false for NaN, too
        except TypeError:
            possible = False
        if not possible:
            raise ConfigurationError(f"{name} must be 0 or more seconds, not {timeout_s!r}")
        return cls((time.monotonic() if now is None else now) + timeout_s, float(timeout_s))

    def remaining(self, now: float | None = None) -> float:
        """Return the seconds left, never below zero; infinity when there is no deadline."""
        return max(0.0, self.at - (time.monotonic() if now is None else now))

    def wait_s(self) -> float | None:
        """Return the seconds left as asyncio's functions take them: ``None`` for no limit."""
        return None if self.at == math.inf else self.remaining()

    def expired(self, now: float | None = None) -> bool:
        """Return whether the deadline has passed."""
        return self.at <= (time.monotonic() if now is None else now)

    def error(
        self, stage: Stage, *, model: str | None = None, endpoint: str | None = None
    ) -> DeadlineExceededError:
        """Return the error that says which stage was at work when the time ran out."""
        subject = f"model {model!r}" if model else "the call"
        where = f" at {endpoint}" if endpoint else ""
        return DeadlineExceededError(
            f"{subject}{where}: the time of {self.timeout_s:g} s ran out in stage {stage!r} "
            f"({_STAGE_HINTS[stage]})",
            stage=stage,
            timeout_s=self.timeout_s,
            model=model,
            endpoint=endpoint,
        )

    def check(self, stage: Stage, *, model: str | None = None, endpoint: str | None = None) -> None:
        """Raise the error of :meth:`error` if the deadline has passed.

        Raises:
            DeadlineExceededError: The deadline has passed.
        """
        if self.expired():
            raise self.error(stage, model=model, endpoint=endpoint)


_STAGE_HINTS: Final[dict[Stage, str]] = {
    "queue": "waiting for a batch, or for its turn; nothing was sent",
    "headers": "waiting for the function that gives headers",
    "connect": "no connection to the server yet",
    "metadata": "asking the server for the model's signature",
    "encode": "building the message on this side",
    "send": "nothing was sent",
    "server": "sent and not yet answered; the server may still finish it",
    "memory": "waiting for shared memory, or for the server to map it; nothing was sent",
    "responses": "waiting for the next response; the server may go on with it",
}

NEVER: Final = Deadline(math.inf, math.inf)
"""No deadline."""
