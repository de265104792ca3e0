"""Inference with tensors in shared memory: the stage that carries out what ``placement`` chose.

Owns: taking slots, the one copy of a tensor's parts into its slot, sending places instead of bytes,
reading outputs where the server wrote them; going back to the message, with one line in the log
that says why, where shared memory cannot be had. Refuses to know: retries over endpoints, batches.

Invariants: nothing is sent before all bytes are in place; a slot is not used again before the
server is done with it, whoever has left meanwhile (``cargo``, ``registrar``); a call is repeated
here only where the model did not run, or the model is idempotent and its output had too little
room.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import count
from typing import Any, Final

from tritonasync.core.errors import (
    InvalidInputError,
    InvalidRequestError,
    MemoryExhaustedError,
    PlacementError,
    RegionNotFoundError,
    ServerError,
    SlotTooSmallError,
    TransportError,
)
from tritonasync.core.offload import LONG_NBYTES, in_worker
from tritonasync.core.policies import MemoryPolicy
from tritonasync.core.values import Call, MemoryKind, Reply
from tritonasync.memory.store import MemoryStore
from tritonasync.transport.cargo import Cargo
from tritonasync.transport.endpoint import Endpoint
from tritonasync.transport.loading import Loader, hosted
from tritonasync.transport.placement import (
    LEAST_NBYTES,
    Sharing,
    Wanted,
    choose,
)
from tritonasync.transport.registrar import Registrar
from tritonasync.transport.sizes import LearnedSizes
from tritonasync.transport.statistics import SharingReport
from tritonasync.transport.unary import read_answer
from tritonasync.wire.placed import encode_placed, fixed_nbytes, placeable

_ATTEMPTS: Final = 4
"""A restarted server, a larger output, a model with other outputs: each is met with another one."""

_PATIENCE_S: Final = 30.0
"""How long a call that must not go on the wire is tried beyond that: a connection was lost, and the
region comes back when the calls that were out on it are known to be over."""
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.2
"""Between those tries; they double, from the one to the other."""

_log: Final = logging.getLogger("tritonasync.memory")

Infer = Callable[[Call], Coroutine[Any, Any, Reply]]


class PlacedInvoker:
    """Sends calls by shared memory where that is chosen (an ``Invoker``).

    Args:
        endpoint: Where to. Borrowed.
        registrar: The regions that it knows. Borrowed.
        store: Where slots come from. Borrowed.
        policy: From what size on, and what to do without room.
        sharing: What the user chose; not ``"off"``.
        wire: How a call goes that has nothing in shared memory.
        gpu: Tells whether the server, and a model, can use the GPU's memory.
        on_shared: Called when the first call was answered by shared memory.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        registrar: Registrar,
        store: MemoryStore,
        *,
        policy: MemoryPolicy,
        sharing: Sharing,
        wire: Infer,
        gpu: Callable[[Call], Coroutine[Any, Any, bool]],
        on_shared: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._registrar = registrar
        self._store = store
        self._policy = policy
        self._sharing: Sharing = sharing
        self._insisted = sharing in {"system", "cuda"}
        self._least = LEAST_NBYTES if self._insisted else policy.min_nbytes
        self._wire = wire
        self._gpu = gpu
        self._on_shared = on_shared
        self._loader = Loader(registrar, store, wait=False)
        self._patient = Loader(registrar, store, wait=True)
        self._waits = self._insisted and policy.when_full == "wait"
        self._sizes = LearnedSizes()
        self._said: set[str] = set()
        self._shared = False  # a call was answered by it
        self.tally = SharingReport()

    def infer(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """Run one inference.

        Raises:
            PlacementError: Shared memory was insisted on and cannot be had.
            MemoryExhaustedError: The same for room in it.
            TritonError: As the wire's stage raises it.
        """
        # What is small is most calls, and pays 2 us for the question.
        try:
            nbytes = fixed_nbytes(call)
        except InvalidInputError:  # the wire's stage says it better
            return self._wire(call)
        known = self._sizes.of(call, nbytes)
        if (
            nbytes < self._least
            and known is not None
            and known.total * (call.rows or 1) < self._least
            and not call.device
            and call.output_memory == "host"
            and not known.due()
        ):
            return self._wire(call)
        return self._infer(call, nbytes)

    async def _infer(self, call: Call, nbytes: int) -> Reply:
        wanted = None if call.in_sequence else await self._chosen(call, nbytes)
        if wanted is None or not (wanted.inputs or wanted.outputs):
            return await self._by_wire(call, nbytes)
        began = time.monotonic()
        for tries in count(1):
            cargo = Cargo(self._registrar)
            try:
                reply = await self._attempt(call, nbytes, wanted, cargo)
            except MemoryExhaustedError as error:
                self._do_without(error)
                break
            finally:
                cargo.release()
            if reply is not None:
                if not self._shared:
                    self._shared = True
                    self._on_shared()
                self._sizes.learn(call, nbytes, reply)
                return reply
            if tries >= _ATTEMPTS:
                if not wanted.insisted:
                    break
                await self._pause(call, tries - _ATTEMPTS, began)
            wanted = await self._chosen(call, nbytes)
        self.tally.on_wire += 1
        return await self._by_wire(call, nbytes)

    async def _pause(self, call: Call, pauses: int, began: float) -> None:
        """Wait a while for regions that are being unregistered; each pause is longer.

        Raises:
            DeadlineExceededError: The call's deadline passed (stage ``"memory"``).
            PlacementError: It takes too long.
            TransportError: Nobody answers any more.
        """
        if time.monotonic() - began > _PATIENCE_S:
            raise self._unplaceable(call, "the server's view of its regions keeps changing")
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

    async def _by_wire(self, call: Call, nbytes: int) -> Reply:
        reply = await self._wire(await hosted(call))
        self._sizes.learn(call, nbytes, reply)
        return reply

    # --- choosing -------------------------------------------------------------------------------

    async def _chosen(self, call: Call, nbytes: int) -> Wanted:
        try:
            return await self._choose(call, nbytes)
        except MemoryExhaustedError as error:
            self._do_without(error)
            return Wanted(None, None)

    def _do_without(self, error: MemoryExhaustedError) -> None:
        """Go on without shared memory for want of room, unless it is insisted on."""
        if self._insisted:
            raise error
        self._say(f"{error}; such calls go on the wire", str(error))

    async def _choose(self, call: Call, nbytes: int) -> Wanted:
        known = self._sizes.of(call, nbytes)
        asks_gpu = self._sharing == "auto" and (call.device or call.output_memory == "gpu")
        wanted = choose(
            call,
            self._sharing,
            min_nbytes=self._least,
            input_nbytes=sum(placeable(call).values()),
            output_nbytes=known.total * (call.rows or 1) if known else 0,
            gpu=asks_gpu and await self._gpu(call),
        )
        kinds: list[MemoryKind] = [
            kind for kind in (wanted.inputs, wanted.outputs) if kind is not None
        ]
        if kinds:
            await self._introduce(call)
        refused: dict[MemoryKind, str | None] = {
            kind: self._registrar.refusal(kind) for kind in kinds
        }
        if not any(refused.values()):
            return wanted
        self.tally.on_wire += 1
        for kind, why in refused.items():
            if why is not None:
                self._refuse(call, kind, why)
        return Wanted(
            _unless(wanted.inputs, refused), _unless(wanted.outputs, refused), wanted.insisted
        )

    async def _introduce(self, call: Call) -> None:
        """Find out, once for each process of the server, whether it takes shared memory at all."""
        registrar = self._registrar
        if not registrar.same_host and registrar.refusal("system") is None:
            probe = await self._store.probe(call.deadline)
            await registrar.name_for(probe, call.deadline)

    def _refuse(self, call: Call, kind: MemoryKind, why: str) -> None:
        target = self._endpoint.target
        if self._insisted and kind == self._sharing:
            self.tally.reason = why
            raise self._unplaceable(call, why)
        self._say(f"{target}: no {kind} shared memory, tensors go on the wire: {why}", why)

    def _unplaceable(self, call: Call, why: str) -> PlacementError:
        target = self._endpoint.target
        return PlacementError(
            f"model {call.model!r} at {target}: shared_memory={self._sharing!r}, but {why}",
            model=call.model,
            endpoint=target,
        )

    def _say(self, line: str, why: str) -> None:
        """Log why something goes on the wire, the first time."""
        self.tally.reason = why
        if line not in self._said and len(self._said) < 100:
            self._said.add(line)
            _log.warning(line)

    # --- one attempt ----------------------------------------------------------------------------

    async def _attempt(self, call: Call, nbytes: int, wanted: Wanted, cargo: Cargo) -> Reply | None:
        """Return the reply; ``None`` if it is to be tried again, or on the wire."""
        try:
            loaded = await self._load(call, nbytes, wanted, cargo, self._loader)
        except MemoryExhaustedError:
            if not self._waits:
                raise
            # Not with a part of what it needs: all others may have theirs, and none would go on.
            cargo.unload()
            async with self._store.turn(call.deadline, call.model):
                loaded = await self._load(call, nbytes, wanted, cargo, self._patient)
        if not loaded:
            return None
        if not cargo:
            return await self._by_wire(call, nbytes)
        self.tally.placed += 1
        return await self._tried(call, nbytes, cargo)

    async def _load(
        self, call: Call, nbytes: int, wanted: Wanted, cargo: Cargo, loader: Loader
    ) -> bool:
        """Take slots and fill them; return whether that could be done."""
        known = self._sizes.of(call, nbytes)
        # Room first: without it, nothing is copied in vain.
        if wanted.outputs is not None and known is not None:
            sizes = known.of(call.rows)
            if not await loader.make_room(call, wanted.outputs, sizes, cargo):
                return False
        return wanted.inputs is None or await loader.load(call, wanted.inputs, cargo)

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
            # They were asked for by names learned before: the model may have others by now.
            self._sizes.forget(call, nbytes)
        except RegionNotFoundError:
            for name, region in cargo.regions().items():
                self._registrar.forgotten(region, cargo.names[name])
        return None

    async def _send(self, call: Call, nbytes: int, cargo: Cargo) -> Reply:
        # The copy may have taken a while.
        for name, region in cargo.regions().items():
            if self._registrar.known(region) != cargo.names[name]:
                raise _StaleNameError
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


def _unless(kind: MemoryKind | None, refused: dict[MemoryKind, str | None]) -> MemoryKind | None:
    return None if kind is None or refused[kind] is not None else kind
