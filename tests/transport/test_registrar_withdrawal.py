"""What a server may still use is confirmed by nothing but its word that the name is gone."""

import asyncio

import pytest

from tests.transport.scripted import ScriptedServer, make_endpoint
from tests.transport.scripted_regions import (
    LOST,
    FakeLease,
    FakeRegion,
    RegionTable,
    ours,
    refuse,
    scripted_registrar,
)
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.transport import withdrawal
from tritonasync.transport.regions import RegionControl
from tritonasync.transport.registrar import Registrar

pytestmark = pytest.mark.anyio

REGISTER, UNREGISTER = "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"
STATUS = "SystemSharedMemoryStatus"
REGION, OTHER = FakeRegion("ta-1-0123456789ab-1"), FakeRegion("ta-1-0123456789ab-2")
GPU = FakeRegion("ta-1-0123456789ab-3", kind="cuda", nbytes=1 << 21)
NOT_READY = refuse("UNAVAILABLE", "Server not ready")


@pytest.fixture(params=["2.51.0", "2.60.0"])
def table(request):
    """Of a server that refuses to unregister what is in use, and of one that puts it off."""
    return RegionTable(request.param)


@pytest.fixture
async def registrar(table):
    async with scripted_registrar(table) as registrar:
        yield registrar


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(withdrawal, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(withdrawal, "LONGEST_PAUSE_S", 0.002)


@pytest.fixture(autouse=True)
def no_defects(caplog):
    yield
    assert not [record for record in ours(caplog) if record.levelname == "ERROR"]


async def told(table, method, times=1):
    """Wait until the server was asked so often."""
    async with asyncio.timeout(10):
        while table.count(method) < times:
            table.arrived.clear()
            await table.arrived.wait()


async def asked_after(table, name, times=1):
    """Wait until the server was asked so often whether it still has a name."""

    def count():
        return table.said.count((STATUS, name))

    wanted = count() + times
    async with asyncio.timeout(10):
        while count() < wanted:
            table.arrived.clear()
            await table.arrived.wait()


# --- a call that ended without the server's word ------------------------------------------------


async def test_what_a_lost_call_has_used_is_confirmed_when_the_name_is_gone(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION, name)
    assert registrar.known(REGION) is None
    await lease.event.wait()
    assert not table.regions
    assert lease.confirmed == 1


async def test_not_while_the_server_is_still_at_work_with_it(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION, name)
    await asked_after(table, name, 5)
    assert not lease.confirmed
    table.end(name)
    await lease.event.wait()
    assert not table.regions


async def test_not_by_a_yes_to_unregistering_that_is_put_off_and_missed():
    """From 2.53 on a request that is just ending may miss the mark: it must be repeated."""
    table = RegionTable("2.60.0")
    async with scripted_registrar(table) as registrar:
        name = await registrar.name_for(REGION, NEVER)
        table.using[name] = 1
        lease = FakeLease(table, name)
        registrar.retire(lease, REGION, name)
        await told(table, UNREGISTER)
        table.put_off.clear()
        table.end(name)
        assert name in table.regions
        await lease.event.wait()


async def test_meanwhile_nobody_gets_a_name_and_afterwards_a_new_one(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION, name)
    assert await registrar.name_for(REGION, NEVER) is None
    assert await registrar.name_for(OTHER, NEVER) is not None
    table.end(name)
    await lease.event.wait()
    assert await registrar.name_for(REGION, NEVER) not in {None, name}


async def test_our_own_calls_on_it_end_first(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    for _ in range(2):
        registrar.enter(REGION)
    registrar.leave(REGION)
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION, name)
    for _ in range(5):
        await asyncio.sleep(0.002)
    assert not table.count(UNREGISTER)
    registrar.leave(REGION)
    await lease.event.wait()


async def test_the_end_of_our_last_call_ends_the_pause(registrar, table, monkeypatch):
    monkeypatch.setattr(withdrawal, "FIRST_PAUSE_S", 60.0)
    name = await registrar.name_for(REGION, NEVER)
    registrar.enter(REGION)
    registrar.enter(REGION)
    registrar.leave(REGION)
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION, name)
    for _ in range(5):
        await asyncio.sleep(0)
    registrar.leave(REGION)
    await asyncio.wait_for(lease.event.wait(), 10)


async def test_several_that_were_lost_are_confirmed_together(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    leases = [FakeLease(table, name) for _ in range(3)]
    registrar.retire(leases[0], REGION, name)
    await told(table, UNREGISTER)
    for lease in leases[1:]:
        registrar.retire(lease, REGION, name)
    table.end(name)
    await asyncio.gather(*(lease.event.wait() for lease in leases))
    assert [lease.confirmed for lease in leases] == [1, 1, 1]


async def test_what_used_a_name_that_is_gone_is_confirmed_at_once(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    first, late, without = FakeLease(), FakeLease(), FakeLease()
    registrar.retire(first, REGION, name)
    await first.event.wait()
    registrar.retire(without, REGION)
    assert without.confirmed == 1
    again = await registrar.name_for(REGION, NEVER)
    registrar.retire(late, REGION, name)
    assert late.confirmed == 1
    assert registrar.known(REGION) == again


async def test_if_the_name_is_not_told_the_present_one_is_withdrawn(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION)
    assert not lease.confirmed
    await lease.event.wait()


async def test_failed_questions_prove_nothing(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    for _ in range(3):
        table.script(STATUS, NOT_READY)
        table.script(UNREGISTER, NOT_READY)
    table.script(STATUS, LOST, refuse("UNAVAILABLE", "failed to connect to all addresses"))
    table.script(UNREGISTER, LOST)
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION, name)
    await asked_after(table, name, 6)
    assert not lease.confirmed
    table.end(name)
    await asyncio.wait_for(lease.event.wait(), 10)


async def test_a_server_that_was_restarted_has_let_go(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION, name)
    await told(table, UNREGISTER)
    table.restart()
    registrar.restarted()
    await lease.event.wait()
    assert await registrar.name_for(REGION, NEVER) in table.regions


async def test_news_of_a_restart_ends_the_pause(registrar, table, monkeypatch):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    monkeypatch.setattr(withdrawal, "FIRST_PAUSE_S", 60.0)
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION, name)
    await asked_after(table, name)
    table.restart()
    async with asyncio.timeout(10):
        while not lease.confirmed:
            registrar.restarted()
            await asyncio.sleep(0.005)


async def test_below_2_50_only_a_restart_frees_what_a_lost_call_has_used():
    table = RegionTable("2.49.0")
    async with scripted_registrar(table) as registrar:
        name = await registrar.name_for(REGION, NEVER)
        table.using[name] = 1
        lease = FakeLease(table, name)
        registrar.retire(lease, REGION, name)
        await asked_after(table, name, 5)
        assert not table.count(UNREGISTER)
        assert not lease.confirmed
        assert not await registrar.release(REGION, Deadline.after(0.01))
        table.restart("2.60.0")
        registrar.restarted()
        await lease.event.wait()


async def test_below_2_50_what_nobody_uses_is_unregistered_all_the_same():
    table = RegionTable("2.49.0")
    async with scripted_registrar(table) as registrar:
        await registrar.name_for(REGION, NEVER)
        assert await registrar.release(REGION, NEVER)
        assert not table.regions


async def test_one_that_is_never_let_go_is_reported_once(table, caplog):
    now = 0.0
    async with scripted_registrar(table, clock=lambda: now) as registrar:
        name = await registrar.name_for(REGION, NEVER)
        table.using[name] = 1
        registrar.retire(FakeLease(), REGION, name)
        await asked_after(table, name, 3)
        assert not ours(caplog)
        now = withdrawal.REPORT_AFTER_S + 1
        await asked_after(table, name, 5)
    (record,) = ours(caplog)
    assert REGION.name in record.getMessage()
    assert "1 parts" in record.getMessage()


# --- a server that was restarted ----------------------------------------------------------------


async def test_a_name_that_the_server_has_forgotten_is_replaced(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.restart()
    registrar.forgotten(REGION, name)
    assert registrar.known(REGION) is None
    again = await registrar.name_for(REGION, NEVER)
    assert again != name
    assert [*table.regions] == [again]


async def test_all_who_are_told_not_found_at_once_cost_one_registration(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.restart()
    registrar.forgotten(REGION, name)
    again = await registrar.name_for(REGION, NEVER)
    for _ in range(3):
        registrar.forgotten(REGION, name)
    assert registrar.known(REGION) == again
    assert len(table.regions) == 1


async def test_a_name_in_doubt_that_the_server_has_forgotten_is_not_asked_after(registrar, table):
    """As after the first answer of a restarted server, which tells of both."""
    name = await registrar.name_for(REGION, NEVER)
    table.restart()
    registrar.restarted()
    registrar.forgotten(REGION, name)
    assert await registrar.name_for(REGION, NEVER) not in {None, name}
    assert (STATUS, name) not in table.said


async def test_the_other_names_are_asked_after_before_they_are_used(registrar, table):
    name, other = [await registrar.name_for(region, NEVER) for region in (REGION, OTHER)]
    table.restart()
    registrar.forgotten(REGION, name)
    assert registrar.known(OTHER) is None
    assert await registrar.name_for(OTHER, NEVER) not in {None, other}


async def test_a_name_that_was_there_all_the_time_is_kept(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    registrar.restarted()
    assert registrar.known(REGION) is None
    assert await registrar.name_for(REGION, NEVER) == name
    assert table.count(REGISTER) == 1


async def test_what_one_name_tells_does_not_free_what_another_uses(registrar, table):
    """Somebody may have dropped all regions, of which those in use stay."""
    name, other = [await registrar.name_for(region, NEVER) for region in (REGION, OTHER)]
    table.using[other] = 1
    lease = FakeLease(table, other)
    registrar.retire(lease, OTHER, other)
    del table.regions[name]
    registrar.forgotten(REGION, name)
    await asked_after(table, other, 5)
    assert not lease.confirmed
    table.end(other)
    await lease.event.wait()


async def test_a_restart_while_the_question_is_out_is_asked_after_once_more(registrar, table):
    go = asyncio.Event()
    table.script(REGISTER, go)
    caller = asyncio.create_task(registrar.name_for(REGION, NEVER))
    await told(table, REGISTER)
    registrar.restarted()
    go.set()
    name = await caller
    assert [*table.regions] == [name]
    assert table.count(REGISTER) == 1
    assert (STATUS, name) in table.said


async def test_a_restart_while_a_doubt_is_asked_after_is_a_new_doubt(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    registrar.restarted()
    go = asyncio.Event()
    table.script(STATUS, go)
    caller = asyncio.create_task(registrar.name_for(REGION, NEVER))
    await asked_after(table, name)
    registrar.restarted()
    go.set()
    assert await caller == name
    assert table.said.count((STATUS, name)) == 2


async def test_a_call_that_is_lost_while_its_name_is_asked_after_withdraws_it(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    registrar.restarted()
    go = asyncio.Event()
    table.script(STATUS, go)
    asked = table.count(STATUS)
    caller = asyncio.create_task(registrar.name_for(REGION, NEVER))
    await told(table, STATUS, asked + 1)
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION, name)
    assert not lease.confirmed
    go.set()
    assert await caller is None
    await lease.event.wait()


async def test_a_call_that_is_lost_while_its_name_is_asked_after_and_gone_is_confirmed(
    registrar, table
):
    name = await registrar.name_for(REGION, NEVER)
    registrar.restarted()
    go = asyncio.Event()
    table.script(STATUS, go)
    asked = table.count(STATUS)
    caller = asyncio.create_task(registrar.name_for(REGION, NEVER))
    await told(table, STATUS, asked + 1)
    lease = FakeLease(table, name)
    registrar.retire(lease, REGION, name)
    table.restart()
    table.script(REGISTER, refuse("UNIMPLEMENTED", "off"))
    go.set()
    assert await caller is None
    assert lease.confirmed == 1


# --- regions that are to be freed ---------------------------------------------------------------


@pytest.mark.parametrize("region", [REGION, GPU])
async def test_a_region_that_is_released_is_gone_from_the_server(registrar, table, region):
    await registrar.name_for(REGION, NEVER)
    name = await registrar.name_for(region, NEVER)
    assert await registrar.release(region, NEVER)
    assert name not in table.regions
    assert registrar.known(region) is None


async def test_a_region_that_was_never_registered_may_be_freed(registrar, table):
    assert await registrar.release(REGION, NEVER)
    assert not table.said


async def test_one_that_was_refused_may_be_freed(registrar, table):
    table.script(REGISTER, refuse("UNIMPLEMENTED", "off"))
    await registrar.name_for(REGION, NEVER)
    assert await registrar.release(REGION, NEVER)


async def test_one_that_the_server_uses_must_not_be_freed(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    assert not await registrar.release(REGION, Deadline.after(0.02))
    assert await registrar.name_for(REGION, NEVER) is None
    table.end(name)
    assert await registrar.release(REGION, NEVER)


async def test_who_leaves_before_it_is_released_does_not_keep_it_on_the_server(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    releasing = asyncio.create_task(registrar.release(REGION, NEVER))
    await asked_after(table, name)
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    table.end(name)
    async with asyncio.timeout(10):
        while table.regions:
            await asyncio.sleep(0.001)


async def test_one_that_our_calls_use_must_not_be_freed(registrar, table):
    await registrar.name_for(REGION, NEVER)
    registrar.enter(REGION)
    assert not await registrar.release(REGION, Deadline.after(0.02))
    assert not table.count(UNREGISTER)
    registrar.leave(REGION)
    assert await registrar.release(REGION, NEVER)


async def test_one_that_is_just_being_registered_must_not_be_freed(registrar, table):
    go = asyncio.Event()
    table.script(REGISTER, go)
    caller = asyncio.create_task(registrar.name_for(REGION, NEVER))
    await told(table, REGISTER)
    assert not await registrar.release(REGION, Deadline.after(0))
    go.set()
    assert await caller is None
    assert await registrar.release(REGION, NEVER)
    assert not table.regions


async def test_one_whose_registration_was_about_to_begin_is_not_registered(registrar, table):
    caller = asyncio.create_task(registrar.name_for(REGION, NEVER))
    releasing = asyncio.create_task(registrar.release(REGION, NEVER))
    assert await caller is None
    assert await releasing
    assert not table.regions


async def test_nothing_is_remembered_either_when_a_late_call_on_it_has_ended(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    registrar.enter(REGION)
    table.restart()
    registrar.forgotten(REGION, name)
    assert await registrar.release(REGION, NEVER)
    registrar.leave(REGION)
    assert not registrar._entries


async def test_nothing_is_remembered_of_what_was_released(registrar):
    for number in range(20):
        region = FakeRegion(f"ta-1-0123456789ab-{number}")
        await registrar.name_for(region, NEVER)
        registrar.enter(region)
        registrar.leave(region)
        assert await registrar.release(region, NEVER)
    assert not registrar._entries
    assert not registrar._names


# --- the end ------------------------------------------------------------------------------------


async def test_at_the_end_what_is_in_use_is_waited_for_until_the_deadline(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    closing = asyncio.create_task(registrar.aclose(NEVER))
    await asked_after(table, name, 3)
    table.end(name)
    await closing
    assert not table.regions


async def test_at_the_end_no_task_is_left(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    registrar.retire(FakeLease(), REGION, name)
    await told(table, UNREGISTER)
    await registrar.aclose(Deadline.after(0.01))
    assert not registrar._tasks


async def test_a_cancelled_end_leaves_no_region_that_nobody_uses(registrar, table):
    name = await registrar.name_for(REGION, NEVER)
    table.using[name] = 1
    await registrar.name_for(OTHER, NEVER)
    closing = asyncio.create_task(registrar.aclose(NEVER))
    await told(table, UNREGISTER, 3)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert [*table.regions] == [name]


async def test_below_2_50_the_end_does_not_wait_for_what_cannot_be_freed():
    table = RegionTable("2.49.0")
    async with scripted_registrar(table) as registrar:
        name = await registrar.name_for(REGION, NEVER)
        lease = FakeLease()
        registrar.retire(lease, REGION, name)
        async with asyncio.timeout(10):
            await registrar.aclose(NEVER)
        assert not table.count(UNREGISTER)
        assert not lease.confirmed
        assert not await registrar.release(REGION, NEVER)


async def test_the_end_after_the_connection_was_closed_does_not_wait(table):
    async with ScriptedServer(**table.methods) as server:
        endpoint = make_endpoint(server.target)
        registrar = Registrar(RegionControl(endpoint), is_dead=lambda _: False)
        await registrar.name_for(REGION, NEVER)
        endpoint.link.close()
        async with asyncio.timeout(10):
            await registrar.aclose(NEVER)
            assert not await registrar.release(REGION, NEVER)
        await endpoint.aclose(NEVER)
