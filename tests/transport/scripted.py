"""The lowest seam: a real gRPC server on loopback whose answers are scripted bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

import grpc
import grpc.aio

Answer = Callable[[bytes], Awaitable[bytes]]


class RefusalError(Exception):
    """Makes the scripted server end a call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class ScriptedServer(grpc.GenericRpcHandler):
    """Answers each method of Triton's service by a function; notes what came and what was cut."""

    def __init__(self, **methods: Answer) -> None:
        self.methods = methods
        self.received: list[tuple[str, bytes, dict[str, str]]] = []
        self.time_remaining: list[float] = []
        self.cancelled = 0
        self.target = ""
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self,))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.stop(grace=None)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        name = details.method.rpartition("/")[2]
        metadata = dict(details.invocation_metadata)

        async def answer(message: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self.received.append((name, message, metadata))
            self.time_remaining.append(context.time_remaining())
            try:
                return await self.methods[name](message)
            except RefusalError as refusal:
                await context.abort(refusal.code, refusal.details)
                raise AssertionError from refusal
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        return grpc.unary_unary_rpc_method_handler(answer)
