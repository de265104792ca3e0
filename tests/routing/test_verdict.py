"""Whom an error speaks against, and whether the call may be sent again."""

from __future__ import annotations

import inspect

import pytest

from tritonasync.core import errors
from tritonasync.core.errors import ServerError, TritonError
from tritonasync.routing.verdict import Verdict, may_retry, verdict_of

SERVER = {"code": "INTERNAL", "details": "d"}


def made(kind: type[TritonError]) -> TritonError:
    if issubclass(kind, ServerError):
        return kind("m", **SERVER)
    if kind is errors.DeadlineExceededError:
        return kind("m", stage="server", timeout_s=1)
    if kind is errors.MissingExtraError:
        return kind("p", extra="e", purpose="x")
    return kind("m")


KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, TritonError)
]

AGAINST = {
    errors.ServerUnreachableError: Verdict.ENDPOINT,
    errors.TlsError: Verdict.ENDPOINT,
    errors.ConnectionLostError: Verdict.ENDPOINT,
    errors.ProtocolError: Verdict.ENDPOINT,
    errors.ServerNotReadyError: Verdict.ENDPOINT,
    errors.QueueFullError: Verdict.UNKNOWN,
    errors.ModelNotReadyError: Verdict.MODEL_MISSING,
    errors.ModelNotFoundError: Verdict.MODEL_MISSING,
    errors.ModelUnhealthyError: Verdict.MODEL,
    errors.ModelFailedError: Verdict.MODEL_RAISED,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_verdict(kind):
    otherwise = Verdict.NOBODY if issubclass(kind, ServerError) else Verdict.UNKNOWN
    assert verdict_of(made(kind)) is AGAINST.get(kind, otherwise)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_what_may_be_sent_again(kind, idempotent, elsewhere):
    error = made(kind)
    if kind in (errors.QueueFullError, errors.ModelNotFoundError):
        expected = elsewhere
    else:
        expected = error.retriable and (idempotent or not error.may_have_executed)
    assert may_retry(error, idempotent=idempotent, elsewhere=elsewhere) is expected


def test_a_lost_connection_is_retried_only_where_running_twice_does_no_harm():
    error = made(errors.ConnectionLostError)
    assert may_retry(error, idempotent=True, elsewhere=False)
    assert not may_retry(error, idempotent=False, elsewhere=True)


def test_no_connection_at_all_is_retried_in_any_case():
    assert may_retry(made(errors.ServerUnreachableError), idempotent=False, elsewhere=False)
