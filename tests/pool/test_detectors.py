"""Detectors of every family on the real server: boxes in the pixels of images of many sizes."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from tritonasync.core.errors import ConfigurationError

pytestmark = [pytest.mark.anyio, pytest.mark.server]

FAMILIES = {
    "yolov5": ["YOLOV5"],
    "yolov8": ["YOLOV8"],
    "end2end": ["END2END"],
    "efficientnms": ["num_dets", "det_boxes", "det_scores", "det_classes"],
    "ssd": ["num_detections", "detection_boxes", "detection_scores", "detection_classes"],
    "detr": ["pred_boxes", "logits"],
    "rtdetr": ["pred_boxes", "SIGMOID_LOGITS"],
}
LABELS = ["ant", "bee", "cat", "dog", "elk"]
BOXES = [(20, 10, 120, 50), (8, 16, 24, 100), (16, 16, 48, 48)]


def scene(height, width, box):
    image = np.full((height, width, 3), 20, np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = 250
    return image


SCENES = [scene(100, 200, BOXES[0]), scene(128, 32, BOXES[1]), scene(64, 64, BOXES[2])]


def check(found, image, box):
    (one,) = found
    assert (one.label, one.class_id) == ("cat", 2)
    assert one.score == pytest.approx(0.9, abs=1e-3)
    assert (found.height, found.width) == image.shape[:2]
    np.testing.assert_allclose(one.box, box, atol=max(image.shape[:2]) / 64 + 0.1)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
async def test_each_family_is_understood(pool, family, named):
    decode = family if named or family == "yolov5" else "auto"  # twelve anchors of nine or ten?
    handle = pool.detector("finder", outputs=FAMILIES[family], labels=LABELS, decode=decode)
    for found, image, box in zip(await handle(SCENES), SCENES, BOXES, strict=True):
        check(found, image, box)


async def test_calls_that_share_a_batch_get_their_own(pool):
    handle = pool.detector("finder", outputs=["YOLOV8"], labels=LABELS)
    results = await asyncio.gather(*(handle.one(image) for image in SCENES * 8))
    for found, image, box in zip(results, SCENES * 8, BOXES * 8, strict=True):
        check(found, image, box)


async def test_rows_that_name_their_image_are_given_back_to_it(pool):
    handle = pool.detector("finder_flat", labels=LABELS)
    dark, large = np.zeros((9, 9), np.uint8), scene(64, 64, (0, 0, 60, 60))
    first, nothing, both, last = await handle([SCENES[0], dark, large, SCENES[2]])
    check(first, SCENES[0], BOXES[0])
    check(last, SCENES[2], BOXES[2])
    assert (len(nothing), nothing.height) == (0, 9)
    assert both.labels == ("cat", "bee")
    assert len(await handle.one(dark)) == 0


async def test_outputs_of_many_families_are_an_error_that_lists_them(pool):
    with pytest.raises(ConfigurationError, match=r"several decoders fit its outputs 'YOLOV5'"):
        await pool.detector("finder", labels=LABELS).one(SCENES[0])
    with pytest.raises(ConfigurationError, match=r"no decoder fits its outputs 'det_scores' FP32"):
        await pool.detector("finder", outputs=["det_scores"]).one(SCENES[0])


async def test_files_are_seen_upright(pool, tmp_path):
    stored = Image.fromarray(SCENES[0]).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(file.getvalue())
    handle = pool.detector("finder", outputs=["END2END"], labels=LABELS)
    for image in (file.getvalue(), tmp_path / "turned.png", Image.open(file)):
        found = await handle.one(image)
        check(found, SCENES[0], BOXES[0])
        assert np.median(found.crops(image)[0]) == 250


async def test_a_tensor_of_the_models_own_goes_as_it_is(pool):
    images = np.stack([SCENES[2]] * 2).transpose(0, 3, 1, 2).astype(np.float32) / 255
    results = await pool.detector("finder", outputs=["END2END"], labels=LABELS)(images)
    assert [found.boxes.tolist() for found in results] == [[list(BOXES[2])]] * 2


@pytest.mark.parametrize("resize", ["stretch", "crop"])
async def test_other_ways_of_resizing_are_undone_as_well(pool, resize):
    handle = pool.detector("finder", outputs=["YOLOV8"], labels=LABELS, resize=resize)
    image, box = scene(100, 200, (60, 10, 120, 50)), (60, 10, 120, 50)
    check(await handle.one(image), image, box)
