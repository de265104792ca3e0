"""How calls and batches are carried to the next stage and back.

Owns: trying the halves of a failed batch, telling the limiter and the counters what happened.
Refuses to know: queues, when a batch leaves, how many may be out.

Invariants: a batch is seen to its end whoever leaves; when a batch fails for what one row can have
caused, each row that still waits is tried again, and what fails alone fails alone; rows that may
not run twice are tried again only if they certainly did not run.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

from tritonasync.batching.gather import check_rows, gather
from tritonasync.batching.group import Group, halves, padded_nbytes
from tritonasync.batching.key import BatchKey
from tritonasync.batching.limiter import Limiter
from tritonasync.batching.statistics import Counters
from tritonasync.batching.tickets import Landed, Ticket, hand_out, left, tell
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    InvalidInputError,
    InvalidRequestError,
    MemoryExhaustedError,
    MessageTooLargeError,
    ModelFailedError,
    ModelUnhealthyError,
    PoolClosedError,
    QueueFullError,
)
from tritonasync.core.offload import LONG_NBYTES, in_worker
from tritonasync.core.ports import Invoker
from tritonasync.core.values import Call, ModelSpec

_ONE_ROWS_FAULT: Final = (
    InvalidInputError,  # while the message was built: a string that is none, say
    InvalidRequestError,
    MemoryExhaustedError,  # where shared memory is insisted on, and the batch is too large for it
    MessageTooLargeError,
    ModelFailedError,
)
"""What a single row can bring upon its batch."""

_GRACE_S: Final = 5.0
"""A batch holds its place in flight for so long after its last caller's deadline. Were the place
free at once, callers with short deadlines would heap up requests at a slow server: it goes on with
those that nobody waits for."""

_WARY_S: Final = 1.0
"""How long :attr:`Carrier.wary_until` is ahead when a caller left a call that it carried alone."""


class Carrier:
    """Carries the calls and batches of one model.

    Args:
        spec: Names the model and the version asked for.
        next_stage: Where to.
        limiter: Told of answers and of overload.
        counters: Told of what is sent.
        endpoints: Tells how many endpoints share the batches.
        landed: Called when a call or batch is over, so that what waits may leave.
        doubt: Called when the server refused a batch: the model may take fewer rows than it did,
            and no caller may ever be told of that, since halves are tried.

    Attributes:
        in_flight: Calls and batches that are out.
        items: Those of them that are single items which took the short way.
        wary_until: Until then callers had better not carry their own calls. The place in flight of
            one who leaves is free at once, though the server still works on the call; tasks stay.
    """

    def __init__(
        self,
        spec: ModelSpec,
        next_stage: Invoker,
        limiter: Limiter,
        counters: Counters,
        *,
        endpoints: Callable[[], int],
        landed: Callable[[], None],
        doubt: Callable[[], None],
    ) -> None:
        self._model = spec.name
        self._version = spec.version
        self._next = next_stage
        self._limiter = limiter
        self._counters = counters
        self._endpoints = endpoints
        self._landed = landed
        self._doubt = doubt
        self.in_flight: int = 0
        self.items: int = 0
        self.wary_until: float = -math.inf

    async def alone(self, call: Call, *, item: bool = False) -> Landed:
        """Carry a call for its own caller, or an item that took the short way.

        Returns:
            The reply, and 0: where its rows begin.

        Raises:
            DeadlineExceededError: The deadline had passed; nothing was sent.
            ProtocolError: An output has other rows than the call. It might pass here, but not in a
                batch, and what works should not depend on who else calls.
            TritonError: As the next stage raises it.
        """
        sent_at = time.monotonic()
        if call.deadline.at <= sent_at:
            self._counters.expired_rows += call.rows
            raise call.deadline.error("queue", model=call.model)
        self.in_flight = in_flight = self.in_flight + 1
        self.items += item
        self._counters.sent(call.rows)
        self._counters.left_queue(call.rows, 0.0)
        try:
            reply = await self._next.infer(call)
            self._note_answer(call.rows, sent_at, in_flight)
            check_rows(reply, call.rows)
        except QueueFullError:
            self._limiter.overloaded(time.monotonic())
            raise
        except (asyncio.CancelledError, TimeoutError):
            self.wary_until = time.monotonic() + _WARY_S
            raise
        else:
            return reply, 0
        finally:
            self._counters.rows_in_flight -= call.rows
            self.in_flight -= 1
            self.items -= item
            self._landed()

    def together(self, key: BatchKey, groups: Sequence[Group[Ticket]]) -> Coroutine[Any, Any, None]:
        """Carry a batch, and tell each of its holders how it went.

        The batch is out from now on, not from when the coroutine is first run.

        If it fails as one row can make it fail, each half is tried again, one after the other: at
        worst that takes twice the requests that its tickets would have taken alone.
        """
        self.in_flight += 1
        return self._together(key, groups, self.in_flight)

    async def _together(
        self, key: BatchKey, groups: Sequence[Group[Ticket]], in_flight: int
    ) -> None:
        try:
            await self._by_halves(key, groups, in_flight)
        except BaseException:
            tell(groups, PoolClosedError("the event loop ended while a batch was out"))
            raise
        finally:
            self.in_flight -= 1
            self._landed()  # before those who were told have their turn

    async def _by_halves(
        self, key: BatchKey, groups: Sequence[Group[Ticket]], in_flight: int
    ) -> None:
        batches = [groups]
        while batches:
            batch = batches.pop()
            if batch is not groups:  # some may have left while the other half was tried
                batch = [group for group in map(_present, batch) if group.tickets]
            if not batch:
                continue
            try:
                await self._send(key, batch, in_flight)
            except _ONE_ROWS_FAULT as error:
                repeats = error.may_have_executed and not key.idempotent
                if _tickets(batch) == 1 or repeats or isinstance(error, ModelUnhealthyError):
                    tell(batch, error)
                else:
                    if isinstance(error, InvalidRequestError):
                        self._doubt()
                    self._counters.halved_batches += 1
                    front, rest = halves(list(map(_present, batch)))
                    batches += (rest, front)
            except QueueFullError as error:
                self._limiter.overloaded(time.monotonic())
                tell(batch, error)
            except Exception as error:  # noqa: BLE001 - told to each caller
                tell(batch, error)

    async def _send(self, key: BatchKey, groups: Sequence[Group[Ticket]], in_flight: int) -> None:
        deadline = _deadline(groups)
        make = partial(gather, self._model, self._version, key, groups, deadline)
        if key.padding is None or padded_nbytes(groups) < LONG_NBYTES:
            call = make()
        else:  # rows are filled up, which copies them
            call = await in_worker(make, deadline=deadline, model=self._model)
        sent_at = time.monotonic()
        self._counters.sent(call.rows)
        try:
            reply = await self._next.infer(call)
        finally:
            self._counters.rows_in_flight -= call.rows
        self._note_answer(call.rows, sent_at, in_flight)
        check_rows(reply, call.rows)
        hand_out(groups, reply)

    def _note_answer(self, rows: int, sent_at: float, in_flight: int) -> None:
        now = time.monotonic()
        each = -(-in_flight // self._endpoints())  # the limit is that of one endpoint
        self._limiter.answered(rows=rows, latency_s=now - sent_at, in_flight=each, now=now)


def _present(group: Group[Ticket]) -> Group[Ticket]:
    return group.without(left)


def _tickets(groups: Sequence[Group[Ticket]]) -> int:
    return sum([len(group.tickets) for group in groups])


def _deadline(groups: Sequence[Group[Ticket]]) -> Deadline:
    """Return when a batch gives up its place; its holders are let go at their own time."""
    last = max([group.deadline_at for group in groups])
    return NEVER if last == math.inf else Deadline(last + _GRACE_S, math.inf)
