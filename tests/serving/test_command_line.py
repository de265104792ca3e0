"""``python -m tritonasync.serving`` as a user runs it."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[1] / "models"
BROKEN = Path(__file__).parents[1] / "broken_models"
Leftovers = Callable[[int], list[str]]

pytestmark = pytest.mark.server


def run(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tritonasync.serving", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def announced(command: subprocess.Popen[str]) -> str:
    assert command.stdout is not None
    text = ""
    while "ready" not in text:
        line = command.stdout.readline()
        assert line, command.communicate()
        text += line
    return text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_where_the_server_is_and_runs_until_it_is_told_to_end(
    number: signal.Signals, leftovers: Leftovers
) -> None:
    command = run(str(MODELS), "--model-control", "explicit", "--load-model", "ident")
    text = announced(command)
    assert re.search(r"^gRPC     127\.0\.0\.1:\d+$", text, re.MULTILINE)
    (metrics,) = re.findall(r"^metrics  (\S+)$", text, re.MULTILINE)
    with urllib.request.urlopen(metrics, timeout=10) as response:
        assert response.status == 200
    os.killpg(command.pid, number)
    os.killpg(command.pid, number)  # an impatient user does no harm
    out, err = command.communicate(timeout=30)
    assert (command.returncode, out, err) == (0, "", "")
    assert not leftovers(command.pid)


def test_it_can_show_the_log_and_keeps_it_where_it_is_told(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    flags = ("--model-control", "explicit", "--follow", "--log-path", str(log), "--no-metrics")
    command = run(str(MODELS), *flags)
    text = announced(command)
    assert "metrics" not in text
    assert str(log) in text
    assert command.stderr is not None
    while "Started HTTPService" not in command.stderr.readline():
        pass
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=30)
    assert "Started HTTPService" in log.read_text()


def test_a_broken_model_is_exit_code_1_with_the_reason() -> None:
    command = run(str(BROKEN))
    out, err = command.communicate(timeout=60)
    assert command.returncode == 1
    assert out == ""
    assert "the weights are missing" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere/models"], "/nowhere/models does not exist"),
        ([str(MODELS), "--option=--grpc-port=5"], "decided by grpc_port"),
        ([str(MODELS), "--model-control", "magic"], "invalid choice: 'magic'"),
        ([], "the following arguments are required: repository"),
    ],
)
def test_wrong_arguments_are_exit_code_2_and_named(arguments: list[str], said: str) -> None:
    command = run(*arguments)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 2
    assert said in err
    assert "Traceback" not in err


def test_a_runtime_that_is_not_there_is_exit_code_1() -> None:
    command = run(str(MODELS), "--runtime", "/nowhere/runtime")
    _, err = command.communicate(timeout=60)
    assert command.returncode == 1
    assert "no runtime at /nowhere/runtime" in err


def test_a_server_that_ends_by_itself_is_exit_code_1(leftovers: Leftovers) -> None:
    command = run(str(MODELS), "--model-control", "explicit")
    announced(command)
    mark = f"tritonasync-{command.pid}-"
    (server,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if _reads(path).startswith(b"/") and mark.encode() in _reads(path)
    ]
    os.kill(server, signal.SIGKILL)
    _, err = command.communicate(timeout=30)
    assert command.returncode == 1
    assert "ended by itself" in err
    assert not leftovers(command.pid)


def test_interrupted_before_it_is_ready_it_says_so_by_its_exit_code(
    repository_of: Callable[[str], Path], leftovers: Leftovers, tmp_path: Path
) -> None:
    log = tmp_path / "triton.log"
    command = run(str(repository_of("time.sleep(60)")), "--log-path", str(log))
    while not log.exists() or "loading: probe" not in log.read_text():
        assert command.poll() is None
    command.send_signal(signal.SIGINT)
    out, _ = command.communicate(timeout=30)
    assert command.returncode == 128 + signal.SIGINT
    assert out == ""
    assert not leftovers(command.pid)


def _reads(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
