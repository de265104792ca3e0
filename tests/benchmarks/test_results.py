from pathlib import Path

import pytest

from benchmarks.results import ResultsError, from_json, load, to_json
from benchmarks.samples import Figure
from tests.benchmarks.made import results, rounds


def full():
    made = results(
        *rounds("rows-1", "ours", {"rows_per_s": [10.0, 20.0], "p50_us": [1.5, 2.5]}),
        *rounds("rows-1", "aio", {"rows_per_s": [5.0, 5.0]}, errors=3),
    )
    made.skipped["tritony"] = "no network"
    made.figures["wire"] = [Figure("encode", "µs", [1.0, 2.0], [4.0, 4.0], 0.25)]
    return made


def test_results_survive_json():
    assert from_json(to_json(full())) == full()


def test_latencies_that_are_not_known_survive_json():
    made = results(*rounds("rows-1", "perf", {"rows_per_s": [1.0]}))
    made.rounds[0] = type(made.rounds[0])("rows-1", "perf", 0, {}, (None, 2.0), 0)
    assert from_json(to_json(made)).rounds[0].latency_us == (None, 2.0)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 99}', '{"format": 1}', '{"format": 1, "taken": 3}']
)
def test_what_holds_no_results_is_refused(text: str):
    with pytest.raises(ResultsError):
        from_json(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ResultsError, match="missing.json"):
        load(tmp_path / "missing.json")
    (tmp_path / "other.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsError, match="other.json"):
        load(tmp_path / "other.json")


def test_a_series_has_the_rounds_without_errors_by_number():
    made = full()
    assert made.series("rows-1", "ours", "rows_per_s") == {0: 10.0, 1: 20.0}
    assert made.series("rows-1", "aio", "rows_per_s") == {}
    assert made.series("rows-1", "ours", "stall_ms") == {}
    assert made.errors("rows-1", "aio") == 6


def test_clients_and_workloads_come_in_the_order_of_the_run():
    made = results(
        *rounds("rows-64", "aio", {"p50_us": [1.0]}), *rounds("rows-1", "ours", {"p50_us": [1.0]})
    )
    assert made.workloads() == ["rows-64", "rows-1"]
    assert made.clients_of("rows-1") == ["ours"]


def test_quantiles_are_the_medians_over_the_rounds():
    made = results(*rounds("rows-1", "ours", {"p50_us": [1.0, 1.0, 1.0]}))
    points = dict(made.quantiles("rows-1", "ours"))
    assert points[0.5] == 150.0
    assert made.quantiles("rows-1", "aio") == []
