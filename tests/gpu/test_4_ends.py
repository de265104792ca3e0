"""Servers that restart, clients that are killed, and very many calls."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tritonasync import TritonPool
from tritonasync.memory.janitor import sweep

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")

pytestmark = pytest.mark.anyio

N = 1 << 18
CALLS = int(os.environ.get("TRITONASYNC_GPU_CALLS", "100000"))
ROOT = Path(__file__).parents[2]

CLIENT = """
import asyncio, sys
import numpy as np
from tritonasync import TritonPool

async def main():
    async with TritonPool(sys.argv[1], shared_memory="cuda") as pool:
        model = pool.model("ident_gpu")
        while True:
            await model(INPUT0=np.ones((1, 262144), np.float32))
            print("answered", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_server_that_restarts_is_used_on(server, how):
    async with TritonPool(server.url, shared_memory="cuda") as pool:
        model = pool.model("ident_gpu")
        for turn in range(4):
            rows = np.full((1, N), turn, np.float32)
            outputs = await model(INPUT0=rows)
            assert (outputs["OUTPUT0"] == rows).all()
            if turn % 2 == 0:
                server.stop(how)
                server.start()


def killed_client(url):
    """The process id of a client that was killed in the midst of its calls."""
    program = [sys.executable, "-c", CLIENT, url]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=ROOT) as client:
        for _ in range(20):
            assert client.stdout.readline() == "answered\n"
        client.kill()
    return client.pid


def files_of(pid):
    return list(Path("/dev/shm").glob(f"ta-{pid}-*"))


async def test_a_client_that_is_killed_leaves_the_server_and_others_in_peace(server):
    pid = killed_client(server.url)
    assert files_of(pid)
    async with TritonPool(server.url, shared_memory="cuda") as pool:
        rows = np.ones((1, N), np.float32)
        outputs = await pool.model("ident_gpu")(INPUT0=rows)
        assert (outputs["OUTPUT0"] == rows).all()
    sweep("/dev/shm")
    assert not files_of(pid)


@pytest.mark.timeout(1800)
async def test_memory_does_not_grow_with_calls(server):
    async with TritonPool(server.url, shared_memory="cuda", batching=None) as pool:
        model = pool.model("ident_gpu")
        rows = cupy.ones((1, 16_384), "f4")

        async def calls(count):
            for _ in range(count):
                await model(INPUT0=rows)
            cupy.cuda.runtime.deviceSynchronize()
            free, _ = cupy.cuda.runtime.memGetInfo()
            return free, psutil.Process().memory_info().rss

        free, rss = await calls(CALLS // 10)
        free_after, rss_after = await calls(CALLS)
    assert free - free_after < 32 << 20
    assert (rss_after - rss) / CALLS < 50  # bytes a call
