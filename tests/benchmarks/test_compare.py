import pytest

from benchmarks import tables
from benchmarks.compare import changes
from benchmarks.samples import Figure
from tests.benchmarks.made import results, rounds


def run(ours: list[float], *, stock: list[float] | None = None, measure: str = "rows_per_s"):
    made = rounds("rows-64", "ours", {measure: ours})
    if stock is not None:
        made += rounds("rows-64", "aio", {measure: stock})
    return results(*made)


def only(before, after):
    (change,) = changes(before, after)
    return change


@pytest.mark.parametrize(("after", "regressed"), [(95.1, False), (94.9, True), (150.0, False)])
def test_steady_rates_regress_when_they_fall_by_more_than_5_percent(after: float, regressed: bool):
    change = only(run([100.0] * 3), run([after] * 3))
    assert change.regressed is regressed


@pytest.mark.parametrize(("after", "regressed"), [(104.9, False), (105.1, True), (50.0, False)])
def test_latencies_regress_when_they_rise(after: float, regressed: bool):
    change = only(run([100.0] * 3, measure="p99_us"), run([after] * 3, measure="p99_us"))
    assert change.regressed is regressed


def test_a_fall_within_the_two_runs_noise_is_none():
    before, after = [90.0, 100.0, 110.0], [75.0, 85.0, 95.0]  # 10 % and 11.8 %
    change = only(run(before), run(after))
    assert change.difference == pytest.approx(-0.15)
    assert change.allowed == pytest.approx(0.1 + 10 / 85)
    assert not change.regressed
    assert only(run(before), run([65.0, 75.0, 85.0])).regressed


def test_runs_whose_ranges_overlap_do_not_differ():
    before = run([100.0] * 5, measure="p99_us")
    after = run([99.0, 110.0, 110.0, 112.0, 111.0], measure="p99_us")
    assert only(before, after).difference < -only(before, after).allowed
    assert not only(before, after).regressed


def test_a_gain_beyond_noise_is_an_improvement():
    assert only(run([100.0] * 3), run([120.0] * 3)).improved


def test_a_slower_machine_is_no_regression():
    fast = run([100.0] * 3, stock=[10.0] * 3)
    slow = run([50.0] * 3, stock=[5.0] * 3)
    change = only(fast, slow)
    assert "against aio" in change.name
    assert not change.regressed
    assert only(fast, run([50.0] * 3, stock=[10.0] * 3)).regressed


def test_the_stock_stream_is_the_reference_where_it_ran_and_the_stock_calls_did_not():
    def made(ours: float, stock: float):
        return results(
            *rounds("decoupled", "ours", {"rows_per_s": [ours] * 3}),
            *rounds("decoupled", "stream", {"rows_per_s": [stock] * 3}),
        )

    change = only(made(100.0, 10.0), made(50.0, 5.0))
    assert "against stream" in change.name
    assert not change.regressed


def test_every_client_of_ours_is_compared():
    run = results(*rounds("stream-rows-64", "ours-one-stream", {"rows_per_s": [1.0]}))
    assert only(run, run).name == "stream-rows-64: ours-one-stream, rows_per_s"


def test_values_are_compared_where_one_run_lacks_the_reference():
    change = only(run([100.0] * 3, stock=[10.0] * 3), run([100.0] * 3))
    assert "against" not in change.name


def test_stalls_are_compared_as_they_are():
    before = run([4.0] * 3, stock=[80.0] * 3, measure="stall_ms")
    after = run([4.0] * 3, stock=[40.0] * 3, measure="stall_ms")
    assert only(before, after).difference == 0


def test_what_only_one_run_has_is_not_compared():
    assert changes(run([1.0]), results()) == []
    assert changes(results(), run([1.0])) == []


def test_figures_of_one_process_are_compared_by_their_ratios():
    before, after = results(), results()
    before.figures["wire"] = [Figure("encode", "µs", [1.0], [4.0], 0.25)]
    after.figures["wire"] = [Figure("encode", "µs", [2.0], [4.0], 0.25)]
    assert only(before, after).regressed


def test_the_table_names_regressions_first_and_counts_them():
    before = results(
        *rounds("rows-1", "ours", {"rows_per_s": [10.0], "p50_us": [10.0], "p99_us": [10.0]})
    )
    after = results(
        *rounds("rows-1", "ours", {"rows_per_s": [20.0], "p50_us": [30.0], "p99_us": [10.0]})
    )
    lines = list(tables.change_lines(changes(before, after)))
    assert lines[0].startswith("REGRESSED")
    assert "p50_us" in lines[0]
    assert lines[1].startswith("improved")
    assert lines[-1] == "3 figures compared, 1 regressed"
