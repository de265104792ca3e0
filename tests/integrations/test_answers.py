"""What a web client is told of each error, and what it is not."""

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.core import errors
from tritonasync.core.attempt import Attempt
from tritonasync.core.errors import ConfigurationError, TritonError
from tritonasync.integrations.answers import VERDICTS, error_response, verdict_of

SECRETS = "gpu7.internal:8001 secret-model"

EXPECTED = {
    422: {"InvalidInputError", "InvalidRequestError"},
    409: {"SequenceLostError", "SequenceNotFoundError"},
    429: {"QueueFullError"},
    503: {
        "PoolClosedError", "ResponseOverflowError", "MemoryExhaustedError",
        "ServerUnreachableError", "ConnectionLostError", "ModelNotReadyError",
        "ModelUnhealthyError", "ServerNotReadyError", "RegionNotFoundError",
    },
    504: {"DeadlineExceededError", "QueueTimeoutError"},
    502: {
        "TransportError", "TlsError", "MessageTooLargeError", "ProtocolError", "ServerError",
        "ModelFailedError", "LoadFailedError", "SharedMemoryError", "RegionExistsError",
        "RegionInvalidError",
    },
    500: {
        "TritonError", "UsageError", "ConfigurationError", "MissingExtraError",
        "WrongContextError", "DeviceError", "PlacementError", "ModelNotFoundError",
        "DecoupledModelError", "AccessDeniedError", "ControlRefusedError", "UnsupportedError",
        "SlotTooSmallError", "ServingError", "RuntimeSetupError", "ServerStartError",
    },
}  # fmt: skip
"""Any change of a status is a change for those who use it."""

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, TritonError)
]


def made(kind: type[TritonError]) -> TritonError:
    """An error of a class, whose every text is one that no client may see."""
    if issubclass(kind, errors.MissingExtraError):
        return kind("secret-package", extra="secret", purpose="secret-purpose")
    options = {"model": "secret-model", "endpoint": "gpu7.internal:8001"}
    if issubclass(kind, errors.ServerError):
        return kind(SECRETS, code="SECRET", details="secret-details", **options)
    if issubclass(kind, errors.DeadlineExceededError):
        return kind(SECRETS, stage="server", timeout_s=1.0, **options)
    return kind(SECRETS, **options)


def told(error: TritonError, **options) -> tuple[int, dict[str, str], dict[str, object]]:
    status, headers, body = error_response(error, **options)
    return status, dict(headers), json.loads(body)


def test_every_class_of_errors_has_a_verdict_of_its_own():
    assert set(VERDICTS) == set(CLASSES)


def test_every_class_has_the_status_that_is_documented():
    found = {}
    for kind in CLASSES:
        found.setdefault(error_response(made(kind)).status, set()).add(kind.__name__)
    assert found == EXPECTED


@pytest.mark.parametrize("kind", CLASSES)
def test_an_answer_is_a_problem_as_of_rfc_9457(kind):
    status, headers, problem = told(made(kind))
    assert headers["content-type"] == "application/problem+json"
    assert int(headers["content-length"]) == len(error_response(made(kind)).body)
    assert problem.keys() == {"type", "title", "status", "detail", "code"}
    assert (problem["type"], problem["status"]) == ("about:blank", status)
    assert problem["detail"].endswith(".") or kind is errors.InvalidInputError


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not errors.InvalidInputError])
def test_no_client_is_told_endpoints_models_or_the_servers_words(kind):
    answer = error_response(made(kind))
    assert b"secret" not in answer.body.lower()
    assert b"internal:" not in answer.body


@pytest.mark.parametrize("kind", CLASSES)
def test_a_client_is_told_to_come_again_where_that_may_help(kind):
    status, headers, _ = told(made(kind), retry_after_s=2.2)
    assert headers.get("retry-after") == ("3" if status in {429, 503, 504} else None)


@pytest.mark.parametrize("kind", CLASSES)
def test_what_can_be_sent_again_is_answered_so(kind):
    if kind.retriable:
        assert verdict_of(made(kind)).later


def test_the_codes_are_distinct():
    codes = [verdict.code for verdict in VERDICTS.values()]
    assert len(set(codes)) == len(codes)


def test_what_was_wrong_with_an_input_is_told():
    error = errors.InvalidInputError("model 'digits', input 'IMAGE': expected 64 pixels, got 63")
    assert told(error)[2]["detail"] == str(error)


def test_attempts_at_endpoints_are_not_told_with_an_input():
    error = errors.InvalidInputError("expected 64 pixels")
    error.attempts = (Attempt("gpu7.internal:8001", 0.0, 0.1, "TlsError", "refused"),)
    assert told(error)[2]["detail"] == "expected 64 pixels"


def test_a_class_of_ones_own_is_answered_as_its_nearest_base():
    class OverQuotaError(errors.QueueFullError):
        pass

    class OddError(TritonError):
        pass

    assert error_response(made(OverQuotaError)).status == 429
    assert error_response(made(OddError)).status == 500


def test_debug_tells_all():
    _, _, problem = told(made(errors.ServerUnreachableError), debug=True)
    assert problem["detail"] == SECRETS
    assert problem["error"] == "ServerUnreachableError"
    assert (problem["model"], problem["endpoint"]) == ("secret-model", "gpu7.internal:8001")


@given(st.text())
def test_any_message_makes_a_json_of_utf_8(message):
    _, _, problem = told(errors.InvalidInputError(message))
    assert isinstance(problem["detail"], str)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_no_client_is_told_to_come_at_no_time(seconds):
    with pytest.raises(ConfigurationError, match="retry_after_s: expected a positive number"):
        error_response(made(TritonError), retry_after_s=seconds)
