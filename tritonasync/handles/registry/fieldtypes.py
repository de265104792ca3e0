"""Whether a value given by a user is of the type that a field is annotated with.

Owns: which values an annotation takes, how they are converted (lists become tuples). Refuses to
know: which fields there are, where values come from, how a fault is put (``fieldwords`` does).

Invariants: pure; what an annotation means that is not known here takes every value, since the rest
is for type checkers.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum, EnumMeta
from numbers import Integral, Real
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NoReturn,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from tritonasync.handles.registry.fieldwords import (
    LISTS,
    TABLES,
    Key,
    expected_text,
    form_of,
    got_text,
    is_record,
    key_text,
    nearest,
    unknown_text,
)


class MisfitError(Exception):
    """A value is not what its annotation says.

    Args:
        key: Where it is, from the field on.
        fault: What was expected and what was got.
        formed: Whether it is of the right form, and wrong in itself.
    """

    def __init__(self, key: Key, fault: str, *, formed: bool = False) -> None:
        super().__init__(f"{key_text(key)}: {fault}")
        self.key = key
        self.fault = fault
        self.formed = formed


class Table(dict[object, object]):
    """A mapping that stays as it is, so that what holds it can be a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[object, ...]:
        return Table, (dict(self),)

    if not TYPE_CHECKING:

        def _refuse(self, *_: object, **__: object) -> NoReturn:
            raise TypeError("a config's tables cannot be changed: make another config")

        __setitem__ = __delitem__ = __ior__ = _refuse
        clear = pop = popitem = setdefault = update = _refuse


def annotations_of(kind: type) -> dict[str, object]:
    """Return the annotations of a class by name; ``object`` where one cannot be understood."""
    try:
        return dict(get_type_hints(kind, include_extras=True))
    except Exception:  # noqa: BLE001 - names that are imported for type checkers only, and the like
        return {name: _alone(kind, name) for base in kind.__mro__ for name in _own(base)}


def _own(kind: type) -> Iterable[str]:
    return inspect.get_annotations(kind)


def _alone(kind: type, name: str) -> object:
    """Return one annotation, of the class that has it first."""
    owner = next(base for base in kind.__mro__ if name in _own(base))
    only = type(owner.__name__, (), {"__annotations__": {name: owner.__annotations__[name]}})
    only.__module__ = owner.__module__
    try:
        return get_type_hints(only, include_extras=True)[name]
    except Exception:  # noqa: BLE001 - as above: then it is left to type checkers
        return object


def fitted(value: object, kind: object, key: Key, folder: Path | None = None) -> object:
    """Return a value as its annotation wants it.

    Args:
        value: The value.
        kind: The annotation.
        key: Where the value is, for the error.
        folder: What relative paths start from; ``None`` leaves them alone.

    Raises:
        MisfitError: It is not of that type.
    """
    form = _FORMS.get(form_of(kind))
    if form is not None:
        return form(value, kind, key, folder)
    plain = get_origin(kind) or kind
    return _of_class(value, plain, key, folder) if isinstance(plain, type) else value


def _held(value: object, kind: object, key: Key, *, holds: bool) -> object:
    if not holds:
        raise MisfitError(key, f"expected {expected_text(kind)}, got {got_text(value)}")
    return value


def _anything(value: object, kind: object, key: Key, folder: Path | None) -> object:
    del kind, key, folder
    return value


def _nothing(value: object, kind: object, key: Key, folder: Path | None) -> object:
    del folder
    return _held(value, kind, key, holds=value is None)


def _true_or_false(value: object, kind: object, key: Key, folder: Path | None) -> object:
    del folder
    return _held(value, kind, key, holds=isinstance(value, bool))


def _number(value: object, kind: object, key: Key, folder: Path | None) -> object:
    del folder
    number = not isinstance(value, bool) and isinstance(value, Integral if kind is int else Real)
    _held(value, kind, key, holds=number)
    return int(cast("int", value)) if kind is int else value


def _function(value: object, kind: object, key: Key, folder: Path | None) -> object:
    del folder
    return _held(value, kind, key, holds=callable(value))


def _annotated(value: object, kind: object, key: Key, folder: Path | None) -> object:
    return fitted(value, get_args(kind)[0], key, folder)


def _of_class(value: object, kind: type[object], key: Key, folder: Path | None) -> object:
    """Return a value of a class that is in no table."""
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _record(cast("Mapping[object, object]", value), kind, key, folder)
    if isinstance(kind, EnumMeta) and not isinstance(value, kind):
        return _member(value, cast("type[Enum]", kind), key)
    try:
        holds = isinstance(value, kind)
    except TypeError:  # a protocol: for type checkers
        return value
    return _held(value, cast("object", kind), key, holds=holds)


def _path(value: object, kind: object, key: Key, folder: Path | None) -> object:
    holds = isinstance(value, str | os.PathLike)
    path = cast("str | os.PathLike[str]", _held(value, kind, key, holds=holds))
    if folder is not None:
        return folder / Path(path).expanduser()
    return path if kind is os.PathLike else Path(path)


def _member(value: object, kind: type[Enum], key: Key) -> Enum:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(member.value) for member in kind)
        raise MisfitError(key, f"expected one of {known}, got {got_text(value)}") from None


def _literal(value: object, kind: object, key: Key, folder: Path | None) -> object:
    del folder
    known = get_args(kind)
    for one in known:
        if type(one) is type(value) and one == value:
            return one
    hint = ""
    if isinstance(value, str):
        near = nearest(value, [one for one in known if isinstance(one, str)])
        hint = f"; did you mean {near!r}?" if near else ""
    raise MisfitError(key, f"expected {expected_text(kind)}, got {got_text(value)}{hint}")


def _one_of(value: object, kind: object, key: Key, folder: Path | None) -> object:
    """Return a value by the first of several annotations that takes it."""
    kinds = get_args(kind)
    deeper: list[MisfitError] = []
    paths = [each for each in kinds if _FORMS.get(form_of(each)) is _path]
    # With a folder, a string that may be a path is one.
    first = paths if folder is not None and isinstance(value, str) else []
    for each in (*first, *kinds):
        try:
            return fitted(value, each, key, folder)
        except MisfitError as misfit:
            if misfit.formed or misfit.key != key:  # of the right form, and wrong inside
                deeper.append(misfit)
    if len(deeper) == 1:
        raise deeper[0] from None
    words = [word for each in kinds for word in get_args(each) if isinstance(word, str)]
    near = nearest(value, words) if isinstance(value, str) else None
    hint = f"; did you mean {near!r}?" if near else ""
    raise MisfitError(key, f"expected {expected_text(kind)}, got {got_text(value)}{hint}")


def _sequence(value: object, kind: object, key: Key, folder: Path | None) -> tuple[object, ...]:
    items = _items(value)
    if items is None:
        raise MisfitError(key, f"expected {expected_text(kind)}, got {got_text(value)}")
    args = get_args(kind)
    each = (args[0] if args else object,) * len(items)
    if is_record(kind):
        each = args
        _held(value, kind, key, holds=len(items) == len(args))
    return tuple(
        fitted(item, one, (*key, f"[{index}]"), folder)
        for index, (item, one) in enumerate(zip(items, each, strict=True))
    )


def _items(value: object) -> Sequence[object] | None:
    """Return a list's items; ``None`` if it is none. A numpy array is one."""
    if hasattr(value, "tolist"):
        value = cast("Callable[[], object]", getattr(value, "tolist"))()  # noqa: B009
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        return None
    return cast("Sequence[object]", value)


def _mapping(value: object, kind: object, key: Key, folder: Path | None) -> Table:
    _held(value, kind, key, holds=isinstance(value, Mapping))
    names, values = get_args(kind) or (object, object)
    return Table(
        (
            fitted(name, names, (*key, f"[{name!r}]")),
            fitted(item, values, (*key, str(name)), folder),
        )
        for name, item in cast("Mapping[object, object]", value).items()
    )


def _record(given: Mapping[object, object], kind: type, key: Key, folder: Path | None) -> object:
    """Return a dataclass made of a mapping."""
    hints = annotations_of(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for name in given:
        if name not in fields:
            raise MisfitError((*key, str(name)), unknown_text(str(name), [*fields], kind.__name__))
    for name in missing(fields):
        if name not in given:
            raise MisfitError((*key, name), "missing")
    values = {
        str(name): fitted(value, hints[str(name)], (*key, str(name)), folder)
        for name, value in given.items()
    }
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:  # by a check of its own
        raise MisfitError(key, str(error), formed=True) from error


def missing(fields: Mapping[str, dataclasses.Field[Any]]) -> Iterator[str]:
    """Yield the names of fields that have no default."""
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield name


_Form: TypeAlias = Callable[[object, object, Key, Path | None], object]

_FORMS: Final[Mapping[object, _Form]] = {
    object: _anything,
    Any: _anything,
    None: _nothing,
    types.NoneType: _nothing,
    bool: _true_or_false,
    int: _number,
    float: _number,
    Path: _path,
    os.PathLike: _path,
    Callable: _function,
    Annotated: _annotated,
    Literal: _literal,
    Union: _one_of,
    types.UnionType: _one_of,
    **dict.fromkeys(LISTS, _sequence),
    **dict.fromkeys(TABLES, _mapping),
}
