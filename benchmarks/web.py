"""A web application with tritonasync beside the same one with tritonclient, 500 requests at once.

By calling the application within this process, so that the clients' share of it is seen, and over
HTTP, with the application under uvicorn in a process of its own and the load in this one; written
for Starlette, and without a framework. Turn about, on one server, which holds the ``digits`` model
of the demo; and beside the same application without a model, since no client can be faster than
that. Only when named, since it needs what the group ``web`` installs: ``python -m benchmarks --only
web``.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc

from benchmarks.samples import Figure
from benchmarks.web_load import AnswerError, ASGIApp, Load, by_asgi, by_http
from tritonasync.serving import EmbeddedTriton

MODELS = Path(__file__).parents[1] / "examples" / "demo" / "models"
# As of examples.demo.repository, which imports more than is needed here.
PACKAGES = ("onnxruntime==1.31.1",)
PACKAGES_NO_DEPS = ("tokenizers==0.23.3",)

CLIENTS = 500
BODIES = 100
FASTER = 10.0
"""How many times the requests/s are to be."""

LEAST_BATCH = 8.0
"""Rows that a batch is to have in the mean, at least."""

SIDES = ("ours", "aio", "nothing")

Side = Callable[[str], Load]
"""Loads an application, by its name."""


def run(*, quick: bool) -> list[Figure]:
    """Measure the applications in both ways."""
    return measure(rounds=2 if quick else 7, seconds=1.0 if quick else 4.0)


def measure(*, rounds: int, seconds: float) -> list[Figure]:
    """Measure so many rounds of so many seconds for each application and way."""
    server = EmbeddedTriton(
        MODELS, packages=PACKAGES, packages_no_deps=PACKAGES_NO_DEPS,
        model_control="explicit", load_models=["digits"],
    )  # fmt: skip
    plain, starlette = "benchmarks.web_plain", "benchmarks.web_apps"
    with server, _environment(TRITON_URL=server.grpc_url):
        return [
            *_figures("ASGI, no framework", server, rounds, _within_process(plain, seconds)),
            *_figures("ASGI, Starlette", server, rounds, _within_process(starlette, seconds)),
            *_figures("HTTP, uvicorn, no framework", server, rounds, _over_http(plain, seconds)),
            *_figures("HTTP, uvicorn, Starlette", server, rounds, _over_http(starlette, seconds)),
        ]


def _figures(way: str, server: EmbeddedTriton, rounds: int, side: Side) -> list[Figure]:
    way = f"{way}, {CLIENTS} at once"
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    batches: list[float] = []
    for number in range(rounds):
        labels = {}
        for name in (*SIDES[number % 3 :], *SIDES[: number % 3]):
            before = _counts(server.grpc_url)
            load = side(name)
            rows, runs = (b - a for a, b in zip(before, _counts(server.grpc_url), strict=True))
            times[name].append(load.us_per_request)
            labels[name] = load.labels
            if name == "ours":
                batches.append(rows / runs)
        if labels["ours"] != labels["aio"]:
            raise AnswerError("the two applications differ in their answers")
    ours = times["ours"]
    least = [LEAST_BATCH] * rounds
    return [
        Figure(f"{way}: time a request", "µs", ours, times["aio"], 1 / FASTER),
        Figure(f"{way}: the same beside no model at all", "µs", ours, times["nothing"], None),
        Figure(f"{way}: 8 rows over the mean batch", "rows", least, batches, 1.0),
    ]


def _within_process(module: str, seconds: float) -> Side:
    apps: dict[str, Callable[[], ASGIApp]] = import_module(module).APPS
    return lambda name: asyncio.run(by_asgi(apps[name](), CLIENTS, _bodies(), seconds))


def _over_http(module: str, seconds: float) -> Side:
    def load(name: str) -> Load:
        with _uvicorn(f"{module}:{name}") as url:
            return asyncio.run(by_http(url, CLIENTS, _bodies(), seconds))

    return load


def _bodies() -> list[bytes]:
    chance = np.random.default_rng(0)
    return [chance.random((8, 8), dtype=np.float32).tobytes() for _ in range(BODIES)]


@contextmanager
def _uvicorn(application: str) -> Iterator[str]:
    """Serve an application in a process of its own; gives its address."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", application, "--factory",
             "--port", "0", "--no-access-log", "--backlog", "2048"],
            stderr=log, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            process.wait(60)


def _address(process: subprocess.Popen[bytes], log: Any) -> str:
    while True:
        log.seek(0)
        told = log.read()
        if found := re.search(r"running on (http://\S+)", told):
            return found[1]
        if process.poll() is not None:
            raise AnswerError(f"uvicorn ended: {told}")
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue


def _counts(url: str) -> tuple[int, int]:
    """Return the model's rows and executions so far."""
    with tritonclient.grpc.InferenceServerClient(url) as client:
        (model,) = client.get_inference_statistics("digits").model_stats
        return model.inference_count, model.execution_count


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
