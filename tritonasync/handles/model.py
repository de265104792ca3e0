"""A model by its tensors: named arrays in, named arrays out.

Owns: the options of a call. Refuses to know: what the tensors mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy.typing as npt

from tritonasync.core.errors import InvalidRequestError, ModelNotFoundError
from tritonasync.core.policies import Padding
from tritonasync.core.ports import Invoker, ItemLane, ModelCatalog, StreamInvoker
from tritonasync.core.values import Call, InputTensor, ParameterValue, Reply
from tritonasync.handles.base import Prepared, Request
from tritonasync.handles.named import NamedHandle
from tritonasync.handles.outputs import Outputs, check_single
from tritonasync.handles.ragged import RaggedRows
from tritonasync.handles.sequence import SequenceHandle
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import Casting
from tritonasync.handles.steps import CLOSE_TIMEOUT_S
from tritonasync.handles.stream import Begun, ResponseStream

__all__ = ["ModelHandle", "Outputs"]


_MAX_LANES: Final = 8
"""Short ways of a handle, one for each ``timeout_s``: those who give another each time have no use
of one."""


def _no_lane(call: Call, timeout_s: float) -> None:
    """Say that there is no short way."""
    del call, timeout_s


class ModelHandle(NamedHandle):
    """Any model, called with arrays by input name.

    ``await model({"IMAGE": batch})`` and ``await model(IMAGE=batch)`` are the same call; an input
    whose name is also an option (``outputs``, say) goes into the mapping. Axis 0 of every array is
    the batch, except for models whose ``max_batch_size`` is 0; a batch of more rows than that is
    split into several requests and joined again.

    Arrays are checked against the model's signature before anything is sent. An array of another
    dtype is converted if numpy calls the cast safe; Python's numbers and strings, in lists, take
    the model's dtype. An array that needs no conversion is not copied: do not change it before the
    call is answered.

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
        lane: Callable[[Call, float], ItemLane | None] = _no_lane,
        streamer: StreamInvoker | None = None,
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
        self._find_lane = lane
        self._lanes: dict[float, ItemLane] = {}  # by seconds an item may take
        self._lane_signature: Signature | None = None
        self._no_lane_for: Signature | None = None
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
            **tensors: More arrays by input name.

        Returns:
            The outputs, as views on the received message.

        Raises:
            InvalidInputError: Names, dtypes, shapes or rows do not fit the model.
            UsageError: The model is decoupled.
            DeadlineExceededError: The time ran out; ``stage`` says where.
            TransportError: Nobody answered.
            ServerError: The server answered with an error.
        """
        request = Request(
            self._deadline(timeout_s),
            self._parameters(parameters, priority, queue_timeout_us),
            request_id,
        )
        _, reply = await self._run(self._named(inputs, tensors), outputs, request, item=False)
        return Outputs(reply)

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
            self._lanes
            and (timeout_s is None or isinstance(timeout_s, float | int))  # pyright: ignore[reportUnnecessaryIsInstance]
            and outputs is None
            and parameters is None
            and not (request_id or priority or queue_timeout_us)
        ):
            arrays = tensors if inputs is None else inputs
            lane = self._lanes.get(self._lane_timeout_s if timeout_s is None else timeout_s)
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
        request = Request(
            self._deadline(timeout_s),
            self._parameters(parameters, priority, queue_timeout_us),
            request_id,
        )
        rows, reply = await self._run(self._named(inputs, tensors), outputs, request, item=True)
        if rows:
            check_single(reply, "one item")
        return Outputs(reply, 0 if rows else None)

    def stream(
        self,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        /,
        *,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        priority: int = 0,
        queue_timeout_us: int = 0,
        **tensors: npt.ArrayLike,
    ) -> ResponseStream[Outputs]:
        """Return the responses to one request, as they come: ``async for out in model.stream(…)``.

        For decoupled models, which answer a request with none, one or many; any other model gives
        one. Nothing is sent before the first response is asked for, and the arrays are not to be
        changed until it is there. The further arguments are those of the call on a batch, whose
        rows may not be more than ``max_batch_size``: a stream is not split, nor batched with
        others.

        Args:
            inputs: Arrays by input name.
            timeout_s: Seconds until the first response, from when it is asked for; ``None`` for the
                pool's, ``math.inf`` for no limit.
            idle_timeout_s: Seconds until each later response; ``None`` for the same as
                ``timeout_s``.
            outputs: Names of the outputs wanted; ``None`` for all.
            parameters: Request parameters.
            request_id: Echoed in :attr:`Outputs.request_id`.
            priority: 1 is the highest.
            queue_timeout_us: The longest wait in the server's queue.
            **tensors: More arrays by input name.

        Returns:
            An async iterator, and async context manager, that raises as
            :meth:`ResponseStream.__anext__` says.

        Raises:
            UsageError: An option makes no sense.
        """
        arrays = self._named(inputs, tensors)
        given = self._parameters(parameters, priority, queue_timeout_us)
        request = self._later(timeout_s, idle_timeout_s, given, request_id)

        async def begin() -> Begun:
            known = self._remembered()
            if known is not None and outputs is None and self._padding is None:
                ready = known.ready(arrays, item=False)
                if ready is not None:  # the short way: nothing to convert, nothing to refuse
                    self._check_unsplit(known, ready[1])
                    return await self._begun(self._call(*ready, (), request()))
            return await self._begin(
                lambda signature: self._tensors(signature, arrays, outputs, item=False),
                lambda signature: signature.conversion_nbytes(arrays),
                request(),
            )

        return ResponseStream(self._name, begin, Outputs)

    def sequence(
        self,
        id: int | str | None = None,  # noqa: A002 - Triton's word
        *,
        closing: Mapping[str, npt.ArrayLike] | None = None,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        idle_timeout_s: float | None = None,
    ) -> SequenceHandle:
        """Return a sequence of a stateful model: ``async with model.sequence() as sequence``.

        Args:
            id: A whole number or a string that no other sequence of the model has meanwhile, be it
                another client's; ``None`` for one that nobody has.
            closing: The inputs of the request that closes the sequence, as for a step, where the
                model needs inputs and no step was told ``end=True``.
            close_timeout_s: Seconds that closing may take.
            idle_timeout_s: Seconds without a step after which the sequence is closed; ``None``:
                never from this side.

        Returns:
            What :class:`SequenceHandle` says; it is used once.

        Raises:
            InvalidInputError: The id makes no sense.
            ConfigurationError: A time makes no sense.
        """
        return SequenceHandle(
            self._name,
            self._version,
            self._invoker,
            self._catalog,
            timeout_s=self._timeout_s,
            casting=self._casting,
            streamer=self._streamer,
            number=id,
            closing=closing,
            close_timeout_s=close_timeout_s,
            idle_timeout_s=idle_timeout_s,
        )

    def _open_lane(
        self, signature: Signature, inputs: tuple[InputTensor, ...], timeout_s: float
    ) -> None:
        """Have the next items like this one take the short way."""
        if self._lane_signature is not signature or len(self._lanes) >= _MAX_LANES:
            self._lane_signature = signature
            self._lanes.clear()
        lane = self._lanes.get(timeout_s)
        if (lane is None or not lane.valid) and self._no_lane_for is not signature:
            call = Call(self._name, self._version, inputs, 1, idempotent=self._idempotent)
            lane = self._find_lane(call, timeout_s)
            if lane is None:
                self._no_lane_for = signature  # nor any other; looking costs 2 us
            else:
                self._lanes[timeout_s] = lane

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
                    self._open_lane(known, inputs, request.deadline.timeout_s)
                return rows, await self._send(inputs, rows, (), request)

        def prepare(signature: Signature) -> Prepared[None]:
            return self._tensors(signature, arrays, outputs, item=item)

        def work_nbytes(signature: Signature) -> int:
            return signature.conversion_nbytes(arrays)

        prepared, reply = await self._infer(prepare, work_nbytes, request)
        return prepared.rows, reply

    def _tensors(
        self,
        signature: Signature,
        arrays: Mapping[str, npt.ArrayLike],
        outputs: Sequence[str] | None,
        *,
        item: bool,
    ) -> Prepared[None]:
        """Return a call's tensors, and names of outputs, as the signature has them."""
        names = signature.outputs(outputs)
        if self._padding is None:
            return Prepared(*signature.bind(arrays, item=item), None, names)
        ragged, given = self._padding, self._padding.with_mask(arrays, signature, item=item)
        return Prepared(*signature.bind(given, item=item), None, names, ragged.for_model(signature))
