"""TCP on loopback: a port that can be closed and opened again, and connections that end in a reset.

Owns: socket options. Refuses to know: what is sent.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final

HOST: Final = "127.0.0.1"


class Listener:
    """A port of its own that listens or refuses.

    Args:
        accepted: Takes over each new connection, as a socket that does not block.
    """

    def __init__(self, accepted: Callable[[socket.socket], None]) -> None:
        self._accepted = accepted
        self._holder: socket.socket | None = None
        self._listening: socket.socket | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """The address, the same from the first ``listen`` on."""
        return f"{HOST}:{self._port}"

    def listen(self) -> None:
        """Accept connections, if that is not done already."""
        if self._holder is None:
            # Bound but not listening: while connections are refused, no other may take the port.
            self._holder = _bound(self._port)
            self._port = self._holder.getsockname()[1]
        if self._listening is None:
            self._listening = _bound(self._port)
            self._listening.listen(256)
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def refuse(self) -> None:
        """Refuse connections from now on, and reset those that are not accepted yet."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def close(self) -> None:
        """Refuse, and give the port away."""
        self.refuse()
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    def _accept(self) -> None:
        assert self._listening is not None
        try:
            accepted, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it left before it was taken
            return
        self._accepted(_tuned(accepted))


async def connect(to: socket.socket, url: str) -> None:
    """Connect a socket to ``"host:port"``.

    Raises:
        OSError: Nobody listens there.
    """
    host, _, port = url.rpartition(":")
    await asyncio.get_running_loop().sock_connect(to, (host, int(port)))


def unconnected() -> socket.socket:
    """Return a socket to connect."""
    return _tuned(socket.socket())


def reset_on_close(connection: socket.socket) -> None:
    """Let ``close`` send RST instead of FIN: what is unsent is dropped, the peer hears of it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _tuned(connection: socket.socket) -> socket.socket:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    # Lets two of ours have the port, of which one listens.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((HOST, port))
    return made
