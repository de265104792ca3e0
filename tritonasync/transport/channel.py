"""gRPC channels to one target: options, credentials, and which channel a call goes out on.

Owns: the choice of channel options, each with the reason. Refuses to know: messages and errors.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from inspect import isawaitable
from typing import Final, TypeAlias

import grpc
import grpc.aio

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.policies import Headers, HeaderSource, TlsConfig

Metadata: TypeAlias = tuple[tuple[str, str], ...]

MAX_MESSAGE_BYTES: Final = 2**31 - 1
"""protobuf's and gRPC's own limit; gRPC's default for receiving is 4 MiB."""

KEEPALIVE_MS: Final = 330_000
"""Triton takes one ping in 300 s (``--grpc-http2-min-recv-ping-interval-without-data``) and answers
"Too many pings" after two strikes; half a minute more leaves room for clocks and delays."""

KEEPALIVE_TIMEOUT_MS: Final = 20_000

_BALANCING: Final[tuple[tuple[str, int | str], ...]] = (
    # A connection to each address of the name, and calls spread over them; gRPC's own choice, also
    # for a plain host:port, is the first address that answers, for as long as it does.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # The name is resolved anew when a connection breaks, and then as often as this (30 s is gRPC's
    # own): a replacement's address is found while callers still retry.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
)

_HEADER_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")


def open_channels(target: str, *, count: int, tls: TlsConfig | None) -> list[grpc.aio.Channel]:
    """Make ``count`` channels, each with a connection of its own.

    Must be called inside the running event loop, to which the channels belong.
    """
    options = channel_options(tls, target)
    if tls is None:
        return [grpc.aio.insecure_channel(target, options=options) for _ in range(count)]
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.pem("ca"),
        private_key=tls.pem("key"),
        certificate_chain=tls.pem("cert"),
    )
    return [grpc.aio.secure_channel(target, credentials, options=options) for _ in range(count)]


def balanced(target: str) -> bool:
    """Return whether gRPC spreads the calls of one channel over several servers."""
    return target.startswith(("dns:", "xds:"))


def channel_options(tls: TlsConfig | None, target: str = "") -> list[tuple[str, int | str]]:
    """Return gRPC's options for a channel to Triton."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        # Channels with equal options share a connection, and its back-off: about 1 s during which
        # even a new channel does not see that the server is back. Each pool has its own instead.
        ("grpc.use_local_subchannel_pool", 1),
        # After a refused connection, try again soon: a local server restarts within a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Not grpc.min_reconnect_backoff_ms: that is how long *one* attempt may take (20 s), and a
        # low value cuts slow handshakes off ("timed out before receiving SETTINGS frame").
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # gRPC's own retries cannot know what may have run on the server.
        ("grpc.enable_retries", 0),
    ]
    if target.startswith("dns:"):
        options += _BALANCING
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def check_headers(headers: Headers) -> Metadata:
    """Return headers as gRPC metadata.

    Raises:
        ConfigurationError: They are no mapping, or a name or value is not what HTTP/2 and gRPC
            allow.
    """
    if not isinstance(headers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - users err
        raise ConfigurationError(f"headers: a mapping of str to str is wanted, not {headers!r}")
    for name, value in headers.items():
        _check_header(name, value)
    return tuple(headers.items())


def _check_header(name: object, value: object) -> None:
    if not (isinstance(name, str) and isinstance(value, str)):
        raise ConfigurationError(f"header {name!r}: name and value are str, not {value!r}")
    if not _HEADER_NAME.fullmatch(name) or name.startswith("grpc-") or name.endswith("-bin"):
        raise ConfigurationError(
            f"header {name!r}: a name has lower-case letters, digits, '-', '_' and '.', "
            "does not begin with 'grpc-' and does not end with '-bin'"
        )
    if not _HEADER_VALUE.fullmatch(value):
        raise ConfigurationError(f"header {name!r}: its value is not printable ASCII")


class HeaderSupply:
    """The metadata of each call: fixed headers, or a function's, and the protocol keys.

    Attributes:
        fixed: The metadata of every call, or ``None`` if a function must be asked.

    Args:
        source: Headers, or a plain or async function that gives them for each call.
        protocol_keys: Key and value of each restricted protocol, as the server was given by
            ``--grpc-restricted-protocol=<protocols>:<key>=<value>``.

    Raises:
        ConfigurationError: A fixed header or key is not allowed.
    """

    def __init__(self, source: HeaderSource, protocol_keys: Mapping[str, str]) -> None:
        # Triton wants the key of a restricted protocol under this prefix.
        if not isinstance(protocol_keys, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"protocol_keys: a mapping of str to str is wanted, not {protocol_keys!r}"
            )
        self._keys = check_headers(
            {f"triton-grpc-protocol-{key}".lower(): value for key, value in protocol_keys.items()}
        )
        self._source = source
        self.fixed: tuple[tuple[str, str], ...] | None = (
            None if callable(source) else self._keys + check_headers(source)
        )

    async def ask(self) -> Metadata:
        """Return the metadata of the next call, asking the function if there is one.

        Raises:
            ConfigurationError: The function raised (its error is the cause), or gave a header that
                is not allowed.
        """
        try:
            made = self._source() if callable(self._source) else self._source
            headers = await made if isawaitable(made) else made
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ConfigurationError(
                f"headers: the function that gives them raised {error!r}"
            ) from error
        return self._keys + check_headers(headers)
