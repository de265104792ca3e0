"""Installed packages that bring architectures or model types along.

Owns: finding them (entry points of the group ``tritonasync.models``), loading each once, and what
is said of one that cannot be loaded. Refuses to know: registries, what is registered.

An entry point names a function, which is called with the registry, or a module or class, whose
import registers what it has with the default registry.

Invariants: a broken plugin is warned of once, when all others are loaded; threads that come
meanwhile wait for the one that loads, but not for ever, since it may wait for an import of theirs.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from typing import Final, cast

GROUP: Final = "tritonasync.models"
"""The group of entry points."""

_PATIENCE_S: Final = 10.0
"""How long a thread waits for another that loads."""


class Plugins:
    """The plugins of one registry, loaded when :meth:`load` is first called."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._waiting: list[EntryPoint] | None = None
        self._depth = 0
        self._done = False
        self._broken: list[str] = []

    def load(self, registry: object) -> None:
        """Load those that are not loaded yet. A plugin that needs another has it loaded first."""
        if self._done or not self._lock.acquire(timeout=_PATIENCE_S):
            return
        self._depth += 1
        try:
            broken = self._load_all(registry)
        finally:
            self._depth -= 1
            self._done = not self._depth and not self._waiting
            self._lock.release()
        for text in broken:
            warnings.warn(f"plugin {text}", RuntimeWarning, stacklevel=2)

    def _load_all(self, registry: object) -> list[str]:
        if self._waiting is None:
            self._waiting = sorted(entry_points(group=GROUP), key=lambda each: each.name)
        broken: list[str] = []
        while self._waiting:
            plugin = self._waiting.pop(0)
            try:
                _load(plugin, registry)
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything
                broken.append(f"{_text(plugin)} cannot be loaded: {type(error).__name__}: {error}")
        self._broken += broken
        return broken

    def broken_text(self) -> str:
        """Return what follows a list of names, for who looks for one of a broken plugin."""
        return "".join(f"; plugin {text}" for text in self._broken)


def _load(plugin: EntryPoint, registry: object) -> None:
    found: object = plugin.load()
    if inspect.ismodule(found) or inspect.isclass(found):
        return
    if not callable(found):
        raise TypeError(
            f"expected a module, a class or a function that takes the registry, got {found!r}"
        )
    cast("Callable[[object], object]", found)(registry)


def _text(plugin: EntryPoint) -> str:
    package = "" if plugin.dist is None else f" of {plugin.dist.name} {plugin.dist.version}"
    return f"{plugin.name!r}{package} ({plugin.value})"
