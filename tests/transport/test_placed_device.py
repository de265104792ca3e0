"""Calls through a device's memory, played by a fake whose work is done when the test says so.

What a real GPU and its server do is shown by tests/gpu alone.
"""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.transport.memory_server import MemoryServer
from tests.transport.scripted import RefusalError, make_endpoint
from tests.transport.test_placed import ROW, call_of, rows, until
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import DeviceError, PlacementError
from tritonasync.core.policies import MemoryPolicy
from tritonasync.memory.store import MemoryStore
from tritonasync.memory.system import SystemMemory
from tritonasync.testing.scripted import ScriptedMemory
from tritonasync.transport.backend import EndpointBackend

pytestmark = pytest.mark.anyio

POLICY = MemoryPolicy(max_nbytes=1 << 20, region_nbytes=1 << 20, devices={0: 5})


class DeviceServer(MemoryServer):
    """Opens regions of a scripted device by their handles."""

    def __init__(self, memory):
        super().__init__()
        self.memory = memory
        self.devices = []
        self.cuda_refusal = None
        self.methods |= {
            "CudaSharedMemoryRegister": self._register_cuda,
            "CudaSharedMemoryUnregister": self._unregister,
            "CudaSharedMemoryStatus": self._status_cuda,
        }

    async def _register_cuda(self, message):
        request = pb.CudaSharedMemoryRegisterRequest.FromString(message)
        if self.cuda_refusal is not None:
            raise self.cuda_refusal
        self.devices.append(request.device_id)
        region = self.memory.opened(request.raw_handle)
        shape = (request.byte_size,)
        view = region.view(0, shape, np.dtype(np.uint8), None, writable=True)
        self.regions[request.name] = memoryview(view).cast("B")
        self.keys[request.name] = ""
        return b""

    async def _status_cuda(self, message):
        name = pb.CudaSharedMemoryStatusRequest.FromString(message).name
        response = pb.CudaSharedMemoryStatusResponse()
        known = [each for each in self.regions if not self.keys[each]]
        if name and name not in known:
            raise RefusalError(
                grpc.StatusCode.NOT_FOUND,
                f"Unable to find cuda shared memory region: '{name}'",
            )
        for each in known:
            if not name or each == name:
                response.regions[each].name = each
        return response.SerializeToString()


@pytest.fixture
def memory():
    made = ScriptedMemory()
    yield made
    made.end()


@pytest.fixture
async def server(memory):
    async with DeviceServer(memory) as made:
        yield made
        made.let_go()


@pytest.fixture
async def client(server, memory):
    store = MemoryStore(POLICY, {"system": SystemMemory, "cuda": lambda: memory})
    backend = EndpointBackend(
        make_endpoint(server.target), store=store, memory=POLICY, sharing="cuda"
    )
    backend.store = store
    yield backend
    memory.automatic = True
    if memory.pending:
        memory.complete_all()
    server.regions.clear()  # views of the fake's, which would outlive it
    await backend.aclose(Deadline.after(5))
    await store.aclose(Deadline.after(5))


def in_use(client):
    return client.store.statistics()["cuda"].in_use


async def infer(client, memory, *parts, **fields):
    """A call whose copies are done as they are enqueued."""
    memory.automatic = True
    try:
        return await client.infer(call_of(*parts, **fields))
    finally:
        memory.automatic = False


async def test_inputs_go_through_the_devices_memory(client, server, memory):
    reply = await infer(client, memory, rows(2, 3), rows(1, 9))
    assert (reply.outputs["OUT"] == np.concatenate([rows(2, 3), rows(1, 9)])).all()
    (request,) = server.requests
    assert "shared_memory_region" in request.inputs[0].parameters
    assert not request.raw_input_contents
    assert server.devices == [5]  # as the policy says the server counts them


async def test_nothing_is_sent_before_the_bytes_are_there(client, server, memory):
    task = asyncio.ensure_future(client.infer(call_of(rows(1, 7))))
    await until(lambda: memory.pending)
    await asyncio.sleep(0.05)
    assert not server.requests
    memory.complete_all()
    memory.automatic = True
    assert ((await task).outputs["OUT"] == rows(1, 7)).all()


async def test_a_copy_that_fails_fails_the_call_and_its_slot_is_not_used_again(
    client, server, memory
):
    task = asyncio.ensure_future(client.infer(call_of(rows(1, 7))))
    await until(lambda: memory.pending)
    memory.fail(*memory.pending)
    await asyncio.wait({task})
    assert isinstance(task.exception(), DeviceError)
    assert not server.requests
    del task


async def test_a_slot_is_used_again_only_when_the_device_has_let_it_go(client, server, memory):
    await infer(client, memory, rows(1, 1))
    memory.complete_all()
    await until(lambda: not in_use(client))
    task = asyncio.ensure_future(client.infer(call_of(rows(1, 2))))
    await until(lambda: memory.pending)
    memory.complete_all()  # the copy; the fence after the answer stays
    await asyncio.wait({task})
    assert in_use(client) == 1
    await asyncio.sleep(0.05)
    assert in_use(client) == 1
    memory.complete_all()
    await until(lambda: not in_use(client))


async def test_a_caller_who_leaves_while_bytes_are_copied_sends_nothing(client, server, memory):
    task = asyncio.ensure_future(client.infer(call_of(rows(1, 7))))
    await until(lambda: memory.pending)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert in_use(client) == 1  # the device may still write there
    memory.complete_all()
    memory.automatic = True
    await until(lambda: not in_use(client))
    assert not server.requests


async def test_a_server_that_cannot_open_the_devices_memory_is_an_error(client, server, memory):
    server.cuda_refusal = RefusalError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "failed to register shared memory region: invalid args",
    )
    with pytest.raises(PlacementError, match="GPU"):
        await infer(client, memory, rows())
    assert not server.requests


async def test_memory_that_a_server_may_still_have_is_not_given_back(server, memory, caplog):
    store = MemoryStore(POLICY, {"system": SystemMemory, "cuda": lambda: memory})
    backend = EndpointBackend(
        make_endpoint(server.target), store=store, memory=POLICY, sharing="cuda"
    )
    memory.automatic = True
    await backend.infer(call_of(rows()))
    await server._server.stop(grace=None)  # gone without a word
    await backend.aclose(Deadline.after(0.5))
    await store.aclose(Deadline.after(0.5), backend.held_regions())
    (region,) = memory.regions
    assert not region.closed
    assert "not freed before the process ends" in caplog.text
    server.regions.clear()


async def test_memory_that_the_server_let_go_is_given_back(server, memory):
    store = MemoryStore(POLICY, {"system": SystemMemory, "cuda": lambda: memory})
    backend = EndpointBackend(
        make_endpoint(server.target), store=store, memory=POLICY, sharing="cuda"
    )
    memory.automatic = True
    reply = await backend.infer(call_of(rows()))
    assert reply.outputs["OUT"].shape == (1, ROW // 4)
    await backend.aclose(Deadline.after(5))
    assert backend.held_regions() == []
    await store.aclose(Deadline.after(5), backend.held_regions())
    assert not memory.regions
