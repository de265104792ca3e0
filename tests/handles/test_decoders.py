"""Decoders on synthetic outputs with known boxes, and telling them apart."""

from __future__ import annotations

import numpy as np
import pytest

from tritonasync.core.errors import ConfigurationError
from tritonasync.handles.decoders import decode, pick


def test_yolov8_gives_the_best_class_of_each_anchor():
    output = np.zeros((2, 4 + 3, 10), np.float32)
    output[1, :, 6] = [50, 40, 20, 10, 0.1, 0.8, 0.3]
    first, second = decode("yolov8", output)
    assert first.boxes.shape == second.boxes.shape == (10, 4)
    assert first.boxes.dtype == second.scores.dtype == np.float32
    assert second.boxes[6].tolist() == [40, 35, 60, 45]
    assert second.scores[6] == np.float32(0.8)
    assert second.class_ids[6] == 1
    assert second.scores.sum() == np.float32(0.8)


def test_xyxy_is_what_it_says():
    output = np.zeros((2, 5, 6), np.float32)
    output[0, 2] = [1, 2, 3, 4, 0.9, 7]
    first, second = decode("xyxy", output)
    assert first.boxes[2].tolist() == [1, 2, 3, 4]
    assert first.scores.tolist() == [0, 0, np.float32(0.9), 0, 0]
    assert first.class_ids.tolist() == [0, 0, 7, 0, 0]
    assert second.scores.sum() == 0


def test_a_class_that_is_nan_is_no_crash():
    (only,) = decode("xyxy", np.full((1, 1, 6), np.nan, np.float32))
    assert only.class_ids.tolist() == [0]


@pytest.mark.parametrize(
    ("shape", "decoder"),
    [
        ((1, 84, 8400), "yolov8"),
        ((1, 14, 256), "yolov8"),
        ((-1, 5, 8400), "yolov8"),
        ((1, 300, 6), "xyxy"),
        ((1, 5, 6), "xyxy"),
    ],
)
def test_shapes_tell_decoders_apart(shape, decoder):
    assert pick("auto", {"OUT": shape}, model="net") == (decoder, "OUT")


def test_the_one_output_that_fits_is_taken():
    shapes = {"PROTO": (1, 32, 160, 160), "BOXES": (1, 84, 8400), "COUNT": (1, 1)}
    assert pick("auto", shapes, model="net") == ("yolov8", "BOXES")
    assert pick("yolov8", shapes, model="net") == ("yolov8", "BOXES")


def test_a_decoder_asked_for_by_name_takes_odd_numbers_of_anchors():
    assert pick("yolov8", {"OUT": (1, 84, 6)}, model="net") == ("yolov8", "OUT")
    assert pick("yolov8", {"OUT": (1, 84, 20)}, model="net") == ("yolov8", "OUT")


@pytest.mark.parametrize(
    ("decoder", "shapes", "fault"),
    [
        ("auto", {"OUT": (1, 8400, 84)}, "no output fits the decoder 'auto'"),
        ("auto", {"OUT": (1, 4)}, "no output fits the decoder 'auto'"),
        ("auto", {"A": (1, 84, 8400), "B": (1, 84, 2100)}, "several outputs fit"),
        ("xyxy", {"OUT": (1, 84, 8400)}, "no output fits the decoder 'xyxy'"),
        ("yolov8", {"OUT": (1, 4, 8400)}, "no output fits the decoder 'yolov8'"),
    ],
)
def test_what_cannot_be_told_lists_shapes_and_decoders(decoder, shapes, fault):
    with pytest.raises(ConfigurationError) as caught:
        pick(decoder, shapes, model="net")
    message = str(caught.value)
    assert f"model 'net': {fault}" in message
    for name, shape in shapes.items():
        assert f"'{name}' {list(shape)}" in message
    assert "'yolov8' reads [N, 4 + C, A]" in message
    assert "'xyxy' reads [N, M, 6]" in message
    assert "decoder=…" in message
