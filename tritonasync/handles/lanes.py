"""The short ways of a handle's items: opened by one that went the long way, used by those after.

Owns: one way for each time that an item may take. Refuses to know: how an item is checked and sent
(``batching.lane`` does), what the reply means.

Invariant: a way is used only for the signature that it was opened for; it says itself when the
model has changed since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from tritonasync.core.ports import ItemLane
from tritonasync.core.values import Call, InputTensor
from tritonasync.handles.signature import Signature

FindLane: TypeAlias = Callable[[Call, float], ItemLane | None]
"""Gives the short way of items like those of a call that may take so many seconds, if any."""

_MOST: Final = 8
"""Ways of a handle: those who give another time with each call have no use of one."""


def no_lane(call: Call, timeout_s: float) -> None:
    """Say that there is no short way."""
    del call, timeout_s


class Lanes:
    """The short ways of one handle.

    Args:
        find: Where they come from.
        name: The model's name.
        version: The model's version.
        idempotent: Whether it does no harm if the model runs twice.

    Attributes:
        ways: By seconds that an item may take; for looking up, not for changing.
    """

    __slots__ = ("_find", "_idempotent", "_name", "_none_for", "_signature", "_version", "ways")

    def __init__(self, find: FindLane, name: str, version: str, *, idempotent: bool = True) -> None:
        self._find = find
        self._name = name
        self._version = version
        self._idempotent = idempotent
        self.ways: dict[float, ItemLane] = {}
        self._signature: Signature | None = None
        self._none_for: Signature | None = None

    def open(self, signature: Signature, inputs: tuple[InputTensor, ...], timeout_s: float) -> None:
        """Have the next items like this one, of one row, take the short way."""
        ways = self.ways
        if self._signature is not signature or len(ways) >= _MOST:
            self._signature = signature
            ways.clear()
        lane = ways.get(timeout_s)
        if (lane is None or not lane.valid) and self._none_for is not signature:
            call = Call(self._name, self._version, inputs, 1, idempotent=self._idempotent)
            lane = self._find(call, timeout_s)
            if lane is None:
                self._none_for = signature  # nor any other; looking costs 2 us
            else:
                ways[timeout_s] = lane
