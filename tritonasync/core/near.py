"""Whether a server is on this machine, as far as its target alone tells. Pure.

Source: gRPC's naming document (``unix:``, ``ipv4:``, ``ipv6:``, ``dns:``).
"""

from __future__ import annotations

import ipaddress


def is_near(target: str) -> bool:
    """Return whether a gRPC target is reached without leaving this machine.

    That is so for ``unix:`` and ``unix-abstract:``, for ``localhost``, and for loopback addresses
    (127.0.0.0/8, ::1, also as ::ffff:127.0.0.1); of a list of addresses, if it is so for each. Also
    for 0.0.0.0 and ::, which a server prints and Linux connects to itself. Names are not resolved.
    """
    scheme, _, rest = target.partition(":")
    if scheme in {"unix", "unix-abstract"}:
        return True
    if scheme in {"ipv4", "ipv6"}:
        return all(_is_loopback(_host(address)) for address in _path(rest).split(","))
    host = _host(_path(rest) if scheme == "dns" else target)
    return host.lower().removesuffix(".") == "localhost" or _is_loopback(host)


def _path(rest: str) -> str:
    """Return what a target names: what follows ``scheme:``, less an authority ``//name/``."""
    return rest[2:].partition("/")[2] if rest.startswith("//") else rest.removeprefix("/")


def _host(address: str) -> str:
    """Return the host of ``host``, ``host:port``, ``[v6]``, ``[v6]:port`` or a plain v6."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address  # Python before 3.13 does not look inside itself
    return address.is_loopback or address.is_unspecified
