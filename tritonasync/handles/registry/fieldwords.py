"""What is said of a user's value: the words for what was expected, what was got, what was meant.

Owns: annotations, keys and values in words. Refuses to know: which values an annotation takes
(``fieldtypes`` does).
"""

from __future__ import annotations

import difflib
import os
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, Union, cast, get_args, get_origin

Key: TypeAlias = tuple[str, ...]
"""Where a value is, from the field on: ``("scaling", "mean", "[1]")``."""

LISTS: Final = frozenset[object]((list, tuple, Sequence, Iterable))
"""Annotations of lists."""

TABLES: Final = frozenset[object]((dict, Mapping))
"""Annotations of tables."""

_WORDS: Final[Mapping[object, tuple[str, str]]] = {
    bool: ("True or False", "booleans"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    bytes: ("bytes", "bytes"),
    None: ("None", "None"),
    types.NoneType: ("None", "None"),
    Path: ("a path", "paths"),
    os.PathLike: ("a path", "paths"),
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that a user may have meant."""
    plain = {name.lower().replace("-", "_"): name for name in known}
    near = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=1)
    return plain[near[0]] if near else None


def key_text(key: Key) -> str:
    """Return ``labels[3]`` or ``scaling.mean`` of where a value is."""
    return "".join(
        part if index == 0 or part.startswith("[") else f".{part}" for index, part in enumerate(key)
    )


def got_text(value: object) -> str:
    """Return a value's type and beginning, for messages."""
    return "None" if value is None else f"{type(value).__name__} {reprlib.repr(value)}"


def unknown_text(name: str, known: Sequence[str], owner: str) -> str:
    """Return what is said of a key that nobody knows."""
    near = nearest(name, known)
    if near:
        return f"unknown key; did you mean {near}?"
    return f"unknown key; {owner} has {', '.join(known)}"


def expected_text(kind: object) -> str:
    """Return an annotation in words."""
    form, args = form_of(kind), get_args(kind)
    text = _TEXTS.get(form)
    if text is not None:
        return text(args)
    if is_record(kind) and len(set(args)) == 1:
        return f"{len(args)} {_plural(args[0])}"
    if is_record(kind):
        return f"a list of {', '.join(map(expected_text, args))}"
    if form in LISTS:
        return f"a list of {_plural(args[0])}" if args else "a list"
    if form in TABLES:
        return "a table"
    words = _WORDS.get(form)
    return _with_article(getattr(form, "__name__", str(kind))) if words is None else words[0]


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def _literals_text(args: tuple[object, ...]) -> str:
    words = ", ".join(f'"{word}"' if isinstance(word, str) else repr(word) for word in args)
    return f"one of {words}" if len(args) > 1 else words


def _either(kinds: tuple[object, ...]) -> str:
    literals = tuple(
        word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)
    )
    others = [kind for kind in kinds if get_origin(kind) is not Literal]
    texts = [_literals_text(literals)] if literals else []
    texts = list(dict.fromkeys([*texts, *map(expected_text, others)]))
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


_TEXTS: Final[Mapping[object, Callable[[tuple[object, ...]], str]]] = {
    Annotated: lambda args: expected_text(args[0]),
    Literal: _literals_text,
    Union: _either,
    types.UnionType: _either,
    Callable: lambda _: "a function",
}


def _plural(kind: object) -> str:
    words = _WORDS.get(form_of(kind))
    return expected_text(kind) if words is None else words[1]


def form_of(kind: object) -> object:
    """Return what tables of forms know an annotation by."""
    origin = cast("object", get_origin(kind))
    if origin is not None:
        return origin
    return Path if _is_path(kind) else kind


def _is_path(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Path)


def is_record(kind: object) -> bool:
    """Return whether it is a tuple of a fixed length."""
    return get_origin(kind) is tuple and get_args(kind)[1:] != (...,)
