"""The command line, as pure functions."""

from pathlib import Path

import pytest

from tritonasync.core.errors import ConfigurationError
from tritonasync.serving.command import Ports, ServerOptions, server_command

PORTS = Ports(grpc=1001, http=1002, metrics=1003)


def command_of(options: ServerOptions) -> list[str]:
    options.check()
    return server_command(
        Path("/r/tritonserver"),
        options,
        PORTS,
        backends=Path("/r/backends"),
        caches=Path("/r/caches"),
        shm_prefix="mine_",
    )


def test_every_service_is_on_the_loopback_and_on_its_port() -> None:
    command = command_of(ServerOptions((Path("/models"),)))
    assert command[0] == "/r/tritonserver"
    for service, port in (("grpc", 1001), ("http", 1002), ("metrics", 1003)):
        assert f"--{service}-address=127.0.0.1" in command
        assert f"--{service}-port={port}" in command


def test_the_flags_that_keep_a_start_fast_and_its_shared_memory_findable_are_there() -> None:
    command = command_of(ServerOptions((Path("/models"),)))
    assert "--disable-auto-complete-config" in command
    assert "--allow-gpu-metrics=false" in command
    assert "--backend-config=python,shm-region-prefix-name=mine_" in command
    assert "--backend-directory=/r/backends" in command
    assert "--cache-directory=/r/caches" in command


def test_options_become_flags_and_extra_flags_come_last() -> None:
    command = command_of(
        ServerOptions(
            (Path("/a"), Path("/b")),
            model_control="explicit",
            load_models=("x", "y"),
            exit_on_error=False,
            metrics=False,
            verbose=2,
            extra=("--exit-timeout-secs=3", "--grpc-use-ssl=true"),
        )
    )
    assert [flag for flag in command if flag.startswith("--model-repository")] == [
        "--model-repository=/a",
        "--model-repository=/b",
    ]
    assert {"--load-model=x", "--load-model=y", "--exit-on-error=false"} <= set(command)
    assert {"--model-control-mode=explicit", "--log-verbose=2"} <= set(command)
    assert "--allow-metrics=false" in command
    assert not any(flag.startswith("--metrics-") for flag in command)
    assert command[-2:] == ["--exit-timeout-secs=3", "--grpc-use-ssl=true"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ServerOptions(()), "at least one model repository"),
        (ServerOptions((Path("/m"),), model_control="auto"), "not 'auto'"),  # type: ignore[arg-type]
        (ServerOptions((Path("/m"),), load_models=("x",)), 'load_models needs model_control="exp'),
        (ServerOptions((Path("/m"),), extra=("--grpc-port=1",)), "decided by grpc_port"),
        (ServerOptions((Path("/m"),), extra=("--allow-http=false",)), "readiness is asked"),
        (ServerOptions((Path("/m"),), extra=("grpc-use-ssl",)), "one flag with its value"),
    ],
)
def test_contradictions_are_refused(options: ServerOptions, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        options.check()


def test_a_missing_repository_and_a_file_as_repository_are_named(tmp_path: Path) -> None:
    missing, file = tmp_path / "gone", tmp_path / "model.py"
    file.touch()
    with pytest.raises(ConfigurationError, match=f"{missing} does not exist"):
        ServerOptions((tmp_path, missing)).check_repositories()
    with pytest.raises(ConfigurationError, match=f"{file} is not a folder"):
        ServerOptions((file,)).check_repositories()
