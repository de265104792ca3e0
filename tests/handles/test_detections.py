"""The results of a detector: their form, JSON, drawing."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from tritonasync.core.errors import InvalidInputError, MissingExtraError
from tritonasync.handles.detections import Detection, Detections


@pytest.fixture
def found():
    return Detections(
        np.array([[10, 20, 50, 60], [30, 5, 70, 25]], np.float32),
        np.array([0.75, 0.5], np.float32),
        np.array([1, 0]),
        ("dog", "cat"),
        height=80,
        width=100,
    )


def test_detections_are_a_sequence(found):
    assert len(found) == 2
    assert found[0] == Detection((10, 20, 50, 60), 0.75, 1, "dog")
    assert [one.label for one in found] == ["dog", "cat"]
    assert found[-1].class_id == 0
    with pytest.raises(IndexError):
        found[2]


def test_slices_are_detections(found):
    tail = found[1:]
    assert isinstance(tail, Detections)
    assert tail.labels == ("cat",)
    assert tail.boxes.tolist() == [[30, 5, 70, 25]]
    assert (tail.height, tail.width) == (80, 100)


def test_detections_cannot_be_changed(found):
    with pytest.raises(AttributeError):
        found.boxes = None


def test_results_are_ready_for_json(found):
    as_json = json.loads(json.dumps(found.to_dict()))
    assert (as_json["height"], as_json["width"]) == (80, 100)
    assert as_json["detections"][0] == {
        "box": [10, 20, 50, 60],
        "score": 0.75,
        "class_id": 1,
        "label": "dog",
    }


def test_results_show_themselves(found):
    assert repr(found) == "<Detections: 2 in 80 x 100 pixels: dog 0.75, cat 0.5>"


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((80, 100), np.uint8),
        np.zeros((80, 100, 1), np.uint8),
        np.zeros((80, 100, 3), np.uint8),
        np.zeros((80, 100, 4), np.uint8),
        np.zeros((80, 100, 3), np.float32),
        np.full((80, 100), np.nan),
        Image.new("L", (100, 80)),
    ],
)
def test_boxes_are_drawn_on_a_copy_in_colour(found, image):
    before = np.array(image)
    drawn = found.draw(image)
    assert (drawn.mode, drawn.size) == ("RGB", (100, 80))
    np.testing.assert_array_equal(np.asarray(image), before)
    pixels = np.asarray(drawn)
    assert pixels[40, 10].tolist() == pixels[59, 30].tolist() == [60, 180, 75]  # left, bottom
    assert pixels[15, 69].tolist() == pixels[24, 60].tolist() == [230, 25, 75]
    assert pixels[40, 30].tolist() == [0, 0, 0]  # inside
    assert pixels[70, 90].tolist() == [0, 0, 0]  # outside


def test_float_images_keep_their_brightness(found):
    drawn = np.asarray(found[:0].draw(np.full((80, 100), 0.5)))
    assert np.unique(drawn).tolist() == [128]


def test_nothing_found_draws_nothing(found):
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(found[:0].draw(image)), image)


def test_boxes_at_the_edges_can_be_drawn():
    boxes = np.array([[0, 0, 100, 80], [99.5, 79.5, 100, 80], [0, 0, 0.25, 0.25]], np.float32)
    count = len(boxes)
    found = Detections(
        boxes,
        np.ones(count, np.float32),
        np.arange(count),
        ("a" * 200, "é", ""),
        height=80,
        width=100,
    )
    assert found.draw(np.zeros((80, 100), np.uint8)).size == (100, 80)


def test_an_image_of_another_size_is_refused(found):
    with pytest.raises(InvalidInputError, match=r"80 x 100 pixels.*got 100 x 80"):
        found.draw(np.zeros((100, 80), np.uint8))


@pytest.mark.parametrize(
    "image",
    [np.zeros((80, 100), np.int64), np.zeros((1, 80, 100, 3), np.uint8), np.zeros((80, 100, 2))],
)
def test_what_is_no_image_is_refused(found, image):
    with pytest.raises(InvalidInputError, match="expected an image"):
        found.draw(image)


def test_drawing_without_pillow_says_what_to_install(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError) as caught:
        found.draw(np.zeros((80, 100), np.uint8))
    assert str(caught.value) == (
        "Detections.draw() needs pillow, which is not installed: pip install 'tritonasync[images]'"
    )
    assert isinstance(caught.value.__cause__, ImportError)
