"""The example served by its own command, and a headless Chromium to look at it.

Run by ``nox -s browser``; the usual run of all tests leaves this folder out.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).parents[2]
FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage",
    "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync",
    "window-size=900,1000",
)  # fmt: skip


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where ``python -m examples.fastapi_app`` serves; told to end, it leaves no files behind."""
    log = tmp_path_factory.mktemp("served") / "log"
    files = tmp_path_factory.mktemp("files")
    with log.open("w") as file:
        serving = subprocess.Popen(
            [sys.executable, "-u", "-m", "examples.fastapi_app", "--port", "0"],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(files)},
        )  # fmt: skip
        try:
            yield _address(serving, log)
        finally:
            serving.terminate()
            code = serving.wait(60)
    assert code == 0, log.read_text()
    assert list(files.glob("tritonasync-*")) == []


def _address(serving: subprocess.Popen, log: Path) -> str:
    while serving.poll() is None:
        found = re.search(r"running on (http://\S+)", log.read_text())
        if found:
            return found[1]
        try:
            serving.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    raise RuntimeError(f"the example ended: {log.read_text()}")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = _program("chromium")
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With the driver's path given, selenium downloads none.
    browser = Chrome(options=options, service=Service(executable_path=_program("chromedriver")))
    yield browser
    browser.quit()


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed: apt-get install chromium chromium-driver"
    return found


@pytest.fixture
def page(chromium: Chrome, url: str) -> Chrome:
    """The page, fresh; it must not complain in its console."""
    chromium.get(url)
    chromium.get_log("browser")
    return chromium
