"""What a web client is told of an error: one verdict for each class of the error tree.

Owns: status, ``Retry-After`` and words. Refuses to know: frameworks, requests. Pure.

Invariants: the verdict follows from the error's class, never from its text; a client is told no
endpoint, no model of the server's and no stack, unless ``debug`` is on. The one message that goes
out as it is, is that of :class:`InvalidInputError`: it says what was wrong with what came in, which
only the client can mend.

Statuses, by whose turn it is:

========  =========================================================================================
422       the client's: what it sent does not fit the model
409       the client's: the sequence it goes on with is gone, so that it has to begin a new one
429       the client's, later: a queue is full
503       nobody's, later: the server cannot be reached, or is not ready; or this application ends
504       nobody's: the time was up
502       the server's: it answered with an error, or with nonsense
500       this application's: a model's name, an option, a credential, a missing package
========  =========================================================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, NamedTuple

from tritonasync.core import errors
from tritonasync.core.errors import ConfigurationError, TritonError
from tritonasync.integrations.interface import Receive, Scope, Send

PROBLEM: Final = "application/problem+json"
"""RFC 9457. Its ``detail`` is where FastAPI, Starlette and Litestar put their own, too."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is answered for errors of one class.

    Attributes:
        status: HTTP's status.
        code: A word for programs, which stays.
        detail: A sentence for people; ``None`` for the error's own message.
        later: Whether the same request may succeed later, which ``Retry-After`` says.
    """

    status: HTTPStatus
    code: str
    detail: str | None
    later: bool = False


_INVALID: Final = HTTPStatus.UNPROCESSABLE_ENTITY
_OVER: Final = HTTPStatus.CONFLICT
_FULL: Final = HTTPStatus.TOO_MANY_REQUESTS
_AWAY: Final = HTTPStatus.SERVICE_UNAVAILABLE
_LATE: Final = HTTPStatus.GATEWAY_TIMEOUT
_BAD: Final = HTTPStatus.BAD_GATEWAY
_OURS: Final = HTTPStatus.INTERNAL_SERVER_ERROR

_MISCONFIGURED: Final = "This application is not set up correctly."
_FAILED: Final = "The inference server failed to answer this request."
_UNAVAILABLE: Final = "The inference server is not available at the moment."
_NO_ROOM: Final = "There is no room for this request at the moment."
_RESTART: Final = "The state of this sequence is gone: begin a new one, from its start."


def _ours(code: str) -> Verdict:
    return Verdict(_OURS, code, _MISCONFIGURED)


def _bad(code: str, detail: str = _FAILED) -> Verdict:
    return Verdict(_BAD, code, detail)


def _away(code: str, detail: str = _UNAVAILABLE) -> Verdict:
    return Verdict(_AWAY, code, detail, later=True)


def _late(code: str) -> Verdict:
    return Verdict(_LATE, code, "The inference server took too long.", later=True)


VERDICTS: Final[Mapping[type[TritonError], Verdict]] = MappingProxyType(
    {
        errors.TritonError: Verdict(_OURS, "error", "Inference failed."),
        # your call
        errors.UsageError: _ours("usage"),
        errors.InvalidInputError: Verdict(_INVALID, "invalid_input", None),
        errors.ConfigurationError: _ours("configuration"),
        errors.MissingExtraError: _ours("missing_extra"),
        errors.PoolClosedError: _away("closed", "This application is starting or shutting down."),
        errors.WrongContextError: _ours("wrong_context"),
        # time, state, room
        errors.DeadlineExceededError: _late("deadline_exceeded"),
        errors.SequenceLostError: Verdict(_OVER, "sequence_lost", _RESTART),
        errors.ResponseOverflowError: _away("response_overflow", "The responses were not read."),
        errors.MemoryExhaustedError: _away("memory_exhausted", _NO_ROOM),
        errors.DeviceError: Verdict(_OURS, "device", "A device of this application failed."),
        # nobody answered
        errors.TransportError: _bad("transport"),
        errors.ServerUnreachableError: _away("server_unreachable"),
        errors.TlsError: _bad("tls"),
        errors.ConnectionLostError: _away("connection_lost"),
        errors.PlacementError: _ours("placement"),
        errors.MessageTooLargeError: _bad(
            "message_too_large", "The request, or what it is answered with, is too large."
        ),
        errors.ProtocolError: _bad("protocol"),
        # the server's answer
        errors.ServerError: _bad("server"),
        errors.InvalidRequestError: Verdict(
            _INVALID, "invalid_request", "The model refused what this request asks of it."
        ),
        errors.SequenceNotFoundError: Verdict(_OVER, "sequence_not_found", _RESTART),
        errors.ModelNotFoundError: _ours("model_not_found"),
        errors.ModelNotReadyError: _away("model_not_ready", "The model is not ready."),
        errors.ModelFailedError: _bad("model_failed", "The model failed on this request."),
        errors.ModelUnhealthyError: _away("model_unhealthy", "The model is not ready."),
        errors.DecoupledModelError: _ours("decoupled_model"),
        errors.QueueFullError: Verdict(
            _FULL, "queue_full", "Too many requests are waiting.", later=True
        ),
        errors.QueueTimeoutError: _late("queue_timeout"),
        errors.ServerNotReadyError: _away("server_not_ready"),
        errors.AccessDeniedError: _ours("access_denied"),
        errors.LoadFailedError: _bad("load_failed", "The model could not be loaded or unloaded."),
        errors.ControlRefusedError: _ours("control_refused"),
        errors.UnsupportedError: _ours("unsupported"),
        errors.SharedMemoryError: _bad("shared_memory"),
        errors.RegionNotFoundError: _away("region_not_found"),
        errors.RegionExistsError: _bad("region_exists"),
        errors.RegionInvalidError: _bad("region_invalid"),
        errors.SlotTooSmallError: _ours("slot_too_small"),
        # the embedded server
        errors.ServingError: _ours("serving"),
        errors.RuntimeSetupError: _ours("runtime_setup"),
        errors.ServerStartError: _ours("server_start"),
    }
)
"""One for every class of ``core.errors``; a class of your own has that of its nearest base."""

_CLOSE_LATER: Final = 1013  # RFC 6455 and its registry: "try again later"
_CLOSE_INVALID: Final = 1007  # "data that is inconsistent"
_CLOSE_FAILED: Final = 1011  # "an unexpected condition"


class Answer(NamedTuple):
    """An HTTP answer, and an ASGI application that gives it.

    Starlette and FastAPI send whatever ASGI application an exception handler returns.

    Attributes:
        status: HTTP's status.
        headers: Names in lower case, and values.
        body: JSON as UTF-8.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it: to a WebSocket, as the code and reason that it is closed with."""
        del receive
        if scope["type"] == "websocket":
            reason = HTTPStatus(self.status).phrase
            await send({"type": "websocket.close", "code": self._close_code(), "reason": reason})
            return
        headers = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})

    def _close_code(self) -> int:
        if any(name == "retry-after" for name, _ in self.headers):
            return _CLOSE_LATER
        return _CLOSE_INVALID if self.status == _INVALID else _CLOSE_FAILED


def verdict_of(error: TritonError) -> Verdict:
    """Return the verdict on an error: its class's, or its nearest base's."""
    return next(VERDICTS[kind] for kind in type(error).__mro__ if kind in VERDICTS)


def error_response(
    error: TritonError, *, retry_after_s: float = 1.0, debug: bool = False
) -> Answer:
    """Return what a web client is to be told of an error.

    The body is JSON, ``application/problem+json``: ``type`` (``about:blank``), ``title`` (the
    status's name), ``status``, ``detail`` (a sentence) and ``code`` (a word that stays, such as
    ``"queue_full"``).

    Args:
        error: What was raised.
        retry_after_s: When a client may come again, where that may help; in whole seconds, rounded
            up.
        debug: Whether to tell the error's own message, class, model and endpoint, too.

    Raises:
        ConfigurationError: ``retry_after_s`` is not a positive, finite number.
    """
    check_retry_after(retry_after_s)
    verdict = verdict_of(error)
    detail = error.message if verdict.detail is None else verdict.detail
    problem: dict[str, object] = {
        "type": "about:blank",
        "title": verdict.status.phrase,
        "status": int(verdict.status),
        "detail": str(error) if debug else detail,
        "code": verdict.code,
    }
    if debug:
        problem |= {
            "error": type(error).__name__, "model": error.model, "endpoint": error.endpoint
        }  # fmt: skip
    body = json.dumps(problem, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return answer(verdict.status, body, retry_after_s if verdict.later else None)


def answer(
    status: HTTPStatus, body: bytes, retry_after_s: float | None = None, *, kind: str = PROBLEM
) -> Answer:
    """Return an answer whose body is JSON."""
    headers = [("content-type", kind), ("content-length", str(len(body)))]
    if retry_after_s is not None:
        headers.append(("retry-after", str(math.ceil(retry_after_s))))
    return Answer(int(status), tuple(headers), body)


def check_retry_after(retry_after_s: float) -> None:
    """Refuse what is no number of seconds to wait.

    Raises:
        ConfigurationError: It is not a positive, finite number.
    """
    if not 0 < retry_after_s < math.inf:
        raise ConfigurationError(
            f"retry_after_s: expected a positive number of seconds, got {retry_after_s!r}"
        )
