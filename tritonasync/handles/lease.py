"""Input arrays in shared memory, lent to a user who writes them in place.

Owns: which inputs of a model are lent in which shapes, and the arrays while they are. Refuses to
know: servers, how a call is placed: an array that lies in shared memory is sent from there, whoever
gives it to whichever model.

Invariants: the room is used again only when the arrays, and all that was derived from them without
a copy, are gone, and the calls that they went with have ended.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, SupportsIndex, TypeAlias, cast, get_args

import numpy as np

from tritonasync.core.checks import is_count
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConfigurationError, InvalidInputError, UsageError
from tritonasync.core.values import Array, MemoryKind
from tritonasync.handles.signature import Signature
from tritonasync.memory.arena import aligned
from tritonasync.memory.lease import Lease
from tritonasync.memory.store import Order

_BYTE: Final = np.dtype(np.uint8)

Lend: TypeAlias = Callable[[Order], Awaitable[Lease]]
"""Where slots come from; raises as :meth:`MemoryStore.take`."""


@dataclass(frozen=True, slots=True)
class LentInput:
    """One input that is lent.

    Attributes:
        name: Its name.
        shape: The shape of the array, batch axis included.
        dtype: Its dtype.
        at: Where in the slot it begins.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    at: int


def slots_of(
    signature: Signature, rows: int | None, shapes: Mapping[str, Sequence[int]] | None
) -> tuple[list[LentInput], int]:
    """Return the inputs of a model that are lent, and the bytes of all together.

    Raises:
        InvalidInputError: Rows or shapes do not fit the model.
    """
    spec = signature.spec
    if not isinstance(shapes, Mapping | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _refusal(spec.name, f"shapes maps names of inputs to shapes, not {shapes!r}")
    given = dict(shapes or {})
    _check_rows(signature, rows)
    lent: list[LentInput] = []
    end = 0
    for name, slot in signature.slots.items():
        asked = given.pop(name, None)
        if slot.datatype == "BYTES":
            if asked is not None:
                raise slot.refuse("strings have no fixed size: give them with the call")
            continue
        if asked is None and slot.optional:
            continue
        item = slot.item_shape if asked is None else _checked(asked)
        if item is None:
            raise slot.refuse(
                f"its shape {slot.shape_text(item=True)} leaves an axis free: say which is "
                f"wanted, shapes={{{name!r}: (…)}}"
            )
        if item == () or not slot.takes_item(item):
            got = asked if asked is None else repr(asked)
            raise slot.refuse(f"expected shape {slot.shape_text(item=True)}, got {got}")
        shape = item if rows is None else (rows, *item)
        lent.append(LentInput(name, shape, slot.dtype, end))
        end += aligned(math.prod(shape) * slot.dtype.itemsize)
    if given:
        raise _refusal(spec.name, f"no such input: {', '.join(map(repr, given))}")
    if not end:
        raise _refusal(spec.name, f"it has no input that can be lent: {signature.inputs_text()}")
    return lent, end


def _check_rows(signature: Signature, rows: int | None) -> None:
    spec = signature.spec
    if not spec.batched:
        if rows is not None:
            raise _refusal(spec.name, "it has no batch axis: leave the rows out")
        return
    if rows is None:
        raise _refusal(spec.name, f"how many rows? 1 to {spec.max_batch_size} (max_batch_size)")
    if not is_count(rows) or rows > spec.max_batch_size:
        raise _refusal(
            spec.name,
            f"rows is a number from 1 to {spec.max_batch_size} (max_batch_size), not {rows!r}",
        )


def _checked(shape: object) -> tuple[int, ...]:
    """Return a shape as numbers; empty if it is none."""
    try:
        axes = tuple([operator.index(axis) for axis in cast("Sequence[SupportsIndex]", shape)])
    except TypeError:
        return ()
    return axes if all(axis > 0 for axis in axes) else ()


def _refusal(model: str, reason: str) -> InvalidInputError:
    return InvalidInputError(f"model {model!r}: {reason}", model=model)


class LeasedInputs(Mapping[str, Array]):
    """Input arrays in shared memory, by name: write into them, and call the model with them.

    They are sent as they are, in no batch with others. Write them again only after the call before
    has been answered.

    Args:
        lease: The slot. Owned.
        inputs: What is in it.
    """

    __slots__ = ("__weakref__", "_arrays", "_lease", "_release")

    def __init__(self, lease: Lease, inputs: Sequence[LentInput]) -> None:
        self._lease = lease
        # At the latest when nobody knows of them any more.
        self._release = weakref.finalize(self, lease.release)
        self._release.atexit = False
        self._arrays = {
            each.name: lease.view(each.at, each.shape, each.dtype, writable=True) for each in inputs
        }

    def __getitem__(self, name: str) -> Array:
        """Return the array of an input; ``KeyError`` if it is not lent, or was given back.

        Raises:
            WrongContextError: This is a forked child: the memory is its parent's.
        """
        array = self._arrays[name]
        self._lease.region.view(0, (0,), _BYTE, None, writable=False)  # which refuses a child
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def release(self) -> None:
        """Give the arrays back; those who still have one keep the room until they drop it."""
        self._arrays = {}
        self._release()

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name}: {a.dtype}{list(a.shape)}" for name, a in self.items())
        return f"<LeasedInputs {arrays or 'given back'}>"


class Lending:
    """A request for input arrays: ``async with model.lease(rows) as slot``. Used once.

    Args:
        model: The model's name.
        plan: Says what is lent.
        describe: Gives the signature.
        lend: Where slots come from; ``None`` for a handle without.
        memory: Whose memory.
        when_full: Whether to wait for room.
        timeout_s: Seconds to wait.
    """

    def __init__(
        self,
        model: str,
        plan: Callable[[Signature], tuple[list[LentInput], int]],
        describe: Callable[[Deadline], Awaitable[Signature]],
        lend: Lend | None,
        *,
        memory: MemoryKind | None,
        when_full: Literal["wait", "raise"] | None,
        timeout_s: float,
    ) -> None:
        if memory is not None and memory not in get_args(MemoryKind):
            raise ConfigurationError(
                f"model {model!r}: memory is one of {', '.join(get_args(MemoryKind))}, not "
                f"{memory!r}"
            )
        if when_full not in (None, "wait", "raise"):
            raise ConfigurationError(
                f"model {model!r}: when_full is 'wait' or 'raise', not {when_full!r}"
            )
        self._model = model
        self._plan = plan
        self._describe = describe
        self._lend = lend
        self._memory: MemoryKind | None = memory
        self._when_full: Literal["wait", "raise"] | None = when_full
        self._timeout_s = timeout_s
        self._inputs: LeasedInputs | None = None

    async def __aenter__(self) -> LeasedInputs:
        if self._inputs is not None:
            raise UsageError(f"model {self._model!r}: a lease is entered once", model=self._model)
        if self._lend is None:
            raise UsageError(
                f"model {self._model!r}: this handle was made without shared memory",
                model=self._model,
            )
        deadline = Deadline.after(self._timeout_s)
        inputs, nbytes = self._plan(await self._describe(deadline))
        order = Order(nbytes, self._model, deadline, self._memory, self._when_full)
        lease = await self._lend(order)
        try:
            self._inputs = LeasedInputs(lease, inputs)
        except BaseException:
            lease.release()
            raise
        return self._inputs

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._inputs is not None:
            self._inputs.release()
