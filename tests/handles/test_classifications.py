"""What classifiers answer: a sequence, ready for JSON, equal by what is in it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tritonasync.handles.classifications import Choice, Classifications


@pytest.fixture
def results():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], np.float32)
    return Classifications(scores, ("a", "b", "c"), model="digits", version="1")


def test_classifications_are_a_sequence(results):
    assert len(results) == 3
    assert [row.label for row in results] == ["b", "a", "c"]
    assert results[-1].index == 2
    with pytest.raises(IndexError):
        results[3]


def test_slices_are_classifications(results):
    tail = results[1:]
    assert isinstance(tail, Classifications)
    assert tail.labels == ("a", "c")
    assert (tail.model, tail.version, tail.classes) == ("digits", "1", ("a", "b", "c"))
    assert np.shares_memory(tail.scores, results.scores)


def test_top_gives_the_best_classes_best_first(results):
    top = results[1].top(2)
    assert [(c.label, c.index, c.score) for c in top] == [("a", 0, 0.5), ("b", 1, 0.25)]
    assert len(results[0].top(9)) == 3
    with pytest.raises(ValueError, match="k must be 1 or more"):
        results[0].top(0)


def test_results_are_ready_for_json(results):
    as_json = json.loads(json.dumps(results.to_dict()))
    assert as_json["model"] == "digits"
    assert as_json["version"] == "1"
    assert as_json["classifications"][1] == {"label": "a", "index": 0, "score": 0.5}


def test_json_has_no_nan_and_no_infinity():
    scores = np.array([[np.nan, np.nan], [np.inf, 0]], np.float32)
    results = Classifications(scores, ("a", "b"), choice=Choice(top_k=2))
    as_json = json.loads(json.dumps(results.to_dict(), allow_nan=False))
    assert as_json["classifications"][0] == {
        "label": "a",
        "index": 0,
        "score": None,
        "predictions": [
            {"label": "a", "index": 0, "score": None},
            {"label": "b", "index": 1, "score": None},
        ],
    }
    assert [each["score"] for each in as_json["classifications"][1]["predictions"]] == [None, 0.0]


def test_above_gives_several_labels_best_first(results):
    assert [c.label for c in results[1].above(0.2)] == ["a", "b", "c"]
    assert [c.label for c in results[1].above(0.25)] == ["a"]
    assert results[1].above(0.5) == ()
    spoilt = Classifications(np.array([[np.nan, 0.9]], np.float32), ("a", "b"))
    assert [c.label for c in spoilt[0].above(0.1)] == ["b"]


def test_results_are_equal_by_classes_and_scores(results):
    same = Classifications(results.scores.copy(), ("a", "b", "c"), model="other")
    assert results == same
    assert results[0] == same[0]
    assert hash(results[0]) == hash(same[0])
    assert results[0] in same
    assert same.index(results[2]) == 2
    assert results != Classifications(results.scores, ("a", "b", "d"))
    assert results != Classifications(results.scores + 1, ("a", "b", "c"))
    assert results != results[:2]
    assert results != [*results]
    assert results[0] != "b"
    with pytest.raises(TypeError, match="unhashable"):
        hash(results)


def test_nan_scores_are_equal_to_themselves():
    scores = np.array([[np.nan, 1]], np.float32)
    one, other = (Classifications(scores.copy(), ("a", "b")) for _ in range(2))
    assert one == other
    assert one[0] == other[0]


def test_rows_are_found_by_numpys_integers_and_nothing_else(results):
    assert results[np.int64(1)].label == "a"
    with pytest.raises(TypeError):
        results[np.array([0, 1])]


def test_results_show_themselves(results):
    assert repr(results) == "<Classifications of 'digits', 3 rows: b 0.7, a 0.5, c 1>"
    assert repr(results[0]) == "Classification(label='b', index=1, score=0.699999988079071)"


@given(hnp.arrays(np.float32, (3, 4), elements=st.sampled_from([0.0, 0.25, 0.5, np.inf, np.nan])))
def test_the_best_class_is_the_first_of_the_top(scores):
    results = Classifications(scores, ("a", "b", "c", "d"))
    for row, values in zip(results, scores.tolist(), strict=True):
        assert row.top(1)[0].index == row.index
        numbers = [value for value in values if not np.isnan(value)]
        best = values.index(max(numbers)) if numbers else 0
        assert row.index == best
    assert results.indices.tolist() == [row.index for row in results]
