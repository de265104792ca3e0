"""What the handles answer is what the network itself gives: the ONNX files run here, directly."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("onnxruntime", reason="runs the networks without a server")

import onnxruntime
from PIL import Image

from examples.demo import digits
from examples.demo.scenes import scenes

pytestmark = [pytest.mark.server, pytest.mark.anyio]

MODELS = Path(__file__).parents[2] / "examples/demo/models"


@pytest.fixture
def pool(demo_pool):
    return demo_pool


def run_directly(model, images):
    session = onnxruntime.InferenceSession(
        MODELS / model / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


async def test_the_classifiers_scores_and_accuracy_are_the_networks_own(pool):
    unseen = digits.held_out()
    expected = softmax(run_directly("digits", unseen.images[:, None]))

    classifier = pool.classifier("digits", labels=digits.CLASSES)
    answers = await classifier(unseen.images[:, None])

    np.testing.assert_allclose(answers.scores, expected, atol=1e-6)
    accuracy = float((answers.indices == unseen.labels).mean())
    assert accuracy == float((expected.argmax(axis=1) == unseen.labels).mean())
    assert accuracy > 0.98


async def test_images_that_the_handle_prepares_score_as_if_prepared_by_hand(pool):
    """Grey uint8 pictures, 0 to 255, as files hold them: the handle scales and lays them out."""
    unseen = digits.held_out()
    pictures = np.rint(unseen.images * 255).astype(np.uint8)
    by_hand = pictures[:, None].astype(np.float32) / 255
    expected = softmax(run_directly("digits", by_hand))

    classifier = pool.classifier("digits", labels=digits.CLASSES, scaling="unit")
    as_arrays = await classifier(list(pictures))
    as_pictures = await classifier([Image.fromarray(picture) for picture in pictures])

    np.testing.assert_allclose(as_arrays.scores, expected, atol=1e-6)
    np.testing.assert_allclose(as_pictures.scores, expected, atol=1e-6)


async def test_the_detectors_boxes_are_those_of_the_networks_output(pool):
    images = [scene.image for scene in islice(scenes(digits.held_out(), seed=31), 20)]
    raw = run_directly("scenes", np.stack(images)[:, None].astype(np.float32) / 255)

    detector = pool.detector("scenes", decode="yolov8", score_threshold=0.4, iou_threshold=None)
    for anchors, found in zip(raw, await detector(images), strict=True):
        best = anchors[4:].max(axis=0)
        counted = np.flatnonzero(best > 0.4)
        counted = counted[np.argsort(-best[counted], kind="stable")]
        centres, sizes = anchors[:2, counted].T, anchors[2:4, counted].T
        boxes = np.clip(np.hstack([centres - sizes / 2, centres + sizes / 2]), 0, 128)
        np.testing.assert_allclose(found.scores, best[counted], atol=1e-6)
        np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
        np.testing.assert_array_equal(found.class_ids, anchors[4:, counted].argmax(axis=0))
