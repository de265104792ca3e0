"""What a handle is made of, as a value: from Python, a mapping, a TOML or YAML file.

Owns: the fields, that each fits its type, and what is said of one that does not. Refuses to know:
which architectures there are (``registry`` does), pools.

Invariants: a config is frozen, and its fields are of their types: lists have become tuples. Every
fault is a ConfigurationError that says where it is, what was expected and what was got; all faults
of a config are told at once. Making one reads no file but the config's own.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Self,
    TypeVar,
    cast,
    get_args,
    get_origin,
)

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.handles.architecture import Plug, class_text
from tritonasync.handles.classifications import Json
from tritonasync.handles.lanes import FindLane, no_lane
from tritonasync.handles.registry.configfiles import Source, read_table
from tritonasync.handles.registry.fieldtypes import MisfitError, annotations_of, fitted, missing
from tritonasync.handles.registry.fieldwords import got_text, key_text, unknown_text
from tritonasync.handles.task import TaskHandle

_H_co = TypeVar("_H_co", covariant=True)
_K = TypeVar("_K", bound="HandleConfig[object]")

_UNITS = "unknown key; say the unit: timeout_s or timeout_ms"


@dataclass(frozen=True, slots=True, eq=False)
class HandleParts:
    """What a pool gives a config to make a handle of.

    Attributes:
        invoker: The next stage.
        padder: The next stage for calls with a padding.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own.
        plug: The architecture that is registered for the config, if it is a user's.
        lane: Gives the short way of items like those of a call, if there is one.
    """

    invoker: Invoker
    padder: Invoker
    catalog: ModelCatalog
    timeout_s: float
    plug: Plug | None = None
    lane: FindLane = no_lane


class _Checked(ABCMeta):
    """Has the arguments of a config checked and converted before it is made of them."""

    if not TYPE_CHECKING:  # to type checkers, configs are plain dataclasses

        def __call__(cls, *args, **given):  # noqa: ANN002, ANN003, ANN204
            if args:
                raise ConfigurationError(
                    f"{cls.__name__} takes its fields by name: {cls.__name__}(name=…)"
                )
            return super().__call__(**_fitted(cls, given, Source(cls.__name__)))


@dataclass(frozen=True, kw_only=True)
class HandleConfig(Generic[_H_co], metaclass=_Checked):
    """What a handle is made of; ``_H_co`` is the handle that ``pool.create`` makes of it.

    A kind of your own is a frozen dataclass, ``@dataclass(frozen=True, kw_only=True)``, that says
    which handle is made and has a ``model_type``::

        @dataclass(frozen=True, kw_only=True)
        class SegmenterConfig(HandleConfig[TaskHandle[Image, Mask]]):
            model_type = "segmenter"
            threshold: float = 0.5

    Attributes:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        arch_type: How inputs are made and outputs are read, as it is registered; ``""`` for the
            kind's own way, or for the only one that is registered.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for the pool's,
            ``math.inf`` for no limit.
        timeout_ms: The same in milliseconds; one of the two.

    Raises:
        ConfigurationError: A field is unknown, missing, or not of its type.
    """

    model_type: ClassVar[str] = ""
    """The kind of handle, by which it is registered and named in files."""
    arch_types: ClassVar[tuple[str, ...]] = ()
    """The architectures that the handle has itself, the default first."""

    name: str
    version: str = ""
    arch_type: str = ""
    timeout_s: float | None = None
    timeout_ms: float | None = None

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> Self:
        """Return the config of a mapping's entries.

        Raises:
            ConfigurationError: One is unknown, missing, or not of its type.
        """
        return cls.from_table(given, Source(cls.__name__))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, table: str = "") -> Self:
        """Return the config in a ``.toml``, ``.yaml`` or ``.yml`` file. Reads it at once.

        Paths in it are relative to its folder.

        Args:
            path: The file.
            table: Where in the file it is, ``"models.cats"``; ``""`` for the whole file. Then the
                last word is the model's name, unless there is a ``name``.

        Raises:
            ConfigurationError: The file cannot be read, or an entry is unknown, missing, or not of
                its type.
            MissingExtraError: It is YAML, and PyYAML is not installed.
        """
        return cls.from_table(*read_table(path, table))

    @classmethod
    def from_table(cls, given: Mapping[str, object], source: Source) -> Self:
        """Return the config of a mapping that comes from somewhere, for messages.

        Raises:
            ConfigurationError: An entry is unknown, missing, or not of its type.
        """
        entries = dict(source.entries(given))
        kind = entries.pop("model_type", cls.model_type)
        if kind != cls.model_type:
            fault = f"expected {cls.model_type!r} for a {cls.__name__}, got {got_text(kind)}"
            raise source.error(("model_type", fault))
        if source.name:
            entries.setdefault("name", source.name)
        values = _fitted(cls, entries, source)
        try:
            return cls(**cast("Any", values))
        except (ConfigurationError, ValueError) as error:  # of a check of its own
            raise source.error(("", str(error))) from error

    def to_dict(self) -> dict[str, Json]:
        """Return model_type and the fields, ready for JSON or a file; ``from_dict`` reads it.

        Raises:
            ConfigurationError: A field has a value that cannot be written, as a function.
        """
        made: dict[str, Json] = {"model_type": self.model_type}
        for field in dataclasses.fields(self):
            value: object = getattr(self, field.name)
            if value is not None or field.default is not None:
                made[field.name] = _plain(value, type(self).__name__, (field.name,))
        return made

    @property
    def call_timeout_s(self) -> float | None:
        """Seconds for a call, whichever unit they were given in; ``None`` for the pool's."""
        return self.timeout_s if self.timeout_ms is None else self.timeout_ms / 1000

    def build(self, parts: HandleParts) -> _H_co:
        """Return a new handle. No I/O.

        As it is here, it makes the ``TaskHandle`` that the class names, of a registered class with
        ``preprocess`` or ``postprocess``. Override it for a handle of your own.

        Raises:
            ConfigurationError: A field makes no sense.
        """
        handle: object = handle_of(type(self))
        if not (isinstance(handle, type) and issubclass(handle, TaskHandle)):
            raise ConfigurationError(
                f"{class_text(type(self))} makes no TaskHandle: give it a build(parts) that makes "
                "its handle"
            )
        task = cast("type[TaskHandle[object, object]]", handle)
        made = task(
            self.name,
            self.version,
            parts.invoker,
            parts.catalog,
            timeout_s=self.timeout_of(parts),
            plug=parts.plug,
        )
        return cast("_H_co", made)

    def timeout_of(self, parts: HandleParts) -> float:
        """Return the seconds for a call that gives none of its own."""
        own = self.call_timeout_s
        return parts.timeout_s if own is None else own


def handle_of(kind: type[HandleConfig[object]]) -> object:
    """Return the class of handles that a config's class names; ``object`` if it names none."""
    for base in kind.__mro__:
        for parent in cast("tuple[object, ...]", base.__dict__.get("__orig_bases__", ())):
            origin = get_origin(parent)
            if isinstance(origin, type) and issubclass(origin, HandleConfig):
                (named,) = get_args(parent)[:1] or (object,)
                return object if isinstance(named, TypeVar) else get_origin(named) or named
    return object


def expected_config(kind: type[_K], config: object) -> _K:
    """Return a config of a kind: the one given, or that of a mapping.

    Raises:
        ConfigurationError: It is of another kind, or the mapping does not fit.
    """
    if isinstance(config, kind):
        return config
    if isinstance(config, Mapping):
        return kind.from_dict(cast("Mapping[str, object]", config))
    got = got_text(config)
    if isinstance(config, HandleConfig):
        other = cast("HandleConfig[object]", config)
        got = f"{type(other).__name__}; pool.create(config) takes any"
    raise ConfigurationError(f"expected a {kind.__name__} or a mapping, got {got}")


# --- the fields, checked -------------------------------------------------------------------------


def _fitted(
    kind: type[HandleConfig[object]], given: Mapping[str, object], source: Source
) -> dict[str, object]:
    """Return the fields as their types want them."""
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    if "__dataclass_fields__" not in kind.__dict__ and inspect.get_annotations(kind):
        raise ConfigurationError(
            f"{class_text(kind)} is no dataclass: write @dataclass(frozen=True, kw_only=True) "
            "above it"
        )
    hints = annotations_of(kind)
    faults: list[tuple[str, str]] = []
    values: dict[str, object] = {}
    for key, value in given.items():
        if key not in fields:
            text = unknown_text(key, [*fields], kind.__name__)
            timeout = "timeout" in key and not key.endswith(("_s", "_ms"))
            faults.append((key, _UNITS if timeout else text))
            continue
        try:
            values[key] = fitted(value, hints.get(key, object), (key,), source.folder)
        except MisfitError as misfit:
            faults.append((key_text(misfit.key), misfit.fault))
    faults += [(key, "missing") for key in missing(fields) if key not in given]
    faults += _contradictions(values)
    if faults:
        name = given.get("name")
        raise source.error(*faults, model=name if isinstance(name, str) else None)
    return values


def _contradictions(values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    if values.get("name") == "":
        yield "name", "expected a model's name, got an empty string"
    timeouts = [
        (key, value)
        for key in ("timeout_s", "timeout_ms")
        if (value := cast("float | None", values.get(key))) is not None
    ]
    if len(timeouts) == 2:
        yield "timeout_ms", "timeout_s is given as well; give one of the two"
    for key, value in timeouts:
        if not 0 < value <= math.inf:  # false for NaN, too
            yield key, f"expected a number above 0, got {got_text(value)}"


def _plain(value: object, owner: str, key: tuple[str, ...]) -> Json:
    """Return a field's value as JSON has it."""
    value = cast("object", value.value) if isinstance(value, Enum) else value
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) or hasattr(value, "__float__"):
        return float(cast("float", value))
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    if isinstance(value, list | tuple):
        items = enumerate(cast("tuple[object, ...]", value))
        return [_plain(item, owner, (*key, f"[{index}]")) for index, item in items]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        value = {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        named = cast("Mapping[object, object]", value).items()
        return {str(name): _plain(item, owner, (*key, str(name))) for name, item in named}
    raise ConfigurationError(
        f"{owner}: {key_text(key)}: expected what a file can say, got {got_text(value)}"
    )
