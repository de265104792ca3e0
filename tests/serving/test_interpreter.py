"""Which Python may hold a runtime."""

import json
import sys
from pathlib import Path

import pytest

from tritonasync.core.errors import RuntimeSetupError
from tritonasync.serving import interpreter
from tritonasync.serving.interpreter import find_interpreter, inspect_interpreter


def fake_python(path: Path, answer: object, code: int = 0) -> Path:
    """A program that answers as an interpreter does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\nexit {code}\n")
    path.chmod(0o755)
    return path


def installation(folder: Path, version: tuple[int, int], *, libdir: str = "lib") -> Path:
    """A fake interpreter with its shared library; returns the executable."""
    major, minor = version
    library = folder / libdir / f"libpython{major}.{minor}.so.1.0"
    library.parent.mkdir(parents=True, exist_ok=True)
    library.touch()
    answer = ["cpython", [major, minor], str(folder), "/built/elsewhere/lib", "x86_64-linux-gnu"]
    return fake_python(folder / "bin" / f"python{major}.{minor}", answer)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No interpreter anywhere but in the returned folder, which is PATH."""
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
    return tmp_path


def test_this_interpreter_is_described_as_asking_it_from_outside_would() -> None:
    executable = Path(sys.executable)
    inside = inspect_interpreter(executable)
    if inside is None:
        pytest.skip("this interpreter has no shared library")
    assert inside.version == sys.version_info[:2]
    assert interpreter._ask(executable) == interpreter._answer_of_this_one()


def test_a_library_is_found_although_libdir_is_of_another_machine(tmp_path: Path) -> None:
    found = inspect_interpreter(installation(tmp_path, (3, 12)))
    assert found is not None
    assert found.libpython == tmp_path / "lib" / "libpython3.12.so.1.0"
    assert found.base_prefix == tmp_path


def test_debians_folder_of_libraries_is_looked_at(tmp_path: Path) -> None:
    found = inspect_interpreter(installation(tmp_path, (3, 11), libdir="lib/x86_64-linux-gnu"))
    assert found is not None
    assert found.libpython.parent.name == "x86_64-linux-gnu"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (["cpython", [3, 12], "/nowhere", "/nowhere", ""], 0),  # no shared library
        (["pypy", [3, 11], "/nowhere", "/nowhere", ""], 0),
        ("not a list", 0),
        (["cpython", [3, 12], "/nowhere", "/nowhere", ""], 127),  # a shim with nothing behind it
    ],
)
def test_what_will_not_do_is_passed_over(tmp_path: Path, answer: object, code: int) -> None:
    assert inspect_interpreter(fake_python(tmp_path / "python3", answer, code)) is None


def test_a_program_that_cannot_be_run_is_passed_over(tmp_path: Path) -> None:
    assert inspect_interpreter(tmp_path / "missing") is None


def test_the_newest_supported_on_path_is_chosen_when_this_one_will_not_do(alone: Path) -> None:
    installation(alone, (3, 10))
    expected = installation(alone, (3, 12))
    found = find_interpreter()
    assert found.executable == expected
    assert found.version == (3, 12)


def test_a_version_without_a_stub_is_not_chosen_even_if_it_is_this_one(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(installation(alone / "new", (3, 13))))
    # Answered as from inside this process, whose version is another: ask from outside instead.
    monkeypatch.setattr(
        interpreter, "_answer_of_this_one", lambda: interpreter._ask(Path(sys.executable))
    )
    expected = installation(alone, (3, 11))
    assert find_interpreter().executable == expected


@pytest.mark.parametrize("folder", ["pyenv/versions/3.11.9", "uv/cpython-3.11.9-linux-x86_64"])
def test_version_managers_are_looked_at(alone: Path, folder: str) -> None:
    expected = installation(alone / folder, (3, 11))
    assert find_interpreter().executable == expected


def test_none_at_all_is_an_error_that_says_what_to_install(alone: Path) -> None:
    tried = fake_python(alone / "bin" / "python3.12", ["cpython", [3, 12], "/n", "/n", ""])
    with pytest.raises(RuntimeSetupError) as caught:
        find_interpreter()
    message = str(caught.value)
    assert str(tried) in message
    assert "libpython3.12" in message
    assert "TRITONASYNC_RUNTIME" in message
