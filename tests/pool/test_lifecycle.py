"""Opening and closing, loops, forks and what is left behind."""

import asyncio
import gc
import math
import multiprocessing
import os
import subprocess
import sys
import warnings

import anyio
import anyio.to_thread
import numpy as np
import psutil
import pytest

from tritonasync import TritonPool
from tritonasync.core.errors import (
    ConfigurationError,
    PoolClosedError,
    WrongContextError,
)

pytestmark = pytest.mark.server

ROW = np.ones((1, 16), np.float32)


def run_program(program, *options):
    return subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, timeout=60
    )


def delay(ms):
    return np.full((1, 1), ms, np.float32)


@pytest.mark.anyio
async def test_closing_waits_for_calls_in_flight(server):
    async with TritonPool(server.grpc_url) as pool:
        slow = pool.model("slow")
        await slow(DELAY_MS=delay(0))
        call = asyncio.create_task(slow(DELAY_MS=delay(300)))
        while not pool.statistics().in_flight:
            await asyncio.sleep(0.001)
    assert call.done()
    assert (await call)["WAITED_MS"] == 300


@pytest.mark.anyio
async def test_closing_waits_for_calls_that_were_split(server):
    async with TritonPool(server.grpc_url) as pool:
        slow = pool.model("slow")
        await slow(DELAY_MS=delay(0))
        call = asyncio.create_task(slow(DELAY_MS=np.full((6, 1), 50, np.float32)))
        while not pool.statistics().in_flight:
            await asyncio.sleep(0.001)
    assert (await call)["WAITED_MS"].shape == (6, 1)


@pytest.mark.anyio
async def test_closing_is_bounded(server):
    pool = await TritonPool(server.grpc_url, close_timeout_s=0.2).open()
    slow = pool.model("slow")
    await slow(DELAY_MS=delay(0))
    call = asyncio.create_task(slow(DELAY_MS=delay(1000)))
    while not pool.statistics().in_flight:
        await asyncio.sleep(0.001)
    with pytest.warns(ResourceWarning, match="still out"):
        await pool.aclose()
    with pytest.raises(ConnectionError):
        await call


@pytest.mark.anyio
async def test_closing_may_be_repeated_and_raced(server):
    pool = await TritonPool(server.grpc_url).open()
    await pool.model("ident")(INPUT0=ROW)
    await asyncio.gather(pool.aclose(), pool.aclose())
    await pool.aclose()
    with pytest.raises(PoolClosedError, match="closed"):
        await pool.model("ident")(INPUT0=ROW)
    with pytest.raises(PoolClosedError, match="make a new one"):
        await pool.open()
    assert "closed" in repr(pool)


@pytest.mark.anyio
async def test_closing_cannot_be_cut_short(server):
    pool = await TritonPool(server.grpc_url).open()
    slow = pool.model("slow")
    await slow(DELAY_MS=delay(0))
    call = asyncio.create_task(slow(DELAY_MS=delay(400)))
    while not pool.statistics().in_flight:
        await asyncio.sleep(0.001)
    closing = asyncio.create_task(pool.aclose())
    for _ in range(3):
        await asyncio.sleep(0.05)
        closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert call.done()  # closing ended when the call had, and was cancelled only then
    assert (await call)["WAITED_MS"] == 400
    await pool.aclose()
    assert pool.statistics().endpoints[0].failed == 0


@pytest.mark.anyio
async def test_a_cancelled_scope_still_closes_in_order(server):
    with anyio.move_on_after(0.2) as scope:
        async with TritonPool(server.grpc_url) as pool:
            await pool.model("slow")(DELAY_MS=delay(500))
    assert scope.cancelled_caught
    endpoint = pool.statistics().endpoints[0]
    assert (endpoint.failed, endpoint.abandoned, endpoint.in_flight) == (0, 1, 0)


@pytest.mark.anyio
async def test_a_pool_that_was_never_opened(server):
    pool = TritonPool(server.grpc_url)
    with pytest.raises(PoolClosedError, match="async with"):
        await pool.model("ident")(INPUT0=ROW)
    await pool.aclose()
    with pytest.raises(PoolClosedError):
        await pool.open()


@pytest.mark.anyio
async def test_handles_may_be_made_before_the_pool_is_open(server):
    pool = TritonPool(server.grpc_url)
    model = pool.model("ident")
    async with pool:
        await model(INPUT0=ROW)


def test_an_unclosed_pool_warns(server):
    # In a process of its own: gRPC's poller serves all loops of a process, and what an unclosed
    # channel still has to say to its closed loop is raised in whichever loop runs then.
    program = f"""
import asyncio, gc, numpy as np
from tritonasync import TritonPool

async def leave():
    pool = await TritonPool({server.grpc_url!r}).open()
    await pool.model("ident")(INPUT0=np.ones((1, 16), np.float32))

asyncio.run(leave())
gc.collect()
"""
    done = run_program(program, "-W", "always::ResourceWarning")
    assert f"ResourceWarning: unclosed <TritonPool {server.grpc_url} open>" in done.stderr


def test_a_closed_or_unopened_pool_does_not_warn(server):
    async def use():
        async with TritonPool(server.grpc_url) as pool:
            await pool.model("ident")(INPUT0=ROW)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(use())
        TritonPool(server.grpc_url)
        gc.collect()


def test_another_event_loop_is_refused(server):
    pool = TritonPool(server.grpc_url)
    with asyncio.Runner() as first:
        first.run(pool.open())
        for call in (lambda: pool.model("ident")(INPUT0=ROW), pool.aclose):
            with (
                pytest.raises(WrongContextError, match="another event loop"),
                asyncio.Runner() as second,
            ):
                second.run(call())
        first.run(pool.aclose())


def test_trio_is_refused():
    async def use():
        async with TritonPool("localhost:1"):
            pass

    with pytest.raises(WrongContextError, match="asyncio.*trio is not supported"):
        anyio.run(use, backend="trio")


def test_a_forked_child_is_refused(server):
    def child(pool, pipe):
        async def use():
            await pool.model("ident")(INPUT0=ROW)

        try:
            asyncio.run(use())
        except WrongContextError as error:
            pipe.send(str(error))
        finally:
            pipe.close()
            os._exit(0)

    async def parent():
        async with TritonPool(server.grpc_url) as pool:
            await pool.model("ident")(INPUT0=ROW)
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(target=child, args=(pool, theirs))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
                process.start()
            said = await asyncio.to_thread(lambda: ours.poll(20) and ours.recv())
            process.join(10)
            await pool.model("ident")(INPUT0=ROW)  # the parent's goes on
            return said

    assert "fork" in asyncio.run(parent())


def test_ctrl_c_closes_in_order(server):
    """A program that is interrupted while a call is out ends with the call answered."""
    program = f"""
import asyncio, os, signal, numpy as np
from tritonasync import TritonPool

async def main():
    pool = TritonPool({server.grpc_url!r})
    try:
        async with pool:
            asyncio.get_running_loop().call_later(0.5, os.kill, os.getpid(), signal.SIGINT)
            await pool.model("slow")(DELAY_MS=np.full((1, 1), 1000, np.float32))
    finally:
        print(pool.statistics().endpoints[0], flush=True)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""
    done = run_program(program, "-W", "error")
    assert done.returncode == 0, done.stderr
    assert "interrupted" in done.stdout
    assert "in_flight=0" in done.stdout
    assert "abandoned=1" in done.stdout
    assert "failed=0" in done.stdout


@pytest.mark.parametrize(
    "ending",
    [
        "task.cancel(); await asyncio.sleep(0.1); task.cancel()",
        "raise ValueError",
        "await asyncio.wait_for(pool.aclose(), 0.1)",
    ],
)
def test_a_program_that_ends_in_a_hurry_cancels_no_call(server, ending):
    """However often the program's own task is cancelled, the event loop outlives the call."""
    program = f"""
import asyncio, numpy as np
from tritonasync import TritonPool

async def hurry(task, pool):
    await asyncio.sleep(0.3)
    {ending}

async def main():
    pool = TritonPool({server.grpc_url!r})
    try:
        async with pool:
            slow = pool.model("slow")
            call = asyncio.create_task(slow(DELAY_MS=np.full((1, 1), 1000, np.float32)))
            hurried = asyncio.create_task(hurry(asyncio.current_task(), pool))
            await asyncio.shield(hurried)
            await asyncio.shield(call)
    finally:
        print(pool.statistics().endpoints[0], flush=True)

asyncio.run(main())
"""
    done = run_program(program, "-W", "ignore")
    assert "in_flight=0" in done.stdout, done
    assert "failed=0" in done.stdout, done


@pytest.mark.anyio
async def test_threads_of_the_callers_own_do_not_hold_up_a_split_call(server):
    """Large answers are joined in threads of ours, not in those that a program may have used up."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    held = [object() for _ in range(int(limiter.available_tokens))]
    for borrower in held:
        limiter.acquire_on_behalf_of_nowait(borrower)
    try:
        async with TritonPool(server.grpc_url, timeout_s=20) as pool:
            batch = np.ones((17_920, 16), np.float32)
            assert (await pool.model("ident")(INPUT0=batch))["OUTPUT0"].shape == batch.shape
    finally:
        for borrower in held:
            limiter.release_on_behalf_of(borrower)


@pytest.mark.anyio
async def test_a_pool_that_cannot_open_is_closed(monkeypatch):
    def fail(*args, **options):
        raise OSError("no")

    monkeypatch.setattr("tritonasync.stages.open_channels", fail)
    pool = TritonPool("localhost:1")
    with pytest.raises(OSError, match="no"):
        await pool.open()
    with pytest.raises(PoolClosedError, match="closed"):
        await pool.model("ident")(INPUT0=ROW)
    await pool.aclose()


@pytest.mark.anyio
async def test_nothing_is_left_after_a_pool(server):
    async def use():
        async with TritonPool(server.grpc_url, channels=2) as pool:
            await asyncio.gather(*(pool.model("ident")(INPUT0=ROW) for _ in range(20)))

    process = psutil.Process()
    await use()
    await asyncio.sleep(0.2)
    tasks, descriptors = len(asyncio.all_tasks()), process.num_fds()
    for _ in range(10):
        await use()
    gc.collect()
    deadline = asyncio.get_running_loop().time() + 5
    while process.num_fds() > descriptors and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)
    assert len(asyncio.all_tasks()) == tasks
    assert process.num_fds() <= descriptors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 0}, "channels must be 1 or more"),
        ({"timeout_s": -1}, "timeout_s must be 0 or more"),
        ({"timeout_s": math.nan}, "timeout_s must be 0 or more"),
        ({"channels": "2"}, "channels must be 1 or more, a whole number, not '2'"),
        ({"timeout_s": "5"}, "timeout_s must be 0 or more seconds, not '5'"),
        ({"close_timeout_s": -1}, "close_timeout_s must be 0 or more"),
        ({"tls": True}, "tls must be a TlsConfig"),
        ({"headers": ["x"]}, "headers: a mapping"),
        ({"protocol_keys": "key"}, "protocol_keys: a mapping"),
        ({"headers": {"Bad Name": "x"}}, "header 'Bad Name'"),
        ({"protocol_keys": {"a b": "x"}}, "header"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ConfigurationError, match=says):
        TritonPool("localhost:8001", **options)
