"""Whatever happens in whatever order: no memory is confirmed that a server may still use."""

import asyncio
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.scripted import RefusalError
from tests.transport.scripted_regions import LOST, FakeRegion, RegionTable, refuse
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import TritonError
from tritonasync.transport import withdrawal
from tritonasync.transport.regions import RegionControl
from tritonasync.transport.registrar import Registrar
from tritonasync.transport.status import error_from_status

REGIONS = 2
METHODS = [f"SystemSharedMemory{verb}" for verb in ("Register", "Unregister", "Status")]
BUSY = refuse("UNAVAILABLE", "Server not ready")

which = st.integers(0, REGIONS - 1)
steps = st.one_of(
    st.tuples(st.sampled_from(["ask", "call"]), which),
    st.tuples(st.sampled_from(["call", "land", "lose", "finish"]), which),
    st.tuples(st.sampled_from(["call", "lose", "finish"]), which),
    st.tuples(st.just("turns"), st.integers(1, 12)),
    st.tuples(st.sampled_from(["restart", "restart unnoticed", "doubt"]), st.just(0)),
    st.tuples(st.sampled_from(["lost answer", "refusal"]), st.sampled_from(METHODS)),
)


class DirectEndpoint:
    """Asks the table without a network."""

    target = "scripted:1"

    def __init__(self, table):
        self.table = table

    async def exchange(self, method, message, deadline, **_):
        await asyncio.sleep(0)
        try:
            answer = await self.table.answer(method, message)
        except RefusalError as refusal:
            await asyncio.sleep(0)
            raise error_from_status(
                refusal.code.name, refusal.details, endpoint=self.target
            ) from None
        await asyncio.sleep(0)
        return answer


class Lease:
    """A part of a region that a lost call used under a name."""

    def __init__(self, world, name):
        self.world, self.name, self.confirmed = world, name, 0

    def confirm(self):
        self.confirmed += 1
        assert not self.world.table.using[self.name], "the server still uses it"
        assert self.name not in self.world.table.regions


async def turns(number):
    for _ in range(number):
        await asyncio.sleep(0)


class World:
    """A server, a registrar, and calls that come and go."""

    def __init__(self, version):
        self.table = RegionTable(version)
        self.registrar = Registrar(RegionControl(DirectEndpoint(self.table)))
        self.regions = [FakeRegion(f"r{number}") for number in range(REGIONS)]
        self.out = [[] for _ in self.regions]  # names that our calls use
        self.server_only = [[] for _ in self.regions]  # of calls that were lost
        self.leases = []
        self.tasks = []
        unregister = self.table._unregister

        def checked(request):
            ours = Counter(name for names in self.out for name in names)
            assert not ours[request.name], "unregistered under a call of ours"
            unregister(request)

        self.table._unregister = checked

    def end(self, name):
        if self.table.using[name]:
            self.table.end(name)

    async def do(self, step, what):
        registrar, table = self.registrar, self.table
        if step == "turns":
            await turns(what)
        elif step == "ask":
            self.ask(what)
        elif step == "call":
            if registrar.known(self.regions[what]) is None:
                self.ask(what)
                await turns(12)
            self.call(what)
        elif step == "land" and self.out[what]:
            self.end(self.out[what].pop(0))
            registrar.leave(self.regions[what])
        elif step == "lose" and self.out[what]:
            name = self.out[what].pop(0)
            self.server_only[what].append(name)
            registrar.leave(self.regions[what])
            self.leases.append(Lease(self, name))
            registrar.retire(self.leases[-1], self.regions[what], name)
        elif step == "finish" and self.server_only[what]:
            self.end(self.server_only[what].pop(0))
        elif step.startswith("restart"):
            table.restart()
            if step == "restart":
                registrar.restarted()
        elif step == "doubt":
            registrar.restarted()
        elif step in {"lost answer", "refusal"}:
            table.script(what, LOST if step == "lost answer" else BUSY)

    def ask(self, number):
        asking = self.registrar.name_for(self.regions[number], NEVER)
        self.tasks.append(asyncio.ensure_future(asking))

    def call(self, number):
        region = self.regions[number]
        name = self.registrar.known(region)
        if name is None:
            return
        self.registrar.enter(region)
        if name in self.table.regions:
            self.table.using[name] += 1
            self.out[number].append(name)
        else:
            self.registrar.leave(region)
            self.registrar.forgotten(region, name)

    async def finish(self):
        self.table.next_answers.clear()
        for number, region in enumerate(self.regions):
            for name in self.out[number]:
                self.end(name)
                self.registrar.leave(region)
            for name in self.server_only[number]:
                self.end(name)
            self.out[number].clear()
        if self.table.version.startswith("2.49"):
            self.table.restart()
        self.registrar.restarted()
        for task in self.tasks:
            with suppress(TritonError):
                await task


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(withdrawal, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(withdrawal, "LONGEST_PAUSE_S", 0.0)


@settings(max_examples=200, deadline=None)
@given(
    version=st.sampled_from(["2.49.0", "2.51.0", "2.60.0"]),
    script=st.lists(steps, min_size=20, max_size=60),
)
def test_in_any_order(version, script):
    async def run():
        world = World(version)
        for step, what in script:
            await world.do(step, what)
        await world.finish()
        async with asyncio.timeout(20):
            await world.registrar.aclose(Deadline.after(10))
        assert [lease.confirmed for lease in world.leases] == [1] * len(world.leases)
        assert not world.table.regions
        assert not world.table.registered_twice
        assert not world.table.unmapped
        assert not world.registrar._tasks

    asyncio.run(run())
