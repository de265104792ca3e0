"""What a server's log file says in the end, for error messages.

Owns: reading the end without reading the whole, and telling complaints from chatter, as Triton 2.51
writes them: lines begin with a letter for the level and the date (``E1120 …``), tables are drawn
with ``+`` and ``|``, other lines have no mark. Refuses to know: who writes it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_MAX_LINE: Final = 500
_MAX_BYTES: Final = 256 * 1024
_TABLE: Final = ("+-", "| ", "+=")
_CHATTER: Final = re.compile(r"[IWV]\d{4} ")
_HARMLESS: Final = "CudaDriverHelper has not been initialized"
"""An error line of every start on a machine without a GPU."""


def tail(path: Path, lines: int) -> list[str]:
    """Return up to ``lines`` last lines (at least one), long ones cut, without tables.

    A file that is not there has none.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - _MAX_BYTES)
            file.seek(start)
            text = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    whole = text[1:] if start else text  # the first may have lost its beginning
    worth = [line for line in whole if line.strip() and not line.startswith(_TABLE)]
    return [_cut(line) for line in worth[-max(lines, 1) :]]


def summary(lines: list[str], *, complaints: int, last: int) -> list[str]:
    """Return up to ``complaints`` lines of ``lines`` that say what went wrong, then the ``last``.

    Without the first part the reason of a failed start is out of sight: the server goes on to write
    a line or two for each model that it unloads.
    """
    older, newest = lines[:-last], lines[-last:]
    wrong = [line for line in older if not _CHATTER.match(line) and _HARMLESS not in line]
    return [*wrong[-complaints:], *newest]


def _cut(line: str) -> str:
    return line if len(line) <= _MAX_LINE else line[:_MAX_LINE] + "…"
