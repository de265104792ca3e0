"""What batching has achieved: counted batch by batch, read as a snapshot.

Owns: the counters of one model. Refuses to know: when a batch leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tritonasync.core.reports import Duration


@dataclass(frozen=True, slots=True)
class BatchingStatistics:
    """What became of the rows of one model since the pool was opened.

    Attributes:
        model: The model's name.
        version: The version asked for; empty for the server's choice.
        batches: Requests sent, each carrying one batch.
        rows: Rows sent in them; those of a failed batch that were sent again count again.
        batch_rows: How many batches had so many rows: ``{upper bound: batches}``, the bounds being
            powers of two (a batch of 5 counts under 8).
        queue: Rows that left the queue, and how long they had waited, in seconds.
        queued_rows: Rows that wait now, of callers who left as well until the rows' turn comes.
        rows_in_flight: Rows sent and not answered now.
        batches_in_flight: Batches sent and not answered now.
        inflight_limit: Batches that may be in flight now; it follows measured latency.
        expired_rows: Rows dropped before they were sent, since their deadline passed.
        cancelled_rows: Rows dropped before they were sent, since their caller left.
        rejected_rows: Rows refused because the queue was full.
        halved_batches: Batches that failed for what may be one row's fault, and were tried again by
            halves.
    """

    model: str
    version: str
    batches: int
    rows: int
    batch_rows: Mapping[int, int]
    queue: Duration
    queued_rows: int
    rows_in_flight: int
    batches_in_flight: int
    inflight_limit: int
    expired_rows: int
    cancelled_rows: int
    rejected_rows: int
    halved_batches: int

    @property
    def mean_rows(self) -> float:
        """Rows per batch; 0 if none was sent."""
        return self.rows / self.batches if self.batches else 0.0


class Counters:
    """The counters of one model, as they run."""

    __slots__ = (
        "_bits",
        "batches",
        "expired_rows",
        "halved_batches",
        "left_rows",
        "rejected_rows",
        "rows",
        "rows_in_flight",
        "waited_s",
    )

    def __init__(self) -> None:
        self.batches: int = 0
        self.rows: int = 0
        self.rows_in_flight: int = 0
        self.left_rows: int = 0
        self.waited_s: float = 0.0
        self.expired_rows: int = 0
        self.rejected_rows: int = 0
        self.halved_batches: int = 0
        self._bits: dict[int, int] = {}  # batches by bit length of (rows - 1)

    def sent(self, rows: int) -> None:
        """Count a batch that leaves."""
        self.batches += 1
        self.rows += rows
        self.rows_in_flight += rows
        bits = (rows - 1).bit_length()
        self._bits[bits] = self._bits.get(bits, 0) + 1

    def left_queue(self, rows: int, waited_s: float) -> None:
        """Count rows that left the queue, and the sum of their times there."""
        self.left_rows += rows
        self.waited_s += waited_s

    def batch_rows(self) -> Mapping[int, int]:
        """Return batches by the power of two that their rows do not exceed."""
        return MappingProxyType({1 << bits: count for bits, count in sorted(self._bits.items())})
