"""The table from gRPC status to error: each row, in the words that a server or gRPC uses."""

import pytest

from tritonasync.core import errors
from tritonasync.core.errors import SlotTooSmallError
from tritonasync.transport.status import error_from_status, error_from_stream

ROWS = [
    ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", "QueueFullError"),
    ("UNAVAILABLE", "Request timeout expired", "QueueTimeoutError"),
    (
        "UNAVAILABLE",
        "This protocol is restricted, expecting header 'triton-grpc-protocol-k'",
        "AccessDeniedError",
    ),
    (
        "UNAVAILABLE",
        "explicit model load / unload is not allowed if polling is enabled",
        "ControlRefusedError",
    ),
    (
        "UNAVAILABLE",
        "Request for unknown model: 'm' version 1 is not at ready state",
        "ModelNotReadyError",
    ),
    ("UNAVAILABLE", "GRPC server is shutting down", "ServerNotReadyError"),
    ("UNAVAILABLE", "Server exiting", "ServerNotReadyError"),
    ("UNAVAILABLE", "Server not ready", "ServerNotReadyError"),
    (
        "UNAVAILABLE",
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to "
            "connect to remote host: connect: Connection refused (111)"
        ),
        "ServerUnreachableError",
    ),
    (
        "UNAVAILABLE",
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
            "Ssl handshake failed: SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"
            "CERTIFICATE_VERIFY_FAILED"
        ),
        "TlsError",
    ),
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Custom "
        "verification check failed with error: UNAUTHENTICATED: Hostname Verification Check failed",
        "TlsError",
    ),
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: "
        "Socket closed",
        "ServerUnreachableError",
    ),
    ("UNAVAILABLE", "Trying to connect an http1.x server", "ServerUnreachableError"),
    (
        "UNAVAILABLE",
        "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to "
        "connect to remote host: connect: Connection refused (111)",
        "ServerUnreachableError",
    ),
    (
        "UNAVAILABLE",
        "Failed to create XdsClient: Environment variables GRPC_XDS_BOOTSTRAP or "
        "GRPC_XDS_BOOTSTRAP_CONFIG not defined",
        "ServerUnreachableError",
    ),
    # What a model says with this status: it has run.
    ("UNAVAILABLE", "database: connection refused", "ConnectionLostError"),
    ("UNAVAILABLE", "the feature store is shutting down", "ConnectionLostError"),
    ("UNAVAILABLE", "could not reach it: failed to connect to db", "ConnectionLostError"),
    ("UNAVAILABLE", "feature server not ready", "ConnectionLostError"),
    ("UNAVAILABLE", "DNS resolution failed for nowhere.invalid:8001", "ServerUnreachableError"),
    (
        "UNAVAILABLE",
        "errors resolving nowhere.invalid:8001: [field:hostname lookup error:address lookup "
        "failed for nowhere.invalid:8001: Domain name not found]",
        "ServerUnreachableError",
    ),
    ("UNAVAILABLE", "Socket closed", "ConnectionLostError"),
    ("UNAVAILABLE", "Too many pings", "ConnectionLostError"),
    ("UNAVAILABLE", "", "ConnectionLostError"),
    ("NOT_FOUND", "Unable to find shared memory region: 'r'", "RegionNotFoundError"),
    (
        "NOT_FOUND",
        "Request for unknown model: 'm' has no available versions",
        "ModelNotReadyError",
    ),
    ("NOT_FOUND", "Request for unknown model: 'm' is not found", "ModelNotFoundError"),
    ("INVALID_ARGUMENT", "requested model 'm' is not available", "ModelNotFoundError"),
    ("INVALID_ARGUMENT", "load failed for model 'm': version 1 is at …", "LoadFailedError"),
    ("INVALID_ARGUMENT", "failed to register shared memory region: …", "RegionInvalidError"),
    ("INVALID_ARGUMENT", "Invalid offset + byte size for …", "RegionInvalidError"),
    ("INVALID_ARGUMENT", "unexpected inference input 'X'", "InvalidRequestError"),
    (
        "INVALID_ARGUMENT",
        "inference request for sequence 7 to model 'm' must specify the START flag on the first "
        "request of the sequence",
        "SequenceNotFoundError",
    ),
    ("ALREADY_EXISTS", "shared memory region 'r' already in manager", "RegionExistsError"),
    ("ALREADY_EXISTS", "something else", "InvalidRequestError"),
    ("INTERNAL", "failed to load 'm', failed to poll from model repository", "LoadFailedError"),
    ("INTERNAL", "failed to unload 'm'", "LoadFailedError"),
    ("INTERNAL", "Stub process 'm_0_0' is not healthy.", "ModelUnhealthyError"),
    (
        "INTERNAL",
        "shared memory size specified … should be at least 64 bytes to hold the results",
        "SlotTooSmallError",
    ),
    ("INTERNAL", "Unable to open shared memory region: '/f'", "RegionInvalidError"),
    ("INTERNAL", "Unable to parse request", "InvalidRequestError"),
    ("INTERNAL", "Received RST_STREAM with error code 2", "ConnectionLostError"),
    (
        "INTERNAL",
        "Failed to process the request(s) for model 'm', message: ValueError: no",
        "ModelFailedError",
    ),
    *(
        ("INTERNAL", f"Failed to process the request(s) for model 'm_0', message: {words}", kind)
        for words, kind in [
            ("RuntimeError: failed to load 'tokenizer.json'", "ModelFailedError"),
            ("RuntimeError: unable to open shared memory region", "ModelFailedError"),
            ("RuntimeError: Unable to parse request", "ModelFailedError"),
            ("RuntimeError: Received RST_STREAM, peer sent GOAWAY", "ModelFailedError"),
            ("RuntimeError: Stub process 'x' is not healthy.", "ModelFailedError"),
        ]
    ),
    (
        "INTERNAL",
        "in ensemble 'e', Failed to process the request(s) for model 'm_0', message: no",
        "ModelFailedError",
    ),
    ("INTERNAL", "the shared memory of this model is full", "ModelFailedError"),
    ("RESOURCE_EXHAUSTED", "no more message slots", "QueueFullError"),
    (
        "UNIMPLEMENTED",
        "ModelInfer RPC doesn't support models with decoupled transaction policy",
        "DecoupledModelError",
    ),
    ("UNIMPLEMENTED", "", "UnsupportedError"),
    (
        "RESOURCE_EXHAUSTED",
        "CLIENT: Received message larger than max (5 vs. 4)",
        "MessageTooLargeError",
    ),
    ("RESOURCE_EXHAUSTED", "too many requests", "QueueFullError"),
    ("UNAUTHENTICATED", "no token", "AccessDeniedError"),
    ("PERMISSION_DENIED", "not you", "AccessDeniedError"),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", "ConnectionLostError"),
    ("CANCELLED", "Channel closed.", "ConnectionLostError"),
    ("CANCELLED", "the model cancelled", "ModelFailedError"),
    ("UNKNOWN", "Stream removed", "ConnectionLostError"),
    ("UNKNOWN", "model says so", "ModelFailedError"),
    ("ABORTED", "a code that Triton does not use", "ModelFailedError"),
]


@pytest.mark.parametrize(("code", "details", "kind"), ROWS)
def test_each_row_gives_its_error(code, details, kind):
    error = error_from_status(code, details, endpoint="h:1", model="m")
    assert type(error) is getattr(errors, kind)
    assert (error.model, error.endpoint) == ("m", "h:1")
    assert details in str(error)
    assert f"[{code}]" in str(error)
    assert "model 'm' at h:1" in str(error)


def test_a_server_error_keeps_code_and_details():
    error = error_from_status("NOT_FOUND", "words", endpoint="h:1")
    assert isinstance(error, errors.ServerError)
    assert (error.code, error.details, error.model) == ("NOT_FOUND", "words", None)
    assert str(error).startswith("h:1: words")


@pytest.mark.parametrize(
    ("kind", "retriable", "may_have_executed"),
    [
        ("ServerUnreachableError", True, False),
        ("TlsError", False, False),
        ("ConnectionLostError", True, True),
        ("QueueFullError", True, False),
        ("QueueTimeoutError", False, False),
        ("AccessDeniedError", False, False),
        ("ServerNotReadyError", True, False),
        ("ModelNotReadyError", True, False),
        ("ModelFailedError", False, True),
        ("InvalidRequestError", False, False),
        ("RegionNotFoundError", True, False),
    ],
)
def test_an_error_says_whether_to_try_again(kind, retriable, may_have_executed):
    error = getattr(errors, kind)
    assert (error.retriable, error.may_have_executed) == (retriable, may_have_executed)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("UNAVAILABLE", "in ensemble 'e', Exceeds maximum queue size", errors.QueueFullError),
        ("UNAVAILABLE", "in ensemble 'e', 'm' is not at ready state", errors.ModelNotReadyError),
        ("UNAVAILABLE", "in ensemble 'e', Server exiting", errors.ServerNotReadyError),
        ("UNAVAILABLE", "in ensemble 'e', Server not ready", errors.ServerNotReadyError),
        ("INVALID_ARGUMENT", "in ensemble 'e', unexpected shape", errors.InvalidRequestError),
    ],
)
def test_a_step_of_an_ensemble_that_refuses_may_have_had_others_before_it(code, details, kind):
    error = error_from_status(code, details, endpoint="host:1", model="e")
    assert type(error) is kind
    assert error.may_have_executed
    plain = error_from_status(code, details.partition(", ")[2], endpoint="host:1", model="m")
    assert type(plain) is kind
    assert not plain.may_have_executed


def test_where_a_request_has_an_id_the_words_after_it_are_read():
    for code, words, kind in ROWS:
        error = error_from_status(code, f"[request id: 7] {words}", endpoint="h:1")
        assert type(error) is getattr(errors, kind)
        assert f"[request id: 7] {words}" in str(error)


# --- what comes on a stream, without a status ----------------------------------------------------

# Each in the words of Triton 2.51; test_status_stream.py has them from a real server.
IN_BAND = [
    ("NOT_FOUND", "Request for unknown model: 'm' is not found", "ModelNotFoundError"),
    ("NOT_FOUND", "Request for unknown model: 'm' has no available versions", "ModelNotReadyError"),
    ("NOT_FOUND", "Unable to find shared memory region: 'r'", "RegionNotFoundError"),
    ("NOT_FOUND", "Unable to find system shared memory region: 'r'", "RegionNotFoundError"),
    ("NOT_FOUND", "Unable to find cuda shared memory region: 'r'", "RegionNotFoundError"),
    (
        "UNAVAILABLE",
        "Request for unknown model: 'm' version 1 is not at ready state",
        "ModelNotReadyError",
    ),
    ("UNAVAILABLE", "Exceeds maximum queue size", "QueueFullError"),
    ("UNAVAILABLE", "Request timeout expired", "QueueTimeoutError"),
    ("UNAVAILABLE", "Server exiting", "ServerNotReadyError"),
    ("UNAVAILABLE", "GRPC server is shutting down", "ServerNotReadyError"),
    ("UNAVAILABLE", "Server not ready", "ServerNotReadyError"),
    *(
        ("INVALID_ARGUMENT", words, "InvalidRequestError")
        for words in [
            "inference input 'X' data-type is 'INT32', but model 'm' expects 'FP32'",
            "unexpected shape for input 'X' for model 'm'. Expected [-1,16], got [1,4,4].",
            "unexpected inference input 'X' for model 'm'",
            "unexpected inference output 'X' for model 'm'",
            "unexpected number of string elements 2 for inference input 'X' for model 'm'",
            "expected 1 inputs but got 2 inputs for model 'm'.",
            "inference request batch-size must be <= 256 for 'm'",
            "inference request to model 'm' must specify a non-zero or non-empty correlation ID",
            "input byte size mismatch for input 'X' for model 'm'. Expected 64, got 60",
            "incomplete string length indicator for inference input 'X' for model 'm'",
            "incomplete string data for inference input 'X', expecting string of length 5",
            "unable to find data for input tensor 'X' for model 'm' in request.",
            "contents field must not be specified when using raw_input_contents for 'X'",
            "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
            "invalid value for 'priority', expected value >= 0.",
            "failed to get model version from specified version string 'x' (details: stol)",
            "parameter keys starting with 'triton_' are reserved for Triton usage.",
        ]
    ),
    (
        "INVALID_ARGUMENT",
        "Invalid offset + byte size for shared memory region: 'r'",
        "RegionInvalidError",
    ),
    (
        "INVALID_ARGUMENT",
        "inference request for sequence 7 to model 'm' must specify the START flag on the first "
        "request of the sequence",
        "SequenceNotFoundError",
    ),
    (
        "UNIMPLEMENTED",
        "string correlation ID cannot be longer than 128 characters",
        "UnsupportedError",
    ),
    ("INTERNAL", "Stub process 'm_0_0' is not healthy.", "ModelUnhealthyError"),
    (
        "INTERNAL",
        "shared memory size specified … should be at least 64 bytes to hold the results",
        "SlotTooSmallError",
    ),
    *(
        ("INTERNAL", words, "ModelFailedError")
        for words in [
            "",
            "negative count -1",
            "database: connection refused",
            # Nearly Triton's own words: these are a model's, which has run.
            "the feature store is not at ready state",
            "the queue of the store exceeds maximum queue size",
            "invalid value -1 in column 3",
            "the feature server is shutting down",
            *(
                f"Failed to process the request(s) for model 'm_0', message: RuntimeError: {said}"
                for said in ["Exceeds maximum queue size", "Server exiting", "expected 1 inputs"]
            ),
        ]
    ),
]


@pytest.mark.parametrize("before", ["", "[request id: 17] ", "[request id: <id_unknown>] "])
@pytest.mark.parametrize(("code", "details", "kind"), IN_BAND)
def test_words_on_a_stream_mean_what_they_mean_with_their_status(code, details, kind, before):
    error = error_from_stream(before + details, endpoint="h:1", model="m")
    assert type(error) is getattr(errors, kind)
    alike = error_from_status(code, details, endpoint="h:1", model="m")
    assert str(error) == str(alike)  # the stream's own id is left out
    assert (error.model, error.endpoint) == ("m", "h:1")
    assert (error.code, error.details) == (code, details)
    assert error.may_have_executed == alike.may_have_executed


@pytest.mark.parametrize(("code", "details", "kind"), [row for row in IN_BAND if row[1]])
def test_words_of_a_step_of_an_ensemble_mean_the_same_and_others_may_have_run(code, details, kind):
    words = f"in ensemble 'e', {details}"
    error = error_from_stream(words, endpoint="h:1")
    assert error.code == code
    assert type(error) is type(error_from_status(code, words, endpoint="h:1"))
    assert error.may_have_executed


def test_a_step_of_an_ensemble_may_tell_the_requests_id():
    words = "in ensemble 'a', in ensemble 'b', [request id: 17] Exceeds maximum queue size"
    assert type(error_from_stream(words, endpoint="h:1")) is errors.QueueFullError


def test_an_error_on_a_stream_need_not_be_about_a_model():
    error = error_from_stream("Server exiting", endpoint="h:1")
    assert error.model is None
    assert str(error).startswith("h:1: Server exiting [UNAVAILABLE]")


@pytest.mark.parametrize("where", ["", "in ensemble 'ens', "])
def test_a_slot_that_is_too_small_tells_what_is_needed(where):
    details = (
        f"{where}shared memory size specified with the request for output 'O' (4 bytes) should be "
        "at least 400 bytes to hold the results"
    )
    error = error_from_status("INTERNAL", details, endpoint="e", model="m")
    assert isinstance(error, SlotTooSmallError)
    assert (error.output, error.needed_nbytes) == ("O", 400)
