"""What a server can do, by its version: one table. Pure.

Owns: the table below, and what counts as a version. Refuses to know: how a version is asked for,
and what is done about a feature.

Invariant: where a version is unknown, or may be either side of a row (a development build), the
careful side is taken, on which the feature is not there.

Sources: Triton's release history and issues (``server #``: triton-inference-server/server). Server
2.50 is release 24.09, and each release since raised the second number by one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, TypeAlias

_VERSION: Final = re.compile(
    r"(?P<major>\d)\.(?P<minor>\d{1,4})(\.\d+)*"  # 24.10 is a release, no version of the server
    # A vendor's or local build of a release; any other ending marks something before it ("dev").
    r"(?P<release>$|\+|[.-]?nv)?",
    re.IGNORECASE,
)

_Number: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ServerFeatures:
    """What a server of some version can do.

    Attributes:
        cancelling: Calls may be cancelled, and deadlines pass, without the server dying of it.
        shared_memory_by_default: Clients may register shared memory unless that was switched off;
            later servers want ``--allow-client-shm``.
        unregisters_in_use: A region may be unregistered while requests use it: it is put off.
        register_offset_right: The offset of a registration is applied once, not twice.
        registers_again: One key may be registered a second time.
        stream_error_header: The header ``triton_grpc_error: true`` makes an error end its stream
            with a status. (All that is on the stream ends with it: never on one that is shared.)
    """

    cancelling: bool = False
    shared_memory_by_default: bool = False
    unregisters_in_use: bool = False
    register_offset_right: bool = False
    registers_again: bool = False
    stream_error_header: bool = False

    @classmethod
    def of(cls, version: str | None) -> ServerFeatures:
        """Return what a server can do that gives this version; ``None`` if none is known."""
        if version is None or (match := _VERSION.match(version.strip())) is None:
            return UNKNOWN
        number = int(match["major"]), int(match["minor"])
        released = match["release"] is not None
        return cls(**{row.feature: row.holds(number, released=released) for row in _ROWS})


@dataclass(frozen=True, slots=True)
class _Row:
    """A feature, the version it came with, the one it went with, and who says so."""

    feature: str
    first: _Number
    source: str
    end: _Number = (math.inf, 0)

    def holds(self, number: _Number, *, released: bool) -> bool:
        """Return whether a server of this version surely has the feature."""
        came = self.first <= number if released else self.first < number
        return came and number < self.end


_ROWS: Final = (
    _Row(
        "cancelling",
        (2, 59),
        "server #7325, #7617, #7840, #8078, #8220; the crashes: #7368, #7472, #8034",
    ),
    _Row("shared_memory_by_default", (0, 0), "off from release 26.04 on", end=(2, 68)),
    _Row("unregisters_in_use", (2, 53), "before it an error (2.50 to 2.52) or a crash"),
    _Row("register_offset_right", (2, 60), "server #8330"),
    _Row("registers_again", (2, 69), "server #8733: a closed descriptor was used again"),
    _Row("stream_error_header", (2, 50), "server #7499"),
)

UNKNOWN: Final = ServerFeatures()
"""What a server can surely do whose version is not known: none of it."""
