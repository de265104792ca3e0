"""Models that answer a prompt with a text, piece by piece.

Owns: the options of a call, which text a response has. Refuses to know: which tensors are what
(``roles`` does), tokens, chat templates, sampling (inputs of the model by their names).

Invariant: one prompt a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import ProtocolError
from tritonasync.core.ports import Invoker, ModelCatalog, StreamInvoker
from tritonasync.core.values import ParameterValue, Reply
from tritonasync.handles.base import Prepared, no_work
from tritonasync.handles.named import NamedHandle
from tritonasync.handles.pieces import Pieces, check_errors
from tritonasync.handles.roles import roles_of
from tritonasync.handles.signature import Signature
from tritonasync.handles.stream import Begun, ResponseStream

_NO_INPUTS: Final[Mapping[str, npt.ArrayLike]] = MappingProxyType({})


class Generator(NamedHandle):
    """A model that generates text.

    ::

        async for piece in generator("Once upon a time", max_tokens=64):
            print(piece, end="", flush=True)

    The prompt goes to the BYTES input, and the text comes from the BYTES output. Where there are
    several, the one with a usual name (``text_input`` and ``text_output``, as of vLLM and
    TensorRT-LLM, ``prompt``, …) is taken, or else the only one that is not optional. A decoupled
    model with a BOOL input ``stream`` or ``streaming`` gets true there, unless it is given.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage.
        catalog: Where signatures come from.
        streamer: The next stage of calls with many responses.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        prompt_input: The input that takes the prompt.
        output_name: The output that has the text.
        cumulative: Whether each response repeats the whole text so far (TensorRT-LLM's
            ``accumulate_tokens``). Only what is new is given out. A replacement character at the
            end of a response is held back, since the next one may have a whole character there.
        inputs: Further inputs of every call, by name, which a call may override.
        errors: What becomes of bytes that are no UTF-8, as of :meth:`bytes.decode`.

    Raises:
        ConfigurationError: An option makes no sense.
    """

    def __init__(
        self,
        name: str,
        version: str,
        invoker: Invoker,
        catalog: ModelCatalog,
        streamer: StreamInvoker,
        *,
        timeout_s: float | None,
        prompt_input: str | None = None,
        output_name: str | None = None,
        cumulative: bool = False,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        errors: str = "replace",
    ) -> None:
        super().__init__(name, version, invoker, catalog, timeout_s=timeout_s)
        check_errors(name, errors)
        self._streamer = streamer
        self._prompt_input = prompt_input
        self._output_name = output_name
        self._cumulative = cumulative
        self._inputs = dict(self._named(inputs, _NO_INPUTS))
        self._errors = errors

    def __call__(
        self,
        prompt: str | bytes,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        /,
        *,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        priority: int = 0,
        queue_timeout_us: int = 0,
        **tensors: npt.ArrayLike,
    ) -> ResponseStream[str]:
        """Return the text that follows a prompt, as it comes.

        Nothing is sent before the first piece is asked for. No piece is empty, and none ends within
        a character.

        Args:
            prompt: The prompt; a ``str`` is sent as UTF-8.
            inputs: Further inputs by name, without the batch axis. A single value takes the
                input's shape: ``max_tokens=64``.
            timeout_s: Seconds until the first response, from when it is asked for; ``None`` for the
                pool's, ``math.inf`` for no limit.
            idle_timeout_s: Seconds until each later response; ``None`` for the same as
                ``timeout_s``.
            parameters: Request parameters. Names that begin with ``triton_`` are the server's own.
            request_id: For the server's log.
            priority: 1 is the highest; 0 leaves it to the model's configuration.
            queue_timeout_us: The longest wait in the server's queue, in microseconds, if the
                model's queue policy allows it to be set.
            **tensors: More inputs by name.

        Returns:
            An async iterator of ``str``, and async context manager. It raises as
            :meth:`ResponseStream.__anext__` says; ``ConfigurationError`` if it is not clear which
            tensors are meant, and ``ProtocolError`` if a response has not one text.

        Raises:
            UsageError: An option makes no sense.
        """
        if not isinstance(prompt, str | bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._refuse(
                f"one prompt a call, a str or bytes, not {type(prompt).__name__}: for several, "
                "make several calls at once"
            )
        given = {**self._inputs, **self._named(inputs, tensors)}
        options = self._parameters(parameters, priority, queue_timeout_us)
        request = self._later(timeout_s, idle_timeout_s, options, request_id)
        text = _Text(Pieces(self._name, errors=self._errors, cumulative=self._cumulative))

        def prepare(signature: Signature) -> Prepared[None]:
            roles = roles_of(signature, self._prompt_input, self._output_name)
            text.output = roles.text
            tensors, rows = signature.bind(roles.inputs(prompt, given), item=True)
            return Prepared(tensors, rows, None, (roles.text,))

        async def begin() -> Begun:
            return await self._begin(prepare, no_work, request())

        return ResponseStream(self._name, begin, text.read, text.finish)

    async def text(
        self,
        prompt: str | bytes,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        /,
        *,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        priority: int = 0,
        queue_timeout_us: int = 0,
        **tensors: npt.ArrayLike,
    ) -> str:
        """Return the whole text that follows a prompt.

        The arguments are those of the call that gives it in pieces.

        Raises:
            TritonError: As the pieces do; what came before an error is dropped.
        """
        pieces = self(
            prompt,
            inputs,
            timeout_s=timeout_s,
            idle_timeout_s=idle_timeout_s,
            parameters=parameters,
            request_id=request_id,
            priority=priority,
            queue_timeout_us=queue_timeout_us,
            **tensors,
        )
        async with pieces:
            return "".join([piece async for piece in pieces])


# --- responses ---------------------------------------------------------------------------------


class _Text:
    """Reads the pieces of a text out of responses; ``output`` is known when they are asked for."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.output = ""

    def read(self, reply: Reply) -> str | None:
        """Return what a response adds to the text, if anything."""
        if not reply.outputs:
            return None
        array = reply.outputs.get(self.output)
        if array is None or array.size > 1 or array.dtype != np.object_:
            got = ", ".join(f"{n!r} {list(a.shape)}" for n, a in reply.outputs.items())
            raise ProtocolError(
                f"model {reply.model!r}: expected one text in output {self.output!r}, got {got}",
                model=reply.model,
            )
        return self._pieces.take(cast("bytes", array.item())) or None if array.size else None

    def finish(self) -> str | None:
        """Return what was held back, if anything."""
        return self._pieces.finish() or None
