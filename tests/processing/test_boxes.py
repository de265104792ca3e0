"""The geometry of boxes, against a plain reference that takes one pair at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tritonasync.processing import boxes as boxes_module
from tritonasync.processing.boxes import (
    area,
    clip,
    cxcywh_to_xyxy,
    iou_matrix,
    suppress,
    xyxy_to_cxcywh,
)

PIXELS = st.integers(-20, 40).map(float)


def boxes(max_count=12):
    """Whole pixels, so that sums are exact; some boxes are empty or inside out."""
    return hnp.arrays(np.float32, st.tuples(st.integers(0, max_count), st.just(4)), elements=PIXELS)


def plain_area(box):
    left, top, right, bottom = box
    return max(0.0, right - left) * max(0.0, bottom - top)


def plain_iou(a, b):
    shared = plain_area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = plain_area(a) + plain_area(b) - shared
    return shared / union if union > 0 else 0.0


def plain_suppress(all_boxes, scores, classes, threshold, limit):
    kept = []
    for candidate in sorted(range(len(scores)), key=lambda index: (-scores[index], index)):
        if len(kept) == limit:
            break
        if all(
            (classes is not None and classes[candidate] != classes[other])
            or plain_iou(all_boxes[candidate], all_boxes[other]) <= threshold
            for other in kept
        ):
            kept.append(candidate)
    return kept


@given(boxes())
def test_forms_convert_there_and_back(some):
    np.testing.assert_array_equal(cxcywh_to_xyxy(xyxy_to_cxcywh(some)), some)
    assert cxcywh_to_xyxy(some).dtype == np.float32


def test_centre_and_size_become_edges():
    assert cxcywh_to_xyxy(np.array([[10, 20, 4, 6]], np.float32)).tolist() == [[8, 17, 12, 23]]


@given(boxes())
def test_area_agrees_with_the_reference(some):
    assert area(some).tolist() == [plain_area(box) for box in some.tolist()]


@given(boxes(), boxes())
def test_overlap_agrees_with_the_reference(first, second):
    expected = [[plain_iou(a, b) for b in second.tolist()] for a in first.tolist()]
    got = iou_matrix(first, second)
    assert got.shape == (len(first), len(second))
    np.testing.assert_allclose(got, np.reshape(expected, got.shape), rtol=1e-6)


@given(boxes(), st.integers(1, 30), st.integers(1, 30))
def test_clipped_boxes_lie_in_the_image(some, height, width):
    clipped = clip(some, height, width)
    assert clipped.dtype == np.float32
    assert np.all(clipped >= 0)
    assert np.all(clipped[:, [0, 2]] <= width)
    assert np.all(clipped[:, [1, 3]] <= height)
    inside = np.all((some >= 0) & (some <= [width, height, width, height]), axis=1)
    np.testing.assert_array_equal(clipped[inside], some[inside])


@given(
    st.data(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.none() | st.integers(0, 4), st.booleans()
)
def test_suppression_agrees_with_the_reference(data, threshold, limit, by_class):
    some = data.draw(boxes(20))
    count = len(some)
    # few values, so that equal scores and equal classes are common
    scores = data.draw(hnp.arrays(np.float32, count, elements=st.sampled_from([0.125, 0.5, 0.875])))
    classes = data.draw(hnp.arrays(np.int64, count, elements=st.integers(0, 2)))
    chosen = classes if by_class else None
    got = suppress(some, scores, chosen, iou_threshold=threshold, limit=limit)
    expected = plain_suppress(
        some.tolist(), scores.tolist(), chosen, threshold, count if limit is None else limit
    )
    assert got.tolist() == expected


@given(st.data(), st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(0, 12))
def test_suppression_in_many_small_blocks_is_the_same(data, block, pairs, limit):
    some = data.draw(boxes(25))
    scores = data.draw(
        hnp.arrays(np.float32, len(some), elements=st.sampled_from([0.125, 0.5, 0.875]))
    )
    classes = data.draw(hnp.arrays(np.int64, len(some), elements=st.integers(0, 1)))
    whole = suppress(some, scores, classes, iou_threshold=0.3, limit=limit)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(boxes_module, "_BLOCK", block)
        patched.setattr(boxes_module, "_PAIRS", pairs)
        got = suppress(some, scores, classes, iou_threshold=0.3, limit=limit)
    assert got.tolist() == whole.tolist()


@pytest.mark.parametrize("limit", [None, 50])
@pytest.mark.parametrize("spread", [5.0, 200.0])
def test_hundreds_of_boxes_are_suppressed_as_one_by_one(spread, limit):
    chance = np.random.default_rng(int(spread))
    near = chance.normal(0, spread, (700, 2)).astype(np.float32)
    some = np.hstack([near, near + chance.uniform(1, 40, (700, 2)).astype(np.float32)])
    scores, classes = chance.random(700, np.float32), chance.integers(0, 3, 700)
    overlap = iou_matrix(some, some)
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        rivals = [other for other in kept if classes[other] == classes[index]]
        if not (overlap[index, rivals] > 0.45).any():
            kept.append(int(index))
    got = suppress(some, scores, classes, iou_threshold=0.45, limit=limit)
    assert got.tolist() == kept[:limit]
    assert len(kept) > 50


def test_boxes_of_other_classes_do_not_suppress_each_other():
    same = np.array([[0, 0, 10, 10]] * 2, np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert suppress(same, scores, np.array([0, 1]), iou_threshold=0.5).tolist() == [0, 1]
    assert suppress(same, scores, iou_threshold=0.5).tolist() == [0]


@pytest.mark.parametrize("limit", [None, 3])
def test_no_boxes_give_no_indices(limit):
    empty = np.zeros((0, 4), np.float32)
    kept = suppress(empty, np.zeros(0, np.float32), iou_threshold=0.5, limit=limit)
    assert kept.dtype == np.int64
    assert kept.shape == (0,)
