"""What a user decides once, for a whole pool: frozen values, checked when they are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from tritonasync.core.errors import ConfigurationError

Headers: TypeAlias = Mapping[str, str]
"""gRPC metadata sent with every call. Names are lower case; values are printable ASCII."""

HeaderSource: TypeAlias = Headers | Callable[[], Headers] | Callable[[], Awaitable[Headers]]
"""Headers, or a function (plain or async) that gives them anew for each call, as for a token."""

Pem: TypeAlias = bytes | str | Path
"""A PEM file's path (``str`` or ``Path``), or its bytes."""


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How to talk TLS: who is trusted, and who we are.

    Attributes:
        ca: Certificates of the authorities that may have signed the server's; ``None`` trusts those
            that gRPC ships.
        cert: Our own certificate chain, for mutual TLS.
        key: The private key of ``cert``.
        server_name: The name that the server's certificate carries, where it differs from the
            address called.

    Raises:
        ConfigurationError: A file cannot be read or is no PEM file, or only one of ``cert`` and
            ``key`` is given.
    """

    ca: Pem | None = field(default=None, repr=False)
    cert: Pem | None = field(default=None, repr=False)
    key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigurationError("TlsConfig: cert and key go together; only one was given")
        names: tuple[Literal["ca", "cert", "key"], ...] = ("ca", "cert", "key")
        for name in names:
            self.pem(name)  # a wrong file would otherwise show as a failed handshake, much later

    def pem(self, name: Literal["ca", "cert", "key"]) -> bytes | None:
        """Return the bytes of one of the three, read from its file if need be."""
        source: Pem | None = getattr(self, name)
        if source is None:
            return None
        if not isinstance(source, bytes | str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"TlsConfig: {name} is a path or PEM bytes, not {source!r}")
        content = source if isinstance(source, bytes) else _read(name, Path(source))
        if b"-----BEGIN " not in content:
            raise ConfigurationError(f"TlsConfig: {name} holds no PEM block (-----BEGIN …)")
        return content


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"TlsConfig: {name} cannot be read: {error}") from error
