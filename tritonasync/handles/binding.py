"""How a typed handle sits on a model: which input it feeds, which output it reads, in rows.

Owns: the choice of input and output, by name, or because no other is of the kind looked for; the
batch axis of models that have none by their configuration, or none at all; reading an output as
float32 rows.
Refuses to know: what a classifier, detector or encoder looks for, and what it does with them.

Invariant: every error that the user's options or model cause lists the candidates with their
shapes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tritonasync.core.errors import ConfigurationError, InvalidInputError, ProtocolError
from tritonasync.core.values import Array, InputTensor, ModelSpec, Reply, TensorSpec
from tritonasync.handles.conversion import is_plain_array
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
        alone: Whether the model takes one item a call and has no batch axis at all: it is seen with
            one here, which is taken off what is sent and put on what comes back.
    """

    signature: Signature
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    max_rows: int | None
    alone: bool = False

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
        """What to ask the server for; empty for all, so that calls of all handles look alike."""
        if len(self.outputs) == len(self.spec.outputs):
            return ()
        return tuple([output.name for output in self.outputs])

    def is_plain(self, value: object) -> bool:
        """Return whether a value is an array that goes as it is, one item or a batch of them."""
        slot = self.signature.slots[self.inputs[0].name]
        return (
            is_plain_array(value)
            and value.dtype is slot.dtype
            and slot.item_shape is not None
            and value.shape[-len(slot.item_shape) :] == slot.item_shape
        )

    def ready(self, value: object, *, item: bool) -> tuple[tuple[InputTensor, ...], int] | None:
        """Return what :meth:`tensors` would if that is clear from a few comparisons, else ``None``.

        See :meth:`Signature.ready`.
        """
        if self.max_rows is not None:
            return None
        return self.signature.ready({self.inputs[0].name: value}, item=item)

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
            raise self._too_many(rows)
        return (tuple(map(_without_batch, tensors)) if self.alone else tensors), rows

    def _too_many(self, rows: int) -> InvalidInputError:
        expected = f"{self.max_rows} row(s) a call, its batch axis being of that length, got {rows}"
        if self.alone:
            expected = (
                f"one item a call, since the model has no axis for a batch, got {rows}; make a "
                "call for each: handle.one(item), or handle.map(items)"
            )
        return InvalidInputError(
            f"model {self.spec.name!r}, input {self.input.name!r}: expected {expected}",
            model=self.spec.name,
        )

    def call_rows(self, rows: int) -> int:
        """Return what a call says of its rows: 0 for a model without a batch axis of its own."""
        return rows if self.batched else 0

    def array(self, reply: Reply, output: TensorSpec, rows: int) -> Array:
        """Return an output ``[rows, ...]`` as the reply has it.

        Raises:
            ProtocolError: The reply lacks the output, or has another number of rows.
        """
        array = reply.outputs.get(output.name)
        if self.alone and array is not None:
            array = array[np.newaxis]
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


@dataclass(frozen=True, slots=True)
class Kind:
    """What a handle looks for among the inputs or outputs of a model.

    Make it once, in a module: bindings are remembered by it.

    Attributes:
        text: In words, for messages: ``"of scores: numbers of shape [batch, C]"``.
        fits: Whether a tensor is such; axis 0 is the batch, also where the model has none.
    """

    text: str
    fits: Callable[[TensorSpec], bool]


@lru_cache(maxsize=512)
def bind_one(
    signature: Signature,
    input_name: str | None,
    output_name: str | None,
    *,
    fits_input: Kind | None = None,
    fits_output: Kind | None = None,
) -> Binding:
    """Return the binding to one input and one output.

    Those of that name; or, without a name, the only one of its kind, or the only one there is
    (which may be of another kind: then the handle says so). Optional inputs are left out unless
    they are named, or no input is required.

    A model whose ``max_batch_size`` is 0 is taken to have its batch in axis 0, if that is free or
    1 long in these, as in most models exported with their batch axis. Else it takes one item.

    Raises:
        ConfigurationError: There is no such input or output, or several to choose from.
    """

    def chosen(spec: ModelSpec) -> tuple[TensorSpec, TensorSpec]:
        output = _chosen(spec, "output", output_name, spec.outputs, fits_output)
        return _input_of(spec, input_name, fits_input), output

    spec = signature.spec
    put, output = chosen(spec)
    if spec.batched or _have_batch((put, output)):
        return bind_tensors(signature, (put,), (output,))
    in_rows = _with_batch(spec)
    put, output = chosen(in_rows)
    seen = signature_of(in_rows, signature.casting)
    return Binding(seen, (put,), (output,), batched=False, max_rows=1, alone=True)


@lru_cache(maxsize=512)
def bind_all(signature: Signature) -> Binding:
    """Return the binding to all inputs and outputs; see :func:`bind_one`.

    Raises:
        ConfigurationError: There is no axis for the batch.
    """
    return bind_tensors(signature, signature.spec.inputs, signature.spec.outputs)


@lru_cache(maxsize=512)
def bind_some(
    signature: Signature,
    input_name: str | None,
    output_names: tuple[str, ...] | None,
    *,
    fits_input: Kind | None = None,
) -> Binding:
    """Return the binding to one input and the outputs of these names, or all; see :func:`bind_one`.

    Raises:
        ConfigurationError: As :func:`bind_one`.
    """
    spec = signature.spec
    outputs = spec.outputs
    if output_names is not None:
        outputs = tuple(named(spec, "output", name) for name in output_names)
    return bind_tensors(signature, (_input_of(spec, input_name, fits_input),), outputs)


def bind_tensors(
    signature: Signature, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Binding:
    """Return the binding to these tensors of the signature; see :func:`bind_one`.

    Makes a new one each time: to be called from a function that remembers.

    Raises:
        ConfigurationError: There is no axis for the batch.
    """
    spec = signature.spec
    if spec.batched:
        return Binding(signature, inputs, outputs, batched=True, max_rows=None)
    if not _have_batch((*inputs, *outputs)):
        raise ConfigurationError(
            f"model {spec.name!r} has no axis for a batch: its max_batch_size is 0, and axis 0 is "
            f"neither free nor 1 in all of {_listed(spec, (*inputs, *outputs))}; call it by "
            f"pool.model({spec.name!r})",
            model=spec.name,
        )
    in_rows = signature_of(replace(spec, max_batch_size=1), signature.casting)
    max_rows = None if all(tensor.shape[0] == -1 for tensor in inputs) else 1
    return Binding(in_rows, inputs, outputs, batched=False, max_rows=max_rows)


def _have_batch(tensors: tuple[TensorSpec, ...]) -> bool:
    """Return whether axis 0 may be the batch in all of these."""
    return all(tensor.shape[:1] in {(-1,), (1,)} for tensor in tensors)


def _with_batch(spec: ModelSpec) -> ModelSpec:
    """Return a signature with a batch axis before all others."""

    def wider(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(tensor, shape=(1, *tensor.shape)) for tensor in tensors)

    return replace(spec, inputs=wider(spec.inputs), outputs=wider(spec.outputs), max_batch_size=1)


def _without_batch(tensor: InputTensor) -> InputTensor:
    shape = tensor.shape[1:]
    return replace(tensor, shape=shape, parts=tuple(part.reshape(shape) for part in tensor.parts))


def named(spec: ModelSpec, kind: Literal["input", "output"], name: str) -> TensorSpec:
    """Return the input or output of a name.

    Raises:
        ConfigurationError: There is none; the error lists those that there are.
    """
    known = spec.inputs if kind == "input" else spec.outputs
    for tensor in known:
        if tensor.name == name:
            return tensor
    near = difflib.get_close_matches(str(name), [tensor.name for tensor in known], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ConfigurationError(
        f"model {spec.name!r} has no {kind} {name!r}{hint}; it has {_listed(spec, known)}",
        model=spec.name,
    )


def _input_of(spec: ModelSpec, name: str | None, kind: Kind | None) -> TensorSpec:
    required = [tensor for tensor in spec.inputs if not tensor.optional]
    chosen = _chosen(spec, "input", name, required or spec.inputs, kind)
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
    put: Literal["input", "output"],
    name: str | None,
    candidates: Sequence[TensorSpec],
    kind: Kind | None,
) -> TensorSpec:
    if name is not None:
        return named(spec, put, name)
    fitting = candidates if kind is None else [each for each in candidates if kind.fits(each)]
    if len(fitting) == 1:
        return fitting[0]
    if len(candidates) == 1:
        return candidates[0]
    which = ""
    if kind is not None and candidates and len(fitting) < len(candidates):
        which = f", {len(fitting) if fitting else 'none'} of them {kind.text}"
    raise ConfigurationError(
        f"model {spec.name!r} has {len(candidates)} {put}s{which}; say which one by {put}_name=…: "
        f"{_listed(spec, fitting or candidates)}",
        model=spec.name,
    )


def _listed(spec: ModelSpec, tensors: Sequence[TensorSpec]) -> str:
    return "; ".join(tensor_text(tensor, batched=spec.batched) for tensor in tensors) or "none"
