"""Shared memory through the whole stack, with the real server."""

import asyncio
import gc
import os

import ml_dtypes
import numpy as np
import pytest

from tritonasync import (
    BatchPolicy,
    DeadlineExceededError,
    InvalidInputError,
    LeasedInputs,
    MemoryExhaustedError,
    MemoryPolicy,
    PoolClosedError,
    TritonPool,
    UsageError,
    WrongContextError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.server]

CHANCE = np.random.default_rng(0)
IMAGE = (3, 224, 224)
NBYTES = 602_112


def images(rows, seed=0):
    return np.random.default_rng(seed).random((rows, *IMAGE), np.float32)


@pytest.fixture
async def pool(server):
    async with TritonPool(server.grpc_url) as pool:
        yield pool


def memory_of(pool):
    gc.collect()
    return pool.statistics().memory["system"]


async def test_images_of_many_callers_are_copied_once_and_come_back_right(pool):
    model = pool.model("ident_image")
    sent = images(48)

    async def one(index):
        out = await model.one(INPUT0=sent[index])
        assert (out["OUTPUT0"] == sent[index]).all()
        return out["OUTPUT0"].base is not None

    await asyncio.gather(*[one(index) for index in range(8)])  # teaches the outputs' size
    before = memory_of(pool)
    assert all(await asyncio.gather(*[one(index) for index in range(48)]))
    after = memory_of(pool)
    assert after.copied_nbytes - before.copied_nbytes == 48 * NBYTES
    assert after.in_use == 0
    (endpoint,) = pool.statistics().endpoints
    assert endpoint.sharing.on_wire == 0
    assert after.regions == 1


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "BF16"]
)
async def test_every_fixed_datatype_travels_in_shared_memory(server, dtype):
    names = {"?": "BOOL", "BF16": "BF16"}
    kinds = {"u": "UINT", "i": "INT", "f": "FP"}
    name = names.get(dtype) or f"{kinds[dtype[0]]}{8 * int(dtype[1])}"
    wanted = np.dtype(ml_dtypes.bfloat16 if dtype == "BF16" else dtype)
    sent = (CHANCE.random((4, 2048)) * 100).astype(wanted)
    async with TritonPool(server.grpc_url, shared_memory="system", batching=None) as pool:
        model = pool.model("every_type")
        for _ in range(2):
            out = await model({f"IN_{name}": sent}, outputs=[f"OUT_{name}"])
            assert out[f"OUT_{name}"].dtype == wanted
            assert (out[f"OUT_{name}"] == sent).all()
        assert memory_of(pool).copies == 2
        del out


async def test_strings_travel_in_the_message(server):
    async with TritonPool(server.grpc_url, shared_memory="system") as pool:
        words = np.array([[b"a" * 9000], [b"b" * 9000]], object)
        out = await pool.model("every_type")(IN_BYTES=words, outputs=["OUT_BYTES"])
        assert (out["OUT_BYTES"] == words).all()
        assert not pool.statistics().memory


async def test_a_batch_that_is_split_comes_back_whole(pool):
    sent = images(19)  # of 8 at most
    for _ in range(2):
        assert ((await pool.model("ident_image")(INPUT0=sent))["OUTPUT0"] == sent).all()
    assert memory_of(pool).in_use == 0


async def test_what_is_written_in_place_is_never_copied(pool):
    model, sent = pool.model("ident_image"), images(8)
    for round_ in range(3):
        async with model.lease(8) as slot:
            assert isinstance(slot, LeasedInputs)
            slot["INPUT0"][...] = sent + round_
            out = await model(slot)
        assert (out["OUTPUT0"] == sent + round_).all()
    assert memory_of(pool).copies == 0
    assert pool.statistics().endpoints[0].sharing.placed == 3
    assert memory_of(pool).in_use == 1
    del out
    assert memory_of(pool).in_use == 0


async def test_an_output_given_to_the_next_model_is_not_copied(pool):
    model, sent = pool.model("ident_image"), images(4)
    await model(INPUT0=sent)
    first = await model(INPUT0=sent)
    copies = memory_of(pool).copies
    second = await model(INPUT0=first["OUTPUT0"])
    assert (second["OUTPUT0"] == sent).all()
    assert memory_of(pool).copies == copies


async def test_a_slot_may_be_written_and_sent_again(pool):
    model = pool.model("ident_image")
    async with model.lease(2) as slot:
        for value in range(4):
            slot["INPUT0"].fill(value)
            out = await model(slot, copy=True)
            assert (out["OUTPUT0"] == value).all()


async def test_leases_of_many_callers_are_apart(pool):
    model = pool.model("ident_image")

    async def produce(value):
        async with model.lease(2) as slot:
            slot["INPUT0"].fill(value)
            await asyncio.sleep(0)
            out = await model(slot)
        return (out["OUTPUT0"] == value).all()

    assert all(await asyncio.gather(*[produce(value) for value in range(24)]))
    assert memory_of(pool).copies == 0


async def test_a_copy_is_the_users_own(pool):
    model, sent = pool.model("ident_image"), images(2)
    for _ in range(2):
        out = await model(INPUT0=sent, copy=True)
        item = await model.one(INPUT0=sent[0], copy=True)
    assert memory_of(pool).in_use == 0
    out["OUTPUT0"][0] = 5
    item["OUTPUT0"][0] = 5
    assert item["OUTPUT0"].shape == IMAGE
    assert (out["OUTPUT0"][1] == sent[1]).all()


async def test_released_outputs_give_their_slot_back_when_nothing_refers_to_it(pool):
    model, sent = pool.model("ident_image"), images(2)
    await model(INPUT0=sent)
    out = await model(INPUT0=sent)
    kept = out["OUTPUT0"][1]
    out.release()
    out.release()
    with pytest.raises(KeyError, match="no outputs"):
        out["OUTPUT0"]
    assert memory_of(pool).in_use == 1
    assert (kept == sent[1]).all()
    del kept
    assert memory_of(pool).in_use == 0


async def test_outputs_outlive_the_pool(server):
    async with TritonPool(server.grpc_url) as pool:
        model, sent = pool.model("ident_image"), images(2)
        await model(INPUT0=sent)
        out = await model(INPUT0=sent)
    assert (out["OUTPUT0"] == sent).all()


async def test_a_pool_that_shares_nothing_lends_nothing(server):
    async with TritonPool(server.grpc_url, shared_memory="off") as pool:
        model = pool.model("ident_image")
        assert ((await model(INPUT0=images(2)))["OUTPUT0"] == images(2)).all()
        with pytest.raises(UsageError, match="shared_memory='off'"):
            await model.lease(2).__aenter__()
        assert pool.statistics().endpoints[0].sharing is None


async def test_without_room_a_lease_raises_if_that_was_chosen(server):
    policy = MemoryPolicy(max_nbytes=4 << 20, region_nbytes=4 << 20)
    async with TritonPool(server.grpc_url, memory=policy) as pool:
        model = pool.model("ident_image")
        async with model.lease(4):
            with pytest.raises(MemoryExhaustedError):
                await model.lease(4, when_full="raise").__aenter__()
            waiting = asyncio.ensure_future(model.lease(4).__aenter__())
            await asyncio.sleep(0.1)
            assert not waiting.done()
        (await waiting).release()


async def test_a_slot_that_does_not_fit_another_model_is_refused_as_any_array(pool):
    async with pool.model("ident_image").lease(2) as slot:
        with pytest.raises(InvalidInputError):
            await pool.model("ident")(slot)


def test_a_blocking_pool_lends_too(server):
    with TritonPool.blocking(server.grpc_url) as pool:
        model = pool.model("ident_image")
        with model.lease(2) as slot:
            slot["INPUT0"].fill(7)
            out = model(slot)
        assert (out["OUTPUT0"] == 7).all()
        assert pool.statistics().memory["system"].copies == 0
        del out


async def test_a_batch_that_is_too_large_for_the_memory_goes_in_parts(server):
    policy = MemoryPolicy(max_nbytes=4 << 20, region_nbytes=4 << 20)
    batching = BatchPolicy(max_nbytes=8 << 20)
    async with TritonPool(
        server.grpc_url, shared_memory="system", memory=policy, batching=batching
    ) as pool:
        model, sent = pool.model("ident_image"), images(24)
        replies = await asyncio.gather(*[model.one(INPUT0=image, copy=True) for image in sent])
        for reply, image in zip(replies, sent, strict=True):
            assert (reply["OUTPUT0"] == image).all()


async def test_a_pool_that_shares_none_says_so_in_time_when_room_is_waited_for(server):
    policy = MemoryPolicy(max_nbytes=4 << 20, region_nbytes=4 << 20)
    async with TritonPool(
        server.grpc_url, shared_memory="system", memory=policy, close_timeout_s=0.5
    ) as pool:
        model = pool.model("ident_image")
        lease = model.lease(6)
        slot = await lease.__aenter__()
        calls = [asyncio.ensure_future(model(INPUT0=images(2))) for _ in range(3)]
        await asyncio.sleep(0.2)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 3
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {PoolClosedError, DeadlineExceededError}
    slot.release()


def test_a_forked_child_has_no_use_of_a_slot(server):
    with TritonPool.blocking(server.grpc_url) as pool, pool.model("ident_image").lease(1) as slot:
        slot["INPUT0"].fill(1)
        child = os.fork()
        if not child:
            try:
                slot["INPUT0"].fill(2)
            except WrongContextError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert (slot["INPUT0"] == 1).all()
