"""Steady load in shared memory, clients of other processes, and what all of it may leave: nothing.

``python -m tests.faults.shared URL`` is such a client: see :func:`living`.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from anyio import to_thread

from tests.faults.load import Load
from tests.transport.scripted import make_endpoint
from tritonasync import MemoryPolicy, TritonPool
from tritonasync.core.deadline import Deadline
from tritonasync.core.values import Array
from tritonasync.handles.model import ModelHandle
from tritonasync.memory.guard import SHM_FOLDER, guard_name, guard_of
from tritonasync.memory.lender import MemoryStatistics
from tritonasync.serving import EmbeddedTriton
from tritonasync.transport.regions import RegionControl

MODEL = "negate"
WIDTHS = (16_384, 24_576, 32_768)
"""64 to 128 KiB."""
IMAGE = 150_528
"""A row of 602,112 bytes, as of an image."""


def server() -> EmbeddedTriton:
    """A server that negates, and may be killed; not yet started."""
    return EmbeddedTriton(
        "tests/models", model_control="explicit", load_models=[MODEL], metrics=False
    )


# --- what is sent ---------------------------------------------------------------------------------

_RAMP = np.arange(IMAGE * 8, dtype=np.float32) % 251


LEAST = 64 << 10
"""Rows of the tests have a place from here on: small ones make more calls."""


def sharing_pool(urls: str | list[str], **options: Any) -> TritonPool:
    """Return a pool that places the tests' rows."""
    return TritonPool(urls, **{"memory": MemoryPolicy(min_nbytes=LEAST), **options})


def content(number: int, width: int = WIDTHS[0], rows: int = 1) -> Array:
    """Return rows of which no value is that of another number's, nor 0, in the same place.

    The numbers are told apart until they differ by 65,536. Rows differ from each other, too.
    """
    values = _RAMP[: rows * width] + np.float32(1 + 256 * (number % 65_536))
    return values.reshape(rows, width)


class SharedLoad(Load):
    """Callers whose rows are large and all different; answers are kept and looked at twice.

    Of each caller's calls some have one row, some several, some lend their input's place.

    Args:
        pool: The pool.
        widths: How wide rows are, in turn.
        delay_ms: How long the server takes.
        options: What :class:`Load` takes.
    """

    def __init__(
        self,
        pool: TritonPool,
        *,
        widths: tuple[int, ...] = WIDTHS,
        delay_ms: float = 0.0,
        callers: int = 24,
        leases: bool = True,
        **options,
    ) -> None:
        super().__init__(pool, callers=callers, **options)
        self._model = pool.model(MODEL)
        self._widths = widths
        self._delay_ms = delay_ms
        self._leases = leases
        self._kept: dict[asyncio.Task, tuple[int, Array, Array]] = {}

    async def _call(self, number: int) -> None:
        self.tally.sent += 1
        width = self._widths[number % len(self._widths)]
        rows = (1, 1, 2, 4)[number // 2 % 4]
        sent = content(number, width, rows)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answer = await self._ask(number, sent)
        except Exception as error:
            self.tally.errors[f"{type(error).__name__}: {error}"] += 1
            return
        self.tally.slowest_s = max(self.tally.slowest_s, loop.time() - began)
        self.tally.count += 1
        if self._remember:
            self.tally.answered[number] += 1
        self._look(number, sent, answer)

    async def _ask(self, number: int, sent: Array) -> Array:
        inputs: dict[str, Array] = {}
        if self._delay_ms:
            inputs["DELAY_MS"] = np.full((len(sent), 1), self._delay_ms, np.float32)
        if self._leases and number % 8 == 5:
            shapes = {name: array.shape[1:] for name, array in {"INPUT0": sent, **inputs}.items()}
            async with self._model.lease(
                len(sent), shapes=shapes, timeout_s=self._timeout_s
            ) as slot:
                for name, array in {"INPUT0": sent, **inputs}.items():
                    slot[name][...] = array
                return (await self._model(slot, timeout_s=self._timeout_s))["OUTPUT0"]
        if len(sent) == 1:
            one = {name: array[0] for name, array in {"INPUT0": sent, **inputs}.items()}
            return (await self._model.one(one, timeout_s=self._timeout_s))["OUTPUT0"][None]
        inputs["INPUT0"] = sent
        return (await self._model(inputs, timeout_s=self._timeout_s))["OUTPUT0"]

    def _look(self, number: int, sent: Array, answer: Array) -> None:
        """Check an answer, and the caller's one before, which is still its own."""
        if answer.shape != sent.shape or not (answer == -sent).all():
            self.tally.wrong.append(number)
        caller = asyncio.current_task()
        before = self._kept.pop(caller, None)
        if before is not None and not (before[2] == -before[1]).all():
            self.tally.wrong.append(before[0])
        if not self._stop:
            self._kept[caller] = number, sent, answer

    async def __aexit__(self, *exc: object) -> None:
        await super().__aexit__(*exc)
        self._kept.clear()


# --- single calls ---------------------------------------------------------------------------------


def slow(number: int, delay_ms: float, *, width: int = WIDTHS[0]) -> dict[str, Array]:
    """Return inputs of one row that takes a while."""
    return {"INPUT0": content(number, width), "DELAY_MS": np.full((1, 1), delay_ms, np.float32)}


async def learned(pool: TritonPool, width: int = WIDTHS[0]) -> ModelHandle:
    """Return the model, of which the pool knows by now how large its outputs are."""
    model = pool.model(MODEL)
    for number in range(2 * len(pool.statistics().endpoints)):
        await model(INPUT0=content(number, width))
    return model


async def check(model: ModelHandle, number: int, *, width: int = WIDTHS[0], rows: int = 1) -> Array:
    """Make a call; return its answer, which is right."""
    sent = content(number, width, rows)
    answer = (await model(INPUT0=sent))["OUTPUT0"]
    assert (answer == -sent).all()
    return answer


# --- what is left ---------------------------------------------------------------------------------


def files_of(guard: str) -> list[str]:
    """Return the files of regions that are under a guard, in the shared-memory folder."""
    names = [path.name for path in SHM_FOLDER.iterdir()]
    return sorted(name for name in names if name != guard and guard_name(name) == guard)


def own_files() -> list[str]:
    """Return the files of this process's regions."""
    return files_of(guard_of().name)


async def names_on(url: str) -> list[str]:
    """Return the names of all regions that a server knows, whoever registered them."""
    endpoint = make_endpoint(url)
    try:
        found = await RegionControl(endpoint).names("system", Deadline.after(20))
    finally:
        await endpoint.aclose(Deadline.after(10))
    return sorted(region.name for region in found)


def system(pool: TritonPool) -> MemoryStatistics:
    """Return what the pool's shared memory has and has done."""
    return pool.statistics().memory["system"]


def placed(pool: TritonPool) -> list[int]:
    """Return how many calls each endpoint has had by shared memory."""
    return [endpoint.sharing.placed for endpoint in pool.statistics().endpoints]


async def until(condition, seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def until_empty(pool: TritonPool) -> None:
    """Wait until no slot is out."""
    await until(lambda: not system(pool).in_use)
    assert not system(pool).retired


async def check_nothing_is_left(servers: list[EmbeddedTriton]) -> None:
    """Fail if closed pools have left a file of this process's, or a name on a server."""
    gc.collect()
    assert own_files() == []
    for triton in servers:
        assert await names_on(triton.grpc_url) == []


# --- clients of other processes -------------------------------------------------------------------


class Client:
    """A client in another process, with a pool open and a region registered.

    Args:
        process: The process.

    Attributes:
        guard: The name of its guard, with which those of its regions begin.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.guard = ""

    async def hear(self) -> str:
        """Return the next line that it says."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            return (await to_thread.run_sync(self.process.stdout.readline)).strip()

    async def call(self) -> str:
        """Have it make calls; return whether it was answered rightly, and by shared memory."""
        assert self.process.stdin is not None
        self.process.stdin.write("call\n")
        self.process.stdin.flush()
        return await self.hear()

    def kill(self) -> None:
        """Kill it without a warning."""
        self.process.kill()
        self.process.wait()


@asynccontextmanager
async def living(url: str) -> AsyncIterator[Client]:
    """Have a client live, until it is killed or the end; it closes its pool at the end."""
    client = Client(
        subprocess.Popen(  # noqa: ASYNC220 - a millisecond
            [sys.executable, "-Werror", "-m", "tests.faults.shared", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    try:
        client.guard = await client.hear()
        assert client.guard
        yield client
        if client.process.poll() is None:
            client.process.communicate(timeout=30)
            assert client.process.returncode == 0
    finally:
        client.kill()
        client.process.communicate()


async def _live(url: str) -> None:
    async with sharing_pool(url) as pool:
        await _call(pool)
        print(guard_of().name, flush=True)  # noqa: T201 - how it is heard
        while await to_thread.run_sync(sys.stdin.readline):
            print(await _call(pool), flush=True)  # noqa: T201


async def _call(pool: TritonPool) -> str:
    before, model = sum(placed(pool)), pool.model(MODEL)
    for number in range(10):
        sent = content(number, rows=2)
        if not ((await model(INPUT0=sent))["OUTPUT0"] == -sent).all():
            return "wrong"
    return "right" if sum(placed(pool)) == before + 10 else "on the wire"


if __name__ == "__main__":
    asyncio.run(_live(sys.argv[1]))
