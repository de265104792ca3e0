"""Which regions of shared memory a server knows, and under what names.

Owns: registering a region the first time that it is wanted, with one question however many want it;
its name; finding out that a server takes no shared memory, and why; noticing with its callers that
a server was restarted; unregistering, and the proof that memory may be used for something else.
Refuses to know: what is in a region and who uses which part of it, and whether a call should use
one at all (``placement`` does).

Invariants: each registration has a name that was never used before and never will be, so that a
request which comes late cannot touch memory that was registered anew. A region has one name on the
server at a time. It is unregistered by that name only, and not while calls of ours are out on it.
What a call without an answer has used is confirmed to be free by nothing but the server's word that
it does not know the name.

Sources: the server's ``shared_memory_manager.cc`` and ``infer_handler.h``. A request holds the
regions of its tensors until it is released. To unregister one meanwhile unmaps it under the request
before 2.50, is refused by 2.50 to 2.52, and is put off from 2.53 on, where a request that is just
ending may miss the mark: so it is repeated until the name is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    DeadlineExceededError,
    PoolClosedError,
    ServerError,
    TritonError,
)
from tritonasync.core.ports import Region
from tritonasync.core.values import MemoryKind
from tritonasync.memory.janitor import is_dead as janitor_is_dead
from tritonasync.transport.admission import register
from tritonasync.transport.channel import balanced
from tritonasync.transport.leftovers import unregister_dead
from tritonasync.transport.regions import RegionControl
from tritonasync.transport.registration import Event, Registration, Retired, State, refusal_of
from tritonasync.transport.withdrawal import Withdrawals

ASK_TIMEOUT_S: Final = 30.0
"""How long one question may take, whoever waits for it."""

_log: Final = logging.getLogger("tritonasync.memory")


class Registrar:
    """Keeps the names of regions on one server. Made and used in one event loop.

    Args:
        control: The server's calls about regions. Borrowed until :meth:`aclose` has returned.
        clock: The monotonic clock, for reports of what takes long.
        is_dead: Tells whether the process that a name on the server belongs to is gone; called in a
            thread.
    """

    def __init__(
        self,
        control: RegionControl,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_dead: Callable[[str], bool] = janitor_is_dead,
    ) -> None:
        self._control = control
        self._withdrawals = Withdrawals(control, clock)
        self._is_dead = is_dead
        self._entries: dict[str, Registration] = {}
        self._names: dict[str, str] = {}  # by a region's own name: those that may be used now
        self._refusals: dict[MemoryKind, str] = {}
        self._accepted: set[MemoryKind] = set()
        self._same_host = False
        self._server = 0  # counts them: one that was restarted is another
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._over = False  # nobody awaits a task any more

    @property
    def target(self) -> str:
        """The gRPC target of the server."""
        return self._control.target

    # --- the names ------------------------------------------------------------------------------

    def known(self, region: Region) -> str | None:
        """Return the name that a region may be used under now: the short way."""
        return self._names.get(region.name)

    async def name_for(self, region: Region, deadline: Deadline) -> str | None:
        """Return the name that a region may be used under, registering it first if need be.

        Between this, or :meth:`known`, and :meth:`enter` nobody must wait: the name may go.

        Returns:
            ``None`` if the server does not take the region (:meth:`refusal` says why); or not now,
            while it is being unregistered: use another region, or the wire.

        Raises:
            DeadlineExceededError: ``deadline`` passed (stage ``"memory"``). The question goes on.
            PoolClosedError: The registrar is closed.
            ServerError: The server is not ready, or too much is out.
            TransportError: Nobody answered. No inference has been sent.
        """
        entry: Registration | None = None
        while (name := self._names.get(region.name)) is None:
            if self._closed:
                raise PoolClosedError(f"the pool is closed: {self.target}", endpoint=self.target)
            if self.refusal(region.kind) is not None:
                return None
            entry = entry or self._entry(region)  # the same, or what was released would come again
            if not entry.may_be_asked:
                return None
            await self._wait_for(self._question(entry), deadline)
        return name

    def refusal(self, kind: MemoryKind) -> str | None:
        """Return why no region of a kind can be used with this server; ``None`` if one may be.

        It is remembered until :meth:`restarted`.
        """
        if balanced(self.target):
            return "several servers may answer at this target, of which one has the region"
        if kind == "cuda" and not self._same_host:
            return self._refusals.get("system") or (
                "the server has not been seen to be on this machine: it has opened no region of "
                "the host's memory yet"
            )
        return self._refusals.get(kind)

    @property
    def same_host(self) -> bool:
        """Whether the server has opened memory of this host's."""
        return self._same_host

    # --- what calls tell ------------------------------------------------------------------------

    def enter(self, region: Region) -> None:
        """Take note that a call goes out on a region; :meth:`leave` is owed."""
        self._entry(region).calls += 1

    def leave(self, region: Region) -> None:
        """Take note that a call on a region has ended, however it did."""
        entry = self._entries[region.name]
        entry.calls -= 1
        if not entry.calls:
            entry.news.set()
            self._drop_if_over(entry)

    def forgotten(self, region: Region, name: str) -> None:
        """Take note that the server did not know a name, as after a restart.

        The other names are asked after before they are used again.
        """
        entry = self._entries.get(region.name)
        if entry is None or entry.name != name:
            return  # an older name's, of which all is known
        if entry.state is State.KNOWN:
            self.restarted()
        if entry.state is State.DOUBTED:
            self._gone(entry)

    def restarted(self) -> None:
        """Take note that the server may be another process: what it knows is in doubt.

        A name that it still has is kept; refusals are forgotten.
        """
        self._server += 1
        self._names.clear()
        self._refusals.clear()
        self._accepted.clear()
        self._withdrawals.doubt()
        for entry in self._entries.values():
            if entry.state is not State.ASKING:
                entry.apply(Event.DOUBT)
            entry.news.set()

    def retire(self, lease: Retired, region: Region, name: str | None = None) -> None:
        """Take over what a call has used that ended without the server's word.

        The region is unregistered, when the other calls on it have ended, and then the lease is
        confirmed; a call that has ended this way must have left (:meth:`leave`).

        Args:
            lease: What is to be confirmed.
            region: Where it is.
            name: The name that the call used, if it is known: one that is gone needs no more proof.
        """
        entry = self._entries.get(region.name)
        if entry is None or entry.name is None or name not in {None, entry.name}:
            lease.confirm()
            return
        entry.retired.append(lease)
        if entry.state is not State.ASKING:
            self._withdraw(entry)

    # --- ends -----------------------------------------------------------------------------------

    async def release(self, region: Region, deadline: Deadline) -> bool:
        """Unregister a region so that it may be freed; its name must not be asked for again.

        Returns:
            Whether the server surely has let it go. If not it goes on trying, but memory that a
            device has lent must never be freed then.
        """
        entry = self._entries.get(region.name)
        if entry is None:
            return True
        entry.closing = True
        await _wait([entry.question], deadline)
        if entry.question is None and entry.name is not None:
            self._withdraw(entry)
        await _wait([entry.withdrawal], deadline)
        self._drop_if_over(entry)
        return entry.gone

    async def aclose(self, deadline: Deadline) -> None:
        """Register nothing more, and unregister what is there, as far as the deadline allows.

        A server that cannot be reached is not waited for.
        """
        self._closed = self._withdrawals.closing = True
        self._names.clear()
        entries = list(self._entries.values())
        await _wait([entry.question for entry in entries], deadline)
        for entry in entries:
            if entry.name is not None and entry.question is None:
                self._withdraw(entry)
                entry.news.set()
        await _wait([entry.withdrawal for entry in entries], deadline)
        self._over = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def held(self) -> list[str]:
        """Return the own names of regions that the server has, as far as is known, or may have."""
        return [entry.region.name for entry in self._entries.values() if entry.name is not None]

    # --- asking ---------------------------------------------------------------------------------

    def _entry(self, region: Region) -> Registration:
        entry = self._entries.get(region.name)
        if entry is None:
            entry = self._entries[region.name] = Registration(region)
        return entry

    def _question(self, entry: Registration) -> asyncio.Task[None]:
        if entry.question is None:
            entry.apply(Event.ASK)
            entry.question = self._start(self._ask(entry))
        return entry.question

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        # What a server's answer means is told to who waits, if anybody does.
        if error is not None and not isinstance(error, TritonError):
            _log.error("%s: registering regions failed", self.target, exc_info=error)

    async def _wait_for(self, question: asyncio.Task[None], deadline: Deadline) -> None:
        await asyncio.wait({question}, timeout=deadline.wait_s())
        if not question.done():
            raise deadline.error("memory", endpoint=self.target)
        if question.cancelled():
            return
        error = question.exception()
        if isinstance(error, DeadlineExceededError) and not deadline.expired():
            return  # the question's time, not ours
        if isinstance(error, TritonError):
            raise _own(error)
        question.result()

    async def _ask(self, entry: Registration) -> None:
        """Find out whether the server has, or takes, a region: the task behind all who ask."""
        event: Event | None = None
        try:
            event = await self._find_out(entry, Deadline.after(ASK_TIMEOUT_S))
        finally:
            # Without an answer it is as its name says: there is one that the server may have.
            self._conclude(entry, event or (Event.DOUBT if entry.name else Event.MISS))
            del entry  # an error has this frame, and a task has the error

    async def _find_out(self, entry: Registration, deadline: Deadline) -> Event:
        server, kind = self._server, entry.region.kind
        if entry.name is not None:
            try:
                there = await self._control.registered(entry.name, kind, deadline)
            except ServerError as error:
                if not error.retriable and server == self._server:
                    self._refusals[kind] = refusal_of(kind, error)
                    return Event.DOUBT
                raise
            if there:
                return Event.ACCEPT if server == self._server else Event.DOUBT
            entry.name = None
        if entry.closing:
            return Event.MISS
        reason = await register(self._control, entry, deadline)
        if server != self._server:
            return Event.DOUBT if reason is None else Event.MISS
        if reason is None:
            return Event.ACCEPT
        self._refuse(entry, reason)
        return Event.REFUSE

    def _refuse(self, entry: Registration, reason: str) -> None:
        kind = entry.region.kind
        if kind in self._accepted:  # and not this one: who asks for the kind is told nothing
            _log.warning("%s: region %r is not used: %s", self.target, entry.region.name, reason)
            return
        self._refusals[kind] = reason
        if kind == "system":
            self._same_host = False

    def _conclude(self, entry: Registration, event: Event) -> None:
        entry.question = None
        if event in {Event.MISS, Event.REFUSE}:
            entry.name = None
        entry.apply(event)
        if event is Event.ACCEPT:
            self._accept(entry)
        if entry.name is None:
            entry.confirm()
        elif entry.retired or entry.closing:
            self._withdraw(entry)
        self._drop_if_over(entry)

    def _accept(self, entry: Registration) -> None:
        kind = entry.region.kind
        if not entry.closing and not self._closed and entry.name is not None:
            self._names[entry.region.name] = entry.name
        first = kind not in self._accepted
        self._accepted.add(kind)
        if kind == "system" and first and not self._closed:
            self._same_host = True
            self._start(unregister_dead(self._control, self._is_dead, ASK_TIMEOUT_S))

    # --- unregistering --------------------------------------------------------------------------

    def _withdraw(self, entry: Registration) -> None:
        """Have a region unregistered, by a task of its own."""
        entry.apply(Event.WITHDRAW)
        self._names.pop(entry.region.name, None)
        if entry.withdrawal is None and not self._over:
            entry.withdrawal = self._start(self._unregister(entry))

    async def _unregister(self, entry: Registration) -> None:
        gone = False
        try:
            gone = await self._withdrawals.run(entry)
        finally:
            entry.withdrawal = None
        if gone:
            self._gone(entry)

    def _gone(self, entry: Registration) -> None:
        """Take note that the server does not know a region's name."""
        self._names.pop(entry.region.name, None)
        entry.name = None
        entry.apply(Event.MISS)
        entry.confirm()
        self._drop_if_over(entry)

    def _drop_if_over(self, entry: Registration) -> None:
        if entry.closing and entry.gone and not entry.calls:
            self._entries.pop(entry.region.name, None)


def _own(error: TritonError) -> TritonError:
    """Return an error for one of those who waited: a raised object belongs to one task."""
    own = error.copy()
    own.may_have_executed = False  # no model has, whatever became of the registration
    return own


async def _wait(tasks: list[asyncio.Task[None] | None], deadline: Deadline) -> None:
    waited_for = {task for task in tasks if task is not None}
    if waited_for:
        await asyncio.wait(waited_for, timeout=deadline.wait_s())
