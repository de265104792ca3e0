"""The server's command line: every flag that a start needs, and which ones a user may add.

Owns: flags as known of tritonserver 2.51, as pure functions. Refuses to know: processes, readiness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from tritonasync.core.errors import ConfigurationError

ModelControl: TypeAlias = Literal["none", "explicit", "poll"]
"""Triton's ``--model-control-mode``: all models at start, on request, or as the folder changes."""

_OWNED: Final = {
    "--model-repository": "repository",
    "--model-store": "repository",
    "--model-control-mode": "model_control",
    "--load-model": "load_models",
    "--exit-on-error": "exit_on_error",
    "--grpc-port": "grpc_port",
    "--http-port": "http_port",
    "--metrics-port": "metrics_port",
    "--grpc-address": "the loopback address, which is fixed",
    "--http-address": "the loopback address, which is fixed",
    "--metrics-address": "the loopback address, which is fixed",
    "--allow-grpc": "nothing: gRPC is always on",
    "--allow-http": "nothing: readiness is asked over HTTP",
    "--allow-metrics": "metrics",
    "--backend-directory": "runtime",
    "--log-file": "log_path",
    "--log-verbose": "verbose",
}
"""Flags that an argument of EmbeddedTriton decides; two values would contradict each other."""

HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ports:
    """The three loopback ports of one server.

    Attributes:
        grpc: Inference and control.
        http: The same over HTTP; readiness is asked here.
        metrics: Prometheus metrics.
    """

    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a user decides about a server.

    Attributes:
        repositories: Model repository folders.
        model_control: How models are loaded.
        load_models: Models to load at start, with ``model_control="explicit"`` only.
        exit_on_error: Whether a model that does not load ends the server.
        metrics: Whether the metrics service runs.
        verbose: The server's verbose log level, 0 for none.
        extra: More flags, as given to tritonserver.
    """

    repositories: tuple[Path, ...]
    model_control: ModelControl = "none"
    load_models: tuple[str, ...] = ()
    exit_on_error: bool = True
    metrics: bool = True
    verbose: int = 0
    extra: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise if the options contradict each other; looks at no file.

        Raises:
            ConfigurationError: No repository, an unknown mode, models named without explicit
                control, or a flag in ``extra`` that belongs to an argument.
        """
        if not self.repositories:
            raise ConfigurationError("a server needs at least one model repository")
        if self.model_control not in get_args(ModelControl):
            raise ConfigurationError(
                f"model_control must be one of {get_args(ModelControl)}, not {self.model_control!r}"
            )
        if self.load_models and self.model_control != "explicit":
            raise ConfigurationError('load_models needs model_control="explicit"')
        for flag in self.extra:
            _check_flag(flag)

    def check_repositories(self) -> None:
        """Raise unless every repository is a folder.

        Raises:
            ConfigurationError: One is missing or a file; names its path.
        """
        for path in self.repositories:
            _check_repository(path)


def server_command(
    tritonserver: Path,
    options: ServerOptions,
    ports: Ports,
    *,
    backends: Path,
    caches: Path,
    shm_prefix: str,
) -> list[str]:
    """Return the command line.

    Args:
        tritonserver: The binary.
        options: Checked options.
        ports: Free ports; 0 is refused by the server.
        backends: The folder of backends.
        caches: The folder of response caches.
        shm_prefix: For the names of the Python backend's shared memory.
    """
    return [
        str(tritonserver),
        *(f"--model-repository={path}" for path in options.repositories),
        f"--model-control-mode={options.model_control}",
        *(f"--load-model={name}" for name in options.load_models),
        f"--exit-on-error={_word(options.exit_on_error)}",
        f"--backend-directory={backends}",
        f"--cache-directory={caches}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        # Complete configurations are asked of models instead: completing them starts each model's
        # stub a second time (ready after 1.4 s instead of 0.2 s, measured on 2.51).
        "--disable-auto-complete-config",
        f"--grpc-address={HOST}",
        f"--grpc-port={ports.grpc}",
        f"--http-address={HOST}",
        f"--http-port={ports.http}",
        *_metrics_flags(options, ports),
        *([f"--log-verbose={options.verbose}"] if options.verbose else []),
        *options.extra,
    ]


def _metrics_flags(options: ServerOptions, ports: Ports) -> list[str]:
    if not options.metrics:
        return ["--allow-metrics=false"]
    return [
        f"--metrics-address={HOST}",
        f"--metrics-port={ports.metrics}",
        "--allow-gpu-metrics=false",  # without a GPU's management library they cost seconds
    ]


def _check_repository(path: Path) -> None:
    if not path.exists():
        raise ConfigurationError(f"model repository {path} does not exist")
    if not path.is_dir():
        raise ConfigurationError(
            f"model repository {path} is not a folder; it holds one folder for each model"
        )


def _check_flag(flag: str) -> None:
    if not flag.startswith("--"):
        raise ConfigurationError(
            f"server option {flag!r} must be one flag with its value, as in '--exit-timeout-secs=5'"
        )
    owner = _OWNED.get(flag.partition("=")[0])
    if owner is not None:
        raise ConfigurationError(f"server option {flag!r} is decided by {owner}")


def _word(value: bool) -> str:  # noqa: FBT001 - it is the value that is worded
    return "true" if value else "false"


def as_strings(values: Sequence[str]) -> tuple[str, ...]:
    """Return flags, packages or names as a tuple.

    Raises:
        ConfigurationError: One string was given, which would be read letter by letter.
    """
    if isinstance(values, str):
        raise ConfigurationError(f"expected a sequence of strings, not one string: {values!r}")
    return tuple(values)
