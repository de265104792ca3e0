"""What handles share whose inputs are given by name: request options, streams of responses.

Owns: inputs by mapping and by keyword, request parameters, the beginning of a stream. Refuses to
know: what the tensors mean.

Invariants: options are refused when a call is made, tensors when it is sent; a stream is one
request, never split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy.typing as npt

from tritonasync.core.checks import is_count
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    InvalidInputError,
    InvalidRequestError,
    ModelNotFoundError,
    UsageError,
)
from tritonasync.core.ports import StreamInvoker
from tritonasync.core.values import Call, Parameters, ParameterValue
from tritonasync.handles.base import Handle, Prepared, Request
from tritonasync.handles.devices import brought_in
from tritonasync.handles.signature import Signature
from tritonasync.handles.stream import Begun

_C = TypeVar("_C")


class NamedHandle(Handle):
    """A handle whose inputs are given by name, in a mapping or by keyword.

    The arguments are those of :class:`Handle`; ``_streamer`` is set by those that stream.
    """

    _streamer: StreamInvoker | None = None

    def _named(
        self,
        inputs: Mapping[str, npt.ArrayLike] | None,
        tensors: Mapping[str, npt.ArrayLike],
    ) -> Mapping[str, npt.ArrayLike]:
        # At once: the stream that a GPU's array is made on is the current one, here and now.
        return brought_in(self._merged(inputs, tensors))

    def _merged(
        self,
        inputs: Mapping[str, npt.ArrayLike] | None,
        tensors: Mapping[str, npt.ArrayLike],
    ) -> Mapping[str, npt.ArrayLike]:
        if inputs is None:
            return tensors
        if not isinstance(inputs, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._refuse(
                f"expected a mapping of input names to arrays, got {type(inputs).__name__}: "
                "{'NAME': array}, or NAME=array by keyword"
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
            if not is_count(value, least=0):
                raise self._refuse(f"{option} is a whole number from 0 on, not {value!r}")
            if value and name in given:
                raise self._refuse(f"{option}={value} and parameters[{name!r}] are the same thing")
            if value:
                given[name] = value
        return tuple(given.items())

    def _later(
        self,
        timeout_s: float | None,
        idle_timeout_s: float | None,
        parameters: Parameters,
        request_id: str,
    ) -> Callable[[], Request]:
        """Return what makes a stream's request when it begins, since its time counts from then.

        Raises:
            ConfigurationError: A time is none.
        """
        limit_s = self._deadline(timeout_s).timeout_s
        idle = Deadline.after(idle_timeout_s, name="idle_timeout_s").timeout_s
        idle_s = limit_s if idle_timeout_s is None else idle

        def request() -> Request:
            return Request(Deadline.after(limit_s), parameters, request_id, idle_s=idle_s)

        return request

    async def _begin(
        self,
        prepare: Callable[[Signature], Prepared[_C]],
        work_nbytes: Callable[[Signature], int],
        request: Request,
    ) -> Begun:
        """Prepare a call, send it, and return its responses with the first of them.

        Args:
            prepare: Makes the tensors, or refuses. It may run twice, and in a worker thread.
            work_nbytes: About how many bytes ``prepare`` will write.
            request: What goes with the call.

        Raises:
            UsageError: ``prepare`` refused, or there are more rows than one request takes.
            DeadlineExceededError: The time ran out.
            TransportError: Nobody answered.
            ServerError: The server answered with an error.
        """

        def whole(signature: Signature) -> Prepared[_C]:
            prepared = prepare(signature)
            self._check_unsplit(signature, prepared.rows)
            return prepared

        prepared = await self._prepared(whole, work_nbytes, request.deadline, many=True)
        return await self._begun(
            self._call(prepared.inputs, prepared.rows, prepared.outputs, request)
        )

    async def _begun(self, call: Call) -> Begun:
        """Send a call that fits the signature; return as :meth:`_begin` does."""
        if self._streamer is None:
            raise UsageError(
                f"model {self._name!r}: this handle was made without a stage for streams",
                model=self._name,
            )
        responses = self._streamer.stream(call)
        try:
            return responses, await anext(responses, None)
        except (InvalidRequestError, ModelNotFoundError):
            self._doubt_signature()
            raise

    def _check_unsplit(self, signature: Signature, rows: int) -> None:
        most = signature.spec.max_batch_size
        if rows > most:  # both are 0 for a model without a batch axis
            raise self._refuse(
                f"{rows} rows, and one request takes {most} at most (max_batch_size); a stream is "
                "one request: make several"
            )

    def _refuse(self, reason: str) -> InvalidInputError:
        return InvalidInputError(f"model {self._name!r}: {reason}", model=self._name)
