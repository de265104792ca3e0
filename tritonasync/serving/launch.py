"""One start of a server: its folder is laid out, its process run, its readiness awaited.

Owns: what a server has to itself on this machine (:class:`Site`), when it counts as started, and
the words of a start that failed. Refuses to know: retries, and the states of
:class:`~tritonasync.serving.embedded.EmbeddedTriton`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tritonasync.core.errors import ServerStartError
from tritonasync.serving.command import Ports, ServerOptions, server_command
from tritonasync.serving.log import summary, tail
from tritonasync.serving.loopback import http_status
from tritonasync.serving.once import Cancelled
from tritonasync.serving.paths import TritonRuntime
from tritonasync.serving.preflight import check_launchpad, lay_out
from tritonasync.serving.process import ServerProcess

KEPT_LINES: Final = 500
"""How much of a log is looked through for complaints, and kept of a server that was stopped."""

_READY_POLL_S: Final = 0.02
_UP: Final = (200, 403)
"""403 when the user's options restrict the health calls: served, but not to us."""

_PORT_TAKEN: Final = "already in use"
"""As tritonserver 2.51 words it for each of its three services, before it ends."""


class PortTakenError(ServerStartError):
    """The server ended because somebody else has one of its ports: try others."""


@dataclass(frozen=True, slots=True)
class Site:
    """What one server has to itself; every name in it tells who started it.

    Attributes:
        folder: A temporary folder, there while the server runs.
        shm_prefix: What the names of its stubs' shared-memory files begin with.
        log_path: Its log, mostly inside ``folder``.
    """

    folder: Path
    shm_prefix: str
    log_path: Path

    @classmethod
    def new(cls, log_path: Path | None) -> Self:
        """Choose names; makes nothing."""
        name = f"tritonasync-{os.getpid()}-{secrets.token_hex(6)}"
        folder = Path(tempfile.gettempdir(), name)
        return cls(folder, f"{name}_", log_path or folder / "tritonserver.log")

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a start needs but the ports.

    Attributes:
        runtime: What to run.
        options: Checked options.
        environment: More variables for the server.
        site: Where to run it.
        startup_timeout_s: How long it may take to be ready.
        stop_timeout_s: How long it may take to end in order.
    """

    runtime: TritonRuntime
    options: ServerOptions
    environment: Mapping[str, str]
    site: Site
    startup_timeout_s: float
    stop_timeout_s: float

    def run(self, ports: Ports) -> ServerProcess:
        """Start the process; the site is cleared again if that fails.

        Raises:
            RuntimeSetupError: The preflight failed.
            ServerStartError: The binary could not be run.
        """
        self.site.folder.mkdir(mode=0o700)
        try:
            return self._run(ports)
        except ServerStartError as error:
            failed = self._error("could not be run", ServerStartError)
            self.site.clear()
            raise failed from error
        except BaseException:
            self.site.clear()
            raise

    def await_ready(self, process: ServerProcess, ports: Ports, cancelled: Cancelled) -> None:
        """Return when every service answers.

        Raises:
            PortTakenError: It ended since a port was in use.
            ServerStartError: It ended for another reason, was not ready in time, or ``cancelled``.
        """
        begun = time.monotonic()
        while not self._answers(ports):
            took = time.monotonic() - begun
            code = process.wait(_READY_POLL_S)
            if code is not None:
                lines = tail(self.site.log_path, KEPT_LINES)
                taken = any(_PORT_TAKEN in line for line in lines)
                kind = PortTakenError if taken else ServerStartError
                raise self._error(f"ended with code {code} after {took:.1f} s", kind)
            if took > self.startup_timeout_s:
                late = f"was not ready after {self.startup_timeout_s:g} s"
                raise self._error(late, ServerStartError)
            if cancelled():
                raise self._error("was stopped while it started", ServerStartError)

    def _run(self, ports: Ports) -> ServerProcess:
        launchpad = lay_out(self.runtime, self.site.folder, self.environment)
        check_launchpad(self.runtime, launchpad)
        command = server_command(
            self.runtime.tritonserver,
            self.options,
            ports,
            backends=launchpad.backends,
            caches=self.runtime.caches,
            shm_prefix=self.site.shm_prefix,
        )
        self.site.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.site.log_path.open("wb") as log:
            return ServerProcess(
                command,
                launchpad.environment,
                shm_prefix=self.site.shm_prefix,
                folder=self.site.folder,
                log=log,
                stop_timeout_s=self.stop_timeout_s,
            )

    def _answers(self, ports: Ports) -> bool:
        """Whether all services are up; metrics come last, and their failing ends the server too.

        Strict readiness is false for ever when one model failed; but HTTP is served only after
        every model was tried, so live means started (seen on Triton 2.51).
        """
        path = "/v2/health/ready" if self.options.exit_on_error else "/v2/health/live"
        return http_status(ports.http, path) in _UP and (
            not self.options.metrics or http_status(ports.metrics, "/metrics") in _UP
        )

    def _error(self, what: str, kind: type[ServerStartError]) -> ServerStartError:
        lines = summary(tail(self.site.log_path, KEPT_LINES), complaints=20, last=10)
        return kind("\n".join([f"tritonserver {what}; the end of its log, shortened:", *lines]))
