"""What type checkers say of programs: right ones pass, and each wrong line is found.

The cases are programs. A line that is wrong says so by ``# type: ignore[…]``; both checkers are
told to complain of such a comment where there is nothing to ignore.
"""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = sorted((Path(__file__).parent / "cases").glob("*.py"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checking(checker, case, tmp_path):
    pytest.importorskip(checker)
    program = tmp_path / case.name  # away from this project's settings
    options = {"mypy": ["--strict"], "pyright": ["--pythonpath", sys.executable]}
    rules = (
        "# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnusedExpression=false, "
        "reportUnknownMemberType=false, reportUnknownVariableType=false\n"
    )
    program.write_text(rules + case.read_text())
    done = subprocess.run(
        [sys.executable, "-m", checker, *options[checker], program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_line_without_its_mark_would_be_found(tmp_path):
    """So that the test above can fail: marks taken away, both checkers find each line."""
    pytest.importorskip("mypy")
    (case,) = [path for path in CASES if path.stem == "configs"]
    marked = [
        n for n, line in enumerate(case.read_text().splitlines(), 1) if "type: ignore" in line
    ]
    program = tmp_path / "program.py"
    program.write_text(
        "\n".join(line.partition("  # type:")[0] for line in case.read_text().splitlines())
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", program], capture_output=True, text=True
    )
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert len(marked) >= 10
    assert found == set(marked)
