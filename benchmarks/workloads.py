"""What is measured: the workloads, and which clients run each.

Owns: names, shapes and callers. Read on both sides of the pipe, in environments that have neither
tritonasync nor this project's dependencies: standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["closed", "open", "stall", "first"]

WARM_S = 0.2


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load.

    Attributes:
        name: As in ``--only``.
        title: As in the report.
        model: Its input is INPUT0, its output OUTPUT0.
        shape: Of one row.
        datatype: ``FP32`` or ``BYTES``.
        callers: How many calls are out at any time; for an open loop, how many rows are prepared.
        max_batch_size: The model's.
        clients: Who runs it, by name.
        quick: Who runs it with ``--quick``; nobody leaves it out.
        rows: Rows of a call that brings a batch; ``None`` for single rows without a batch axis.
        kind: ``closed``: each caller calls again as soon as it is answered. ``open``: calls come
            by a Poisson process, whether or not earlier ones are answered. ``stall``: closed, and
            the longest time that the event loop does not turn is measured. ``first``: closed, and a
            call's latency ends with its first response.
        limited: Whether the model's own time is the limit that is compared with.
        echoes: Whether the answer is the input; else, it is the first value of each row.
        responses: Responses to a request of a decoupled model, each of which counts as a row;
            ``None`` for a model that answers once.
        warm_s: How long every client runs before the first round.
    """

    name: str
    title: str
    model: str
    shape: tuple[int, ...]
    callers: int
    max_batch_size: int
    clients: tuple[str, ...]
    quick: tuple[str, ...]
    datatype: Literal["FP32", "BYTES"] = "FP32"
    rows: int | None = None
    kind: Kind = "closed"
    limited: bool = False
    echoes: bool = True
    responses: int | None = None
    warm_s: float = WARM_S

    @property
    def rows_per_call(self) -> int:
        """How many rows one call carries, or how many responses it brings."""
        return self.rows or self.responses or 1

    @property
    def precise(self) -> bool:
        """Whether the clients' timers are a part of what is measured."""
        return self.kind in {"open", "stall"}


EVERYONE = (
    "ours", "ours-unbatched", "aio", "stream", "threads", "pytriton", "tritony",
    "async-batcher", "batched", "perf",
)  # fmt: skip
WITHOUT_BATCHERS = tuple(name for name in EVERYONE if name not in {"async-batcher", "batched"})
IMAGE_CLIENTS = (
    "ours", "ours-wire", "ours-leased", "ours-leased-anew", "ours-unbatched", "aio", "aio-shared",
    "threads", "pytriton", "async-batcher", "perf",
)  # fmt: skip
LOOPS = ("ours", "ours-wire", "aio")
PLACING = ("ours-placed", "ours-unplaced")
ONE_STREAM = ("ours-one-stream", "stream")
STREAMS = ("ours-one-stream", "ours-stream", "ours-unary", "stream", "aio")
EITHER_WAY = ("ours-auto", "ours-unary", "ours-stream")

DECIDING_S = 4.0
"""``auto`` begins to try after 256 calls, and changes its way after two trials."""

ROW = (16,)
IMAGE = (3, 224, 224)


def _rows(callers: int, title: str, quick: tuple[str, ...]) -> Workload:
    return Workload(f"rows-{callers}", title, "ident", ROW, callers, 256, EVERYONE, quick)


def _images(callers: int, title: str, quick: tuple[str, ...]) -> Workload:
    name = f"images-{callers}"
    return Workload(name, title, "ident_image", IMAGE, callers, 8, IMAGE_CLIENTS, quick)


def _streamed(callers: int, title: str, quick: tuple[str, ...]) -> Workload:
    name = f"stream-rows-{callers}"
    return Workload(
        name, f"{title}, unbatched over streams", "ident", ROW, callers, 256, STREAMS, quick
    )


def _placed(nbytes: int, callers: int) -> Workload:
    size = size_text(nbytes)
    who = "one caller" if callers == 1 else f"{callers} callers"
    return Workload(
        f"placed-{callers}-{size.replace(' ', '').lower()}",
        f"Messages of {size}, {who}: in shared memory or on the wire",
        "echo", (nbytes // 4,), callers, 8, PLACING, (),
    )  # fmt: skip


def size_text(nbytes: int) -> str:
    """Return a power of two as text."""
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def _either(name: str, title: str, callers: int, rows: int | None = None) -> Workload:
    return Workload(
        f"auto-{name}", f"{title}: by calls, by streams, or as 'auto' decides",
        "ident", ROW, callers, 256, EITHER_WAY, (), rows=rows, warm_s=DECIDING_S,
    )  # fmt: skip


WORKLOADS = (
    _rows(1, "64 B rows, one caller", ("ours", "ours-unbatched", "aio")),
    _rows(64, "64 B rows, 64 callers", ("ours", "ours-unbatched", "aio", "async-batcher")),
    _rows(1024, "64 B rows, 1,024 callers", ("ours", "aio", "async-batcher", "perf")),
    Workload(
        "batches", "Whole batches: 4 callers, 256 rows of 64 B each",
        "ident", ROW, 4, 256, WITHOUT_BATCHERS, ("ours", "aio", "perf"), rows=256,
    ),
    _images(1, "602,112 B images, one caller", ()),
    _images(8, "602,112 B images, 8 callers", ()),
    _images(64, "602,112 B images, 64 callers", ("ours", "ours-wire", "ours-leased", "aio")),
    Workload(
        "strings", "BYTES: 8 callers, 1,000 strings of 8 to 40 bytes each",
        "bytes_ident", (1000,), 8, 64,
        ("ours", "ours-unbatched", "aio", "threads", "pytriton", "tritony"), (), datatype="BYTES",
    ),
    Workload(
        "slow", "A model that takes 10 ms a batch (up to 32 rows), 256 callers",
        "slow_echo", ROW, 256, 32, ("ours", "aio", "async-batcher", "batched", "perf"), ("ours",),
        limited=True,
    ),
    Workload(
        "slow-dynamic", "The same with the server's own dynamic batching, 256 callers",
        "slow_dynamic", ROW, 256, 32, ("ours", "ours-unbatched", "aio"), (), limited=True,
    ),
    Workload(
        "open", "64 B rows, Poisson arrivals at half of what unbatched calls can carry",
        "ident", ROW, 64, 256, ("ours", "ours-unbatched", "aio", "async-batcher"),
        ("ours", "ours-unbatched", "aio"), kind="open",
    ),
    Workload(
        "stall-send", "The event loop while a 19 MB request is sent",
        "sink", IMAGE, 1, 32, LOOPS, LOOPS, rows=32, kind="stall", echoes=False,
    ),
    Workload(
        "stall-both", "The event loop while 19 MB are sent and 19 MB come back",
        "big_echo", IMAGE, 1, 32, LOOPS, (), rows=32, kind="stall",
    ),
    _streamed(1, "64 B rows, one caller", ()),
    _streamed(64, "64 B rows, 64 callers", ONE_STREAM),
    Workload(
        "stream-rows-1024", "64 B rows, 1,024 callers, batches over streams",
        "ident", ROW, 1024, 256, ("ours-batched-stream", "ours", "stream"),
        ("ours-batched-stream", "stream"),
    ),
    _either("1", "64 B rows, one caller, unbatched", 1),
    _either("64", "64 B rows, 64 callers, unbatched", 64),
    _either("batches", "Whole batches: 4 callers, 256 rows of 64 B each", 4, rows=256),
    Workload(
        "decoupled", "A decoupled model: 16 readers, 64 responses of 64 B to each request",
        "burst", ROW, 16, 1, ("ours", "ours-one-stream", "stream"), ("ours", "stream"),
        responses=64,
    ),
    Workload(
        "first-token", "A decoupled model: one caller's time to the first of 3 responses",
        "speech", ROW, 1, 1, ("ours", "stream"), ("ours", "stream"), kind="first", responses=3,
    ),
)  # fmt: skip

SIZES = tuple(4096 << step for step in range(10))
"""From where nobody would place a message to where everybody would: 4 KiB to 2 MiB."""

SWEEP = {callers: tuple(_placed(nbytes, callers) for nbytes in SIZES) for callers in (1, 64)}
"""By the number of callers: what finds the size from which shared memory pays."""

BY_NAME = {
    workload.name: workload
    for workload in (*WORKLOADS, *(each for sweep in SWEEP.values() for each in sweep))
}

PARTS = {"placing": tuple(each.name for sweep in SWEEP.values() for each in sweep)}
"""Names of several workloads together. They are measured only when they are asked for."""

CAPACITY = ("rows-64", "ours-unbatched")
"""Whose rows/s are the capacity that the open loop takes half of."""
