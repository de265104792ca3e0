import pytest

from benchmarks.goals import GOALS, Met, all_met, judge, number, told
from benchmarks.peers import TITLES
from benchmarks.samples import Figure, Spread
from benchmarks.workloads import BY_NAME
from tests.benchmarks.made import results, rounds

FORTY = "64 B rows, 1,024 callers: rows/s against tritonclient"
CPU = "64 B rows, 1,024 callers: client CPU a row"


def verdict(made, work: str):
    return next(each for each in judge(made) if each.work == work)


def rows(ours: list[float], theirs: list[float], *, errors: int = 0, their_errors: int = 0):
    return results(
        *rounds("rows-1024", "ours", {"rows_per_s": ours}, errors=errors),
        *rounds("rows-1024", "aio", {"rows_per_s": theirs}, errors=their_errors),
    )


def test_a_goal_is_met_from_its_bound_on():
    assert verdict(rows([40.0], [1.0]), FORTY).met is Met.YES
    assert verdict(rows([39.9], [1.0]), FORTY).met is Met.NO


def test_a_goal_for_the_most_is_met_up_to_its_bound():
    cpu = [rounds("rows-1024", "ours", {"cpu_us_per_row": [value]}) for value in (5.0, 5.1)]
    assert verdict(results(*cpu[0]), CPU).met is Met.YES
    assert verdict(results(*cpu[1]), CPU).met is Met.NO


def test_the_median_of_the_rounds_ratios_decides():
    assert verdict(rows([100.0, 41.0, 10.0], [1.0, 1.0, 1.0]), FORTY).met is Met.YES
    assert verdict(rows([100.0, 390.0, 390.0], [1.0, 10.0, 10.0]), FORTY).met is Met.NO


def test_what_was_not_measured_is_never_met():
    verdicts = judge(results())
    assert {each.met for each in verdicts} == {Met.UNMEASURED}
    assert verdict(results(), FORTY).measured == "not in this run"


def test_a_goal_whose_feature_is_missing_says_what_it_waits_for():
    waiting = [goal for goal in GOALS if goal.reason]
    assert waiting
    for goal in waiting:
        found = verdict(results(), goal.work)
        assert (found.met, found.measured) == (Met.UNMEASURED, goal.reason)


def test_the_reason_why_a_peer_was_skipped_is_told():
    made = rows([40.0], [1.0])
    made.rounds = made.rounds[:1]
    made.skipped["aio/rows-1024"] = "it ended"
    found = verdict(made, FORTY)
    assert (found.met, found.measured) == (Met.UNMEASURED, "aio: it ended")


def test_failed_calls_of_ours_miss_the_goal_whatever_the_figures():
    found = verdict(rows([99.0], [1.0], errors=2), FORTY)
    assert (found.met, found.measured) == (Met.NO, "2 calls of ours failed")


def test_failed_calls_of_the_other_side_do_not_make_a_goal_met():
    assert verdict(rows([99.0], [1.0], their_errors=1), FORTY).met is Met.UNMEASURED


def either_way(auto: list[float], calls: list[float], streams: list[float], *, failing: str = ""):
    clients = {"ours-auto": auto, "ours-unary": calls, "ours-stream": streams}
    made = [
        rounds("auto-64", name, {"rows_per_s": values}, errors=name == failing)
        for name, values in clients.items()
        if values
    ]
    found = results(*(each for series in made for each in series))
    return next(each for each in judge(found) if each.work.startswith(AUTO))


AUTO = "64 B rows, 64 callers: rows/s of 'auto'"


@pytest.mark.parametrize(
    ("calls", "streams", "met"),
    [
        ([100.0] * 3, [100.0] * 3, Met.YES),
        ([100.0] * 3, [106.0] * 3, Met.NO),
        ([106.0] * 3, [100.0] * 3, Met.NO),
        # Each is better in one round; the best of each round would be 110.
        ([110.0, 100.0, 90.0], [90.0, 100.0, 110.0], Met.YES),
    ],
)
def test_a_goal_against_several_is_one_against_the_best(
    calls: list[float], streams: list[float], met: Met
):
    assert either_way([100.0] * 3, calls, streams).met is met


def test_a_goal_against_several_is_not_measured_without_all_of_them():
    assert either_way([100.0], [100.0], []).met is Met.UNMEASURED
    assert either_way([100.0], [100.0], [100.0], failing="ours-stream").met is Met.UNMEASURED
    assert either_way([100.0], [100.0], [100.0], failing="ours-auto").met is Met.NO


def test_a_goal_judges_the_client_that_it_is_about():
    made = results(
        *rounds("stream-rows-64", "ours-stream", {"rows_per_s": [9.0]}),
        *rounds("stream-rows-64", "stream", {"rows_per_s": [1.0]}),
    )
    work = "64 B rows on one stream, 64 callers: rows/s against stream_infer"
    assert verdict(made, work).met is Met.UNMEASURED
    made.rounds += rounds("stream-rows-64", "ours-one-stream", {"rows_per_s": [1.3]})
    assert verdict(made, work).met is Met.NO


@pytest.mark.parametrize(
    ("client", "copies", "met"),
    [("ours", 1.0, Met.YES), ("ours", 1.01, Met.NO), ("ours-leased", 0.0, Met.YES),
     ("ours-leased", 0.01, Met.NO)],
)  # fmt: skip
def test_a_row_is_copied_once_and_one_that_is_written_in_place_not_at_all(
    client: str, copies: float, met: Met
):
    made = results(*rounds("images-64", client, {"copies_per_row": [copies] * 3}))
    (found,) = [
        each
        for each in judge(made)
        if each.work.endswith("copies a row") and each.met is not Met.UNMEASURED
    ]
    assert found.met is met


def test_the_wire_is_judged_by_who_uses_it():
    made = results(
        *rounds("images-64", "ours", {"rows_per_s": [9.0]}),
        *rounds("images-64", "ours-wire", {"rows_per_s": [1.1]}),
        *rounds("images-64", "aio", {"rows_per_s": [1.0]}),
    )
    assert verdict(made, "602,112 B rows, same host, 64 callers: rows/s").met is Met.YES
    assert verdict(made, "602,112 B rows over the wire, 64 callers: rows/s").met is Met.NO


def test_figures_of_one_process_are_judged_by_their_own_goals():
    made = results()
    made.figures["wire"] = [
        Figure("good", "µs", [1.0], [8.0], 0.25),
        Figure("bad", "µs", [4.0], [8.0], 0.25),
        Figure("no goal", "µs", [9.0], [8.0], None),
    ]
    found = {each.work: each.met for each in judge(made)}
    assert (found["good"], found["bad"]) == (Met.YES, Met.NO)
    assert "no goal" not in found


def test_a_run_is_good_unless_a_measured_goal_is_missed():
    assert all_met(judge(results()))
    assert all_met(judge(rows([40.0], [1.0])))
    assert not all_met(judge(rows([1.0], [1.0])))


def test_every_goal_is_measured_by_clients_that_run_its_workload():
    for goal in GOALS:
        if not goal.reason:
            clients = BY_NAME[goal.workload].clients
            assert {goal.subject, *goal.against} <= {*clients}
            assert {goal.subject, *goal.against} <= TITLES.keys()


@pytest.mark.parametrize(
    ("value", "text"), [(421_337.2, "421,337"), (99.96, "100"), (2.6, "2.6"), (0.03058, "0.0306")]
)
def test_numbers_are_told_with_the_digits_that_count(value: float, text: str):
    assert number(value) == text


def test_a_ratio_that_just_misses_is_not_told_as_the_goal():
    assert told(Spread((1.003,)), "×") == "1.003× (1.003 to 1.003)"  # noqa: RUF001 - as told
    assert told(Spread((5.0, 6.0, 7.0)), "µs") == "6 µs (5 to 7)"
