"""The arithmetic of scores and embeddings, against plain Python and exact properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tritonasync.processing.vectors import l2_normalise, sigmoid, softmax

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
MATRICES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=FLOATS
)
LOGITS = hnp.arrays(
    np.float32, (3, 5), elements=st.floats(-200, 200, width=32) | st.just(float("-inf"))
)


@given(LOGITS)
def test_softmax_agrees_with_its_definition(logits):
    result = softmax(logits)
    for row, got in zip(logits.tolist(), result.tolist(), strict=True):
        peak = max(row)
        if peak == -math.inf:
            assert all(math.isnan(value) for value in got)
            continue
        powers = [math.exp(value - peak) for value in row]
        assert got == pytest.approx([power / sum(powers) for power in powers], rel=1e-4, abs=1e-30)


@given(MATRICES)
def test_softmax_adds_up_to_one_and_leaves_its_argument_alone(logits):
    before = logits.copy()
    result = softmax(logits)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(logits, before)


@given(MATRICES)
def test_sigmoid_agrees_with_its_definition(logits):
    result = sigmoid(logits)
    assert result.dtype == np.float32
    for value, got in zip(logits.ravel().tolist(), result.ravel().tolist(), strict=True):
        expected = 1 / (1 + math.exp(-value)) if value > -700 else 0.0
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-37)


@given(MATRICES)
def test_normalised_vectors_have_length_one_and_their_direction(vectors):
    result = l2_normalise(vectors)
    assert result.dtype == np.float32
    assert result.shape == vectors.shape
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    expected = vectors / np.where(lengths == 0, 1, lengths)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1.0, 1e30, 3e38])
def test_the_size_of_a_vector_does_not_matter(size):
    result = l2_normalise(np.array([[3, 4]], np.float32) / 4 * np.float32(size))
    np.testing.assert_allclose(result, [[0.6, 0.8]], rtol=1e-3)


def test_a_zero_vector_stays_zero():
    assert l2_normalise(np.zeros((2, 3), np.float32)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("function", [softmax, sigmoid, l2_normalise])
def test_nan_spoils_its_own_vector_only(function):
    clean = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    spoilt = clean.copy()
    spoilt[0, 1] = np.nan
    result = function(spoilt)
    assert np.isnan(result[0, 1])
    np.testing.assert_array_equal(result[1], function(clean)[1])


@pytest.mark.parametrize("function", [softmax, sigmoid, l2_normalise])
def test_no_rows_and_no_columns_give_the_same_shape(function):
    for shape in [(0, 4), (4, 0)]:
        assert function(np.zeros(shape, np.float32)).shape == shape
