"""How large the outputs of a model are, as learned from its answers.

Owns: what was learned, by model, version, the outputs asked for, and the size of the inputs, about.
Pure. Refuses to know: where outputs are placed.

A model's signature does not tell: an axis may be free, and a call does not carry it. The most that
a row of an output took of late is what the next ones are given; a place that turns out too small
teaches better.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tritonasync.core.values import Call, Reply

WINDOW: Final = 64
"""So many answers make what is known; what they did not need is forgotten. Of calls that need no
place every so manieth answer is looked at, since outputs may have grown."""

MOST: Final = 1024
"""Kinds of calls that are remembered."""

_Kind: TypeAlias = tuple[str, str, tuple[str, ...], int]


def _of_names() -> dict[str, int]:
    return {}


@dataclass(slots=True)
class OutputSizes:
    """What is known of the outputs of one kind of call.

    Attributes:
        each: Bytes of each output, in the order of the answer, of a row (of a call, for a model
            without a batch axis); 0 for what cannot be placed.
        total: Their sum.
    """

    each: dict[str, int] = field(default_factory=_of_names)
    total: int = 0
    _calls: int = 0
    _seen: dict[str, int] = field(default_factory=_of_names)  # the most within this window
    _left: int = WINDOW

    def due(self) -> bool:
        """Count a call that needs no place; return whether its answer should be looked at."""
        self._calls += 1
        return not self._calls % WINDOW

    def of(self, rows: int) -> dict[str, int]:
        """Return the bytes of each output for so many rows."""
        factor = rows or 1
        return {name: nbytes * factor for name, nbytes in self.each.items()}

    def see(self, sizes: dict[str, int]) -> None:
        """Take note of an answer."""
        if self.each.keys() != sizes.keys():
            self.each, self._seen, self._left = dict(sizes), dict(sizes), WINDOW
        for name, nbytes in sizes.items():
            self._seen[name] = max(nbytes, self._seen.get(name, 0))
            self.each[name] = max(nbytes, self.each[name])
        self._left -= 1
        if not self._left:
            self.each, self._seen, self._left = self._seen, dict(sizes), WINDOW
        self.total = sum(self.each.values())

    def need(self, output: str, nbytes: int) -> None:
        """Take note that a row of an output needs so many bytes."""
        for known in (self.each, self._seen):
            known[output] = max(nbytes, known.get(output, 0))
        self.total = sum(self.each.values())


class LearnedSizes:
    """What is known of all kinds of calls.

    Those with inputs of about the same size, within a factor of two a row, are of a kind: outputs
    mostly grow with them.
    """

    def __init__(self) -> None:
        self._known: dict[_Kind, OutputSizes] = {}

    def of(self, call: Call, nbytes: int) -> OutputSizes | None:
        """Return what is known of a call's outputs; ``None`` if nothing is (0.5 us).

        ``nbytes`` is the size of its inputs; for :meth:`learn` and the others, too.
        """
        return self._known.get(_kind(call, nbytes))

    def learn(self, call: Call, nbytes: int, reply: Reply) -> None:
        """Take note of an answer."""
        kind = _kind(call, nbytes)
        known = self._known.get(kind)
        if known is None:
            if len(self._known) >= MOST:
                self._known.clear()
            known = self._known[kind] = OutputSizes()
        rows = call.rows or 1
        known.see(
            {
                name: 0 if array.dtype.kind == "O" else -(-array.nbytes // rows)
                for name, array in reply.outputs.items()
            }
        )

    def grow(self, call: Call, nbytes: int, output: str, needed_nbytes: int) -> None:
        """Take note that an output of a call needs so many bytes."""
        known = self.of(call, nbytes)
        if known is not None:
            known.need(output, -(-needed_nbytes // (call.rows or 1)))

    def forget(self, call: Call, nbytes: int) -> None:
        """Drop what is known: the model may be another."""
        self._known.pop(_kind(call, nbytes), None)


def _kind(call: Call, nbytes: int) -> _Kind:
    return call.model, call.version, call.outputs, (nbytes // (call.rows or 1)).bit_length()
