"""Errors of the SDK become HTTP answers: for any ASGI application, and in each framework's way.

Owns: where errors are caught, and what of them is logged. Refuses to know: which error is answered
how (``answers`` does).

Invariant: once a response has begun, its status is out, so that the error goes on to the server,
which breaks the connection off: the client sees that something is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Final, cast

from tritonasync.core.errors import TritonError
from tritonasync.integrations.answers import Answer, check_retry_after, error_response
from tritonasync.integrations.interface import ASGIApp, Message, Theirs

_BEGUN: Final = frozenset(
    {"http.response.start", "websocket.close", "websocket.http.response.start"}
)
_log: Final = logging.getLogger("tritonasync")


class TritonErrors:
    """ASGI middleware that answers requests which end in an error of the SDK.

    For Starlette, FastAPI (``app.add_middleware(TritonErrors)``) and any plain ASGI application.
    Litestar answers every error itself before a middleware can see it: give it
    :func:`litestar_exception_handlers`.

    Args:
        app: The application.
        retry_after_s: When a client may come again, where that may help.
        debug: Whether clients are told the error's own message, model and endpoint.

    Raises:
        ConfigurationError: ``retry_after_s`` is not a positive, finite number.
    """

    def __init__(self, app: ASGIApp, *, retry_after_s: float = 1.0, debug: bool = False) -> None:
        check_retry_after(retry_after_s)
        self._app = app
        self._answer = partial(_answer, retry_after_s=retry_after_s, debug=debug)

    async def __call__(self, scope: Theirs, receive: Theirs, send: Theirs) -> None:
        """Serve a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] in _BEGUN
            await send(message)

        try:
            await self._app(scope, receive, note)
        except TritonError as error:
            if begun:
                raise
            answer = self._answer(error)
        else:
            return
        await answer(scope, receive, send)


def exception_handlers(*, retry_after_s: float = 1.0, debug: bool = False) -> dict[Theirs, Theirs]:
    """Return handlers for ``Starlette(exception_handlers=…)`` or ``FastAPI(exception_handlers=…)``.

    They do the same as :class:`TritonErrors`, within the framework: its own middlewares see the
    answers. Each takes a request and an error, and returns an ASGI application.

    Args:
        retry_after_s: When a client may come again, where that may help.
        debug: Whether clients are told the error's own message, model and endpoint.

    Raises:
        ConfigurationError: ``retry_after_s`` is not a positive, finite number.
    """
    check_retry_after(retry_after_s)

    async def handle(request: object, error: Exception) -> Answer:
        del request
        return _answer(_ours(error), retry_after_s=retry_after_s, debug=debug)

    return {TritonError: handle}


def litestar_exception_handlers(
    *, retry_after_s: float = 1.0, debug: bool = False
) -> dict[Theirs, Theirs]:
    """Return handlers for ``Litestar(exception_handlers=…)``; they give Litestar's own responses.

    Args:
        retry_after_s: When a client may come again, where that may help.
        debug: Whether clients are told the error's own message, model and endpoint.

    Raises:
        ConfigurationError: ``retry_after_s`` is not a positive, finite number.
    """
    check_retry_after(retry_after_s)
    response = cast("Callable[..., object]", import_module("litestar").Response)

    def handle(request: object, error: Exception) -> object:
        del request
        answer = _answer(_ours(error), retry_after_s=retry_after_s, debug=debug)
        headers = dict(answer.headers)
        kind = headers.pop("content-type")
        return response(answer.body, status_code=answer.status, media_type=kind, headers=headers)

    return {TritonError: handle}


def _ours(error: Exception) -> TritonError:
    """Return an error as what it is registered for."""
    if isinstance(error, TritonError):
        return error
    raise error


def _answer(error: TritonError, *, retry_after_s: float, debug: bool) -> Answer:
    answer = error_response(error, retry_after_s=retry_after_s, debug=debug)
    # Who reads the log is told what the client is not. What comes with load, or from clients, is
    # no news, and would fill it.
    if answer.status in {500, 502}:
        _log.error("answered with %d: %s", answer.status, error, exc_info=error)
    elif answer.status in {503, 504}:
        _log.warning("answered with %d: %s: %s", answer.status, type(error).__name__, error)
    return answer
