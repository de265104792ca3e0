"""A region has a name on the server from the first call that wants one."""

import asyncio

import pytest

from tests.transport.scripted import ScriptedServer, make_endpoint
from tests.transport.scripted_regions import (
    LOST,
    FakeRegion,
    RegionTable,
    ours,
    refuse,
    scripted_registrar,
)
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    PoolClosedError,
    QueueFullError,
    ServerNotReadyError,
    ServerUnreachableError,
)
from tritonasync.transport import registrar as registrar_module
from tritonasync.transport.regions import RegionControl
from tritonasync.transport.registrar import Registrar

pytestmark = pytest.mark.anyio

REGISTER, STATUS = "SystemSharedMemoryRegister", "SystemSharedMemoryStatus"


@pytest.fixture
def table():
    return RegionTable()


@pytest.fixture
async def registrar(table):
    async with scripted_registrar(table) as registrar:
        yield registrar


REGION, OTHER = FakeRegion("ta-1-0123456789ab-1"), FakeRegion("ta-1-0123456789ab-2")
GPU = FakeRegion("ta-1-0123456789ab-3", kind="cuda", nbytes=1 << 21)


async def test_the_first_who_asks_has_it_registered(registrar, table):
    assert registrar.known(REGION) is None
    name = await registrar.name_for(REGION, NEVER)
    assert name.startswith(f"{REGION.name}.")
    assert [*table.regions] == [name]
    assert table.regions[name].key == REGION.key


async def test_from_then_on_nothing_is_asked(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    said = len(table.said)
    assert registrar.known(REGION) == await registrar.name_for(REGION, NEVER) == name
    assert len([method for method, _ in table.said[said:] if "Register" in method]) == 0


async def test_however_many_ask_at_once_it_is_registered_once(registrar, table):
    names = await asyncio.gather(*(registrar.name_for(REGION, NEVER) for _ in range(50)))
    assert len({*names}) == 1
    assert table.count(REGISTER) == 1


async def test_each_region_and_each_registrar_has_a_name_of_its_own(registrar, table):
    names = {await registrar.name_for(region, NEVER) for region in (REGION, OTHER)}
    async with scripted_registrar(RegionTable()) as second:
        names.add(await second.name_for(REGION, NEVER))
    assert len(names) == 3


async def test_two_targets_that_are_one_server_share_a_name(registrar, table):
    async with scripted_registrar(table) as alias:
        both = registrar.name_for(REGION, NEVER), alias.name_for(REGION, NEVER)
        first, second = await asyncio.gather(*both)
        assert first == second
        assert table.count(REGISTER) == len(table.regions) == 1
        assert not table.registered_twice
        assert await registrar.release(REGION, NEVER)
        alias.forgotten(REGION, second)  # as a call is told
        assert await alias.name_for(REGION, NEVER) not in {None, second}
    assert not table.regions


async def test_a_key_that_is_somebody_elses_is_not_registered_again(registrar, table):
    async with scripted_registrar(table) as stranger:
        name = await stranger.name_for(REGION, NEVER)
        table.regions["theirs"] = table.regions.pop(name)
        assert await registrar.name_for(REGION, NEVER) is None
        assert "as 'theirs'" in registrar.refusal("system")
    assert table.count(REGISTER) == 1


async def test_who_leaves_harms_nobody(registrar, table):
    go = asyncio.Event()
    table.script(REGISTER, go)
    callers = [asyncio.create_task(registrar.name_for(REGION, NEVER)) for _ in range(3)]
    while not table.count(REGISTER):
        await table.arrived.wait()
        table.arrived.clear()
    callers[0].cancel()
    with pytest.raises(DeadlineExceededError) as late:
        await registrar.name_for(REGION, Deadline.after(0.01))
    assert late.value.stage == "memory"
    assert not late.value.may_have_executed
    go.set()
    names = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(names[0], asyncio.CancelledError)
    assert names[1] == names[2] == registrar.known(REGION)
    assert table.count(REGISTER) == 1


async def test_when_all_have_left_the_answer_is_kept(registrar, table):
    go = asyncio.Event()
    table.script(REGISTER, go)
    with pytest.raises(DeadlineExceededError):
        await registrar.name_for(REGION, Deadline.after(0.05))
    go.set()
    assert await registrar.name_for(REGION, NEVER) in table.regions
    assert table.count(REGISTER) == 1


# --- refusals -----------------------------------------------------------------------------------

SWITCHED_OFF = refuse("UNIMPLEMENTED", "Client shared memory is disabled. Start the server with …")
CANNOT_OPEN = refuse("INTERNAL", "Unable to open shared memory region: '/ta-1'")
INVALID = refuse("INVALID_ARGUMENT", "failed to register shared memory region: invalid args")
RESTRICTED = refuse("UNAVAILABLE", "This protocol is restricted, expecting header 'x'")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (SWITCHED_OFF, "--allow-client-shm=true"),
        (CANNOT_OPEN, "--ipc=host"),
        (INVALID, "invalid args"),
        (RESTRICTED, "protocol_keys"),
    ],
)
async def test_a_refusal_is_remembered_with_its_reason(registrar, table, answer, says):
    table.script(REGISTER, answer)
    assert await registrar.name_for(REGION, NEVER) is None
    assert says in registrar.refusal("system")
    assert not registrar.same_host
    assert await registrar.name_for(REGION, NEVER) is None
    assert await registrar.name_for(OTHER, NEVER) is None
    assert table.count(REGISTER) == 1


async def test_a_server_that_tells_nothing_of_its_regions_refuses_them(registrar, table):
    table.script(STATUS, RESTRICTED)
    assert await registrar.name_for(REGION, NEVER) is None
    assert "protocol_keys" in registrar.refusal("system")
    assert not table.count(REGISTER)


async def test_one_that_does_so_after_a_restart_does_as_well(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    registrar.restarted()
    table.script(STATUS, RESTRICTED)
    assert await registrar.name_for(REGION, NEVER) is None
    assert "protocol_keys" in registrar.refusal("system")
    registrar.restarted()
    assert await registrar.name_for(REGION, NEVER) == name


async def test_a_refusal_is_forgotten_when_the_server_may_be_another(registrar, table):
    table.script(REGISTER, SWITCHED_OFF)
    await registrar.name_for(REGION, NEVER)
    registrar.restarted()
    assert registrar.refusal("system") is None
    assert await registrar.name_for(REGION, NEVER) in table.regions


async def test_after_one_was_taken_another_that_is_not_is_refused_alone(registrar, table, caplog):
    await registrar.name_for(REGION, NEVER)
    table.script(REGISTER, CANNOT_OPEN)
    assert await registrar.name_for(OTHER, NEVER) is None
    assert await registrar.name_for(OTHER, NEVER) is None
    assert registrar.refusal("system") is None
    assert registrar.same_host
    assert await registrar.name_for(REGION, NEVER) is not None
    assert table.count(REGISTER) == 2
    (record,) = ours(caplog)
    assert OTHER.name in record.getMessage()


async def test_a_refusal_that_came_from_the_server_before_is_not_remembered(registrar, table):
    go = asyncio.Event()
    table.script(STATUS, go)
    table.script(REGISTER, SWITCHED_OFF)
    caller = asyncio.create_task(registrar.name_for(REGION, NEVER))
    await table.arrived.wait()
    registrar.restarted()
    go.set()
    assert await caller in table.regions
    assert registrar.refusal("system") is None


async def test_a_name_that_is_taken_is_never_used(registrar, table):
    taken = refuse("ALREADY_EXISTS", "shared memory region 'x' already in manager")
    table.script(REGISTER, taken, taken)
    name = await registrar.name_for(REGION, NEVER)
    tried = [name for method, name in table.said if method == REGISTER]
    assert len({*tried}) == 3
    assert name == tried[-1]
    assert [*table.regions] == [name]


async def test_when_every_name_is_taken_it_is_given_up(registrar, table):
    taken = refuse("ALREADY_EXISTS", "shared memory region 'x' already in manager")
    table.script(REGISTER, *[taken] * 3)
    assert await registrar.name_for(REGION, NEVER) is None
    assert "taken" in registrar.refusal("system")
    assert table.count(REGISTER) == 3


async def test_behind_one_name_for_several_servers_nothing_is_registered():
    endpoint = make_endpoint("dns:localhost:1")
    registrar = Registrar(RegionControl(endpoint))
    assert await registrar.name_for(REGION, NEVER) is None
    assert "several servers" in registrar.refusal("system")
    await registrar.aclose(NEVER)
    await endpoint.aclose(NEVER)


# --- failures that are no refusals --------------------------------------------------------------


async def test_a_server_that_cannot_be_reached_raises_and_is_asked_again(registrar, table):
    endpoint = make_endpoint("127.0.0.1:1")
    nowhere = Registrar(RegionControl(endpoint))
    for _ in range(2):
        with pytest.raises(ServerUnreachableError) as error:
            await nowhere.name_for(REGION, NEVER)
        assert not error.value.may_have_executed
    assert nowhere.refusal("system") is None
    await nowhere.aclose(NEVER)
    await endpoint.aclose(NEVER)


async def test_each_who_waits_has_an_error_of_its_own(registrar, table):
    table.script(REGISTER, LOST)
    errors = await asyncio.gather(
        *(registrar.name_for(REGION, NEVER) for _ in range(3)), return_exceptions=True
    )
    assert [type(error) for error in errors] == [ConnectionLostError] * 3
    assert len({id(error) for error in errors}) == 3
    assert not any(error.may_have_executed for error in errors)


async def test_a_registration_whose_answer_was_lost_is_found_again(registrar, table):
    table.script(REGISTER, LOST)
    with pytest.raises(ConnectionLostError):
        await registrar.name_for(REGION, NEVER)
    (name,) = table.regions
    assert registrar.known(REGION) is None
    assert await registrar.name_for(REGION, NEVER) == name
    assert table.count(REGISTER) == 1


async def test_who_has_more_time_than_a_question_goes_on_asking(registrar, table, monkeypatch):
    monkeypatch.setattr(registrar_module, "ASK_TIMEOUT_S", 0.05)
    at_once, registering, asking = asyncio.Event(), asyncio.Event(), asyncio.Event()
    at_once.set()
    table.script(REGISTER, registering)
    table.script(STATUS, at_once, asking)
    caller = asyncio.create_task(registrar.name_for(REGION, NEVER))
    while table.count(STATUS) < 2:
        await asyncio.sleep(0.001)
    registering.set()
    while not table.regions:
        await asyncio.sleep(0.001)
    monkeypatch.setattr(registrar_module, "ASK_TIMEOUT_S", 30.0)
    asking.set()
    assert [await caller] == [*table.regions]
    assert table.count(REGISTER) == 1


async def test_a_registration_that_was_lost_on_its_way_is_made_under_a_new_name(registrar, table):
    table.script(REGISTER, LOST)
    with pytest.raises(ConnectionLostError):
        await registrar.name_for(REGION, NEVER)
    (name,) = table.regions
    table.restart()
    again = await registrar.name_for(REGION, NEVER)
    assert [*table.regions] == [again]
    assert again != name


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refuse("UNAVAILABLE", "Server not ready"), ServerNotReadyError),
        (refuse("RESOURCE_EXHAUSTED", "too much"), QueueFullError),
    ],
)
async def test_a_server_that_has_no_time_is_asked_again(registrar, table, answer, kind):
    table.script(REGISTER, answer)
    with pytest.raises(kind):
        await registrar.name_for(REGION, NEVER)
    assert not table.regions
    assert registrar.refusal("system") is None
    assert await registrar.name_for(REGION, NEVER) in table.regions


async def test_a_doubted_name_stays_doubted_while_nobody_answers(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    registrar.restarted()
    table.script(STATUS, refuse("UNAVAILABLE", "Server not ready"))
    with pytest.raises(ServerNotReadyError):
        await registrar.name_for(REGION, NEVER)
    assert await registrar.name_for(REGION, NEVER) == name
    assert table.count(REGISTER) == 1


# --- memory of a device -------------------------------------------------------------------------


async def test_a_devices_memory_is_tried_only_on_the_same_host(registrar, table):
    assert not registrar.same_host
    assert await registrar.name_for(GPU, NEVER) is None
    assert "host's memory" in registrar.refusal("cuda")
    assert not table.said
    await registrar.name_for(REGION, NEVER)
    assert registrar.same_host
    assert registrar.refusal("cuda") is None
    name = await registrar.name_for(GPU, NEVER)
    assert table.regions[name].raw_handle == GPU.handle


async def test_where_the_host_is_another_a_devices_memory_is_refused_for_that(registrar, table):
    table.script(REGISTER, CANNOT_OPEN)
    await registrar.name_for(REGION, NEVER)
    assert registrar.refusal("cuda") == registrar.refusal("system")
    assert await registrar.name_for(GPU, NEVER) is None
    assert not table.count("CudaSharedMemoryRegister")


async def test_a_server_without_a_gpu_refuses_a_devices_memory_alone(registrar, table):
    await registrar.name_for(REGION, NEVER)
    table.script("CudaSharedMemoryRegister", INVALID)
    assert await registrar.name_for(GPU, NEVER) is None
    assert "same GPU" in registrar.refusal("cuda")
    assert registrar.refusal("system") is None
    assert registrar.same_host


# --- the end ------------------------------------------------------------------------------------


async def test_at_the_end_all_of_ours_is_unregistered_and_nothing_else(table):
    async with scripted_registrar(table) as theirs, scripted_registrar(table) as registrar:
        kept = await theirs.name_for(FakeRegion("theirs"), NEVER)
        for region in (REGION, OTHER, GPU):
            await registrar.name_for(region, NEVER)
        assert len(table.regions) == 4
        await registrar.aclose(Deadline.after(10))
        assert [*table.regions] == [kept]


async def test_after_the_end_nothing_is_registered(registrar, table):
    await registrar.name_for(REGION, NEVER)
    await registrar.aclose(NEVER)
    assert registrar.known(REGION) is None
    with pytest.raises(PoolClosedError):
        await registrar.name_for(REGION, NEVER)
    assert table.count(REGISTER) == 1


async def test_a_registration_that_is_out_at_the_end_is_unregistered_too(registrar, table):
    go = asyncio.Event()
    table.script(REGISTER, go)
    caller = asyncio.create_task(registrar.name_for(REGION, NEVER))
    while not table.count(REGISTER):
        await asyncio.sleep(0)
    closing = asyncio.create_task(registrar.aclose(Deadline.after(10)))
    await asyncio.sleep(0)
    go.set()
    await closing
    assert not table.regions
    with pytest.raises(PoolClosedError):
        await caller


async def test_from_the_first_moment_of_the_end_no_name_is_known(registrar, table):
    await registrar.name_for(REGION, NEVER)
    go = asyncio.Event()
    table.script(REGISTER, go)
    caller = asyncio.create_task(registrar.name_for(OTHER, NEVER))
    while table.count(REGISTER) < 2:
        await asyncio.sleep(0)
    closing = asyncio.create_task(registrar.aclose(NEVER))
    await asyncio.sleep(0)
    assert registrar.known(REGION) is None
    go.set()
    await closing
    with pytest.raises(PoolClosedError):
        await caller


async def test_who_waits_at_the_end_is_told_when_the_time_for_it_is_over(registrar, table):
    go = asyncio.Event()
    table.script(REGISTER, go)
    caller = asyncio.create_task(registrar.name_for(REGION, NEVER))
    while not table.count(REGISTER):
        await asyncio.sleep(0)
    await registrar.aclose(Deadline.after(0.01))
    with pytest.raises(PoolClosedError):
        await caller
    go.set()


async def test_a_server_that_is_gone_is_not_waited_for_at_the_end(table):
    async with ScriptedServer(**table.methods) as server:
        endpoint = make_endpoint(server.target)
        registrar = Registrar(RegionControl(endpoint), is_dead=lambda _: False)
        await registrar.name_for(REGION, NEVER)
    async with asyncio.timeout(10):
        await registrar.aclose(NEVER)
        await endpoint.aclose(NEVER)
