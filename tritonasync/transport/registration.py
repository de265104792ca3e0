"""How one region stands with one server, and what a refusal means.

Owns: the states of a registration (a table), and the sentences about refusals. It sends nothing and
waits for nothing (``registrar`` and ``withdrawal`` do).

Invariant: of one region a server has one name at a time. Before 2.69 a second registration of a key
works on a descriptor that was closed (server #8733); so before another name is used, the one before
must surely be gone.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Final, Protocol

from tritonasync.core.errors import (
    AccessDeniedError,
    RegionExistsError,
    ServerError,
    UnsupportedError,
)
from tritonasync.core.ports import Region
from tritonasync.core.values import MemoryKind


class State(Enum):
    """How a region stands with a server."""

    ABSENT = "the server surely has no name of it"
    ASKING = "a question is out: whether it has the name, or takes a new one"
    KNOWN = "the server has it under its name"
    DOUBTED = "the server may have it under its name: ask before anything else"
    LEAVING = "it is being unregistered; nothing new may use its name"
    REFUSED = "the server does not take it"


class Event(Enum):
    """What happens to a registration."""

    ASK = "somebody wants to use it"
    ACCEPT = "the server has it"
    REFUSE = "the server does not take it"
    MISS = "the server does not know its name"
    DOUBT = "the server may be another one, or the outcome of a registration is not known"
    WITHDRAW = "it is to be unregistered"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.ABSENT: {
        Event.ASK: State.ASKING,
        Event.DOUBT: State.ABSENT,
    },
    State.ASKING: {
        Event.ACCEPT: State.KNOWN,
        Event.REFUSE: State.REFUSED,
        Event.MISS: State.ABSENT,
        Event.DOUBT: State.DOUBTED,
    },
    State.KNOWN: {
        Event.MISS: State.ABSENT,
        Event.DOUBT: State.DOUBTED,
        Event.WITHDRAW: State.LEAVING,
    },
    State.DOUBTED: {
        Event.ASK: State.ASKING,
        Event.MISS: State.ABSENT,
        Event.DOUBT: State.DOUBTED,
        Event.WITHDRAW: State.LEAVING,
    },
    State.LEAVING: {
        Event.MISS: State.ABSENT,
        Event.DOUBT: State.LEAVING,
        Event.WITHDRAW: State.LEAVING,
    },
    State.REFUSED: {
        Event.DOUBT: State.ABSENT,
    },
}
"""What follows from what; anything else is a defect of ours."""


class Retired(Protocol):
    """What a call has used that ended without the server's word, such as a lease."""

    def confirm(self) -> object:
        """Take note that the server surely lets it be."""
        ...


class Registration:
    """One region and one server: how they stand, and what waits for what.

    Args:
        region: The region.

    Attributes:
        region: The region.
        state: How it stands.
        name: What the server has it under, or may have; ``None`` if it surely has no name of it,
            but for a question that is out.
        calls: How many calls of ours are out on it.
        closing: Whether it is to be freed, so that it is never registered again.
        retired: What is free when the name is gone.
        news: Set when it is worth to look again.
        question: What finds out whether the server has it, or takes it.
        withdrawal: What unregisters it.
    """

    __slots__ = (
        "calls",
        "closing",
        "name",
        "news",
        "question",
        "region",
        "retired",
        "state",
        "withdrawal",
    )

    def __init__(self, region: Region) -> None:
        self.region: Region = region
        self.state: State = State.ABSENT
        self.name: str | None = None
        self.calls: int = 0
        self.closing: bool = False
        self.retired: list[Retired] = []
        self.news: asyncio.Event = asyncio.Event()
        self.question: asyncio.Task[None] | None = None
        self.withdrawal: asyncio.Task[None] | None = None

    @property
    def may_be_asked(self) -> bool:
        """Whether a question may end with a name that can be used."""
        asked = self.state is State.ASKING or Event.ASK in TRANSITIONS[self.state]
        return asked and not self.closing

    @property
    def gone(self) -> bool:
        """Whether the server surely has no name of it, nor will by what is out."""
        return self.name is None and self.question is None

    def apply(self, event: Event) -> None:
        """Go where the table says.

        Raises:
            RuntimeError: It says nothing: the driver is wrong.
        """
        after = TRANSITIONS[self.state].get(event)
        if after is None:
            raise RuntimeError(f"region {self.region.name!r}: {event.name} while {self.state.name}")
        self.state = after

    def confirm(self) -> None:
        """Tell what was retired that it is free."""
        while self.retired:
            self.retired.pop().confirm()


def refusal_of(kind: MemoryKind, error: ServerError) -> str:
    """Return in one sentence why a server does not take a region, and what to do about it."""
    if isinstance(error, UnsupportedError):
        advice = (
            "the server takes no shared memory from clients: start it with --allow-client-shm=true"
        )
    elif isinstance(error, AccessDeniedError):
        advice = "the server restricts who may use shared memory: give the pool its protocol_keys"
    elif isinstance(error, RegionExistsError):
        advice = "the names that it was to have are taken on the server"
    elif kind == "system":
        advice = (
            "the server could not open this process's shared memory: both must be on one machine, "
            "share /dev/shm if in containers (--ipc=host), and be of the same user"
        )
    else:
        advice = (
            "the server could not open this process's GPU memory: both must be on one machine and "
            "see the same GPU, and containers share IPC and PID namespaces (--ipc=host, "
            "--pid=host); the server's log tells more"
        )
    return f"{advice} ({error.details})"
