"""Label files: one name a line.

Owns: their form. Refuses to know: whose they are.
"""

from __future__ import annotations

from pathlib import Path

MAX_NBYTES = 64 << 20
"""A larger file is none of labels: a million names of 64 characters."""


def read_names(path: Path) -> tuple[str, ...]:
    """Return the names in a file, ``""`` for an empty line; blocks.

    Blanks around a name are left out (a server keeps them), as are empty lines at the end. A byte
    order mark is skipped.

    Raises:
        OSError: It cannot be read.
        ValueError: It is too large, or not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(MAX_NBYTES + 1)
    if len(content) > MAX_NBYTES:
        raise ValueError(f"{path} is larger than {MAX_NBYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    names = [line.strip() for line in text.split("\n")]
    while names and not names[-1]:
        names.pop()
    return tuple(names)
