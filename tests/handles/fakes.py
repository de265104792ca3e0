"""Stand-ins for the two ports beneath a handle: a counting catalog, a model in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tritonasync.core.deadline import Deadline
from tritonasync.core.values import Array, Call, InputTensor, ModelSpec, Reply, TensorSpec

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


class FakeInvoker:
    """Answers by a function and keeps what it was asked."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.calls: list[Call] = []

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
