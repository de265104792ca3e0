"""A sequence of a stateful model: steps that share a state on the server.

Owns: the options of a step, what is made of its answer, running steps for a source of them. Refuses
to know: whose turn it is, and how a sequence begins and ends (``steps`` does).
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from enum import Enum
from typing import Final, Literal

import numpy.typing as npt

from tritonasync.core.values import ParameterValue
from tritonasync.handles.base import Prepared, Request
from tritonasync.handles.outputs import Outputs, check_single
from tritonasync.handles.signature import Signature
from tritonasync.handles.steps import Inputs, Steps
from tritonasync.handles.stream import Begun, ResponseStream


class _End(Enum):
    END = "the end of a source"


_END: Final = _End.END


class SequenceHandle(Steps):
    """One sequence of a stateful model, made by ``model.sequence()`` and used once.

    ::

        async with model.sequence() as sequence:
            out = await sequence({"VALUE": [[3]]})
            out = await sequence.one(VALUE=[4])

    The first step carries the start flag. All steps go to the endpoint that has the state, one at a
    time, in the order in which they were asked for, by whichever tasks; a step's time counts from
    when it is asked for (stage ``"queue"`` if the steps before it used it up).

    **The end.** The last step carries the end flag if it is told ``end=True``. Otherwise leaving
    the block sends a closing request, if a step was sent: with the inputs of ``closing``, or with
    none where all inputs of the model are optional. Where neither is so, nothing is sent, and the
    server forgets the sequence when it was idle for as long as the model allows
    (``ModelSpec.sequence_idle_s``). Closing is not cut short by cancelling, which takes effect
    after it, and ends within ``close_timeout_s``; its error is raised unless the block raised one.

    **Failures.** A step in which the model raised leaves the sequence where it was, and so does one
    that was refused before it was sent. A step that ran out of time, or whose caller was cancelled,
    may have run nevertheless: it is not sent again, and the sequence goes on. If the connection
    broke, the endpoint is gone, or the server does not know the sequence any more, the state is
    gone: that step and all later ones raise ``SequenceLostError``. So it is when the outcome of the
    first step is unknown. If the first step certainly did not run, the next one is the first.

    **Idle time.** Whether a sequence was idle for too long is for the server to say, which looks
    only now and then: it refuses the step, and never begins anew by itself. ``idle_timeout_s``
    closes a sequence earlier, from this side.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures come from.
        timeout_s: Seconds for a step that gives none of its own; ``None`` for no limit.
        casting: Which arrays are converted to the model's dtype unasked.
        streamer: The next stage of steps with many responses.
        number: The sequence's id; ``None`` for one that nobody else has.
        closing: The inputs of the closing request, as for a step.
        close_timeout_s: Seconds for closing.
        idle_timeout_s: Seconds after which the sequence is closed if no step is out, and no
            responses to one are to come; ``None``: never.

    Raises:
        InvalidInputError: The id makes no sense.
        ConfigurationError: A time is none.
    """

    async def __call__(
        self,
        inputs: Inputs | None = None,
        /,
        *,
        end: bool = False,
        timeout_s: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        priority: int = 0,
        queue_timeout_us: int = 0,
        **tensors: npt.ArrayLike,
    ) -> Outputs:
        """Run one step.

        Args:
            inputs: Arrays by input name, with the batch axis where the model has one. Triton takes
                one row a step.
            end: Whether the sequence ends with this step.
            timeout_s: Seconds for this step; ``None`` for the pool's, ``math.inf`` for no limit.
            outputs: Names of the outputs wanted; ``None`` for all.
            parameters: Request parameters.
            request_id: Echoed in :attr:`Outputs.request_id`.
            priority: 1 is the highest.
            queue_timeout_us: The longest wait in the server's queue.
            **tensors: More arrays by input name.

        Returns:
            The outputs, as views on the received message.

        Raises:
            SequenceLostError: The state of the sequence is gone: begin a new one.
            InvalidInputError: Names, dtypes, shapes or rows do not fit the model.
            UsageError: The sequence was not entered, has ended or was left.
            DeadlineExceededError: The time ran out; the step may run nevertheless.
            TransportError: Nobody answered.
            ServerError: The server answered with an error.
        """
        arrays = self._named(inputs, tensors)
        given = self._parameters(parameters, priority, queue_timeout_us)
        request = Request(self._deadline(timeout_s), given, request_id)
        last = self._is_last(end)
        _, reply = await self._step(_tensors(arrays, outputs), _work(arrays), request, end=last)
        return Outputs(reply)

    async def one(
        self,
        inputs: Inputs | None = None,
        /,
        *,
        end: bool = False,
        timeout_s: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        priority: int = 0,
        queue_timeout_us: int = 0,
        **tensors: npt.ArrayLike,
    ) -> Outputs:
        """Run one step on arrays without the batch axis, in and out; else as the call itself."""
        arrays = self._named(inputs, tensors)
        given = self._parameters(parameters, priority, queue_timeout_us)
        request = Request(self._deadline(timeout_s), given, request_id)
        prepare = _tensors(arrays, outputs, item=True)
        last = self._is_last(end)
        rows, reply = await self._step(prepare, _work(arrays), request, end=last)
        if rows:
            check_single(reply, "a step")
        return Outputs(reply, 0 if rows else None)

    async def map(
        self,
        source: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        end: bool = False,
        item: bool = False,
        timeout_s: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        priority: int = 0,
        queue_timeout_us: int = 0,
    ) -> AsyncGenerator[Outputs, None]:
        """Run a step for each mapping of a source, and yield what each gave, in order.

        One step is out at a time; the next item is asked for when the answer to the one before was
        taken.

        Args:
            source: Mappings of input names to arrays. It is read in the event loop.
            end: Whether the sequence ends with the last of them. An item is sent only when the next
                one is there then, or the source has ended: for a live source, its answers come an
                item late. If the source raises, the sequence does not end with what came before.
            item: Whether arrays come and go without the batch axis, as for :meth:`one`.
            timeout_s: Seconds for each step.
            outputs: Names of the outputs wanted; ``None`` for all.
            parameters: Request parameters of each step.
            priority: 1 is the highest.
            queue_timeout_us: The longest wait in the server's queue, of each step.

        Raises:
            TritonError: As the call itself does.
        """
        if not isinstance(source, Iterable | AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._refuse(
                f"expected an iterable of mappings, or an asynchronous one, not {source!r}"
            )
        call = self.one if item else self
        async with aclosing(_flagged(source, end=self._is_last(end))) as items:
            async for inputs, last in items:
                yield await call(
                    inputs,
                    end=last,
                    timeout_s=timeout_s,
                    outputs=outputs,
                    parameters=parameters,
                    priority=priority,
                    queue_timeout_us=queue_timeout_us,
                )

    def stream(
        self,
        inputs: Inputs | None = None,
        /,
        *,
        end: bool = False,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        priority: int = 0,
        queue_timeout_us: int = 0,
        **tensors: npt.ArrayLike,
    ) -> ResponseStream[Outputs]:
        """Return the responses to one step: ``async for out in sequence.stream(…)``.

        For models that are decoupled as well. The step's turn is over with its first response: a
        step after it may be sent then, and runs after it on the server.

        Args:
            inputs: Arrays by input name.
            end: Whether the sequence ends with this step.
            timeout_s: Seconds until the first response, from when it is asked for.
            idle_timeout_s: Seconds until each later response; ``None`` for the same.
            outputs: Names of the outputs wanted; ``None`` for all.
            parameters: Request parameters.
            request_id: Echoed in :attr:`Outputs.request_id`.
            priority: 1 is the highest.
            queue_timeout_us: The longest wait in the server's queue.
            **tensors: More arrays by input name.
        """
        arrays = self._named(inputs, tensors)
        given = self._parameters(parameters, priority, queue_timeout_us)
        request = self._later(timeout_s, idle_timeout_s, given, request_id)
        last = self._is_last(end)

        async def begin() -> Begun:
            prepare = _tensors(arrays, outputs)
            return await self._first_response(prepare, _work(arrays), request(), end=last)

        return ResponseStream(self._name, begin, Outputs)


def _tensors(
    arrays: Inputs, outputs: Sequence[str] | None, *, item: bool = False
) -> Callable[[Signature], Prepared[None]]:
    def prepare(signature: Signature) -> Prepared[None]:
        names = signature.outputs(outputs)
        return Prepared(*signature.bind(arrays, item=item), None, names)

    return prepare


def _work(arrays: Inputs) -> Callable[[Signature], int]:
    def work_nbytes(signature: Signature) -> int:
        return signature.conversion_nbytes(arrays)

    return work_nbytes


async def _flagged(
    source: Iterable[Inputs] | AsyncIterable[Inputs], *, end: bool
) -> AsyncGenerator[tuple[Inputs, bool], None]:
    """Yield each item of a source and whether a sequence ends with it: the last one, if asked.

    If the source raises, what it gave before comes first, and none of it is the last.
    """
    items = aiter(source) if isinstance(source, AsyncIterable) else iter(source)
    held = await _next(items)
    while held is not _END:
        if not end:
            yield held, False
            held = await _next(items)
            continue
        try:
            ahead = await _next(items)
        except Exception:
            yield held, False
            raise
        yield held, ahead is _END
        held = ahead


async def _next(items: Iterator[Inputs] | AsyncIterator[Inputs]) -> Inputs | Literal[_End.END]:
    if isinstance(items, AsyncIterator):
        return await anext(items, _END)
    return next(items, _END)
