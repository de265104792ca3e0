"""Scalings against their formulas, written out; those of Triton's image client bit by bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tritonasync.core.errors import ConfigurationError
from tritonasync.processing.scaling import SCALINGS, Scaling, named

PIXELS = hnp.arrays(np.uint8, (4, 5, 3))


def scaled(scaling, pixels, channels=3, **options):
    into = np.full((*pixels.shape[:2], channels), np.nan, np.float32)
    scaling.write(pixels, into, **options)
    return into


def of_tritons_client(pixels, name):
    """What ``image_client.py`` of the Triton repository does with an FP32 model."""
    typed = pixels.astype(np.float32)
    if name == "inception":
        return (typed / 127.5) - 1
    if name == "vgg" and pixels.shape[2] == 1:
        return typed - np.asarray((128,), dtype=np.float32)
    if name == "vgg":
        return typed - np.asarray((123, 117, 104), dtype=np.float32)
    return typed


@pytest.mark.parametrize("name", ["none", "vgg", "inception"])
@given(PIXELS)
def test_the_scalings_of_tritons_client_are_its_own(name, pixels):
    for image in (pixels, pixels[..., :1]):
        channels = image.shape[2]
        expected = of_tritons_client(image, name)
        np.testing.assert_array_equal(scaled(named(name, channels), image, channels), expected)


@given(PIXELS)
def test_unit_is_from_0_to_1_and_symmetric_from_minus_1_to_1(pixels):
    np.testing.assert_array_equal(scaled(named("unit", 3), pixels), pixels / np.float32(255))
    symmetric = scaled(named("symmetric", 3), pixels)
    np.testing.assert_allclose(symmetric, pixels / 255.0 * 2 - 1, atol=1e-7)
    edges = np.array([[[0, 255, 0]]], np.uint8)
    assert scaled(named("symmetric", 3), edges).tolist() == [[[-1, 1, -1]]]


@given(PIXELS)
def test_imagenet_is_torchvisions(pixels):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (pixels / 255.0 - mean) / std
    np.testing.assert_allclose(scaled(named("imagenet", 3), pixels), expected, atol=1e-6)


def test_imagenet_of_grey_has_the_mean_of_the_colours():
    mean, std = np.mean([0.485, 0.456, 0.406]), np.mean([0.229, 0.224, 0.225])
    grey = named("imagenet", 1)
    assert (grey.mean, grey.std) == (round(mean, 3), round(std, 3))


FINITE = st.floats(-300, 300, width=32)
ABOVE = st.floats(0.125, 300, width=32)


@given(
    PIXELS,
    FINITE | st.tuples(FINITE, FINITE, FINITE),
    ABOVE | st.tuples(ABOVE, ABOVE, ABOVE),
    st.sampled_from([1, 1 / 255, 2 / 255]),
)
def test_ones_own_scaling_is_its_formula(pixels, mean, std, scale):
    scaling = Scaling(mean, std, scale)
    expected = (pixels * float(scale) - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(scaled(scaling, pixels), expected, rtol=1e-5, atol=1e-3)


@given(PIXELS, st.sampled_from(SCALINGS))
def test_floats_from_0_to_1_are_scaled_as_bytes_from_0_to_255(pixels, name):
    floats = pixels / np.float32(255)
    np.testing.assert_allclose(
        scaled(named(name, 3), floats, top=1), scaled(named(name, 3), pixels), rtol=1e-5, atol=1e-4
    )


def test_floats_from_0_to_1_are_unit_already():
    floats = np.random.default_rng(0).random((5, 6, 3), np.float32)
    np.testing.assert_array_equal(scaled(named("unit", 3), floats, top=1), floats)


@given(PIXELS, st.sampled_from(SCALINGS))
def test_grey_pixels_go_to_each_channel_by_its_own_mean(pixels, name):
    grey = pixels[..., :1]
    np.testing.assert_array_equal(
        scaled(named(name, 3), grey), scaled(named(name, 3), grey.repeat(3, axis=2))
    )


def test_pixels_are_written_into_views_and_left_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    before = pixels.copy()
    planes = np.zeros((3, 8, 9), np.float32)
    named("vgg", 3).write(pixels, planes.transpose(1, 2, 0)[1:7, 1:8])
    np.testing.assert_array_equal(
        planes[:, 1:7, 1:8], scaled(named("vgg", 3), pixels).transpose(2, 0, 1)
    )
    assert not planes[:, [0, 7]].any()
    np.testing.assert_array_equal(pixels, before)


def test_dark_may_be_turned_into_light():
    """As models of ink on paper want it."""
    edges = np.array([[[0, 51, 255]]], np.uint8)
    ink = Scaling(mean=-1, scale=-1 / 255)
    np.testing.assert_allclose(scaled(ink, edges), [[[1, 0.8, 0]]], atol=1e-6)
    np.testing.assert_allclose(scaled(ink, edges / 255.0, top=1), [[[1, 0.8, 0]]], atol=1e-6)


def test_nan_stays_where_it_is():
    pixels = np.full((2, 2, 3), 0.5, np.float32)
    pixels[1, 0, 2] = np.nan
    assert np.argwhere(np.isnan(scaled(named("imagenet", 3), pixels, top=1))).tolist() == [
        [1, 0, 2]
    ]


def test_lists_are_taken_and_equal_scalings_are_equal():
    """As they come from TOML and YAML."""
    assert Scaling([0.5, 0.5, 0.5], 0.5) == Scaling((0.5, 0.5, 0.5), 0.5)
    assert hash(Scaling([1, 2, 3])) == hash(Scaling((1.0, 2.0, 3.0)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mean": (1, 2)}, "mean is a number, or three, got (1, 2)"),
        ({"mean": "high"}, "mean is a number, or three, got 'high'"),
        ({"mean": math.nan}, "mean is finite, got nan"),
        ({"mean": (0, math.inf, 0)}, "mean is finite, got (0, inf, 0)"),
        ({"std": (1, 0, 1)}, "std is finite, and above 0, got (1, 0, 1)"),
        ({"std": -1}, "std is finite, and above 0, got -1"),
        ({"scale": 0}, "scale is finite, and not 0, got 0"),
        ({"scale": -math.inf}, "scale is finite, and not 0, got -inf"),
        ({"scale": (1, 1, 1)}, "scale is a number, got (1, 1, 1)"),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused(options, reason):
    with pytest.raises(ConfigurationError) as caught:
        Scaling(**options)
    assert str(caught.value) == f"Scaling: {reason}"
