"""The package's front door: every name is there, typed, and costs nothing until it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tritonasync


def test_every_public_name_can_be_imported():
    for name in tritonasync.__all__:
        assert getattr(tritonasync, name).__name__ == name
    assert set(tritonasync.__all__) <= set(dir(tritonasync))


def test_what_type_checkers_see_is_what_there_is():
    tree = ast.parse(Path(tritonasync.__file__).read_text())
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tritonasync.")
        for alias in node.names
    }
    assert typed == set(tritonasync.__all__) == set(tritonasync._WHERE)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'TritonPoll'"):
        _ = tritonasync.TritonPoll


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import tritonasync, sys; print([m for m in ('grpc', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_pool_needs_no_extra():
    code = (
        "import sys; from tritonasync import *;"
        "print([m for m in ('PIL', 'cupy', 'tokenizers', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
