"""Runs every Python snippet of README.md and docs/ as a test, on the real server.

Pages in ``WITH_POOL`` use ``await`` at top level and a ``pool`` that is open, as they say at their
head; the others are whole programs.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from tritonasync import TritonPool
from tritonasync.serving import EmbeddedTriton

HERE = Path(__file__).parent
PAGES_WITH_POOL = (
    "handles",
    "generation",
    "transport",
    "batching",
    "routing",
    "admin",
    "deadlines",
    "errors",
    "sequences",
    "memory",
    "images",
    "classifiers",
    "detectors",
    "encoders",
    "registry",
    "pipelines",
    "bulk",
)
WITH_POOL = [f"docs/{name}.md" for name in PAGES_WITH_POOL]


def evaluate(example: Example) -> None:
    """Run a snippet, in the page's event loop if it awaits."""
    page: Page = example.namespace["page"]
    example.namespace.setdefault("pool", page.pool)
    example.namespace.setdefault("url", page.url)
    code = compile(
        example.parsed,
        example.path,
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    result = eval(code, example.namespace)
    if inspect.iscoroutine(result):
        page.run(result)


class Page:
    """An event loop that outlives a snippet, with a pool open in it."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self.url = url
        self.pool = self._runner.run(TritonPool(url).open())
        self.run = self._runner.run

    def close(self) -> None:
        self._runner.run(self.pool.aclose())
        self._runner.close()


@pytest.fixture(scope="session")
def docs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """Serve the models that the pages name."""
    # Here, since only the pages need what the demo imports.
    from examples.demo.repository import (
        RUNTIME_PACKAGES,
        RUNTIME_PACKAGES_NO_DEPS,
        write_repository,
    )

    repository = write_repository(tmp_path_factory.mktemp("docs"))
    shutil.copytree(HERE / "tests/models", repository, dirs_exist_ok=True)
    with EmbeddedTriton(
        repository,
        packages=RUNTIME_PACKAGES,
        packages_no_deps=RUNTIME_PACKAGES_NO_DEPS,  # the demo's, so that one runtime serves both
        model_control="explicit",
        load_models=["*"],
    ) as server:
        yield server


@pytest.fixture(scope="session")
def page(docs_server: EmbeddedTriton) -> Iterator[Page]:
    """Open a pool for the pages."""
    page = Page(docs_server.grpc_url)
    yield page
    page.close()


with_pool = Sybil(
    parsers=[CodeBlockParser("python", evaluate)],
    patterns=WITH_POOL,
    fixtures=["page"],
)
programs = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    excludes=WITH_POOL,
)
pytest_collect_file = (with_pool + programs).pytest()


@pytest.hookimpl(trylast=True)  # after the shuffling
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run each page's snippets in order, since they build on one another."""
    snippets = [item for item in items if item.path.suffix == ".md"]
    snippets.sort(key=lambda item: (item.path, item.location[1] or 0))
    tests = [item for item in items if item.path.suffix != ".md"]
    for item in snippets:
        item.add_marker("server")
    items[:] = tests + snippets
