from pathlib import Path

import pytest

from benchmarks import __main__ as command_line
from benchmarks.results import Results, to_json
from benchmarks.workloads import PARTS
from tests.benchmarks.made import results, rounds


def test_help_names_every_option_and_everything_that_is_measured(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit) as left:
        command_line.main(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    for option in ("--quick", "--only", "--json", "--html", "--compare", "--plots"):
        assert option in said
    for name in command_line.NAMES:
        assert name in said


def test_a_sweep_is_measured_only_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, ...]] = []

    def measure(names: tuple[str, ...], **_: object) -> Results:
        asked.append(tuple(names))
        return results()

    monkeypatch.setattr(command_line, "measure", measure)
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    command_line.main(files)
    command_line.main(["--only", "placing", *files])
    assert "images-64" in asked[0]
    assert not {"placing", *PARTS["placing"]} & {*asked[0]}
    assert asked[1] == ("placing",)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "nothing"],
        ["--rounds", "0"],
        ["--rounds", "many"],
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--compare", "one.json"],
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str]):
    with pytest.raises(SystemExit) as left:
        command_line.main(arguments)
    assert left.value.code == 2


def written(folder: Path, name: str, rate: float) -> str:
    path = folder / name
    path.write_text(to_json(results(*rounds("rows-1", "ours", {"rows_per_s": [rate] * 3}))))
    return str(path)


def test_comparing_exits_with_1_on_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fast, slow = written(tmp_path, "a.json", 100.0), written(tmp_path, "b.json", 50.0)
    assert command_line.main(["--compare", fast, slow]) == 1
    assert "REGRESSED  rows-1: ours, rows_per_s" in capsys.readouterr().out
    assert command_line.main(["--compare", slow, fast]) == 0
    assert command_line.main(["--compare", fast, fast]) == 0


def test_comparing_what_cannot_be_read_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = written(tmp_path, "a.json", 1.0)
    assert command_line.main(["--compare", good, str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


@pytest.mark.parametrize(("rate", "status"), [(1.0, 1), (1000.0, 0)])
def test_a_run_writes_its_files_and_exits_by_its_goals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rate: float,
    status: int,
):
    made = results(
        *rounds("rows-1024", "ours", {"rows_per_s": [rate]}),
        *rounds("rows-1024", "aio", {"rows_per_s": [1.0]}),
    )
    monkeypatch.setattr(command_line, "measure", lambda *_, **__: made)
    files = [tmp_path / "deep" / "r.json", tmp_path / "r.html", tmp_path / "plots"]
    options = ["--json", str(files[0]), "--html", str(files[1]), "--plots", str(files[2])]
    assert command_line.main(options) == status
    assert files[0].read_text() == to_json(made)
    assert files[1].read_text().startswith("<!doctype html>")
    assert (files[2] / "rows-1024-rows_per_s.svg").is_file()
    assert ("MISSED" in capsys.readouterr().out) is (status == 1)
