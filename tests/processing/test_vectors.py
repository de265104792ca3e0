"""The arithmetic of scores and embeddings, against plain Python and exact properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tritonasync.core.errors import InvalidInputError
from tritonasync.processing.vectors import (
    first_token,
    l2_normalise,
    last_token,
    mean_of_tokens,
    sigmoid,
    similarity,
    softmax,
)

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


def test_softmax_of_logits_as_far_apart_as_can_be_warns_of_nothing():
    largest = float(np.finfo(np.float32).max)
    assert softmax(np.array([[largest, -largest]], np.float32)).tolist() == [[1, 0]]


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


# --- pooling and similarity --------------------------------------------------------------------

TOKENS = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 6).flatmap(
        lambda length: st.tuples(
            hnp.arrays(np.float32, (rows, length, 3), elements=FLOATS),
            hnp.arrays(np.bool_, (rows, length)),
        )
    )
)

PLAIN = {
    mean_of_tokens: lambda real: [math.fsum(axis) / len(real) for axis in zip(*real, strict=True)],
    first_token: lambda real: real[0],
    last_token: lambda real: real[-1],
}


@pytest.mark.parametrize("pool", PLAIN)
@given(TOKENS)
def test_pooling_agrees_with_its_definition_whatever_stands_beside_the_mask(pool, case):
    tokens, mask = case
    spoilt = np.where(mask[:, :, None], tokens, np.float32(np.nan))
    before = spoilt.copy()
    result = pool(spoilt, mask)
    assert result.dtype == np.float32
    assert result.shape == (len(tokens), 3)
    for row, flags, got in zip(tokens.tolist(), mask.tolist(), result.tolist(), strict=True):
        real = [token for token, flag in zip(row, flags, strict=True) if flag]
        expected = PLAIN[pool](real) if real else [0.0] * 3
        size = max((abs(value) for token in real for value in token), default=0)
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-6 * size + 1e-45)
    np.testing.assert_array_equal(spoilt, before)


@pytest.mark.parametrize("pool", PLAIN)
def test_nan_in_a_real_token_spoils_its_own_row_only(pool):
    tokens = np.ones((2, 3, 4), np.float32)
    tokens[0] = np.nan
    result = pool(tokens, np.ones((2, 3), np.bool_))
    assert np.isnan(result[0]).all()
    assert result[1].tolist() == [1] * 4


def test_the_mean_of_large_vectors_does_not_overflow():
    tokens = np.full((1, 4, 2), 3e38, np.float32)
    np.testing.assert_allclose(mean_of_tokens(tokens, np.ones((1, 4), np.bool_)), 3e38, rtol=1e-6)


def test_rows_may_be_filled_up_on_the_left():
    tokens = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    mask = np.array([[False, True, True, False]])
    assert first_token(tokens, mask).tolist() == [[3, 4, 5]]
    assert last_token(tokens, mask).tolist() == [[6, 7, 8]]


VECTORS = hnp.arrays(np.float32, (3, 4), elements=FLOATS)


@given(VECTORS, VECTORS)
def test_similarity_is_the_cosine_of_each_pair(a, b):
    result = similarity(a, b)
    assert result.dtype == np.float32
    assert result.shape == (3, 3)
    assert (np.abs(result) <= 1).all()
    for one, got in zip(a.tolist(), result.tolist(), strict=True):
        for other, cosine in zip(b.tolist(), got, strict=True):
            lengths = math.hypot(*one), math.hypot(*other)
            expected = 0.0
            if all(lengths):
                pairs = zip(one, other, strict=True)
                expected = math.fsum(x / lengths[0] * (y / lengths[1]) for x, y in pairs)
            assert cosine == pytest.approx(expected, abs=1e-5)


def test_similarity_takes_single_vectors_and_lists():
    a, b = [[1, 0], [3, 4]], [0.0, 2.0]
    np.testing.assert_allclose(similarity(a, b), [0, 0.8], atol=1e-6)
    np.testing.assert_allclose(similarity(b, a), [0, 0.8], atol=1e-6)
    assert similarity(a, np.zeros((5, 2))).shape == (2, 5)
    assert float(similarity(b, b)) == 1
    assert similarity(b, b).shape == ()
    assert similarity(np.empty((0, 2)), a).shape == (0, 2)


def test_similarity_to_a_zero_vector_is_zero_and_to_nan_is_nan():
    a = np.array([[0, 0], [np.nan, 1], [1, 1], [np.inf, 0]], np.float32)
    result = similarity(a, [[0, 0], [1, 1]])
    np.testing.assert_allclose(
        result, [[0, 0], [np.nan, np.nan], [0, 1], [np.nan, np.nan]], atol=1e-6
    )


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[1, 2, 3]], [[1, 2]], r"expected vectors of one length, got a \[1, 3\] and b \[1, 2\]"),
        ([[[1.0]]], [1.0], r"expected a to be real numbers \[N, D\], .* got float64 \[1, 1, 1\]"),
        ([1.0], 1.0, r"expected b to be .* got float64 \[\]"),
        (["a"], [1.0], r"expected a to be real numbers .* got <U1 \[1\]"),
        ([[1, 2], [3]], [1.0], "a is no array: "),
    ],
)
def test_what_is_no_vectors_is_refused(a, b, message):
    with pytest.raises(InvalidInputError, match=f"^similarity: {message}"):
        similarity(a, b)


class Elsewhere:
    """An array of another library that numpy cannot have: on a GPU, or with a gradient."""

    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


@pytest.mark.parametrize("error", [TypeError("use .get()"), RuntimeError("use .detach()")])
def test_vectors_that_numpy_cannot_read_are_refused_with_their_librarys_advice(error):
    with pytest.raises(InvalidInputError, match=r"similarity: b is no array: use \.\w+\(\)"):
        similarity([1, 0], Elsewhere(error))
