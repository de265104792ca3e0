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
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Final

from tritonasync.core.errors import (
    InvalidInputError,
    InvalidRequestError,
    MemoryExhaustedError,
    PlacementError,
    RegionNotFoundError,
    SlotTooSmallError,
)
from tritonasync.core.offload import LONG_NBYTES, in_worker
from tritonasync.core.policies import MemoryPolicy
from tritonasync.core.ports import Region
from tritonasync.core.values import Array, Call, InputTensor, MemoryKind, Reply
from tritonasync.memory.device import as_host, settled
from tritonasync.memory.lease import Lease
from tritonasync.memory.store import MemoryStore
from tritonasync.transport.cargo import Cargo, layout
from tritonasync.transport.endpoint import Endpoint
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
from tritonasync.wire.placed import contents, encode_placed, fixed_nbytes, placeable

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
        known = self._sizes.of(call)
        if known is None or known.due() or call.device or call.output_memory == "gpu":
            return self._infer(call)
        # What is small is most calls, and pays 1 us for the question.
        try:
            small = fixed_nbytes(call) < self._least > known.total * (call.rows or 1)
        except InvalidInputError:  # the wire's stage says it better
            small = True
        return self._wire(call) if small else self._infer(call)

    async def _infer(self, call: Call) -> Reply:
        wanted = None if call.in_sequence else await self._choose(call)
        if wanted is None or not (wanted.inputs or wanted.outputs):
            return await self._by_wire(call)
        began = time.monotonic()
        for tries in count(1):
            cargo = Cargo(self._registrar)
            try:
                reply = await self._attempt(call, wanted, cargo)
            except MemoryExhaustedError as error:
                if wanted.insisted:
                    raise
                self._say(f"{error}; the call goes on the wire", str(error))
                break
            finally:
                cargo.release()
            if reply is not None:
                if not self._shared:
                    self._shared = True
                    self._on_shared()
                self._sizes.learn(call, reply)
                return reply
            if tries >= _ATTEMPTS:
                if not wanted.insisted:
                    break
                await self._pause(call, tries - _ATTEMPTS, began)
            wanted = await self._choose(call)
        self.tally.on_wire += 1
        return await self._by_wire(call)

    async def _pause(self, call: Call, pauses: int, began: float) -> None:
        """Wait a while for regions that are being unregistered; each pause is longer.

        Raises:
            DeadlineExceededError: The call's deadline passed (stage ``"memory"``).
            PlacementError: It takes too long.
        """
        if time.monotonic() - began > _PATIENCE_S:
            raise self._unplaceable(call, "the server's view of its regions keeps changing")
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(pauses, 10), _LONGEST_PAUSE_S)
        await asyncio.sleep(min(pause_s, call.deadline.remaining()))
        call.deadline.check("memory", model=call.model, endpoint=self._endpoint.target)

    async def _by_wire(self, call: Call) -> Reply:
        reply = await self._wire(await hosted(call))
        self._sizes.learn(call, reply)
        return reply

    # --- choosing -------------------------------------------------------------------------------

    async def _choose(self, call: Call) -> Wanted:
        known = self._sizes.of(call)
        asks_gpu = self._sharing == "auto" and (call.device or call.output_memory == "gpu")
        wanted = choose(
            call,
            self._sharing,
            min_nbytes=self._least,
            input_nbytes=sum(placeable(call).values()),
            output_nbytes=known.total * (call.rows or 1) if known else 0,
            gpu=asks_gpu and await self._gpu(call),
        )
        await self._introduce(call, wanted)
        refused = {
            kind: self._registrar.refusal(kind) for kind in (wanted.inputs, wanted.outputs) if kind
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

    async def _introduce(self, call: Call, wanted: Wanted) -> None:
        """Find out, once for each process of the server, whether it takes shared memory at all."""
        registrar = self._registrar
        if not (wanted.inputs or wanted.outputs) or registrar.same_host:
            return
        if registrar.refusal("system") is None:
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

    async def _attempt(self, call: Call, wanted: Wanted, cargo: Cargo) -> Reply | None:
        """Return the reply; ``None`` if it is to be tried again, or on the wire."""
        # Room first: without it, nothing is copied in vain.
        if wanted.outputs is not None and not await self._make_room(call, wanted.outputs, cargo):
            return None
        if wanted.inputs is not None and not await self._load(call, wanted.inputs, cargo):
            return None
        if not cargo:
            return await self._by_wire(call)
        self.tally.placed += 1
        return await self._tried(call, cargo)

    async def _tried(self, call: Call, cargo: Cargo) -> Reply | None:
        """Send what is in place; ``None`` if it failed of something that was mended."""
        try:
            return await self._send(call, cargo)
        except _StaleNameError:
            return None
        except SlotTooSmallError as error:
            # By what was given: that more is needed may have been learned from others since.
            given = cargo.outputs.get(error.output)
            if given is None or given[2] >= error.needed_nbytes:
                raise
            self._sizes.grow(call, error.output, error.needed_nbytes)
        except InvalidRequestError:
            if call.outputs or not cargo.outputs:
                raise
            # They were asked for by names learned before: the model may have others by now.
            self._sizes.forget(call)
        except RegionNotFoundError:
            for name, region in cargo.regions().items():
                self._registrar.forgotten(region, cargo.names[name])
        return None

    async def _load(self, call: Call, kind: MemoryKind, cargo: Cargo) -> bool:
        """Put the inputs in place; return whether that could be done."""
        sizes = {name: n for name, n in placeable(call).items() if n >= LEAST_NBYTES}
        copied: list[InputTensor] = []
        for tensor in call.inputs:
            if tensor.name not in sizes:
                continue
            place = self._store.find(tensor.parts[0]) if len(tensor.parts) == 1 else None
            if place is None or place[0].kind != kind:
                copied.append(tensor)
            elif not await self._named(place[0], call, cargo):
                return False
            else:
                (part,) = contents(tensor, call)
                cargo.borrow(tensor.name, part, *place)
        if not copied:
            return True
        at, nbytes = layout([(tensor.name, sizes[tensor.name]) for tensor in copied])
        lease = await self._take(kind, nbytes, f"inputs of model {call.model!r}", call)
        cargo.stow(lease, at, sizes)
        if not await self._named(lease.region, call, cargo):
            return False
        parts = [(at[tensor.name], contents(tensor, call)) for tensor in copied]
        await _fill(lease, parts, nbytes, call)
        return True

    async def _make_room(self, call: Call, kind: MemoryKind, cargo: Cargo) -> bool:
        """Take a slot for the outputs; return whether that could be done."""
        known = self._sizes.of(call)
        if known is None:
            return True
        sizes = {name: n for name, n in known.of(call.rows).items() if n >= LEAST_NBYTES}
        if not sizes:
            return True
        at, nbytes = layout(sizes.items())
        lease = await self._take(kind, nbytes, f"outputs of model {call.model!r}", call)
        cargo.reserve(lease, at, sizes)
        return await self._named(lease.region, call, cargo)

    async def _take(self, kind: MemoryKind, nbytes: int, purpose: str, call: Call) -> Lease:
        lease = self._store.take_nowait(kind, nbytes, purpose)
        if lease is not None:
            return lease
        wait = self._insisted and self._policy.when_full == "wait"
        return await self._store.take(kind, nbytes, purpose, call.deadline, call.model, wait=wait)

    async def _named(self, region: Region, call: Call, cargo: Cargo) -> bool:
        """Learn what the server calls a region; return whether it may be used."""
        name = self._registrar.known(region) or await self._registrar.name_for(
            region, call.deadline
        )
        if name is None:
            return False
        cargo.names[region.name] = name
        return True

    async def _send(self, call: Call, cargo: Cargo) -> Reply:
        # The copy may have taken a while.
        for name, region in cargo.regions().items():
            if self._registrar.known(region) != cargo.names[name]:
                raise _StaleNameError
        departed = cargo.depart()
        try:
            message = await self._message(call, cargo)
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

    async def _message(self, call: Call, cargo: Cargo) -> bytes:
        outputs = call.outputs
        if cargo.outputs and not outputs:
            known = self._sizes.of(call)
            outputs = tuple(known.each) if known else ()
        sent = replace(call, outputs=outputs) if outputs != call.outputs else call
        make = partial(encode_placed, sent, cargo.places(cargo.inputs), cargo.places(cargo.outputs))
        carried = fixed_nbytes(call) - sum(nbytes for _, _, nbytes in cargo.inputs.values())
        if carried < LONG_NBYTES:
            return make()
        return await in_worker(make, deadline=call.deadline, model=call.model)


class _StaleNameError(Exception):
    """A region's name went while its slot was filled: nothing was sent."""


async def hosted(call: Call) -> Call:
    """Return a call whose inputs are all in the host's memory, fetched if need be."""
    if not call.device:
        return call
    work = partial(_fetched, call)
    return await in_worker(work, deadline=call.deadline, model=call.model)


def _fetched(call: Call) -> Call:
    inputs = tuple([replace(tensor, parts=tuple(as_host(tensor.parts))) for tensor in call.inputs])
    return replace(call, inputs=inputs, device=False)


def _unless(kind: MemoryKind | None, refused: dict[MemoryKind, str | None]) -> MemoryKind | None:
    return None if kind is None or refused[kind] is not None else kind


async def _fill(
    lease: Lease, parts: list[tuple[int, tuple[Array, ...] | list[Array]]], nbytes: int, call: Call
) -> None:
    """Copy tensors into a slot, and return when they are there: the one copy."""

    def fill() -> None:
        for at, arrays in parts:
            lease.write(at, arrays)

    if nbytes < LONG_NBYTES:
        fill()
    else:
        await in_worker(fill, deadline=call.deadline, model=call.model)
    for completion in list(lease.pending):
        await settled(completion)
    lease.filled()
