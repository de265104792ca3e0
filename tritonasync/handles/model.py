"""A model by its tensors: named arrays in, named arrays out.

Owns: the options of a call. Refuses to know: what the tensors mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy.typing as npt

from tritonasync.core.errors import InvalidInputError, ProtocolError
from tritonasync.core.values import Array, Parameters, ParameterValue, Reply
from tritonasync.handles.base import Handle, Prepared, Request
from tritonasync.handles.outputs import Outputs
from tritonasync.handles.signature import Signature

__all__ = ["ModelHandle", "Outputs"]


class ModelHandle(Handle):
    """Any model, called with arrays by input name.

    ``await model({"IMAGE": batch})`` and ``await model(IMAGE=batch)`` are the same call; an input
    whose name is also an option (``outputs``, say) goes into the mapping. Axis 0 of every array is
    the batch, except for models whose ``max_batch_size`` is 0; a batch of more rows than that is
    split into several requests and joined again.

    Arrays are checked against the model's signature before anything is sent. An array of another
    dtype is converted if numpy calls the cast safe; Python's numbers and strings, in lists, take
    the model's dtype. An array that needs no conversion is not copied: do not change it before the
    call is answered.
    """

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
        request = Request(
            self._deadline(timeout_s),
            self._parameters(parameters, priority, queue_timeout_us),
            request_id,
        )
        rows, reply = await self._run(self._named(inputs, tensors), outputs, request, item=True)
        return Outputs(reply, _single(reply) if rows else None)

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
        if known is not None and outputs is None and not known.spec.decoupled:
            ready = known.ready(arrays, item=item)
            if ready is not None:  # the short way: nothing to convert, nothing to refuse
                inputs, rows = ready
                return rows, await self._send(inputs, rows, (), request)

        def prepare(signature: Signature) -> Prepared[None]:
            names = signature.outputs(outputs)
            inputs, rows = signature.bind(arrays, item=item)
            return Prepared(inputs, rows, None, names)

        def work_nbytes(signature: Signature) -> int:
            return signature.conversion_nbytes(arrays)

        prepared, reply = await self._infer(prepare, work_nbytes, request)
        return prepared.rows, reply

    def _named(
        self,
        inputs: Mapping[str, npt.ArrayLike] | None,
        tensors: Mapping[str, npt.ArrayLike],
    ) -> Mapping[str, npt.ArrayLike]:
        if inputs is None:
            return tensors
        if not isinstance(inputs, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._refuse(
                f"expected a mapping of input names to arrays, got {type(inputs).__name__}: "
                "await model({'NAME': array}) or model(NAME=array)"
            )
        if not tensors:
            return inputs
        twice = inputs.keys() & tensors.keys()
        if twice:
            names = ", ".join(sorted(map(repr, twice)))
            raise self._refuse(f"given twice, in the mapping and by keyword: {names}")
        return {**inputs, **tensors}

    def _parameters(
        self,
        parameters: Mapping[str, ParameterValue] | None,
        priority: int,
        queue_timeout_us: int,
    ) -> Parameters:
        if not (parameters or priority or queue_timeout_us):
            return ()
        if not isinstance(parameters, Mapping | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._refuse(f"parameters is a mapping of names to values, not {parameters!r}")
        given = dict(parameters or {})
        for option, name, value in (
            ("priority", "priority", priority),
            ("queue_timeout_us", "timeout", queue_timeout_us),
        ):
            if not isinstance(value, int) or value < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise self._refuse(f"{option} is a whole number from 0 on, not {value!r}")
            if value and name in given:
                raise self._refuse(f"{option}={value} and parameters[{name!r}] are the same thing")
            if value:
                given[name] = value
        return tuple(given.items())

    def _refuse(self, reason: str) -> InvalidInputError:
        return InvalidInputError(f"model {self._name!r}: {reason}", model=self._name)


def _single(reply: Reply) -> dict[str, Array]:
    """Return the reply's arrays without the batch axis, which must be one long."""
    items: dict[str, Array] = {}
    for name, array in reply.outputs.items():
        if array.shape[:1] != (1,):
            raise ProtocolError(
                f"model {reply.model!r}, output {name!r}: expected one row for one item, got "
                f"{list(array.shape)}",
                model=reply.model,
            )
        items[name] = array[0, ...]
    return items
