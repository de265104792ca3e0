"""What a failed call says: about whom, and whether it may be sent again.

Owns: two decisions over the error tree. Pure. Refuses to know: messages, counters, time.

A server that answers, even with "no", is alive: only its silence, and its own word that it is going
down, speak against the endpoint. What a model lacks speaks against that model there.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from tritonasync.core.errors import (
    ConnectionLostError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelUnhealthyError,
    PoolClosedError,
    ProtocolError,
    QueueFullError,
    ServerError,
    ServerNotReadyError,
    ServerUnreachableError,
    TritonError,
)


class Verdict(Enum):
    """Whom an error speaks against."""

    NOBODY = "it answered, and the call or the load was at fault"
    UNKNOWN = "nothing was learned: time was up, or nothing was sent"
    ENDPOINT = "the endpoint failed"
    MODEL = "the model there failed"
    MODEL_MISSING = "the model cannot answer there at all"
    MODEL_RAISED = "the model raised: its fault, or the input's"


_VERDICTS: Final[tuple[tuple[type[TritonError], Verdict], ...]] = (
    # From the narrow to the wide: the first that fits decides.
    (ModelUnhealthyError, Verdict.MODEL),
    (ModelFailedError, Verdict.MODEL_RAISED),
    (ModelNotReadyError, Verdict.MODEL_MISSING),
    (ModelNotFoundError, Verdict.MODEL_MISSING),
    (ServerNotReadyError, Verdict.ENDPOINT),
    (ServerUnreachableError, Verdict.ENDPOINT),
    (ConnectionLostError, Verdict.ENDPOINT),
    (ProtocolError, Verdict.ENDPOINT),
    (QueueFullError, Verdict.UNKNOWN),  # it may be the endpoint's own limit, on this side
    (ServerError, Verdict.NOBODY),
)

_ELSEWHERE_ONLY: Final = (QueueFullError, ModelNotFoundError)
"""Worth another endpoint, never the same one: a full queue wants less load and not more, and a
model that is not there does not appear. The models of a fleet need not be the same everywhere."""


def verdict_of(error: TritonError) -> Verdict:
    """Return whom an error speaks against."""
    for kind, verdict in _VERDICTS:
        if isinstance(error, kind):
            return verdict
    return Verdict.UNKNOWN


def may_retry(error: TritonError, *, idempotent: bool, elsewhere: bool) -> bool:
    """Return whether a call that failed may be sent again.

    Args:
        error: How it failed.
        idempotent: Whether it does no harm if the model runs twice.
        elsewhere: Whether there is an endpoint that was not tried.
    """
    if isinstance(error, PoolClosedError):
        return False
    harmless = idempotent or not error.may_have_executed
    return harmless and (elsewhere if isinstance(error, _ELSEWHERE_ONLY) else error.retriable)
