"""The clients that share memory with the server, on the real one; and what is counted of them."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc

from benchmarks.clients import data, leases, ours, serve
from benchmarks.clients.counts import Counts, count_registrations
from benchmarks.clients.protocol import Order, Outcome
from benchmarks.workloads import BY_NAME, Workload
from tritonasync.core.deadline import Deadline
from tritonasync.core.ports import Region
from tritonasync.serving import EmbeddedTriton
from tritonasync.transport.regions import RegionControl

IMAGES = BY_NAME["images-8"]
COUNTED = {"copies_per_row", "placed_share", "registrations_per_call"}


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting registrations wraps a method; it is unwrapped afterwards."""
    monkeypatch.setattr(RegionControl, "register", RegionControl.register)


def two_rounds(name: str, server: EmbeddedTriton) -> tuple[Outcome, Outcome]:
    """Warm up, as the benchmark does, and run a round."""

    async def run() -> tuple[Outcome, Outcome]:
        client = serve.make(name)
        await client.open(server.grpc_url)
        bench = serve.Bench(client)
        try:
            first = await bench.carry_out(Order("images-8", 0.1, prepare=True))
            return first, await bench.carry_out(Order("images-8", 0.05))
        finally:
            await client.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "copies", "callers"),
    [
        ("ours", 1.0, 8),
        ("ours-unbatched", 1.0, 8),
        ("ours-placed", 1.0, 8),
        ("ours-leased", 0.0, 1),
        ("ours-leased-anew", 0.0, 1),
    ],
)
def test_rows_are_copied_into_shared_memory_once_or_were_written_there(
    server: EmbeddedTriton, name: str, copies: float, callers: int
):
    outcome = two_rounds(name, server)[1]
    assert (outcome.errors, outcome.checked) == (0, callers), outcome.first_error
    assert outcome.rows % 8 == 0 or callers == 8
    assert outcome.extras["copies_per_row"] == copies
    assert outcome.extras["placed_share"] == 1.0


def test_regions_are_registered_in_the_beginning_and_not_with_calls(server: EmbeddedTriton):
    first, second = two_rounds("ours-leased", server)
    assert first.extras["registrations_per_call"] > 0
    assert second.extras["registrations_per_call"] == 0


@pytest.mark.parametrize("name", ["ours-wire", "ours-unplaced"])
def test_what_goes_on_the_wire_has_nothing_to_count(server: EmbeddedTriton, name: str):
    outcome = two_rounds(name, server)[1]
    assert (outcome.errors, outcome.checked) == (0, 8)
    assert not COUNTED & outcome.extras.keys()


@pytest.mark.parametrize("name", ["ours-placed", "ours-unplaced", "ours-auto"])
def test_a_new_workload_gets_a_new_pool_where_what_is_learned_would_disturb(
    server: EmbeddedTriton, name: str
):
    async def run() -> None:
        client = serve.make(name)
        assert isinstance(client, ours.Anew)
        await client.open(server.grpc_url)
        bench, pools = serve.Bench(client), [client.pool]
        for prepare in (True, False, True):
            await bench.carry_out(Order("rows-1", 0.001, prepare=prepare))
            pools.append(client.pool)
        await client.aclose()
        assert pools[1] is pools[2]
        assert len({id(pool) for pool in pools}) == 3

    asyncio.run(run())


def test_the_stock_helper_answers_and_leaves_nothing(server: EmbeddedTriton):
    for outcome in two_rounds("aio-shared", server):
        assert (outcome.errors, outcome.checked) == (0, 8), outcome.first_error
    mine = f"tritonclient-bench-{os.getpid()}-"
    assert not [path for path in Path("/dev/shm").iterdir() if path.name.startswith(mine)]
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    regions = client.get_system_shared_memory_status().regions
    client.close()
    assert not [name for name in regions if name.startswith(mine)]


@pytest.mark.parametrize(("callers", "rows", "batches"), [(64, 8, 8), (8, 8, 1), (1, 1, 1)])
def test_leased_rows_are_as_many_as_the_others_have_out(callers: int, rows: int, batches: int):
    workload = replace(IMAGES, callers=callers, shape=(3, 2, 2))
    items = data.items(workload)
    grouped = leases.whole_batches(workload)
    assert (grouped.rows, grouped.callers) == (rows, batches)
    made = leases.stacked(grouped, items)
    assert [batch.shape for batch in made] == [(rows, 3, 2, 2)] * batches
    assert np.array_equal(np.concatenate(made), np.stack(items))


OUTCOME = Outcome(rows=16, seconds=1.0, cpu_s=0.1, latency_us=(), peak_rss_mib=1.0, checked=8)
BATCHES = replace(IMAGES, rows=8)


@pytest.mark.parametrize(
    ("workload", "registrations"), [(IMAGES, 0.25), (BATCHES, 2.0)], ids=["rows", "batches"]
)
def test_copies_are_those_of_a_row_and_registrations_those_of_a_call(
    workload: Workload, registrations: float
):
    counts = Counts(copied_nbytes=3200, placed=3, on_wire=1, registrations=4)
    assert counts.extras(workload, OUTCOME, row_nbytes=100) == {
        "copies_per_row": 2.0,
        "placed_share": 0.75,
        "registrations_per_call": registrations,
    }


def test_a_round_that_shared_nothing_or_answered_nothing_has_no_measures():
    assert Counts(0, 0, 0, 0).extras(IMAGES, OUTCOME, 100) == {}
    assert Counts(9, 9, 0, 0).extras(IMAGES, replace(OUTCOME, rows=0), 100) == {}


def test_counts_of_a_round_are_differences():
    assert Counts(9, 7, 5, 3) - Counts(1, 2, 3, 1) == Counts(8, 5, 2, 2)


def test_every_call_that_registers_a_region_is_counted_and_made(monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []

    async def register(
        control: RegionControl, name: str, region: Region, deadline: Deadline
    ) -> None:
        made.append(name)

    monkeypatch.setattr(RegionControl, "register", register)
    counted = count_registrations()
    assert counted() == 0
    for name in ("a.1", "a.2"):
        asyncio.run(RegionControl.register(None, name, None, None))  # type: ignore[arg-type]
    assert (counted(), made) == (2, ["a.1", "a.2"])
