"""The web benchmark, shortly: both applications answer alike, and rows share batches."""

import pytest

from benchmarks import web


@pytest.mark.server
def test_a_short_run_compares_equal_answers():
    figures = web.measure(rounds=1, seconds=0.2)
    assert len(figures) == 12
    for figure in figures:
        assert len(figure.ours) == len(figure.theirs) == 1
        assert figure.ratio.median > 0
    batches = [figure for figure in figures if "mean batch" in figure.name]
    assert len(batches) == 4
    assert all(figure.theirs[0] > 8 for figure in batches)
