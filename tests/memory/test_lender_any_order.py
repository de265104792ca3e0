"""Slots under whatever happens to them, in event loops of the tests' own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory.heap import HeapMemory
from tritonasync.core.deadline import NEVER
from tritonasync.core.errors import MemoryExhaustedError
from tritonasync.memory.arena import Arena
from tritonasync.memory.lease import LeaseState
from tritonasync.memory.lender import Lender
from tritonasync.testing.scripted import ScriptedMemory

KIB = 1024
BYTE = np.dtype(np.uint8)

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["take"] * 3
            + ["release", "view", "drop", "send", "land", "lose", "confirm", "done", "fail"]
        ),
        st.integers(0, 30),
    ),
    max_size=60,
)


@given(steps=STEPS)
@settings(deadline=None, max_examples=150)
def test_no_slot_is_lent_while_anybody_may_be_at_it(steps):
    asyncio.run(no_overlap(steps))


async def no_overlap(steps):
    memory = ScriptedMemory(max_nbytes=6 * KIB)
    lender = Lender(Arena(memory, region_nbytes=6 * KIB))
    held, views = [], {}
    lost = []

    def at_work():
        """The leases whose bytes somebody may read or write, by our own books."""
        return [lease for lease in held if lease.state is not LeaseState.FREE]

    for what, number in steps:
        lease = held[number % len(held)] if held else None
        if what == "take":
            try:
                new = lender.take_nowait(number * 50 + 1, "net IN")
            except MemoryExhaustedError:
                continue
            for other in at_work():
                if other.region is new.region:
                    apart = new.offset + new.block.nbytes <= other.offset
                    assert apart or other.offset + other.block.nbytes <= new.offset
            held.append(new)
        elif what == "done":
            memory.complete_all()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        elif what == "fail":
            lost += memory.pending[:1]
            memory.fail(*memory.pending[:1])
        elif lease is None or lease.state in {LeaseState.FREE, LeaseState.DRAINING}:
            continue
        elif what == "release":
            lease.release()
        elif what == "view":
            views.setdefault(lease, []).append(lease.view(0, (1,), BYTE))
        elif what == "drop":
            views.pop(lease, None)
        elif what == "send" and not lease.strays:
            if lease.state is LeaseState.FILLING:
                lease.filled()
            lease.sent()
        elif what in {"land", "lose"} and lease.flights:
            (lease.landed if what == "land" else lease.lost)()
        elif what == "confirm" and lease.strays:
            lease.confirm()
        for owner in views:
            assert owner.state not in {LeaseState.FREE, LeaseState.DRAINING}
    views.clear()
    for lease in held:
        while lease.flights:
            lease.landed()
        while lease.strays:
            lease.confirm()
        lease.release()
    lender.statistics()  # reads the notes
    memory.complete_all()
    await asyncio.sleep(0.002)
    stats = lender.statistics()
    assert stats.in_use == stats.lost <= len(lost)
    await lender.aclose()


def test_a_view_may_die_when_the_loop_is_closed():
    async def hold():
        lender = Lender(Arena(HeapMemory(KIB), region_nbytes=KIB))
        lease = lender.take_nowait(KIB, "net IN")
        views.append(lease.view(0, (4,), BYTE))
        lease.release()
        lenders.append(lender)
        await lender.take(KIB, "net IN", NEVER)

    views, lenders = [], []
    with suppress(TimeoutError):
        asyncio.run(asyncio.wait_for(hold(), 0.01))
    assert lenders[0].wanted
    views.clear()
    assert len(lenders[0].notes) == 1
