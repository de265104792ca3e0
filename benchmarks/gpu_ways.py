"""The ways to a model on a GPU that ``benchmarks/gpu.py`` measures, and a race on a side stream."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from tritonasync import MemoryPolicy, TritonPool

try:
    import cupy
    import cupyx
except ImportError:
    cupy = cupyx = None

NO_HELPER = ""
try:
    import tritonclient.grpc.aio as grpcclient
    from tritonclient.utils import cuda_shared_memory as helper
except (ImportError, RuntimeError) as error:
    helper, NO_HELPER = None, str(error)

Call = Callable[[], Awaitable[object]]

LONG = 15_000_000
"""Cycles: about 10 ms of a GPU's."""

RACE_FLOATS = 1 << 18

ROOM = MemoryPolicy(max_nbytes=8 << 30)


def has_gpu() -> bool:
    return cupy is not None and bool(cupy.cuda.is_available())


@dataclass
class Way:
    """One way there and back.

    Attributes:
        name: In the table.
        open: Makes ready for a size; gives a function that makes one caller's call.
        pool: Ours, for its counts; ``None`` for the stock client.
        passes: How often the bytes are moved, each as one of the machine's bandwidths.
    """

    name: str
    open: Callable[[AsyncExitStack, int], Awaitable[Callable[[int], Awaitable[Call]]]]
    passes: tuple[str, ...]
    pool: TritonPool | None = None


def ours(name: str, model: str, pool: TritonPool, kind: str, passes: tuple[str, ...]) -> Way:
    """A way of ours; ``kind`` says what the caller has: ``numpy``, ``cupy`` or a ``lease``."""

    async def open_size(stack: AsyncExitStack, nbytes: int) -> Callable[[int], Awaitable[Call]]:
        handle = pool.model(model)

        async def caller(number: int) -> Call:
            xp = np if kind == "numpy" else cupy
            rows = xp.full((1, nbytes // 4), number, "f4")
            if kind != "lease":
                where = "host" if kind == "numpy" else "gpu"
                return lambda: handle(INPUT0=rows, output_memory=where)
            lending = handle.lease(1, shapes={"INPUT0": (nbytes // 4,)}, memory="cuda")
            slot = await stack.enter_async_context(lending)
            slot["INPUT0"][...] = number
            return lambda: handle(slot, output_memory="gpu")

        return caller

    return Way(name, open_size, passes, pool)


async def our_ways(stack: AsyncExitStack, options: argparse.Namespace) -> list[Way]:
    async def pool(sharing: Any) -> TritonPool:
        made = TritonPool(options.url, shared_memory=sharing, memory=ROOM, batching=None)
        return await stack.enter_async_context(made)

    model = options.model
    ways = [
        ours("wire, numpy", model, await pool("off"), "numpy", ()),
        ours("system, numpy", model, await pool("system"), "numpy", ()),
    ]
    if has_gpu():
        cuda = await pool("cuda")
        ways += [
            ours("cuda, numpy", model, cuda, "numpy", ("host_to_device", "device_to_host")),
            ours("cuda, cupy", model, cuda, "cupy", ("device_to_device", "device_to_device")),
            ours("cuda, lease", model, cuda, "lease", ("device_to_device",)),
        ]
    return ways


async def stock_region(stack: AsyncExitStack, client: Any, name: str, nbytes: int) -> Any:
    made = helper.create_shared_memory_region(name, nbytes, 0)
    stack.callback(helper.destroy_shared_memory_region, made)
    raw = helper.get_raw_handle(made)
    await client.register_cuda_shared_memory(name, raw, 0, nbytes)
    stack.push_async_callback(client.unregister_cuda_shared_memory, name)
    return made


def stock_way(options: argparse.Namespace) -> Way:
    """tritonclient with its CUDA helper: a region for each tensor of each caller."""

    async def open_size(stack: AsyncExitStack, nbytes: int) -> Callable[[int], Awaitable[Call]]:
        client = await stack.enter_async_context(grpcclient.InferenceServerClient(options.url))

        async def caller(number: int) -> Call:
            there = await stock_region(stack, client, f"stock-in-{number}", nbytes)
            await stock_region(stack, client, f"stock-out-{number}", nbytes)
            rows = cupy.full((1, nbytes // 4), number, "f4")
            tensor = grpcclient.InferInput("INPUT0", list(rows.shape), "FP32")
            tensor.set_shared_memory(f"stock-in-{number}", nbytes)
            output = grpcclient.InferRequestedOutput("OUTPUT0")
            output.set_shared_memory(f"stock-out-{number}", nbytes)

            async def call() -> object:
                helper.set_shared_memory_region_from_dlpack(there, [rows])
                return await client.infer(options.model, [tensor], outputs=[output])

            return call

        return caller

    return Way("stock cuda helper, cupy", open_size, ("device_to_device", "device_to_device"))


# --- a race ---------------------------------------------------------------------------------------


class SideStream:
    """Inputs that take 10 ms to compute, on a stream that no other one waits for."""

    def __init__(self) -> None:
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.rows = cupy.zeros((1, RACE_FLOATS), "f4")
        cupy.cuda.runtime.deviceSynchronize()
        self.spin = cupy.RawKernel(
            'extern "C" __global__ void spin(long long cycles) '
            "{ long long begin = clock64(); while (clock64() - begin < cycles) {} }",
            "spin",
        )

    def compute(self) -> Any:
        self.spin((1,), (1,), (LONG,))
        self.rows += 1
        return self.rows


async def race_of_ours(pool: TritonPool, model: str, calls: int) -> int:
    """How many answers were wrong."""
    handle, side, wrong = pool.model(model), SideStream(), 0
    for turn in range(1, calls + 1):
        with side.stream:
            outputs = await handle(INPUT0=side.compute(), output_memory="host")
        wrong += not bool((outputs["OUTPUT0"] == turn).all())
        side.stream.synchronize()
    return wrong


async def race_of_stock(options: argparse.Namespace, calls: int) -> int:
    """The same by tritonclient's helper."""
    side, wrong, shape = SideStream(), 0, [1, RACE_FLOATS]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(grpcclient.InferenceServerClient(options.url))
        there = await stock_region(stack, client, "stock-race-in", RACE_FLOATS * 4)
        back = await stock_region(stack, client, "stock-race-out", RACE_FLOATS * 4)
        tensor = grpcclient.InferInput("INPUT0", shape, "FP32")
        tensor.set_shared_memory("stock-race-in", RACE_FLOATS * 4)
        output = grpcclient.InferRequestedOutput("OUTPUT0")
        output.set_shared_memory("stock-race-out", RACE_FLOATS * 4)
        for turn in range(1, calls + 1):
            with side.stream:
                helper.set_shared_memory_region_from_dlpack(there, [side.compute()])
            await client.infer(options.model, [tensor], outputs=[output])
            answer = helper.get_contents_as_numpy(back, np.float32, shape)
            wrong += not bool((answer == turn).all())
            side.stream.synchronize()
    return wrong
