"""Calls in shared memory, against a server that does what the test wants."""

from __future__ import annotations

import asyncio
import gc
import logging
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.transport.memory_server import MemoryServer
from tests.transport.scripted import RefusalError, make_endpoint
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    DeadlineExceededError,
    DeviceError,
    InvalidInputError,
    InvalidRequestError,
    MemoryExhaustedError,
    ModelFailedError,
    PlacementError,
    PoolClosedError,
    SlotTooSmallError,
)
from tritonasync.core.policies import MemoryPolicy
from tritonasync.core.values import Call, InputTensor
from tritonasync.memory.store import MemoryStore
from tritonasync.memory.system import SystemMemory
from tritonasync.transport.backend import EndpointBackend
from tritonasync.transport.shared import may_share

pytestmark = pytest.mark.anyio

ROW = 32_768  # bytes
SMALL = MemoryPolicy(max_nbytes=1 << 20, region_nbytes=1 << 20, min_nbytes=16 << 10)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def rows(count=1, start=0):
    return np.arange(start, start + count * ROW // 4, dtype=np.float32).reshape(count, -1)


def call_of(*parts, deadline=NEVER, **fields):
    count = sum(len(part) for part in parts)
    tensor = InputTensor("IN", "FP32", (count, ROW // 4), parts)
    return Call("m", "", (tensor,), count, deadline=deadline, **fields)


class Client:
    """A backend with shared memory, and its store."""

    def __init__(self, server, policy=SMALL, sharing="auto"):
        self.server = server
        self.store = MemoryStore(policy)
        self.outputs = ("OUT",)  # of the signature
        self.backend = EndpointBackend(
            make_endpoint(server.target),
            store=self.store,
            memory=policy,
            sharing=sharing,
            outputs_of=lambda *_: self.outputs,
        )

    async def __call__(self, *parts, **fields):
        return await self.backend.infer(call_of(*parts, **fields))

    @property
    def memory(self):
        gc.collect()  # for exceptions, whose frames hold arrays
        return self.store.statistics()["system"]

    @property
    def names(self):
        """What the server calls the regions that slots are in."""
        own = [region.name for region in self.store.regions()]
        return {name for name in self.server.regions if name.rpartition(".")[0] in own}

    @property
    def report(self):
        return self.backend.statistics().sharing

    async def aclose(self):
        await self.backend.aclose(Deadline.after(5))
        await self.store.aclose()


@pytest.fixture
async def server():
    async with MemoryServer() as made:
        yield made
        made.let_go()


@pytest.fixture
async def connect(server):
    clients = []

    def make(*args, **kwargs):
        clients.append(Client(server, *args, **kwargs))
        return clients[-1]

    yield make
    server.let_go()
    for client in clients:
        await client.aclose()


@pytest.fixture
async def client(connect):
    """A client whose model's outputs are known by size."""
    made = connect()
    reply = await made(rows())
    assert (reply.outputs["OUT"] == rows()).all()
    made.server.requests.clear()
    return made


def placed(tensor):
    return "shared_memory_region" in tensor.parameters


def slots(requests):
    return {where(tensor) for each in requests for tensor in (each.inputs[0], each.outputs[0])}


def where(tensor, what="offset"):
    return tensor.parameters[f"shared_memory_{what}"].int64_param


# --- where tensors go -----------------------------------------------------------------------------


async def test_the_first_answer_comes_on_the_wire_and_the_next_in_shared_memory(connect, server):
    client = connect()
    for _ in range(3):
        reply = await client(rows())
        assert (reply.outputs["OUT"] == rows()).all()
    assert [placed(request.inputs[0]) for request in server.requests] == [True] * 3
    assert [bool(request.outputs) for request in server.requests] == [False, True, True]
    assert placed(server.requests[1].outputs[0])
    assert client.report.placed == 3
    assert client.report.on_wire == 0


async def test_row_parts_are_copied_once_each_into_one_slot(client, server):
    parts = [rows(1, 7), rows(2, 100), rows(1, -3)[0][None]]
    before = client.memory
    reply = await client(*parts)
    assert (reply.outputs["OUT"] == np.concatenate(parts)).all()
    after = client.memory
    assert after.copied_nbytes - before.copied_nbytes == 4 * ROW
    assert not server.requests[0].raw_input_contents


async def test_what_is_small_goes_on_the_wire(client, server):
    tensor = InputTensor("IN", "FP32", (1, 16), (np.ones((1, 16), np.float32),))
    small = Call("small", "", (tensor,), 1)
    for _ in range(3):
        assert (await client.backend.infer(small)).outputs["OUT"].shape == (1, 16)
    assert not any(placed(request.inputs[0]) for request in server.requests)
    assert client.report.placed == 1  # the fixture's


async def test_a_small_input_with_a_large_output_has_the_output_placed(connect, server):
    client = connect()
    server.output = lambda data: data * 1024
    server.shape_of = lambda data: [1, len(data) // 4]
    tensor = InputTensor("IN", "FP32", (1, 16), (np.ones((1, 16), np.float32),))
    for _ in range(2):
        reply = await client.backend.infer(Call("m", "", (tensor,), 1))
        assert reply.outputs["OUT"].shape == (1, 16_384)
        assert (reply.outputs["OUT"] == 1).all()
    assert not placed(server.requests[1].inputs[0])
    assert placed(server.requests[1].outputs[0])
    assert len(server.requests[1].raw_input_contents) == 1


async def test_an_array_in_our_memory_is_sent_from_where_it_is(client, server):
    first = await client(rows(4))
    copies = client.memory.copies
    second = await client(first.outputs["OUT"][1:3])
    assert (second.outputs["OUT"] == rows(4)[1:3]).all()
    assert client.memory.copies == copies
    strided = await client(second.outputs["OUT"][::-1])
    assert (strided.outputs["OUT"] == rows(4)[1:3][::-1]).all()
    assert client.memory.copies == copies + 1


async def test_a_step_of_a_sequence_goes_on_the_wire(client, server):
    await client(rows(), parameters=(("sequence_id", 3),))
    assert not placed(server.requests[0].inputs[0])


async def test_a_model_that_must_not_run_twice_answers_on_the_wire(client, server):
    await client(rows(), idempotent=False)
    assert placed(server.requests[0].inputs[0])
    assert not server.requests[0].outputs


async def test_outputs_asked_for_by_name_are_placed_by_name(client, server):
    for _ in range(2):
        await client(rows(), outputs=("OUT",))
    assert [output.name for output in server.requests[1].outputs] == ["OUT"]
    assert placed(server.requests[1].outputs[0])


@pytest.mark.parametrize(
    ("target", "sharing", "tried"),
    [
        ("localhost:8001", "auto", True),
        ("unix:/tmp/x", "auto", True),
        ("triton.example:8001", "auto", False),
        ("triton.example:8001", "system", True),
        ("dns:///localhost:8001", "system", False),
        ("localhost:8001", "off", False),
    ],
)
async def test_it_is_tried_unasked_only_on_this_machine(target, sharing, tried):
    assert may_share(target, sharing) is tried


# --- room for outputs -----------------------------------------------------------------------------


async def test_an_output_that_outgrew_its_slot_is_asked_for_again_with_more_room(client, server):
    server.output = lambda data: data * 3
    server.shape_of = lambda data: [1, len(data) // 4]
    reply = await client(rows())
    assert (reply.outputs["OUT"][0] == np.tile(rows()[0], 3)).all()
    sizes = [
        r.outputs[0].parameters["shared_memory_byte_size"].int64_param for r in server.requests
    ]
    assert sizes == [ROW, 3 * ROW]
    await client(rows())
    assert len(server.requests) == 3  # it was learned


async def test_an_output_that_never_fits_is_an_error(client, server):
    def complain():
        return RefusalError(
            grpc.StatusCode.INTERNAL,
            "shared memory size specified with the request for output 'OUT' (1 bytes) should be at "
            "least 5 bytes to hold the results",
        )

    server.failures = [complain()]
    with pytest.raises(SlotTooSmallError) as caught:
        await client(rows())
    assert caught.value.output == "OUT"
    assert caught.value.needed_nbytes == 5


async def test_a_model_with_other_outputs_than_before_is_asked_for_all(client, server):
    server.output_name = "OTHER"
    for _ in range(2):
        reply = await client(rows())
        assert (reply.outputs["OTHER"] == rows()).all()
    assert [bool(request.outputs) for request in server.requests] == [True, False, False]
    client.outputs = ("OTHER",)  # the signature was asked for anew
    await client(rows())
    assert server.requests[3].outputs[0].name == "OTHER"


async def test_all_outputs_of_the_signature_are_asked_for_whatever_came_before(client, server):
    client.outputs = ("OUT", "SOMETIMES")
    server.silent = {"SOMETIMES"}
    reply = await client(rows())
    assert [output.name for output in server.requests[0].outputs] == ["OUT", "SOMETIMES"]
    assert placed(server.requests[0].outputs[0])
    assert not placed(server.requests[0].outputs[1])
    assert list(reply.outputs) == ["OUT"]


async def test_without_a_signature_outputs_come_in_the_message(client, server):
    client.outputs = None
    await client(rows())
    assert placed(server.requests[0].inputs[0])
    assert not server.requests[0].outputs


async def test_a_view_in_another_byte_order_is_put_in_the_wires(client, server):
    first = await client(rows(4))
    swapped = first.outputs["OUT"].view(">f4")
    reply = await client(swapped)
    assert (reply.outputs["OUT"] == rows(4).view(">f4").astype("<f4")).all()


async def test_a_wrong_request_is_refused_once_where_the_user_named_the_outputs(client, server):
    await client(rows(), outputs=("OUT",))
    server.failures = [RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "no")]
    with pytest.raises(InvalidRequestError):
        await client(rows(), outputs=("OUT",))
    assert len(server.requests) == 2


async def test_a_models_failure_gives_its_slots_back(client, server):
    server.failures = [RefusalError(grpc.StatusCode.INTERNAL, "the model failed")]
    with pytest.raises(ModelFailedError):
        await client(rows())
    assert client.memory.in_use == 0


async def test_parts_that_do_not_add_up_are_refused_and_give_their_slot_back(client):
    tensor = InputTensor("IN", "FP32", (2, ROW // 4), (rows(),))
    with pytest.raises(InvalidInputError, match="do not make up"):
        await client.backend.infer(Call("m", "", (tensor,), 2))
    assert client.memory.in_use == 0


# --- who holds a slot -----------------------------------------------------------------------------


async def test_an_output_holds_its_slot_until_its_last_view_dies(client):
    reply = await client(rows(2))
    assert client.memory.in_use == 1  # the input's is back
    part = reply.outputs["OUT"][1][5:7]
    del reply
    assert client.memory.in_use == 1
    assert part.tolist() == rows(2)[1][5:7].tolist()
    assert not part.flags.writeable
    del part
    assert client.memory.in_use == 0


async def test_a_late_answer_never_reaches_a_later_call(client, server):
    """The server reads and writes the slots of abandoned calls; nobody else has them meanwhile."""
    server.holding = True
    with pytest.raises(DeadlineExceededError):
        await client(rows(1, 1), deadline=Deadline.after(0.2))
    task = asyncio.ensure_future(client(rows(1, 2)))
    await server.arrived.acquire()
    await server.arrived.acquire()
    task.cancel()
    await asyncio.wait({task})
    assert client.memory.in_use == 4  # in quarantine
    server.holding = False
    kept = [await client(rows(1, 1000 + 7 * i)) for i in range(6)]
    server.let_go()  # now it writes into the abandoned slots
    await until(lambda: client.memory.in_use == len(kept))
    for i, reply in enumerate(kept):
        assert (reply.outputs["OUT"] == rows(1, 1000 + 7 * i)).all()
    late, others = slots(server.requests[:2]), slots(server.requests[2:])
    assert len(late) == 4
    assert not late & others
    assert client.memory.retired == 0
    again = await client(rows(1, 5))  # the slots are used again
    assert slots(server.requests[-1:]) <= late
    del again


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_connection_that_breaks_retires_slots_until_the_server_has_let_go(client, server):
    server.holding = True
    task = asyncio.ensure_future(client(rows(), deadline=Deadline.after(5)))
    await server.arrived.acquire()
    names = client.names
    await server._server.stop(grace=None)  # connections break; the "server" goes on
    await asyncio.wait({task})
    assert task.exception() is not None
    del task
    assert client.memory.retired == 2
    server.at = server.target
    await server.__aenter__()
    server.let_go()
    server.holding = False
    await until(lambda: client.memory.retired == 0)
    assert not names & set(server.regions)
    reply = await client(rows(1, 3))
    assert (reply.outputs["OUT"] == rows(1, 3)).all()
    assert placed(server.requests[-1].inputs[0])
    assert client.names
    assert not names & client.names


async def test_a_restarted_server_is_told_of_the_region_by_a_new_name(client, server):
    (name,) = client.names
    server.restart()
    reply = await client(rows(1, 4))
    assert (reply.outputs["OUT"] == rows(1, 4)).all()
    assert client.names
    assert name not in client.names
    assert len(server.names) == len(set(server.names))
    assert len(server.requests) == 2
    assert client.report.on_wire == 0


# --- where it cannot be had -----------------------------------------------------------------------


async def test_a_server_that_refuses_gets_messages_and_the_log_one_line(connect, server, caplog):
    server.refusal = RefusalError(
        grpc.StatusCode.INTERNAL, "Unable to open shared memory region: '/x'"
    )
    client = connect()
    with caplog.at_level(logging.WARNING, "tritonasync.memory"):
        for _ in range(3):
            assert (await client(rows())).outputs["OUT"].shape == (1, ROW // 4)
    assert not any(placed(request.inputs[0]) for request in server.requests)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "--ipc=host" in lines[0]
    assert client.report.placed == 0
    assert client.report.on_wire == 3
    assert "--ipc=host" in client.report.reason
    assert not client.store.statistics()  # nothing larger than a page was made


async def test_what_is_insisted_on_is_an_error_where_it_cannot_be_had(connect, server):
    server.refusal = RefusalError(grpc.StatusCode.UNIMPLEMENTED, "shared memory is off")
    client = connect(sharing="system")
    with pytest.raises(PlacementError, match="--allow-client-shm=true"):
        await client(rows())
    assert not server.requests
    assert "--allow-client-shm=true" in client.report.reason


async def test_without_room_calls_go_on_the_wire_and_the_log_says_so_once(client, server, caplog):
    kept = []
    with caplog.at_level(logging.WARNING, "tritonasync.memory"):
        for i in range(40):  # a region of a megabyte has room for 32 outputs
            kept.append((await client(rows(1, i))).outputs["OUT"])
    assert all((array == rows(1, i)).all() for i, array in enumerate(kept))
    assert client.report.on_wire > 0
    assert len(caplog.records) == 1
    assert "max_nbytes" in caplog.records[0].getMessage()
    wired = client.report.on_wire
    kept.clear()
    await client(rows())
    assert client.report.on_wire == wired


async def test_without_room_what_is_insisted_on_waits(connect, server):
    client = connect(sharing="system")
    await client(rows())
    kept = [await client(rows(1, i)) for i in range(31)]
    waiting = asyncio.ensure_future(client(rows(1, 99), deadline=Deadline.after(10)))
    await until(lambda: client.memory.waiting == 1)
    assert not waiting.done()
    kept.pop(0)
    kept.pop(0)
    reply = await waiting
    assert (reply.outputs["OUT"] == rows(1, 99)).all()
    del kept, reply, waiting


async def test_without_room_what_is_insisted_on_raises_if_that_was_chosen(connect, server):
    policy = MemoryPolicy(
        max_nbytes=1 << 20, region_nbytes=1 << 20, min_nbytes=16 << 10, when_full="raise"
    )
    client = connect(policy, "system")
    await client(rows())
    kept = []
    for i in range(31):
        kept.append(await client(rows(1, i)))
    with pytest.raises(MemoryExhaustedError, match="no room for 32,768 bytes"):
        await client(rows())
    kept.clear()
    assert (await client(rows())).outputs["OUT"].shape == (1, ROW // 4)


async def test_closing_leaves_nothing_at_the_server_nor_in_the_folder(connect, server):
    client = connect()
    await client(rows())
    assert len(server.regions) == 2  # a page for finding out, and the region
    keys = list(server.keys.values())
    await client.aclose()
    assert not server.regions
    assert not [key for key in keys if (Path("/dev/shm") / key.removeprefix("/")).exists()]


async def test_a_folder_without_room_for_a_page_means_messages(connect, server, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    client = connect()
    monkeypatch.setattr("os.posix_fallocate", full)
    for _ in range(2):
        assert (await client(rows())).outputs["OUT"].shape == (1, ROW // 4)
    assert not any(placed(request.inputs[0]) for request in server.requests)
    assert "--shm-size" in client.report.reason
    insisting = connect(sharing="system")
    with pytest.raises(MemoryExhaustedError, match="--shm-size"):
        await insisting(rows())


async def test_many_whose_outputs_outgrow_their_slots_at_once_are_all_answered(client, server):
    server.output = lambda data: data * 3
    server.shape_of = lambda data: [1, len(data) // 4]
    replies = await asyncio.gather(*[client(rows(1, i)) for i in range(8)])
    for i, reply in enumerate(replies):
        assert (reply.outputs["OUT"][0] == np.tile(rows(1, i)[0], 3)).all()


async def test_who_waits_for_room_does_not_hold_up_closing(connect):
    client = connect(sharing="system")
    await client(rows())
    kept = [await client(rows(1, i)) for i in range(31)]
    waiting = asyncio.ensure_future(client(rows()))
    await until(lambda: client.memory.waiting == 1)
    client.store.stop()
    with pytest.raises(PoolClosedError):
        await waiting
    del kept, waiting


async def test_what_fits_but_for_its_outputs_has_them_in_the_message(connect, server):
    client = connect(sharing="system")
    server.output = lambda data: data * 20
    server.shape_of = lambda data: [1, len(data) // 4]
    for _ in range(2):
        reply = await client(rows(1), deadline=Deadline.after(5))
    assert reply.outputs["OUT"].nbytes == 20 * ROW
    del reply
    server.output, server.shape_of = (lambda data: data), None
    wide = call_of(rows(15))  # half of the memory; its outputs are expected to take much more
    client.backend._shared._places.sizes.grow(wide, 15 * ROW + 100, "OUT", 15 * 40 * ROW)
    reply = await client.backend.infer(replace(wide, deadline=Deadline.after(5)))
    assert (reply.outputs["OUT"] == rows(15)).all()
    assert placed(server.requests[-1].inputs[0])


async def test_what_never_fits_is_told_at_once(connect):
    client = connect(sharing="system")
    with pytest.raises(MemoryExhaustedError, match="max_nbytes=1048576"):
        await client(rows(40), deadline=Deadline.after(5))


async def test_a_gpu_that_cannot_share_its_memory_is_done_without(server, caplog):
    def no_ipc():
        raise DeviceError("no CUDA IPC here")

    store = MemoryStore(SMALL, {"system": SystemMemory, "cuda": no_ipc})
    backend = EndpointBackend(
        make_endpoint(server.target), store=store, memory=SMALL, sharing="auto"
    )

    async def has_gpu(call):
        return True

    backend._shared._places._gpu = has_gpu
    for _ in range(3):
        reply = await backend.infer(call_of(rows(), device=True))
        assert (reply.outputs["OUT"] == rows()).all()
    assert placed(server.requests[-1].inputs[0])  # in the host's
    assert [record.getMessage() for record in caplog.records if "IPC" in record.getMessage()]
    assert len(caplog.records) == 1
    await backend.aclose(Deadline.after(5))
    await store.aclose()


async def test_a_server_that_fails_at_registering_gets_messages(connect, server):
    client = connect()
    server.methods["SystemSharedMemoryStatus"] = server.methods["SystemSharedMemoryRegister"] = (
        broken
    )
    for _ in range(2):
        assert (await client(rows())).outputs["OUT"].shape == (1, ROW // 4)
    assert not any(placed(request.inputs[0]) for request in server.requests)
    assert client.report.on_wire == 2
    assert client.report.reason


async def broken(message):
    raise RefusalError(grpc.StatusCode.UNAVAILABLE, "Socket closed")
