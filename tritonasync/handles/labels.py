"""Names of classes: checked when given, numbers when not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tritonasync.core.errors import ConfigurationError


def checked_labels(subject: str, labels: Sequence[object] | None) -> tuple[str, ...] | None:
    """Return labels as a tuple of strings.

    Raises:
        ConfigurationError: They are a single string, or not all strings, or none.
    """
    if labels is None:
        return None
    names = tuple(name for name in labels if isinstance(name, str))
    if isinstance(labels, str) or not names or len(names) < len(labels):
        raise ConfigurationError(
            f"{subject}: labels is a list of strings, one for each class, not {labels!r}"
        )
    return names


@lru_cache(maxsize=32)
def numbers(count: int) -> tuple[str, ...]:
    """Return the labels of classes that have no names: ``"0"``, ``"1"``, …."""
    return tuple(map(str, range(count)))
