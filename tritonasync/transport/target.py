"""Where a server is: a user's URL becomes a gRPC target. Pure.

Sources: gRPC's naming document (``dns:``, ``xds:``, ``unix:``, ``ipv4:``, ``ipv6:``); Triton's
default ports (8000 HTTP, 8001 gRPC, 8002 metrics).
"""

from __future__ import annotations

import re
from typing import Final

from tritonasync.core.errors import ConfigurationError

_RESOLVED: Final = ("dns:", "xds:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:")
_HOST_PORT: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+(%\w+)?\]|[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?):(?P<port>\d{1,5})"
)
_LARGEST_PORT: Final = 65_535
_EXAMPLE: Final = "a URL is host:port, such as 'localhost:8001' (Triton's gRPC port)"


def parse_target(url: str) -> str:
    """Return the gRPC target for a URL.

    Args:
        url: ``host:port``, or a target that gRPC resolves itself, such as ``dns:///name:port``,
            ``xds:///name`` or ``unix:/path``.

    Raises:
        ConfigurationError: The URL is no gRPC target; the message says what it should be.
    """
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users err
        raise ConfigurationError(
            f"one URL, a string, is wanted, not {url!r}: {_EXAMPLE}. Of several servers, a pool "
            "takes a list"
        )
    text = url.strip()
    if not text:
        raise ConfigurationError(f"the URL is empty: {_EXAMPLE}")
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() in {"http", "https", "grpc", "grpcs", "tcp"}:
        tls = "; TLS is asked for by tls=TlsConfig(…)" if scheme.lower().endswith("s") else ""
        raise ConfigurationError(
            f"{url!r} has the scheme {scheme!r}: leave it out{tls}. "
            f"Triton speaks gRPC on a port of its own: {_EXAMPLE}"
        )
    if text.startswith(_RESOLVED):
        if not text.partition(":")[2].strip("/"):
            raise ConfigurationError(f"{url!r} names nothing: {_EXAMPLE}, or dns:///name:port")
        return text
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{url!r} is no gRPC target: {_EXAMPLE}")
    if not 0 < int(match["port"]) <= _LARGEST_PORT:
        raise ConfigurationError(f"{url!r}: port {match['port']} is out of range 1 to 65535")
    return text
