"""An endpoint as routing sees it."""

import asyncio
import math

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from tests.transport.scripted import Gated, ScriptedServer, make_endpoint
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConnectionLostError, DeadlineExceededError, ProtocolError
from tritonasync.core.ports import Backend
from tritonasync.core.values import Call, InputTensor
from tritonasync.transport.backend import EndpointBackend

pytestmark = pytest.mark.anyio


def answering(message):
    async def answer(_):
        return message.SerializeToString()

    return answer


def infer_response():
    message = service_pb2.ModelInferResponse(model_name="m", model_version="1")
    message.outputs.add(name="OUT", datatype="FP32", shape=[2])
    message.raw_output_contents.append(np.array([1, 2], np.float32).tobytes())
    return message


METHODS = {
    "ModelInfer": infer_response(),
    "ServerReady": service_pb2.ServerReadyResponse(ready=True),
    "ModelReady": service_pb2.ModelReadyResponse(ready=False),
    "ModelMetadata": service_pb2.ModelMetadataResponse(name="m", versions=["1"], platform="p"),
    "ModelConfig": service_pb2.ModelConfigResponse(),
    "RepositoryModelLoad": service_pb2.RepositoryModelLoadResponse(),
}


def call(*, idempotent=True):
    tensor = InputTensor("IN", "FP32", (2,), (np.zeros(2, np.float32),))
    return Call("m", "", (tensor,), idempotent=idempotent)


@pytest.fixture
async def served():
    methods = {name: answering(message) for name, message in METHODS.items()}
    async with ScriptedServer(**methods) as server:
        backend = EndpointBackend(make_endpoint(server.target))
        yield server, backend
        await backend.aclose(Deadline.after(9))


async def test_it_is_the_backend_that_routing_wants(served):
    server, made = served
    backend: Backend = made
    assert backend.target == server.target
    reply = await backend.infer(call())
    np.testing.assert_array_equal(reply.outputs["OUT"], [1, 2])
    assert await backend.ready(NEVER) is True
    assert await backend.model_ready("m", "", NEVER) is False
    assert (await backend.describe("m", "", NEVER)).platform == "p"
    assert backend.silent_since() == math.inf
    assert made.statistics().succeeded == 5
    assert made.control.target == made.endpoint.target == server.target


async def test_idempotent_calls_and_questions_are_let_go_and_nothing_else(served):
    server, backend = served
    gates = {name: Gated() for name in METHODS}
    server.methods = dict(gates)
    repeatable = [
        backend.infer(call()),
        backend.ready(NEVER),
        backend.model_ready("m", "", NEVER),
        backend.describe("m", "", NEVER),
    ]
    once = [backend.infer(call(idempotent=False)), backend.control.load("m", None, {}, NEVER)]
    leaving, staying = (
        [asyncio.ensure_future(each) for each in some] for some in (repeatable, once)
    )
    for name in ("ModelInfer", "ModelInfer", *METHODS):
        if name not in {"ModelInfer", "ModelConfig"}:
            await gates[name].arrived.acquire()
    for _ in range(2):
        await gates["ModelInfer"].arrived.acquire()
    assert backend.silent_since() < math.inf
    backend.let_go("a test")
    outcomes = await asyncio.gather(*leaving, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ConnectionLostError}
    assert not any(task.done() for task in staying)
    server.methods = {name: answering(message) for name, message in METHODS.items()}
    assert await backend.ready(NEVER) is True
    assert len(server.peers) == 2
    for task in staying:
        task.cancel()
    for gate in gates.values():
        gate.go.set()
    await asyncio.gather(*staying, return_exceptions=True)


async def test_an_answer_that_is_no_message_is_a_protocol_error(served):
    async def garble(_):
        return b"\xff\xff\xff"

    server, backend = served
    server.methods["ServerReady"] = garble
    with pytest.raises(ProtocolError, match="no ServerReadyResponse"):
        await backend.ready(NEVER)


async def test_closing_waits_for_what_is_out(served):
    server, backend = served
    gated = Gated()
    server.methods["ServerReady"] = gated
    with pytest.raises(DeadlineExceededError):
        await backend.ready(Deadline.after(0.1))
    closing = asyncio.create_task(backend.aclose(Deadline.after(9)))
    await asyncio.wait({closing}, timeout=0.05)
    assert not closing.done()
    gated.go.set()
    await closing
    assert server.cancelled == 0
