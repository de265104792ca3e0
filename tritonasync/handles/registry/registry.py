"""Which kinds of handles there are, and how inputs are made and outputs are read for each.

Owns: model types and architectures by name, plugins that bring some along, making a handle of a
config. Refuses to know: what a handle does; pools.

Invariants: a name is taken once, unless whoever takes it over says so; registries share nothing;
a plugin that cannot be loaded is told of and takes nothing else down. Any thread may use one: names
are looked up and added under a lock that is never held while code of others runs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import RLock
from types import MappingProxyType
from typing import Final, TypeVar, cast

from tritonasync.core.errors import ConfigurationError
from tritonasync.handles.architecture import (
    Architecture,
    check_architecture,
    class_text,
    plug_of,
)
from tritonasync.handles.registry.config import HandleConfig, HandleParts
from tritonasync.handles.registry.configfiles import Source, read_table, tables_of
from tritonasync.handles.registry.configs import ClassifierConfig, DetectorConfig, EncoderConfig
from tritonasync.handles.registry.fieldwords import got_text, nearest
from tritonasync.handles.registry.plugins import Plugins

_A = TypeVar("_A", bound=Architecture)
_C = TypeVar("_C", bound=HandleConfig[object])
_H = TypeVar("_H")

BUILTIN: Final[tuple[type[HandleConfig[object]], ...]] = (
    ClassifierConfig,
    DetectorConfig,
    EncoderConfig,
)
"""The model types that every registry has from the start."""


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """An architecture of a registry.

    Attributes:
        model_type: The kind of handle it is for.
        arch_type: Its name.
        made_by: The class with ``preprocess`` or ``postprocess``; the config's class where the
            handle has the architecture itself.
    """

    model_type: str
    arch_type: str
    made_by: type

    def __str__(self) -> str:
        return f"{self.model_type} {self.arch_type}: {class_text(self.made_by)}"


class ModelRegistry:
    """Model types and architectures by name. Make one for tests or a team, and give it to a pool.

    ::

        registry = ModelRegistry()

        @registry.register_model(model_type="detector", arch_type="custom_detector")
        class CustomDetector:
            def preprocess(self, inputs): ...
            def postprocess(self, outputs): ...

        async with TritonPool("localhost:8001", registry=registry) as pool: ...

    Args:
        plugins: Whether installed plugins (entry points of the group ``tritonasync.models``) are
            loaded, at the first listing or the first name that is not there.
    """

    def __init__(self, *, plugins: bool = False) -> None:
        self._lock = RLock()
        self._types: dict[str, type[HandleConfig[object]]] = {}
        self._architectures: dict[tuple[str, str], type] = {}
        self._plugins = Plugins() if plugins else None
        for config in BUILTIN:
            self.register_model_type(config)

    def __repr__(self) -> str:
        with self._lock:
            counts = f"{len(self._types)} model types, {len(self._architectures)} architectures"
        return f"<{type(self).__name__}: {counts}>"

    # --- adding ---

    def register_model(
        self, model_type: str, *, arch_type: str | None = None, override: bool = False
    ) -> Callable[[type[_A]], type[_A]]:
        """Return a decorator that registers a class as an architecture, and returns it unchanged.

        The class has ``preprocess(inputs)``, ``postprocess(outputs)`` or both. Each handle makes an
        object of its own of it: with the config, if ``__init__`` must have an argument or has one
        named ``config``; else without.

        Args:
            model_type: The kind of handle it is for: ``"classifier"``, ``"detector"``,
                ``"encoder"``, or one that was registered.
            arch_type: Its name; the class's in lower case by default.
            override: Whether it may take the place of another one.

        Raises:
            ConfigurationError: The model type is unknown. The decorator raises it if the name is
                taken, or the class is no architecture.
        """
        self._check_name("model_type", model_type, "@register_model(model_type='detector')")
        if arch_type is not None:
            self._check_name("arch_type", arch_type, "arch_type='my_detector'")
        self.config_class(model_type)

        def register(kind: type[_A]) -> type[_A]:
            check_architecture(kind)
            name = kind.__name__.lower() if arch_type is None else arch_type
            self._add(model_type, name, kind, override=override)
            return kind

        return register

    def register_model_type(self, config: type[_C], *, override: bool = False) -> type[_C]:
        """Register a config's class as a kind of handle, and return it; a decorator, too.

        Raises:
            ConfigurationError: It is no frozen dataclass made from HandleConfig, has no
                ``model_type``, or one that is taken.
        """
        _check_config_class(config)
        with self._lock:
            taken = self._types.get(config.model_type)
            if taken is not None and not override:
                raise _taken(f"model_type {config.model_type!r}", taken, config)
            if taken is not None:
                self._forget_own(taken)
            self._types[config.model_type] = config
            for name in config.arch_types:
                self._architectures[config.model_type, name] = config
        return config

    def _add(self, model_type: str, arch_type: str, kind: type, *, override: bool) -> None:
        with self._lock:
            taken = self._architectures.get((model_type, arch_type))
            if taken is not None and not override:
                raise _taken(f"arch_type {arch_type!r} of model_type {model_type!r}", taken, kind)
            self._architectures[model_type, arch_type] = kind

    def _forget_own(self, config: type[HandleConfig[object]]) -> None:
        """Drop the architectures of the handle that a config makes, not those of users."""
        for name in config.arch_types:
            if self._architectures.get((config.model_type, name)) is config:
                del self._architectures[config.model_type, name]

    def _check_name(self, what: str, value: object, example: str) -> None:
        if not isinstance(value, str) or not value:
            raise ConfigurationError(f"{what} is a name, as in {example}, not {got_text(value)}")

    # --- looking up ---

    def registered_models(self, model_type: str | None = None) -> tuple[RegisteredModel, ...]:
        """Return the architectures, of one model type or all, by name. Loads plugins.

        Raises:
            ConfigurationError: The model type is unknown.
        """
        self._load_plugins()
        if model_type is not None:
            self.config_class(model_type)
        with self._lock:
            found = [
                RegisteredModel(kind, name, made_by)
                for (kind, name), made_by in self._architectures.items()
                if model_type in (None, kind)
            ]
        return tuple(sorted(found, key=lambda model: (model.model_type, model.arch_type)))

    def model_types(self) -> Mapping[str, type[HandleConfig[object]]]:
        """Return the configs' classes by model type. Loads plugins."""
        self._load_plugins()
        with self._lock:
            return MappingProxyType(dict(sorted(self._types.items())))

    def config_class(self, model_type: str) -> type[HandleConfig[object]]:
        """Return the config's class of a model type. Loads plugins if there is none.

        Raises:
            ConfigurationError: There is none; the error lists the known.
        """
        found = self._types.get(model_type)
        if found is None:
            self._load_plugins()
            found = self._types.get(model_type)
        if found is None:
            raise self._unknown(f"model_type {model_type!r}", model_type, sorted(self._types))
        return found

    def architecture(self, model_type: str, arch_type: str) -> type:
        """Return what is registered under a name. Loads plugins if there is nothing.

        Raises:
            ConfigurationError: The model type or the architecture is unknown; the error lists the
                known.
        """
        self.config_class(model_type)
        key = model_type, arch_type
        found = self._architectures.get(key)
        if found is None:
            self._load_plugins()
            found = self._architectures.get(key)
        if found is None:
            known = self._names(model_type)
            what = f"arch_type {arch_type!r} for model_type {model_type!r}"
            raise self._unknown(what, arch_type, known)
        return found

    def _names(self, model_type: str) -> list[str]:
        with self._lock:
            return sorted(name for kind, name in self._architectures if kind == model_type)

    def _unknown(self, what: str, name: str, known: list[str]) -> ConfigurationError:
        near = nearest(str(name), known)
        hint = f" (did you mean {near!r}?)" if near else ""
        broken = "" if self._plugins is None else self._plugins.broken_text()
        listed = ", ".join(known) or "none"
        return ConfigurationError(f"there is no {what}{hint}; registered: {listed}{broken}")

    def _load_plugins(self) -> None:
        if self._plugins is not None:
            self._plugins.load(self)

    # --- making ---

    def create(self, config: HandleConfig[_H], parts: HandleParts) -> _H:
        """Return a new handle of a config; a pool's ``create`` calls it. No I/O.

        Raises:
            ConfigurationError: It is no config, its model type or architecture is unknown, or a
                field makes no sense.
        """
        if not isinstance(config, HandleConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"expected a config, as DetectorConfig(name=…), got {got_text(config)}; "
                "DetectorConfig.from_dict(…) makes one of a mapping"
            )
        try:
            self.config_class(config.model_type)
            arch_type = config.arch_type or self._only(config)
            made_by = self.architecture(config.model_type, arch_type)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"model {config.name!r}: {error}", model=config.name
            ) from error
        if _is_config_class(made_by):  # the handle has it itself
            return config.build(parts)
        plug = plug_of(made_by, config, f"architecture {arch_type!r}")
        return config.build(dataclasses.replace(parts, plug=plug))

    def _only(self, config: HandleConfig[object]) -> str:
        """Return the architecture of a config that says none: its kind's own, or the only one."""
        if config.arch_types:
            return config.arch_types[0]
        known = [each.arch_type for each in self.registered_models(config.model_type)]
        if len(known) == 1:
            return known[0]
        raise ConfigurationError(
            f"there are {len(known) or 'no'} architectures for model_type {config.model_type!r}; "
            + (f"say which by arch_type: {', '.join(known)}" if known else "register one")
        )

    # --- reading ---

    def config_from_dict(self, given: Mapping[str, object]) -> HandleConfig[object]:
        """Return the config of a mapping, of the kind that its ``model_type`` says.

        Raises:
            ConfigurationError: An entry is unknown, missing, or not of its type.
        """
        return self._config(given, Source("config"))

    def load_configs(
        self, path: str | os.PathLike[str], *, table: str = ""
    ) -> Mapping[str, HandleConfig[object]]:
        """Return the configs in a TOML or YAML file, by the names of their tables.

        Each table has a ``model_type``; its name is the model's, unless there is a ``name``. The
        file is read at once; paths in it are relative to its folder.

        Args:
            path: The file: ``.toml``, ``.yaml`` or ``.yml``.
            table: Where in the file the tables are, ``"tool.models"``; ``""`` for its top.

        Raises:
            ConfigurationError: The file cannot be read, or an entry is unknown, missing, or not of
                its type.
            MissingExtraError: It is YAML, and PyYAML is not installed.
        """
        tables = tables_of(*read_table(path, table))
        return MappingProxyType({at.name: self._config(given, at) for given, at in tables})

    def _config(self, given: object, source: Source) -> HandleConfig[object]:
        entries = source.entries(given)
        model_type = entries.get("model_type")
        if not isinstance(model_type, str):
            near = None if "model_type" in entries else nearest("model_type", entries)
            if near is not None:
                raise source.error((near, "unknown key; did you mean model_type?"))
            known = ", ".join(self.model_types())
            got = "nothing" if model_type is None else got_text(model_type)
            raise source.error(("model_type", f"expected one of {known}, got {got}"))
        try:
            kind = self.config_class(model_type)
        except ConfigurationError as error:
            raise source.error(("model_type", str(error))) from error
        return kind.from_table(entries, source)


def _taken(what: str, first: type, second: type) -> ConfigurationError:
    return ConfigurationError(
        f"{what} is taken by {class_text(first)}, and {class_text(second)} wants it, too; give it "
        "another name, or override=True to have it in the other's place"
    )


def _is_config_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, HandleConfig)


def _check_config_class(config: object) -> None:
    if not _is_config_class(config):
        raise ConfigurationError(
            f"expected a class made from HandleConfig[...], got {got_text(config)}"
        )
    kind = cast("type[HandleConfig[object]]", config)
    if "__dataclass_fields__" not in kind.__dict__:
        raise ConfigurationError(
            f"{class_text(kind)} is no dataclass: write @dataclass(frozen=True, kw_only=True) "
            "above it, below @register_model_type"
        )
    if not isinstance(kind.model_type, str) or not kind.model_type:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(
            f"{class_text(kind)} has no model_type: write model_type = 'segmenter' in it"
        )


# --- the default registry ------------------------------------------------------------------------

default_registry: Final = ModelRegistry(plugins=True)
"""What the functions of this module work on, and pools that are given no other."""


def register_model(
    model_type: str, *, arch_type: str | None = None, override: bool = False
) -> Callable[[type[_A]], type[_A]]:
    """Register a class as an architecture, in the default registry.

    See :meth:`ModelRegistry.register_model`.
    """
    return default_registry.register_model(model_type, arch_type=arch_type, override=override)


def register_model_type(config: type[_C], *, override: bool = False) -> type[_C]:
    """Register a config's class as a kind of handle, in the default registry.

    See :meth:`ModelRegistry.register_model_type`.
    """
    return default_registry.register_model_type(config, override=override)


def registered_models(model_type: str | None = None) -> tuple[RegisteredModel, ...]:
    """Return the architectures of the default registry.

    See :meth:`ModelRegistry.registered_models`.
    """
    return default_registry.registered_models(model_type)


def load_configs(
    path: str | os.PathLike[str], *, table: str = ""
) -> Mapping[str, HandleConfig[object]]:
    """Return the configs in a TOML or YAML file, by the kinds of the default registry.

    See :meth:`ModelRegistry.load_configs`.
    """
    return default_registry.load_configs(path, table=table)
