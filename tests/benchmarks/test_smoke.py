"""One short run of the real thing: a client's process, the real server, all the way to the page."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main


@pytest.mark.server
def test_a_short_run_measures_checks_and_reports(tmp_path: Path):
    files = {kind: tmp_path / f"bench.{kind}" for kind in ("json", "html")}
    main([
        "--quick", "--only", "rows-1", "--rounds", "2", "--seconds", "0.1",
        "--json", str(files["json"]), "--html", str(files["html"]),
    ])  # fmt: skip
    run = json.loads(files["json"].read_text())
    assert run["skipped"] == {}
    assert [(each["client"], each["number"]) for each in run["rounds"]] == [
        ("ours", 0), ("ours-unbatched", 0), ("aio", 0),
        ("ours-unbatched", 1), ("aio", 1), ("ours", 1),
    ]  # fmt: skip
    for each in run["rounds"]:
        assert (each["errors"], each["checked"]) == (0, 1)
        assert each["values"]["rows_per_s"] > 10
        assert each["values"]["rows_per_execution"] == 1
        assert each["values"]["p50_us"] <= each["values"]["p99_us"]
    assert "64 B rows, one caller" in files["html"].read_text()
