"""Making a runtime: once among many, whole or not at all, with what was asked for in it."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving import ensure_runtime, install
from tritonasync.serving.install import Contents, fill_environment, run_step
from tritonasync.serving.interpreter import find_interpreter

PATIENCE_S = 30.0


def quiet(_line: str) -> None:
    pass


def wait_for(path: Path) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.01)


def test_a_runtime_is_made_and_the_next_call_finds_it(fake_pip) -> None:
    told: list[str] = []
    first = ensure_runtime(progress=told.append)
    assert first.tritonserver.is_file()
    assert first.tritonserver.is_relative_to(fake_pip.cache)
    assert any("setting up the Triton runtime" in line for line in told)
    assert "downloading nvidia_pytriton-0.7.0-x86_64.whl (55.4 MB)" in told
    assert not any("host.example" in line for line in told)
    told.clear()
    assert ensure_runtime(progress=told.append) == first
    assert told == []
    assert len(fake_pip.calls()) == 1


def test_packages_are_installed_below_numpy_2_and_are_part_of_the_key(fake_pip) -> None:
    plain = ensure_runtime(progress=quiet)
    extra = ensure_runtime(["onnxruntime==1.31.*"], packages_no_deps=["big"], progress=quiet)
    assert plain.tritonserver != extra.tritonserver
    alone, without, with_deps = fake_pip.calls()
    assert alone.endswith("--no-deps nvidia-pytriton==0.7.0 numpy>=1.26,<2")
    assert without.endswith("--no-deps nvidia-pytriton==0.7.0 numpy>=1.26,<2 big")
    assert "--no-deps" not in with_deps
    assert with_deps.endswith("constraints.txt onnxruntime==1.31.*")
    # The order of packages makes no other runtime.
    ab = ensure_runtime(["a", "b"], progress=quiet)
    assert ensure_runtime(["b", "a"], progress=quiet) == ab


def test_processes_at_once_make_one_runtime(fake_pip) -> None:
    makers = [fake_pip.start_maker() for _ in range(4)]
    answers = [maker.communicate(timeout=PATIENCE_S) for maker in makers]
    assert [maker.returncode for maker in makers] == [0] * 4, answers
    assert len({out for out, _ in answers}) == 1
    assert len(fake_pip.calls()) == 1
    assert len(fake_pip.runtimes()) == 1


def test_a_maker_killed_half_way_is_cleared_up_by_the_next(fake_pip) -> None:
    fake_pip.behave("hang")
    first = fake_pip.start_maker()
    hung = fake_pip.folder / "hung"
    wait_for(hung)
    first.kill()
    first.communicate()
    (leftover,) = fake_pip.runtimes()
    assert ".making-" in leftover
    # The first maker's pip lives on and still writes: the second maker has to wait for its end.
    fake_pip.behave()
    second = fake_pip.start_maker()
    assert second.stderr is not None
    assert "another process is setting up the runtime" in second.stderr.readline()
    assert fake_pip.runtimes() == [leftover]
    os.kill(int(hung.read_text()), signal.SIGKILL)
    out, err = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, err
    assert f"removing what an interrupted set-up left: {leftover}" in err
    (made,) = fake_pip.runtimes()
    assert ".making-" not in made
    assert Path(out.strip()).is_file()


def test_ctrl_c_ends_pip_and_leaves_nothing(fake_pip) -> None:
    fake_pip.behave("hang")
    maker = fake_pip.start_maker()
    hung = fake_pip.folder / "hung"
    wait_for(hung)
    maker.send_signal(signal.SIGINT)
    maker.communicate(timeout=PATIENCE_S)
    assert maker.returncode != 0
    assert fake_pip.runtimes() == []
    assert not Path(f"/proc/{hung.read_text()}").exists()


def test_a_caller_that_leaves_ends_pip_and_leaves_nothing(fake_pip) -> None:
    fake_pip.behave("hang")
    hung = fake_pip.folder / "hung"
    begun = time.monotonic()
    with pytest.raises(RuntimeSetupError, match="cancelled"):
        ensure_runtime(progress=quiet, cancelled=hung.exists)
    assert time.monotonic() - begun < PATIENCE_S  # pip would have taken twice that
    assert fake_pip.runtimes() == []
    assert not Path(f"/proc/{hung.read_text()}").exists()


def test_pips_failure_is_shown_without_addresses(fake_pip) -> None:
    fake_pip.behave("fail")
    with pytest.raises(RuntimeSetupError) as caught:
        ensure_runtime(["nothing-like-it"], progress=quiet)
    message = str(caught.value)
    assert "ERROR: No matching distribution found" in message
    assert "pip" in message
    assert "secret" not in message
    assert "host.example" not in message
    assert fake_pip.runtimes() == []


def test_numpy_2_dragged_in_by_a_package_is_refused_and_not_kept(fake_pip) -> None:
    fake_pip.behave("numpy2")
    with pytest.raises(RuntimeSetupError, match=r"numpy 2\.1\.0.*numpy<2"):
        ensure_runtime(["greedy"], progress=quiet)
    assert fake_pip.runtimes() == []


def test_a_runtime_that_lost_its_interpreter_is_made_anew(fake_pip) -> None:
    made = ensure_runtime(progress=quiet)
    assert made.python is not None
    made.python.unlink()
    told: list[str] = []
    assert ensure_runtime(progress=told.append) == made
    assert any("no longer usable" in line for line in told)
    assert made.python.exists()


def test_a_step_that_cannot_be_run_says_so() -> None:
    with pytest.raises(RuntimeSetupError, match="cannot run /nowhere/python"):
        run_step(["/nowhere/python"], lock_fd=0, progress=quiet)


def test_a_silent_step_is_reported_to_be_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonasync.serving.install._HEARTBEAT_S", 0.05)
    told: list[str] = []
    with pytest.raises(RuntimeSetupError):  # ends when it was told of
        run_step(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            lock_fd=0,
            progress=told.append,
            cancelled=lambda: bool(told),
        )
    assert told[0].startswith("still at it after")


def test_without_a_pip_of_our_own_the_environment_brings_one(
    fake_pip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(install, "run_step", lambda command, **_rest: commands.append(command))
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda _name: None)
    folder = tmp_path / "environment"
    folder.mkdir()
    fill_environment(folder, find_interpreter(), Contents(), lock_fd=0, progress=quiet)
    make, fill = commands
    assert make[1:] == ["-m", "venv", str(folder)]
    assert fill[:4] == [str(folder / "bin" / "python"), "-m", "pip", "install"]
