"""Each call the faster way, where both are harmless.

Owns: whether calls may go on streams at all, a choice for each model and size. Refuses to know:
what makes a way the faster one (``choice`` does), how a call is sent.

Calls with one answer do not go on streams of a server that has a decoupled model, whoever calls it:
Triton does not bear both on streams at the same time (see ``streams``). So the server is asked
which models it has before the first trial, and again and again while streams are used; what cannot
be asked counts as a no.

Invariants: until the answer is there, and wherever it is no, a call goes out as a call of its own;
asking holds up no call.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import TritonError
from tritonasync.core.values import Call, Reply
from tritonasync.transport.channel import balanced
from tritonasync.transport.choice import (
    FIRST_AFTER,
    Choice,
    TransportChoice,
    Way,
    size_class,
)
from tritonasync.transport.control import Control
from tritonasync.transport.streams import Streams
from tritonasync.wire.dtypes import numpy_dtype

_VALID_S: Final = 60.0
"""How long an answer holds: models are loaded and unloaded."""

_ASK_AGAIN_S: Final = 40.0
_ASKING_S: Final = 10.0
_MAX_MODELS: Final = 64
"""Servers with more are not asked about each, and take calls of their own."""

_MAX_CHOICES: Final = 1024
_STRING_NBYTES: Final = 32

_Infer = Callable[[Call], Coroutine[Any, Any, Reply]]


class AutoInvoker:
    """Sends calls either way (an ``Invoker`` of ``core.ports``).

    Args:
        unary: Sends a call of its own.
        streamed: Sends a call on a stream.
        streams: The streams. Borrowed.
        control: Asks the server about its models.
    """

    def __init__(self, unary: _Infer, streamed: _Infer, streams: Streams, control: Control) -> None:
        self._unary = unary
        self._streamed = streamed
        self._streams = streams
        self._control = control
        self._choices: dict[tuple[str, str, int], Choice] = {}
        self._never = _why_never(streams)
        self._harmless_until = -math.inf
        self._ask_at = -math.inf
        self._doubts = 0
        self._doubt = "the server was not asked yet whether it has decoupled models"
        self._asking: asyncio.Task[None] | None = None

    async def infer(self, call: Call) -> Reply:
        """Run one inference; raises as either way does."""
        if self._never or call.request_id or call.in_sequence:
            return await self._unary(call)
        choice = self._choice(call)
        if choice is None:
            return await self._unary(call)
        now = time.monotonic()
        ticket = choice.begin(now, may_stream=self._may_stream(now, choice))
        well = False
        try:
            send = self._unary if ticket.way is Way.UNARY else self._streamed
            reply = await send(call)
            well = True
        finally:
            choice.end(ticket, time.monotonic(), well=well)
        return reply

    def _choice(self, call: Call) -> Choice | None:
        key = call.model, call.version, size_class(_nbytes(call))
        choice = self._choices.get(key)
        if choice is None and len(self._choices) < _MAX_CHOICES:
            choice = self._choices[key] = Choice()
        return choice

    # --- whether it does harm -------------------------------------------------------------------

    def _may_stream(self, now: float, choice: Choice) -> bool:
        streams = self._streams
        if not streams.plain or streams.link.may_cancel:
            return False
        if now >= self._ask_at and choice.calls >= FIRST_AFTER and self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        return now < self._harmless_until

    async def _ask(self) -> None:
        """Learn whether the server has decoupled models."""
        doubts = self._doubts
        try:
            doubt = await self._find_doubt(Deadline.after(_ASKING_S))
        except TritonError as error:
            doubt = f"the server did not say which models it has: {type(error).__name__}"
        if doubts == self._doubts:  # or it is the answer of another server, perhaps
            now = time.monotonic()
            self._doubt = doubt
            self._harmless_until = now + _VALID_S if not doubt else -math.inf
            self._ask_at = now + _ASK_AGAIN_S
        self._asking = None

    async def _find_doubt(self, deadline: Deadline) -> str:
        entries = await self._control.index(deadline, ready_only=True)
        if len(entries) > _MAX_MODELS:
            return f"the server has more than {_MAX_MODELS} models"
        for entry in entries:
            if await self._control.is_decoupled(entry.name, entry.version, deadline):
                return f"the server has a decoupled model, {entry.name!r}"
        return ""

    def doubt(self) -> None:
        """Take note that the server may have other models by now."""
        self._doubts += 1
        self._doubt = "the server is to be asked anew whether it has decoupled models"
        self._harmless_until = self._ask_at = -math.inf

    # --- what was decided -----------------------------------------------------------------------

    def report(self) -> tuple[TransportChoice, ...]:
        """Return what was decided, and why."""
        return tuple(
            [
                TransportChoice(
                    model=model,
                    version=version,
                    up_to_nbytes=4**size - 1,
                    using=choice.using.value,
                    why=self._why(choice),
                    calls=choice.calls,
                    unary_s=choice.mean_s.get(Way.UNARY, math.nan),
                    stream_s=choice.mean_s.get(Way.STREAM, math.nan),
                )
                for (model, version, size), choice in self._choices.items()
            ]
        )

    def _why(self, choice: Choice) -> str:
        streams = self._streams
        if not streams.plain:
            return "decoupled models are called on streams, which bear no other calls"
        if streams.link.may_cancel:
            return "calls of their own can be cancelled on this server"
        if choice.calls < FIRST_AFTER:
            return f"the other way is tried after {FIRST_AFTER} calls"
        if self._doubt:
            return self._doubt
        if not choice.trials:
            return "the other way is being tried"
        unary_s, stream_s = choice.mean_s[Way.UNARY], choice.mean_s[Way.STREAM]
        return (
            f"in trial {choice.trials} a call took {1e6 * unary_s:.0f} us of its own and "
            f"{1e6 * stream_s:.0f} us on a stream"
        )

    async def aclose(self) -> None:
        """Wait until nothing is asked any more: the endpoint has ended its calls."""
        if self._asking is not None:
            await self._asking


def _why_never(streams: Streams) -> str:
    link = streams.link
    if balanced(link.target):
        return "there may be many servers behind the target, and a stream stays with one"
    if link.headers.fixed is None:
        return "each call is to have headers of its own"
    return ""


def _nbytes(call: Call) -> int:
    total = 0
    for tensor in call.inputs:
        count = math.prod(tensor.shape)
        total += count * (
            _STRING_NBYTES if tensor.datatype == "BYTES" else numpy_dtype(tensor.datatype).itemsize
        )
    return total
