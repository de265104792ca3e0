"""How a typed handle sits on a model: which input it feeds, which output it reads, in rows.

Owns: the choice of input and output, by name or because there is only one; the batch axis of models
that have none by their configuration; reading an output as float32 rows. Refuses to know: what a
classifier, detector or encoder does with them.

Invariant: every error that the user's options or model cause lists the candidates with their
shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import ConfigurationError, InvalidInputError, ProtocolError
from tritonasync.core.values import Array, InputTensor, ModelSpec, Reply, TensorSpec
from tritonasync.handles.signature import Signature, signature_of
from tritonasync.handles.slot import tensor_text

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """The inputs of a model that are fed and the outputs that are read, all in rows.

    Attributes:
        signature: The model's signature, seen with axis 0 as the batch.
        inputs: The inputs that are fed.
        outputs: The outputs that are read.
        batched: Whether the model itself has that batch axis (``max_batch_size`` above 0).
        max_rows: The most rows of a call, where the batch axis is of fixed length.
    """

    signature: Signature
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    max_rows: int | None

    @property
    def spec(self) -> ModelSpec:
        """The signature as values, axis 0 being the batch."""
        return self.signature.spec

    @property
    def input(self) -> TensorSpec:
        """The input that is fed, or the first of them."""
        return self.inputs[0]

    @property
    def output(self) -> TensorSpec:
        """The output that is read, or the first of them."""
        return self.outputs[0]

    @property
    def output_names(self) -> tuple[str, ...]:
        """What to ask the server for."""
        return tuple(output.name for output in self.outputs)

    def tensors(self, value: object, *, item: bool) -> tuple[tuple[InputTensor, ...], int]:
        """Return the call's tensors and rows, of a value for the one input.

        Raises:
            InvalidInputError: The value does not fit the input.
        """
        return self.bind({self.input.name: value}, item=item)

    def bind(
        self, values: Mapping[str, object], *, item: bool
    ) -> tuple[tuple[InputTensor, ...], int]:
        """Return the call's tensors and rows, of values by input name.

        Raises:
            InvalidInputError: They do not fit the inputs.
        """
        tensors, rows = self.signature.bind(values, item=item)
        if self.max_rows is not None and rows > self.max_rows:
            raise InvalidInputError(
                f"model {self.spec.name!r}, input {self.input.name!r}: expected {self.max_rows} "
                f"row(s) a call, its batch axis being of that length, got {rows}",
                model=self.spec.name,
            )
        return tensors, rows

    def call_rows(self, rows: int) -> int:
        """Return what a call says of its rows: 0 for a model without a batch axis of its own."""
        return rows if self.batched else 0

    def array(self, reply: Reply, output: TensorSpec, rows: int) -> Array:
        """Return an output ``[rows, ...]`` as the reply has it.

        Raises:
            ProtocolError: The reply lacks the output, or has another number of rows.
        """
        array = reply.outputs.get(output.name)
        if array is None or array.shape[:1] != (rows,):
            got = "no such output" if array is None else f"shape {list(array.shape)}"
            raise ProtocolError(
                f"model {reply.model!r}, output {output.name!r}: expected {rows} rows, got {got}",
                model=reply.model,
            )
        return array

    def floats(self, reply: Reply, output: TensorSpec, rows: int) -> Floats:
        """Return an output of numbers as float32 ``[rows, ...]``.

        FP32 is a view on the reply; FP16, BF16 and integers are widened, FP64 is narrowed.

        Raises:
            ProtocolError: The reply lacks the output, or has another number of rows.
        """
        array = self.array(reply, output, rows)
        if output.datatype == "BF16" and array.dtype == np.uint16:  # the bits: no ml_dtypes here
            return (array.astype(np.uint32) << 16).view(np.float32)
        if array.dtype == np.float32:
            return array
        with np.errstate(over="ignore"):
            return array.astype(np.float32)

    def misfit(self, tensor: TensorSpec, expected: str) -> ConfigurationError:
        """Return the error that the input or output is not what the handle needs."""
        kind = "input" if tensor in self.inputs else "output"
        got = tensor_text(tensor, batched=True)
        return ConfigurationError(
            f"model {self.spec.name!r}: expected an {kind} {expected}, got {got}",
            model=self.spec.name,
        )


@lru_cache(maxsize=512)
def bind_one(signature: Signature, input_name: str | None, output_name: str | None) -> Binding:
    """Return the binding to one input and one output, by name or by there being no other.

    A model whose ``max_batch_size`` is 0 is taken to have its batch in axis 0, if that is free or
    1 long in these, as in most models exported with their batch axis.

    Raises:
        ConfigurationError: There is no such input or output, or several to choose from, or no axis
            for the batch.
    """
    spec = signature.spec
    output = _chosen(spec, "output", output_name, spec.outputs, spec.outputs)
    return _bound(signature, (_input_of(spec, input_name),), (output,))


@lru_cache(maxsize=512)
def bind_all(signature: Signature) -> Binding:
    """Return the binding to all inputs and outputs; see :func:`bind_one`.

    Raises:
        ConfigurationError: There is no axis for the batch.
    """
    return _bound(signature, signature.spec.inputs, signature.spec.outputs)


@lru_cache(maxsize=512)
def bind_some(
    signature: Signature, input_name: str | None, output_names: tuple[str, ...] | None
) -> Binding:
    """Return the binding to one input and the outputs of these names, or all; see :func:`bind_one`.

    Raises:
        ConfigurationError: As :func:`bind_one`.
    """
    spec = signature.spec
    outputs = spec.outputs
    if output_names is not None:
        outputs = tuple(
            _chosen(spec, "output", name, spec.outputs, spec.outputs) for name in output_names
        )
    return _bound(signature, (_input_of(spec, input_name),), outputs)


def _bound(
    signature: Signature, given: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Binding:
    spec = signature.spec
    if spec.batched:
        return Binding(signature, given, outputs, batched=True, max_rows=None)
    if any(tensor.shape[:1] not in {(-1,), (1,)} for tensor in (*given, *outputs)):
        raise ConfigurationError(
            f"model {spec.name!r} has no axis for a batch: its max_batch_size is 0, and axis 0 is "
            f"neither free nor 1 in all of {_listed(spec, (*given, *outputs))}; call it by "
            f"pool.model({spec.name!r})",
            model=spec.name,
        )
    in_rows = signature_of(replace(spec, max_batch_size=1), signature.casting)
    max_rows = None if all(tensor.shape[0] == -1 for tensor in given) else 1
    return Binding(in_rows, given, outputs, batched=False, max_rows=max_rows)


def _input_of(spec: ModelSpec, name: str | None) -> TensorSpec:
    required = [tensor for tensor in spec.inputs if not tensor.optional]
    chosen = _chosen(spec, "input", name, spec.inputs, required or spec.inputs)
    others = [tensor for tensor in required if tensor is not chosen]
    if others:
        raise ConfigurationError(
            f"model {spec.name!r} needs more inputs than {chosen.name!r}: {_listed(spec, others)}; "
            f"call it by pool.model({spec.name!r})",
            model=spec.name,
        )
    return chosen


def _chosen(
    spec: ModelSpec,
    kind: str,
    name: str | None,
    known: Sequence[TensorSpec],
    candidates: Sequence[TensorSpec],
) -> TensorSpec:
    if name is None and len(candidates) == 1:
        return candidates[0]
    for tensor in known:
        if tensor.name == name:
            return tensor
    if name is None:
        reason = f"has {len(candidates)} {kind}s; say which one by {kind}_name=…:"
    else:
        reason = f"has no {kind} {name!r}; it has"
    raise ConfigurationError(
        f"model {spec.name!r} {reason} {_listed(spec, candidates if name is None else known)}",
        model=spec.name,
    )


def _listed(spec: ModelSpec, tensors: Sequence[TensorSpec]) -> str:
    return "; ".join(tensor_text(tensor, batched=spec.batched) for tensor in tensors) or "none"
