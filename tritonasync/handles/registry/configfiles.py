"""Configs in files: TOML and YAML.

Owns: reading a file, finding a table in it, and naming the place of a fault. Refuses to know: what
the entries mean.

PyYAML is imported when a YAML file is read, not before.
"""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from tritonasync.core.errors import ConfigurationError, MissingExtraError
from tritonasync.handles.registry.fieldwords import got_text, nearest

_SUFFIXES: Final = (".toml", ".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Source:
    """Where entries come from.

    Attributes:
        origin: A file, or the name of a class.
        table: The keys that lead to the entries.
        folder: What relative paths start from; ``None`` leaves them alone.
    """

    origin: str
    table: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The last of the keys, ``""`` at the top."""
        return self.table[-1] if self.table else ""

    def error(self, *faults: tuple[str, str], model: str | None = None) -> ConfigurationError:
        """Return the error of faults, each with its key: ``models.toml: cats.image_size: …``."""
        told = [
            ": ".join([part for part in (self._place(key), fault) if part]) for key, fault in faults
        ]
        return ConfigurationError(f"{self.origin}: {'; '.join(told)}", model=model)

    def _place(self, key: str) -> str:
        return ".".join([part for part in (*self.table, key) if part])

    def entries(self, given: object) -> Mapping[str, object]:
        """Return what was given as entries by name.

        Raises:
            ConfigurationError: It is something else.
        """
        if not isinstance(given, Mapping):
            raise self.error(("", f"expected a table of entries by name, got {got_text(given)}"))
        for key in cast("Mapping[object, object]", given):
            if not isinstance(key, str):
                raise self.error(("", f"expected names of entries, got the key {got_text(key)}"))
        return cast("Mapping[str, object]", given)


def read_table(
    path: str | os.PathLike[str], table: str = ""
) -> tuple[Mapping[str, object], Source]:
    """Return a file's entries, or those of a table in it, and where they come from.

    Raises:
        ConfigurationError: The file cannot be read, or has no such table.
        MissingExtraError: It is YAML, and PyYAML is not installed.
    """
    file = Path(path)
    source = Source(str(file), folder=file.parent.absolute())
    entries = source.entries(_read(file, source))
    for key in table.split(".") if table else ():
        if key not in entries:
            near = nearest(key, entries)
            hint = (
                f"; did you mean {near}?" if near else f"; there are {', '.join(entries) or 'none'}"
            )
            raise source.error((key, f"no such table{hint}"))
        source = replace(source, table=(*source.table, key))
        entries = source.entries(entries[key])
    return entries, source


def _read(file: Path, source: Source) -> object:
    if file.suffix.lower() not in _SUFFIXES:
        raise source.error(("", f"expected a file that ends in {', '.join(_SUFFIXES)}"))
    try:
        text = file.read_text("utf-8-sig")  # some editors begin with a mark
    except OSError as error:
        raise source.error(("", f"cannot be read: {error.strerror or error}")) from error
    except UnicodeDecodeError as error:
        raise source.error(("", f"is not UTF-8: {error.reason} at byte {error.start}")) from error
    if file.suffix.lower() != ".toml":
        return _yaml(text, source)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise source.error(("", f"is no TOML: {error}")) from error


def _yaml(text: str, source: Source) -> object:
    try:
        import yaml  # noqa: PLC0415 - an extra, imported when used
    except ImportError as error:
        raise MissingExtraError(
            "pyyaml", extra="yaml", purpose=f"reading {source.origin}"
        ) from error

    class Loader(yaml.SafeLoader):
        """Refuses what YAML forbids and PyYAML overlooks: a key that is there twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: ANN401, FBT001, FBT002
            counts = Counter(str(key.value) for key, _ in node.value)
            for key, count in counts.items():
                if count > 1:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key!r} is there twice", node.start_mark
                    )
            return cast("dict[Any, Any]", super().construct_mapping(node, deep=deep))

    try:
        loaded: object = yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise source.error(("", f"is no YAML: {' '.join(str(error).split())}")) from error
    return {} if loaded is None else loaded


def tables_of(entries: Mapping[str, object], source: Source) -> Iterator[tuple[object, Source]]:
    """Yield what stands under each name, and where."""
    for key, value in entries.items():
        yield value, replace(source, table=(*source.table, key))
