import pytest

from benchmarks import report, tables, thresholds
from benchmarks.goals import judge
from benchmarks.results import Results
from benchmarks.workloads import SIZES, SWEEP
from tests.benchmarks.made import results, rounds

RATE, CPU = 0, 1


def sweep(callers: int, **ratios: list[float]) -> Results:
    """A sweep in which placing has these ratios to the wire, from 4 KiB up."""
    made = []
    for measure, values in ratios.items():
        for workload, value in zip(SWEEP[callers], values, strict=False):
            made += rounds(workload.name, "ours-placed", {measure: [10.0 * value] * 3})
            made += rounds(workload.name, "ours-unplaced", {measure: [10.0] * 3})
    return results(*made)


@pytest.mark.parametrize(
    ("ratios", "nbytes"),
    [
        ([0.8, 0.9, 1.1, 1.2], SIZES[2]),
        ([1.1, 1.2, 1.3], SIZES[0]),
        ([0.8, 1.1, 0.9, 1.2], SIZES[3]),  # once is luck
        ([1.1, 1.2, 0.9], None),
        ([0.8, 0.9, 1.0], None),
        ([], None),
    ],
)
def test_placing_pays_from_the_size_on_above_which_it_is_never_worse(
    ratios: list[float], nbytes: int | None
):
    steps = thresholds.steps(sweep(64, rows_per_s=ratios))
    assert thresholds.threshold(steps, 64, RATE) == nbytes


def test_less_cpu_is_better():
    steps = thresholds.steps(sweep(1, cpu_us_per_row=[1.5, 1.1, 0.9, 0.5]))
    assert thresholds.threshold(steps, 1, CPU) == SIZES[2]


def test_numbers_of_callers_have_thresholds_of_their_own():
    made = sweep(1, rows_per_s=[0.9, 1.1])
    made.rounds += sweep(64, rows_per_s=[1.1, 1.2]).rounds
    steps = thresholds.steps(made)
    assert [thresholds.threshold(steps, n, RATE) for n in (1, 64)] == [SIZES[1], SIZES[0]]


def test_a_size_that_one_side_did_not_run_is_no_step():
    made = results(*rounds(SWEEP[1][0].name, "ours-placed", {"rows_per_s": [1.0]}))
    assert thresholds.steps(made) == []
    assert thresholds.steps(results()) == []


def test_the_table_has_every_size_and_says_what_follows():
    lines = list(tables.threshold_lines(thresholds.steps(sweep(64, rows_per_s=[0.5, 1.5, 2.0]))))
    assert lines[1] == thresholds.TITLE
    assert [line.split("  ")[0] for line in lines[3:6]] == [
        "4 KiB, 64 callers", "8 KiB, 64 callers", "16 KiB, 64 callers",
    ]  # fmt: skip
    assert "0.500" in lines[3]
    assert lines[6:] == [
        "64 callers: placing is better in rows/s from 8 KiB on, in client CPU never, in p50 never"
    ]


def test_the_page_shows_a_sweep_as_a_whole_and_not_each_size():
    made = sweep(64, rows_per_s=[0.5, 1.5], cpu_us_per_row=[1.5, 0.5])
    page = report.page(made, judge(made))
    assert page.count("<h2>In shared memory against on the wire, each call alone</h2>") == 1
    assert "4 KiB, 64 callers" in page
    assert "better in rows/s from 8 KiB on" in page
    assert SWEEP[64][0].title not in page
    drawn = report.plots(made)
    assert drawn.keys() == {"placing-rows_per_s", "placing-cpu_us_per_row"}
    assert drawn["placing-rows_per_s"].count('class="dot"') == 2


def test_a_run_without_a_sweep_says_nothing_of_it():
    made = results(*rounds("rows-1", "ours", {"rows_per_s": [1.0]}))
    assert thresholds.TITLE not in report.page(made, judge(made))
