"""Callers leave, hold what they were given, fork and use threads, with tensors in shared memory.

The real server goes on writing into slots whose callers have left: nobody else may see that.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import subprocess
import sys

import pytest
from anyio import to_thread

from tests.faults.shared import (
    IMAGE,
    LEAST,
    WIDTHS,
    SharedLoad,
    check,
    check_nothing_is_left,
    content,
    learned,
    placed,
    server,
    sharing_pool,
    slow,
    system,
    until,
    until_empty,
)
from tritonasync import BatchPolicy, MemoryPolicy
from tritonasync.core.errors import DeadlineExceededError, MemoryExhaustedError

pytestmark = [pytest.mark.anyio, pytest.mark.server]

ROW = {"INPUT0": (WIDTHS[0],)}
LITTLE = 16 * 4 * WIDTHS[0]
"""Room for sixteen rows."""

batched = pytest.mark.parametrize("batching", [BatchPolicy(), None], ids=["batched", "alone"])


@pytest.fixture(scope="module")
def one():
    with server() as triton:
        yield triton


@pytest.fixture(autouse=True)
async def nothing_is_left(one):
    yield
    await check_nothing_is_left([one])


# --- callers that leave ---------------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["expired", "cancelled"])
async def test_a_late_answer_reaches_no_later_call(one, leave):
    """One instance of the model is at work for a caller who left; the other serves on.

    The slots that were freed last are lent first, so that a slot which came back too soon would be
    among those of the next calls.
    """
    async with sharing_pool(one.grpc_url, batching=None) as pool:
        model = await learned(pool, IMAGE)
        for round_ in range(3):
            await _leave(model, slow(round_, 400, width=IMAGE), leave)
            assert system(pool).in_use == 2
            held = [await check(model, 10 + number, width=IMAGE) for number in range(8)]
            assert system(pool).in_use == 2 + len(held), "it is out for as long as it is at work"
            await until(lambda: not pool.statistics().endpoints[0].in_flight)
            for number, answer in enumerate(held):
                assert (answer == -content(10 + number, IMAGE)).all()
            del held, answer
            await until_empty(pool)


async def test_a_lent_input_is_not_lent_again_while_an_abandoned_call_reads_it(one):
    async with sharing_pool(one.grpc_url, batching=None) as pool:
        model = await learned(pool)
        shapes = {**ROW, "DELAY_MS": (1,)}
        async with model.lease(1, shapes=shapes) as slot:
            slot["INPUT0"][...] = content(1)
            slot["DELAY_MS"][...] = 500
            began = slot["INPUT0"].ctypes.data
            await _leave(model, slot, "cancelled")
        gc.collect()  # nobody has it now but what is out
        others = contextlib.AsyncExitStack()
        async with others:
            assert began not in await _lend(8, model, shapes, others)
            assert pool.statistics().endpoints[0].in_flight
        await until_empty(pool)
        async with others:
            assert began in await _lend(9, model, shapes, others)


async def _lend(count, model, shapes, stack):
    """Return where so many leases are, that last as long as a stack."""
    lent = [await stack.enter_async_context(model.lease(1, shapes=shapes)) for _ in range(count)]
    return {slot["INPUT0"].ctypes.data for slot in lent}


async def _leave(model, inputs, how):
    """Make a call that is at work when its caller leaves it."""
    if how == "expired":
        with pytest.raises(DeadlineExceededError):
            await model(inputs, timeout_s=0.1)
        return
    call = asyncio.create_task(model(inputs))
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()


@batched
async def test_callers_leave_at_any_moment(one, batching):
    """While bytes are copied by a worker thread, before, on the way and after."""
    chance = random.Random(6)
    left = 0
    async with sharing_pool(one.grpc_url, batching=batching, close_timeout_s=60) as pool:
        model = await learned(pool, IMAGE)
        loop = asyncio.get_running_loop()
        async with SharedLoad(pool, widths=(IMAGE, *WIDTHS), callers=6) as load:
            for _ in range(30):
                calls = [
                    asyncio.create_task(model(INPUT0=content(number, IMAGE, rows=2)))
                    for number in range(10)
                ]
                for call in calls:
                    loop.call_later(chance.uniform(0, 0.05), call.cancel)
                await asyncio.wait(calls)
                left += sum(call.cancelled() for call in calls)
                del call, calls
        load.tally.check()
        assert left > 50
        await until_empty(pool)
    assert one.running, one.log_tail()


# --- no room --------------------------------------------------------------------------------------


async def test_calls_go_on_the_wire_while_the_user_holds_all_memory(one, caplog):
    policy = MemoryPolicy(min_nbytes=LEAST, max_nbytes=LITTLE, region_nbytes=LITTLE)
    caplog.set_level(logging.WARNING, "tritonasync.memory")
    async with sharing_pool(one.grpc_url, batching=None, memory=policy) as pool:
        model = await learned(pool)
        held = [await check(model, number) for number in range(40)]
        (sharing,) = [endpoint.sharing for endpoint in pool.statistics().endpoints]
        assert sharing.on_wire > 20
        assert system(pool).in_use == 15  # one was lent to inputs, with no room for outputs left
        assert len(caplog.records) <= 2  # one line for inputs, one for outputs
        assert "go" in caplog.text
        assert "wire" in caplog.text
        for number, answer in enumerate(held):
            assert (answer == -content(number)).all()
        del held, answer
        before = placed(pool)
        for number in range(10):
            await check(model, number)
        assert placed(pool) == [before[0] + 10]


async def test_what_is_insisted_on_waits_for_the_user_to_let_go(one):
    policy = MemoryPolicy(min_nbytes=LEAST, max_nbytes=LITTLE, region_nbytes=LITTLE)
    async with sharing_pool(
        one.grpc_url, batching=None, memory=policy, shared_memory="system"
    ) as pool:
        model = await learned(pool)
        held = [await check(model, number) for number in range(15)]
        with pytest.raises(DeadlineExceededError) as caught:
            await model(INPUT0=content(90), timeout_s=0.2)
        assert caught.value.stage == "memory"
        waiting = [asyncio.create_task(check(model, 100 + number)) for number in range(4)]
        await until(lambda: system(pool).waiting)
        # Let go of in another thread, so that the loop must be woken.
        dropping = [held]
        del held
        await to_thread.run_sync(dropping.clear)
        async with asyncio.timeout(10):
            await asyncio.gather(*waiting)
        assert pool.statistics().endpoints[0].sharing.on_wire == 0
        del waiting
        await until_empty(pool)


async def test_calls_that_wait_for_room_do_not_hold_up_each_other(one):
    """Each needs a slot for inputs and one for outputs; each could have one, and none the other."""
    policy = MemoryPolicy(min_nbytes=LEAST, max_nbytes=LITTLE, region_nbytes=LITTLE)
    async with sharing_pool(
        one.grpc_url, batching=None, memory=policy, shared_memory="system", timeout_s=10
    ) as pool:
        model = await learned(pool)

        async def call_and_drop(number):
            await check(model, number)

        calls = [asyncio.create_task(call_and_drop(number)) for number in range(100)]
        gone = [asyncio.create_task(call_and_drop(number)) for number in range(100)]
        await until(lambda: pool.statistics().endpoints[0].in_flight)
        for call in gone:
            call.cancel()
        await asyncio.gather(*calls)
        await asyncio.wait(gone)
        del calls, gone, call
        await until_empty(pool)


async def test_what_is_insisted_on_raises_if_that_was_chosen(one):
    policy = MemoryPolicy(
        min_nbytes=LEAST, max_nbytes=LITTLE, region_nbytes=LITTLE, when_full="raise"
    )
    async with sharing_pool(
        one.grpc_url, batching=None, memory=policy, shared_memory="system"
    ) as pool:
        model = await learned(pool)
        held = [await check(model, number) for number in range(15)]
        for _ in range(3):
            with pytest.raises(MemoryExhaustedError, match="let go of outputs"):
                await model(INPUT0=content(90))
        held.clear()
        await check(model, 91)
        await until_empty(pool)


# --- threads and forks ----------------------------------------------------------------------------


async def test_outputs_may_die_in_any_thread(one):
    async with sharing_pool(one.grpc_url, batching=None) as pool:
        model = await learned(pool)
        for round_ in range(10):
            held = [[await check(model, 10 * round_ + number)] for number in range(10)]
            assert system(pool).in_use == 10
            await asyncio.gather(*[to_thread.run_sync(each.clear) for each in held])
            assert system(pool).in_use == 0


async def test_outputs_and_leases_outlive_their_pool(one):
    async with sharing_pool(one.grpc_url, batching=None) as pool:
        model = await learned(pool)
        held = [await check(model, number) for number in range(4)]
        slot = await model.lease(1, shapes=ROW).__aenter__()
        lent = slot["INPUT0"]
    await check_nothing_is_left([one])
    lent[...] = content(9)
    async with sharing_pool(one.grpc_url, batching=None) as later:
        model = await learned(later)
        for number in range(8):
            await check(model, 50 + number)
        assert (await model(INPUT0=lent))["OUTPUT0"][0, 0] == -lent[0, 0]
        for number, answer in enumerate(held):
            assert (answer == -content(number)).all()
        slot.release()
        dropping = [held, [lent]]
        del held, answer, lent, slot
        await to_thread.run_sync(lambda: [each.clear() for each in dropping])
        await until_empty(later)


FORKING = """
import asyncio, os, sys
from tests.faults.shared import sharing_pool, content, own_files, system
from tritonasync import TritonPool
from tritonasync.core.errors import WrongContextError

shapes = {"INPUT0": (16384,)}


def refused(coroutine):
    try:
        coroutine.send(None)
    except WrongContextError:
        return True
    finally:
        coroutine.close()
    return False


def misbehave(pool, model, slot, answer):
    assert refused(model(slot))
    assert refused(model(INPUT0=content(7)))
    assert refused(model.lease(1, shapes=shapes).__aenter__())
    assert refused(pool.aclose())
    slot.release()
    answer.release()


async def main(url):
    async with sharing_pool(url, batching=None) as pool:
        model = pool.model("negate")
        for number in range(2):
            answer = await model(INPUT0=content(number))
        async with model.lease(1, shapes=shapes) as slot:
            slot["INPUT0"][...] = content(2)
            files, in_use = own_files(), system(pool).in_use
            child = os.fork()
            if not child:
                code = 1
                try:
                    misbehave(pool, model, slot, answer)
                    code = 0
                finally:
                    os._exit(code)
            while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
                await asyncio.sleep(0.01)
            assert os.waitstatus_to_exitcode(ended[1]) == 0
            assert own_files() == files != []
            assert system(pool).in_use == in_use == 2
            assert (slot["INPUT0"] == content(2)).all()
            later = await model(slot)
            assert (later["OUTPUT0"] == -content(2)).all()
            assert (answer["OUTPUT0"] == -content(1)).all()
        del slot, later, answer
        assert system(pool).in_use == 0

asyncio.run(main(sys.argv[1]))
"""


async def test_a_forked_child_is_refused_and_harms_nothing(one):
    done = await to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-Werror", "-c", FORKING, one.grpc_url],
            capture_output=True,
            text=True,
            timeout=60,
        )
    )
    assert done.returncode == 0, done.stderr
