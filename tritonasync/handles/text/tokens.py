"""Which inputs of a model take the tokens of texts, and which output has the vectors.

Owns: the choice of ids, mask, token types and positions, by the names given, by usual names, or by
what they are; the choice of output for a pooling. Refuses to know: texts, tokenizers, calls.

Invariants: an input is bound to one role at most, and a required one to a role for certain; every
error that the user's options or model cause lists the candidates. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.values import ModelSpec, TensorSpec
from tritonasync.handles.binding import Binding, bind_tensors, named
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import tensor_text

Role: TypeAlias = Literal["ids", "mask", "types", "positions"]

_USUAL: Final[dict[Role, frozenset[str]]] = {
    "ids": frozenset({"input_ids", "token_ids", "input_word_ids", "ids", "tokens", "input_tokens"}),
    "mask": frozenset({"attention_mask", "input_mask", "mask", "attn_mask"}),
    "types": frozenset(
        {"token_type_ids", "segment_ids", "input_type_ids", "token_types", "type_ids"}
    ),
    "positions": frozenset({"position_ids", "positions", "input_positions"}),
}
"""Usual names, in lower case: those of transformers, of TensorFlow Hub, and short ones."""

_OPTIONS: Final[dict[Role, str]] = {
    "ids": "input_name",
    "mask": "mask_name",
    "types": "token_types_name",
    "positions": "positions_name",
}

_IDS: Final = frozenset({"INT32", "INT64"})
_NO_MASKS: Final = frozenset({"BYTES", "BF16"})


@dataclass(frozen=True, slots=True)
class TokenNames:
    """The inputs' names as the user gives them; ``None`` for those to be found."""

    ids: str | None = None
    mask: str | None = None
    types: str | None = None
    positions: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TokenInputs:
    """What a model takes of tokens, each input ``[batch, tokens]``.

    Attributes:
        binding: These inputs and the output that is read, in rows.
        ids: Takes the tokens' numbers.
        mask: Takes 1 for each token and 0 for what fills up; ``None`` if the model has none.
        types: Takes the tokens' types (which of two texts they are of), if there is such an input.
        positions: Takes 0, 1, 2, …, if there is such an input.
        length: The tokens that each row has, where the axis is of fixed length.
    """

    binding: Binding
    ids: TensorSpec
    mask: TensorSpec | None
    types: TensorSpec | None
    positions: TensorSpec | None
    length: int | None


@lru_cache(maxsize=512)
def bind_tokens(signature: Signature, names: TokenNames, output: TensorSpec) -> TokenInputs:
    """Return which inputs take what.

    For each role: the input named; or else the only one with a usual name. The ids may also be the
    only integers ``[batch, tokens]`` that are left, and the mask the only BOOL.

    Raises:
        ConfigurationError: There is no such input, there are several to choose from, a required one
            has no role, or they differ in the length of a row.
    """
    found = _named(signature.spec, names)
    _by_usual_names(signature.spec, found)
    _by_kind(signature.spec, found)
    _check_all(signature.spec, found)
    inputs = tuple(tensor for tensor in signature.spec.inputs if tensor in found.values())
    return TokenInputs(
        bind_tensors(signature, inputs, (output,)),
        found["ids"],
        found.get("mask"),
        found.get("types"),
        found.get("positions"),
        _length(signature.spec, inputs),
    )


def vector_output(spec: ModelSpec, name: str | None, *, of_tokens: bool | None) -> TensorSpec:
    """Return the output that has the vectors: the one named, or the only one of its kind.

    Args:
        spec: The signature.
        name: The output's name, if it is given.
        of_tokens: Whether there is a vector for each token, ``[batch, tokens, D]``, or one a row,
            ``[batch, D]`` (further axes may follow if they are 1 long); ``None`` if the user does
            not say.

    Raises:
        ConfigurationError: There is no such output, there are several to choose from, or a vector a
            token, and it is not said what becomes of them.
    """
    wanted = ("rows", "tokens") if of_tokens is None else ("tokens",) if of_tokens else ("rows",)
    fitting = [tensor for tensor in spec.outputs if _vectors(tensor) in wanted]
    if name is not None:
        output = named(spec, "output", name)
    elif len(fitting) == 1 or len(spec.outputs) == 1:
        output = (fitting or spec.outputs)[0]
    else:
        which = f"{len(fitting) or 'none'} of them of vectors" + (
            ": [batch, D], or [batch, tokens, D] with pooling=…" if of_tokens is None else ""
        )
        raise ConfigurationError(
            f"model {spec.name!r} has {len(spec.outputs)} outputs, {which}; say which one by "
            f"output_name=…: {_listed(spec, fitting or spec.outputs)}",
            model=spec.name,
        )
    found = _vectors(output)
    if found is None or found not in wanted or (of_tokens is None and found == "tokens"):
        raise _no_vectors(spec, output, of_tokens=of_tokens)
    return output


def _vectors(tensor: TensorSpec) -> Literal["rows", "tokens"] | None:
    """Return what an output has a vector for, if it has any."""
    if tensor.datatype in ("BYTES", "BOOL") or len(tensor.shape) < 2:
        return None
    if all(axis == 1 for axis in tensor.shape[2:]):
        return "rows"
    return "tokens" if len(tensor.shape) == 3 else None


def _no_vectors(
    spec: ModelSpec, output: TensorSpec, *, of_tokens: bool | None
) -> ConfigurationError:
    expected = "of one vector a row: numbers of shape [batch, D]"
    hint = ""
    if of_tokens:
        expected = "of a vector a token: numbers of shape [batch, tokens, D]"
        hint = "; leave out pooling for one that has a vector a row"
    elif _vectors(output) == "tokens":
        hint = ', a vector a token; say how they become one: pooling="mean", "cls" or "last"'
    return ConfigurationError(
        f"model {spec.name!r}: expected an output {expected}, got "
        f"{tensor_text(output, batched=True)}{hint if _vectors(output) else ''}",
        model=spec.name,
    )


def token_inputs_text(spec: ModelSpec) -> str | None:
    """Return the inputs of a model that wants tokens in several inputs, for a message, or ``None``.

    Such a one has an input with a usual name of ids, and needs others besides.
    """
    required = [tensor for tensor in spec.inputs if not tensor.optional]
    takes = any(_fits(tensor, "ids") and _usual(tensor, "ids") for tensor in required)
    return _listed(spec, spec.inputs) if takes and len(required) > 1 else None


def _named(spec: ModelSpec, names: TokenNames) -> dict[Role, TensorSpec]:
    found: dict[Role, TensorSpec] = {}
    roles: tuple[Role, ...] = ("ids", "mask", "types", "positions")
    for role in roles:
        name: str | None = getattr(names, role)
        if name is None:
            continue
        tensor = named(spec, "input", name)
        if not _fits(tensor, role):
            raise ConfigurationError(
                f"model {spec.name!r}: expected {_OPTIONS[role]} to be an input of "
                f"{_elements(role)} [batch, tokens], got "
                f"{tensor_text(tensor, batched=spec.batched)}",
                model=spec.name,
            )
        if tensor in found.values():
            raise ConfigurationError(
                f"model {spec.name!r}: input {name!r} is named twice, the second time by "
                f"{_OPTIONS[role]}",
                model=spec.name,
            )
        found[role] = tensor
    return found


def _by_usual_names(spec: ModelSpec, found: dict[Role, TensorSpec]) -> None:
    for role in _USUAL:
        if role in found:
            continue
        usual = [tensor for tensor in _free(spec, role, found) if _usual(tensor, role)]
        if len(usual) > 1:
            raise _unclear(spec, role, usual)
        if usual:
            found[role] = usual[0]


def _by_kind(spec: ModelSpec, found: dict[Role, TensorSpec]) -> None:
    if "ids" not in found:
        free = _free(spec, "ids", found)
        candidates = [tensor for tensor in free if not tensor.optional] or free
        if len(candidates) != 1:
            raise _unclear(spec, "ids", candidates)
        found["ids"] = candidates[0]
    switches = [tensor for tensor in _free(spec, "mask", found) if tensor.datatype == "BOOL"]
    if "mask" not in found and len(switches) == 1:
        found["mask"] = switches[0]


def _check_all(spec: ModelSpec, found: dict[Role, TensorSpec]) -> None:
    known = set(found.values())
    others = [tensor for tensor in spec.inputs if not (tensor.optional or tensor in known)]
    if others:
        options = ", ".join(f"{_OPTIONS[role]}=…" for role in _USUAL if role not in found)
        raise ConfigurationError(
            f"model {spec.name!r} needs more inputs than those found for tokens "
            f"({_roles_text(found)}): {_listed(spec, others)}; say what they are by "
            f"{options or 'other names'}, or call it by pool.model({spec.name!r})",
            model=spec.name,
        )


def _length(spec: ModelSpec, inputs: Sequence[TensorSpec]) -> int | None:
    fixed = {tensor.shape[1] for tensor in inputs} - {-1}
    if len(fixed) > 1:
        raise ConfigurationError(
            f"model {spec.name!r}: expected inputs of tokens that are all of one length, got "
            f"{_listed(spec, inputs)}",
            model=spec.name,
        )
    return fixed.pop() if fixed else None


# --- candidates --------------------------------------------------------------------------------


def _fits(tensor: TensorSpec, role: Role) -> bool:
    if len(tensor.shape) != 2:
        return False
    return tensor.datatype in _IDS if role != "mask" else tensor.datatype not in _NO_MASKS


def _usual(tensor: TensorSpec, role: Role) -> bool:
    return re.sub(r":\d+$", "", tensor.name.lower()) in _USUAL[role]  # TensorFlow's "input_ids:0"


def _free(spec: ModelSpec, role: Role, found: dict[Role, TensorSpec]) -> list[TensorSpec]:
    taken = found.values()
    return [tensor for tensor in spec.inputs if _fits(tensor, role) and tensor not in taken]


def _elements(role: Role) -> str:
    return "numbers or BOOL" if role == "mask" else "INT32 or INT64"


def _unclear(spec: ModelSpec, role: Role, candidates: Sequence[TensorSpec]) -> ConfigurationError:
    if not candidates:
        reason = (
            "has no input for tokens, INT32 or INT64 of shape [batch, tokens]; it has "
            f"{_listed(spec, spec.inputs)}"
        )
    else:
        reason = (
            f"has {len(candidates)} inputs that may take the {_WORDS[role]}; say which is which by "
            f"{', '.join(f'{option}=…' for option in _OPTIONS.values())}: "
            f"{_listed(spec, candidates)}"
        )
    return ConfigurationError(f"model {spec.name!r} {reason}", model=spec.name)


_WORDS: Final[dict[Role, str]] = {
    "ids": "tokens' numbers",
    "mask": "mask",
    "types": "tokens' types",
    "positions": "tokens' positions",
}


def _roles_text(found: dict[Role, TensorSpec]) -> str:
    return ", ".join(f"{tensor.name!r} for the {_WORDS[role]}" for role, tensor in found.items())


def _listed(spec: ModelSpec, tensors: Sequence[TensorSpec]) -> str:
    return "; ".join(tensor_text(tensor, batched=spec.batched) for tensor in tensors)
