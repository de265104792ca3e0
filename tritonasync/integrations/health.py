"""Two pages for whoever runs the application: is it alive, and is it ready?

Owns: the pages. Refuses to know: what readiness is (``TritonLifespan.ready`` does).
"""

from __future__ import annotations

import json
from http import HTTPStatus

from tritonasync.core.deadline import Deadline
from tritonasync.integrations.answers import Answer, answer, check_retry_after
from tritonasync.integrations.interface import Theirs
from tritonasync.integrations.lifespan import TritonLifespan


class Health:
    """An ASGI application with two pages, ``live`` and ``ready``, to be mounted.

    ``live`` is answered with 200 while the application runs, whatever the server does: one that is
    restarted for a server that is away helps nobody. ``ready`` is answered with 200, or with 503
    if the server or a model is not ready.

    Args:
        triton: The application's lifespan.
        models: Models that have to be ready; none for those that the lifespan waited for.
        timeout_s: Seconds that asking the server may take.
        retry_after_s: When to ask again.

    Raises:
        ConfigurationError: ``timeout_s`` or ``retry_after_s`` is no such number of seconds.
    """

    def __init__(
        self,
        triton: TritonLifespan,
        *models: str,
        timeout_s: float = 2.0,
        retry_after_s: float = 1.0,
    ) -> None:
        Deadline.after(timeout_s, name="timeout_s")  # refuses what is no duration
        check_retry_after(retry_after_s)
        self._triton = triton
        self._models = models
        self._timeout_s = timeout_s
        self._retry_after_s = retry_after_s

    async def __call__(self, scope: Theirs, receive: Theirs, send: Theirs) -> None:
        """Answer a request, by the last part of its path."""
        page = str(scope["path"]).rstrip("/").rpartition("/")[2]
        await (await self._page(page))(scope, receive, send)

    async def _page(self, page: str) -> Answer:
        if page == "live":
            return self._told(page, well=self._triton.live())
        if page == "ready":
            well = await self._triton.ready(*self._models, timeout_s=self._timeout_s)
            return self._told(page, well=well)
        return _answer(HTTPStatus.NOT_FOUND, None, {"detail": "There are live and ready."})

    def _told(self, page: str, *, well: bool) -> Answer:
        status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
        return _answer(status, None if well else self._retry_after_s, {page: well})


def _answer(status: HTTPStatus, retry_after_s: float | None, told: dict[str, object]) -> Answer:
    body = json.dumps({"status": int(status), **told}).encode()
    return answer(status, body, retry_after_s, kind="application/json")
