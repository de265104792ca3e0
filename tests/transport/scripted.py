"""The lowest seam: a real gRPC server on loopback whose answers are scripted bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Self

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from tritonasync.transport.channel import HeaderSupply, open_channels
from tritonasync.transport.endpoint import Endpoint

Answer = Callable[[bytes], Awaitable[bytes]]


class RefusalError(Exception):
    """Makes the scripted server end a call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def make_endpoint(
    target: str,
    *,
    channels: int = 1,
    headers: Mapping[str, str] | Callable[[], object] | None = None,
    protocol_keys: Mapping[str, str] | None = None,
    cancel_on_server: bool = False,
) -> Endpoint:
    """An endpoint as a pool makes it."""
    return Endpoint(
        target,
        partial(open_channels, target, count=channels, tls=None),
        HeaderSupply(headers or {}, protocol_keys or {}),
        cancel_on_server=cancel_on_server,
    )


async def echo(message: bytes) -> bytes:
    """An answer that is the question."""
    return message


class Gated:
    """An answer that comes when the test says so."""

    def __init__(self) -> None:
        self.arrived = asyncio.Semaphore(0)
        self.go = asyncio.Event()

    async def __call__(self, message: bytes) -> bytes:
        self.arrived.release()
        await self.go.wait()
        return message


def of_version(version: str) -> Answer:
    """An answer to ``ServerMetadata``."""
    message = service_pb2.ServerMetadataResponse(name="triton", version=version)

    async def answer(_: bytes) -> bytes:
        return message.SerializeToString()

    return answer


class ScriptedServer(grpc.GenericRpcHandler):
    """Answers each method of Triton's service by a function; notes what came and what was cut.

    Args:
        at: Where to listen; a port of 0 for a free one.
        methods: The answers by method.
    """

    def __init__(self, at: str = "127.0.0.1:0", **methods: Answer) -> None:
        self.at = at
        self.methods = methods
        self.received: list[tuple[str, bytes, dict[str, str]]] = []
        self.time_remaining: list[float] = []
        self.came_by: list[tuple[str, str]] = []  # method and connection
        self.cancelled = 0
        self.target = ""
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self,))
        host = self.at.rpartition(":")[0]
        self.target = f"{host}:{self._server.add_insecure_port(self.at)}"
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
            self.came_by.append((name, context.peer()))
            try:
                return await self.methods[name](message)
            except RefusalError as refusal:
                await context.abort(refusal.code, refusal.details)
                raise AssertionError from refusal
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        return grpc.unary_unary_rpc_method_handler(answer)

    @property
    def peers(self) -> set[str]:
        """The connections on which calls came."""
        return {peer for _, peer in self.came_by}

    def count(self, method: str) -> int:
        """How often a method was called."""
        return sum(name == method for name, _, _ in self.received)
