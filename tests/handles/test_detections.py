"""The results of a detector: their form, JSON, drawing."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tritonasync.core.errors import InvalidInputError, MissingExtraError
from tritonasync.handles.vision.detections import Detection, Detections
from tritonasync.handles.vision.drawing import colour_of


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


def encoded(kind, orientation=1):
    """An image of 80 x 100 pixels, grey from left to right, as a file that is turned or not."""
    upright = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8), (80, 1)))
    stored = upright.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.fixture(params=["bytes", "path", "str", "pillow", "turned bytes"])
def file(request, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encoded("PNG"))
    return {
        "bytes": path.read_bytes(),
        "path": path,
        "str": str(path),
        "pillow": Image.open(io.BytesIO(path.read_bytes())),
        "turned bytes": encoded("PNG", orientation=6),
    }[request.param]


def test_files_are_drawn_on_and_cut_upright(found, file):
    drawn = np.asarray(found[:0].draw(file))
    np.testing.assert_array_equal(drawn[..., 0], np.tile(np.arange(100), (80, 1)))
    first, second = found.crops(file)
    assert first.shape == (40, 40, 1)
    assert second[0, :, 0].tolist() == list(range(30, 70))


def test_what_cannot_be_read_is_refused_by_name(found, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(InvalidInputError, match=r"file '.*no\.png': expected PNG"):
        found.draw(tmp_path / "no.png")
    with pytest.raises(InvalidInputError, match="a Pillow image, bytes or a path, got int"):
        found.crops(3)


def test_crops_are_views_of_the_pixels_that_boxes_touch(found):
    image = np.arange(80 * 100 * 3).reshape(80, 100, 3)
    first, second = found.crops(image)
    np.testing.assert_array_equal(first, image[20:60, 10:50])
    np.testing.assert_array_equal(second, image[5:25, 30:70])
    assert np.shares_memory(first, image)
    assert [crop.shape for crop in found.crops(image[..., 0])] == [(40, 40), (20, 40)]


def test_crops_have_a_margin_within_the_image(found):
    image = np.arange(80 * 100).reshape(80, 100)
    first, second = found.crops(image, margin=0.5)
    np.testing.assert_array_equal(first, image[0:80, 0:70])
    np.testing.assert_array_equal(second, image[0:35, 10:90])
    for margin in (-1, float("nan"), "much"):
        with pytest.raises(InvalidInputError, match=f"margin is 0 or more, not {margin!r}"):
            found.crops(image, margin=margin)


@given(
    hnp.arrays(np.float32, (4,), elements=st.floats(0, 1, width=32)),
    st.floats(0, 2),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_a_crop_covers_its_box_and_is_never_empty(shares, margin, height, width):
    low, high = np.minimum(shares[:2], shares[2:]), np.maximum(shares[:2], shares[2:])
    box = np.concatenate([low, high]) * [width, height, width, height]
    found = Detections(
        box[None].astype(np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int64),
        ("a",),
        height=height,
        width=width,
    )
    y, x = np.mgrid[:height, :width]
    (ys,), (xs,) = found.crops(y, margin=margin), found.crops(x, margin=margin)
    assert ys.size == xs.size >= 1
    left, top, right, bottom = found.boxes[0]
    assert xs.min() <= min(left, width - 1)
    assert xs.max() + 1 >= right
    assert ys.min() <= min(top, height - 1)
    assert ys.max() + 1 >= bottom


def test_a_class_has_one_colour_whatever_else_is_in_the_image(found):
    image = np.zeros((80, 100), np.uint8)
    whole, alone = np.asarray(found.draw(image)), np.asarray(found[1:].draw(image))
    assert whole[24, 60].tolist() == alone[24, 60].tolist()


def test_every_class_has_a_colour_of_its_own():
    assert len({colour_of(class_id) for class_id in range(300)}) == 300


def test_text_stays_within_the_image_and_can_be_read():
    boxes = np.array([[80, 0, 100, 80]], np.float32)
    for class_id in range(40):
        found = Detections(
            boxes, np.ones(1, np.float32), np.array([class_id]), ("cat",), height=80, width=100
        )
        drawn = np.asarray(found.draw(np.zeros((80, 100), np.uint8)))
        background = drawn[1, 98].astype(int)
        assert background.tolist() == list(colour_of(class_id))
        assert drawn[1, 60].tolist() == background.tolist()  # it begins left of its box
        label = drawn[2:12, 60:98].reshape(-1, 3).astype(int) @ [299, 587, 114] // 1000
        fill = background @ [299, 587, 114] // 1000
        assert max(abs(label - fill)) >= 100  # letters stand out


def test_letters_are_larger_on_larger_images(found):
    def letters(side):
        one = Detections(
            np.array([[0, side / 2, side, side]], np.float32),
            np.ones(1, np.float32),
            np.zeros(1, np.int64),
            ("cat",),
            height=side,
            width=side,
        )
        drawn = np.asarray(one.draw(np.zeros((side, side), np.uint8)))
        return np.count_nonzero(drawn[: side // 2, 2, 0])

    assert letters(2000) > 2 * letters(200) > 10


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
