"""Making environments, with the commands replaced: no network."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import environments
from benchmarks.environments import Environment, EnvironmentMissingError, load_generator
from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving import TritonRuntime

PEER = Environment("peer", ("peer==1.0",))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITONASYNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run; venv's part is done."""
    run: list[list[str]] = []

    def run_step(command: list[str], **_: object) -> None:
        run.append(command)
        if "venv" in command:
            bin_folder = Path(command[-1], "bin")
            bin_folder.mkdir()
            (bin_folder / "python").symlink_to(sys.executable)

    monkeypatch.setattr(environments, "run_step", run_step)
    return run


def test_an_environment_is_made_once(commands: list[list[str]], cache: Path):
    said: list[str] = []
    folder = PEER.ensure(said.append)
    assert folder.parent == cache / "bench"
    assert commands[1][-1] == "peer==1.0"
    assert len(said) == 1
    assert PEER.ensure(said.append) == folder
    assert len(commands) == 2


def test_other_versions_are_another_environment():
    assert Environment("peer", ("peer==1.1",)).folder != PEER.folder
    assert Environment("peer", PEER.requirements, dependencies=False).folder != PEER.folder


def test_one_that_cannot_be_made_says_why_and_leaves_nothing_that_looks_whole(
    monkeypatch: pytest.MonkeyPatch, cache: Path
):
    def run_step(command: list[str], **_: object) -> None:
        raise RuntimeSetupError("pip failed:\nERROR: No matching distribution found for peer==1.0")

    monkeypatch.setattr(environments, "run_step", run_step)
    with pytest.raises(EnvironmentMissingError, match=r"peer==1\.0.*No matching distribution"):
        PEER.ensure(lambda _: None)
    assert not PEER.folder.exists()
    assert [path for path in (cache / "bench").iterdir() if path.is_dir()] == []


def test_one_whose_interpreter_is_gone_is_made_anew(commands: list[list[str]]):
    folder = PEER.ensure(lambda _: None)
    (folder / "bin" / "python").unlink()
    PEER.ensure(lambda _: None)
    assert len(commands) == 4


def test_peers_get_the_versions_of_the_session():
    import grpc  # noqa: PLC0415 - only its version

    requirements = environments.around_tritonclient("x", "x==1").requirements
    assert requirements[0] == "x==1"
    assert f"grpcio=={grpc.__version__}" in requirements
    assert all("==" in requirement for requirement in requirements)
    assert "numpy==1.26.4" in environments.pytriton().requirements


def test_the_load_generator_gets_the_libraries_that_it_asks_for(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    packages = tmp_path / "site-packages"
    server = packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    libraries = packages / "nvidia_pytriton.libs"
    libraries.mkdir(parents=True)
    for name in ("libb64-98cb6333.so.0d", "libcudart-09529672.so.12.6.77"):
        (libraries / name).touch()
    folder = tmp_path / "links"
    folder.mkdir()
    environment = environments.perf_analyzer().ensure(lambda _: None)
    binary = environment / "bin" / "perf_analyzer"
    binary.write_text('#!/bin/sh\ntest -e "$LD_LIBRARY_PATH/libb64.so.0d"\n')
    binary.chmod(0o755)
    runtime = TritonRuntime(server, Path(), Path())
    found, variables = load_generator(runtime, folder, lambda _: None)
    assert found == binary
    assert variables == {"LD_LIBRARY_PATH": str(folder)}
    assert {path.name for path in folder.iterdir()} == {"libb64.so.0d", "libcudart.so.12"}


def test_a_load_generator_that_does_not_run_says_why(commands: list[list[str]], tmp_path: Path):
    environment = environments.perf_analyzer().ensure(lambda _: None)
    runtime = TritonRuntime(tmp_path / "a" / "b" / "c" / "d", Path(), Path())
    with pytest.raises(EnvironmentMissingError, match="does not run"):
        load_generator(runtime, tmp_path, lambda _: None)
    binary = environment / "bin" / "perf_analyzer"
    binary.write_text("#!/bin/sh\necho libb64.so.0d: cannot open >&2\nexit 127\n")
    binary.chmod(0o755)
    with pytest.raises(EnvironmentMissingError, match="libb64.so.0d: cannot open"):
        load_generator(runtime, tmp_path, lambda _: None)
    assert subprocess.run([binary], capture_output=True).returncode == 127
