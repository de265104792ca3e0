"""Resizing against a plain reference and Pillow; placing against its own inverse."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tritonasync.processing.images import (
    Placement,
    Resize,
    resize_bilinear,
    rgb_to_grey,
)

SIDES = st.integers(1, 40)


def plain_resize(image, height, width):
    """One pixel at a time: half-pixel centres, edges repeated."""
    rows, columns = image.shape
    result = np.empty((height, width))
    for y in range(height):
        v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
        for x in range(width):
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = math.floor(v), math.floor(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            p, q = v - top, u - left
            result[y, x] = (
                image[top, left] * (1 - p) * (1 - q)
                + image[top, right] * (1 - p) * q
                + image[bottom, left] * p * (1 - q)
                + image[bottom, right] * p * q
            )
    return result


@settings(max_examples=50)
@given(hnp.arrays(np.uint8, st.tuples(SIDES, SIDES)), SIDES, SIDES)
def test_resizing_agrees_with_the_plain_reference(image, height, width):
    before = image.copy()
    resized = resize_bilinear(image, height, width)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, plain_resize(image, height, width), atol=1e-3)
    np.testing.assert_array_equal(image, before)


@given(hnp.arrays(np.uint8, st.tuples(SIDES, SIDES)), st.integers(1, 3), st.integers(1, 3))
def test_enlarging_agrees_with_pillow(image, rows, columns):
    """Pillow smooths when it shrinks; when it enlarges, it is plain bilinear as here."""
    height, width = image.shape[0] * rows, image.shape[1] * columns
    floats = image.astype(np.float32)
    expected = Image.fromarray(floats).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(resize_bilinear(image, height, width), expected, atol=1e-3)


@given(hnp.arrays(np.uint8, st.tuples(SIDES, SIDES, st.sampled_from([1, 3, 4]))), SIDES, SIDES)
def test_channels_are_resized_each_by_itself(image, height, width):
    resized = resize_bilinear(image, height, width)
    for channel in range(image.shape[2]):
        alone = resize_bilinear(image[..., channel], height, width)
        np.testing.assert_array_equal(resized[..., channel], alone)


def test_a_view_with_strides_is_resized_like_its_copy():
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 30), np.uint8).transpose(1, 2, 0)
    for view in (image, image[::-1, ::2]):
        np.testing.assert_array_equal(
            resize_bilinear(view, 17, 11), resize_bilinear(view.copy(), 17, 11)
        )


@pytest.mark.parametrize("size", [(20, 30), (9, 9), (64, 33)])
def test_a_float_image_is_left_alone(size):
    image = np.random.default_rng(0).random((20, 30, 3), np.float32)
    before = image.copy()
    resize_bilinear(image, *size)[...] = 7
    np.testing.assert_array_equal(image, before)


def test_nan_goes_through_and_stays_where_it_is_blended():
    image = np.ones((40, 40, 3), np.float32)
    image[20, 20] = np.nan
    assert np.isnan(resize_bilinear(image, 40, 40)[20, 20]).all()
    doubled = np.isnan(resize_bilinear(image, 80, 80)).all(axis=2)
    assert doubled[40, 40]
    rows, columns = np.nonzero(doubled)
    assert rows.min() >= 38
    assert rows.max() <= 43
    assert (columns.min(), columns.max()) == (rows.min(), rows.max())


@pytest.mark.parametrize("size", [(20, 20), (1, 3000), (40_000, 1), (70, 900)])
def test_brightness_is_pillows(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    grey = rgb_to_grey(image)
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(image).convert("L")))
    np.testing.assert_array_equal(rgb_to_grey(image[::-1, ::-1]), grey[::-1, ::-1])


def test_brightness_of_floats_is_not_rounded():
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    grey = rgb_to_grey(image / np.float64(255))
    assert (grey.shape, grey.dtype) == ((20, 20, 1), np.float32)
    np.testing.assert_allclose(
        grey[..., 0] * 255, np.asarray(Image.fromarray(image).convert("L")), atol=0.501
    )


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000), st.integers(1, 1000))
def test_a_letterboxed_image_fits_touches_two_edges_and_is_centred(rows, columns, height, width):
    fit = Placement.fit(rows, columns, height, width)
    assert 1 <= fit.height <= height
    assert 1 <= fit.width <= width
    assert fit.height == height or fit.width == width
    assert fit.top == (height - fit.height) // 2
    assert fit.left == (width - fit.width) // 2
    scale = min(height / rows, width / columns)
    assert abs(fit.height - rows * scale) <= 0.5 or fit.height == 1
    assert abs(fit.width - columns * scale) <= 0.5 or fit.width == 1


@given(
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.integers(8, 700),
    st.integers(8, 700),
    st.sampled_from(get_args(Resize)),
    hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)),
)
def test_boxes_go_to_the_canvas_and_back(rows, columns, height, width, resize, shares):
    fit = Placement.fit(rows, columns, height, width, resize)
    boxes = shares * np.array([columns, rows, columns, rows], np.float32)
    on_canvas = fit.to_canvas(boxes)
    slack = 1e-6 * max(fit.width, 1000)
    assert np.all(on_canvas[:, [0, 2]] >= fit.left - slack)
    assert np.all(on_canvas[:, [0, 2]] <= fit.left + fit.width + slack)
    # a thin image squeezed to a pixel leaves little to compute back from
    np.testing.assert_allclose(fit.to_image(on_canvas), boxes, atol=1e-3 * max(rows, columns))


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 99), st.integers(1, 99))
def test_the_whole_image_is_the_whole_of_its_place(rows, columns, height, width):
    """Sizes on the canvas are rounded, so the scales of x and y differ a little."""
    fit = Placement.fit(rows, columns, height, width)
    whole = np.array([0, 0, columns, rows], np.float32)
    edges = [fit.left, fit.top, fit.left + fit.width, fit.top + fit.height]
    np.testing.assert_allclose(fit.to_canvas(whole), edges, rtol=1e-5)
    np.testing.assert_allclose(fit.to_image(np.array(edges, np.float32)), whole, rtol=1e-4)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 99), st.integers(1, 99))
def test_stretched_an_image_takes_the_whole_canvas(rows, columns, height, width):
    fit = Placement.fit(rows, columns, height, width, "stretch")
    assert fit == Placement(rows, columns, height, width, top=0, left=0)
    assert fit.window(height, width) == ((0, height), (0, width))


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 99), st.integers(1, 99))
def test_cropped_an_image_covers_the_canvas_by_its_shorter_side(rows, columns, height, width):
    """The sizes and the middle are those of torchvision's Resize and CenterCrop."""
    fit = Placement.fit(rows, columns, height, width, "crop")
    assert fit.height >= height
    assert fit.width >= width
    assert fit.height == height or fit.width == width
    scale = max(height / rows, width / columns)
    assert -1e-6 <= rows * scale - fit.height < 1 + 1e-6 or fit.height == height
    assert -1e-6 <= columns * scale - fit.width < 1 + 1e-6 or fit.width == width
    assert (-fit.top, -fit.left) == (
        round((fit.height - height) / 2.0),
        round((fit.width - width) / 2.0),
    )
    (top, bottom), (left, right) = fit.window(height, width)
    assert (bottom - top, right - left) == (height, width)
    assert fit.place(np.zeros((height, width, 1))).shape == (height, width, 1)


@given(
    hnp.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))),
    SIDES,
    SIDES,
    st.sampled_from(["letterbox", "stretch", "crop"]),
)
def test_a_window_is_cut_from_the_whole(image, height, width, resize):
    fit = Placement.fit(image.shape[0], image.shape[1], height, width, resize)
    window = fit.window(height, width)
    whole = resize_bilinear(image, fit.height, fit.width)
    part = resize_bilinear(image, fit.height, fit.width, window)
    np.testing.assert_array_equal(part, whole[slice(*window[0]), slice(*window[1])])
    assert fit.place(np.zeros((height, width, 3))).shape == part.shape


@pytest.mark.parametrize("shape", [(1, 200_000, 3), (200_000, 1, 3)])
def test_the_whole_of_a_long_thin_image_is_never_made(shape):
    """The whole of it would be 224 x 44,800,000 pixels, 40 GB."""
    image = np.zeros(shape, np.uint8)
    fit = Placement.fit(*shape[:2], 224, 224, "crop")
    assert max(fit.height, fit.width) == 224 * 200_000
    assert resize_bilinear(image, fit.height, fit.width, fit.window(224, 224)).shape[:2] == (
        224,
        224,
    )


def test_not_resized_an_image_stays_where_it_is():
    fit = Placement.fit(100, 200, 100, 200, "none")
    assert fit == Placement(100, 200, 100, 200, top=0, left=0)


def test_the_corners_of_the_image_are_the_corners_of_its_place():
    fit = Placement.fit(100, 200, 64, 64)
    assert fit == Placement(100, 200, height=32, width=64, top=16, left=0)
    whole = np.array([0, 0, 200, 100], np.float32)
    assert fit.to_canvas(whole).tolist() == [0, 16, 64, 48]
    assert fit.to_image(np.array([0, 16, 64, 48], np.float32)).tolist() == whole.tolist()


def test_a_spot_lands_where_its_box_says():
    image = np.zeros((100, 200, 1), np.uint8)
    image[40:60, 120:160] = 200
    canvas = np.full((64, 64, 1), 7, np.float32)
    fit = Placement.fit(100, 200, 64, 64)
    fit.place(canvas)[...] = resize_bilinear(image, fit.height, fit.width)
    assert np.all(canvas[:16] == 7)
    assert np.all(canvas[48:] == 7)
    rows, columns = np.nonzero(canvas[16:48, :, 0] > 100)
    found = [columns.min(), rows.min() + 16, columns.max() + 1, rows.max() + 17]
    expected = fit.to_canvas(np.array([120, 40, 160, 60], np.float32))
    np.testing.assert_allclose(found, expected, atol=1)
