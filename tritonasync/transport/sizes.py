"""How large the outputs of a model are, as learned from its answers.

Owns: what was learned, by model, version and the outputs asked for. Pure. Refuses to know: where
outputs are placed.

A model's signature does not tell: an axis may be free, and a call does not carry it. The most that
a row of an output ever took is what the next ones are given; a place that turns out too small
teaches better.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tritonasync.core.values import Call, Reply

_RENEWAL: Final = 64
"""After so many calls an answer is looked at again: outputs may have grown."""

_MOST: Final = 1024
"""Models, versions and choices of outputs that are remembered."""


@dataclass(slots=True)
class OutputSizes:
    """What is known of one model's outputs.

    Attributes:
        each: Bytes of each output, in the order of the answer, of a row (of a call, for a model
            without a batch axis); 0 for what cannot be placed.
        total: Their sum.
        calls: Calls since an answer was looked at.
    """

    each: dict[str, int] = field(default_factory=dict)
    total: int = 0
    calls: int = 0

    def due(self) -> bool:
        """Count a call; return whether its answer should be looked at."""
        self.calls += 1
        return self.calls >= _RENEWAL

    def of(self, rows: int) -> dict[str, int]:
        """Return the bytes of each output for so many rows."""
        factor = rows or 1
        return {name: nbytes * factor for name, nbytes in self.each.items()}


class LearnedSizes:
    """What is known of all models' outputs."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, tuple[str, ...]], OutputSizes] = {}

    def of(self, call: Call) -> OutputSizes | None:
        """Return what is known of a call's outputs; ``None`` if nothing is (0.3 us)."""
        return self._known.get((call.model, call.version, call.outputs))

    def learn(self, call: Call, reply: Reply) -> None:
        """Take note of an answer."""
        key = call.model, call.version, call.outputs
        known = self._known.get(key)
        if known is None or known.each.keys() != reply.outputs.keys():
            if len(self._known) >= _MOST:
                self._known.clear()
            known = self._known[key] = OutputSizes()
        known.calls = 0
        for name, array in reply.outputs.items():
            nbytes = 0 if array.dtype.kind == "O" else -(-array.nbytes // (call.rows or 1))
            known.each[name] = max(nbytes, known.each.get(name, 0))
        known.total = sum(known.each.values())

    def grow(self, call: Call, output: str, nbytes: int) -> None:
        """Take note that an output needs so many bytes."""
        known = self.of(call)
        if known is not None:
            each = -(-nbytes // (call.rows or 1))
            known.each[output] = max(each, known.each.get(output, 0))
            known.total = sum(known.each.values())

    def forget(self, call: Call) -> None:
        """Drop what is known: the model may be another."""
        self._known.pop((call.model, call.version, call.outputs), None)
