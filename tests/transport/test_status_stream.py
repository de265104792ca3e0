"""The same wrong request in a call of its own and on a stream, on the real server: one error."""

from __future__ import annotations

import asyncio
import os
from multiprocessing import shared_memory

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as stock
from tritonclient.grpc import service_pb2

from tests.transport.test_status_server import IDENT, ROW, delayed, endpoint_at, request, send
from tritonasync.core.errors import (
    InvalidRequestError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelUnhealthyError,
    QueueFullError,
    QueueTimeoutError,
    RegionInvalidError,
    RegionNotFoundError,
    SequenceNotFoundError,
    ServerError,
    SlotTooSmallError,
    UnsupportedError,
)
from tritonasync.serving import EmbeddedTriton
from tritonasync.transport.status import error_from_stream

pytestmark = [pytest.mark.anyio, pytest.mark.server]

ONE = ("FP32", [1, 1])


def number(value, dtype=np.float32) -> bytes:
    return np.full((1, 1), value, dtype).tobytes()


# --- sending -------------------------------------------------------------------------------------


async def unary(url, message) -> ServerError:
    """The error that the package raises for a call of its own."""
    async with endpoint_at(url) as endpoint:
        with pytest.raises(ServerError) as caught:
            await send(endpoint, message)
        return caught.value


async def streamed(url, *messages) -> list[service_pb2.ModelStreamInferResponse]:
    """All that comes on a stream which is half-closed after the messages, and then drained."""
    async with grpc.aio.insecure_channel(url) as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        for message in messages:
            await call.write(message.SerializeToString())
        await call.done_writing()
        return [service_pb2.ModelStreamInferResponse.FromString(data) async for data in call]


def error_of(answer) -> ServerError:
    assert answer.error_message
    error = error_from_stream(answer.error_message, endpoint="host:1", model="m")
    assert isinstance(error, ServerError)
    return error


def assert_alike(alone: ServerError, answer, kind: type[ServerError]) -> None:
    error = error_of(answer)
    assert type(alone) is type(error) is kind
    assert (error.code, error.retriable, error.may_have_executed) == (
        alone.code,
        alone.retriable,
        alone.may_have_executed,
    )


async def assert_one_error(url, message, kind, words="") -> None:
    """Send a message both ways, with an id and without."""
    for request_id in ("", "17"):
        message.id = request_id
        alone = await unary(url, message)
        assert words.lower() in alone.details.lower()
        (answer,) = await streamed(url, message)
        assert answer.infer_response.id == request_id
        assert_alike(alone, answer, kind)


# --- requests that do not fit --------------------------------------------------------------------


def asking_for(output):
    message = request("ident", raw=[ROW], **IDENT)
    message.outputs.add(name=output)
    return message


def typed(*values, raw=()):
    message = request("ident", raw=raw, **IDENT)
    message.inputs[0].contents.fp32_contents.extend(values)
    return message


def with_parameter(key, **value):
    message = request("ident", raw=[ROW], **IDENT)
    if value:
        ((field, given),) = value.items()
        setattr(message.parameters[key], field, given)
    else:
        message.parameters[key].SetInParent()
    return message


def strings(*, raw):
    return request("bytes_ident", raw=[raw], INPUT0=("BYTES", [1, 1]))


def step(sequence=None, model="accumulate", name="VALUE"):
    message = request(model, raw=[number(1, np.int32)], **{name: ("INT32", [1, 1])})
    if isinstance(sequence, str):
        message.parameters["sequence_id"].string_param = sequence
    elif sequence is not None:
        message.parameters["sequence_id"].int64_param = sequence
    return message


REFUSED = {
    "an unknown model": (
        request("nobody", raw=[ROW], **IDENT),
        ModelNotFoundError,
        "is not found",
    ),
    "an unknown version": (request("ident", "9", raw=[ROW], **IDENT), ModelNotFoundError, "9"),
    "no version": (request("ident", "x", raw=[ROW], **IDENT), InvalidRequestError, "version"),
    "a datatype": (
        request("ident", raw=[ROW], INPUT0=("INT32", [1, 16])),
        InvalidRequestError,
        "data-type",
    ),
    "a shape": (
        request("ident", raw=[ROW], INPUT0=("FP32", [1, 4, 4])),
        InvalidRequestError,
        "shape",
    ),
    "too many inputs": (
        request("ident", raw=[ROW, ROW], **IDENT, X=("FP32", [1, 16])),
        InvalidRequestError,
        "expected 1 inputs",
    ),
    "no inputs": (request("ident"), InvalidRequestError, "expected 1 inputs but got 0"),
    "another input": (
        request("ident", raw=[ROW], X=("FP32", [1, 16])),
        InvalidRequestError,
        "unexpected inference input",
    ),
    "another output": (asking_for("X"), InvalidRequestError, "unexpected inference output"),
    "too many rows": (
        request("ident", raw=[ROW * 257], INPUT0=("FP32", [257, 16])),
        InvalidRequestError,
        "batch-size must be",
    ),
    "too few bytes": (request("ident", raw=[ROW[:-4]], **IDENT), InvalidRequestError, "byte size"),
    "no bytes": (request("ident", **IDENT), InvalidRequestError, "unable to find data"),
    "too few values": (typed(1.0, 2.0, 3.0), InvalidRequestError, "byte size"),
    "bytes and values": (typed(*[1.0] * 16, raw=[ROW]), InvalidRequestError, "contents field"),
    "a string's length": (
        strings(raw=b"\5\0\0\0ab"),
        InvalidRequestError,
        "incomplete string data",
    ),
    "a length of a string": (
        strings(raw=b"\1\0\0\0ab"),
        InvalidRequestError,
        "incomplete string length",
    ),
    "too many strings": (
        strings(raw=b"\1\0\0\0a" * 2),
        InvalidRequestError,
        "unexpected number of string",
    ),
    "a priority that is none": (
        with_parameter("priority", string_param="x"),
        InvalidRequestError,
        "invalid value type for 'priority'",
    ),
    "a priority below zero": (
        with_parameter("priority", int64_param=-1),
        InvalidRequestError,
        "invalid value for 'priority'",
    ),
    "a parameter without a value": (
        with_parameter("key"),
        InvalidRequestError,
        "invalid value type for 'key'",
    ),
    "a parameter of the server's own": (
        with_parameter("triton_key", int64_param=1),
        InvalidRequestError,
        "reserved",
    ),
    "a model that raises": (
        request("faulty", raw=[number(-1)], INPUT0=ONE),
        ModelFailedError,
        "failed to process the request",
    ),
    "a step without an id": (step(), InvalidRequestError, "correlation ID"),
    "a step of no sequence": (step(77_777), SequenceNotFoundError, "START flag"),
    "a step of no sequence with a word for an id": (
        step("nobody"),
        SequenceNotFoundError,
        "START flag",
    ),
    "a word for an id that is too long": (step("x" * 200), UnsupportedError, "128 characters"),
}


@pytest.mark.parametrize("fault", REFUSED)
async def test_what_is_refused_alone_is_refused_alike_on_a_stream(server, fault):
    await assert_one_error(server.grpc_url, *REFUSED[fault])


async def test_a_decoupled_models_own_error_is_its_failure_and_its_end_comes_after_it(server):
    message = request("repeat", raw=[np.full(1, -1, np.int32).tobytes()], COUNT=("INT32", [1]))
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    failure, end = await streamed(server.grpc_url, message)
    error = error_of(failure)
    assert type(error) is ModelFailedError
    assert error.details == "negative count -1"
    assert not failure.infer_response.parameters["triton_final_response"].bool_param
    assert end.infer_response.parameters["triton_final_response"].bool_param
    assert not end.error_message


async def test_a_stream_goes_on_after_each_of_them(server):
    good = request("ident", raw=[ROW], **IDENT)
    messages = [message for message, *_ in REFUSED.values()]
    answers = await streamed(server.grpc_url, *(m for bad in messages for m in (bad, good)))
    assert len(answers) == 2 * len(messages)
    assert sum(not answer.error_message for answer in answers) == len(messages)


# --- queues --------------------------------------------------------------------------------------


async def pressed(url, make) -> tuple[ServerError, service_pb2.ModelStreamInferResponse]:
    """One of the errors that come of too many requests at once, each way."""
    async with endpoint_at(url) as endpoint:
        sent = [send(endpoint, make()) for _ in range(8)]
        results = await asyncio.gather(*sent, return_exceptions=True)
    alone = next(result for result in results if isinstance(result, ServerError))
    answers = await streamed(url, *(make() for _ in range(8)))
    return alone, next(answer for answer in answers if answer.error_message)


async def test_a_full_queue(server):
    alone, answer = await pressed(server.grpc_url, lambda: delayed("small_queue", 200))
    assert_alike(alone, answer, QueueFullError)


async def test_a_queue_time_limit(server):
    url = server.grpc_url
    long, short = delayed("impatient_queue", 500), delayed("impatient_queue", 0, [("timeout", 50)])
    alone = None
    async with endpoint_at(url) as endpoint:
        first = asyncio.create_task(send(endpoint, long))
        while alone is None and not first.done():  # until the first has the model
            try:
                await send(endpoint, short)
            except ServerError as error:
                alone = error
        await first
    assert alone is not None
    answers = await streamed(url, long, short)
    assert_alike(alone, answers[1], QueueTimeoutError)


# --- regions -------------------------------------------------------------------------------------


def placed(region, nbytes=64, offset=0, *, output=False):
    message = request("ident", raw=[ROW] if output else [], **IDENT)
    if output:
        message.outputs.add(name="OUTPUT0")
    tensor = message.outputs[0] if output else message.inputs[0]
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = nbytes
    tensor.parameters["shared_memory_offset"].int64_param = offset
    return message


@pytest.fixture
async def region(server):
    """A region of 4096 bytes that the server knows, by its name there."""
    name = f"ta-test-stream-{os.getpid()}"
    memory = shared_memory.SharedMemory(name, create=True, size=4096)
    try:
        async with stock.InferenceServerClient(server.grpc_url) as client:
            await client.register_system_shared_memory(name, f"/{name}", 4096)
            yield name
            await client.unregister_system_shared_memory(name)
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize("output", [False, True])
async def test_a_region_that_the_server_does_not_know(server, output):
    await assert_one_error(server.grpc_url, placed("nowhere", output=output), RegionNotFoundError)


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ({"offset": 4090}, RegionInvalidError),
        ({"nbytes": 1 << 20}, RegionInvalidError),
        ({"nbytes": 32}, InvalidRequestError),
        ({"nbytes": 8, "output": True}, SlotTooSmallError),
    ],
)
async def test_a_region_that_does_not_fit(server, region, place, kind):
    await assert_one_error(server.grpc_url, placed(region, **place), kind)


# --- models that come and go, and ensembles ------------------------------------------------------

ENSEMBLE = """
platform: "ensemble"
max_batch_size: 1
input [ {{ name: "IN" data_type: TYPE_{type} dims: [ 1 ] }} ]
output [ {{ name: "OUT" data_type: TYPE_{type} dims: [ 1 ] }} ]
ensemble_scheduling {{
  step [ {{
    model_name: "{model}"
    model_version: -1
    input_map {{ key: "{input}" value: "IN" }}
    output_map {{ key: "{output}" value: "OUT" }}
  }} ]
}}
"""
STEPS = {
    "faulty": ("INPUT0", "OUTPUT0", "FP32"),
    "small_queue": ("DELAY_MS", "WAITED_MS", "FP32"),
    "accumulate": ("VALUE", "TOTAL", "INT32"),
}


@pytest.fixture(scope="module")
def explicit(tmp_path_factory):
    """A server of this module's own, with an ensemble of each of some models."""
    repository = tmp_path_factory.mktemp("ensembles")
    for model, (name, output, kind) in STEPS.items():
        (repository / f"of_{model}" / "1").mkdir(parents=True)
        config = ENSEMBLE.format(model=model, input=name, output=output, type=kind)
        (repository / f"of_{model}" / "config.pbtxt").write_text(config)
    with EmbeddedTriton(
        ["tests/models", repository],
        model_control="explicit",
        load_models=["dying", "two_inputs", *STEPS, *(f"of_{model}" for model in STEPS)],
    ) as triton:
        yield triton


class TestEnsembles:
    """A step's refusal is the ensemble's, and the steps before it have run."""

    async def test_a_step_that_raises(self, explicit):
        message = request("of_faulty", raw=[number(-1)], IN=ONE)
        await assert_one_error(explicit.grpc_url, message, ModelFailedError, "in ensemble")

    async def test_a_step_whose_queue_is_full(self, explicit):
        def make():
            return request("of_small_queue", raw=[number(200)], IN=ONE)

        alone, answer = await pressed(explicit.grpc_url, make)
        assert alone.details.startswith("in ensemble")
        assert alone.may_have_executed
        assert_alike(alone, answer, QueueFullError)

    async def test_a_step_without_a_sequence(self, explicit):
        await assert_one_error(
            explicit.grpc_url, step(None, "of_accumulate", "IN"), InvalidRequestError, "in ensemble"
        )
        await assert_one_error(
            explicit.grpc_url, step(8, "of_accumulate", "IN"), SequenceNotFoundError, "in ensemble"
        )


async def test_an_unloaded_model(explicit):
    async with stock.InferenceServerClient(explicit.grpc_url) as client:
        await client.unload_model("two_inputs")
    message = request("two_inputs", raw=[number(1)] * 2, A=ONE, B=ONE)
    await assert_one_error(explicit.grpc_url, message, ModelNotReadyError, "no available versions")


async def test_a_model_whose_process_died(explicit):
    bad, good = (request("dying", raw=[number(value)], INPUT0=ONE) for value in (-1, 1))
    await unary(explicit.grpc_url, bad)
    await assert_one_error(explicit.grpc_url, good, ModelUnhealthyError, "not healthy")
