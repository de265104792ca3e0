import pytest

from benchmarks.samples import Figure, Spread, ratio, spread


def test_the_median_and_the_ends_of_a_spread():
    values = Spread((3.0, 1.0, 10.0))
    assert (values.median, values.low, values.high) == (3.0, 1.0, 10.0)


def test_noise_is_half_of_the_range_as_a_share_of_the_median():
    assert Spread((90.0, 100.0, 120.0)).noise == pytest.approx(0.15)
    assert Spread((5.0,)).noise == 0
    assert Spread((0.0, 0.0)).noise == 0


def test_a_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Spread(())
    assert spread({}) is None


def test_a_ratio_is_taken_round_by_round_so_that_drift_cancels_out():
    ours, theirs = {0: 100.0, 1: 10.0, 2: 50.0}, {0: 50.0, 1: 5.0, 2: 25.0}
    found = ratio(ours, theirs)
    assert found is not None
    assert found.values == (2.0, 2.0, 2.0)


def test_a_round_that_one_side_lacks_is_left_out():
    found = ratio({0: 4.0, 1: 9.0, 3: 1.0}, {1: 3.0, 2: 1.0, 3: 0.0})
    assert found is not None
    assert found.values == (3.0,)


def test_sides_without_a_common_round_have_no_ratio():
    assert ratio({0: 1.0}, {1: 1.0}) is None


def test_a_figure_has_the_ratio_of_each_pair():
    assert Figure("x", "µs", (1.0, 3.0), (2.0, 2.0), None).ratio.values == (0.5, 1.5)
