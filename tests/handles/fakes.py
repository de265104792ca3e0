"""Stand-ins for the two ports beneath a handle: a counting catalog, a model in Python."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from tritonasync.core.deadline import Deadline
from tritonasync.core.values import (
    Array,
    Call,
    ClassQuestion,
    InputTensor,
    ModelSpec,
    Reply,
    TensorSpec,
)

Model = Callable[[Call], Mapping[str, Array] | Reply]


def spec(
    inputs,
    outputs=(("OUT", "FP32", (-1, 4)),),
    *,
    name="net",
    max_batch_size=8,
    decoupled=False,
    stateful=False,
):
    """A signature; tensors are (name, datatype, shape) or TensorSpec."""
    return ModelSpec(
        name,
        "",
        ("1",),
        "python",
        max_batch_size,
        tuple(t if isinstance(t, TensorSpec) else TensorSpec(*t) for t in inputs),
        tuple(t if isinstance(t, TensorSpec) else TensorSpec(*t) for t in outputs),
        decoupled=decoupled,
        stateful=stateful,
    )


class FakeCatalog:
    """Remembers like the real one; ``serve`` is a reload on the server, seen after ``forget``."""

    def __init__(self, served: ModelSpec) -> None:
        self.served: ModelSpec | Exception = served
        self.asked = 0
        self.deadlines: list[Deadline] = []
        self._known: ModelSpec | None = None
        self.class_names: tuple[str, ...] = ()
        self.in_folder = False
        self.questions: list[ClassQuestion | None] = []
        self._labels: tuple[str, ...] | None = None

    async def describe(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        self.deadlines.append(deadline)
        if self._known is None:
            self.asked += 1
            if isinstance(self.served, Exception):
                raise self.served
            self._known = self.served
        return self._known

    async def renew(self, model: str, version: str, deadline: Deadline) -> ModelSpec:
        self.deadlines.append(deadline)
        self.asked += 1
        if isinstance(self.served, Exception):
            raise self.served
        self._known = self.served
        return self._known

    def known(self, model: str, version: str) -> ModelSpec | None:
        return self._known

    def forget(self, model: str) -> None:
        self._known = None
        self._labels = None

    def known_labels(self, model, version, output, *, asking):
        self.asking = asking
        return self._labels

    async def labels(self, spec, output, question, deadline):
        """What the model's folder says, or the server, if it is asked."""
        self.questions.append(question)
        if question is not None or self.in_folder:
            self._labels = self.class_names
        return self.class_names if question is not None or self.in_folder else ()


END = object()


class FakeResponses:
    """What a test tells it: replies (or their arrays), errors, ``END``; it waits for more of them.

    Cancelled at the first it is left, as the port says; woken when it is left.
    """

    def __init__(self, call: Call, script: Iterable[object]) -> None:
        self.call = call
        self.left = 0
        self.asked = 0
        self._script = deque(script)
        self._news = asyncio.Event()

    def tell(self, *items: object) -> None:
        self._script.extend(items)
        self._news.set()

    def __aiter__(self):
        return self

    async def __anext__(self) -> Reply:
        self.asked += 1
        first = self.asked == 1
        try:
            while not (self._script or self.left):
                self._news.clear()
                await self._news.wait()
        except asyncio.CancelledError:
            self.left += first
            raise
        if self.left or self._script[0] is END:
            raise StopAsyncIteration
        if isinstance(self._script[0], Exception):
            raise self._script.popleft()  # by no name, or it would refer to itself by this frame
        item = self._script.popleft()
        if isinstance(item, Reply):
            return item
        return Reply(self.call.model, "1", dict(item), self.call.request_id)

    def leave(self) -> None:
        self.left += 1
        self._news.set()


class FakeInvoker:
    """Answers by a function, streams by a script, and keeps what it was asked."""

    def __init__(self, model: Model = dict, script: Iterable[object] = ()) -> None:
        self.model = model
        self.script = tuple(script)
        self.calls: list[Call] = []
        self.streams: list[FakeResponses] = []

    def stream(self, call: Call) -> FakeResponses:
        self.streams.append(FakeResponses(call, self.script))
        return self.streams[-1]

    async def infer(self, call: Call) -> Reply:
        self.calls.append(call)
        answer = self.model(call)
        if isinstance(answer, Reply):
            return answer
        return Reply(call.model, "1", dict(answer), call.request_id)


def whole(tensor: InputTensor) -> Array:
    return np.concatenate(tensor.parts)


def tensor(call: Call, name: str) -> Array:
    return whole(next(t for t in call.inputs if t.name == name))
