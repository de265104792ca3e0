"""Images in: which are taken, layout and size by the signature, scale, channels, record."""

from __future__ import annotations

import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.handles.fakes import spec
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConfigurationError, DeadlineExceededError, InvalidInputError
from tritonasync.handles.binding import bind_some
from tritonasync.handles.frames import PAD, canvas_of, frames
from tritonasync.handles.signature import signature_of


def binding(shape, datatype="FP32", max_batch_size=8):
    served = spec([("IMAGE", datatype, shape)], max_batch_size=max_batch_size)
    return bind_some(signature_of(served, "safe"), None, None)


def canvas(shape=(-1, 3, 32, 32), datatype="FP32", layout=None, image_size=None):
    return canvas_of(binding(shape, datatype), layout, image_size)


def rendered(images, **options):
    to = canvas(**options)
    return to.render(frames(images, to), NEVER)


def random_image(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# --- what the model takes ---


@pytest.mark.parametrize(
    ("shape", "layout", "size", "channels"),
    [
        ((-1, 3, 32, 48), "NCHW", (32, 48), 3),
        ((-1, 1, 32, 48), "NCHW", (32, 48), 1),
        ((-1, 32, 48, 3), "NHWC", (32, 48), 3),
        ((-1, 32, 48, 1), "NHWC", (32, 48), 1),
    ],
)
def test_layout_and_size_are_found_in_the_signature(shape, layout, size, channels):
    found = canvas(shape)
    assert (found.layout, (found.height, found.width), found.channels) == (layout, size, channels)


def test_a_size_left_open_is_given_by_the_user():
    found = canvas((-1, 3, -1, -1), image_size=(40, 60))
    assert (found.height, found.width) == (40, 60)
    assert canvas((-1, 3, 40, -1), image_size=(40, 60)).width == 60


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shape": (-1, 3, -1, -1)}, "of a fixed size; give image_size=(height, width)"),
        ({"shape": (-1, 3, 32, 32), "image_size": (64, 64)}, "that takes the image_size (64, 64)"),
        ({"shape": (-1, 3, 32, 3)}, 'say which by layout="NCHW" or "NHWC"'),
        ({"shape": (-1, 5, 32, 32)}, 'say which by layout="NCHW" or "NHWC"'),
        ({"shape": (-1, -1, -1, -1)}, 'say which by layout="NCHW" or "NHWC"'),
        ({"shape": (-1, 3, 32, 32), "layout": "NHWC"}, "with 1 or 3 channels (in layout 'NHWC')"),
        ({"shape": (-1, 3072)}, "for images: [batch, C, H, W] or [batch, H, W, C]"),
        ({"datatype": "INT64"}, "for images: [batch, C, H, W] or [batch, H, W, C]"),
        ({"datatype": "BYTES"}, "for images: [batch, C, H, W] or [batch, H, W, C]"),
    ],
)
def test_an_input_that_cannot_be_understood_is_refused(options, expected):
    with pytest.raises(ConfigurationError) as caught:
        canvas(**options)
    assert "model 'net': expected an input " in str(caught.value)
    assert expected in str(caught.value)
    assert "got 'IMAGE'" in str(caught.value)


def test_an_ambiguous_layout_is_the_users_choice():
    assert canvas((-1, 3, 32, 3), layout="NHWC").height == 3
    assert canvas((-1, 3, 32, 3), layout="NCHW").height == 32


# --- rendering ---


@pytest.mark.parametrize("shape", [(-1, 3, 32, 32), (-1, 32, 32, 3)])
def test_pixels_go_from_0_to_1(shape):
    image = random_image(32, 32, 3)
    tensor, (place,) = rendered([image], shape=shape)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    pixels = tensor[0] if shape[-1] == 3 else tensor[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels, image / np.float32(255))
    assert (place.top, place.left, place.height, place.width) == (0, 0, 32, 32)


def test_float_images_are_taken_as_they_are():
    image = np.random.default_rng(0).random((32, 32, 3))
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        tensor, _ = rendered([image.astype(dtype)])
        np.testing.assert_array_equal(
            tensor[0].transpose(1, 2, 0), image.astype(dtype).astype("f4")
        )


def test_images_of_mixed_sizes_are_letterboxed_each_by_itself():
    images = [random_image(10, 20, 3), random_image(64, 16, 3), random_image(32, 32)]
    tensor, places = rendered(images)
    assert tensor.shape == (3, 3, 32, 32)
    sizes = [(p.image_height, p.image_width, p.height, p.width) for p in places]
    assert sizes == [(10, 20, 16, 32), (64, 16, 32, 8), (32, 32, 32, 32)]
    pad = np.float32(PAD / 255)
    for image, place in zip(tensor, places, strict=True):
        covered = np.zeros((32, 32, 1), bool)
        place.place(covered)[...] = True
        assert (image[:, ~covered[..., 0]] == pad).all()


def test_grey_becomes_rgb_and_rgb_grey():
    grey = random_image(32, 32)
    tensor, _ = rendered([grey, grey[..., None]])
    for channel in range(3):
        np.testing.assert_array_equal(tensor[:, channel], np.stack([grey, grey]) / np.float32(255))
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    tensor, _ = rendered([red], shape=(-1, 1, 32, 32))
    np.testing.assert_allclose(tensor, 0.299, rtol=1e-6)


@pytest.mark.parametrize(
    "image", [random_image(32, 32, 3), random_image(32, 32, 3) / np.float32(255)]
)
def test_a_uint8_model_gets_0_to_255(image):
    tensor, _ = rendered([image], datatype="UINT8", shape=(-1, 32, 32, 3))
    assert tensor.dtype == np.uint8
    np.testing.assert_array_equal(tensor[0], random_image(32, 32, 3))


def test_a_uint8_canvas_is_padded_in_grey_and_rounded():
    tensor, (place,) = rendered([random_image(10, 20, 3)], datatype="UINT8")
    assert (tensor[:, :, : place.top] == PAD).all()


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [("FP16", np.float16), ("FP64", np.float64), ("BF16", ml_dtypes.bfloat16)],
)
def test_other_float_models_get_their_own_dtype(datatype, dtype):
    image = random_image(32, 32, 3)
    tensor, _ = rendered([image], datatype=datatype)
    assert tensor.dtype == dtype
    exact = (image / np.float32(255)).astype(dtype)
    np.testing.assert_array_equal(tensor[0].transpose(1, 2, 0), exact)


def test_nan_goes_through_to_the_model():
    image = np.full((32, 32, 3), 0.5, np.float32)
    image[3, 4, 1] = np.nan
    tensor, _ = rendered([image])
    assert np.argwhere(np.isnan(tensor)).tolist() == [[0, 1, 3, 4]]
    tensor, _ = rendered([np.full((32, 32), np.nan, np.float32)])
    assert np.isnan(tensor).all()


def test_nan_becomes_0_where_the_model_takes_whole_numbers():
    tensor, _ = rendered([np.full((32, 32), np.nan, np.float32)], datatype="UINT8")
    assert (tensor == 0).all()


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 50), st.integers(1, 50), st.just(3))))
def test_any_size_is_rendered_within_0_and_1_and_left_alone(image):
    before = image.copy()
    tensor, _ = rendered([image])
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(("value", "shown"), [(255.0, "255"), (-0.5, "-0.5"), (np.inf, "inf")])
def test_float_pixels_outside_0_and_1_are_refused(value, shown):
    image = np.full((32, 32, 3), 0.25, np.float32)
    image[0, 0] = value
    image[1, 1] = np.nan
    with pytest.raises(InvalidInputError) as caught:
        rendered([random_image(8, 8), image])
    message = str(caught.value)
    assert message.startswith(
        "model 'net', input 'IMAGE': image 1: expected float pixels between 0"
    )
    assert "got " in message
    assert shown in message


def test_time_that_is_up_stops_the_work():
    to = canvas()
    expired = Deadline(time.monotonic() - 1, 0.5)
    with pytest.raises(DeadlineExceededError) as caught:
        to.render(frames([random_image(8, 8)], to), expired)
    assert caught.value.stage == "encode"


# --- which images are taken ---


@pytest.mark.parametrize(
    "images",
    [
        random_image(2, 8, 9, 3),
        random_image(2, 8, 9, 1),
        random_image(2, 8, 9),
        [random_image(8, 9), random_image(8, 9, 3)],
        (random_image(8, 9, 1), Image.new("L", (9, 8))),
        [Image.new("RGB", (9, 8))] * 2,
        iter([random_image(8, 9)] * 2),
    ],
    ids=["NHWC", "NHW1", "NHW", "list", "tuple", "pillow", "iterator"],
)
def test_many_forms_of_images_are_taken(images):
    found = frames(images, canvas())
    assert len(found) == 2
    assert {image.shape[:2] for image in found} == {(8, 9)}
    assert all(image.ndim == 3 for image in found)


def test_images_are_not_copied():
    images = random_image(2, 8, 9, 3)
    assert all(np.shares_memory(image, images) for image in frames(images, canvas()))


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (
            [random_image(8, 9, 3), random_image(8, 9, 2)],
            "image 1: expected shape [H, W], [H, W, 1]",
        ),
        ([random_image(8, 9, 4)], "got [8, 9, 4]"),
        ([random_image(3, 8, 9, 3)], "got [3, 8, 9, 3]"),
        ([random_image(0, 9, 3)], "no axis being 0, got [0, 9, 3]"),
        (
            [np.zeros((8, 9), np.int64)],
            "image 0: expected uint8, or float between 0 and 1, got int64",
        ),
        ([np.zeros((8, 9), bool)], "image 0: expected uint8, or float between 0 and 1, got bool"),
        ([[[1, 2], [3, 4]]], "image 0: expected an array or a Pillow image, got list"),
        ([None], "image 0: expected an array or a Pillow image, got NoneType"),
        (
            [np.ma.masked_array(np.zeros((8, 9)))],
            "image 0: expected an array or a Pillow image, got",
        ),
        (random_image(8, 9, 3), "or [N, H, W], got [8, 9, 3]: one image; use handle.one(image)"),
        (random_image(8, 9), "or [N, H, W], got [8, 9]: one image; use handle.one(image)"),
        (Image.new("RGB", (9, 8)), "got [8, 9, 3]: one image; use handle.one(image)"),
        (
            random_image(9),
            "expected a list of images, or an array [N, H, W, C] or [N, H, W], got [9]",
        ),
        (np.ma.masked_array(np.zeros((2, 8, 9))), "expected a list of images, got MaskedArray"),
        ("cat.png", "expected a list of images, got str"),
        (7, "expected a list of images, got int"),
        ([], "empty batch: expected at least one image, got none"),
        (random_image(0, 8, 9, 3), "empty batch: expected at least one image, got none"),
    ],
)
def test_what_is_no_image_is_refused(images, reason):
    with pytest.raises(InvalidInputError) as caught:
        frames(images, canvas())
    assert str(caught.value).startswith("model 'net', input 'IMAGE': ")
    assert reason in str(caught.value)
