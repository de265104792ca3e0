"""One caller, 64-byte rows: the time of a call, ours against tritonclient's ``grpc.aio``."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from collections.abc import Awaitable, Callable

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio

from benchmarks.samples import Figure
from tritonasync import TritonPool
from tritonasync.serving import EmbeddedTriton

Once = Callable[[], Awaitable[object]]


async def measure(*, quick: bool) -> list[Figure]:
    """Measure p50 and client CPU per call, in rounds that alternate between the two clients."""
    rounds, calls = (5, 200) if quick else (15, 600)
    async with (
        EmbeddedTriton("tests/models") as triton,
        TritonPool(triton.grpc_url) as pool,
        tritonclient.grpc.aio.InferenceServerClient(triton.grpc_url) as stock,
    ):
        row = np.random.default_rng(0).random((1, 16), dtype=np.float32)
        model = pool.model("ident")

        async def ours() -> object:
            outputs = await model({"INPUT0": row})
            return outputs["OUTPUT0"]

        async def theirs() -> object:
            tensor = tritonclient.grpc.InferInput("INPUT0", [1, 16], "FP32")
            tensor.set_data_from_numpy(row)
            answer = await stock.infer("ident", [tensor])
            return answer.as_numpy("OUTPUT0")

        for once in (ours, theirs):
            np.testing.assert_array_equal(await once(), row)
            await _round(once, calls)  # warm up
        samples = {ours: [], theirs: []}
        for index in range(rounds):
            pair = (ours, theirs) if index % 2 else (theirs, ours)
            for once in pair:
                samples[once].append(await _round(once, calls))
    return [
        Figure(name, "µs", [s[i] for s in samples[ours]], [s[i] for s in samples[theirs]], goal)
        for i, (name, goal) in enumerate(
            [("one caller, 64 B rows: p50", 1.0), ("one caller, 64 B rows: client CPU a call", 1.0)]
        )
    ]


async def _round(once: Once, calls: int) -> tuple[float, float]:
    """Return the p50 of a call and the client's CPU a call, both in µs."""
    latencies = []
    before = _cpu_s()
    for _ in range(calls):
        began = time.perf_counter()
        await once()
        latencies.append(time.perf_counter() - began)
    return statistics.median(latencies) * 1e6, (_cpu_s() - before) / calls * 1e6


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run(*, quick: bool) -> list[Figure]:
    """Measure, and return the figures."""
    return asyncio.run(measure(quick=quick))
