"""``python -m tritonasync.serving <repository>``: a real tritonserver in the foreground.

Owns: arguments, what is printed, exit codes. Refuses to know: how the server is run.

Exit codes: 0 stopped by Ctrl-C or SIGTERM; 1 it did not start, or ended by itself; 2 wrong
arguments; 128 plus the signal's number when interrupted before it was ready.
"""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Final, NoReturn, get_args

from tritonasync.core.errors import ConfigurationError, TritonError
from tritonasync.serving.command import ModelControl
from tritonasync.serving.embedded import EmbeddedTriton

_POLL_S: Final = 0.2
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class _InterruptedError(BaseException):
    """A signal asked us to end; a BaseException, as KeyboardInterrupt is."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    ready = False
    try:
        with _server(options) as server:
            ready = True
            _announce(server)
            return _follow(server, show_log=options.follow)
    except _InterruptedError as interrupted:
        return 0 if ready else 128 + interrupted.number
    except ConfigurationError as error:
        return _complain(error, code=2)
    except TritonError as error:
        return _complain(error, code=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tritonasync.serving",
        description="Run a real tritonserver on this machine's loopback until Ctrl-C.",
    )
    add = parser.add_argument
    add("repository", nargs="+", type=Path, help="model repository folder")
    add(
        "--package", action="append", default=[], metavar="REQUIREMENT",
        help="package the models import, such as 'onnxruntime==1.31.*'; may be repeated",
    )  # fmt: skip
    add(
        "--package-no-deps", action="append", default=[], metavar="REQUIREMENT",
        help="the same, installed without its dependencies",
    )  # fmt: skip
    add("--runtime", type=Path, help="environment or installation that holds tritonserver")
    add("--model-control", choices=get_args(ModelControl), default="none")
    add(
        "--load-model", action="append", default=[], metavar="NAME",
        help="model to load at start, with --model-control explicit; '*' for all",
    )  # fmt: skip
    add("--keep-going", action="store_true", help="serve even if a model does not load")
    for service in ("grpc", "http", "metrics"):
        add(f"--{service}-port", type=int, default=0, metavar="PORT", help="default: a free one")
    add("--no-metrics", action="store_true", help="run without the metrics service")
    add(
        "--option", action="append", default=[], metavar="FLAG",
        help="flag for tritonserver, as in --option=--exit-timeout-secs=5; may be repeated",
    )  # fmt: skip
    add("--verbose", type=int, default=0, metavar="LEVEL", help="verbose log level of the server")
    add("--startup-timeout", type=float, default=60.0, metavar="SECONDS")
    add("--log-path", type=Path, help="where the server's log goes; default: a temporary file")
    add("--follow", action="store_true", help="copy the server's log to standard error")
    return parser


def _server(options: argparse.Namespace) -> EmbeddedTriton:
    return EmbeddedTriton(
        options.repository,
        packages=options.package,
        packages_no_deps=options.package_no_deps,
        runtime=options.runtime,
        model_control=options.model_control,
        load_models=options.load_model,
        exit_on_error=not options.keep_going,
        options=options.option,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
        metrics=not options.no_metrics,
        verbose=options.verbose,
        startup_timeout_s=options.startup_timeout,
        log_path=options.log_path,
    )


def _announce(server: EmbeddedTriton) -> None:
    print(f"gRPC     {server.grpc_url}")
    print(f"HTTP     {server.http_url}")
    if server.metrics_url is not None:
        print(f"metrics  {server.metrics_url}")
    print(f"log      {server.log_path}")
    print("ready; Ctrl-C stops it", flush=True)


def _follow(server: EmbeddedTriton, *, show_log: bool) -> int:
    """Wait until the server ends by itself; a signal leaves from here by an exception."""
    with server.log_path.open("rb") as log:
        while server.running:
            if show_log:
                _copy(log)
            time.sleep(_POLL_S)
        if show_log:
            _copy(log)
    print(f"tritonserver ended by itself; its log:\n{server.log_tail(20)}", file=sys.stderr)
    return 1


def _copy(log: IO[bytes]) -> None:
    sys.stderr.write(log.read().decode(errors="replace"))
    sys.stderr.flush()


def _complain(error: TritonError, *, code: int) -> int:
    print(f"tritonasync: {error}", file=sys.stderr)
    return code


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave once; a second Ctrl-C would only break the stopping, which is bounded in time."""
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise _InterruptedError(number)


if __name__ == "__main__":
    sys.exit(main())
