"""Free loopback ports, and asking a server over HTTP whether it is ready.

Owns: sockets that live for a moment. Refuses to know: processes and retries.
"""

from __future__ import annotations

import http.client
import socket
from contextlib import ExitStack
from typing import Final

from tritonasync.core.errors import ConfigurationError
from tritonasync.serving.command import HOST, Ports

_REQUEST_TIMEOUT_S: Final = 2.0


def pick_ports(wanted: Ports) -> Ports:
    """Return ``wanted`` with every 0 replaced by a port that is free at this moment.

    The three are held at once while picking, so they differ; between this and the server's bind
    another process may take one, which the caller has to survive.

    Raises:
        ConfigurationError: A port that was asked for is in use, or cannot be bound.
    """
    with ExitStack() as held:
        bound = [
            _bind(held, name, port)
            for name, port in (
                ("grpc_port", wanted.grpc),
                ("http_port", wanted.http),
                ("metrics_port", wanted.metrics),
            )
        ]
    return Ports(*bound)


def _bind(held: ExitStack, name: str, port: int) -> int:
    listener = held.enter_context(socket.socket())
    # As the server's own sockets do: a closed connection in TIME_WAIT does not make a port taken.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(1)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"{name}={port} cannot be used on {HOST}: {error}") from error
    chosen: int = listener.getsockname()[1]
    return chosen


def http_status(port: int, path: str) -> int | None:
    """Return the status of a GET on the loopback, ``None`` if nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
