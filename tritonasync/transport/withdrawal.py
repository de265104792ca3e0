"""Unregistering a region until the server surely does not have it any more.

Owns: when it may be tried, the patience, and what counts as proof. Refuses to know: why a region is
to go, and what becomes of it then (``registrar`` does).

Invariants: no region is unregistered while calls of ours are out on it; nor, on a server that would
unmap it under a request, while one may be at work whose answer was never heard: there only a
restart frees it. A region is gone when the server says that it does not know the name, and not
before: it says yes to unregistering a region that is in use, and does it later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    PoolClosedError,
    ServerError,
    ServerUnreachableError,
    TritonError,
)
from tritonasync.transport.regions import RegionControl
from tritonasync.transport.registration import Registration

FIRST_PAUSE_S: Final = 0.005
LONGEST_PAUSE_S: Final = 1.0
"""The pauses between two tries double, from the one to the other."""

REPORT_AFTER_S: Final = 60.0
"""After so long it is worth a line in the log."""

ASK_TIMEOUT_S: Final = 30.0
"""How long one question may take."""

_log: Final = logging.getLogger("tritonasync.memory")


class Withdrawals:
    """Unregisters regions of one server.

    Args:
        control: The server's calls about regions.
        clock: The monotonic clock.

    Attributes:
        closing: Whether to give up where trying again is in vain.
    """

    def __init__(self, control: RegionControl, clock: Callable[[], float]) -> None:
        self._control = control
        self._clock = clock
        self._guarded: bool | None = None
        self._doubts = 0
        self.closing = False

    def doubt(self) -> None:
        """Take note that the server may be another one."""
        self._guarded = None
        self._doubts += 1

    async def run(self, entry: Registration) -> bool:
        """Unregister a region until it is gone; ``False`` if it is given up when closing."""
        began, reported, pause_s = self._clock(), False, FIRST_PAUSE_S
        try:
            while entry.calls or not await self._try(entry):
                if self.closing and entry.retired and self._guarded is False:
                    return False
                pause_s = await _pause(entry, pause_s)
                if not reported and self._clock() - began > REPORT_AFTER_S:
                    reported = True
                    self._report(entry)
        except (ServerUnreachableError, PoolClosedError):
            return False
        return True

    async def _try(self, entry: Registration) -> bool:
        """Return whether a region is gone, after doing what may be done about it.

        Raises:
            ServerUnreachableError: Nobody is there, and it closes. (And ``PoolClosedError``.)
        """
        assert entry.name is not None  # noqa: S101 - until it is gone
        kind, deadline = entry.region.kind, Deadline.after(ASK_TIMEOUT_S)
        try:
            if not entry.retired or await self._is_guarded(deadline):
                with contextlib.suppress(ServerError):  # it is in use: that the name is there tells
                    await self._control.unregister(entry.name, kind, deadline)
            return not await self._control.registered(entry.name, kind, deadline)
        except (ServerUnreachableError, PoolClosedError):
            if self.closing:
                raise
            return False
        except TritonError:
            return False

    async def _is_guarded(self, deadline: Deadline) -> bool:
        if self._guarded is None:
            doubts, guarded = self._doubts, await self._control.guards_use(deadline)
            if doubts != self._doubts:
                return False  # asked again the next time
            self._guarded = guarded
        return self._guarded

    def _report(self, entry: Registration) -> None:
        _log.warning(
            "%s: region %r is not let go by the server for %g s (%d calls are out on it, and %d "
            "parts wait for it that unanswered calls have used)",
            self._control.target,
            entry.region.name,
            REPORT_AFTER_S,
            entry.calls,
            len(entry.retired),
        )


async def _pause(entry: Registration, pause_s: float) -> float:
    """Wait for news, or for a while; return how long to wait the next time."""
    try:
        async with asyncio.timeout(pause_s):
            await entry.news.wait()
    except TimeoutError:
        return min(2 * pause_s, LONGEST_PAUSE_S)
    entry.news.clear()
    return FIRST_PAUSE_S
