"""What travels down and up the stages: calls, replies, and the signatures of models.

Owns: plain immutable values. Refuses to know: bytes on the wire, gRPC, numpy conversions.

Invariants: a :class:`Call` was checked against the model's signature by the handle that made it; an
array in an :class:`InputTensor` already has the numpy dtype of its Triton datatype; the elements of
``parts``, one after the other, are those of the tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy.typing as npt

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.policies import Padding

Array: TypeAlias = npt.NDArray[Any]
"""An array whose dtype the model decides; numpy's own functions call this dtype ``Any`` too."""

Datatype: TypeAlias = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
"""Triton's names of tensor element types, as in the KServe v2 protocol."""

DATATYPES: tuple[Datatype, ...] = get_args(Datatype)

MemoryKind: TypeAlias = Literal["system", "cuda"]
"""Whose memory a server is given to read and write: the host's (POSIX), or a GPU's."""

ParameterValue: TypeAlias = bool | int | float | str
"""A request or response parameter: bool, int64, double or string (Triton's own extension)."""

OutputMemory: TypeAlias = Literal["host", "gpu"]
"""Where outputs are wanted: numpy arrays, or CuPy arrays."""

ImageLayout: TypeAlias = Literal["NCHW", "NHWC"]
"""The order of an image tensor's axes, the batch first."""

Parameters: TypeAlias = tuple[tuple[str, ParameterValue], ...]
"""Parameters as pairs, so that a call can be a key. (``True == 1``: compare the types as well.)"""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of one input or output of a model.

    Attributes:
        name: The tensor's name in the model's configuration.
        datatype: Triton's name of its element type.
        shape: The axes of *one request*, the batch axis included if the model has one; -1 where the
            model takes any size.
        optional: Whether an input may be left out.
        layout: The order of an image's axes, where the model's configuration says it
            (``FORMAT_NCHW``, ``FORMAT_NHWC``).
        label_filename: The file of an output's class names, in the model's folder; ``""`` for none.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    optional: bool = False
    layout: ImageLayout | None = None
    label_filename: str = ""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The signature of a model as one server serves it.

    Attributes:
        name: The model's name.
        version: The version asked for; ``""`` lets the server choose (its latest).
        versions: The versions that the server has ready.
        platform: The server's word for what runs it, such as ``"onnxruntime_onnx"``.
        max_batch_size: The most rows of one request; 0 for a model without a batch axis.
        inputs: The inputs, in the order of the model's configuration.
        outputs: The outputs, in the order of the model's configuration.
        decoupled: Whether a request may have zero or many responses.
        stateful: Whether the model takes sequences (a sequence batcher is configured).
        sequence_ids: What its sequences are to have for ids: ``"integer"`` or ``"string"`` where
            the model is told the id, as that; ``"any"`` where it is not.
        sequence_idle_s: Seconds after which the server forgets a sequence that nothing came for.
    """

    name: str
    version: str
    versions: tuple[str, ...]
    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    decoupled: bool = False
    stateful: bool = False
    sequence_ids: Literal["any", "integer", "string"] = "any"
    sequence_idle_s: float = math.inf

    @property
    def batched(self) -> bool:
        """Whether axis 0 of every tensor is the batch."""
        return self.max_batch_size > 0


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One input of a call, in one or more row parts.

    Attributes:
        name: The input's name.
        datatype: Triton's name of the element type; the parts have the numpy dtype that
            ``wire.dtypes`` gives for it (BYTES: object arrays of ``bytes`` or ``str``, or fixed
            width, ``S`` or ``U``).
        shape: The shape of the whole tensor, batch axis included.
        parts: Arrays whose elements, in order, make up the tensor: some rows each, or (a part out
            of many) one row without the batch axis. Borrowed: they are read until the message is
            built and must not be changed before.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    parts: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """Which step of which sequence a call is, for a stateful model.

    Attributes:
        id: The sequence's id, neither 0 nor empty. The id 1 and the id "1" are two sequences.
        start: Whether the sequence begins with it.
        end: Whether the sequence ends with it.
    """

    id: int | str
    start: bool = False
    end: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One inference, on its way down the stages.

    Attributes:
        model: The model's name.
        version: The model's version, ``""`` for the server's choice.
        inputs: The inputs, each with all its rows.
        rows: Rows along the batch axis; 0 for a model without one.
        outputs: Names of the outputs wanted; empty for all of them.
        parameters: Request parameters (names that begin with ``triton_`` are the server's own).
        request_id: Echoed by the server; empty for none.
        deadline: When the caller's time is up.
        padding: How the rows may be filled up to share a batch with longer ones.
        idempotent: Whether it does no harm if the model runs twice.
        wanted_until: When nobody waits any more, on the monotonic clock, if that is before the
            deadline: no further attempt begins then, though one that is out may still be answered.
        sequence: Which step of a sequence it is; ``None`` for none (or where the parameters say
            it).
        idle_s: The longest wait for each response after the first, in seconds, where there may be
            several; the deadline is that of the first.
        decoupled: Whether the model may give no response, or many.
        device: Whether inputs are in a GPU's memory, as CuPy arrays, in part at least.
        output_memory: Where outputs are wanted: as numpy arrays, or as CuPy arrays on a GPU.
        alone: Whether it is sent as it is, in no batch with others.
    """

    model: str
    version: str
    inputs: tuple[InputTensor, ...]
    rows: int = 0
    outputs: tuple[str, ...] = ()
    parameters: Parameters = ()
    request_id: str = ""
    deadline: Deadline = NEVER
    padding: Padding | None = None
    idempotent: bool = True
    wanted_until: float = math.inf
    sequence: SequenceStep | None = None
    idle_s: float = math.inf
    decoupled: bool = False
    device: bool = False
    output_memory: OutputMemory = "host"
    alone: bool = False

    @property
    def in_sequence(self) -> bool:
        """Whether it is a step of a sequence, by its own word or by its parameters."""
        return self.sequence is not None or any(
            name == "sequence_id" for name, _ in self.parameters
        )


@dataclass(frozen=True, slots=True)
class ClassQuestion:
    """What is sent to a server to have it name the classes of an output.

    Attributes:
        call: A call of the model with one row.
        output: The output.
        classes: How many classes it has.
    """

    call: Call
    output: str
    classes: int


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, on its way up the stages.

    Attributes:
        model: The model that answered.
        version: The version that answered.
        outputs: The output arrays by name, with the shapes the server gave. Fixed-size datatypes
            are read-only views on the received message; BYTES are object arrays of ``bytes``.
        request_id: The id of the call, as echoed.
        parameters: Response parameters.
    """

    model: str
    version: str
    outputs: dict[str, Array]
    request_id: str = ""
    parameters: Parameters = ()
