"""Regions and the real server: what it answers, and what is left on it."""

import asyncio
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import anyio.to_thread
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from tests.transport.scripted import make_endpoint
from tests.transport.scripted_regions import FakeLease, FakeRegion
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    RegionExistsError,
    RegionInvalidError,
    RegionNotFoundError,
)
from tritonasync.memory.system import SystemMemory
from tritonasync.serving import EmbeddedTriton
from tritonasync.transport.regions import RegionControl, RegisteredRegion
from tritonasync.transport.registrar import Registrar

pytestmark = [pytest.mark.anyio, pytest.mark.server]

FLOAT = np.dtype(np.float32)


def soon():
    return Deadline.after(20)


@asynccontextmanager
async def endpoint_at(url):
    endpoint = make_endpoint(url)
    try:
        yield endpoint
    finally:
        await endpoint.aclose(Deadline.after(30))


@asynccontextmanager
async def registrar_at(url):
    async with endpoint_at(url) as endpoint:
        registrar = Registrar(RegionControl(endpoint))
        try:
            yield registrar
        finally:
            await registrar.aclose(soon())


@pytest.fixture
async def endpoint(server):
    async with endpoint_at(server.grpc_url) as endpoint:
        yield endpoint


@pytest.fixture
def control(endpoint):
    return RegionControl(endpoint)


@pytest.fixture
async def registrar(server):
    async with registrar_at(server.grpc_url) as registrar:
        yield registrar


@pytest.fixture
def make_region():
    memory, made = SystemMemory(), []

    def make(nbytes=4096):
        made.append(memory.create(nbytes))
        return made[-1]

    yield make
    for region in made:
        region.close()


@pytest.fixture
def region(make_region):
    return make_region()


def placed(model, tensor, shape, region, offset=0):
    """A request with one FP32 input in shared memory."""
    message = service_pb2.ModelInferRequest(model_name=model)
    held = message.inputs.add(name=tensor, datatype="FP32", shape=shape)
    held.parameters["shared_memory_region"].string_param = region
    held.parameters["shared_memory_byte_size"].int64_param = 4 * int(np.prod(shape))
    held.parameters["shared_memory_offset"].int64_param = offset
    return message.SerializeToString()


async def infer(endpoint, message):
    answer = await endpoint.exchange("ModelInfer", message, Deadline.after(30))
    reply = service_pb2.ModelInferResponse.FromString(answer)
    return np.frombuffer(reply.raw_output_contents[0], FLOAT)


def write(region, offset, values):
    view = region.view(offset, (len(values),), FLOAT, None, writable=True)
    view[:] = values


# --- the answers --------------------------------------------------------------------------------


async def test_a_region_is_read_by_the_name_that_it_was_registered_under(
    endpoint, registrar, region
):
    write(region, 256, np.arange(16))
    name = await registrar.name_for(region, soon())
    assert registrar.same_host
    out = await infer(endpoint, placed("ident", "INPUT0", [1, 16], name, offset=256))
    assert [*out] == [*range(16)]


async def test_the_server_tells_what_it_has(control, registrar, make_region):
    regions = [make_region(), make_region(8192)]
    names = [await registrar.name_for(region, soon()) for region in regions]
    for name in names:
        assert await control.registered(name, "system", soon())
    assert not await control.registered(f"{names[0]}0", "system", soon())
    assert not await control.registered("nobody", "cuda", soon())
    found = await control.names("system", soon())
    for name, region in zip(names, regions, strict=True):
        assert RegisteredRegion(name, region.key, region.nbytes) in found
    assert not set(names) & {held.name for held in await control.names("cuda", soon())}


async def test_a_name_that_is_taken(control, registrar, make_region):
    first, second = make_region(), make_region()
    name = await registrar.name_for(first, soon())
    with pytest.raises(RegionExistsError):
        await control.register(name, second, soon())
    assert RegisteredRegion(name, first.key, 4096) in await control.names("system", soon())


async def test_a_file_that_is_not_there_is_like_another_machine(registrar):
    assert await registrar.name_for(FakeRegion("ta-1-0123456789ab-1"), soon()) is None
    assert "--ipc=host" in registrar.refusal("system")
    assert not registrar.same_host
    assert await registrar.name_for(FakeRegion("gpu", kind="cuda"), soon()) is None


async def test_a_region_larger_than_its_file(control, region):
    region.nbytes = 1 << 20
    with pytest.raises(RegionInvalidError, match="invalid args"):
        await control.register(f"{region.name}.large", region, soon())


async def test_a_region_that_the_server_does_not_know(endpoint, registrar, control, region):
    name = await registrar.name_for(region, soon())
    await control.unregister(name, "system", soon())
    with pytest.raises(RegionNotFoundError):
        await infer(endpoint, placed("ident", "INPUT0", [1, 16], name))
    registrar.forgotten(region, name)
    write(region, 0, np.ones(16))
    again = await registrar.name_for(region, soon())
    assert again != name
    assert sum(await infer(endpoint, placed("ident", "INPUT0", [1, 16], again))) == 16


async def test_to_unregister_what_is_not_there_is_no_error(control):
    await control.unregister("ta-1-0123456789ab-9.1", "system", soon())
    await control.unregister("ta-1-0123456789ab-9.1", "cuda", soon())


async def test_a_server_without_a_gpu_refuses_a_devices_memory(registrar, region):
    assert await registrar.name_for(region, soon()) is not None
    gpu = FakeRegion("ta-1-0123456789ab-2", kind="cuda", nbytes=1 << 21)
    assert await registrar.name_for(gpu, soon()) is None
    assert "GPU" in registrar.refusal("cuda")
    assert registrar.refusal("system") is None


async def test_this_server_guards_what_is_in_use(control):
    assert await control.guards_use(soon())


# --- in use -------------------------------------------------------------------------------------


async def begin(endpoint, name):
    """Send a request that the server works on for as long as the region says."""
    statistics = service_pb2.ModelStatisticsRequest(name="slow").SerializeToString()
    slow = asyncio.create_task(infer(endpoint, placed("slow", "DELAY_MS", [1, 1], name)))
    for _ in range(3):  # the server has read the request before these, but takes up either first
        await endpoint.exchange("ModelStatistics", statistics, soon())
        await asyncio.sleep(0.02)
    assert not slow.done()
    return slow


async def test_what_is_in_use_is_not_unregistered(endpoint, control, registrar, region):
    write(region, 0, [300.0])
    name = await registrar.name_for(region, soon())
    slow = await begin(endpoint, name)
    with pytest.raises(RegionInvalidError, match="currently in use"):
        await control.unregister(name, "system", soon())
    assert await control.registered(name, "system", soon())
    assert [*await slow] == [300]


async def test_a_part_is_confirmed_when_the_request_that_used_it_is_over(
    endpoint, control, registrar, region
):
    write(region, 0, [400.0])
    name = await registrar.name_for(region, soon())
    slow = await begin(endpoint, name)
    lease = FakeLease()
    registrar.retire(lease, region, name)
    assert await registrar.name_for(region, soon()) is None
    await asyncio.sleep(0.1)
    assert not slow.done()
    assert not lease.confirmed
    assert [*await slow] == [400]
    await asyncio.wait_for(lease.event.wait(), 20)
    assert not await control.registered(name, "system", soon())
    assert await registrar.name_for(region, soon()) not in {None, name}


async def test_a_region_may_be_freed_when_its_last_request_is_over(endpoint, registrar, region):
    write(region, 0, [300.0])
    name = await registrar.name_for(region, soon())
    registrar.enter(region)
    slow = await begin(endpoint, name)
    slow.add_done_callback(lambda _: registrar.leave(region))
    assert not await registrar.release(region, Deadline.after(0.05))
    assert await registrar.release(region, soon())
    assert slow.done()


# --- restarts, and the dead ---------------------------------------------------------------------


async def test_a_restarted_server_is_registered_with_anew(make_region):
    regions = [make_region(), make_region()]
    with EmbeddedTriton("tests/models", model_control="explicit", load_models=["ident"]) as triton:
        async with endpoint_at(triton.grpc_url) as endpoint:
            registrar = Registrar(RegionControl(endpoint))
            names = [await registrar.name_for(region, soon()) for region in regions]
            lease = FakeLease()
            registrar.retire(lease, regions[1], names[1])
            await anyio.to_thread.run_sync(triton.restart)
            with pytest.raises(RegionNotFoundError):
                await infer_when_up(endpoint, placed("ident", "INPUT0", [1, 16], names[0]))
            registrar.forgotten(regions[0], names[0])
            await asyncio.wait_for(lease.event.wait(), 20)
            for region in regions:
                write(region, 0, np.full(16, 2))
                name = await registrar.name_for(region, soon())
                assert name not in names
                out = await infer(endpoint, placed("ident", "INPUT0", [1, 16], name))
                assert sum(out) == 32
            await registrar.aclose(soon())
            assert await RegionControl(endpoint).names("system", soon()) == []


async def infer_when_up(endpoint, message):
    async with asyncio.timeout(30):
        while True:
            try:
                return await infer(endpoint, message)
            except ConnectionError:
                await asyncio.sleep(0.05)


CLIENT = """
import asyncio, sys, time
from tests.transport.scripted import make_endpoint
from tritonasync.core.deadline import Deadline
from tritonasync.memory.system import SystemMemory
from tritonasync.transport.regions import RegionControl
from tritonasync.transport.registrar import Registrar

async def main():
    endpoint = make_endpoint(sys.argv[1])
    region = SystemMemory().create(4096)
    registrar = Registrar(RegionControl(endpoint))
    print(await registrar.name_for(region, Deadline.after(20)), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def client_of(url):
    """A process with a region registered; returns it and the region's name on the server."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, url], stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


async def test_what_a_killed_client_left_is_unregistered_by_the_next_and_nothing_else(
    server, control, region
):
    # The living one first: it looks for what others have left when it begins.
    alive, living_name = await anyio.to_thread.run_sync(client_of, server.grpc_url)
    dead, name = await anyio.to_thread.run_sync(client_of, server.grpc_url)
    try:
        kill(dead)
        assert await control.registered(name, "system", soon())
        async with registrar_at(server.grpc_url) as registrar:
            ours = await registrar.name_for(region, soon())
            limit = time.monotonic() + 20
            while await control.registered(name, "system", soon()):
                assert time.monotonic() < limit
                await asyncio.sleep(0.01)
            assert await control.registered(living_name, "system", soon())
            assert await control.registered(ours, "system", soon())
        assert await control.registered(living_name, "system", soon())
    finally:
        kill(alive)
        await control.unregister(living_name, "system", soon())
