"""From a gRPC status to the error tree: the only place that reads a server's messages.

Owns: the table of rules below. A rule holds a status, a pattern searched in the details, the class
of error and what to tell the user; the first match in a status's list wins, and the last rule of
each list has no pattern.

Refuses to know: grpc (a status comes as its name), endpoints, retrying. Pure.

Sources: messages marked *seen* were produced on Triton 2.51 and are produced again by
``tests/transport/test_status_server.py``; the others are from the server's and gRPC's sources.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tritonasync.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    ControlRefusedError,
    DecoupledModelError,
    InvalidRequestError,
    LoadFailedError,
    MessageTooLargeError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelUnhealthyError,
    QueueFullError,
    QueueTimeoutError,
    RegionExistsError,
    RegionInvalidError,
    RegionNotFoundError,
    SequenceNotFoundError,
    ServerError,
    ServerNotReadyError,
    ServerUnreachableError,
    SlotTooSmallError,
    TlsError,
    TransportError,
    UnsupportedError,
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """One row of the table: what to look for, what it means, what to do."""

    pattern: re.Pattern[str] | None
    kind: type[ServerError | TransportError]
    advice: str


def _rule(pattern: str | None, kind: type[ServerError | TransportError], advice: str = "") -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE) if pattern else None, kind, advice)


_LOST: Final = "the connection broke while the call was out"

_UNAVAILABLE: Final = (
    # Triton's own words come first: some hold words that gRPC uses as well.
    _rule("exceeds maximum queue size", QueueFullError, "slow down or shed load"),  # seen
    _rule("request timeout expired", QueueTimeoutError, "it waited too long in the server's queue"),
    _rule("protocol is restricted", AccessDeniedError, "give the pool its protocol_keys"),  # seen
    _rule(
        "explicit model load / unload is not allowed",  # seen, in NONE and in POLL mode
        ControlRefusedError,
        "start the server with --model-control-mode=explicit",
    ),
    _rule("not at ready state", ModelNotReadyError, "it is being loaded or unloaded"),
    _rule(
        "failed to create xdsclient|xds_bootstrap",  # seen
        ServerUnreachableError,
        "xds: targets need a bootstrap file, named by GRPC_XDS_BOOTSTRAP",
    ),
    # Anchored, as all that say that the model did not run: a model may answer UNAVAILABLE, too, and
    # in any words ("database: connection refused").
    _rule(
        "^(in ensemble .*?, )?(grpc )?server (is shutting down|exiting)",
        ServerNotReadyError,
        "the server is going down",
    ),
    _rule(
        "^(in ensemble .*?, )?server not ready",
        ServerNotReadyError,
        "the server is still starting",
    ),
    # gRPC's own.
    _rule(
        "\\bssl|\\btls\\b|certificate|handshake|verification check",  # seen
        TlsError,
        "check TlsConfig: the authority, the server's name, and that both sides use TLS",
    ),
    _rule(
        "http1\\.x|http2 server|trailing data",
        ServerUnreachableError,
        "this is not a gRPC port; Triton's default is 8001 (8000 is HTTP, 8002 metrics)",
    ),
    # All that is heard from a port that speaks HTTP, or TLS to a client without (a certificate).
    _rule(
        "^failed to connect to .*socket closed",  # seen
        ServerUnreachableError,
        "somebody listens there and hung up: is it another port than gRPC's (Triton's default is "
        "8001; 8000 is HTTP), or does the server want TLS, or a client certificate (TlsConfig)?",
    ),
    _rule(
        "^failed to connect to |^connections to all backends failing|^errors resolving|"
        "^dns resolution|^address lookup|^empty address list|^no route|^no address",  # seen: the
        # first two
        ServerUnreachableError,
        "is the server running, and the address right?",
    ),
    _rule(None, ConnectionLostError, _LOST),
)

_NOT_FOUND: Final = (
    _rule(
        "^unable to find (system |cuda )?shared memory region",
        RegionNotFoundError,
        "was the server restarted?",
    ),  # seen
    _rule("no available versions", ModelNotReadyError, "it is unloaded; load it first"),  # seen
    _rule(
        None,
        ModelNotFoundError,
        "pool.admin.index(), or at(url).index() of several, lists what it has",
    ),  # seen
)

_INVALID_ARGUMENT: Final = (
    # How the statistics call says that it does not know a model: seen.
    _rule("requested model .* not available", ModelNotFoundError, "is the name right?"),
    _rule("^load failed for model", LoadFailedError, "the server's log tells more"),  # seen
    _rule("^failed to register|^invalid offset \\+ byte size", RegionInvalidError),  # seen
    _rule(
        "must specify the start flag on the first request of the sequence",
        SequenceNotFoundError,
        "was it idle for long, or the server restarted?",
    ),  # seen
    _rule(None, InvalidRequestError),  # seen
)

_ALREADY_EXISTS: Final = (
    _rule("shared memory", RegionExistsError, "choose a name of your own"),  # seen
    _rule(None, InvalidRequestError),
)

_INTERNAL: Final = (
    # First what a model says in its own words, which may be any of the words below.
    _rule("^(in ensemble .*?, )?failed to process the request", ModelFailedError),  # seen
    _rule("^failed to (un)?load '", LoadFailedError, "the server's log tells more"),  # seen
    _rule(
        "^(in ensemble .*?, )?stub process '.*' is not healthy",
        ModelUnhealthyError,
        "unload it (wait=False, for it never ends) and load it",
    ),  # seen
    _rule(
        "^(in ensemble .*?, )?shared memory size .* should be at least \\d+ bytes",
        SlotTooSmallError,
    ),  # seen
    _rule("^unable to open shared memory region", RegionInvalidError),  # seen
    _rule("^cannot unregister shared memory region", RegionInvalidError),
    _rule("^unable to parse request$", InvalidRequestError),  # seen
    _rule("^received rst_stream|^goaway received", ConnectionLostError, _LOST),
    _rule(None, ModelFailedError),  # seen
)

_UNIMPLEMENTED: Final = (
    _rule("decoupled", DecoupledModelError, "it answers over a stream only"),  # seen
    _rule(None, UnsupportedError, "this server does not have the call, or it is switched off"),
)

_RESOURCE_EXHAUSTED: Final = (
    _rule("message (is )?(larger|too large|exceeds)", MessageTooLargeError, "send fewer rows"),
    _rule(None, QueueFullError, "slow down or shed load"),
)

_DENIED: Final = (_rule(None, AccessDeniedError, "check the pool's headers"),)

_TABLE: Final[dict[str, tuple[_Rule, ...]]] = {
    "UNAVAILABLE": _UNAVAILABLE,
    "NOT_FOUND": _NOT_FOUND,
    "INVALID_ARGUMENT": _INVALID_ARGUMENT,
    "ALREADY_EXISTS": _ALREADY_EXISTS,
    "INTERNAL": _INTERNAL,
    "UNIMPLEMENTED": _UNIMPLEMENTED,
    "RESOURCE_EXHAUSTED": _RESOURCE_EXHAUSTED,
    "UNAUTHENTICATED": _DENIED,
    "PERMISSION_DENIED": _DENIED,
    # The deadline given to gRPC lies far beyond the caller's: nobody answered for minutes.
    "DEADLINE_EXCEEDED": (_rule(None, ConnectionLostError, "no answer came at all"),),
    "CANCELLED": (
        _rule("channel closed|locally cancelled|^received rst_stream", ConnectionLostError, _LOST),
        _rule(None, ModelFailedError),  # a python model may answer with this code
    ),
    "UNKNOWN": (
        _rule("stream removed|^received rst_stream", ConnectionLostError, _LOST),
        _rule(None, ModelFailedError),
    ),
}

_OTHERWISE: Final = (_rule(None, ModelFailedError),)

_NEEDED: Final = re.compile(
    r"for output '(?P<output>.*)' .*should be at least (?P<nbytes>\d+) bytes"
)

_REQUEST_ID: Final = re.compile(r"^\[request id: .*?\] ")
"""What Triton puts before some of its words where a request has an id: seen."""

_WHERE: Final = re.compile(r"^(in ensemble .*?, )*(\[request id: .*?\] )?")
"""What may go before the words that tell one error from another: seen."""

_IN_BAND: Final = (
    # All anchored: what a model says in its own words may hold any of these.
    (
        re.compile(
            "^(request for unknown model: )?'.*' (version \\d+ )?is not at ready state$|"
            "^exceeds maximum queue size|^request timeout expired|"
            "^(grpc )?server (is shutting down|exiting)|^server not ready"
        ),
        "UNAVAILABLE",
    ),
    (
        re.compile(
            "^request for unknown model|^unable to find (system |cuda )?shared memory region"
        ),
        "NOT_FOUND",
    ),
    (
        re.compile(
            "^unexpected (shape for input|inference (input|output)|number of string elements)|"
            "^inference input '|^inference request (batch-size|for sequence|to model)|"
            "^input byte size mismatch|^incomplete string (data|length)|"
            "^unable to find data for input|^contents field must not|^expected \\d+ inputs|"
            "^invalid value (type )?for '|^invalid offset \\+ byte size|"
            "^failed to get model version from|^parameter keys starting with 'triton_'"
        ),
        "INVALID_ARGUMENT",
    ),
    (re.compile("^string correlation id cannot be longer"), "UNIMPLEMENTED"),
)
"""The status that a call of its own has for a message which came on a stream, where only the words
are told (server #6110): seen, all that say that the model did not run."""


def error_from_stream(
    details: str, *, endpoint: str, model: str | None = None
) -> ServerError | TransportError:
    """Return the error that a message on a stream means: the one that a call of its own raises.

    The stream goes on. The status is worked out from the words; what has none of Triton's own
    words is the model's own failure.

    Args:
        details: The message.
        endpoint: The target called.
        model: The model called.
    """
    bare = _WHERE.sub("", details).lower()
    code = next((code for pattern, code in _IN_BAND if pattern.search(bare)), "INTERNAL")
    words = _REQUEST_ID.sub("", details)
    return error_from_status(code, words, endpoint=endpoint, model=model)


def error_from_status(
    code: str, details: str, *, endpoint: str, model: str | None = None
) -> ServerError | TransportError:
    """Return the error that a failed call means.

    Args:
        code: gRPC's name of the status, such as ``"UNAVAILABLE"``.
        details: The status's message.
        endpoint: The target called.
        model: The model called, if the call was about one.
    """
    words = _REQUEST_ID.sub("", details)
    rule = next(
        rule
        for rule in _TABLE.get(code, _OTHERWISE)
        if rule.pattern is None or rule.pattern.search(words)
    )
    subject = f"model {model!r} at {endpoint}" if model else endpoint
    advice = f" ({rule.advice})" if rule.advice else ""
    message = f"{subject}: {details or 'no details'} [{code}]{advice}"
    if issubclass(rule.kind, ServerError):
        error = rule.kind(message, code=code, details=details, model=model, endpoint=endpoint)
        # Whatever a step says, those before it have run.
        error.may_have_executed |= words.lower().startswith("in ensemble ")
        if isinstance(error, SlotTooSmallError) and (needed := _NEEDED.search(words)):
            error.output, error.needed_nbytes = needed["output"], int(needed["nbytes"])
        return error
    return rule.kind(message, model=model, endpoint=endpoint)
