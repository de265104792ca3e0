"""Endpoints that answer as the test says, and calls to send to them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Self

import numpy as np

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    ConnectionLostError,
    ModelNotFoundError,
    ServerUnreachableError,
    TritonError,
)
from tritonasync.core.resilience import HealthPolicy, RetryPolicy
from tritonasync.core.values import Call, InputTensor, ModelSpec, Reply
from tritonasync.routing.router import Router

SPEC = ModelSpec("net", "", ("1",), "", 8, (), ())


def call(rows: int = 1, *, deadline: Deadline = NEVER, idempotent=True, parameters=(), model="net"):
    array = np.zeros((rows, 1), np.int64)
    return Call(
        model,
        "",
        (InputTensor("A", "INT64", array.shape, (array,)),),
        rows,
        parameters=parameters,
        deadline=deadline,
        idempotent=idempotent,
    )


def step(number: int | str, *, start=False, end=False, **options) -> Call:
    parameters = (("sequence_id", number), ("sequence_start", start), ("sequence_end", end))
    return call(parameters=parameters, **options)


def unreachable() -> TritonError:
    return ServerUnreachableError("nobody there")


def lost() -> TritonError:
    return ConnectionLostError("broke")


def answered(kind: type[TritonError], code: str = "UNAVAILABLE") -> Callable[[], TritonError]:
    """A server's error of a class, new each time."""

    def make() -> TritonError:
        return kind(kind.__name__, code=code, details="as told")  # type: ignore[call-arg]

    return make


def in_turn(*failures) -> Callable[[], TritonError | None]:
    """What a server fails of, one call after the other; ``None`` for an answer."""
    left = iter(failures)

    def make() -> TritonError | None:
        failure = next(left)
        return None if failure is None else failure()

    return make


not_found = answered(ModelNotFoundError, "NOT_FOUND")


class Server:
    """A backend; ``error`` makes what it fails of, ``hold`` keeps callers waiting.

    A stream has ``responses`` of them. Each, and the end, may be held, and may be an error instead.

    ``let_go`` lets go whom the port says: the callers of idempotent calls, and of questions. What a
    caller that left had sent is in ``abandoned``.
    """

    def __init__(self, name: str, *, error=None, hold=False, ready: bool | Callable = True):
        self.target = f"{name}:1"
        self.error: Callable[[], TritonError | None] | None = error
        self.hold = hold
        self.is_ready = ready
        self.responses = 1
        self.streams: list[Given] = []
        self.calls: list[Call] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.patient: set[asyncio.Future[None]] = set()  # they wait whatever happens
        self.abandoned = 0
        self.asked = 0
        self.asked_models: list[str] = []
        self.let_go_for: list[str] = []
        self.last_answer = -math.inf
        self.closed = False

    async def infer(self, sent: Call) -> Reply:
        self.calls.append(sent)
        await self.serve(patient=not sent.idempotent)
        return Reply(sent.model, "1", {}, request_id=self.target)

    def stream(self, sent: Call) -> Given:
        given = Given(self, sent)
        self.streams.append(given)
        return given

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        await self.serve()
        return SPEC

    async def serve(self, *, patient: bool = False) -> None:
        if self.hold:
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if patient:
                self.patient.add(gate)
            self.waiting.append(gate)
            self.since = time.monotonic()
            try:
                await gate
            except asyncio.CancelledError:
                self.abandoned += 1
                raise
            finally:
                self.waiting.remove(gate)
                self.patient.discard(gate)
        else:
            await asyncio.sleep(0)
        error = None if self.error is None else self.error()
        if error is not None:
            try:
                raise error
            finally:
                del error  # no cycle of the fake's own
        self.last_answer = time.monotonic()

    def release(self) -> None:
        self.hold = False
        for gate in self.waiting:
            if not gate.done():
                gate.set_result(None)

    async def ready(self, deadline: Deadline) -> bool:
        self.asked += 1
        return await self._ready()

    async def model_ready(self, model: str, version: str, deadline: Deadline) -> bool:
        self.asked_models.append(model)
        return await self._ready()

    async def _ready(self) -> bool:
        await asyncio.sleep(0)
        outcome = self.is_ready() if callable(self.is_ready) else self.is_ready
        if asyncio.iscoroutine(outcome):
            outcome = await outcome
        self.last_answer = time.monotonic()
        return outcome

    def silent_since(self) -> float:
        return max(self.since, self.last_answer) if self.waiting else math.inf

    def let_go(self, reason: str) -> None:
        self.let_go_for.append(reason)
        for gate in self.waiting:
            if not gate.done() and gate not in self.patient:
                gate.set_exception(ConnectionLostError(f"{self.target}: {reason}"))


class Given:
    """The responses of a server to one call, as the port has them.

    ``over`` tells whether nothing more may come, and ``left`` whether it was let go of before.
    """

    def __init__(self, server: Server, sent: Call) -> None:
        self.server = server
        self.sent = sent
        self.given = 0
        self.over = False
        self.left = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        if self.over:
            raise StopAsyncIteration
        if not self.given:
            self.server.calls.append(self.sent)
        await self._wait()
        if self.over or self.given == self.server.responses:
            self.over = True
            raise StopAsyncIteration
        self.given += 1
        parameters = (("index", self.given - 1),)
        return Reply(self.sent.model, "1", {}, self.server.target, parameters)

    async def _wait(self) -> None:
        try:
            await self.server.serve(patient=not self.sent.idempotent)
        except TritonError:
            self.over = True
            raise
        except asyncio.CancelledError:
            if not self.given:
                self.leave()
            raise

    def leave(self) -> None:
        if not self.over:
            self.over = self.left = True


def router(*servers: Server, retry=None, health=None, prefer_near=False, weights=()) -> Router:
    """A router over the servers, with short pauses and no probes unless told otherwise."""
    made = Router(
        retry or RetryPolicy(backoff_s=0.001, max_backoff_s=0.002),
        health or HealthPolicy(probe_interval_s=None, ejection_s=30),
        prefer_near=prefer_near,
    )
    for index, server in enumerate(servers):
        made.fleet.add(server, weight=weights[index] if weights else 1.0)
    return made


async def until(condition: Callable[[], bool], patience_s: float = 5.0) -> None:
    """Wait for what is bound to happen."""
    limit = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        await asyncio.sleep(0.001)


async def remove(route: Router, target: str, deadline: Deadline) -> Server:
    """Remove an endpoint, as the pool does; return it."""
    member = route.fleet.retire(target)
    await route.drain(member, deadline)
    return member.backend
