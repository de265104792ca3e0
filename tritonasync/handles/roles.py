"""Which tensors of a model that generates text are what.

Owns: the choice of prompt, text and switch for streaming, by name or by what they are; the form of
an input that is given as a single value. Refuses to know: calls, responses.

Invariant: every error that the user's options or model cause lists the candidates. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.values import ModelSpec, TensorSpec
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import InputSlot, tensor_text

_USUAL: Final = {
    "input": {"text_input", "input_text", "prompt", "query", "text"},
    "output": {"text_output", "output_text", "generated_text", "completion", "response", "text"},
}
_SWITCHES: Final = {"stream", "streaming"}
"""Usual names, in lower case. The vLLM backend and the ensemble of TensorRT-LLM's backend have
``text_input``, ``text_output`` and ``stream``; the latter's inner model has ``streaming``."""

_SINGLE: Final = (bool, int, float, str, bytes, np.generic)

_OPTIONS: Final = {"input": "prompt_input", "output": "output_name"}


@dataclass(frozen=True, slots=True, eq=False)
class Roles:
    """Which tensors of a model take the prompt, have the text, and ask for streaming.

    Attributes:
        signature: The model's signature.
        prompt: The name of the input that takes the prompt.
        text: The name of the output that has the text.
        switches: The names of inputs that are to be true for a text in pieces.
    """

    signature: Signature
    prompt: str
    text: str
    switches: tuple[str, ...]

    def inputs(self, prompt: str | bytes, given: Mapping[str, object]) -> Mapping[str, object]:
        """Return all inputs of a call, single values in the shape that the model takes.

        Raises:
            InvalidInputError: The prompt is among those given, too.
        """
        slots = self.signature.slots
        if self.prompt in given:
            raise slots[self.prompt].refuse("given twice, as the prompt and among the inputs")
        values = {**dict.fromkeys(self.switches, True), **given, self.prompt: prompt}
        return {
            name: _shaped(value, slots[name]) if name in slots else value
            for name, value in values.items()
        }


def _shaped(value: object, slot: InputSlot) -> object:
    """Return a single value with as many axes as the input, each of length 1, if they may be."""
    single = isinstance(value, _SINGLE)
    nested = value
    if single and set(slot.item_axes) <= {-1, 1}:
        for _ in slot.item_axes:
            nested = [nested]
    return nested


@lru_cache(maxsize=512)
def roles_of(signature: Signature, prompt_input: str | None, output_name: str | None) -> Roles:
    """Return which tensors are what, by the names given or by what they are.

    The only BYTES tensor; or else the only one with a usual name, or the only one that is not
    optional. Switches are those of decoupled models: TensorRT-LLM refuses them for others.

    Raises:
        ConfigurationError: There is no such tensor, or several to choose from.
    """
    spec = signature.spec
    switches = tuple(
        tensor.name
        for tensor in spec.inputs
        if spec.decoupled and tensor.datatype == "BOOL" and tensor.name.lower() in _SWITCHES
    )
    prompt = _chosen(spec, "input", prompt_input)
    text = _chosen(spec, "output", output_name)
    return Roles(signature, prompt.name, text.name, switches)


def _chosen(spec: ModelSpec, kind: Literal["input", "output"], name: str | None) -> TensorSpec:
    tensors = spec.inputs if kind == "input" else spec.outputs
    texts = [tensor for tensor in tensors if tensor.datatype == "BYTES"]
    rules: list[Callable[[TensorSpec], bool]] = [
        lambda _: True,
        lambda tensor: tensor.name.lower() in _USUAL[kind],
        lambda tensor: not tensor.optional,
    ]
    if name is not None:
        rules = [lambda tensor: tensor.name == name]
    for rule in rules:
        found = list(filter(rule, texts))
        if len(found) == 1:
            return found[0]
    raise _unclear(spec, kind, name, texts)


def _unclear(
    spec: ModelSpec, kind: Literal["input", "output"], name: str | None, texts: list[TensorSpec]
) -> ConfigurationError:
    listed = "; ".join(tensor_text(tensor, batched=spec.batched) for tensor in texts)
    if not texts:
        reason = f"has no {kind} of BYTES, and so no text there: it generates none"
    elif name is not None:
        reason = f"has no BYTES {kind} {name!r}; it has {listed}"
    else:
        reason = f"has {len(texts)} BYTES {kind}s; say which one by {_OPTIONS[kind]}=…: {listed}"
    return ConfigurationError(f"model {spec.name!r} {reason}", model=spec.name)
