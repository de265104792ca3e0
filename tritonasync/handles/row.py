"""What the handles of one input and one output share: rows in, one answer made of them out.

Owns: binding the two tensors to a signature, once for each, and reading a large answer in a worker
thread. Refuses to know: what the rows mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Generic, TypeVar

import numpy.typing as npt

from tritonasync.core.deadline import NEVER
from tritonasync.core.offload import LONG_NBYTES, in_worker, reply_nbytes
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import Reply
from tritonasync.handles.base import Handle, Prepared, Request
from tritonasync.handles.binding import Binding
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import Casting

_R = TypeVar("_R")


class RowHandle(Handle, ABC, Generic[_R]):
    """A model of which one input is fed and one output read.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        input_name: The input to feed; may be left out if there is only one.
        output_name: The output to read; may be left out if there is only one.
        casting: Which arrays are converted to the model's dtype unasked.
    """

    def __init__(
        self,
        name: str,
        version: str,
        invoker: Invoker,
        catalog: ModelCatalog,
        *,
        timeout_s: float | None,
        input_name: str | None,
        output_name: str | None,
        casting: Casting,
    ) -> None:
        super().__init__(name, version, invoker, catalog, timeout_s=timeout_s, casting=casting)
        self._input_name = input_name
        self._output_name = output_name
        self._bound: tuple[Signature, Binding] | None = None

    @abstractmethod
    def _bind(self, signature: Signature) -> Binding:
        """Choose the tensors, or refuse a model that they do not fit."""

    @abstractmethod
    def _read(self, binding: Binding, reply: Reply, rows: int) -> _R:
        """Make the answer of the output."""

    def _given(self, binding: Binding, value: npt.ArrayLike, *, item: bool) -> object:
        """Return what goes into the input for what the user gave."""
        del binding, item
        return value

    async def _run(self, value: npt.ArrayLike, timeout_s: float | None, *, item: bool) -> _R:
        def prepare(signature: Signature) -> Prepared[tuple[Binding, int]]:
            binding = self._binding(signature)
            given = self._given(binding, value, item=item)
            tensors, rows = binding.tensors(given, item=item)
            names = binding.output_names
            return Prepared(tensors, binding.call_rows(rows), (binding, rows), names)

        def work_nbytes(signature: Signature) -> int:
            binding = self._binding(signature)
            return binding.signature.conversion_nbytes({binding.input.name: value})

        request = Request(self._deadline(timeout_s))
        prepared, reply = await self._infer(prepare, work_nbytes, request)
        binding, rows = prepared.context
        if reply_nbytes(reply) < LONG_NBYTES:
            return self._read(binding, reply, rows)
        read = partial(self._read, binding, reply, rows)
        return await in_worker(read, deadline=NEVER, model=self._name)

    def _binding(self, signature: Signature) -> Binding:
        if self._bound is None or self._bound[0] is not signature:
            self._bound = signature, self._bind(signature)
        return self._bound[1]
