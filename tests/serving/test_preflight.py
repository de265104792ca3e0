"""What is refused before a server is started: a stub that does not load, numpy 2."""

import dataclasses
import os
import subprocess
import sys
import time
from ctypes.util import find_library
from pathlib import Path

import pytest

from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving import EmbeddedTriton, TritonRuntime, ensure_runtime
from tritonasync.serving.preflight import check_environment, lay_out

FAST_S = 10.0

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def real() -> TritonRuntime:
    """The runtime that the other tests use; made now if this is the first run."""
    runtime = ensure_runtime()
    if runtime.stub is None:
        pytest.skip("an installed Triton: its stub is its own affair")
    return runtime


@pytest.fixture
def with_numpy_2(real: TritonRuntime, tmp_path: Path) -> TritonRuntime:
    """The real server with an environment whose numpy says that it is 2."""
    environment = tmp_path / "environment"
    subprocess.run([str(real.python), "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python3.*/site-packages")
    (site / "numpy").mkdir()
    (site / "numpy" / "__init__.py").write_text("__version__ = '2.0.1'")
    return dataclasses.replace(real, python=environment / "bin" / "python3")


@pytest.fixture
def with_missing_library(real: TritonRuntime, tmp_path: Path) -> TritonRuntime:
    """The real server with a stub whose libpython this machine does not have."""
    assert real.stub is not None
    for stub in sorted(real.stub.parents[1].iterdir()):
        if not find_library(f"python{stub.name}"):
            return dataclasses.replace(
                real, stub=stub / real.stub.name, libpython=tmp_path / "libpython.so"
            )
    pytest.skip("every version's library is on this machine")


def test_the_real_runtime_passes(real: TritonRuntime) -> None:
    check_environment(real)


def test_the_same_runtime_is_found_by_its_folder_and_its_binary(real: TritonRuntime) -> None:
    assert real.python is not None
    assert ensure_runtime(runtime=real.python.parents[1]) == real
    assert ensure_runtime(runtime=real.tritonserver) == real


def test_processes_at_once_get_the_same_real_runtime(real: TritonRuntime) -> None:
    code = "from tritonasync.serving import ensure_runtime; print(ensure_runtime().tritonserver)"
    askers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {asker.communicate()[0].strip() for asker in askers}
    assert answers == {str(real.tritonserver)}


def test_numpy_2_is_refused_at_start(with_numpy_2: TritonRuntime, tmp_path: Path) -> None:
    with pytest.raises(RuntimeSetupError, match=r"numpy 2\.0\.1.*Install 'numpy<2'"):
        EmbeddedTriton(tmp_path, runtime=with_numpy_2).start()


def test_no_numpy_is_refused(with_numpy_2: TritonRuntime) -> None:
    assert with_numpy_2.python is not None
    (numpy,) = with_numpy_2.python.parents[1].glob("lib/python3.*/site-packages/numpy")
    (numpy / "__init__.py").unlink()
    numpy.rmdir()
    with pytest.raises(RuntimeSetupError, match="cannot import numpy"):
        check_environment(with_numpy_2)


def test_a_stub_that_does_not_load_is_refused_fast_instead_of_hanging_a_model(
    with_missing_library: TritonRuntime, tmp_path: Path
) -> None:
    begun = time.monotonic()
    with pytest.raises(RuntimeSetupError, match=r"stub does not load \(exit code 127\)"):
        EmbeddedTriton(tmp_path, runtime=with_missing_library).start()
    assert time.monotonic() - begun < FAST_S


def test_a_version_without_a_stub_is_refused(real: TritonRuntime) -> None:
    stub = Path("/nowhere/3.14/triton_python_backend_stub")
    with pytest.raises(RuntimeSetupError, match="no stub for its Python: /nowhere"):
        check_environment(dataclasses.replace(real, stub=stub))


def test_the_users_python_variables_do_not_reach_the_server(
    real: TritonRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/broken")
    monkeypatch.setenv("PYTHONPATH", "/other/packages")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/users/own")
    environment = lay_out(real, tmp_path, {"MINE": "1"}).environment
    assert "PYTHONHOME" not in environment
    assert "PYTHONPATH" not in environment
    assert environment["MINE"] == "1"
    first, *rest = environment["LD_LIBRARY_PATH"].split(os.pathsep)
    assert rest == ["/users/own"]
    assert [path.name for path in Path(first).iterdir()] == [real.libpython and real.libpython.name]
    assert environment["PATH"].split(os.pathsep)[0] == str(real.python and real.python.parent)


def test_an_installed_triton_is_run_from_its_own_layout(
    real: TritonRuntime, tmp_path: Path
) -> None:
    prefix = tmp_path / "opt"
    prefix.mkdir()
    launchpad = lay_out(real, prefix, {})  # makes prefix/backends, as an installation has it
    (prefix / "bin").mkdir()
    (prefix / "bin" / "tritonserver").symlink_to(real.tritonserver)
    (prefix / "caches").symlink_to(real.caches)
    variables = {name: launchpad.environment[name] for name in ("PATH", "LD_LIBRARY_PATH")}
    models = Path(__file__).parents[1] / "models"
    with EmbeddedTriton(
        models,
        runtime=prefix,
        environment=variables,
        model_control="explicit",
        load_models=["ident"],
    ) as server:
        assert str(prefix / "backends") in server.log_path.read_text()
