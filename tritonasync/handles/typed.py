"""What typed handles share: from what a user gives to tensors, and from a reply to results.

Owns: binding the tensors to a signature, once for each; the order of a call's steps; doing long
ones in a worker thread; an architecture of the user's in place of the handle's own steps. Refuses
to know: what the rows mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar, cast

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConfigurationError
from tritonasync.core.offload import LONG_NBYTES, in_worker, reply_nbytes
from tritonasync.core.policies import Padding
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import Array, InputTensor, Reply
from tritonasync.handles.architecture import Plug
from tritonasync.handles.base import Handle, Prepared, Request
from tritonasync.handles.binding import Binding, bind_all
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import Casting
from tritonasync.handles.vision.images import held

_R = TypeVar("_R")
_C = TypeVar("_C")


@dataclass(slots=True)  # not frozen: made for each call
class Feed(Generic[_C]):
    """What goes into a model for what a user gave.

    Attributes:
        tensors: The model's inputs.
        rows: How many rows they have.
        context: What is needed to understand the reply.
        padding: How the rows may be filled up to share a batch with longer ones.
    """

    tensors: tuple[InputTensor, ...]
    rows: int
    context: _C
    padding: Padding | None = None


class TypedHandle(Handle, ABC, Generic[_R, _C]):
    """A model whose inputs and outputs mean something: ``_R`` is what a batch is answered with.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        casting: Which arrays are converted to the model's dtype unasked.
        plug: An architecture of the user's, which takes the place of the handle's own steps.
    """

    def __init__(
        self,
        name: str,
        version: str,
        invoker: Invoker,
        catalog: ModelCatalog,
        *,
        timeout_s: float | None,
        casting: Casting = "safe",
        plug: Plug | None = None,
    ) -> None:
        super().__init__(name, version, invoker, catalog, timeout_s=timeout_s, casting=casting)
        self._plug = plug
        self._bound: tuple[Signature, Binding] | None = None

    # --- what each kind of handle does in its own way ---

    @abstractmethod
    def _bind(self, signature: Signature) -> Binding:
        """Choose the tensors, or refuse a model that they do not fit."""

    @abstractmethod
    def _feed(self, binding: Binding, value: object, *, item: bool, deadline: Deadline) -> Feed[_C]:
        """Make the model's inputs of what the user gave; may run in a worker thread."""

    @abstractmethod
    def _work_nbytes(self, binding: Binding, value: object, *, item: bool) -> int:
        """Return about how many bytes :meth:`_feed` will write."""

    @abstractmethod
    def _read(self, binding: Binding, reply: Reply, rows: int, context: _C) -> _R:
        """Make the results of the outputs; may run in a worker thread."""

    @abstractmethod
    def _adopt(self, made: object, rows: int, reply: Reply) -> _R:
        """Return what an architecture's ``postprocess`` gave as results, or refuse it."""

    def _reading_nbytes(self, reply: Reply) -> int:
        """Return about how many bytes of work it is to read a reply."""
        return reply_nbytes(reply)

    async def _learn(
        self, binding: Binding, inputs: tuple[InputTensor, ...], reply: Reply, deadline: Deadline
    ) -> None:
        """Ask for what :meth:`_read` and :meth:`_adopt` need besides; see :meth:`_lacks`."""

    def _open_lane(
        self, binding: Binding, value: object, feed: Feed[_C], deadline: Deadline
    ) -> None:
        """Have the next items like one that was answered take a shorter way, if there is one."""

    def _lacks(self, binding: Binding) -> bool:
        """Return whether :meth:`_learn` is to be called before the reply is read."""
        del binding
        return False

    # --- a call ---

    async def _run(self, value: object, timeout_s: float | None, *, item: bool) -> _R:
        deadline, value = self._deadline(timeout_s), held(value)
        if self._plug is not None:
            return await self._run_plug(self._plug, value, deadline, item=item)

        def prepare(signature: Signature) -> Prepared[tuple[Binding, Feed[_C]]]:
            binding = self._binding(signature)
            feed = self._feed(binding, value, item=item, deadline=deadline)
            rows, names = binding.call_rows(feed.rows), binding.output_names
            return Prepared(feed.tensors, rows, (binding, feed), names, feed.padding)

        def work_nbytes(signature: Signature) -> int:
            return self._work_nbytes(self._binding(signature), value, item=item)

        prepared, reply = await self._infer(prepare, work_nbytes, Request(deadline))
        binding, feed = prepared.context
        if item:
            self._open_lane(binding, value, feed, deadline)
        if self._lacks(binding):
            await self._learn(binding, feed.tensors, reply, deadline)
        if self._reading_nbytes(reply) < LONG_NBYTES:
            return self._read(binding, reply, feed.rows, feed.context)
        read = partial(self._read, binding, reply, feed.rows, feed.context)
        return await in_worker(read, deadline=NEVER, model=self._name)

    def _binding(self, signature: Signature) -> Binding:
        bound = self._bound  # read once: worker threads bind as well
        if bound is None or bound[0] is not signature:
            bound = self._bound = signature, self._bind(signature)
        return bound[1]

    # --- a call by an architecture of the user's ---

    async def _run_plug(self, plug: Plug, value: object, deadline: Deadline, *, item: bool) -> _R:
        items = None if plug.preprocess is None else plug.items(value, item=item)

        def prepare(signature: Signature) -> Prepared[_Plugged[_C]]:
            if items is None:
                fed = self._fed(signature, value, deadline, item=item)
            elif plug.postprocess is None:
                given = plug.alone(plug.given(items), self._binding(signature))
                fed = self._fed(signature, given, deadline, item=False)
                self._check_count(plug, fed.feed.rows, len(items))
            else:
                fed = self._plugged(plug, items, signature)
            rows, names = fed.binding.call_rows(fed.feed.rows), fed.binding.output_names
            return Prepared(fed.feed.tensors, rows, fed, names, fed.feed.padding)

        def work_nbytes(signature: Signature) -> int:
            del signature
            return LONG_NBYTES  # nobody knows; the user's code must not hold up the event loop

        prepared, reply = await self._infer(prepare, work_nbytes, Request(deadline))
        fed = prepared.context
        if self._lacks(fed.binding):
            await self._learn(fed.binding, fed.feed.tensors, reply, deadline)

        def finish() -> _R:
            rows = fed.feed.rows
            if plug.postprocess is None:
                return self._read(fed.binding, reply, rows, fed.feed.context)
            outputs = floats_of(fed.binding, reply, rows)
            made = plug.results(outputs, fed.context, model=self._name)
            return self._adopt(made, rows if items is None else len(items), reply)

        return await in_worker(finish, deadline=NEVER, model=self._name)

    def _fed(
        self, signature: Signature, value: object, deadline: Deadline, *, item: bool
    ) -> _Plugged[_C]:
        """Feed the model as without an architecture."""
        binding = self._binding(signature)
        return _Plugged(binding, self._feed(binding, value, item=item, deadline=deadline))

    def _check_count(self, plug: Plug, made: int, items: int) -> None:
        if made != items:
            raise ConfigurationError(
                f"model {self._name!r}: expected the preprocess of {plug.subject} to give as many "
                f"rows as items, {items}, got {made}",
                model=self._name,
            )

    def _plugged(self, plug: Plug, items: Sequence[object], signature: Signature) -> _Plugged[_C]:
        """Feed the model with what an architecture made."""
        binding = bind_all(signature)
        inputs, context = plug.inputs(plug.given(items), binding)
        tensors, rows = binding.bind(inputs, item=False)
        return _Plugged(binding, Feed(tensors, rows, cast("_C", None)), context)  # not read then


@dataclass(slots=True)
class _Plugged(Generic[_C]):
    """A call that an architecture has a part in, and the context for its ``postprocess``."""

    binding: Binding
    feed: Feed[_C]
    context: object = None


def floats_of(binding: Binding, reply: Reply, rows: int) -> Mapping[str, Array]:
    """Return the outputs by name, floating-point ones as float32."""
    return {
        output.name: binding.floats(reply, output, rows)
        if output.datatype in ("FP16", "BF16", "FP32", "FP64")
        else binding.array(reply, output, rows)
        for output in binding.outputs
    }
