import pytest

from tritonasync.core.reports import Duration, IndexEntry, ModelStatistics


@pytest.mark.parametrize(("count", "total_s", "mean_s"), [(0, 0.0, 0.0), (4, 2.0, 0.5)])
def test_the_mean_of_nothing_is_zero(count, total_s, mean_s):
    assert Duration(count, total_s).mean_s == mean_s


@pytest.mark.parametrize(("state", "ready"), [("READY", True), ("UNAVAILABLE", False), ("", False)])
def test_an_entry_answers_only_when_it_is_ready(state, ready):
    assert IndexEntry("m", "1", state, "").ready is ready


@pytest.mark.parametrize(("rows", "executions", "mean"), [(0, 0, 0.0), (96, 4, 24.0)])
def test_the_mean_batch_is_rows_by_execution(rows, executions, mean):
    none = Duration(0, 0.0)
    statistics = ModelStatistics(
        name="m",
        version="1",
        last_inference_ms=0,
        inference_count=rows,
        execution_count=executions,
        success=none,
        fail=none,
        queue=none,
        compute_input=none,
        compute_infer=none,
        compute_output=none,
        cache_hit=none,
        cache_miss=none,
        batches=(),
    )
    assert statistics.mean_batch_size == mean
