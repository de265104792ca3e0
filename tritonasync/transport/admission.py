"""Registering a region with a server, under a name of its own.

Owns: the names, and what an answer means. Refuses to know: who wants the region, and what is
remembered (``registrar`` does).

Invariants: a name is used once in the life of this process, so that a request which comes late
never touches memory that was registered anew. A key that the server has under another name is not
registered: before 2.69 that would work on a descriptor that the server has closed, and by then may
have opened for something else (server #8733). Where the other name is ours (two targets are one
server), it is used as well; who of us unregisters it has the others find out.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Final
from weakref import WeakValueDictionary

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import RegionExistsError, ServerError, TritonError
from tritonasync.transport.regions import RegionControl
from tritonasync.transport.registration import Registration, refusal_of

_epochs: Final = itertools.count(1)
"""Of the process: two pools, or two registrations of a region, never have a name in common."""

_asking: Final[WeakValueDictionary[str, asyncio.Lock]] = WeakValueDictionary()
"""By a region's own name: of it one registration is tried at a time."""

_TRIES: Final = 3
"""How many names to try; that one is taken tells that something is very wrong."""


async def register(control: RegionControl, entry: Registration, deadline: Deadline) -> str | None:
    """Register a region of which the server surely has no name, as far as we know.

    Its ``name`` is that which the server has or, if this raises, may have.

    Returns:
        The refusal, in a sentence; ``None`` if the server has it now.

    Raises as :meth:`RegionControl.register`, unless that is a refusal.
    """
    try:
        return await _register(control, entry, deadline)
    except ServerError as error:
        entry.name = None
        if error.retriable:
            raise
        return refusal_of(entry.region.kind, error)
    except TritonError as error:
        if not error.may_have_executed:
            entry.name = None
        raise


async def _register(control: RegionControl, entry: Registration, deadline: Deadline) -> str | None:
    region = entry.region
    # Two targets may be one server, and each has a registrar of its own.
    lock = _asking.setdefault(region.name, asyncio.Lock())
    async with lock:
        if region.kind == "system":
            held = await control.names("system", deadline)
            others = [other.name for other in held if other.key == region.key]
            if others and others[0].startswith(f"{region.name}."):
                entry.name = others[0]  # by another of our registrars: it is ours as well
                return None
            if others:
                return f"somebody else has made it known to the server, as {others[0]!r}"
        await _try_names(control, entry, deadline)
    return None


async def _try_names(control: RegionControl, entry: Registration, deadline: Deadline) -> None:
    for tries in range(1, _TRIES + 1):
        # From before it is sent: should nobody answer, the server may have it or not.
        entry.name = f"{entry.region.name}.{next(_epochs)}"
        try:
            await control.register(entry.name, entry.region, deadline)
        except RegionExistsError:  # it is not ours: the server keeps the mapping that it has
            if tries == _TRIES:
                raise
        else:
            return
