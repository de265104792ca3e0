"""The pool's memory: lending, making regions beside the loop, finding arrays, the end."""

import asyncio
import gc
import logging
import threading

import numpy as np
import pytest

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    DeadlineExceededError,
    DeviceError,
    MemoryExhaustedError,
    MissingExtraError,
    PoolClosedError,
)
from tritonasync.core.policies import MemoryPolicy
from tritonasync.memory.stock import StockedMemory
from tritonasync.memory.store import MemoryStore, Order
from tritonasync.memory.system import SystemMemory

pytestmark = pytest.mark.anyio

K = 1024
POLICY = MemoryPolicy(max_nbytes=256 * K, region_nbytes=64 * K)
BYTE = np.dtype(np.uint8)


class Watched(SystemMemory):
    """Notes in which threads regions are made."""

    def __init__(self, folder):
        super().__init__(folder)
        self.threads = []
        self.sizes = []
        self.gate = None

    def create(self, nbytes):
        self.threads.append(threading.get_ident())
        self.sizes.append(nbytes)
        if self.gate is not None:
            assert self.gate.wait(10)
        return super().create(nbytes)


@pytest.fixture
def memory(tmp_path):
    return Watched(tmp_path)


@pytest.fixture
async def store(memory):
    made = MemoryStore(POLICY, {"system": lambda: memory})
    yield made
    if memory.gate is not None:
        memory.gate.set()
    await made.aclose()


def regions_in(folder):
    return [path for path in folder.iterdir() if path.stat().st_size]


async def take(store, nbytes=K, **options):
    return await store.take("system", nbytes, "a test", NEVER, "m", **options)


async def test_regions_are_made_in_other_threads(store, memory):
    assert store.take_nowait("system", K, "a test") is None
    lease = await take(store)
    assert memory.threads
    assert threading.get_ident() not in memory.threads
    lease.release()
    again = store.take_nowait("system", K, "a test")
    assert again is not None
    again.release()
    assert memory.sizes == [64 * K]


async def test_many_who_want_the_first_region_share_one(store, memory):
    leases = await asyncio.gather(*[take(store) for _ in range(20)])
    assert memory.sizes == [64 * K]
    for lease in leases:
        lease.release()


async def test_what_is_larger_than_a_region_has_one_of_its_own(store, memory):
    lease = await take(store, 100 * K)
    assert memory.sizes[-1] >= 100 * K
    lease.release()


async def test_what_the_limit_forbids_is_an_error_that_says_what_to_do(store):
    with pytest.raises(MemoryExhaustedError, match="MemoryPolicy\\(max_nbytes=262144\\)"):
        await take(store, 300 * K)


async def test_without_room_it_raises_or_waits(store):
    leases = [await take(store, 60 * K) for _ in range(4)]
    with pytest.raises(MemoryExhaustedError):
        await take(store, 60 * K)
    waiting = asyncio.ensure_future(take(store, 60 * K, wait=True))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    leases.pop().release()
    (await waiting).release()
    for lease in leases:
        lease.release()


async def test_the_wait_for_a_region_ends_at_the_deadline(store, memory):
    memory.gate = threading.Event()
    with pytest.raises(DeadlineExceededError) as caught:
        await store.take("system", K, "a test", Deadline.after(0.05), "m")
    assert caught.value.stage == "memory"


async def test_who_leaves_while_a_region_is_made_harms_nobody(store, memory):
    memory.gate = threading.Event()
    first, second = asyncio.ensure_future(take(store)), asyncio.ensure_future(take(store))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait({first})
    memory.gate.set()
    (await second).release()
    assert memory.sizes == [64 * K]


async def test_an_array_in_our_memory_is_found_and_no_other(store):
    lease = await take(store, 8 * K)
    view = lease.view(0, (8, K), BYTE, writable=True)
    region, offset = store.find(view[2:4])
    assert (region, offset) == (lease.region, lease.offset + 2 * K)
    assert store.find(view[:, 1:]) is None  # strided
    assert store.find(np.zeros(K, np.uint8)) is None
    other = await take(store, 60 * K)  # another region
    far = other.view(0, (60 * K,), BYTE)
    assert store.find(far) == (other.region, other.offset)
    assert other.region is not lease.region
    del view, far
    lease.release()
    other.release()


async def test_nothing_is_found_before_there_is_any_memory(store):
    assert store.find(np.zeros(4, np.uint8)) is None


async def test_a_lease_for_a_user_is_of_the_default_kind_and_names_its_model(store):
    order = Order(K, "resnet", NEVER, None, None)
    lease = await store.lend(order, "system")
    assert "resnet" in lease.purpose
    lease.release()


async def test_a_gpu_that_is_not_there_is_an_error(store):
    made = MemoryStore(POLICY)
    if made.available("cuda"):
        pytest.skip("there is one")
    with pytest.raises((DeviceError, MissingExtraError)):  # without CuPy, that is what is said
        await made.take("cuda", K, "a test", NEVER, "m")
    await made.aclose()
    assert made.available("system")


async def test_what_is_held_for_long_is_reported_once_by_name(memory, caplog):
    policy = MemoryPolicy(max_nbytes=256 * K, region_nbytes=64 * K, report_after_s=0.05)
    store = MemoryStore(policy, {"system": lambda: memory})
    lease = await take(store)
    with caplog.at_level(logging.WARNING, "tritonasync.memory"):
        async with asyncio.timeout(5):
            while not caplog.records:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
    assert len(caplog.records) == 1
    assert "a test" in caplog.records[0].getMessage()
    lease.release()
    await store.aclose()


async def test_the_end_leaves_no_file_and_lends_nothing(memory, tmp_path):
    store = MemoryStore(POLICY, {"system": lambda: memory})
    lease = await take(store)
    view = lease.view(0, (K,), BYTE)
    lease.release()
    await store.aclose()
    await store.aclose()
    assert not regions_in(tmp_path)
    assert view.sum() >= 0  # the mapping lives as long as a view
    with pytest.raises(PoolClosedError):
        await take(store)
    del view
    gc.collect()


def test_stock_is_given_out_and_never_made(memory):
    stock = StockedMemory(memory)
    assert stock.kind == "system"
    with pytest.raises(MemoryExhaustedError):
        stock.create(K)
    stock.restock(64 * K, K)
    with pytest.raises(MemoryExhaustedError):
        stock.create(65 * K)
    region = stock.create(K)
    assert region.nbytes == 64 * K
    region.close()
    stock.restock(64 * K, K)
    stock.close()
    with pytest.raises(MemoryExhaustedError):
        stock.create(K)


def test_stock_makes_do_with_the_least(memory, monkeypatch):
    made = memory.create

    def scarce(nbytes):
        if nbytes > 8 * K:
            raise MemoryExhaustedError("full")
        return made(nbytes)

    monkeypatch.setattr(memory, "create", scarce)
    stock = StockedMemory(memory)
    stock.restock(64 * K, 8 * K)
    region = stock.create(K)
    assert region.nbytes == 8 * K
    region.close()
    with pytest.raises(MemoryExhaustedError, match="full"):
        stock.restock(64 * K, 64 * K)


async def test_all_who_come_while_a_region_is_made_find_room_in_others(store, memory):
    memory.gate = threading.Event()
    takers = [asyncio.ensure_future(take(store, 60 * K)) for _ in range(4)]  # one a region
    await asyncio.sleep(0.05)
    memory.gate.set()
    for lease in await asyncio.gather(*takers):
        lease.release()
    assert len(memory.sizes) == 4


async def test_what_is_too_large_fails_alone(store):
    large, small = await asyncio.gather(
        take(store, 300 * K), take(store, 10 * K), return_exceptions=True
    )
    assert isinstance(large, MemoryExhaustedError)
    small.release()


async def test_while_others_wait_no_region_is_made(store, memory):
    leases = [await take(store, 60 * K) for _ in range(4)]
    waiting = asyncio.ensure_future(take(store, 60 * K, wait=True))
    await asyncio.sleep(0.05)
    made = len(memory.sizes)
    with pytest.raises(MemoryExhaustedError):
        await take(store, K)
    assert len(memory.sizes) == made
    for lease in leases:
        lease.release()
    (await waiting).release()


async def test_who_takes_while_it_is_closed_is_refused_and_nothing_is_left(memory, tmp_path):
    store = MemoryStore(POLICY, {"system": lambda: memory})
    memory.gate = threading.Event()
    takers = [asyncio.ensure_future(take(store, 60 * K)) for _ in range(3)]
    await asyncio.sleep(0.05)
    closing = asyncio.ensure_future(store.aclose())
    await asyncio.sleep(0.01)
    memory.gate.set()
    await closing
    outcomes = await asyncio.gather(*takers, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {PoolClosedError}
    assert not regions_in(tmp_path)


async def test_each_who_waits_for_the_probe_has_an_error_of_its_own(memory, monkeypatch):
    def full(nbytes):
        raise MemoryExhaustedError("full")

    monkeypatch.setattr(memory, "create", full)
    store = MemoryStore(POLICY, {"system": lambda: memory})
    errors = await asyncio.gather(*[store.probe(NEVER) for _ in range(3)], return_exceptions=True)
    assert len({id(error) for error in errors}) == 3
    await store.aclose()


def test_stock_is_halved_down_to_the_least(memory, monkeypatch):
    made = memory.create

    def scarce(nbytes):
        if nbytes > 20 * K:
            raise MemoryExhaustedError("full")
        return made(nbytes)

    monkeypatch.setattr(memory, "create", scarce)
    stock = StockedMemory(memory)
    stock.restock(64 * K, 1 * K)
    region = stock.create(K)
    assert region.nbytes == 16 * K
    region.close()
