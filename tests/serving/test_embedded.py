"""EmbeddedTriton against the real server: starting, failing to start, stopping."""

import asyncio
import dataclasses
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from blockbuster import blockbuster_ctx

from tritonasync.core.errors import ConfigurationError, ServerStartError, ServingError
from tritonasync.serving import EmbeddedTriton, TritonRuntime, embedded
from tritonasync.serving.command import Ports

MODELS = Path(__file__).parents[1] / "models"
BROKEN = Path(__file__).parents[1] / "broken_models"
HANGING = "time.sleep(60)"

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("leaves_nothing")]


def one_model(**options: Any) -> EmbeddedTriton:
    return EmbeddedTriton(MODELS, model_control="explicit", load_models=("ident",), **options)


def no_model(**options: Any) -> EmbeddedTriton:
    """The quickest server to start and to stop."""
    return EmbeddedTriton(MODELS, model_control="explicit", **options)


def infer(server: EmbeddedTriton) -> list[float]:
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [*range(16)]}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/ident/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)["outputs"][0]["data"]


def is_listening(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


# --- starting and stopping ---------------------------------------------------------------------


def test_inside_the_block_the_server_answers_and_after_it_nothing_is_left() -> None:
    with one_model() as server:
        assert infer(server) == [float(value) for value in range(16)]
        assert is_listening(server.grpc_url)
        assert server.metrics_url is not None
        with urllib.request.urlopen(server.metrics_url, timeout=10) as metrics:
            assert b"nv_inference_request_success" in metrics.read()
        process = psutil.Process(server.pid)
        assert process.name() == "tritonserver"
        assert process.children(), "the model's stub"
        assert "successfully loaded 'ident'" in server.log_path.read_text()
        assert server.running
        assert "running" in repr(server)
    assert not process.is_running()
    assert not server.running
    assert not is_listening(server.grpc_url)
    assert not server.log_path.exists()
    assert "successfully unloaded 'ident'" in server.log_tail(20)
    assert "stopped" in repr(server)


def test_starting_and_stopping_twice_is_once() -> None:
    server = no_model()
    server.stop()
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    with pytest.raises(ServingError, match="not running"):
        _ = server.pid


def test_before_the_first_start_there_are_no_urls() -> None:
    server = no_model()
    for attribute in ("grpc_url", "http_url", "metrics_url"):
        with pytest.raises(ServingError, match="has not been started"):
            getattr(server, attribute)


def test_an_exception_in_the_block_stops_the_server_and_comes_through() -> None:
    with pytest.raises(LookupError, match="mine"), one_model() as server:
        raise LookupError("mine")
    assert not server.running


def test_a_restarted_server_has_the_same_urls_and_another_process() -> None:
    with one_model() as server:
        urls, pid = (server.grpc_url, server.http_url, server.metrics_url), server.pid
        server.restart()
        assert (server.grpc_url, server.http_url, server.metrics_url) == urls
        assert server.pid != pid
        assert infer(server)


def test_a_killed_server_can_be_started_again() -> None:
    with one_model() as server:
        server.kill()
        assert not server.running
        server.kill()
        server.start()
        assert infer(server)


def test_a_server_that_crashed_by_itself_is_noticed_cleared_up_and_can_be_started() -> None:
    with one_model() as server:
        stubs = psutil.Process(server.pid).children()
        os.kill(server.pid, signal.SIGSEGV)
        _, alive = psutil.wait_procs(stubs, timeout=10)
        assert not alive
        limit = time.monotonic() + 10
        while server.running and time.monotonic() < limit:
            time.sleep(0.01)
        assert not server.running
        server.start()
        assert infer(server)


def test_without_metrics_there_is_no_url_of_them() -> None:
    with no_model(metrics=False) as server:
        assert server.metrics_url is None


def test_a_log_path_of_the_users_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "triton.log"
    with no_model(log_path=path, verbose=1) as server:
        assert server.log_path == path
    assert "Started GRPCInferenceService" in path.read_text()
    assert server.log_tail(1) == path.read_text().splitlines()[-1]


def test_restricted_health_calls_do_not_keep_a_start_waiting() -> None:
    with no_model(options=("--http-restricted-api=health:key=value",), startup_timeout_s=20):
        pass


def test_several_repositories_are_served(repository_of: Callable[[str], Path]) -> None:
    both = [MODELS, repository_of("pass")]
    with EmbeddedTriton(both, model_control="explicit", load_models=("ident", "probe")) as server:
        assert server.log_path.read_text().count("successfully loaded") == 2


def test_variables_reach_the_models(repository_of: Callable[[str], Path]) -> None:
    repository = repository_of("raise RuntimeError('got ' + os.environ['MINE'])")
    with pytest.raises(ServerStartError, match="got a value"):
        EmbeddedTriton(repository, environment={"MINE": "a value"}).start()


# --- failing to start --------------------------------------------------------------------------


def test_a_broken_model_fails_the_start_with_its_reason_from_the_log() -> None:
    server = EmbeddedTriton(BROKEN)
    with pytest.raises(ServerStartError, match="ended with code 1") as caught:
        server.start()
    assert "the weights are missing" in str(caught.value)
    assert "failed to load 'raises'" in server.log_tail(200)


def test_with_exit_on_error_off_the_server_runs_without_the_broken_model() -> None:
    with EmbeddedTriton(
        [MODELS, BROKEN],
        model_control="explicit",
        load_models=("ident", "raises"),
        exit_on_error=False,
    ) as server:
        assert infer(server)


def test_a_model_that_takes_too_long_is_a_start_error(repository_of: Callable[[str], Path]) -> None:
    server = EmbeddedTriton(repository_of(HANGING), startup_timeout_s=1.5)
    with pytest.raises(ServerStartError, match=r"not ready after 1\.5 s(.|\n)*loading: probe"):
        server.start()
    assert not server.running


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_repository_that_is_no_folder_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "models"
    if kind == "file":
        path.touch()
    with pytest.raises(ConfigurationError, match=str(path)):
        EmbeddedTriton(path).start()


def test_one_string_of_options_or_packages_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not one string"):
        EmbeddedTriton(MODELS, options="--exit-timeout-secs=3")
    with pytest.raises(ConfigurationError, match="not one string"):
        EmbeddedTriton(MODELS, packages="onnxruntime")


def test_a_wanted_port_in_use_is_refused_by_name() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"grpc_port={port}"):
            no_model(grpc_port=port).start()


@pytest.mark.parametrize("service", ["grpc", "http", "metrics"])
def test_a_port_taken_between_picking_and_binding_is_replaced(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picks: list[Ports] = []

    def pick(wanted: Ports) -> Ports:
        ports = real_pick(wanted)
        if not picks:
            ports = dataclasses.replace(ports, **{service: listener.getsockname()[1]})
        picks.append(ports)
        return ports

    real_pick = embedded.pick_ports
    monkeypatch.setattr(embedded, "pick_ports", pick)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with no_model() as server:
            assert len(picks) == 2
            assert server.grpc_url == f"127.0.0.1:{picks[1].grpc}"


def test_ports_taken_again_and_again_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_PORT_ATTEMPTS", 2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        real_pick = embedded.pick_ports
        monkeypatch.setattr(
            embedded,
            "pick_ports",
            lambda wanted: dataclasses.replace(real_pick(wanted), grpc=port),
        )
        with pytest.raises(ServerStartError, match=f"127.0.0.1:{port}' already in use"):
            no_model().start()


def test_a_server_that_cannot_be_run_is_a_start_error(tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text("not a program")
    runtime = TritonRuntime(binary, tmp_path / "caches", tmp_path / "backends")
    with pytest.raises(ServerStartError, match=r"could not be run(.|\n)*Permission denied"):
        EmbeddedTriton(MODELS, runtime=runtime).start()


# --- asynchronously ----------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_async_with_starts_and_stops(anyio_backend: str) -> None:
    async with no_model() as server:
        assert server.running
    assert not server.running


@pytest.mark.anyio
async def test_starting_and_stopping_never_block_the_loop() -> None:
    with blockbuster_ctx():
        async with no_model() as server:
            assert server.running


@pytest.mark.anyio
async def test_a_cancelled_block_stops_the_server() -> None:
    with anyio.CancelScope() as scope:
        async with one_model() as server:
            scope.cancel()
            await anyio.sleep_forever()
    assert not server.running


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_start_cancelled_half_way_is_given_up_at_once(
    anyio_backend: str, repository_of: Callable[[str], Path]
) -> None:
    server = EmbeddedTriton(repository_of(HANGING))
    begun = time.monotonic()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_enter, server)
            await _until_loading(server)
            scope.cancel()
    assert not server.running
    assert time.monotonic() - begun < 30  # not the 60 s of the model


@pytest.mark.anyio
async def test_a_task_that_asyncio_itself_cancels_while_it_starts_gives_up_too(
    repository_of: Callable[[str], Path],
) -> None:
    server = EmbeddedTriton(repository_of(HANGING))
    task = asyncio.create_task(_enter(server))
    await _until_loading(server)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not server.running


async def _enter(server: EmbeddedTriton) -> None:
    async with server:
        pytest.fail("a hanging model was loaded")


async def _until_loading(server: EmbeddedTriton) -> None:
    while "loading: probe" not in server.log_tail():
        await anyio.sleep(0.01)


def test_stop_from_another_thread_waits_for_the_start() -> None:
    server = no_model()
    starting = threading.Thread(target=server.start)
    starting.start()
    while not server.running:
        time.sleep(0.005)
    server.stop()
    starting.join()
    assert not server.running
