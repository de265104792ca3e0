"""Registering a region with a server, under a name of its own.

Owns: the names, and what an answer means. Refuses to know: who wants the region, and what is
remembered (``registrar`` does).

Invariants: a name is used once in the life of this process, so that a request which comes late
never touches memory that was registered anew. A key that the server has under another name is not
registered: before 2.69 that would work on a descriptor that the server has closed, and by then may
have opened for something else (server #8733).
"""

from __future__ import annotations

import itertools
from typing import Final

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import RegionExistsError, ServerError, TritonError
from tritonasync.transport.regions import RegionControl
from tritonasync.transport.registration import Registration, refusal_of

_epochs: Final = itertools.count(1)
"""Of the process: two pools, or two targets that are one server, never share a name."""

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
    if region.kind == "system":
        held = await control.names("system", deadline)
        others = [other.name for other in held if other.key == region.key]
        if others:
            return f"the server has it already, as {others[0]!r}: is it in use by another target?"
    for tries in range(1, _TRIES + 1):
        # From before it is sent: should nobody answer, the server may have it or not.
        entry.name = f"{region.name}.{next(_epochs)}"
        try:
            await control.register(entry.name, region, deadline)
        except RegionExistsError:  # it is not ours: the server keeps the mapping that it has
            if tries == _TRIES:
                raise
        else:
            break
    return None
