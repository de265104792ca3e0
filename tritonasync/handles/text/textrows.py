"""The tokens of texts, as rows for a model: which it takes, which go together, how far filled up.

Owns: the limit of a text and what becomes of one beyond it; the split of a call by buckets; masks
and positions. Refuses to know: where tokenizers come from, calls on their way, vectors.

Invariants: a row is a text's own tokens first, then filling, and the mask tells the two apart;
without a mask input nothing is filled up, unless the user or the model's fixed axis says so. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from tritonasync.core.checks import is_count
from tritonasync.core.errors import ConfigurationError, InvalidInputError
from tritonasync.core.policies import Padding
from tritonasync.core.values import Array, InputTensor, TensorSpec
from tritonasync.handles.text.buckets import (
    Mask,
    buckets_up_to,
    by_bucket,
    by_length,
    filled_up,
    mask_of,
)
from tritonasync.handles.text.tokenizer import TextTokenizer, TokenizerLike, Tokens, check_source
from tritonasync.handles.text.tokens import TokenInputs, TokenNames
from tritonasync.wire.dtypes import numpy_dtype

_NBYTES_A_TOKEN = 80
"""Of work, as if so many bytes were written: a token is a Python int before it is in an array."""


_MAX_REMEMBERED = 32
"""Models with their tokenizers. Each keeps its tokenizer alive, of which one for many languages
takes 100 MB, and some users make one for every call."""


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a handle tokenises texts, as the user says it.

    Attributes:
        tokenizer: Where the tokenizer comes from.
        max_length: The most tokens of a text; ``None`` for what tokenizer and model say.
        truncate: Whether longer texts are cut, and not refused.
        buckets: The lengths to fill up to; empty for the longest of a batch; ``None`` for the
            usual.
        names: The inputs' names.
    """

    tokenizer: TokenizerLike
    max_length: int | None
    truncate: bool
    buckets: tuple[int, ...] | None
    names: TokenNames


def text_options(
    model: str,
    tokenizer: TokenizerLike | None,
    *,
    max_length: int | None,
    truncate: bool,
    buckets: Sequence[int] | None,
    names: TokenNames,
) -> TextOptions | None:
    """Return the options checked, or ``None`` for a handle that tokenises nothing.

    Raises:
        ConfigurationError: An option makes no sense, or not without a tokenizer.
    """
    given = {
        "max_length": max_length,
        "truncate": truncate or None,
        "buckets": buckets,
        "mask_name": names.mask,
        "token_types_name": names.types,
        "positions_name": names.positions,
    }
    if tokenizer is None:
        idle = [f"{name}=" for name, value in given.items() if value is not None]
        if idle:
            raise _wrong(
                model,
                f"{', '.join(idle)} is for texts that are tokenised here; give tokenizer=, too",
            )
        return None
    check_source(tokenizer, model)
    if max_length is not None and not is_count(max_length):
        raise _wrong(model, f"max_length is a whole number of tokens from 1 on, not {max_length!r}")
    if not isinstance(truncate, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _wrong(model, f"truncate is True or False, not {truncate!r}")
    if buckets is not None:
        buckets = _checked_buckets(model, buckets)
    return TextOptions(tokenizer, max_length, truncate, buckets, names)


def _checked_buckets(model: str, buckets: Sequence[int]) -> tuple[int, ...]:
    try:
        lengths = tuple(buckets)
    except TypeError as error:
        raise _wrong(model, f"buckets is a list of lengths, not {buckets!r}") from error
    if not all(is_count(length) for length in lengths) or list(lengths) != sorted(set(lengths)):
        raise _wrong(
            model,
            f"buckets are whole numbers of tokens from 1 on in rising order, not {buckets!r}",
        )
    return lengths


def _wrong(model: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"model {model!r}: {reason}", model=model)


@dataclass(frozen=True, slots=True, eq=False)
class TextGroup:
    """The rows of a call that go together.

    Attributes:
        rows: Which texts of the call they are.
        tensors: The model's inputs.
        mask: Which tokens are real, ``[rows, tokens]``.
        padding: How the rows are filled up further; ``None`` if they are not.
    """

    rows: Sequence[int]
    tensors: tuple[InputTensor, ...]
    mask: Mask
    padding: Padding | None


@dataclass(frozen=True, slots=True, eq=False)
class TextRows:
    """What a tokenizer and options mean for a model.

    Attributes:
        inputs: The inputs that take tokens.
        tokenizer: The tokenizer.
        truncate: Whether longer texts are cut, and not refused.
        limit: The most tokens of a text, if there is a limit.
        limit_source: Who says so.
        padding: How rows are filled up to share a batch; ``None`` if they are not, or are already.
    """

    inputs: TokenInputs
    tokenizer: TextTokenizer
    truncate: bool
    limit: int | None
    limit_source: str
    padding: Padding | None

    def fitting(self, rows: Sequence[Tokens], texts: Sequence[str], *, item: bool) -> list[Tokens]:
        """Return the rows that the model is given: cut, where that is allowed.

        Raises:
            InvalidInputError: A text has no tokens, or too many.
        """
        limit = self.limit
        fitting: list[Tokens] = []
        for index, row in enumerate(rows):
            length = len(row.ids)
            if length <= self.tokenizer.specials:
                raise self._refuse(f"{_name(index, item=item)} is empty: it has no tokens")
            if limit is None or length <= limit:
                fitting.append(row)
            elif self.truncate:
                fitting.append(self.tokenizer.cut(texts[index], limit))
            else:
                raise self._refuse(
                    f"{_name(index, item=item)} has {length} tokens, and {limit} is the limit "
                    f"({self.limit_source}); shorten or split it, or make the handle with "
                    "truncate=True"
                )
        return fitting

    def work_nbytes(self, rows: Sequence[Tokens]) -> int:
        """Return about how many bytes it is to write the rows and cut those beyond the limit."""
        lengths = [len(row.ids) for row in rows]
        cut = max(lengths) > self.limit if self.limit is not None else False
        return sum(lengths) * _NBYTES_A_TOKEN * (2 + 10 * cut)

    def groups(self, rows: Sequence[Tokens]) -> list[TextGroup]:
        """Return the rows in groups, each of a call of its own: by bucket, short ones first."""
        lengths = [len(row.ids) for row in rows]
        if self.inputs.length is not None:
            together = [list(range(len(rows)))]
        elif self.padding is None:
            together = by_length(lengths)
        elif self.padding.buckets:
            together = by_bucket(lengths, self.padding.buckets)
        else:
            together = [list(range(len(rows)))]
        return [self._group(rows, members) for members in together]

    def _group(self, rows: Sequence[Tokens], members: Sequence[int]) -> TextGroup:
        inputs = self.inputs
        own = [rows[index] for index in members]
        lengths = [len(row.ids) for row in own]
        mask = mask_of(lengths, inputs.length or max(lengths))
        values: dict[str, Array] = {
            inputs.ids.name: filled_up(
                [row.ids for row in own], mask, self.tokenizer.pad_id or 0, _dtype(inputs.ids)
            )
        }
        if inputs.mask is not None:
            values[inputs.mask.name] = mask.astype(_dtype(inputs.mask))
        if inputs.types is not None:
            types = [row.types for row in own]
            values[inputs.types.name] = filled_up(types, mask, 0, _dtype(inputs.types))
        if inputs.positions is not None:
            places = np.arange(mask.shape[1], dtype=_dtype(inputs.positions))
            values[inputs.positions.name] = np.where(mask, places, 0).astype(places.dtype)
        tensors, _ = inputs.binding.bind(values, item=False)
        return TextGroup(members, tensors, mask, self._padding_to(mask.shape[1]))

    def _padding_to(self, length: int) -> Padding | None:
        """Return the padding for rows of one bucket, with no other in it.

        The stage that fills up judges by the last one whether that is long work.
        """
        if self.padding is None or not self.padding.buckets:
            return self.padding
        buckets = self.padding.buckets
        return _with_bucket(self.padding, buckets[bisect_left(buckets, length)])

    def _refuse(self, reason: str) -> InvalidInputError:
        name = self.inputs.binding.spec.name
        return InvalidInputError(f"model {name!r}: {reason}", model=name)


@lru_cache(maxsize=1024)
def _with_bucket(padding: Padding, bucket: int) -> Padding:
    return replace(padding, buckets=(bucket,))


def _name(index: int, *, item: bool) -> str:
    return "the text" if item else f"text {index}"


def _dtype(tensor: TensorSpec) -> np.dtype[np.generic]:
    return numpy_dtype(tensor.datatype)


@lru_cache(maxsize=_MAX_REMEMBERED)
def text_rows(
    inputs: TokenInputs,
    tokenizer: TextTokenizer,
    max_length: int | None,
    buckets: tuple[int, ...] | None,
    *,
    truncate: bool,
) -> TextRows:
    """Return what a tokenizer and options mean for a model.

    Raises:
        ConfigurationError: The limit leaves no room for a text, or rows would have to be filled up
            by a tokenizer that has no padding token for a model that has no mask.
    """
    limit, source = _limit(inputs, tokenizer, max_length, buckets)
    model = inputs.binding.spec.name
    if limit is not None and limit <= tokenizer.specials:
        raise _wrong(
            model,
            f"a limit of {limit} tokens ({source}) leaves no room for a text: "
            f"{tokenizer.specials} are special ones",
        )
    filled = inputs.mask is not None or buckets is not None or inputs.length is not None
    if filled and inputs.mask is None and tokenizer.pad_id is None:
        raise _wrong(
            model,
            "texts cannot be filled up to one length: the model has no input for a mask, and the "
            "tokenizer no padding token; leave out buckets, if they are given",
        )
    if filled and limit is None and buckets is None:
        limit, source = buckets_up_to(None)[-1], "the last of the usual buckets"
    padding = None
    if filled and inputs.length is None:
        padding = _padding(inputs, tokenizer, limit, buckets)
    return TextRows(inputs, tokenizer, truncate, limit, source, padding)


def _limit(
    inputs: TokenInputs,
    tokenizer: TextTokenizer,
    max_length: int | None,
    buckets: tuple[int, ...] | None,
) -> tuple[int | None, str]:
    """Return the least of all limits, and who says so."""
    limits = [(max_length, "by max_length")]
    if max_length is None:
        limits = [(tokenizer.max_length, f"by {tokenizer.max_length_source}")]
    limits.append((inputs.length, f"the length of the model's input {inputs.ids.name!r}"))
    limits.append((buckets[-1] if buckets else None, "the last of buckets"))
    known = [(length, source) for length, source in limits if length is not None]
    return min(known, key=lambda each: each[0]) if known else (None, "")


def _padding(
    inputs: TokenInputs,
    tokenizer: TextTokenizer,
    limit: int | None,
    buckets: tuple[int, ...] | None,
) -> Padding:
    if buckets is None:
        buckets = buckets_up_to(limit)
    elif buckets and limit is not None:
        buckets = (*[length for length in buckets if length < limit], limit)
    others = [tensor.name for tensor in (inputs.types, inputs.positions) if tensor is not None]
    return Padding(
        inputs={inputs.ids.name: tokenizer.pad_id or 0, **dict.fromkeys(others, 0)},
        mask=None if inputs.mask is None else inputs.mask.name,
        buckets=buckets,
        outputs=(),
    )
