"""Many requests on one stream: whose message is this, and what becomes of him.

Owns: the requests of one ``ModelStreamInfer`` call by id, the state of each (a table below), which
of them are answered in order, whether all who still wait are full. Sans-I/O and pure: what comes in
are events, what goes out are verdicts. Refuses to know: gRPC, asyncio, time, bytes.

Rules of the protocol, seen on Triton 2.51: a server repeats a request's id on every message about
it, errors included, and the stream goes on after them. A refusal says nothing of being final, and
nothing follows it. An error that says it is not final is the model's own, and more may follow; the
caller is told of it, and what follows is dropped. Requests of models that are not decoupled are
answered in the order in which they were sent, whatever their model; the others at once.

Invariants: every request ends exactly once, whatever comes in which order; a message about a
request that is over, or was never made, changes nothing; once :meth:`Multiplex.end` was called
there is no request left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, Generic, TypeVar

ModelKey = tuple[str, str]
"""A model's name and version."""

S = TypeVar("S")


class State(Enum):
    """How far a request is."""

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # an Enum's own is Python code, 0.15 us a look-up

    QUEUED = "it was not sent yet"
    OUT = "it was sent, and somebody waits for what comes"
    LEFT = "it was sent, and nobody waits any more"
    OVER = "nothing more comes of it"


class Event(Enum):
    """What can happen to a request."""

    if not TYPE_CHECKING:
        __hash__ = object.__hash__

    SENDING = "it is being sent: from here on it may run"
    RESPONSE = "a response, and not the last"
    LAST = "the last response"
    REFUSAL = "an error, and nothing comes after it"
    FAILURE = "an error, after which the server has more to say"
    LEAVING = "whoever waited has left"
    BREAK = "the stream broke"


class Verdict(Enum):
    """What is to be done about it."""

    NOTHING = "nobody is concerned"
    DELIVER = "give the response to who waits"
    FINISH = "give it to who waits, and tell that it is the last"
    FAIL = "give the error to who waits"
    WITHDRAW = "do not send it"
    NOT_SENT = "tell who waits that it was certainly not sent"
    LOST = "tell who waits that it was sent, and nothing more is known"


_TABLE: Final[dict[tuple[State, Event], tuple[State, Verdict]]] = {
    (State.QUEUED, Event.SENDING): (State.OUT, Verdict.NOTHING),
    (State.QUEUED, Event.LEAVING): (State.OVER, Verdict.WITHDRAW),
    (State.QUEUED, Event.BREAK): (State.OVER, Verdict.NOT_SENT),
    (State.OUT, Event.RESPONSE): (State.OUT, Verdict.DELIVER),
    (State.OUT, Event.LAST): (State.OVER, Verdict.FINISH),
    (State.OUT, Event.REFUSAL): (State.OVER, Verdict.FAIL),
    (State.OUT, Event.FAILURE): (State.LEFT, Verdict.FAIL),
    (State.OUT, Event.LEAVING): (State.LEFT, Verdict.NOTHING),
    (State.OUT, Event.BREAK): (State.OVER, Verdict.LOST),
    (State.LEFT, Event.LAST): (State.OVER, Verdict.NOTHING),
    (State.LEFT, Event.REFUSAL): (State.OVER, Verdict.NOTHING),
    (State.LEFT, Event.BREAK): (State.OVER, Verdict.NOTHING),
}
"""Whatever is not here changes nothing: an answer to what was not sent yet, say, which only a
server that makes things up can give."""


@dataclass(slots=True, eq=False)
class Request(Generic[S]):
    """A request on a stream.

    Attributes:
        id: Its id on the stream.
        model: The model's name and version.
        ordered: Whether it is answered in its turn: its model is not decoupled.
        sink: Who waits.
        message: What is to be sent; empty when it was, or is not to be any more.
        state: How far it is.
        full: Whether who waits has no room for more.
        failed: Whether it ended with an error for who waited.
    """

    id: str
    model: ModelKey
    ordered: bool
    sink: S
    message: bytes = b""
    state: State = State.QUEUED
    full: bool = False
    failed: bool = False


@dataclass(slots=True)
class Multiplex(Generic[S]):
    """The requests of one stream.

    Attributes:
        waited_for: Requests that somebody waits for, those not sent yet among them.
        left: Requests that nobody waits for, and the server has not ended.
        strays: Messages that nobody was concerned by.
    """

    waited_for: int = 0
    left: int = 0
    strays: int = 0
    _requests: dict[str, Request[S]] = field(default_factory=dict[str, Request[S]])
    _ordered: Counter[ModelKey] = field(default_factory=Counter[ModelKey])
    _full: int = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request[S]]:
        return iter(list(self._requests.values()))

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def oldest(self) -> Request[S] | None:
        """Return the oldest request that is not over, whatever its state."""
        return next(iter(self._requests.values()), None)

    def add(self, request: Request[S]) -> None:
        """Take a request that is to be sent. Its id is no other one's here."""
        self._requests[request.id] = request
        self.waited_for += 1
        if request.ordered:
            self._ordered[request.model] += 1

    def find(self, request_id: str) -> Request[S] | None:
        """Return the request that a message is about; ``None`` if it is over, or never was."""
        request = self._requests.get(request_id)
        if request is None:
            self.strays += 1
        return request

    def note(self, request: Request[S], event: Event) -> Verdict:
        """Take note of what happened to a request; return what is to be done."""
        before = request.state
        step = _TABLE.get((before, event))
        if step is None:
            return Verdict.NOTHING
        after, verdict = step
        request.failed |= verdict is Verdict.FAIL
        if before is State.QUEUED and after is State.OVER:
            request.message = b""  # it may be long until it would have been sent
        if after is not before:
            request.state = after
            if after is not State.OUT:
                self._moved(request, before, after)
        return verdict

    def _moved(self, request: Request[S], before: State, after: State) -> None:
        """Count anew: nobody waits any more, or it is over."""
        if before is State.LEFT:
            self.left -= 1
        else:
            self.waited_for -= 1
            self.fill(request, full=False)
        if after is State.LEFT:
            self.left += 1
            return
        del self._requests[request.id]
        if request.ordered:
            left = self._ordered[request.model] - 1
            if left:
                self._ordered[request.model] = left
            else:
                del self._ordered[request.model]

    def fill(self, request: Request[S], *, full: bool) -> None:
        """Take note that who waits has no room for more, or has room again."""
        if request.full is not full and (request.state is State.OUT or not full):
            request.full = full
            self._full += 1 if full else -1

    @property
    def crowded(self) -> bool:
        """Whether somebody is full: whoever comes next had better go elsewhere."""
        return self._full > 0

    @property
    def held(self) -> bool:
        """Whether all who wait are full, so that reading on would do nobody any good.

        Where nobody waits at all there is nothing to hold back: what comes is dropped.
        """
        return 0 < self._full == self.waited_for

    def held_up_by_others(self, model: ModelKey) -> bool:
        """Return whether an answer in turn would have to wait for another model's."""
        ordered = self._ordered
        return len(ordered) > (model in ordered)

    def end(self) -> list[tuple[S, Verdict]]:
        """End all requests, since the stream broke; return who is to be told what."""
        told = [(request.sink, self.note(request, Event.BREAK)) for request in self]
        return [(sink, verdict) for sink, verdict in told if verdict is not Verdict.NOTHING]
