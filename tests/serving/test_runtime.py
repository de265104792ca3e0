"""Where a runtime is looked for, and what is refused."""

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving import cache_folder, ensure_runtime, locate_runtime
from tritonasync.serving import runtime as runtime_module


def installed_triton(folder: Path) -> Path:
    """A folder laid out as NVIDIA's container has it; returns the binary."""
    binary = folder / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    return binary


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No runtime named, on PATH or cached; returns an empty folder that is PATH."""
    monkeypatch.delenv("TRITONASYNC_RUNTIME", raising=False)
    monkeypatch.setenv("TRITONASYNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    return tmp_path / "path"


def test_an_installed_triton_is_taken_with_its_own_layout(tmp_path: Path) -> None:
    binary = installed_triton(tmp_path / "opt")
    for path in (tmp_path / "opt", binary):
        found = locate_runtime(path)
        assert found.tritonserver == binary
        assert found.backends == tmp_path / "opt" / "backends"
        assert found.python is found.stub is found.libpython is None


def test_a_link_to_the_binary_is_followed(tmp_path: Path) -> None:
    binary = installed_triton(tmp_path / "opt")
    (tmp_path / "tritonserver").symlink_to(binary)
    assert locate_runtime(tmp_path / "tritonserver").tritonserver == binary


def test_the_argument_comes_before_the_variable_and_the_variable_before_path(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed_triton(nowhere)
    assert ensure_runtime().tritonserver.is_relative_to(nowhere)
    installed_triton(tmp_path / "named")
    monkeypatch.setenv("TRITONASYNC_RUNTIME", str(tmp_path / "named"))
    assert ensure_runtime(["a-package"]).tritonserver.is_relative_to(tmp_path / "named")
    installed_triton(tmp_path / "given")
    given = ensure_runtime(runtime=tmp_path / "given")
    assert given.tritonserver.is_relative_to(tmp_path / "given")
    assert ensure_runtime(runtime=given) is given


def test_a_server_on_path_is_passed_over_when_packages_are_wanted(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_triton(nowhere)
    asked: list[tuple[str, ...]] = []

    def made(contents: runtime_module.Contents, *_rest: object) -> None:
        asked.append(contents.packages)

    monkeypatch.setattr(runtime_module, "_cached_runtime", made)
    ensure_runtime(["onnxruntime"])
    assert asked == [("onnxruntime",)]


@pytest.mark.parametrize("where", ["argument", "variable"])
def test_a_named_runtime_that_is_not_there_is_an_error_and_not_skipped(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    missing = tmp_path / "missing"
    if where == "variable":
        monkeypatch.setenv("TRITONASYNC_RUNTIME", str(missing))
    with pytest.raises(RuntimeSetupError, match=f"no runtime at {missing}"):
        ensure_runtime(runtime=missing if where == "argument" else None)


def test_a_folder_without_a_server_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(RuntimeSetupError, match=r"expected bin/tritonserver, or an environment"):
        locate_runtime(tmp_path)


def test_an_environment_whose_python_does_not_run_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "lib" / "python3.11" / "site-packages" / "pytriton" / "tritonserver"
    installed_triton(home)
    (home / "python_backend_stubs").mkdir()
    with pytest.raises(RuntimeSetupError, match=f"{tmp_path}/bin/python3 does not run"):
        locate_runtime(tmp_path)


def test_the_cache_is_where_the_user_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TRITONASYNC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tritonasync"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    assert cache_folder() == tmp_path / ".cache" / "tritonasync"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/tritonasync")
    monkeypatch.setenv("TRITONASYNC_CACHE", "/mine")
    assert cache_folder() == Path("/mine")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("system", "Darwin", "this is Darwin"),
        ("machine", "aarch64", "this is Linux aarch64"),
        ("libc_ver", ("glibc", "2.31"), r"needs glibc 2\.35.*this is glibc 2\.31"),
        ("libc_ver", ("", ""), "this is another libc"),
    ],
)
def test_a_platform_that_the_wheel_is_not_for_is_refused_before_anything_is_made(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, said: str
) -> None:
    answer: Callable[[], object] = lambda: value  # noqa: E731 - it stands for a function
    monkeypatch.setattr(platform, name, answer)
    with pytest.raises(RuntimeSetupError, match=said):
        ensure_runtime()
    assert not cache_folder().exists()
