"""A TCP proxy between a client and a real server that breaks the network in between on demand.

Owns: which fault is on, and the connections it applies to. Refuses to know: gRPC and Triton; HTTP/2
only to count requests and to put a GOAWAY between two frames.

What a fault does to a client:

=============  ===========================  =========================  =============================
               open connections             new connections            after ``heal``
=============  ===========================  =========================  =============================
stall          silent, nothing is read      silent                     all flow on, nothing is lost
black_hole     silent, bytes are dropped    silent, bytes are dropped  reset, or silent for ever
half_open      silent, the server lost its  work                       reset, or silent for ever
reset          RST                          work                       (nothing to heal)
refuse         RST                          refused                    accepted on the same port
goaway         calls in flight end well     work                       (nothing to heal)
throw_out      GOAWAY, then the end         work                       (nothing to heal)
=============  ===========================  =========================  =============================

A server that is gone (``upstream`` refuses or resets) shows as a reset of an accepted connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import Self

from tests.faults.connection import Connection, Network
from tests.faults.frames import ENHANCE_YOUR_CALM, goaway
from tests.faults.sockets import Listener


class FaultProxy:
    """Forwards TCP connections to ``upstream``, until told to do worse.

    Use as an async context manager. Everything but ``aclose`` takes effect at once, in the event
    loop's next turns, on connections that are open and those to come.

    Args:
        upstream: ``"host:port"`` of the server. May be changed: connections made from then on lead
            to the new one.
    """

    def __init__(self, upstream: str) -> None:
        self.accepted = 0
        self.broken = 0  # connections that did not end in order
        self._network = Network(upstream)
        self._listener = Listener(self._take)
        self._swallows = False
        self._open: dict[Connection, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[Exception] = []

    async def __aenter__(self) -> Self:
        self._become()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Reset all connections, give the port away and wait for all tasks.

        Raises:
            ExceptionGroup: Connections that failed of something else than their network, such as a
                client that does not speak HTTP/2.
        """
        self._listener.close()
        self.reset()
        while self._tasks:
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)  # for the callbacks that close what a task had
        errors, self._errors = self._errors, []
        if errors:
            raise ExceptionGroup("connections through the proxy failed", errors)

    # --- what is seen -----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """``"127.0.0.1:port"`` for the client; the same as long as the proxy lives."""
        return self._listener.url

    @property
    def requests(self) -> int:
        """HTTP/2 requests that clients opened so far: the attempts, of all calls.

        One counts once its headers are read, whatever becomes of it. A stall reads nothing more
        but what the read that it met brings.
        """
        return self._network.requests.total()

    @property
    def requests_by_path(self) -> Counter[str]:
        """The same by path, as ``"/inference.GRPCInferenceService/ModelInfer"``; a copy."""
        return self._network.requests.copy()

    @property
    def connections(self) -> int:
        """Connections open now, silent ones included.

        A black-holed one counts until it is reset: that its client left is lost, too.
        """
        return len(self._open)

    # --- the way ----------------------------------------------------------------------------------

    @property
    def upstream(self) -> str:
        """Where new connections lead."""
        return self._network.upstream

    @upstream.setter
    def upstream(self, url: str) -> None:
        self._network.upstream = url

    @property
    def latency_s(self) -> float:
        """How long bytes from the server take longer to the client. No fault: ``heal`` keeps it."""
        return self._network.latency_s

    @latency_s.setter
    def latency_s(self, seconds: float) -> None:
        self._network.latency_s = seconds

    @property
    def bytes_per_s(self) -> float:
        """The bandwidth of each direction, for all connections together; ``heal`` keeps it."""
        return self._network.bytes_per_s

    @bytes_per_s.setter
    def bytes_per_s(self, rate: float) -> None:
        self._network.bytes_per_s = rate

    # --- faults that last until the next or heal() ------------------------------------------------

    def heal(self, *, forget: bool = False) -> None:
        """Forward again.

        Args:
            forget: Whether connections that lost bytes stay silent for ever, as behind a firewall
                that forgot them. Else they are reset.
        """
        self._become()
        if not forget:
            for connection in [each for each in self._open if each.lost]:
                self._abort(connection)

    def stall(self) -> None:
        """Freeze: read nothing and forward nothing, as a stopped process or a congested path."""
        self._become(flows=False)

    def black_hole(self) -> None:
        """Read everything and forward nothing; new connections are accepted and never answered.

        The servers of open connections do not hear of it.
        """
        self._become(swallows=True)
        for connection in self._open:
            connection.lose()

    def refuse(self) -> None:
        """Refuse new connections and reset open ones, as a host whose server is down."""
        self._become(listens=False)
        self.reset()

    def _become(self, *, listens: bool = True, flows: bool = True, swallows: bool = False) -> None:
        self._swallows = swallows
        (self._network.flows.set if flows else self._network.flows.clear)()
        (self._listener.listen if listens else self._listener.refuse)()

    # --- faults of a moment -----------------------------------------------------------------------

    def half_open(self) -> None:
        """End open connections for the server only: its host vanished without a word."""
        for connection in self._open:
            self.broken += 1
            connection.sever()

    def reset(self) -> None:
        """Reset open connections on both sides."""
        for connection in list(self._open):
            self._abort(connection)

    def goaway(self) -> None:
        """Ask open connections' clients to go elsewhere: GOAWAY that lets calls in flight end."""
        for connection in self._open:
            connection.say_goodbye(goaway(), final=False)

    def throw_out(self, *, last_stream: int = 0, details: str = "too_many_pings") -> None:
        """End open connections as a server does that is tired of pings.

        Args:
            last_stream: The highest stream that the client shall believe was handled. The real
                server may have handled more.
            details: The GOAWAY's debug data.
        """
        farewell = goaway(last_stream, ENHANCE_YOUR_CALM, details.encode())
        for connection in self._open:
            self.broken += 1
            connection.say_goodbye(farewell, final=True)

    # --- connections ------------------------------------------------------------------------------

    def _take(self, client: socket.socket) -> None:
        self.accepted += 1
        connection = Connection(client, self._network)
        if self._swallows:
            connection.lose()
        task = asyncio.get_running_loop().create_task(connection.run())
        self._open[connection] = task
        self._tasks.add(task)
        # Not at the end of run(): a task that is cancelled before its first step runs nothing.
        task.add_done_callback(lambda done: self._ended(connection, done))

    def _abort(self, connection: Connection) -> None:
        self.broken += 1
        self._open.pop(connection).cancel()

    def _ended(self, connection: Connection, task: asyncio.Task[None]) -> None:
        connection.close()
        self._open.pop(connection, None)
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._errors.append(error)
