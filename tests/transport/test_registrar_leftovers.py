"""What dead clients left on a server is unregistered by the first region that it takes."""

import asyncio
import threading

import pytest

from tests.transport.scripted_regions import (
    FakeRegion,
    RegionTable,
    ours,
    refuse,
    scripted_control,
    scripted_registrar,
)
from tritonasync.core.deadline import NEVER
from tritonasync.transport import leftovers

pytestmark = pytest.mark.anyio

REGION, OTHER = FakeRegion("ta-1-0123456789ab-1"), FakeRegion("ta-1-0123456789ab-2")
STATUS, UNREGISTER = "SystemSharedMemoryStatus", "SystemSharedMemoryUnregister"
DEAD, LIVING, FOREIGN = "ta-7-00000000dead-1", "ta-8-00000000beef-1", "my_region"


def is_dead(name):
    assert threading.current_thread() is not threading.main_thread()
    return "dead" in name


@pytest.fixture
def table():
    return RegionTable()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(leftovers, "_PAUSES_S", (0.001, 0.001, 0.0))


async def leave(table, *regions):
    async with scripted_control(table) as control:
        for region in regions:
            await control.register(f"{region.name}.1", region, NEVER)
    table.said.clear()


async def swept(registrar):
    await asyncio.gather(*registrar._tasks)


async def test_the_names_of_the_dead_go_and_all_others_stay(table):
    gpu = FakeRegion("ta-9-00000000dead-1", kind="cuda")
    await leave(table, *map(FakeRegion, (DEAD, LIVING, FOREIGN)), gpu)
    async with scripted_registrar(table, is_dead=is_dead) as registrar:
        name = await registrar.name_for(REGION, NEVER)
        await swept(registrar)
        assert {*table.regions} == {f"{LIVING}.1", f"{FOREIGN}.1", name}
    assert {*table.regions} == {f"{LIVING}.1", f"{FOREIGN}.1"}


async def test_names_of_others_are_not_even_asked_about(table):
    asked = []
    await leave(table, FakeRegion(FOREIGN), FakeRegion(DEAD))
    async with scripted_registrar(table, is_dead=asked.append) as registrar:
        await registrar.name_for(REGION, NEVER)
        await swept(registrar)
    assert f"{DEAD}.1" in asked
    assert not [name for name in asked if not name.startswith("ta-")]


async def test_it_is_done_once_for_each_server_process(table):
    async with scripted_registrar(table, is_dead=is_dead) as registrar:
        await registrar.name_for(REGION, NEVER)
        await swept(registrar)
        await leave(table, FakeRegion(DEAD))
        await registrar.name_for(OTHER, NEVER)
        await swept(registrar)
        assert f"{DEAD}.1" in table.regions
        registrar.restarted()
        await registrar.name_for(REGION, NEVER)
        await swept(registrar)
        assert f"{DEAD}.1" not in table.regions


async def test_where_the_server_takes_no_region_the_living_look_dead_and_nothing_is_done(table):
    await leave(table, FakeRegion(DEAD))
    table.script("SystemSharedMemoryRegister", refuse("INTERNAL", "Unable to open shared memory"))
    async with scripted_registrar(table, is_dead=is_dead) as registrar:
        assert await registrar.name_for(REGION, NEVER) is None
        await swept(registrar)
    assert f"{DEAD}.1" in table.regions


async def test_below_2_50_a_request_of_the_dead_may_still_run_and_nothing_is_done():
    table = RegionTable("2.49.0")
    await leave(table, FakeRegion(DEAD))
    async with scripted_registrar(table, is_dead=is_dead) as registrar:
        await registrar.name_for(REGION, NEVER)
        await swept(registrar)
    assert f"{DEAD}.1" in table.regions


@pytest.mark.parametrize("version", ["2.51.0", "2.60.0"])
async def test_what_a_request_of_the_dead_still_uses_is_tried_again(version):
    table = RegionTable(version)
    await leave(table, FakeRegion(DEAD))
    table.using[f"{DEAD}.1"] = 1
    async with scripted_registrar(table, is_dead=is_dead) as registrar:
        await registrar.name_for(REGION, NEVER)
        async with asyncio.timeout(10):
            while not table.count(UNREGISTER):
                await asyncio.sleep(0)
        table.put_off.clear()
        table.using.clear()
        await swept(registrar)
        assert f"{DEAD}.1" not in table.regions


async def test_what_stays_in_use_is_given_up(table):
    await leave(table, FakeRegion(DEAD))
    table.using[f"{DEAD}.1"] = 1
    async with scripted_registrar(table, is_dead=is_dead) as registrar:
        await registrar.name_for(REGION, NEVER)
        await swept(registrar)
        assert table.count(UNREGISTER) == 3


async def test_a_failure_harms_no_caller(table):
    async with scripted_registrar(table, is_dead=is_dead) as registrar:
        table.script("ServerMetadata", refuse("UNAVAILABLE", "Server not ready"))
        name = await registrar.name_for(REGION, NEVER)
        await asyncio.gather(*registrar._tasks, return_exceptions=True)
        assert registrar.known(REGION) == name


async def test_a_defect_is_logged(table, caplog):
    def broken(_):
        raise OSError("no such folder")

    async with scripted_registrar(table, is_dead=broken) as registrar:
        await registrar.name_for(REGION, NEVER)
        await asyncio.gather(*registrar._tasks, return_exceptions=True)
        await asyncio.sleep(0)
    (record,) = ours(caplog)
    assert record.exc_info[1].args == ("no such folder",)


async def test_it_ends_with_the_registrar(table, monkeypatch):
    monkeypatch.setattr(leftovers, "_PAUSES_S", (600.0,))
    await leave(table, FakeRegion(DEAD))
    async with scripted_registrar(table, is_dead=is_dead) as registrar:
        await registrar.name_for(REGION, NEVER)
        while not table.count(UNREGISTER):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await registrar.aclose(NEVER)
        assert not registrar._tasks
