"""Requests whose tensors lie in shared memory, wholly or in part.

Owns: the parameters that name a tensor's place, for inputs and outputs. Refuses to know: who
registered a region, who has which part of it, when it may be used again.

Invariant: a message that leaves here is whole: each input is either placed or in it.

A placed input leaves no raw content, a placed output an empty one (seen on 2.51). Triton takes the
rest by the order of the inputs. The head of such a message is the same as long as the same places
are used again, and comes from a bounded cache: with it, a message is built in a few microseconds.

Source: Triton's shared-memory extension of the KServe v2 protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from tritonasync.core.values import Array, Call, InputTensor
from tritonasync.wire.encode import encode_planned, wire_parts
from tritonasync.wire.messages import InputHead, Place, placed_head
from tritonasync.wire.plan import MAX_MESSAGE_NBYTES, Plan, plan_of, slot_of

Places = Mapping[str, Place]
"""Where tensors are, by name."""


def encode_placed(
    call: Call, inputs: Places, outputs: Places, asked: tuple[str, ...] = ()
) -> bytes:
    """Return the serialised ``ModelInferRequest`` of a call with tensors in shared memory.

    Args:
        call: What to send. Parts of placed inputs are not read: their elements are in place.
        inputs: Where inputs are; those not named travel in the message.
        outputs: Where outputs are to be written; others come back in the message.
        asked: The outputs to ask for, if the call does not name them; it must name all that have a
            place. Empty for those that have one.

    Raises:
        InvalidInputError: As :func:`~tritonasync.wire.encode.encode_request`.
        MessageTooLargeError: What is not placed is over the limit of a message.
    """
    heads = tuple(
        [
            (tensor.name, tensor.datatype, tensor.shape, inputs.get(tensor.name))
            for tensor in call.inputs
        ]
    )
    wanted = call.outputs or asked or tuple(outputs)
    plan = _placed_plan(
        call.model, call.version, heads, tuple([(name, outputs.get(name)) for name in wanted])
    )
    carried = [tensor for tensor in call.inputs if tensor.name not in inputs]
    return encode_planned(call, plan, MAX_MESSAGE_NBYTES, inputs=carried)


@lru_cache(maxsize=1024)
def _placed_plan(
    model: str,
    version: str,
    inputs: tuple[tuple[*InputHead, Place | None], ...],
    outputs: tuple[tuple[str, Place | None], ...],
) -> Plan:
    slots = tuple(
        [slot_of(model, *head) for *head, place in inputs if place is None]  # type: ignore[arg-type]
    )
    return Plan.of(placed_head(model, version, inputs, outputs), slots)


def placeable(call: Call) -> dict[str, int]:
    """Return the bytes of each input that may lie in shared memory, by name.

    Strings may not, whose size is not known before they are put in a row, nor what has no elements.

    Raises:
        InvalidInputError: A shape or a name cannot be sent.
    """
    return {
        tensor.name: slot.nbytes
        for tensor, slot in zip(call.inputs, plan_of(call).slots, strict=True)
        if slot.nbytes
    }


def fixed_nbytes(call: Call) -> int:
    """Return the bytes of a call's inputs and head, strings not counted (1 us)."""
    return plan_of(call).nbytes


def contents(tensor: InputTensor, call: Call) -> tuple[Array, ...] | list[Array]:
    """Return the parts of an input of fixed size, as they are to be written one after the other.

    Raises:
        InvalidInputError: They are not of its datatype, or do not add up to its shape.
    """
    return wire_parts(tensor, slot_of(call.model, tensor.name, tensor.datatype, tensor.shape), call)
