"""What a call's names, datatypes and shapes alone decide of its message.

Owns: the head, the sizes of the raw contents behind it, and the bounded cache of both: they are the
same for call after call. Refuses to know: the elements of a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from tritonasync.core.errors import InvalidInputError, MessageTooLargeError
from tritonasync.core.values import Call, Datatype
from tritonasync.wire.dtypes import numpy_dtype
from tritonasync.wire.framing import REQUEST_RAW_TAG, field_prefix
from tritonasync.wire.messages import InputHead, request_head

MAX_MESSAGE_NBYTES: Final = 2**31 - 1
"""gRPC's and protobuf's limit, in bytes."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What an input's shape and datatype say of its raw content.

    Attributes:
        dtype: The numpy dtype of its parts; object for BYTES.
        count: Elements.
        nbytes: Bytes on the wire; 0 for BYTES, where only the elements tell.
        prefix: The tag and length before the content; empty for BYTES.
    """

    dtype: np.dtype[Any]
    count: int
    nbytes: int
    prefix: bytes

    @property
    def strings(self) -> bool:
        """Whether it is BYTES."""
        return self.dtype.kind == "O"


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a request that its names, datatypes and shapes decide.

    Attributes:
        head: The message without parameters, id and raw contents.
        slots: The raw contents to come, in order.
        nbytes: The size of all this, BYTES contents not counted.
        has_strings: Whether an input is BYTES.
    """

    head: bytes
    slots: tuple[Slot, ...]
    nbytes: int
    has_strings: bool

    @classmethod
    def of(cls, head: bytes, slots: tuple[Slot, ...]) -> Plan:
        """Return the plan of a message with this head and these raw contents behind it."""
        nbytes = len(head) + sum(len(slot.prefix) + slot.nbytes for slot in slots)
        return cls(head, slots, nbytes, any(slot.strings for slot in slots))


@lru_cache(maxsize=1024)
def _plan(
    model: str, version: str, inputs: tuple[InputHead, ...], outputs: tuple[str, ...]
) -> Plan:
    # A batcher sends one model at up to max_batch_size numbers of rows, each with a head of its
    # own (some 100 bytes): the cache holds several models' worth, within half a megabyte.
    slots = tuple(slot_of(model, *head) for head in inputs)
    plan = Plan.of(request_head(model, version, inputs, outputs), slots)
    # Before anything is built: each string has 4 bytes of length at least.
    least = plan.nbytes + sum(4 * slot.count for slot in slots if slot.strings)
    if least > MAX_MESSAGE_NBYTES:
        raise too_large(model, least, MAX_MESSAGE_NBYTES)
    return plan


def slot_of(model: str, name: str, datatype: Datatype, shape: tuple[int, ...]) -> Slot:
    """Return what is known of an input's raw content.

    Raises:
        InvalidInputError: The shape cannot be sent.
    """
    if not shape:
        raise refusal(
            model,
            name,
            "a 0-d array cannot be sent: a Triton tensor has one axis at least; reshape it to (1,)",
        )
    if min(shape) < 0:
        raise refusal(model, name, f"shape {shape} has a negative axis")
    dtype = numpy_dtype(datatype)
    count = math.prod(shape)
    if datatype == "BYTES":
        return Slot(dtype, count, 0, b"")
    nbytes = count * dtype.itemsize
    return Slot(dtype, count, nbytes, field_prefix(REQUEST_RAW_TAG, nbytes))


def refusal(model: str, name: str, reason: str) -> InvalidInputError:
    """Return the error for an input that cannot be sent."""
    return InvalidInputError(f"model {model!r}, input {name!r}: {reason}", model=model)


def plan_of(call: Call) -> Plan:
    """Return what a call's names, datatypes and shapes decide, from the cache if it is known.

    Raises:
        InvalidInputError: A shape or a name cannot be sent.
    """
    heads = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in call.inputs])
    return _plan(call.model, call.version, heads, call.outputs)


def too_large(model: str, nbytes: int, limit: int) -> MessageTooLargeError:
    """Return the error for a message over the limit."""
    return MessageTooLargeError(
        f"model {model!r}: the request is {nbytes:,} bytes or more, over the limit of "
        f"{limit:,} bytes a message; send fewer rows at a time",
        model=model,
    )
