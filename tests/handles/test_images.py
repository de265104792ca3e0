"""Images in: options, what the model takes, which values are images, and the tensor they become."""

from __future__ import annotations

import io
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.handles.fakes import spec
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidInputError,
    MissingExtraError,
)
from tritonasync.core.offload import LONG_NBYTES
from tritonasync.core.values import TensorSpec
from tritonasync.handles.binding import bind_one
from tritonasync.handles.signature import signature_of
from tritonasync.handles.vision.images import (
    PAD,
    ImageOptions,
    Scaling,
    are_images,
    canvas_of,
    held,
    image_rules,
)
from tritonasync.memory.device import stream_of
from tritonasync.processing.scaling import SCALINGS, named


def binding(shape=(-1, 3, 32, 32), datatype="FP32", *, layout=None, max_batch_size=8):
    image = TensorSpec("IMAGE", datatype, shape, layout=layout)
    return bind_one(signature_of(spec([image], max_batch_size=max_batch_size), "safe"), None, None)


def rules(*, default="stretch", **options):
    return image_rules("classifier 'net'", options, resize=default)


def canvas(shape=(-1, 3, 32, 32), datatype="FP32", *, hint=None, default="letterbox", **options):
    return canvas_of(binding(shape, datatype, layout=hint), rules(default=default, **options))


def rendered(images, **options):
    found = canvas(**options).render(images, NEVER)
    return found.tensor, found.places


def random_image(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def by_rows(item):
    return item.transpose(1, 2, 0)


# --- options ---


def test_the_defaults_are_the_handles():
    stretched, boxed = rules(default="stretch"), rules(default="letterbox")
    assert (stretched.resize, stretched.antialias, stretched.given) == ("stretch", True, False)
    assert (boxed.resize, boxed.antialias, boxed.given) == ("letterbox", False, False)
    assert rules(resize="letterbox").antialias is False
    assert rules(resize="letterbox", antialias=True).antialias is True
    assert (rules().pad_value, rules().channel_order) == (114, "rgb")


def test_every_option_has_a_rule():
    """Else a right one would be refused as unknown."""
    options = {
        "layout": "NHWC",
        "image_size": (20, 30),
        "scaling": "vgg",
        "resize": "crop",
        "channel_order": "bgr",
        "antialias": False,
        "pad_value": 0,
        "max_pixels": 7,
    }
    assert options.keys() == ImageOptions.__annotations__.keys()
    found = rules(**options)
    assert {name: getattr(found, name) for name in options} == options
    assert found.given


def test_options_that_are_none_are_not_given():
    assert rules(layout=None, image_size=None) == rules()


@pytest.mark.parametrize("size", [64, (64, 64), [64, 64], np.array([64, 64]), np.int64(64)])
def test_a_size_may_be_one_number(size):
    assert rules(image_size=size).image_size == (64, 64)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scalling": "unit"}, "unknown option 'scalling' (did you mean 'scaling'?)"),
        ({"colour": 1}, "unknown option 'colour'; it takes layout, image_size, scaling, resize, "),
        ({"layout": "HWC"}, 'layout is "NCHW" or "NHWC", got \'HWC\''),
        ({"image_size": (1, 2, 3)}, "image_size is (height, width), each 1 or more, or one number"),
        ({"image_size": (64, 0)}, "for both, got (64, 0)"),
        ({"image_size": 0}, "for both, got 0"),
        ({"image_size": True}, "for both, got True"),
        ({"image_size": 64.0}, "for both, got 64.0"),
        ({"image_size": "64"}, "for both, got '64'"),
        ({"scaling": "UNIT"}, 'scaling is "none", "unit", "symmetric", '),
        ({"scaling": "UNIT"}, '"inception", "imagenet" or "vgg", or a Scaling, got \'UNIT\''),
        ({"scaling": 255}, "or a Scaling, got 255"),
        ({"scaling": [0.5]}, "or a Scaling, got [0.5]"),
        ({"resize": True}, 'resize is "letterbox", "stretch", "crop" or "none", got True'),
        ({"channel_order": "grb"}, 'channel_order is "rgb" or "bgr", got \'grb\''),
        ({"antialias": 1}, "antialias is True or False, got 1"),
        ({"pad_value": 256}, "pad_value is a whole number from 0 to 255, got 256"),
        ({"pad_value": 0.5}, "pad_value is a whole number from 0 to 255, got 0.5"),
        ({"max_pixels": 0}, "max_pixels is a whole number from 1 on, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, reason):
    with pytest.raises(ConfigurationError) as caught:
        rules(**options)
    assert str(caught.value).startswith("classifier 'net': ")
    assert reason in str(caught.value)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ConfigurationError) as caught:
        rules(pad=1, resize="no")
    assert "unknown option 'pad'" in str(caught.value)
    assert "; resize is " in str(caught.value)


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
        ({"shape": (-1, 3, -1, -1)}, "of a fixed size; give image_size=(height, width), or "),
        ({"shape": (-1, 3, 32, 32), "image_size": (64, 64)}, "that takes the image_size (64, 64)"),
        ({"shape": (-1, 3, 32, 3)}, 'say which by layout="NCHW" or "NHWC"'),
        ({"shape": (-1, 5, 32, 32)}, 'say which by layout="NCHW" or "NHWC"'),
        ({"shape": (-1, -1, -1, -1)}, 'say which by layout="NCHW" or "NHWC"'),
        ({"shape": (-1, 3, 32, 32), "layout": "NHWC"}, "with 1 or 3 channels (in layout 'NHWC')"),
        ({"shape": (-1, 3, 32, 32), "hint": "NHWC"}, "with 1 or 3 channels (in layout 'NHWC')"),
        ({"shape": (-1, 3072)}, "for images: [batch, C, H, W] or [batch, H, W, C]"),
        ({"datatype": "INT64"}, "for images: [batch, C, H, W] or [batch, H, W, C]"),
        ({"datatype": "BYTES"}, "for images: [batch, C, H, W] or [batch, H, W, C]"),
        ({"datatype": "UINT8", "scaling": "unit"}, "of a float type for scaling='unit' (UINT8 "),
        ({"shape": (-1, 1, 8, 8), "scaling": Scaling((1, 2, 3))}, "with 3 channels for Scaling("),
        ({"shape": (-1, 1, 8, 8), "channel_order": "bgr"}, "with 3 channels for channel_order="),
    ],
)
def test_an_input_that_cannot_be_understood_is_refused(options, expected):
    with pytest.raises(ConfigurationError) as caught:
        canvas(**options)
    assert "model 'net': expected an input " in str(caught.value)
    assert expected in str(caught.value)
    assert "got 'IMAGE'" in str(caught.value)


def test_an_ambiguous_layout_is_the_configurations_or_the_users_choice():
    assert canvas((-1, 3, 32, 3), layout="NHWC").height == 3
    assert canvas((-1, 3, 32, 3), layout="NCHW").height == 32
    assert canvas((-1, 3, 32, 3), hint="NHWC").height == 3
    assert canvas((-1, 3, 32, 3), hint="NHWC", layout="NCHW").height == 32


# --- rendering: pixels ---


@pytest.mark.parametrize("shape", [(-1, 3, 32, 32), (-1, 32, 32, 3)])
def test_pixels_go_from_0_to_1(shape):
    image = random_image(32, 32, 3)
    tensor, (place,) = rendered([image], shape=shape)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    pixels = tensor[0] if shape[-1] == 3 else by_rows(tensor[0])
    np.testing.assert_array_equal(pixels, image / np.float32(255))
    assert (place.top, place.left, place.height, place.width) == (0, 0, 32, 32)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("scaling", [*SCALINGS, Scaling((10, 20, 30), (1, 2, 3), scale=1)])
@pytest.mark.parametrize("shape", [(-1, 3, 32, 32), (-1, 32, 32, 3)])
def test_scalings_come_before_the_order_of_channels(shape, scaling, order):
    """A mean belongs to its colour: BGR models get the same numbers, the other way round."""
    image = random_image(32, 32, 3)
    tensor, _ = rendered([image], shape=shape, scaling=scaling, channel_order=order)
    pixels = tensor[0] if shape[-1] == 3 else by_rows(tensor[0])
    expected = np.empty((32, 32, 3), np.float32)
    (named(scaling, 3) if isinstance(scaling, str) else scaling).write(image, expected)
    np.testing.assert_array_equal(pixels, expected if order == "rgb" else expected[..., ::-1])


def test_vgg_of_one_channel_has_one_mean():
    tensor, _ = rendered([np.full((8, 8), 130, np.uint8)], shape=(-1, 1, 8, 8), scaling="vgg")
    assert (tensor == 2).all()


def test_float_images_are_taken_as_they_are():
    image = np.random.default_rng(0).random((32, 32, 3))
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        tensor, _ = rendered([image.astype(dtype)])
        np.testing.assert_array_equal(by_rows(tensor[0]), image.astype(dtype).astype("f4"))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_float_images_are_scaled_as_bytes_are(scaling):
    image = random_image(32, 32, 3)
    tensor, _ = rendered([image, image / np.float32(255)], scaling=scaling)
    np.testing.assert_allclose(tensor[0], tensor[1], rtol=1e-5, atol=1e-4)


def test_images_of_mixed_sizes_kinds_and_dtypes_make_one_batch(tmp_path):
    images = [random_image(10, 20, 3), random_image(64, 16, 3), random_image(32, 32)]
    (tmp_path / "cat.png").write_bytes(encoded(random_image(64, 64, 3)))
    images += [
        random_image(20, 20, 4) / 255.0,
        Image.new("RGBA", (30, 15)),
        encoded(random_image(16, 32, 3)),
        tmp_path / "cat.png",
        str(tmp_path / "cat.png"),
    ]
    tensor, places = rendered(images)
    assert tensor.shape == (8, 3, 32, 32)
    sizes = [(p.image_height, p.image_width, p.height, p.width) for p in places]
    assert sizes == [
        (10, 20, 16, 32),
        (64, 16, 32, 8),
        (32, 32, 32, 32),
        (20, 20, 32, 32),
        (15, 30, 16, 32),
        (16, 32, 16, 32),
        (64, 64, 32, 32),
        (64, 64, 32, 32),
    ]
    for image, place in zip(tensor, places, strict=True):
        covered = np.zeros((32, 32, 1), bool)
        place.place(covered)[...] = True
        assert (image[:, ~covered[..., 0]] == np.float32(PAD) / np.float32(255)).all()
    alone = np.concatenate([rendered([image])[0] for image in images])
    np.testing.assert_array_equal(tensor, alone)


def test_the_pad_is_scaled_as_the_image_is():
    tensor, (place,) = rendered([random_image(10, 20, 3)], scaling="vgg", pad_value=255)
    assert place.top == 8
    assert tensor[0, :, 0, 0].tolist() == [255 - 123, 255 - 117, 255 - 104]
    assert (tensor[0, :, :8] == tensor[0, :, :1, :1]).all()
    assert (tensor[0, :, 24:] == tensor[0, :, :1, :1]).all()


def test_grey_becomes_rgb_and_rgb_grey():
    grey = random_image(32, 32)
    tensor, _ = rendered([grey, grey[..., None]])
    for channel in range(3):
        np.testing.assert_array_equal(tensor[:, channel], np.stack([grey, grey]) / np.float32(255))
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    tensor, _ = rendered([red], shape=(-1, 1, 32, 32))
    np.testing.assert_array_equal(tensor, np.float32(76) / np.float32(255))  # as Pillow rounds it
    tensor, _ = rendered([red / np.float32(255)], shape=(-1, 1, 32, 32))
    np.testing.assert_allclose(tensor, 0.299, rtol=1e-6)


def test_alpha_is_dropped():
    image = random_image(32, 32, 4)
    tensor, _ = rendered([image, image[..., :3]])
    np.testing.assert_array_equal(tensor[0], tensor[1])


@pytest.mark.parametrize(
    "image", [random_image(32, 32, 3), random_image(32, 32, 3) / np.float32(255)]
)
def test_a_uint8_model_gets_0_to_255(image):
    tensor, _ = rendered([image], datatype="UINT8", shape=(-1, 32, 32, 3))
    assert tensor.dtype == np.uint8
    np.testing.assert_array_equal(tensor[0], random_image(32, 32, 3))


def test_a_uint8_canvas_is_padded_in_grey_and_rounded():
    image = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8).repeat(2, axis=0)
    tensor, (place,) = rendered([image], datatype="UINT8", shape=(-1, 3, 8, 3), layout="NCHW")
    assert (tensor[:, :, : place.top] == PAD).all()
    assert tensor[0, 0, place.top].tolist() == [0, 128, 255]


@pytest.mark.parametrize("scaling", ["unit", "imagenet"])
def test_bf16_has_the_same_bits_without_ml_dtypes(scaling, monkeypatch, request):
    request.addfinalizer(canvas_of.cache_clear)  # what is remembered is of another environment
    image = random_image(40, 50, 3)
    expected, _ = rendered([image], datatype="BF16", scaling=scaling)
    monkeypatch.setattr("tritonasync.handles.vision.images.numpy_dtype", lambda _: np.dtype("<u2"))
    canvas_of.cache_clear()
    tensor, _ = rendered([image], datatype="BF16", scaling=scaling)
    assert tensor.dtype == np.uint16
    np.testing.assert_array_equal(tensor, expected.view(np.uint16))
    nan = np.full((32, 32, 3), np.nan, np.float32)
    nan.view(np.uint32)[0] = 0x7FFFFFFF  # rounded up it would be a zero
    tensor, _ = rendered([nan], datatype="BF16", scaling=scaling)
    assert np.isnan(tensor.view(ml_dtypes.bfloat16)).all()


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [("FP16", np.float16), ("FP64", np.float64), ("BF16", ml_dtypes.bfloat16)],
)
@pytest.mark.parametrize("scaling", ["unit", "imagenet"])
def test_other_float_models_get_their_own_dtype(datatype, dtype, scaling):
    image = random_image(32, 32, 3)
    tensor, _ = rendered([image], datatype=datatype, scaling=scaling)
    assert tensor.dtype == dtype
    exact, _ = rendered([image], scaling=scaling)
    np.testing.assert_array_equal(tensor, exact.astype(dtype))


def test_nan_goes_through_to_the_model():
    image = np.full((32, 32, 3), 0.5, np.float32)
    image[3, 4, 1] = np.nan
    tensor, _ = rendered([image])
    assert np.argwhere(np.isnan(tensor)).tolist() == [[0, 1, 3, 4]]
    for options in ({}, {"antialias": True}):
        tensor, _ = rendered([np.full((40, 40), np.nan, np.float32)], **options)
        assert np.isnan(tensor).all()


def test_nan_becomes_0_where_the_model_takes_whole_numbers():
    tensor, _ = rendered([np.full((32, 32), np.nan, np.float32)], datatype="UINT8")
    assert (tensor == 0).all()


# --- rendering: places ---


@settings(deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 50), st.integers(1, 50), st.just(3))),
    st.sampled_from(["letterbox", "stretch", "crop"]),
    st.booleans(),
)
def test_any_size_is_rendered_within_0_and_1_and_left_alone(image, resize, antialias):
    before = image.copy()
    tensor, _ = rendered([image], resize=resize, antialias=antialias)
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("size", [(50, 70), (20, 25), (32, 90), (32, 32)])
@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
@pytest.mark.parametrize("given", ["RGB", "L", "P", "CMYK"])
def test_stretched_and_smoothed_is_what_tritons_client_does(size, channels, mode, given):
    image = Image.fromarray(random_image(*size, 3)).convert(given)
    resized = image.convert(mode).resize((32, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(resized).astype(np.float32).reshape(32, 32, channels) / 127.5 - 1
    shape = (-1, channels, 32, 32)
    tensor, _ = rendered([image], shape=shape, default="stretch", scaling="inception")
    np.testing.assert_array_equal(by_rows(tensor[0]), expected)


@pytest.mark.parametrize("size", [(50, 70), (70, 51), (20, 25), (32, 90), (32, 32)])
def test_cropped_is_what_torchvision_does(size):
    """``Resize(32)``, ``CenterCrop(32)``, ``ToTensor``, ``Normalize`` with ImageNet's numbers."""
    image, (height, width) = random_image(*size, 3), size
    target = max(32, int(32 * height / width)), max(32, int(32 * width / height))
    resized = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling.BILINEAR))
    top, left = round((target[0] - 32) / 2.0), round((target[1] - 32) / 2.0)
    unit = resized[top : top + 32, left : left + 32] / np.float32(255)
    expected = (unit - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    tensor, (place,) = rendered([image], resize="crop", scaling="imagenet")
    np.testing.assert_allclose(by_rows(tensor[0]), expected, atol=0.02)  # 1 of 255, by rounding
    assert (place.top, place.left) == (-top, -left)


def test_cropping_without_smoothing_cuts_the_same_part():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 60:] = 255  # beyond what is left of it
    for antialias in (False, True):
        tensor, _ = rendered([image], resize="crop", antialias=antialias)
        assert tensor[..., :31].max() == 0


def test_boxes_come_back_from_wherever_an_image_was_placed():
    image = np.zeros((60, 100, 3), np.uint8)
    image[20:40, 40:60] = 255
    for resize in ("letterbox", "stretch", "crop"):
        tensor, (place,) = rendered([image], resize=resize, pad_value=0)
        rows, columns = np.nonzero(tensor[0, 0] > 0.5)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        found = place.to_image(np.array(box, np.float32))
        np.testing.assert_allclose(found, [40, 20, 60, 40], atol=2.5)


def test_not_resized_images_set_the_size_if_the_model_leaves_it_open():
    images = random_image(2, 17, 19, 3)
    tensor, places = rendered(images, shape=(-1, 3, -1, -1), resize="none")
    assert tensor.shape == (2, 3, 17, 19)
    assert (places[0].height, places[0].width, places[0].top, places[0].left) == (17, 19, 0, 0)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((-1, 3, 32, 32), "image 0: expected the model's size, 32 x 32 (height x width), since "),
        ((-1, 3, -1, -1), "image 1: expected one size in a batch, 16 x 16 (height x width), since"),
    ],
)
def test_not_resized_images_must_have_the_size(shape, reason):
    with pytest.raises(InvalidInputError) as caught:
        rendered([random_image(16, 16), random_image(16, 17)], shape=shape, resize="none")
    assert reason in str(caught.value)
    assert 'resize="none", got 16 x 1' in str(caught.value)


# --- rendering: refusals ---


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


def test_a_long_path_is_shortened_in_the_message():
    with pytest.raises(InvalidInputError) as caught:
        rendered(["x" * 100_000])
    assert len(str(caught.value)) < 300


def test_time_that_is_up_stops_the_work():
    expired = Deadline(time.monotonic() - 1, 0.5)
    with pytest.raises(DeadlineExceededError) as caught:
        canvas().render([random_image(8, 8)], expired)
    assert caught.value.stage == "encode"


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
    tensor, places = rendered(images)
    assert len(tensor) == 2
    assert {(p.image_height, p.image_width) for p in places} == {(8, 9)}


LAST = "; channels come last: image.permute(1, 2, 0) in torch, np.moveaxis(image, 0, -1)"


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (
            [random_image(8, 9, 3), random_image(8, 9, 2)],
            "image 1: expected shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], no axis being 0, "
            "got [8, 9, 2]",
        ),
        ([random_image(8, 9, 5)], "got [8, 9, 5]"),
        ([random_image(3, 8, 9)], f"got [3, 8, 9]{LAST}"),
        ([random_image(3, 32, 32)], f"got [3, 32, 32]{LAST}"),
        ([random_image(3, 8, 9, 3)], "got [3, 8, 9, 3]"),
        (
            random_image(2, 3, 8, 9),
            f"[H, W, 3] or [H, W, 4], no axis being 0, got [3, 8, 9]{LAST}",
        ),
        ([random_image(0, 9, 3)], "no axis being 0, got [0, 9, 3]"),
        ([random_image(90)], "if it is an encoded image, give its bytes: array.tobytes()"),
        (
            [np.zeros((8, 9), np.int64)],
            "image 0: expected uint8, or float between 0 and 1, got int64",
        ),
        ([np.zeros((8, 9), bool)], "image 0: expected uint8, or float between 0 and 1, got bool"),
        ([np.zeros((8, 9), np.uint16)], "float between 0 and 1, got uint16"),
        ([[[1, 2], [3, 4]]], "image 0: expected an array, a Pillow image, or an encoded image as "),
        ([None], "as bytes or by its path, got NoneType"),
        ([memoryview(b"abc")], "as bytes or by its path, got memoryview"),
        ([io.BytesIO(b"abc")], "got BytesIO; give the bytes: file.read()"),
        (
            [np.ma.masked_array(np.zeros((8, 9)))],
            "image 0: expected an array, a Pillow image, or an encoded image as bytes or by its "
            "path, got MaskedArray",
        ),
        (random_image(8, 9, 3), "or [N, H, W], got [8, 9, 3]: one image; use handle.one(image)"),
        (random_image(8, 9), "or [N, H, W], got [8, 9]: one image; use handle.one(image)"),
        (Image.new("RGB", (9, 8)), "a list of images, got one, Image; use handle.one(image)"),
        (b"\x89PNG", "expected a list of images, got one, bytes; use handle.one(image)"),
        ("cat.png", "expected a list of images, got one, str; use handle.one(image)"),
        (
            random_image(9),
            "expected a list of images, or an array [N, H, W, C] or [N, H, W], got [9]",
        ),
        (np.ma.masked_array(np.zeros((2, 8, 9))), "expected a list of images, got MaskedArray"),
        ({"a": random_image(8, 9)}, "expected a list of images, got dict"),
        (7, "expected a list of images, got int"),
        ([], "empty batch: expected at least one image, got none"),
        (random_image(0, 8, 9, 3), "empty batch: expected at least one image, got none"),
        ([b"no image"], "image 0: expected PNG, JPEG, "),
        (["no.png"], "image 0, file 'no.png': cannot be read: No such file or directory"),
        (["data:image/png;base64," + 5000 * "A"], "AAAA…': cannot be read: "),
        ([random_image(8, 9), encoded(random_image(8, 9))[:90]], "image 1: its PNG data (9 x 8 "),
    ],
)
def test_what_is_no_image_is_refused(images, reason):
    with pytest.raises(InvalidInputError) as caught:
        rendered(images)
    assert str(caught.value).startswith("model 'net', input 'IMAGE': ")
    assert reason in str(caught.value)


def test_more_pixels_than_allowed_are_refused():
    images = [random_image(5, 5), encoded(random_image(10, 10)), Image.new("L", (10, 10))]
    assert len(rendered(images, max_pixels=100)[0]) == 3
    for image in images[1:]:
        with pytest.raises(
            InvalidInputError, match="image 1: expected at most 99 pixels, got 10 x"
        ):
            rendered([images[0], image], max_pixels=99)


def test_without_pillow_arrays_are_resized_without_smoothing_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    image = random_image(50, 60, 3)
    assert rendered([image], antialias=False)[0].shape == (1, 3, 32, 32)
    assert rendered([image[:32, :32]], antialias=True)[0].shape == (1, 3, 32, 32)
    with pytest.raises(MissingExtraError, match="antialias=False does without"):
        rendered([image], antialias=True)


# --- other libraries ---


def test_torch_tensors_are_images_with_channels_last():
    torch = pytest.importorskip("torch")
    image = random_image(10, 20, 3)
    expected, _ = rendered([image, image / np.float32(255)])
    last = torch.from_numpy(image)
    tensor, _ = rendered([last, (last / 255).requires_grad_()])
    np.testing.assert_allclose(tensor, expected, atol=1e-6)
    with pytest.raises(InvalidInputError, match="image.permute"):
        rendered([last.permute(2, 0, 1)])
    np.testing.assert_array_equal(rendered(torch.stack([last, last]))[0][0], expected[0])


@pytest.fixture
def driver(monkeypatch):
    pytest.importorskip("cupy", reason="CuPy is not installed")
    fake_cuda = pytest.importorskip("tests.memory.fake_cuda")
    driver = fake_cuda.Driver()
    monkeypatch.setitem(sys.modules, "cupy", driver.module)
    return driver


def test_arrays_of_a_gpu_are_fetched(driver):
    image = random_image(10, 20, 3)
    expected, _ = rendered([image, image])
    on_gpu = driver.array(image)
    np.testing.assert_array_equal(rendered([on_gpu, image])[0], expected)
    np.testing.assert_array_equal(rendered(driver.array(np.stack([image, image])))[0], expected)
    assert canvas().work_nbytes([on_gpu]) >= LONG_NBYTES
    assert are_images(on_gpu, NCHW, item=True, rules=rules())


def test_arrays_of_a_gpu_keep_the_stream_of_the_callers_thread(driver):
    with driver.stream() as side:
        alone = held(driver.array(random_image(8, 9)))
        among = held([driver.array(random_image(8, 9)), b"..."])
        pair = held(iter((driver.array(random_image(8, 9)),)))
    assert {stream_of(array).pointer for array in (alone, among[0], pair[0])} == {side.ptr}
    assert among[1] == b"..."


def test_an_array_of_a_gpu_that_is_not_handed_out_names_the_image(driver):
    class Gone:
        __array__ = None
        shape, dtype = (8, 9, 3), np.dtype(np.uint8)

        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **options):
            raise BufferError("it is gone")

    with pytest.raises(InvalidInputError) as caught:
        rendered([random_image(8, 9), Gone()])
    assert str(caught.value).startswith("model 'net', input 'IMAGE': image 1: a ")
    assert "it is gone" in str(caught.value)


def test_what_is_given_can_be_looked_at_twice():
    images = [random_image(8, 9), b"..."]
    assert held(iter(images)) == images
    assert held(images) is images
    for value in (images[0], b"...", "cat.png", 7):
        assert held(value) is value


def test_an_open_file_is_not_read_by_lines():
    file = io.BytesIO(b"abc")
    assert held(file) is file


# --- images or tensors? ---


NCHW, NHWC = binding((-1, 3, 32, 32)), binding((-1, 32, 32, 3))
OPEN, TEXTS = binding((-1, -1, -1, 3)), binding((-1, 1), "BYTES")
BYTES_IN = binding((-1, 32, 32, 3), "UINT8")


@pytest.mark.parametrize(
    ("value", "bound", "expected"),
    [
        (np.zeros((3, 32, 32), np.float32), NCHW, False),
        (np.zeros((3, 32, 32), np.uint8), NCHW, False),
        (np.zeros((32, 32, 3), np.float32), NHWC, False),
        (np.zeros((32, 32, 3), np.uint8), NHWC, True),  # as one of any other size
        (np.zeros((32, 32, 3), np.uint8), BYTES_IN, False),
        (np.zeros((33, 32, 3), np.uint8), BYTES_IN, True),
        (np.zeros((32, 32, 3), np.float64), BYTES_IN, True),  # as one of any other size
        (np.zeros((40, 50, 3), np.uint8), OPEN, False),
        (np.zeros((40, 50), np.uint8), OPEN, True),
        (np.zeros((32, 32, 3), np.uint8), NCHW, True),
        (np.zeros((32, 32), np.float64), NCHW, True),
        (np.zeros((3, 40, 40), np.float32), NCHW, True),  # refused with a hint
        (np.zeros((32, 32, 3), np.int64), NCHW, False),
        (np.zeros((3072,), np.float32), NCHW, False),
        (Image.new("RGB", (9, 8)), NCHW, True),
        (b"\x89PNG", NCHW, True),
        ("cat.png", NCHW, True),
        (io.BytesIO(b"\x89PNG"), NCHW, True),  # refused with a hint
        (memoryview(b"\x89PNG"), NCHW, True),  # refused
        (memoryview(np.zeros((3, 32, 32), np.float32)), NCHW, False),
        ([[1, 2], [3, 4]], NCHW, False),
        (b"a text", TEXTS, False),
        ("a text", TEXTS, False),
        (Image.new("RGB", (9, 8)), TEXTS, False),
    ],
)
def test_what_is_an_image_is_told_by_its_shape_and_kind(value, bound, expected):
    assert are_images(value, bound, item=True, rules=rules()) is expected
    assert are_images([value], bound, item=False, rules=rules()) is expected
    if isinstance(value, np.ndarray):
        assert are_images(value[None], bound, item=False, rules=rules()) is expected


@pytest.mark.parametrize("value", [Image.new("RGB", (9, 8)), b"\x89PNG", "cat.png"])
def test_one_image_where_several_are_expected_goes_on_to_be_refused(value):
    assert are_images(value, NCHW, item=False, rules=rules())


def test_lists_with_an_image_in_them_are_images():
    tensor = np.zeros((3, 32, 32), np.float32)
    assert not are_images([tensor, tensor], NCHW, item=False, rules=rules())
    assert are_images([tensor, b"..."], NCHW, item=False, rules=rules())


def test_with_options_everything_is_an_image():
    given = rules(scaling="imagenet")
    assert are_images(np.zeros((3, 32, 32), np.float32), NCHW, item=True, rules=given)
    assert are_images("a text", TEXTS, item=True, rules=given)
    with pytest.raises(ConfigurationError, match="expected an input for images"):
        canvas_of(TEXTS, given)


def test_torch_tensors_are_told_apart_too():
    torch = pytest.importorskip("torch")
    assert not are_images(torch.zeros(3, 32, 32), NCHW, item=True, rules=rules())
    assert are_images(torch.zeros(40, 30, 3, dtype=torch.uint8), NCHW, item=True, rules=rules())
    assert are_images(torch.zeros(2, 40, 30, 3), NCHW, item=False, rules=rules())


def test_nothing_is_decoded_to_tell():
    image = Image.open(io.BytesIO(encoded(random_image(8, 9, 3))))
    assert are_images([image], NCHW, item=False, rules=rules())
    assert canvas().work_nbytes([image]) >= LONG_NBYTES
    assert image.tile  # what is left to be decoded


# --- where the work is done ---


@pytest.mark.parametrize(
    "images",
    [
        [b"..."],
        ["cat.png"],
        [Image.new("L", (1, 1))],
        [random_image(1, 1), b"..."],
        Image.new("L", (1, 1)),
        b"...",
        iter([b"..."]),
        7,
    ],
    ids=["bytes", "path", "pillow", "mixed", "one-pillow", "one-bytes", "iterator", "none"],
)
def test_what_is_decoded_is_long_work(images):
    assert canvas().work_nbytes(images) >= LONG_NBYTES


def test_small_arrays_are_short_work_and_large_ones_long():
    to = canvas((-1, 1, 28, 28))
    assert to.work_nbytes([random_image(28, 28)]) < LONG_NBYTES
    assert to.work_nbytes(random_image(2, 28, 28)) < LONG_NBYTES
    assert to.work_nbytes([random_image(2160, 3840)]) >= LONG_NBYTES
    assert canvas((-1, 3, 640, 640)).work_nbytes([random_image(8, 8)]) >= LONG_NBYTES
    assert to.work_nbytes([random_image(8, 8)] * 5) >= LONG_NBYTES
    assert to.work_nbytes([]) < LONG_NBYTES


def test_smoothing_is_work_by_the_pixels_that_it_reads():
    image = random_image(400, 400, 3)
    for options, long in (({"antialias": True}, True), ({"antialias": False}, False)):
        to = canvas((-1, 3, 32, 32), **options)
        assert (to.work_nbytes([image]) >= LONG_NBYTES) is long
    assert canvas((-1, 1, 32, 32), antialias=False).work_nbytes([image]) >= LONG_NBYTES  # to grey


@pytest.mark.parametrize("shape", [(480, 640, 3), (480, 640), (100_000, 32, 32, 3)])
def test_an_array_is_looked_at_once_to_tell_the_work(shape, monkeypatch):
    """Not row by row: hundreds of calls may begin in one turn of the event loop."""
    looked: list[object] = []
    monkeypatch.setattr("tritonasync.handles.vision.canvas.is_array", looked.append)
    one = np.broadcast_to(np.uint8(0), shape)
    assert canvas(antialias=True).work_nbytes(one) >= LONG_NBYTES
    assert not looked


def test_one_array_is_as_much_work_as_a_list_of_it():
    for shape in ((20, 30, 3), (20, 30)):
        image = random_image(*shape)
        assert canvas().work_nbytes(image) == canvas().work_nbytes([image])
