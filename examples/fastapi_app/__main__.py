"""Serve the application, with its models behind it: ``python -m examples.fastapi_app``."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import tempfile
from pathlib import Path

import uvicorn

from examples.demo.repository import RUNTIME_PACKAGES, RUNTIME_PACKAGES_NO_DEPS, write_repository
from examples.fastapi_app.app import MODELS, app
from tritonasync.serving import EmbeddedTriton

SHUTDOWN_S = 5
"""How long Ctrl-C waits for responses, some of which may be streams of minutes."""


def embedded(folder: Path) -> EmbeddedTriton:
    """Return a server of the models, whose repository is written to ``folder``."""
    return EmbeddedTriton(
        (write_repository(folder), Path("tests/models")),
        packages=RUNTIME_PACKAGES,
        packages_no_deps=RUNTIME_PACKAGES_NO_DEPS,
        model_control="explicit",
        load_models=MODELS,
        progress=print,
    )


def main(host: str, port: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="tritonasync-web-") as folder,
        embedded(Path(folder)) as server,
    ):
        os.environ["TRITON_URL"] = server.grpc_url
        uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=SHUTDOWN_S)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="[%(default)s]")
    parser.add_argument("--port", type=int, default=8000, help="[%(default)s]")
    options = parser.parse_args()
    # As Ctrl-C, so that the server is stopped and its folder removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        main(options.host, options.port)
