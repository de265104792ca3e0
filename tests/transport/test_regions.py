"""The calls about shared memory, as messages of a scripted server."""

import pytest

from tests.transport.scripted import ScriptedServer, make_endpoint
from tests.transport.scripted_regions import FakeRegion, RegionTable, refuse, scripted_control
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    DeadlineExceededError,
    DeviceError,
    ModelFailedError,
    ProtocolError,
    RegionExistsError,
)
from tritonasync.transport.regions import RegionControl, RegisteredRegion

pytestmark = pytest.mark.anyio


@pytest.fixture
def table():
    return RegionTable()


@pytest.fixture
async def control(table):
    async with scripted_control(table) as control:
        yield control


async def test_a_region_of_the_host_is_registered_whole_by_its_key(control, table):
    await control.register("mine", FakeRegion("ta-1", nbytes=8192), NEVER)
    request = table.regions["mine"]
    assert (request.key, request.offset, request.byte_size) == ("/ta-1", 0, 8192)


async def test_a_region_of_a_device_is_registered_by_the_raw_bytes_of_its_handle(control, table):
    region = FakeRegion("gpu", kind="cuda", nbytes=1 << 21, device_id=3)
    await control.register("mine", region, NEVER)
    request = table.regions["mine"]
    assert request.raw_handle == region.handle
    assert (request.device_id, request.byte_size) == (3, 1 << 21)


async def test_a_handle_of_another_size_never_reaches_the_server(control, table):
    class Odd(FakeRegion):
        handle = b"x" * 63

    with pytest.raises(DeviceError, match="63 bytes"):
        await control.register("mine", Odd("gpu", kind="cuda"), NEVER)
    assert not table.said


async def test_a_name_that_is_taken_is_an_error_of_its_own(control, table):
    await control.register("mine", FakeRegion("a"), NEVER)
    with pytest.raises(RegionExistsError):
        await control.register("mine", FakeRegion("b"), NEVER)


@pytest.mark.parametrize("kind", ["system", "cuda"])
async def test_a_region_is_unregistered_by_its_name(control, table, kind):
    for name in ("one", "two"):
        await control.register(name, FakeRegion(name, kind=kind), NEVER)
    await control.unregister("one", kind, NEVER)
    assert [*table.regions] == ["two"]


@pytest.mark.parametrize("kind", ["system", "cuda"])
async def test_without_a_name_nothing_is_unregistered(control, table, kind):
    with pytest.raises(ValueError, match="all clients"):
        await control.unregister("", kind, NEVER)
    assert not table.said


@pytest.mark.parametrize("kind", ["system", "cuda"])
async def test_whether_a_name_is_registered(control, kind):
    await control.register("mine", FakeRegion("a", kind=kind), NEVER)
    assert await control.registered("mine", kind, NEVER)
    assert not await control.registered("other", kind, NEVER)


async def test_an_answer_that_lacks_the_name_is_a_no():
    async def empty(_):
        return b""

    async with ScriptedServer(SystemSharedMemoryStatus=empty) as server:
        endpoint = make_endpoint(server.target)
        assert not await RegionControl(endpoint).registered("mine", "system", NEVER)
        await endpoint.aclose(NEVER)


async def test_a_question_that_fails_is_no_answer(control, table):
    table.script("SystemSharedMemoryStatus", refuse("INTERNAL", "no memory"))
    with pytest.raises(ModelFailedError):
        await control.registered("mine", "system", NEVER)


async def test_the_names_of_all_clients_are_listed_by_kind(control):
    await control.register("a.1", FakeRegion("a", nbytes=8192), NEVER)
    await control.register("b.1", FakeRegion("b"), NEVER)
    await control.register("g.1", FakeRegion("g", kind="cuda"), NEVER)
    system, cuda = await control.names("system", NEVER), await control.names("cuda", NEVER)
    assert sorted(system, key=str) == [
        RegisteredRegion("a.1", "/a", 8192),
        RegisteredRegion("b.1", "/b", 4096),
    ]
    assert cuda == [RegisteredRegion("g.1", "", 4096)]


@pytest.mark.parametrize(
    ("version", "guards"),
    [("2.49.0", False), ("2.50.0", True), ("2.51.0", True), ("2.68.0", True), ("custom", False)],
)
async def test_which_servers_let_no_region_go_that_is_in_use(control, table, version, guards):
    table.version = version
    assert await control.guards_use(NEVER) is guards


async def test_a_deadline_that_has_passed_sends_nothing(control, table):
    with pytest.raises(DeadlineExceededError):
        await control.register("mine", FakeRegion("a"), Deadline.after(0))
    assert not table.said


async def test_an_answer_that_is_no_message():
    async def garbage(_):
        return b"\xff" * 9

    async with ScriptedServer(SystemSharedMemoryStatus=garbage) as server:
        endpoint = make_endpoint(server.target)
        with pytest.raises(ProtocolError, match="SystemSharedMemoryStatusResponse"):
            await RegionControl(endpoint).names("system", NEVER)
        await endpoint.aclose(NEVER)


async def test_it_names_the_server(control):
    assert control.target.startswith("127.0.0.1:")
