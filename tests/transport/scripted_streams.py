"""A scripted server of streams on loopback: what it says, and when, is the test's word."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from tests.transport.scripted import Answer, ScriptedServer, make_endpoint
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.policies import StreamPolicy
from tritonasync.core.values import Call, InputTensor
from tritonasync.transport.backend import EndpointBackend, Transport

PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the server sees it."""

    id: str
    model: str
    value: int


class Conversation:
    """One stream as the server sees it.

    Args:
        context: gRPC's.
        script: Called with each request, at once; without it the test answers.

    Attributes:
        metadata: The headers it was opened with.
        asked: Requests, in the order they came.
        sent: Messages that were sent to the client (gRPC took them).
        half_closed: Set when the client has closed its half.
        over: Set when the stream has ended, in whichever way.
        reads: Cleared, it takes nothing more from the client.
    """

    def __init__(
        self,
        context: grpc.aio.ServicerContext,
        script: Callable[[Conversation, Asked], None] | None,
    ) -> None:
        self._context = context
        self._script = script
        self.metadata = dict(context.invocation_metadata())
        self.asked: list[Asked] = []
        self.sent = 0
        self.half_closed = asyncio.Event()
        self.over = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self._open: set[str] = set()
        self._came = asyncio.Condition()
        self._outbox: asyncio.Queue[bytes | tuple[grpc.StatusCode, str] | None] = asyncio.Queue()

    # --- what came ---

    async def take(self, count: int = 1) -> list[Asked]:
        """Return all requests so far, when so many came."""
        async with asyncio.timeout(PATIENCE_S), self._came:
            await self._came.wait_for(lambda: len(self.asked) >= count)
        return self.asked

    async def _listen(self) -> None:
        while True:
            await self.reads.wait()
            message = await self._context.read()
            if message is grpc.aio.EOF:
                break
            asked = _asked(message)
            self.asked.append(asked)
            self._open.add(asked.id)
            async with self._came:
                self._came.notify_all()
            if self._script is not None:
                self._script(self, asked)
        self.half_closed.set()
        self._end_ifdone()

    def _end_ifdone(self) -> None:
        """End as Triton does: when the client closed its half and all is answered."""
        if self.half_closed.is_set() and not self._open:
            self._outbox.put_nowait(None)

    # --- what is said ---

    def answer(self, asked: Asked, value: int | None = None, *, final: bool = True, pad: int = 0):
        """Send a response: the request's value, or another one."""
        self.say(answer_to(asked, asked.value if value is None else value, final=final, pad=pad))
        if final:
            self.done(asked)

    def close(self, asked: Asked) -> None:
        """Send the word that there are no more responses."""
        message = pb.ModelStreamInferResponse()
        message.infer_response.id = asked.id
        message.infer_response.parameters["triton_final_response"].bool_param = True
        self.say(message)
        self.done(asked)

    def refuse(self, asked: Asked, details: str, *, final: bool | None = None) -> None:
        """Send an error."""
        message = pb.ModelStreamInferResponse(error_message=details)
        message.infer_response.id = asked.id
        if final is not None:
            message.infer_response.parameters["triton_final_response"].bool_param = final
        self.say(message)
        if final is not False:
            self.done(asked)

    def say(self, message: bytes | pb.ModelStreamInferResponse) -> None:
        """Send anything."""
        is_raw = isinstance(message, bytes)
        self._outbox.put_nowait(message if is_raw else message.SerializeToString())

    def end(self) -> None:
        """End the stream with OK, after what was said."""
        self._outbox.put_nowait(None)

    def break_off(self, code: grpc.StatusCode, details: str) -> None:
        """End the stream with a status, after what was said."""
        self._outbox.put_nowait((code, details))

    def done(self, asked: Asked) -> None:
        """Take note that a request is answered."""
        self._open.discard(asked.id)
        self._end_ifdone()

    async def run(self) -> None:
        """Talk until the end."""
        listening = asyncio.create_task(self._listen())
        try:
            while (said := await self._outbox.get()) is not None:
                if not isinstance(said, bytes):
                    await self._context.abort(*said)
                await self._context.write(said)
                self.sent += 1
        finally:
            self.over.set()
            listening.cancel()
            await asyncio.wait({listening})


class StreamServer(ScriptedServer):
    """A scripted server with streams.

    Args:
        script: Called with each request on a stream, at once.
        at: Where to listen.
        methods: The answers to calls of their own, by method.

    Attributes:
        streams: All streams so far, in the order they were opened.
        cut: Streams that ended without the server's word: cancelled, or their connection lost.
    """

    def __init__(
        self,
        script: Callable[[Conversation, Asked], None] | None = None,
        at: str = "127.0.0.1:0",
        **methods: Answer,
    ) -> None:
        super().__init__(at, **methods)
        self._script = script
        self.streams: list[Conversation] = []
        self.cut = 0
        self._opened = asyncio.Condition()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if details.method.rpartition("/")[2] != "ModelStreamInfer":
            return super().service(details)

        async def converse(_: object, context: grpc.aio.ServicerContext) -> None:
            conversation = Conversation(context, self._script)
            self.streams.append(conversation)
            async with self._opened:
                self._opened.notify_all()
            try:
                await conversation.run()
            except asyncio.CancelledError:
                self.cut += 1
                raise

        return grpc.stream_stream_rpc_method_handler(converse)

    async def stream(self, place: int = 0) -> Conversation:
        """Return a stream, when it was opened."""
        async with asyncio.timeout(PATIENCE_S), self._opened:
            await self._opened.wait_for(lambda: len(self.streams) > place)
        return self.streams[place]

    def asked(self) -> list[list[int]]:
        """Return the values asked for, stream by stream."""
        return [[asked.value for asked in stream.asked] for stream in self.streams]


class Client:
    """A backend and the callers of it.

    Args:
        target: The server.
        policy: How streams are used.
        transport: How calls with one answer are sent.
        share: Whether requests of a decoupled model share streams.
        options: As those of ``make_endpoint``.
    """

    def __init__(
        self,
        target: str,
        policy: StreamPolicy | None = None,
        *,
        transport: Transport = "stream",
        share: bool = True,
        **options: object,
    ) -> None:
        self.policy = replace(policy or StreamPolicy(), share_decoupled=share)
        self.backend = EndpointBackend(
            make_endpoint(target, **options), transport=transport, streams=self.policy
        )
        self.streams = self.backend.streams

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object = None, *_: object) -> None:
        if kind is None:
            await self.backend.aclose(Deadline.after(9))
            return
        with warnings.catch_warnings(action="ignore"):  # the test has failed already
            await self.backend.aclose(Deadline.after(0.1))

    def call(self, value: int, **options: object) -> asyncio.Task[int]:
        """Call a model with one answer; its value is the task's result."""
        return asyncio.create_task(self._infer(call(value, **options)))

    async def _infer(self, asked: Call) -> int:
        return value_of(await self.backend.infer(asked))

    def responses(self, value: int = 0, **options: object):
        """Return the responses of a decoupled model."""
        return self.backend.stream(call(value, decoupled=True, **options))

    def first(self, responses) -> asyncio.Task[int | None]:
        """Ask for the next response; the result is its value, ``None`` at the end."""

        async def ask() -> int | None:
            reply = await anext(responses, None)
            return None if reply is None else value_of(reply)

        return asyncio.create_task(ask())

    def read(self, value: int = 0, **options: object) -> asyncio.Task[list[int]]:
        """Read all responses of a decoupled model."""

        async def read() -> list[int]:
            return [value_of(reply) async for reply in self.responses(value, **options)]

        return asyncio.create_task(read())


def call(
    value: int,
    *,
    model: str = "m",
    version: str = "",
    deadline: Deadline = NEVER,
    pad: int = 0,
    **options,
) -> Call:
    """A call with one number, and so many bytes more."""
    numbers = np.zeros(1 + pad // 4, np.int32)
    numbers[0] = value
    tensor = InputTensor("VALUE", "INT32", numbers.shape, (numbers,))
    return Call(model, version, (tensor,), deadline=deadline, **options)


def value_of(reply) -> int:
    """The number in a reply."""
    return int(reply.outputs["VALUE"][0])


async def negated(message: bytes) -> bytes:
    """Answers a call of its own, with minus the number asked for."""
    request = pb.ModelInferRequest.FromString(message)
    numbers = -np.frombuffer(request.raw_input_contents[0], np.int32)
    answer = pb.ModelInferResponse(model_name="m", model_version="1", id=request.id)
    answer.outputs.add(name="VALUE", datatype="INT32", shape=numbers.shape)
    answer.raw_output_contents.append(numbers.tobytes())
    return answer.SerializeToString()


def echo(stream: Conversation, asked: Asked) -> None:
    """A script: one answer, the last, at once."""
    stream.answer(asked)


def count_up(stream: Conversation, asked: Asked) -> None:
    """A script: the numbers below the one asked for, and the end."""
    for value in range(asked.value):
        stream.answer(asked, value, final=False)
    stream.close(asked)


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


async def turns(count: int) -> None:
    """Let the event loop turn so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


def _asked(message: bytes) -> Asked:
    request = pb.ModelInferRequest.FromString(message)
    value = int(np.frombuffer(request.raw_input_contents[0], np.int32)[0])
    return Asked(request.id, request.model_name, value)


def answer_to(
    asked: Asked, value: int, *, final: bool = True, pad: int = 0
) -> pb.ModelStreamInferResponse:
    """Return a response to a request."""
    numbers = np.zeros(1 + pad // 4, np.int32)
    numbers[0] = value
    message = pb.ModelStreamInferResponse()
    response = message.infer_response
    response.id, response.model_name, response.model_version = asked.id, asked.model, "1"
    response.outputs.add(name="VALUE", datatype="INT32", shape=numbers.shape)
    response.raw_output_contents.append(numbers.tobytes())
    response.parameters["triton_final_response"].bool_param = final
    return message
