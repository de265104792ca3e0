"""Encoded and Pillow images: modes, orientation, limits, and every way a file can be broken."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from tritonasync.core.errors import MissingExtraError
from tritonasync.processing.images import resize_bilinear
from tritonasync.processing.pictures import (
    FORMATS,
    MAX_PIXELS,
    PictureError,
    from_pillow,
    is_encoded,
    is_pillow,
    read,
    resize_smoothly,
)

SIZE = (24, 40)  # height and width
RGB = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
SMOOTH = np.linspace(0, 255, SIZE[0] * SIZE[1] * 3).reshape(*SIZE, 3).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def png_header(width, height):
    """A PNG that tells this size, and has next to no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def chunk(kind, content):
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def refusal(source, max_pixels=MAX_PIXELS):
    take = from_pillow if is_pillow(source) else read
    with pytest.raises(PictureError) as caught:
        take(source, max_pixels)
    return str(caught.value)


# --- formats and modes ---


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {"irreversible": False}),
    ],
)
def test_formats_without_loss_are_read_as_they_were_written(kind, options):
    np.testing.assert_array_equal(read(encoded(RGB, kind, **options), MAX_PIXELS), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_formats_with_loss_are_read(kind):
    if kind not in Image.registered_extensions().values():
        pytest.skip(f"this Pillow writes no {kind}")
    image = read(encoded(SMOOTH, kind, quality=95), MAX_PIXELS)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - SMOOTH).mean() < 8


def test_bytes_and_paths_are_the_same_image(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(encoded(RGB))
    for source in (path.read_bytes(), bytearray(path.read_bytes()), path, str(path)):
        assert is_encoded(source)
        np.testing.assert_array_equal(read(source, MAX_PIXELS), RGB)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    image = read(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), MAX_PIXELS)
    assert image.shape == (6, 8, 3)
    assert (image[..., 0] > 240).all()
    assert (image[..., 2] < 15).all()


def test_of_a_pillow_image_the_frame_is_read_that_it_is_at():
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    image = Image.open(
        io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    )
    image.seek(1)
    assert from_pillow(image, MAX_PIXELS)[0, 0].tolist() == [0, 0, 255]


COLOUR = Image.fromarray(SMOOTH)
GREY = COLOUR.convert("L")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (COLOUR, SMOOTH),
        (GREY, np.asarray(GREY)[..., None]),
        (GREY.convert("1"), np.asarray(GREY.convert("1").convert("L"))[..., None]),
        (GREY.convert("LA"), np.asarray(GREY)[..., None]),
        (GREY.convert("LA").convert("La"), np.asarray(GREY)[..., None]),
        (COLOUR.convert("RGBA"), SMOOTH),
        (COLOUR.convert("RGBA").convert("RGBa"), SMOOTH),
        (COLOUR.convert("RGBX"), SMOOTH),
        (COLOUR.convert("CMYK"), SMOOTH),
        (COLOUR.convert("P"), np.asarray(COLOUR.convert("P").convert("RGB"))),
        (COLOUR.convert("YCbCr"), np.asarray(COLOUR.convert("YCbCr").convert("RGB"))),
        (COLOUR.convert("HSV"), np.asarray(COLOUR.convert("HSV").convert("RGB"))),
    ],
    ids=lambda value: value.mode if is_pillow(value) else "",
)
def test_every_mode_becomes_grey_or_rgb(image, expected):
    before = np.asarray(image).copy()
    found = from_pillow(image, MAX_PIXELS)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.asarray(image), before)


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_dropped(alpha):
    """As Pillow's ``convert("RGB")`` does, and with it most of what models are trained by."""
    image = COLOUR.copy()
    image.putalpha(alpha)
    np.testing.assert_array_equal(read(encoded(image), MAX_PIXELS), SMOOTH)


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
@pytest.mark.parametrize("height", [256, 257, 700])
def test_tall_images_are_whole(mode, height):
    top = 65536 if mode == "I;16" else 256
    shape = (height, 9, 3) if mode == "RGB" else (height, 9)
    values = np.random.default_rng(0).integers(0, top, shape, np.uint16)
    values = values if mode == "I;16" else values.astype(np.uint8)
    found = read(encoded(values), MAX_PIXELS)
    expected = (values / 65535).astype(np.float32) if mode == "I;16" else values
    np.testing.assert_array_equal(found, expected.reshape(height, 9, -1))


def test_a_palette_with_transparency_gives_no_warning():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    data = encoded(image, transparency=b"\x80\x40")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(data, MAX_PIXELS)[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_their_precision(kind):
    values = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    image = read(encoded(values, kind), MAX_PIXELS)
    assert (image.dtype, image.shape) == (np.float32, (24, 40, 1))
    np.testing.assert_array_equal(image[..., 0], (values / 65535).astype(np.float32))


def test_sixteen_bits_in_a_wider_mode_are_read_too():
    data = b"P5 4 1 65535\n" + struct.pack(">4H", 0, 1, 32768, 65535)
    np.testing.assert_allclose(
        read(data, MAX_PIXELS)[0, :, 0], np.array([0, 1, 32768, 65535]) / 65535, atol=1e-7
    )


def test_integers_of_unknown_range_are_refused():
    assert "got Pillow's mode 'I'" in refusal(Image.fromarray(np.full((4, 4), 70, np.int32)))
    wide = encoded(np.full((4, 4), 70_000, np.int32), "TIFF")
    assert "from 0 to 65535, got 70000 to 70000" in refusal(wide)


def test_floats_are_left_as_they_are():
    floats = np.random.default_rng(0).random((6, 7), np.float32)
    for image in (
        from_pillow(Image.fromarray(floats), MAX_PIXELS),
        read(encoded(floats, "TIFF"), MAX_PIXELS),
    ):
        np.testing.assert_array_equal(image[..., 0], floats)


def test_a_mode_that_pillow_cannot_convert_is_named(monkeypatch):
    def convert(self, mode):
        raise ValueError(f"conversion from {self.mode} to {mode} not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)  # LAB, before Pillow 12
    assert refusal(Image.new("CMYK", (4, 4))) == (
        "its pixels (mode 'CMYK') are of no use: conversion from CMYK to RGB not supported"
    )


def test_an_image_of_no_pixels_is_refused():
    assert refusal(Image.new("RGB", (0, 5))) == "expected at least one pixel, got 0 x 5"


# --- orientation ---


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def turned_away(image, orientation):
    """Pixels as a camera stores them that writes this orientation: the inverse, by numpy."""
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    return np.ascontiguousarray(store[orientation](image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright(kind, orientation):
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    options = {"lossless": True} if kind == "WEBP" else options
    data = encoded(turned_away(SMOOTH, orientation), kind, exif=exif(orientation), **options)
    by_pillow = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    for image in (read(data, MAX_PIXELS), from_pillow(Image.open(io.BytesIO(data)), MAX_PIXELS)):
        np.testing.assert_array_equal(image, by_pillow)
        assert image.shape == SMOOTH.shape
        assert np.abs(image.astype(int) - SMOOTH).max() <= (12 if kind == "JPEG" else 0)


def test_sixteen_bits_are_turned_too():
    values = np.arange(24, dtype=np.uint16).reshape(4, 6) * 1000
    data = encoded(np.rot90(values).copy(), "PNG", exif=exif(6))
    np.testing.assert_allclose(read(data, MAX_PIXELS)[..., 0], values / 65535, atol=1e-7)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_left_alone(orientation):
    data = encoded(SMOOTH, "PNG", exif=exif(orientation))
    np.testing.assert_array_equal(read(data, MAX_PIXELS), SMOOTH)


@pytest.mark.parametrize("junk", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk"])
def test_damaged_exif_data_does_not_cost_the_image(junk):
    data = encoded(SMOOTH, "PNG", exif=junk)
    np.testing.assert_array_equal(read(data, MAX_PIXELS), SMOOTH)


# --- limits ---


def test_a_bomb_is_refused_by_its_header():
    assert refusal(png_header(60_000, 60_000)) == (
        "expected at most 89478485 pixels, got 60000 x 60000, and it was not decoded; "
        "max_pixels=… moves the limit"
    )


@pytest.mark.parametrize("side", [9_500, 14_000, 60_000])
@pytest.mark.parametrize("strict", [False, True])
def test_pillows_own_warning_and_error_do_not_come_out(side, strict):
    """It warns from 89 million pixels on, and raises from twice as many."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error" if strict else "always")
        assert f"got {side} x {side}" in refusal(png_header(side, side))
    assert not caught


def test_the_limit_is_on_pixels_and_may_be_moved():
    data = encoded(RGB)
    pixels = SIZE[0] * SIZE[1]
    assert read(data, pixels).shape == RGB.shape
    assert f"at most {pixels - 1} pixels, got 40 x 24" in refusal(data, pixels - 1)
    assert "truncated or damaged" in refusal(png_header(9_500, 9_500), 10**9)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
def test_a_limit_beyond_pillows_own_is_pillows_for_some_formats(kind, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert refusal(encoded(RGB, kind)).startswith(
        f"{kind} has Pillow's own limit besides, PIL.Image.MAX_IMAGE_PIXELS: Image size (960 "
    )


def test_a_pillow_image_is_measured_before_it_is_loaded():
    data = encoded(RGB)[:60]  # the header is whole, the pixels are not
    assert "at most 10 pixels" in refusal(Image.open(io.BytesIO(data)), 10)


def test_a_gif_whose_frame_is_larger_than_it_says_is_refused():
    data = bytearray(encoded(Image.new("P", (4, 4)), "GIF"))
    at = data.index(b",")
    data[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    assert "pixels" in refusal(bytes(data))


def test_a_compressed_text_that_grows_is_refused():
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(b"\0" * (80 << 20), 1))
    data = encoded(RGB)
    assert "truncated or damaged" in refusal(data[:33] + text + data[33:])


# --- broken files ---


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "expected an encoded image, got 0 bytes"),
        (
            b"hello world, this is text",
            "JPEG2000 or AVIF, got bytes that begin with b'hello world, thi'",
        ),
        (b"P", "got bytes that begin with b'P'"),
        (b"\xff\xd8\xff", "its JPEG header is truncated or damaged"),
        (b"BM, they said", "its BMP header is truncated or damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "expected PNG, JPEG, "),
        (encoded(RGB)[:20], "its PNG header is truncated or damaged"),
        (encoded(RGB)[:200], "its PNG data (40 x 24 pixels) is truncated or damaged: "),
        (encoded(RGB, "JPEG")[:-300], "its JPEG data (40 x 24 pixels) is truncated or damaged: "),
        (encoded(RGB, "BMP")[:-50], "its BMP data (40 x 24 pixels) is truncated or damaged: "),
        (encoded(RGB, "WEBP")[:-50], "truncated or damaged"),
        (png_header(0, 5), "its PNG header is truncated or damaged"),
    ],
    ids=lambda value: "",
)
def test_what_cannot_be_decoded_is_refused(data, reason):
    assert reason in refusal(data)


def test_formats_beyond_the_list_are_refused_though_pillow_reads_them():
    for kind in ("ICO", "TGA", "SGI"):
        assert kind not in FORMATS
        assert refusal(encoded(RGB, kind)).startswith("expected PNG, JPEG, WEBP, GIF, ")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.png", "cannot be read: No such file or directory"),
        ("", "cannot be read: No such file or directory"),
        (".", "expected a file, got a directory"),
        ("/dev/null", "expected a file, got a device"),
        ("a\0b", "cannot be read: embedded null byte"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("https://example.org/cat.jpg", "No such file or directory; a str is the path of a file"),
    ],
)
def test_paths_that_lead_to_no_file_are_refused(path, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reason in refusal(path)


@pytest.mark.timeout(20)
def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "expected a file, got a device"


def test_files_are_closed(tmp_path):
    """Also those that are refused: an open one would warn, and warnings are errors here."""
    whole, broken = tmp_path / "whole.tif", tmp_path / "broken.jpg"
    whole.write_bytes(encoded(RGB, "TIFF"))
    broken.write_bytes(encoded(RGB, "JPEG")[:-300])
    before = len(list(Path("/proc/self/fd").iterdir()))
    read(whole, MAX_PIXELS)
    refusal(broken)
    refusal(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_closed_pillow_image_is_refused(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(encoded(RGB))
    with Image.open(path) as image:
        pass
    assert "truncated or damaged: " in refusal(image)


SAMPLES = {
    "PNG": encoded(RGB),
    "JPEG": encoded(RGB, "JPEG"),
    "GIF": encoded(RGB, "GIF"),
    "WEBP": encoded(RGB, "WEBP"),
    "BMP": encoded(RGB, "BMP"),
    "TIFF": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "PPM": encoded(RGB, "PPM"),
    "JPEG2000": encoded(RGB, "JPEG2000"),
}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
def test_no_damage_brings_out_anything_but_our_own_error(kind, share, changes):
    data = bytearray(SAMPLES[kind][: int(len(SAMPLES[kind]) * share)])
    for where, byte in changes:
        if data:
            data[int(len(data) * min(where * where, 0.999))] = byte  # headers above all
    try:
        image = read(bytes(data), 1_000_000)
    except PictureError:
        return
    assert image.ndim == 3
    assert image.shape[2] in (1, 3)


# --- Pillow ---


def test_without_pillow_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"an encoded image needs pillow.*\[images\]"):
        read(SAMPLES["PNG"], MAX_PIXELS)
    with pytest.raises(MissingExtraError, match="antialias=False does without"):
        resize_smoothly(RGB, 4, 4, ((0, 4), (0, 4)))


def test_a_codec_that_pillow_was_built_without_is_told(monkeypatch):
    Image.init()
    factory, _ = Image.OPEN["PPM"]
    text = "image file could not be identified because PPM support not installed"
    monkeypatch.setitem(Image.OPEN, "PPM", (factory, lambda prefix: text))
    assert refusal(b"P6 1 1 255 abc") == text


def test_a_prefix_shorter_than_a_plugin_looks_at_is_no_image(monkeypatch):
    Image.init()
    factory, _ = Image.OPEN["PPM"]
    monkeypatch.setitem(Image.OPEN, "PPM", (factory, lambda prefix: prefix[1] == 54))
    assert refusal(b"P").endswith("got bytes that begin with b'P'")


def test_orientation_is_read_by_one_thread_at_a_time(monkeypatch):
    """Pillow takes EXIF data for read from the moment that somebody begins to read it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(np.zeros((8, 9, 3), np.uint8), exif=exif)))
    inside: list[int] = []
    most: list[int] = []
    getexif = Image.Image.getexif

    def slowly(self):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)  # for another to come in, if it may
        found = getexif(self)
        inside.pop()
        return found

    monkeypatch.setattr(Image.Image, "getexif", slowly)
    shapes: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: shapes.append(from_pillow(image, MAX_PIXELS).shape))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == [(9, 8, 3)] * 3
    assert set(most) == {1}


def test_one_unloaded_image_may_be_read_by_many_threads():
    """It has one file, which they would read by turns otherwise."""
    large = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)
    data = encoded(large, "PNG", compress_level=1)
    for _ in range(5):
        image = Image.open(io.BytesIO(data))
        found: list[object] = []
        start = threading.Barrier(6)

        def take(image=image, found=found, start=start):
            start.wait()
            try:
                found.append(np.array_equal(from_pillow(image, MAX_PIXELS), large))
            except PictureError as error:
                found.append(error)

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 6


# --- resizing ---


@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
    ),
    st.integers(1, 40),
    st.integers(1, 40),
    st.data(),
)
def test_a_window_is_cut_from_what_pillow_makes_of_the_whole(image, height, width, data):
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom = data.draw(st.integers(top + 1, height))
    right = data.draw(st.integers(left + 1, width))
    plain = image if image.shape[2] == 3 else image[..., 0]
    whole = np.asarray(Image.fromarray(plain).resize((width, height), Image.Resampling.BILINEAR))
    part = resize_smoothly(image, height, width, ((top, bottom), (left, right)))
    assert part.dtype == np.uint8
    expected = whole.reshape(height, width, -1)[top:bottom, left:right]
    assert np.abs(part.astype(int) - expected).max() <= 1  # of rounding, at the window's own steps


@given(hnp.arrays(np.uint8, (12, 10, 3)), st.integers(12, 40), st.integers(10, 40))
def test_enlarging_needs_no_smoothing(image, height, width):
    smooth = resize_smoothly(image.astype(np.float64), height, width, ((0, height), (0, width)))
    assert smooth.dtype == np.float32
    np.testing.assert_allclose(smooth, resize_bilinear(image, height, width), atol=1e-3)


def test_shrinking_is_smoothed():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    smooth = resize_smoothly(stripes, 16, 16, ((0, 16), (0, 16)))
    assert np.abs(smooth[:, 1:-1].astype(int) - 128).max() < 12


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_floats_of_any_width_are_resized(dtype):
    image = np.random.default_rng(0).random((20, 30, 3)).astype(dtype)
    resized = resize_smoothly(image, 10, 10, ((0, 10), (0, 10)))
    assert resized.dtype == np.float32
    assert abs(resized.mean() - image.astype(np.float64).mean()) < 0.02


def test_a_view_with_strides_is_resized_like_its_copy():
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1))
    for view in (planes.transpose(1, 2, 0), RGB[::-1, ::2], RGB[..., ::-1]):
        window = ((0, 9), (0, 11))
        np.testing.assert_array_equal(
            resize_smoothly(view, 9, 11, window), resize_smoothly(view.copy(), 9, 11, window)
        )


def test_nothing_of_pillow_is_imported_by_the_package():
    code = "import sys, tritonasync.processing.pictures; assert 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
