"""A model by its tensors: named arrays in, named arrays out.

Owns: the options of a call. Refuses to know: what the tensors mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy.typing as npt

from tritonasync.core.errors import InvalidRequestError, ModelNotFoundError
from tritonasync.core.offload import LONG_NBYTES
from tritonasync.core.policies import Padding
from tritonasync.core.ports import Invoker, ModelCatalog, StreamInvoker
from tritonasync.core.values import OutputMemory, ParameterValue, Reply
from tritonasync.handles.base import Prepared, Request
from tritonasync.handles.devices import check_gpu, on_gpu
from tritonasync.handles.flow.bulk import Mappable
from tritonasync.handles.lanes import FindLane, Lanes, no_lane
from tritonasync.handles.lease import LeasedInputs, Lend
from tritonasync.handles.many import ManyHandle
from tritonasync.handles.outputs import Outputs, check_single
from tritonasync.handles.ragged import RaggedRows
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import Casting
from tritonasync.memory.device import is_device_array

__all__ = ["ModelHandle", "Outputs"]


class ModelHandle(ManyHandle, Mappable[Mapping[str, npt.ArrayLike], Outputs]):
    """Any model, called with arrays by input name.

    ``await model({"IMAGE": batch})`` and ``await model(IMAGE=batch)`` are the same call; an input
    whose name is also an option (``outputs``, say) goes into the mapping. Axis 0 of every array is
    the batch, except for models whose ``max_batch_size`` is 0; a batch of more rows than that is
    split into several requests and joined again.

    Arrays are checked against the model's signature before anything is sent. An array of another
    dtype is converted if numpy calls the cast safe; Python's numbers and strings, in lists, take
    the model's dtype. An array that needs no conversion is not copied: do not change it before the
    call is answered.

    Large tensors of a server on this machine lie in shared memory where that pays; then outputs are
    views that keep their part of it in use until the last one is gone (``copy=True`` for those that
    are kept for long).

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        casting: Which arrays are converted to the model's dtype unasked.
        padding: How rows of different lengths share a batch, for a model with a free axis.
        idempotent: Whether it does no harm if the model runs twice. If not, a call is sent again
            only where it certainly did not run, and never hedged.
        lane: Gives the short way of items like those of a call, if there is one.
        streamer: The next stage of calls with many responses; ``None`` for a handle without.
        lend: Where input arrays in shared memory come from; ``None`` for a handle without.
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
        padding: Padding | None = None,
        idempotent: bool = True,
        lane: FindLane = no_lane,
        streamer: StreamInvoker | None = None,
        lend: Lend | None = None,
    ) -> None:
        super().__init__(
            name,
            version,
            invoker,
            catalog,
            timeout_s=timeout_s,
            casting=casting,
            idempotent=idempotent,
        )
        self._padding = None if padding is None else RaggedRows(padding)
        self._streamer = streamer
        self._lend = lend
        self._lanes = Lanes(lane, name, version, idempotent=idempotent)
        self._ways = self._lanes.ways
        self._lane_timeout_s = self._deadline(None).timeout_s

    async def __call__(
        self,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        /,
        *,
        timeout_s: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        priority: int = 0,
        queue_timeout_us: int = 0,
        output_memory: OutputMemory | None = None,
        copy: bool = False,
        **tensors: npt.ArrayLike,
    ) -> Outputs:
        """Run one inference on a batch.

        Args:
            inputs: Arrays by input name.
            timeout_s: Seconds for this call; ``None`` for the pool's, ``math.inf`` for no limit.
            outputs: Names of the outputs wanted; ``None`` for all.
            parameters: Request parameters. Names that begin with ``triton_`` are the server's own.
            request_id: Echoed in :attr:`Outputs.request_id`, and in the server's log.
            priority: 1 is the highest; 0 leaves it to the model's configuration.
            queue_timeout_us: The longest that the request may wait in the server's queue, in
                microseconds, if the model's queue policy allows it to be set; 0 leaves it to the
                model's configuration.
            output_memory: ``"gpu"`` for outputs as CuPy arrays, ``"host"`` for numpy arrays;
                ``None`` for CuPy arrays if an input is on a GPU.
            copy: Whether outputs are copied, so that they may be kept and changed.
            **tensors: More arrays by input name.

        Returns:
            The outputs, as views on the received message or on shared memory.

        Raises:
            InvalidInputError: Names, dtypes, shapes or rows do not fit the model.
            UsageError: The model is decoupled.
            DeadlineExceededError: The time ran out; ``stage`` says where.
            TransportError: Nobody answered.
            ServerError: The server answered with an error.
        """
        if output_memory is not None:
            self._check_memory(output_memory)
        request = Request(
            self._deadline(timeout_s),
            self._parameters(parameters, priority, queue_timeout_us),
            request_id,
            output_memory=output_memory,
            alone=isinstance(inputs, LeasedInputs),
        )
        _, reply = await self._run(self._named(inputs, tensors), outputs, request, item=False)
        return await self._outputs(reply, None, request, copy=copy)

    async def one(
        self,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        /,
        *,
        timeout_s: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        priority: int = 0,
        queue_timeout_us: int = 0,
        output_memory: OutputMemory | None = None,
        copy: bool = False,
        **tensors: npt.ArrayLike,
    ) -> Outputs:
        """Run one inference on one item: arrays without the batch axis, in and out.

        For a model whose ``max_batch_size`` is 0 there is no batch axis, and arrays pass unchanged.
        The arguments are those of the call on a batch.

        Returns:
            The outputs of the item, as views on the received message.

        Raises:
            InvalidInputError: Names, dtypes or shapes do not fit the model.
            UsageError: The model is decoupled.
            DeadlineExceededError: The time ran out; ``stage`` says where.
            TransportError: Nobody answered; ``ProtocolError`` if an output has not one row.
            ServerError: The server answered with an error.
        """
        if (
            self._ways
            and (timeout_s is None or isinstance(timeout_s, float | int))  # pyright: ignore[reportUnnecessaryIsInstance]
            and outputs is None
            and parameters is None
            and not (request_id or priority or queue_timeout_us or output_memory or copy)
        ):
            arrays = tensors if inputs is None else inputs
            lane = self._ways.get(self._lane_timeout_s if timeout_s is None else timeout_s)
            if lane is not None and arrays.__class__ is dict and (arrays is tensors or not tensors):
                landed = lane.enter(arrays)
                if landed is not None:
                    try:
                        answer = await landed
                    except (InvalidRequestError, ModelNotFoundError):
                        self._doubt_signature()
                        raise
                    if answer is not None:
                        reply, row = answer
                        return Outputs(reply, row)
        if output_memory is not None:
            self._check_memory(output_memory)
        request = Request(
            self._deadline(timeout_s),
            self._parameters(parameters, priority, queue_timeout_us),
            request_id,
            output_memory=output_memory,
        )
        rows, reply = await self._run(self._named(inputs, tensors), outputs, request, item=True)
        if rows:
            check_single(reply, "one item")
        return await self._outputs(reply, 0 if rows else None, request, copy=copy)

    def _check_memory(self, output_memory: OutputMemory) -> None:
        if output_memory not in get_args(OutputMemory):
            raise self._refuse(
                f"output_memory is one of {', '.join(get_args(OutputMemory))}, not "
                f"{output_memory!r}"
            )
        if output_memory == "gpu":
            check_gpu()

    @staticmethod
    async def _outputs(reply: Reply, row: int | None, request: Request, *, copy: bool) -> Outputs:
        outputs = Outputs(reply, row)
        if request.on_gpu:
            return await on_gpu(outputs, request.deadline, copy=copy)
        return outputs.copy() if copy else outputs

    async def _run(
        self,
        arrays: Mapping[str, npt.ArrayLike],
        outputs: Sequence[str] | None,
        request: Request,
        *,
        item: bool,
    ) -> tuple[int, Reply]:
        """Return the rows of the call (0 for a model without a batch axis) and its reply."""
        known = self._remembered()
        if (
            known is not None
            and outputs is None
            and self._padding is None
            and not known.spec.decoupled
        ):
            ready = known.ready(arrays, item=item)
            if ready is not None:  # the short way: nothing to convert, nothing to refuse
                inputs, rows = ready
                if item and rows:
                    self._lanes.open(known, inputs, request.deadline.timeout_s)
                return rows, await self._send(inputs, rows, (), request)

        def prepare(signature: Signature) -> Prepared[None]:
            return self._tensors(signature, arrays, outputs, item=item)

        def work_nbytes(signature: Signature) -> int:
            fetched = self._padding is not None and any(map(is_device_array, arrays.values()))
            return signature.conversion_nbytes(arrays) + LONG_NBYTES * fetched

        prepared, reply = await self._infer(prepare, work_nbytes, request)
        return prepared.rows, reply
