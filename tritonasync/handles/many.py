"""What a model does beside answering a request once: streams of responses, sequences, lent inputs.

Owns: making the objects that these are. Refuses to know: how they go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy.typing as npt

from tritonasync.core.values import MemoryKind, ParameterValue
from tritonasync.handles.base import Prepared
from tritonasync.handles.devices import on_host
from tritonasync.handles.lease import Lend, Lending, slots_of
from tritonasync.handles.named import NamedHandle
from tritonasync.handles.outputs import Outputs
from tritonasync.handles.ragged import RaggedRows
from tritonasync.handles.sequence import SequenceHandle
from tritonasync.handles.signature import Signature
from tritonasync.handles.steps import CLOSE_TIMEOUT_S
from tritonasync.handles.stream import Begun, ResponseStream


class ManyHandle(NamedHandle):
    """A handle that streams, keeps sequences and lends memory.

    The arguments are those of :class:`NamedHandle`; the attributes below are set by who is made.
    """

    _padding: RaggedRows | None = None
    _lend: Lend | None = None

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

    def lease(
        self,
        rows: int | None = None,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        memory: MemoryKind | None = None,
        when_full: Literal["wait", "raise"] | None = None,
        timeout_s: float | None = None,
    ) -> Lending:
        """Return input arrays in shared memory, to be written in place: nothing is copied then.

        ::

            async with model.lease(8) as slot:
                camera.read_into(slot["IMAGE"])
                outputs = await model(slot)

        Args:
            rows: Rows along the batch axis; ``None`` for a model without one.
            shapes: The shape of an item by input name, where the model leaves an axis free, and for
                optional inputs that are to be lent, too. Inputs of strings are not lent: give them
                with the call.
            memory: ``"system"`` for numpy arrays, ``"cuda"`` for CuPy arrays on a GPU; ``None`` for
                what the pool's ``shared_memory`` says, and numpy for ``"auto"``.
            when_full: Whether to wait for room within the time, or to raise; ``None`` for what the
                pool's :class:`MemoryPolicy` says.
            timeout_s: Seconds to wait; ``None`` for the pool's, ``math.inf`` for no limit.

        Returns:
            An async context manager that gives a :class:`LeasedInputs`, once. What is in the arrays
            is undefined. They stay valid as long as they are referred to, and their room is used
            again when that ends, and every call that they went with has ended on the server.

        Raises:
            InvalidInputError: (on entering) Rows or shapes do not fit the model.
            MemoryExhaustedError: (on entering) There is no room, or never will be.
            DeadlineExceededError: (on entering) There was none in time (stage ``"memory"``).
            UsageError: (on entering) The pool shares no memory.
            ConfigurationError: An option makes no sense.
        """
        deadline = self._deadline(timeout_s)  # refuses what is no duration
        return Lending(
            self._name,
            lambda signature: slots_of(signature, rows, shapes),
            self._described,
            self._lend,
            memory=memory,
            when_full=when_full,
            timeout_s=deadline.timeout_s,
        )

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
        arrays = on_host(arrays)  # rows are filled up there
        ragged, given = self._padding, self._padding.with_mask(arrays, signature, item=item)
        return Prepared(*signature.bind(given, item=item), None, names, ragged.for_model(signature))
