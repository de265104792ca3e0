"""The pytest plugin: a session fixture ``triton_server`` with a real tritonserver behind it.

Owns: the fixtures, the ini option ``triton_repository``, and the server's log in the report of a
failed test. Refuses to know: how a server is started (:mod:`tritonasync.serving`).

pytest imports this file at its start in every project of the environment, so it imports nothing of
the package at module level: a project that does not use the fixture pays for one small file.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tritonasync.serving import EmbeddedTriton

_INI_OPTION = "triton_repository"
_LOG_LINES = 40


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the ini option."""
    parser.addini(
        _INI_OPTION,
        "Model repository of the triton_server fixture, relative to the root folder",
        default="",
    )


@pytest.fixture(scope="session")
def triton_repository(pytestconfig: pytest.Config) -> Path:
    """The model repository to serve; override it, or set the ini option ``triton_repository``."""
    chosen = str(pytestconfig.getini(_INI_OPTION))
    if not chosen:
        pytest.fail(
            "triton_server has no model repository: set `triton_repository = models` in the pytest "
            "section of pyproject.toml or pytest.ini, or override the session fixture "
            "`triton_repository` in conftest.py to return a path",
            pytrace=False,
        )
    return pytestconfig.rootpath / chosen


@pytest.fixture(scope="session")
def triton_packages() -> Sequence[str]:
    """Requirements that the models import, such as ``("onnxruntime==1.31.*",)``; override it."""
    return ()


@pytest.fixture(scope="session")
def triton_options() -> Mapping[str, Any]:
    """More keyword arguments of :class:`tritonasync.serving.EmbeddedTriton`; override it."""
    return {}


@pytest.fixture(scope="session")
def triton_server(
    pytestconfig: pytest.Config,
    triton_repository: Path,
    triton_packages: Sequence[str],
    triton_options: Mapping[str, Any],
) -> Iterator[EmbeddedTriton]:
    """A running tritonserver on ``triton_repository``, one for the session (for each xdist worker).

    Fails, with the end of the server's log, when it cannot be started.
    """
    from tritonasync.core.errors import TritonError  # noqa: PLC0415 - see the file's head
    from tritonasync.serving import EmbeddedTriton  # noqa: PLC0415 - the same

    options: dict[str, Any] = {"progress": _reporter(pytestconfig), **triton_options}
    server = EmbeddedTriton(triton_repository, packages=triton_packages, **options)
    try:
        server.start()
    except TritonError as error:
        pytest.fail(f"triton_server did not start: {error}", pytrace=False)
    with server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the server's log to the report of a failed test that uses it."""
    report = yield
    server = getattr(item, "funcargs", {}).get("triton_server")
    if report.failed and call.when == "call" and server is not None:
        report.sections.append(("Triton log, its end", server.log_tail(_LOG_LINES)))
    return report


def _reporter(config: pytest.Config) -> Callable[[str], None]:
    """Return a writer past pytest's capture: making a runtime takes long enough to be shown."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")

    def report(line: str) -> None:
        from tritonasync.serving.runtime import print_progress  # noqa: PLC0415 - the same

        with capture.global_and_fixture_disabled() if capture else nullcontext():
            print_progress(line)

    return report
