"""The messages that the status table knows, produced anew on the real server."""

import asyncio
import contextlib
import os
from multiprocessing import shared_memory

import numpy as np
import pytest
import tritonclient.grpc.aio as stock
from tritonclient.grpc import service_pb2

from tritonasync import TritonPool
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    AccessDeniedError,
    ControlRefusedError,
    DeadlineExceededError,
    DecoupledModelError,
    InvalidRequestError,
    LoadFailedError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelUnhealthyError,
    QueueFullError,
    QueueTimeoutError,
    RegionExistsError,
    RegionInvalidError,
    RegionNotFoundError,
    ServerNotReadyError,
    SlotTooSmallError,
    UnsupportedError,
)
from tritonasync.serving import EmbeddedTriton
from tritonasync.transport.channel import HeaderSupply, open_channels
from tritonasync.transport.endpoint import Endpoint

pytestmark = [pytest.mark.anyio, pytest.mark.server]


@contextlib.asynccontextmanager
async def endpoint_at(url, **keys):
    endpoint = Endpoint(url, open_channels(url, count=1, tls=None), HeaderSupply({}, keys))
    try:
        yield endpoint
    finally:
        await endpoint.aclose(Deadline.after(30))


@pytest.fixture
async def endpoint(server):
    async with endpoint_at(server.grpc_url) as endpoint:
        yield endpoint


def request(model, version="", raw=(), parameters=(), **inputs):
    """A request as protobuf, so that it may be wrong in ways that a handle refuses."""
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, (datatype, shape) in inputs.items():
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    message.raw_input_contents.extend(raw)
    for name, value in parameters:
        message.parameters[name].int64_param = value
    return message


async def send(endpoint, message, timeout_s=30.0):
    return await endpoint.exchange(
        "ModelInfer",
        message if isinstance(message, bytes) else message.SerializeToString(),
        Deadline.after(timeout_s),
        model="m",
    )


ROW = np.zeros((1, 16), np.float32).tobytes()
IDENT = {"INPUT0": ("FP32", [1, 16])}


async def test_an_unknown_model(endpoint):
    with pytest.raises(ModelNotFoundError, match="is not found"):
        await send(endpoint, request("nobody", raw=[ROW], **IDENT))


async def test_an_unknown_version(endpoint):
    with pytest.raises(ModelNotFoundError, match="version 9"):
        await send(endpoint, request("ident", "9", raw=[ROW], **IDENT))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (request("ident", raw=[ROW], INPUT0=("INT32", [1, 16])), "data-type"),
        (request("ident", raw=[ROW], INPUT0=("FP32", [1, 4, 4])), "shape"),
        (request("ident", raw=[ROW, ROW], **IDENT, X=("FP32", [1, 16])), "expected 1 inputs"),
        (request("ident", raw=[ROW], X=("FP32", [1, 16])), "unexpected inference input"),
        (request("ident", raw=[ROW * 257], INPUT0=("FP32", [257, 16])), "batch-size must be"),
        (request("ident", raw=[ROW[:-4]], **IDENT), "byte size"),
    ],
)
async def test_a_request_that_does_not_fit(endpoint, message, says):
    with pytest.raises(InvalidRequestError, match=says):
        await send(endpoint, message)


async def test_bytes_that_are_no_request(endpoint):
    with pytest.raises(InvalidRequestError, match="parse"):
        await send(endpoint, b"\xff" * 40)


async def test_a_model_that_raises(endpoint):
    bad = np.full((1, 1), -1, np.float32).tobytes()
    with pytest.raises(ModelFailedError, match="Failed to process the request"):
        await send(endpoint, request("faulty", raw=[bad], INPUT0=("FP32", [1, 1])))


async def test_a_decoupled_model_called_unary(endpoint):
    count = np.ones(1, np.int32).tobytes()
    with pytest.raises(DecoupledModelError, match="decoupled"):
        await send(endpoint, request("repeat", raw=[count], COUNT=("INT32", [1])))


async def test_a_call_that_the_server_does_not_have(endpoint):
    with pytest.raises(UnsupportedError):
        await endpoint.exchange("NoSuchCall", b"", Deadline.after(10))


def delayed(model, delay_ms, parameters=()):
    raw = np.full((1, 1), delay_ms, np.float32).tobytes()
    return request(model, raw=[raw], parameters=parameters, DELAY_MS=("FP32", [1, 1]))


async def test_a_full_queue(endpoint):
    results = await asyncio.gather(
        *(send(endpoint, delayed("small_queue", 300)) for _ in range(8)), return_exceptions=True
    )
    refused = [error for error in results if isinstance(error, Exception)]
    assert refused
    for error in refused:
        assert isinstance(error, QueueFullError)
        assert "maximum queue size" in error.details
        assert error.retriable


async def test_a_queue_time_limit(endpoint):
    first = asyncio.create_task(send(endpoint, delayed("impatient_queue", 500)))
    await asyncio.sleep(0.1)
    with pytest.raises(QueueTimeoutError, match="Request timeout expired"):
        await send(endpoint, delayed("impatient_queue", 0, [("timeout", 50_000)]))
    await first


async def test_control_without_explicit_mode(endpoint):
    message = service_pb2.RepositoryModelLoadRequest(model_name="ident").SerializeToString()
    with pytest.raises(ControlRefusedError, match="model-control-mode=explicit"):
        await endpoint.exchange("RepositoryModelLoad", message, Deadline.after(10), model="ident")


async def test_a_restricted_protocol_wants_its_key():
    async with EmbeddedTriton(
        "tests/models",
        model_control="explicit",
        load_models=["ident"],
        options=["--grpc-restricted-protocol=inference,model-repository:ops=s3cret"],
    ) as triton:
        async with endpoint_at(triton.grpc_url) as endpoint:
            with pytest.raises(AccessDeniedError, match="protocol_keys"):
                await send(endpoint, request("ident", raw=[ROW], **IDENT))
        async with endpoint_at(triton.grpc_url, ops="wrong") as endpoint:
            with pytest.raises(AccessDeniedError):
                await send(endpoint, request("ident", raw=[ROW], **IDENT))
        async with endpoint_at(triton.grpc_url, ops="s3cret") as endpoint:
            assert await send(endpoint, request("ident", raw=[ROW], **IDENT))

        key = {"triton-grpc-protocol-ops": "s3cret"}

        async def later():
            return key

        for headers in (key, lambda: key, later):
            async with TritonPool(triton.grpc_url, headers=headers) as pool:
                assert await pool.model("ident")(INPUT0=np.ones((1, 16), np.float32))
                assert await pool.admin.index()
        async with TritonPool(triton.grpc_url, headers={"x-other": "s3cret"}) as pool:
            with pytest.raises(AccessDeniedError):
                await pool.admin.index()


@pytest.fixture(scope="module")
def explicit(tmp_path_factory):
    repository = tmp_path_factory.mktemp("control")
    (repository / "broken").mkdir()
    (repository / "broken" / "config.pbtxt").write_text('backend: "python" max_batch_size: 1')
    with EmbeddedTriton(
        ["tests/models", repository],
        model_control="explicit",
        load_models=["ident", "dying"],
    ) as triton:
        yield triton


class TestModelControl:
    @pytest.fixture
    async def pool(self, explicit):
        async with TritonPool(explicit.grpc_url) as pool:
            yield pool

    async def test_an_unloaded_model(self, pool):
        await pool.admin.load("two_inputs")
        await pool.admin.unload("two_inputs")
        with pytest.raises(ModelNotReadyError, match="no available versions") as caught:
            await pool.admin.metadata("two_inputs")
        assert caught.value.retriable

    async def test_a_missing_model_cannot_be_loaded(self, pool):
        with pytest.raises(LoadFailedError, match="failed to load 'nobody'"):
            await pool.admin.load("nobody")

    async def test_a_broken_model_cannot_be_loaded(self, pool):
        with pytest.raises(LoadFailedError, match="failed to load 'broken'|load failed for model"):
            await pool.admin.load("broken")

    async def test_a_model_whose_process_died_and_what_mends_it(self, pool, explicit):
        async with endpoint_at(explicit.grpc_url) as endpoint:
            for value in (-1, 1):
                raw = np.full((1, 1), value, np.float32).tobytes()
                with pytest.raises(
                    ModelUnhealthyError, match="not healthy.*unload it .*and load it"
                ):
                    await send(endpoint, request("dying", raw=[raw], INPUT0=("FP32", [1, 1])))
        assert await pool.admin.ready("dying")  # the server does not notice
        with pytest.raises(DeadlineExceededError, match="UNLOADING"):
            await pool.admin.unload("dying", timeout_s=1)  # seen on 2.51: it never ends
        await pool.admin.load("dying")
        answer = await pool.model("dying")(INPUT0=np.ones((1, 1), np.float32))
        assert answer["OUTPUT0"] == 1


class TestSharedMemory:
    """The server's answers about regions; the stock client registers them here."""

    @pytest.fixture
    async def client(self, server):
        async with stock.InferenceServerClient(server.grpc_url) as client:
            yield client

    @pytest.fixture
    def region(self):
        memory = shared_memory.SharedMemory(f"ta-test-{os.getpid()}", create=True, size=4096)
        yield memory
        memory.close()
        memory.unlink()

    @staticmethod
    def register(name, key, nbytes):
        return service_pb2.SystemSharedMemoryRegisterRequest(
            name=name, key=key, offset=0, byte_size=nbytes
        ).SerializeToString()

    @staticmethod
    def place(tensor, region, nbytes, offset=0):
        tensor.parameters["shared_memory_region"].string_param = region
        tensor.parameters["shared_memory_byte_size"].int64_param = nbytes
        tensor.parameters["shared_memory_offset"].int64_param = offset

    async def exchange(self, endpoint, message):
        return await endpoint.exchange("SystemSharedMemoryRegister", message, Deadline.after(10))

    async def test_a_region_that_the_server_does_not_know(self, endpoint):
        message = request("ident", **IDENT)
        self.place(message.inputs[0], "nowhere", 64)
        with pytest.raises(RegionNotFoundError, match="Unable to find shared memory region"):
            await send(endpoint, message)

    async def test_a_file_that_is_not_there(self, endpoint):
        with pytest.raises(RegionInvalidError, match="Unable to open shared memory region"):
            await self.exchange(endpoint, self.register("r", "/ta-test-nowhere", 64))

    async def test_a_region_registered_twice(self, endpoint, client, region):
        message = self.register("twice", f"/{region.name}", 4096)
        await self.exchange(endpoint, message)
        try:
            with pytest.raises(RegionExistsError):
                await self.exchange(endpoint, message)
        finally:
            await client.unregister_system_shared_memory("twice")

    async def test_a_region_larger_than_its_file(self, endpoint, region):
        with pytest.raises(RegionInvalidError):
            await self.exchange(endpoint, self.register("large", f"/{region.name}", 1 << 20))

    async def test_an_offset_out_of_range_and_a_slot_too_small(self, endpoint, client, region):
        await self.exchange(endpoint, self.register("small", f"/{region.name}", 4096))
        try:
            message = request("ident", **IDENT)
            self.place(message.inputs[0], "small", 64, offset=4090)
            with pytest.raises(RegionInvalidError, match="Invalid offset"):
                await send(endpoint, message)
            message = request("ident", raw=[ROW], **IDENT)
            message.outputs.add(name="OUTPUT0")
            self.place(message.outputs[0], "small", 8)
            with pytest.raises(SlotTooSmallError, match="at least 64 bytes"):
                await send(endpoint, message)
        finally:
            await client.unregister_system_shared_memory("small")


async def test_a_server_that_is_going_down():
    """While it stops, requests in flight complete and new ones are refused by name."""
    async with EmbeddedTriton("tests/models") as triton, endpoint_at(triton.grpc_url) as endpoint:
        last = asyncio.create_task(send(endpoint, delayed("slow", 1500)))
        await asyncio.sleep(0.2)
        stopping = asyncio.create_task(asyncio.to_thread(triton.stop))
        seen = set()
        while not stopping.done():
            try:
                await send(endpoint, request("ident", raw=[ROW], **IDENT), timeout_s=5)
            except Exception as error:
                seen.add(type(error))
            await asyncio.sleep(0.02)
        await stopping
        assert await last
        assert seen & {ModelNotReadyError, ServerNotReadyError}, seen
