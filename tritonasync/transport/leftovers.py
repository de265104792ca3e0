"""The regions that dead clients have left on a server.

Owns: finding them by their names, and unregistering them. Refuses to know: how it is told that a
process is dead (a function does that, ``memory.janitor`` by default), and the files, which are the
janitor's.

Invariants: only names are touched that begin as ours do and whose process is certainly gone; and no
name on a server that would unmap a region under a request that the dead client has left behind.

The server must see the same shared-memory folder as this process, or the living look dead: it is
asked only after it has opened a region of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ServerError
from tritonasync.core.values import MemoryKind
from tritonasync.memory.guard import PREFIX
from tritonasync.transport.regions import RegionControl

_KINDS: Final[tuple[MemoryKind, ...]] = ("system", "cuda")

_PAUSES_S: Final = (0.05, 0.5, 5.0, 30.0, 0.0)
"""How long to wait after each round for requests that still use a region."""


async def unregister_dead(
    control: RegionControl, is_dead: Callable[[str], bool], timeout_s: float
) -> None:
    """Unregister what belongs to dead processes; those in use again after a while.

    Args:
        control: The server's calls about regions.
        is_dead: Tells whether the process that a name belongs to is gone; called in a thread.
        timeout_s: Seconds that each question may take.

    Raises as the methods of :class:`RegionControl`.
    """
    if not await control.guards_use(Deadline.after(timeout_s)):
        return
    for pause_s in _PAUSES_S:
        left: list[tuple[str, MemoryKind]] = [
            (name, kind)
            for kind in _KINDS
            for name in await _dead_names(control, kind, is_dead, timeout_s)
        ]
        if not left:
            return
        for name, kind in left:
            with contextlib.suppress(ServerError):  # in use: see the next round
                await control.unregister(name, kind, Deadline.after(timeout_s))
        await asyncio.sleep(pause_s)


async def _dead_names(
    control: RegionControl, kind: MemoryKind, is_dead: Callable[[str], bool], timeout_s: float
) -> list[str]:
    found = await control.names(kind, Deadline.after(timeout_s))
    names = [region.name for region in found if region.name.startswith(PREFIX)]
    if not names:
        return []
    return await asyncio.to_thread(lambda: [name for name in names if is_dead(name)])
