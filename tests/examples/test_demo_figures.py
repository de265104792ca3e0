"""What the demo calls right, and when it fails."""

import numpy as np
import pytest

from examples.demo.figures import Detection, compare, nearest
from examples.demo.report import Rate, Report

TRUE_BOXES = np.array([[0, 0, 10, 10], [50, 50, 60, 70]], np.float32)
TRUE_LABELS = np.array([3, 7])


def shifted(pixels: float) -> np.ndarray:
    return TRUE_BOXES + np.array([pixels, 0, pixels, 0], np.float32)


def test_the_truth_itself_is_found_whole():
    result = compare(TRUE_BOXES, TRUE_LABELS, TRUE_BOXES, TRUE_LABELS)
    assert (result.precision, result.recall) == (1, 1)


@pytest.mark.parametrize(("pixels", "found"), [(3, 2), (4, 0)])
def test_a_box_is_right_from_iou_one_half_on(pixels, found):
    # Ten pixels wide and moved by d: IoU (10 - d) / (10 + d), 0.54 for 3 and 0.43 for 4.
    assert compare(shifted(pixels), TRUE_LABELS, TRUE_BOXES, TRUE_LABELS).found == found


def test_the_wrong_digit_in_the_right_place_is_wrong():
    assert compare(TRUE_BOXES, np.array([3, 1]), TRUE_BOXES, TRUE_LABELS).found == 1


def test_a_second_box_on_one_digit_is_a_false_alarm():
    boxes, labels = np.tile(TRUE_BOXES[:1], (2, 1)), np.array([3, 3])
    result = compare(boxes, labels, TRUE_BOXES, TRUE_LABELS)
    assert result == Detection(found=1, given=2, true=2)


def test_nothing_found_and_nothing_there_are_counted():
    none = np.empty((0, 4), np.float32), np.empty(0, np.int64)
    assert compare(*none, TRUE_BOXES, TRUE_LABELS) == Detection(0, 0, 2)
    assert compare(TRUE_BOXES, TRUE_LABELS, *none) == Detection(0, 2, 0)
    assert (Detection().precision, Detection().recall) == (0, 0)


def test_images_add_up():
    total = Detection(1, 2, 4) + Detection(2, 2, 2)
    assert (total.precision, total.recall) == (0.75, 0.5)


def test_a_sentence_is_never_its_own_neighbour():
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    others, cosines = zip(*nearest(vectors), strict=True)
    assert others == (1, 0, 1)
    np.testing.assert_allclose(cosines, [0.8, 0.8, 0.6], rtol=1e-6)


def test_a_missed_goal_fails_the_demo_and_is_named(capsys):
    report = Report()
    report.figure("accuracy", 0.98, goal=0.97)
    report.figure("recall", 0.899, goal=0.90)
    report.rates.append(Rate("digits", 1234, 56789))
    assert not report.finish()
    table = capsys.readouterr().out
    assert "90.0%     89.9%  MISSED" in table
    assert "97.0%     98.0%  met" in table
    assert "1,234     56,789" in table


def test_a_goal_that_is_just_reached_is_met(capsys):
    report = Report()
    report.figure("recall", 0.90, goal=0.90)
    assert report.finish()
    assert "every goal met" in capsys.readouterr().out


def test_a_demo_that_measured_nothing_has_failed(capsys):
    assert not Report().finish()
