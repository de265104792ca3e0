"""Rows of different lengths: their groups, and the arrays they are filled up to."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.handles.text.buckets import buckets_up_to, by_bucket, by_length, filled_up, mask_of

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (256, (16, 32, 64, 128, 256)),
        (300, (16, 32, 64, 128, 256, 300)),
        (16, (16,)),
        (5, (5,)),
    ],
)
def test_buckets_double_up_to_the_limit(limit, expected):
    assert buckets_up_to(limit) == expected


def test_without_a_limit_buckets_go_on_far():
    buckets = buckets_up_to(None)
    assert buckets[0] == 16
    assert all(high == 2 * low for low, high in pairwise(buckets))
    assert buckets[-1] == 1 << 20


@given(LENGTHS)
def test_each_row_is_in_the_group_of_the_smallest_bucket_that_holds_it(lengths):
    buckets = buckets_up_to(max(lengths))
    groups = by_bucket(lengths, buckets)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    tops = []
    for group in groups:
        assert group == sorted(group)
        fits = {min(b for b in buckets if b >= lengths[row]) for row in group}
        assert len(fits) == 1
        tops += fits
    assert tops == sorted(set(tops))


@given(LENGTHS)
def test_by_length_rows_of_a_group_are_equally_long(lengths):
    groups = by_length(lengths)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert [{lengths[row] for row in group} for group in groups] == [
        {length} for length in sorted(set(lengths))
    ]


@given(
    st.lists(st.lists(st.integers(-5, 9), max_size=7), min_size=1, max_size=6),
    st.sampled_from([np.int32, np.int64]),
    st.integers(7, 9),
)
def test_rows_come_first_and_filling_after(rows, dtype, length):
    mask = mask_of([len(row) for row in rows], length)
    array = filled_up(rows, mask, 77, np.dtype(dtype))
    assert array.dtype == dtype
    for row, flags, got in zip(rows, mask.tolist(), array.tolist(), strict=True):
        assert got == row + [77] * (length - len(row))
        assert flags == [True] * len(row) + [False] * (length - len(row))
