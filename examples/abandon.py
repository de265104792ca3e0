"""Leave thousands of calls behind, with this client or the stock one, on a throw-away server.

``python -m examples.abandon ours`` ends with a server that lives; ``… stock`` ends, on Triton 2.51,
with one that died of it, mostly within seconds. Half of the calls get a time
limit of 0.5 to 5 ms, the other half are cancelled within 4 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as stock_client

from tritonasync import TritonPool
from tritonasync.serving import EmbeddedTriton

ROW = np.ones((1, 16), np.float32)
AT_ONCE = 200

Infer = Callable[[float], Awaitable[object]]
"""One call, with its time limit in seconds."""


@asynccontextmanager
async def ours(url: str):
    async with TritonPool(url, batching=None, close_timeout_s=60) as pool:
        model = pool.model("ident")
        await model(INPUT0=ROW)

        async def infer(timeout_s: float) -> object:
            return await model(INPUT0=ROW, timeout_s=timeout_s)

        yield infer


@asynccontextmanager
async def stock(url: str):
    async with stock_client.InferenceServerClient(url) as client:
        tensor = grpcclient.InferInput("INPUT0", ROW.shape, "FP32")
        tensor.set_data_from_numpy(ROW)

        async def infer(timeout_s: float) -> object:
            return await client.infer("ident", [tensor], client_timeout=timeout_s)

        yield infer


async def abandon(infer: Infer, chance: random.Random) -> int:
    """Make calls and leave them; return how many were answered all the same."""
    loop = asyncio.get_running_loop()
    calls = [
        asyncio.ensure_future(infer(chance.uniform(0.0005, 0.005) if index % 2 else 30.0))
        for index in range(AT_ONCE)
    ]
    for call in calls[::2]:
        loop.call_later(chance.uniform(0, 0.004), call.cancel)
    results = await asyncio.gather(*calls, return_exceptions=True)
    return sum(not isinstance(result, BaseException) for result in results)


async def run(
    client: Callable[[str], AbstractAsyncContextManager[Infer]], calls: int
) -> tuple[bool, int, int]:
    """Return whether the server lives, how many calls were made, and how many were answered."""
    chance, made, answered = random.Random(1), 0, 0
    async with EmbeddedTriton(
        "tests/models", model_control="explicit", load_models=["ident"], metrics=False
    ) as triton:
        async with client(triton.grpc_url) as infer:
            while made < calls and triton.running:
                answered += await abandon(infer, chance)
                made += AT_ONCE
        await asyncio.sleep(1)  # what is out may still end it
        return triton.running, made, answered


def main() -> int:
    """Return 0 if the server lives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("client", choices=["ours", "stock"])
    parser.add_argument("--calls", type=int, default=100_000, help="[%(default)s]")
    options = parser.parse_args()
    began = time.monotonic()
    client = ours if options.client == "ours" else stock
    lives, made, answered = asyncio.run(run(client, options.calls))
    fate = "the server lives" if lives else "THE SERVER DIED"
    print(
        f"{options.client}: {made:,} calls made in {time.monotonic() - began:.1f} s, {answered:,} "
        f"answered before their caller left: {fate}"
    )
    return 0 if lives else 1


if __name__ == "__main__":
    raise SystemExit(main())
