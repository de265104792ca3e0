"""EmbeddedTriton: a real tritonserver that lives as long as a ``with`` block.

Owns: the order of a start (runtime, ports, folder, process, readiness), trying again when a port
was taken meanwhile, and the states stopped and running. Refuses to know: gRPC, pools, pytest.

Invariants: whatever ends the block, an exception, a cancelled task, Ctrl-C, the interpreter's exit
or ``kill -9``, no server process, no stub and no shared-memory file is left (see
:mod:`tritonasync.serving.keeper`). Ports are picked at the first start and kept, so that URLs stay
true over :meth:`EmbeddedTriton.restart`.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.to_thread

from tritonasync.core.errors import ServingError, WrongContextError
from tritonasync.serving.command import HOST, ModelControl, Ports, ServerOptions, as_strings
from tritonasync.serving.launch import KEPT_LINES, Launch, PortTakenError, Site
from tritonasync.serving.log import tail
from tritonasync.serving.loopback import pick_ports
from tritonasync.serving.once import Cancelled, Progress, never_cancelled
from tritonasync.serving.paths import TritonRuntime
from tritonasync.serving.process import ServerProcess
from tritonasync.serving.runtime import ensure_runtime

_PORT_ATTEMPTS: Final = 5

StrPath = str | os.PathLike[str]


class EmbeddedTriton:
    """A tritonserver on this machine's loopback, started here and stopped here.

    Use it with ``with`` or ``async with``, or call :meth:`start` and :meth:`stop`. It may be
    started again after it was stopped. Its methods may be called from any thread.

    Args:
        repository: The model repository folder, or several.
        packages: Requirements that the models import; part of the runtime that is made.
        packages_no_deps: The same, installed without their dependencies.
        runtime: A runtime to use instead of looking for one (see
            :func:`~tritonasync.serving.runtime.ensure_runtime`).
        model_control: ``"none"`` loads all models at start, ``"explicit"`` those of
            ``load_models`` and what is asked for later, ``"poll"`` follows the folder.
        load_models: Models to load at start, with ``model_control="explicit"``.
        exit_on_error: Whether a model that does not load fails the start. If not, the server
            counts as started when it is live: its readiness stays false.
        options: More flags of tritonserver, such as ``"--grpc-use-ssl=true"``.
        environment: More variables for the server and its models.
        grpc_port: A port, or 0 for a free one; ``http_port`` and ``metrics_port`` likewise.
        http_port: See ``grpc_port``.
        metrics_port: See ``grpc_port``.
        metrics: Whether the metrics service runs.
        verbose: The server's verbose log level.
        startup_timeout_s: How long it may take to be ready, without the making of the runtime.
        stop_timeout_s: How long it may take to end in order before it is killed.
        log_path: Where its log goes; ``None`` keeps it in a temporary folder until it is stopped.
        progress: Told what the making of a runtime does; ``None`` writes to standard error.

    Raises:
        ConfigurationError: Options that contradict each other.
    """

    def __init__(
        self,
        repository: StrPath | Sequence[StrPath],
        *,
        packages: Sequence[str] = (),
        packages_no_deps: Sequence[str] = (),
        runtime: TritonRuntime | StrPath | None = None,
        model_control: ModelControl = "none",
        load_models: Sequence[str] = (),
        exit_on_error: bool = True,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        metrics: bool = True,
        verbose: int = 0,
        startup_timeout_s: float = 60.0,
        stop_timeout_s: float = 5.0,
        log_path: StrPath | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._process: ServerProcess | None = None
        paths = [repository] if isinstance(repository, str | os.PathLike) else list(repository)
        self._options = ServerOptions(
            repositories=tuple(Path(path).absolute() for path in paths),
            model_control=model_control,
            load_models=as_strings(load_models),
            exit_on_error=exit_on_error,
            metrics=metrics,
            verbose=verbose,
            extra=as_strings(options),
        )
        self._options.check()
        self._packages = (as_strings(packages), as_strings(packages_no_deps))
        self._runtime = runtime
        self._environment = dict(environment or {})
        self._wanted_ports = Ports(grpc_port, http_port, metrics_port)
        self._ports: Ports | None = None
        self._startup_timeout_s = startup_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._progress = progress
        self._site = Site.new(Path(log_path) if log_path else None)
        self._last_lines: list[str] = []
        self._changing = threading.Lock()

    # --- where it is ---------------------------------------------------------------------------

    @property
    def grpc_url(self) -> str:
        """Where gRPC is served, ``"127.0.0.1:port"``."""
        return f"{HOST}:{self._known_ports().grpc}"

    @property
    def http_url(self) -> str:
        """Where HTTP is served, ``"http://127.0.0.1:port"``."""
        return f"http://{HOST}:{self._known_ports().http}"

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus metrics are, ``"http://127.0.0.1:port/metrics"``; ``None`` if off."""
        if not self._options.metrics:
            return None
        return f"http://{HOST}:{self._known_ports().metrics}/metrics"

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            ServingError: It is not running.
        """
        if self._process is None:
            raise ServingError("the embedded server is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def log_path(self) -> Path:
        """The file its log goes to; one of its own is removed when it is stopped."""
        return self._site.log_path

    def log_tail(self, lines: int = 50) -> str:
        """Return the last lines of the log, also after the server was stopped."""
        return "\n".join((tail(self._site.log_path, lines) or self._last_lines)[-max(lines, 1) :])

    # --- starting and stopping -----------------------------------------------------------------

    def start(self) -> None:
        """Return when the server is ready; does nothing if it is running.

        Raises:
            ConfigurationError: A repository is not a folder, or a wanted port is in use.
            RuntimeSetupError: No usable tritonserver could be found or made.
            ServerStartError: It ended, or was not ready in time; ends with the tail of its log.
        """
        self._start(never_cancelled)

    def stop(self) -> None:
        """Return when server, stubs, temporary files and shared memory are gone; idempotent.

        Calls in flight are completed within ``stop_timeout_s``; then the server is killed. An idle
        gRPC stream that a client holds open uses up all of that time.
        """
        self._end_if_ours(ServerProcess.stop)

    def kill(self) -> None:
        """End the server at once, as a crash would (SIGKILL)."""
        self._end_if_ours(ServerProcess.kill)

    def restart(self) -> None:
        """Stop and start on the same ports.

        Raises:
            ServingError: As :meth:`start`.
        """
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        left = threading.Event()
        try:
            await anyio.to_thread.run_sync(self._start, left.is_set, abandon_on_cancel=True)
        except BaseException:
            # The thread may still be starting the server: it sees this within a poll, and stop()
            # waits for it, since both hold the same lock.
            left.set()
            await self._stop_shielded()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop_shielded()

    def __del__(self) -> None:
        process: ServerProcess | None = getattr(self, "_process", None)  # a wrong keyword, say
        if process is None or process.owner != os.getpid():
            return
        warnings.warn(f"{self!r} was never stopped", ResourceWarning, source=self, stacklevel=1)
        # Not here: a finaliser may run anywhere, and stopping takes a second or two.
        threading.Thread(
            target=_abandon, args=(process, self._site), name="tritonasync-stop", daemon=True
        ).start()

    def __repr__(self) -> str:
        where = f" at {HOST}:{self._ports.grpc}" if self._ports else ""
        state = "running" if self.running else "stopped"
        return f"<EmbeddedTriton{where} {state}>"

    async def _stop_shielded(self) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.stop)

    def _known_ports(self) -> Ports:
        if self._ports is None:
            raise ServingError("the embedded server has not been started: it has no ports yet")
        return self._ports

    def _start(self, cancelled: Cancelled) -> None:
        if self._process is not None and self._process.owner != os.getpid():
            raise WrongContextError(
                f"{self!r} belongs to process {self._process.owner}; a process forked from it can "
                "use the server, but neither start nor stop it"
            )
        with self._changing:
            if self.running:
                return
            self._end(ServerProcess.stop)  # of one that ended by itself
            self._options.check_repositories()
            runtime = ensure_runtime(
                self._packages[0],
                packages_no_deps=self._packages[1],
                runtime=self._runtime,
                progress=self._progress,
                cancelled=cancelled,
            )
            launch = Launch(
                runtime,
                self._options,
                self._environment,
                self._site,
                self._startup_timeout_s,
                self._stop_timeout_s,
            )
            self._start_somewhere(launch, cancelled)
            _running.add(self)

    def _start_somewhere(self, launch: Launch, cancelled: Cancelled) -> None:
        """Start on free ports; pick anew when one was taken between picking and binding."""
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            ports = pick_ports(self._ports or self._wanted_ports)
            try:
                self._process = launch.run(ports)
                launch.await_ready(self._process, ports, cancelled)
            except BaseException as error:
                self._end(ServerProcess.stop)
                if isinstance(error, PortTakenError) and attempt < _PORT_ATTEMPTS:
                    continue
                raise
            self._ports = ports
            return

    def _end_if_ours(self, how: Callable[[ServerProcess], None]) -> None:
        """End it, unless this process is a fork: its copy of the lock may be held for ever."""
        if self._process is not None and self._process.owner != os.getpid():
            return
        with self._changing:
            self._end(how)

    def _end(self, how: Callable[[ServerProcess], None]) -> None:
        """Bring the state to stopped; keeps the log's end. ``_changing`` is held."""
        process = self._process
        if process is None:
            return
        how(process)
        self._last_lines = tail(self._site.log_path, KEPT_LINES)
        self._site.clear()
        self._process = None
        _running.discard(self)


_running: weakref.WeakSet[EmbeddedTriton] = weakref.WeakSet()


def _abandon(process: ServerProcess, site: Site) -> None:
    """Stop the server of an object that is gone."""
    process.stop()
    site.clear()


def _stop_all() -> None:
    """Stop what still runs at the interpreter's exit, so that nothing outlives it even briefly."""
    for server in tuple(_running):
        server.stop()


atexit.register(_stop_all)
