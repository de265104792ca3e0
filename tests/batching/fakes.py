"""The ports around the batcher: a next stage that answers when told, and a catalog."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import numpy as np

from tritonasync.batching.batcher import MESSAGE_NBYTES, Batcher
from tritonasync.batching.line import Line
from tritonasync.batching.splitter import Splitter
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ModelFailedError
from tritonasync.core.policies import BatchPolicy
from tritonasync.core.values import Array, Call, InputTensor, ModelSpec, Reply, TensorSpec
from tritonasync.handles.model import ModelHandle
from tritonasync.transport.gate import Gate

A = TensorSpec("A", "INT64", (-1, 1))
OUT = TensorSpec("OUT", "INT64", (-1, 1))


def spec(max_batch_size=8, *, inputs=(A,), stateful=False, decoupled=False):
    return ModelSpec(
        "net",
        "",
        ("1",),
        "",
        max_batch_size,
        inputs,
        (OUT,),
        stateful=stateful,
        decoupled=decoupled,
    )


def call(
    *values,
    dtype=np.int64,
    datatype="INT64",
    width=1,
    outputs=(),
    parameters=(),
    request_id="",
    deadline=NEVER,
):
    """A call with one row for each value, which fills all of the row."""
    array = np.repeat(np.array(values, dtype).reshape(-1, 1), width, axis=1)
    return Call(
        "net",
        "",
        (InputTensor("A", datatype, array.shape, (array,)),),
        len(values),
        outputs,
        parameters,
        request_id,
        deadline,
    )


def whole(tensor: InputTensor) -> Array:
    """All rows of an input, whether its parts have the batch axis or not."""
    return np.concatenate([part.ravel() for part in tensor.parts]).reshape(tensor.shape)


def values(sent: Call) -> list[object]:
    """The first element of each row of the first input."""
    return whole(sent.inputs[0])[:, 0].tolist()


def tenfold(sent: Call) -> Reply:
    """The reply of a model that gives each row of its first input ten times over."""
    rows = whole(sent.inputs[0])
    return Reply("net", "1", {"OUT": rows * 10}, sent.request_id)


def failed(text: str = "a row is bad") -> ModelFailedError:
    return ModelFailedError(text, code="INTERNAL", details=text, model="net")


class Catalog:
    """Knows one model; with ``known=False``, only after it was asked."""

    def __init__(self, served: ModelSpec | None = None, *, known: bool = True) -> None:
        self.spec = served or spec()
        self.remembers = known

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        await asyncio.sleep(0)
        self.remembers = True
        return self.spec

    async def renew(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        return await self.describe(model, version, deadline)

    def known(self, model: str, version: str) -> ModelSpec | None:
        return self.spec if self.remembers else None

    def forget(self, model: str) -> None:
        self.remembers = False


class Stage:
    """Answers each call two turns after it came, or (``hold``) when the test says so."""

    def __init__(
        self, answer: Callable[[Call], Reply] = tenfold, *, hold: bool = False, turns: int = 2
    ) -> None:
        self.answer = answer
        self.hold = hold
        self.turns = turns
        self.name = "server"
        self.calls: list[Call] = []
        self.gates: list[asyncio.Future[None]] = []
        self.came = asyncio.Event()

    async def infer(self, sent: Call) -> Reply:
        self.calls.append(sent)
        self.came.set()
        if self.hold:
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.gates.append(gate)
            await gate
        for _ in range(0 if self.hold else self.turns):
            await asyncio.sleep(0)
        return self.answer(sent)

    @property
    def sent(self) -> list[list[object]]:
        """The rows of each call, by their first element."""
        return [values(sent) for sent in self.calls]

    async def until_calls(self, count: int) -> None:
        await until(lambda: len(self.calls) >= count)

    def release(self, *indexes: int) -> None:
        """Let calls be answered: those given, or all that are held."""
        for index in indexes or range(len(self.gates)):
            if not self.gates[index].done():
                self.gates[index].set_result(None)

    def open(self) -> None:
        """Hold nothing any more."""
        self.hold = False
        self.release()


async def until(holds: Callable[[], bool], most: int = 200) -> None:
    """Let the others run until something holds; they need a few turns, never time."""
    for _ in range(most):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def limited(inflight: int = 1, **limits) -> BatchPolicy:
    """A policy whose limit of batches in flight does not move."""
    return BatchPolicy(min_inflight=inflight, max_inflight=inflight, **limits)


def line_to(stage: Stage, policy: BatchPolicy | None = None, catalog: Catalog | None = None):
    """A line of its own, for the tests of what happens within one model."""
    catalog = catalog or Catalog()
    return Line(
        catalog.spec,
        stage,
        catalog,
        policy or limited(),
        lambda: stage.name,
        lambda: 1,
        lambda: MESSAGE_NBYTES,
    )


def start(*coroutines) -> list[asyncio.Task]:
    return [asyncio.ensure_future(coroutine) for coroutine in coroutines]


async def told(*tasks) -> list[object]:
    """What each caller got, an exception as an object; a hang fails after a second."""
    async with asyncio.timeout(1):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def busy(line: Line, stage: Stage, value: int = 900) -> asyncio.Task:
    """Have the one place in flight taken until the stage is opened."""
    stage.hold = True
    (task,) = start(line.infer(call(value)))
    await stage.until_calls(len(stage.calls) + 1)
    return task


class Stack:
    """Handles on a gate, on the stages of a pool, on a scripted stage."""

    def __init__(self, stage, policy=None, catalog=None, *, batching=True):
        self.stage = stage
        self.catalog = catalog or Catalog()
        self.gate = Gate()
        self.gate.open()
        self.batcher = Batcher(stage, self.catalog, policy or limited(), lambda: "server")
        if batching:
            splitter = Splitter(self.batcher, self.catalog)
            self.gate.lead_to(splitter, self.catalog, self.batcher.lane)
        else:
            self.gate.lead_to(Splitter(stage, self.catalog), self.catalog)

    def model(self, timeout_s=None, **options) -> ModelHandle:
        gate = self.gate
        return ModelHandle("net", "", gate, gate, timeout_s=timeout_s, lane=gate.lane, **options)


async def with_lane(stack: Stack, **options) -> ModelHandle:
    """A handle that has found its short way, by a first item."""
    model = stack.model(**options)
    await told(model.one(A=np.zeros(1, np.int64)))
    assert model._lanes.ways
    stack.stage.calls.clear()
    stack.stage.came.clear()
    return model


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fail for a task that is left, and for anything that asyncio logs of a task or a future."""
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    gc.freeze()  # so that collecting looks at what came since, and takes no time
    try:
        yield
        with suppress(AssertionError):
            await until(lambda: not _tasks(), 50)
        assert _tasks() == []
        gc.collect()  # futures tell of what nobody looked at when they are destroyed
        await asyncio.sleep(0)
        assert complaints == []
    finally:
        gc.unfreeze()
        loop.set_exception_handler(handler)


def _tasks() -> list[str]:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    names = [task.get_coro().__qualname__ for task in tasks]
    return [name for name in names if "TestRunner" not in name]
