"""The demo's data: the split of the digits, and the generator of scenes."""

from itertools import islice

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the demo's digits come with scikit-learn")

from sklearn.datasets import load_digits

from examples.demo import digits
from examples.demo.scenes import INK, MOST_DIGITS, MOST_OVERLAP, SIDE, Scene, scenes


def some(count: int, *, seed: int = 5) -> list[Scene]:
    return list(islice(scenes(digits.training(), seed=seed), count))


def test_every_digit_is_either_for_training_or_held_out():
    images, labels = load_digits(return_X_y=True)
    seen, unseen = digits.training(), digits.held_out()
    assert (len(seen), len(unseen)) == (1348, 449)
    whole = np.empty((len(labels), 8, 8), np.float32)
    whole[3::4] = unseen.images
    whole[np.arange(len(labels)) % 4 != 3] = seen.images
    np.testing.assert_array_equal(whole.reshape(len(labels), -1), images / 16)
    np.testing.assert_array_equal(unseen.labels, labels[3::4])


def test_pixels_are_float32_from_0_to_1():
    images = digits.held_out().images
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)


def test_held_out_digits_have_every_class_in_fair_number():
    assert np.bincount(digits.held_out().labels).min() >= 35


def test_the_same_seed_gives_the_same_scenes():
    for one, other in zip(some(10), some(10), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_another_seed_gives_other_scenes():
    images = {scene.image.tobytes() for seed in range(3) for scene in some(5, seed=seed)}
    assert len(images) == 15


def test_the_shapes_and_types_of_a_scene():
    for scene in some(50):
        count = len(scene.labels)
        assert scene.image.shape == (SIDE, SIDE)
        assert scene.image.dtype == np.uint8
        assert scene.boxes.shape == (count, 4)
        assert scene.boxes.dtype == np.float32
        assert 1 <= count <= MOST_DIGITS


def test_boxes_lie_on_the_canvas_and_vary_in_size():
    boxes = np.concatenate([scene.boxes for scene in some(100)])
    assert boxes.min() >= 0
    assert boxes.max() <= SIDE
    heights = boxes[:, 3] - boxes[:, 1]
    assert heights.min() < 18
    assert heights.max() > 35


def test_a_box_bounds_bright_ink_and_hardly_any_other_box():
    for scene in some(50):
        for row, (left, top, right, bottom) in enumerate(scene.boxes.astype(int)):
            inside = scene.image[top:bottom, left:right] / 255
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.max() > INK / 2, "the box is wider than its digit"
            assert all(overlap(scene.boxes[row], box) <= MOST_OVERLAP for box in scene.boxes[:row])


def overlap(one, other) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(width, 0) * max(height, 0) / smaller
