"""What the benchmark and a client's process say to each other: one JSON object a line.

Owns: the orders, the answers, and their form. Refuses to know: pipes and processes.

The process speaks first (:class:`Hello`); then each order gets one answer, in turn.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0)
"""Of the latencies, in every answer."""


class ProtocolError(Exception):
    """A line was none of the protocol's."""


@dataclass(frozen=True, slots=True)
class Order:
    """Run a workload.

    Attributes:
        workload: Its name.
        seconds: For how long calls begin; those that are out then are waited for.
        rate: Calls a second of an open loop.
        seed: Of the open loop's arrivals: the same for every client of a round.
        prepare: Whether this is the first order for the workload: make its data, check answers.
    """

    workload: str
    seconds: float
    rate: float = 0.0
    seed: int = 0
    prepare: bool = False


@dataclass(frozen=True, slots=True)
class Hello:
    """A process is connected; the versions of what it uses."""

    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round gave.

    Attributes:
        rows: Rows answered.
        seconds: From the first call's begin to the last answer.
        cpu_s: User and system time of the client's process in these seconds, all its threads.
        latency_us: Of a call, at each of :data:`QUANTILES`; ``None`` where it is not known.
        peak_rss_mib: The most memory that the process had in this round.
        checked: How many answers were compared with their inputs.
        errors: How many calls failed, or were answered wrongly.
        first_error: What the first of them said.
        extras: What only this kind of workload measures, by name.
    """

    rows: int
    seconds: float
    cpu_s: float
    latency_us: tuple[float | None, ...]
    peak_rss_mib: float
    checked: int
    errors: int = 0
    first_error: str = ""
    extras: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """The order could not be carried out."""

    reason: str


Message = Order | Hello | Outcome | Failure
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Order, Hello, Outcome, Failure)}


def to_line(message: Message) -> bytes:
    """Return the message as a line, its end included."""
    return json.dumps({type(message).__name__: asdict(message)}).encode() + b"\n"


def from_line(line: bytes) -> Message:
    """Return the message of a line.

    Raises:
        ProtocolError: It holds none.
    """
    try:
        ((kind, fields),) = json.loads(line).items()
        if "latency_us" in fields:
            fields["latency_us"] = tuple(fields["latency_us"])
        message: Message = _KINDS[kind](**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"not a message: {line[:200]!r}") from error
    return message
