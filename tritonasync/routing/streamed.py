"""Responses by way of the endpoint that gives them.

Owns: the endpoint's load while its responses come, and telling it when they break off. Refuses to
know: how an endpoint is chosen, and chosen again (the router does that, until the first response).

Invariant: an endpoint's load is raised as long as responses to its call may come.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, Self

from tritonasync.core.errors import TritonError
from tritonasync.core.ports import Responses
from tritonasync.core.values import Call, Reply
from tritonasync.routing.member import Member

Begun = tuple[Member, Responses, Reply | None]
"""Who answers, the responses still to come, and the first; ``None`` if there was none."""


class _Open(Protocol):
    def __call__(
        self, call: Call, send: Callable[[Member, Call], Awaitable[Begun]], /
    ) -> Awaitable[Begun]: ...


class RoutedResponses:
    """The responses to one call (:class:`~tritonasync.core.ports.Responses`).

    Args:
        call: The call.
        begin: Has a function called with an endpoint, and with another one if that fails.
        left: Called when an endpoint that is being removed has lost some load.
    """

    def __init__(self, call: Call, begin: _Open, left: Callable[[Member], None]) -> None:
        self._call = call
        self._begin = begin
        self._left = left
        self._rows = call.rows or 1
        self._member: Member | None = None
        self._responses: Responses | None = None
        self._over = False

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Reply:
        """Return the next response; see :class:`~tritonasync.core.ports.Responses`."""
        if self._over:
            raise StopAsyncIteration
        if self._responses is None:
            return await self._first()
        try:
            return await self._responses.__anext__()
        except StopAsyncIteration:
            self.leave()
            raise
        except TritonError as error:
            self._broke(error)
            raise

    async def _first(self) -> Reply:
        try:
            self._member, self._responses, first = await self._begin(self._call, self._send)
        except BaseException:
            self._over = True
            raise
        if self._over:  # left by somebody else while the first was awaited
            self._over = False
            self.leave()
            raise StopAsyncIteration
        if first is None:
            self.leave()
            raise StopAsyncIteration
        return first

    async def _send(self, member: Member, call: Call) -> Begun:
        responses = member.backend.stream(call)
        try:
            first = await anext(responses, None)
        except BaseException:
            responses.leave()
            raise
        member.load += self._rows  # before that of the attempt is taken away
        return member, responses, first

    def _broke(self, error: TritonError) -> None:
        error.may_have_executed = True  # it has answered, whatever it says now
        member = self._member
        self.leave()
        if member is not None:
            member.failed((self._call.model, self._call.version), error, time.monotonic(), 0.0)

    def leave(self) -> None:
        """Let go of what is still to come."""
        if self._over:
            return
        self._over = True
        if self._responses is not None:
            self._responses.leave()
        member, self._member = self._member, None
        if member is not None:
            member.load -= self._rows
            if member.draining:
                self._left(member)
