"""Inference with tensors in shared memory: the stage that carries out what ``places`` chose.

Owns: the attempts at a call: taking slots, sending places instead of bytes, reading outputs where
the server wrote them, going back to the message where shared memory cannot be had. Refuses to know:
retries over endpoints, batches, how slots are filled (``loading``).

Invariants: nothing is sent before all bytes are in place; a slot is not used again before the
server is done with it, whoever has left meanwhile (``cargo``, ``registrar``); a call is repeated
here only where the model did not run, or the model is idempotent and its output had too little
room.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Final

from tritonasync.core.errors import (
    DeviceError,
    InvalidInputError,
    InvalidRequestError,
    MemoryExhaustedError,
    MessageTooLargeError,
    MissingExtraError,
    PlacementError,
    RegionNotFoundError,
    ServerError,
    SlotTooSmallError,
    TransportError,
)
from tritonasync.core.offload import LONG_NBYTES, in_worker
from tritonasync.core.values import Call, Reply
from tritonasync.memory.store import MemoryStore
from tritonasync.transport.cargo import Cargo
from tritonasync.transport.endpoint import Endpoint
from tritonasync.transport.loading import Loader, hosted, loaded_nbytes
from tritonasync.transport.placement import Wanted
from tritonasync.transport.places import AVOIDABLE, Places
from tritonasync.transport.registrar import Registrar
from tritonasync.transport.unary import read_answer
from tritonasync.wire.placed import encode_placed, fixed_nbytes

_ATTEMPTS: Final = 4
"""A restarted server, a larger output, a model with other outputs: each is met with another one."""

_PATIENCE_S: Final = 30.0
"""How long a call that must not go on the wire is tried beyond that: a connection was lost, and the
region comes back when the calls that were out on it are known to be over."""
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.2
"""Between those tries; they double, from the one to the other."""

Infer = Callable[[Call], Coroutine[Any, Any, Reply]]


class PlacedInvoker:
    """Sends calls by shared memory where that is chosen (an ``Invoker``).

    Args:
        endpoint: Where to. Borrowed.
        registrar: The regions that it knows. Borrowed.
        store: Where slots come from. Borrowed.
        places: Where tensors are to be. Borrowed.
        wait: Whether to wait for room.
        wire: How a call goes that has nothing in shared memory.
        on_shared: Called when the first call was answered by shared memory.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        registrar: Registrar,
        store: MemoryStore,
        places: Places,
        *,
        wait: bool,
        wire: Infer,
        on_shared: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._registrar = registrar
        self._store = store
        self._places = places
        self._sizes = places.sizes
        self._wire = wire
        self._on_shared = on_shared
        self._loader = Loader(registrar, store)
        self._waits = wait
        self._shared = False  # a call was answered by it

    def infer(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """Run one inference.

        Raises:
            PlacementError: Shared memory was insisted on and cannot be had.
            MemoryExhaustedError: The same for room in it.
            TritonError: As the wire's stage raises it.
        """
        # What is small is most calls, and pays 1.5 us for the question.
        try:
            nbytes = fixed_nbytes(call)
        except (InvalidInputError, MessageTooLargeError):  # the wire's stage says it better
            return self._wire(call)
        known, least = self._sizes.of(call, nbytes), self._places.least
        if (
            nbytes < least
            and known is not None
            and known.total * (call.rows or 1) < least
            and not call.device
            and call.output_memory == "host"
            and not known.due()
        ):
            return self._wire(call)
        return self._infer(call, nbytes)

    async def _infer(self, call: Call, nbytes: int) -> Reply:
        if not call.in_sequence:
            wanted = await self._places.wanted(call, nbytes)
            if wanted.inputs or wanted.outputs:
                reply = await self._by_memory(call, nbytes, wanted)
                if reply is not None:
                    self._sizes.learn(call, nbytes, reply)
                    return reply
                self._places.note_wire()
        reply = await self._wire(await hosted(call))
        self._sizes.learn(call, nbytes, reply)
        return reply

    async def _by_memory(self, call: Call, nbytes: int, wanted: Wanted) -> Reply | None:
        """Return the reply; ``None`` if the call is to go on the wire."""
        began = time.monotonic()
        for tries in count(1):
            cargo = Cargo(self._registrar)
            try:
                if await self._loaded(call, nbytes, wanted, cargo):
                    if not cargo:
                        return None
                    reply = await self._tried(call, nbytes, cargo)
                    if reply is not None:
                        return reply
            finally:
                cargo.release()
            if tries >= _ATTEMPTS:
                if not self._places.insisted:
                    break
                await self._pause(call, tries - _ATTEMPTS, began)
            wanted = await self._places.wanted(call, nbytes)
        self._places.leave_alone()
        return None

    # --- before it is sent ----------------------------------------------------------------------

    async def _loaded(self, call: Call, nbytes: int, wanted: Wanted, cargo: Cargo) -> bool:
        """Put in place what may be; return whether the call may go on, with or without a cargo."""
        try:
            granted = await self._places.granted(call, wanted)
            return await self._load_patiently(call, nbytes, granted, cargo)
        except PlacementError:
            raise
        except AVOIDABLE as error:
            self._places.do_without(error)
            cargo.unload()
            return not isinstance(error, DeviceError | MissingExtraError)

    async def _load_patiently(self, call: Call, nbytes: int, wanted: Wanted, cargo: Cargo) -> bool:
        try:
            return await self._load(call, nbytes, wanted, cargo, wait=False)
        except MemoryExhaustedError:
            if not self._waits:
                raise
        # Not with a part of what it needs: all others may have theirs, and none would go on.
        cargo.unload()
        inputs, outputs = loaded_nbytes(call), self._places.output_sizes(call, nbytes)
        if wanted.inputs and not self._store.could_hold([inputs, sum(outputs.values())]):
            wanted = replace(wanted, outputs=None)  # which come in the message
        async with self._store.turn(call.deadline, call.model):
            return await self._load(call, nbytes, wanted, cargo, wait=True)

    async def _load(
        self, call: Call, nbytes: int, wanted: Wanted, cargo: Cargo, *, wait: bool
    ) -> bool:
        """Take slots and fill them; return whether that could be done."""
        # Room first: without it, nothing is copied in vain.
        if wanted.outputs is not None:
            sizes = self._places.output_sizes(call, nbytes)
            if not await self._loader.make_room(call, wanted.outputs, sizes, cargo, wait=wait):
                return False
        inputs = wanted.inputs
        return inputs is None or await self._loader.load(call, inputs, cargo, wait=wait)

    async def _pause(self, call: Call, pauses: int, began: float) -> None:
        """Wait a while for regions that are being unregistered; each pause is longer.

        Raises:
            DeadlineExceededError: The call's deadline passed (stage ``"memory"``).
            PlacementError: It takes too long.
            TransportError: Nobody answers any more.
        """
        if time.monotonic() - began > _PATIENCE_S:
            raise self._places.unplaceable(call, "the server's view of its regions keeps changing")
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(pauses, 10), _LONGEST_PAUSE_S)
        await asyncio.sleep(min(pause_s, call.deadline.remaining()))
        call.deadline.check("memory", model=call.model, endpoint=self._endpoint.target)
        await self._check_presence(call)

    async def _check_presence(self, call: Call) -> None:
        """Ask the server whether it is there: of one that is gone no region comes back.

        Raises:
            TransportError: Nobody answers; another endpoint may. The model has not run.
            DeadlineExceededError: The call's deadline passed.
        """
        try:
            await self._endpoint.exchange(
                "ServerLive",
                b"",
                call.deadline,
                stage="memory",
                model=call.model,
                repeatable=True,
            )
        except ServerError:
            return
        except TransportError as error:
            error.may_have_executed = False
            raise

    # --- sending --------------------------------------------------------------------------------

    async def _tried(self, call: Call, nbytes: int, cargo: Cargo) -> Reply | None:
        """Send what is in place; ``None`` if it failed of something that was mended."""
        try:
            return await self._send(call, nbytes, cargo)
        except _StaleNameError:
            return None
        except SlotTooSmallError as error:
            # By what was given: that more is needed may have been learned from others since.
            given = cargo.outputs.get(error.output)
            if given is None or given[2] >= error.needed_nbytes:
                raise
            self._sizes.grow(call, nbytes, error.output, error.needed_nbytes)
        except InvalidRequestError:
            if call.outputs or not cargo.outputs:
                raise
            # They were asked for by the signature's names: the model may have others by now.
            self._places.distrust(call, nbytes)
        except RegionNotFoundError:
            for name, region in cargo.regions().items():
                self._registrar.forgotten(region, cargo.names[name])
        return None

    async def _send(self, call: Call, nbytes: int, cargo: Cargo) -> Reply:
        # The copy may have taken a while.
        for name, region in cargo.regions().items():
            if self._registrar.known(region) != cargo.names[name]:
                raise _StaleNameError
        self._places.note_placed()
        departed = cargo.depart()
        try:
            message = await _message(call, nbytes, cargo)
        except BaseException:
            departed.over(True)  # noqa: FBT003 - nothing was sent
            raise
        answer = await self._endpoint.exchange(
            "ModelInfer",
            message,
            call.deadline,
            model=call.model,
            repeatable=call.idempotent,
            over=departed.over,
        )
        if not self._shared:
            self._shared = True
            self._on_shared()
        return await read_answer(answer, call, self._endpoint.target, cargo.views)


async def _message(call: Call, nbytes: int, cargo: Cargo) -> bytes:
    """Return the message of a call whose tensors are in place; the others are in it."""
    sent = await hosted(call, besides=cargo.inputs)
    inputs, outputs = cargo.places(cargo.inputs), cargo.places(cargo.outputs)
    make = partial(encode_placed, sent, inputs, outputs, cargo.asked)
    carried = nbytes - sum([placed for _, _, placed in cargo.inputs.values()])
    if carried < LONG_NBYTES:
        return make()
    return await in_worker(make, deadline=call.deadline, model=call.model)


class _StaleNameError(Exception):
    """A region's name went while its slot was filled: nothing was sent."""
