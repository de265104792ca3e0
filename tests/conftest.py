"""Fixtures of the whole suite: the real server, and proof that the suite leaves nothing behind."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import psutil
import pytest

from tritonasync.serving import EmbeddedTriton

TESTS = Path(__file__).parent
LEAK_PATIENCE_S = 15.0


SERVER_FIXTURES = {"triton_server", "explicit_server"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the real server, so that `-m "not server"` leaves them out."""
    for item in items:
        if SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def triton_repository() -> Path:
    return TESTS / "models"


@pytest.fixture(scope="session")
def server(triton_server: EmbeddedTriton) -> EmbeddedTriton:
    """The shared server with all of tests/models: read-only, so no loading and no ``dying``."""
    return triton_server


@pytest.fixture(scope="module")
def explicit_server() -> Iterator[EmbeddedTriton]:
    """A server of this module's own, whose models may be unloaded, loaded and killed."""
    with EmbeddedTriton(TESTS / "models", model_control="explicit", load_models=("*",)) as running:
        yield running


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Assert at the very end that no process, file or shared memory of ours is left.

    Everything of a server carries the id of the process that started it, so other servers on the
    machine, and those of other workers, do not disturb.
    """
    yield
    assert not still_left_behind(os.getpid())


@pytest.fixture
def leftovers() -> Callable[[int], list[str]]:
    """What the servers started by process ``pid`` have left, after some patience."""
    return still_left_behind


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Assert that the test leaves nothing besides what was there before it, as other servers."""
    before = set(_left_behind(os.getpid()))
    yield
    assert not still_left_behind(os.getpid(), besides=before)


def still_left_behind(pid: int, *, besides: AbstractSet[str] = frozenset()) -> list[str]:
    limit = time.monotonic() + LEAK_PATIENCE_S
    while (left := [*{*_left_behind(pid)} - besides]) and time.monotonic() < limit:
        time.sleep(0.05)
    return left


def _left_behind(pid: int) -> list[str]:
    mark = f"tritonasync-{pid}-"
    files = [*Path("/dev/shm").glob(f"{mark}*"), *Path(tempfile.gettempdir()).glob(f"{mark}*")]
    processes = [
        f"process {process.pid}: {' '.join(process.info['cmdline'])}"
        for process in psutil.process_iter(["cmdline"])
        if any(mark in argument for argument in process.info["cmdline"] or ())
    ]
    return [*map(str, files), *processes]
