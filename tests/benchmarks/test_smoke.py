"""One short run of the real thing: a client's process, the real server, all the way to the page."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.workloads import BY_NAME


def run(folder: Path, *names: str) -> tuple[dict, str]:
    """Measure, shortly; return the results and the page."""
    files = {kind: folder / f"bench.{kind}" for kind in ("json", "html")}
    main([
        "--quick", "--only", *names, "--rounds", "2", "--seconds", "0.1",
        "--json", str(files["json"]), "--html", str(files["html"]),
    ])  # fmt: skip
    return json.loads(files["json"].read_text()), files["html"].read_text()


@pytest.mark.server
def test_a_short_run_measures_checks_and_reports(tmp_path: Path):
    measured, page = run(tmp_path, "rows-1")
    assert measured["skipped"] == {}
    assert [(each["client"], each["number"]) for each in measured["rounds"]] == [
        ("ours", 0), ("ours-unbatched", 0), ("aio", 0),
        ("ours-unbatched", 1), ("aio", 1), ("ours", 1),
    ]  # fmt: skip
    for each in measured["rounds"]:
        assert (each["errors"], each["checked"]) == (0, 1)
        assert each["values"]["rows_per_s"] > 10
        assert each["values"]["rows_per_execution"] == 1
        assert each["values"]["p50_us"] <= each["values"]["p99_us"]
    assert "64 B rows, one caller" in page


@pytest.mark.server
def test_rows_in_shared_memory_are_measured_beside_rows_on_the_wire(tmp_path: Path):
    measured, page = run(tmp_path, "images-64")
    assert measured["skipped"] == {}
    found = {each["client"]: each["values"] for each in measured["rounds"]}
    assert found.keys() == {"ours", "ours-wire", "ours-leased", "aio"}
    copies = {name: values.get("copies_per_row") for name, values in found.items()}
    assert 0 < copies.pop("ours") <= 1  # less where a region was being made, and rows did not wait
    assert copies == {"ours-wire": None, "ours-leased": 0.0, "aio": None}
    assert "copies/row" in page


@pytest.mark.server
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_sweep_of_sizes_is_measured_and_shown_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    names = ["placed-1-4kib", "placed-64-64kib"]
    main(["--only", *names, "--rounds", "2", "--seconds", "0.1", *files])
    measured = json.loads((tmp_path / "r.json").read_text())
    assert measured["skipped"] == {}
    assert [each["errors"] for each in measured["rounds"]] == [0] * 8
    shared = {each["client"]: each["values"].get("placed_share") for each in measured["rounds"]}
    assert shared == {"ours-placed": 1.0, "ours-unplaced": None}
    assert "64 KiB, 64 callers" in capsys.readouterr().out


@pytest.mark.server
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_streams_of_either_kind_are_measured_on_servers_of_their_own(tmp_path: Path):
    measured, _ = run(tmp_path, "stream-rows-64", "decoupled", "first-token")
    assert measured["skipped"] == {}
    clients = {
        workload: {each["client"] for each in measured["rounds"] if each["workload"] == workload}
        for workload in ("stream-rows-64", "decoupled", "first-token")
    }
    assert clients == {
        "stream-rows-64": {"ours-one-stream", "stream"},
        "decoupled": {"ours", "stream"},
        "first-token": {"ours", "stream"},
    }
    for each in measured["rounds"]:
        callers = BY_NAME[each["workload"]].callers
        assert (each["errors"], each["checked"]) == (0, callers)
    # Its model sleeps for 4 ms before the last of its responses.
    firsts = [each for each in measured["rounds"] if each["workload"] == "first-token"]
    assert min(each["latency_us"][0] for each in firsts) < 4_000
