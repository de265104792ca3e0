"""What a number given by a user must be. Pure."""

from __future__ import annotations

import math


def is_count(value: object, *, least: int = 1) -> bool:
    """Return whether a value is a whole number from ``least`` on (and no bool)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_duration(value: object) -> bool:
    """Return whether a value is a finite number from 0 on (and no bool)."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return 0 <= float(value) < math.inf  # false for NaN, too
    except OverflowError:
        return False
