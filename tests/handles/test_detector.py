"""Detectors from end to end on a model in Python that finds the bright rectangle of an image."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidInputError,
    ProtocolError,
)
from tritonasync.handles.detector import Candidates, Detection, Detector
from tritonasync.handles.vision.images import Canvas
from tritonasync.handles.vision.reading import Reading

pytestmark = pytest.mark.anyio

IMAGES = [("IMAGE", "FP32", (-1, 3, 64, 64))]
LISTED = spec(IMAGES, [("BOXES", "FP32", (-1, -1, 6))], name="scenes")
YOLO = spec(IMAGES, [("RAW", "FP32", (-1, 4 + 3, 40))], name="scenes")


def bright(call):
    """Return [N, 2, 6]: the box of all pixels nearer to bright than to dark, and an empty row."""
    images = tensor(call, "IMAGE").transpose(0, 2, 3, 1)
    boxes = np.zeros((len(images), 2, 6), np.float32)
    for index, image in enumerate(images):
        rows, columns = np.nonzero(image.max(axis=2) > 0.53)
        if rows.size:
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes[index, 0] = [*edges, 0.9, 2]
    return {"BOXES": boxes}


def listed(*rows):
    """A model that gives these rows for each image."""
    return lambda call: {
        "BOXES": np.broadcast_to(
            np.array(rows, np.float32), (len(tensor(call, "IMAGE")), len(rows), 6)
        )
    }


def detector(served=LISTED, model=bright, **options):
    invoker = FakeInvoker(model)
    handle = Detector("scenes", "", invoker, FakeCatalog(served), timeout_s=30.0, **options)
    handle.sent = invoker.calls
    return handle


def scene(height, width, box, channels=3):
    image = np.full((height, width, channels), 20, np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = 250
    return image


# --- boxes in input pixels ---


async def test_boxes_come_in_the_pixels_of_each_image():
    boxes = [(20, 10, 120, 50), (8, 16, 24, 100), (16, 16, 48, 48)]
    images = [
        scene(100, 200, boxes[0]),
        scene(128, 32, boxes[1], channels=1),
        scene(64, 64, boxes[2])[..., 0],
    ]
    results = await detector(labels=["a", "b", "digit"])(images)
    for found, image, box in zip(results, images, boxes, strict=True):
        (only,) = found
        assert isinstance(only, Detection)
        assert (only.label, only.class_id) == ("digit", 2)
        assert only.score == pytest.approx(0.9)
        assert (found.height, found.width) == image.shape[:2]
        pixel = max(image.shape[:2]) / 64  # of the model, in those of the image
        np.testing.assert_allclose(only.box, box, atol=pixel)
        assert found.boxes.dtype == np.float32
        assert found.class_ids.dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(10, 300), st.integers(10, 300))
def test_any_rectangle_in_any_image_is_found_to_a_pixel_of_the_model(data, height, width):
    pixel = max(height, width) / 64
    least = min(int(3 * pixel) + 1, height, width)
    left = data.draw(st.integers(0, width - least))
    top = data.draw(st.integers(0, height - least))
    right = data.draw(st.integers(left + least, width))
    bottom = data.draw(st.integers(top + least, height))
    image = scene(height, width, (left, top, right, bottom))

    async def detect():
        return await detector()([image])

    (found,) = asyncio.run(detect())
    np.testing.assert_allclose(found.boxes, [(left, top, right, bottom)], atol=pixel)


async def test_one_image_gives_its_detections():
    image = scene(100, 200, (20, 10, 120, 50))
    handle = detector()
    found = await handle.one(image)
    assert len(found) == 1
    assert found.labels == ("2",)
    assert handle.sent[0].inputs[0].shape == (1, 3, 64, 64)
    assert handle.sent[0].rows == 1


async def test_an_array_of_images_and_an_iterator_do_as_well():
    images = np.stack([scene(64, 64, (16, 16, 48, 48)), scene(64, 64, (0, 0, 10, 10))])
    for batch in (images, iter(images)):
        found = await detector()(batch)
        assert [one.boxes.tolist() for one in found] == [[[16, 16, 48, 48]], [[0, 0, 10, 10]]]


async def test_an_image_with_nothing_in_it_has_no_detections():
    (found,) = await detector()([np.zeros((10, 20), np.uint8)])
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.labels == ()


async def test_nan_pixels_go_to_the_model():
    image = np.zeros((64, 64, 3), np.float32)
    image[5, 6] = np.nan
    handle = detector()
    await handle([image])
    sent = tensor(handle.sent[0], "IMAGE")
    assert np.argwhere(np.isnan(sent)).tolist() == [[0, c, 5, 6] for c in range(3)]


# --- thresholds, duplicates, limits ---

A = (10, 10, 30, 30, 0.9, 0)
NEARLY_A = (11, 10, 31, 30, 0.8, 0)
NEARLY_A_OTHER_CLASS = (11, 10, 31, 30, 0.7, 1)
B = (40, 40, 60, 60, 0.3, 0)
FAINT = (0, 40, 10, 60, 0.1, 0)


async def scores(*rows, **options):
    found = await detector(model=listed(*rows), **options).one(np.zeros((64, 64), np.uint8))
    return found.scores.round(2).tolist()


async def test_faint_candidates_and_duplicates_are_dropped():
    rows = (B, A, NEARLY_A, NEARLY_A_OTHER_CLASS, FAINT)

    async def scores_at(iou_threshold=0.45, **options):
        return await scores(*rows, iou_threshold=iou_threshold, **options)

    assert await scores_at() == pytest.approx([0.9, 0.7, 0.3])
    assert await scores_at(class_agnostic=True) == pytest.approx([0.9, 0.3])
    assert await scores_at(None) == pytest.approx([0.9, 0.8, 0.7, 0.3])
    assert await scores_at(0.99) == pytest.approx([0.9, 0.8, 0.7, 0.3])
    assert await scores_at(score_threshold=0.5) == pytest.approx([0.9, 0.7])
    assert await scores_at(score_threshold=0) == pytest.approx([0.9, 0.7, 0.3, 0.1])
    assert await scores_at(max_detections=2) == pytest.approx([0.9, 0.7])


async def test_duplicates_are_left_in_where_the_model_removes_them_itself():
    assert await scores(A, NEARLY_A) == pytest.approx([0.9, 0.8])
    image = np.zeros((64, 64), np.uint8)

    def twice(call):
        output = np.zeros((1, 7, 40), np.float32)
        output[0, :, 5] = output[0, :, 6] = [32, 32, 20, 10, 0.1, 0.2, 0.95]
        return {"RAW": output}

    assert len(await detector(YOLO, twice).one(image)) == 1
    assert len(await detector(YOLO, twice, iou_threshold=None).one(image)) == 2


async def test_each_class_may_have_a_threshold_of_its_own():
    rows = (A, NEARLY_A_OTHER_CLASS, B)
    labels = ["cat", "dog"]
    assert await scores(*rows, score_threshold={"cat": 0.5}, labels=labels) == pytest.approx(
        [0.9, 0.7]
    )
    assert await scores(
        *rows, score_threshold={"cat": 0.1, "*": 0.8}, labels=labels
    ) == pytest.approx([0.9, 0.3])
    assert await scores(*rows, score_threshold={1: 0.8}) == pytest.approx([0.9, 0.3])
    assert await scores(*rows, score_threshold={}) == pytest.approx([0.9, 0.7, 0.3])
    assert await scores(*rows, FAINT, score_threshold={0: 0.05}) == pytest.approx(
        [0.9, 0.7, 0.3, 0.1]
    )


def test_a_threshold_for_a_class_that_there_is_none_of_is_refused():
    with pytest.raises(ConfigurationError, match=r"'bird', but the labels are cat, dog"):
        detector(score_threshold={"bird": 0.5}, labels=["cat", "dog"])


async def test_a_threshold_by_name_needs_labels():
    with pytest.raises(ConfigurationError, match="class 'bird', but there are no labels"):
        await scores(A, score_threshold={"bird": 0.5})


async def test_classes_below_the_first_are_background():
    rows = (A, NEARLY_A_OTHER_CLASS, (40, 40, 60, 60, 0.3, -1))
    image = np.zeros((64, 64), np.uint8)
    found = await detector(model=listed(*rows)).one(image)
    assert found.class_ids.tolist() == [0, 1]
    found = await detector(model=listed(*rows), class_offset=1, labels=["dog"]).one(image)
    assert (found.class_ids.tolist(), found.labels) == ([0], ("dog",))


async def test_candidates_without_a_score_are_never_taken():
    assert await scores((10, 10, 30, 30, 0, 0), score_threshold=0) == []


async def test_what_is_found_beside_the_image_takes_nobodys_place():
    beside, within = [0, 0, 64, 10, 0.99, 2], [0, 20, 32, 40, 0.9, 2]
    flat = [8, 30, 8, 40, 0.95, 2]
    handle = detector(model=listed(beside, flat, within), max_detections=1)
    found = await handle.one(np.zeros((32, 64), np.uint8))  # in the middle of 64 x 64
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.boxes.tolist() == [[0, 4, 32, 24]]


async def test_candidates_that_are_not_finite_are_dropped():
    nan, inf = float("nan"), float("inf")
    rows = ((nan, 10, 30, 30, 0.9, 0), (10, 10, inf, 30, 0.9, 0), (10, 10, 30, 30, nan, 0), B)
    assert await scores(*rows) == pytest.approx([0.3])
    assert await scores((10, 10, 30, 30, inf, 0), (10, 10, 30, 30, 0.9, nan), B) == pytest.approx(
        [0.3]
    )


async def test_boxes_of_any_size_are_no_overflow():
    found = await detector(model=listed((-3e38, 0, 3e38, 3e38, 0.9, 0))).one(np.zeros((9, 7), "u1"))
    assert found.boxes.tolist() == [[0, 0, 7, 9]]


async def test_boxes_are_cut_to_the_image_and_those_beside_it_are_dropped():
    """In a 64 x 32 image, the canvas has 16 columns of padding at either side."""
    rows = ((0, -5, 30, 20, 0.9, 0), (0, 30, 16, 60, 0.8, 0), (40, 50, 60, 90, 0.7, 0))
    found = await detector(model=listed(*rows)).one(np.zeros((64, 32), np.uint8))
    assert found.boxes.tolist() == [[0, 0, 14, 20], [24, 50, 32, 64]]


# --- decoders ---


def anchors(call):
    output = np.zeros((len(tensor(call, "IMAGE")), 7, 40), np.float32)
    output[:, :, 5] = [32, 32, 20, 10, 0.1, 0.2, 0.95]
    return {"RAW": output}


@pytest.mark.parametrize("decode", ["auto", "yolov8"])
async def test_yolo_outputs_are_understood(decode):
    handle = detector(YOLO, anchors, decode=decode, labels=["a", "b", "c"])
    found = await handle.one(np.zeros((128, 128), np.uint8))
    assert found.boxes.tolist() == [[44, 54, 84, 74]]
    assert found.labels == ("c",)


async def test_a_decoder_of_ones_own_gets_the_outputs_by_name():
    seen = {}

    def decode(outputs):
        seen.update(outputs)
        boxes = outputs["CORNERS"].astype(np.float64)
        return [Candidates(row, np.ones(len(row)), np.zeros(len(row), np.uint8)) for row in boxes]

    served = spec(IMAGES, [("CORNERS", "FP16", (-1, 1, 4)), ("COUNT", "INT32", (-1, 1))])
    answer = {
        "CORNERS": np.array([[[0, 0, 32, 32]]], np.float16),
        "COUNT": np.array([[1]], np.int32),
    }
    found = await detector(served, lambda call: answer, decode=decode).one(
        np.zeros((128, 64), "u1")
    )
    assert found.boxes.tolist() == [[0, 0, 32, 64]]
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert {name: array.dtype for name, array in seen.items()} == {
        "CORNERS": np.float32,
        "COUNT": np.int32,
    }


@pytest.mark.parametrize(
    ("made", "got"),
    [
        ([], "decode to give a list of one for each image, 1 in all, got 0"),
        (None, "decode to give a list of one for each image, 1 in all, got NoneType"),
        (["box"], "decode to give Candidates, got str"),
        (
            [Candidates(np.zeros((2, 4)), np.zeros(3), np.zeros(2))],
            r"boxes \[K, 4\], scores \[K\] and class_ids \[K\], got \[2, 4\], \[3\] and \[2\]",
        ),
    ],
)
async def test_a_decoder_of_ones_own_that_gives_something_else_is_an_error(made, got):
    handle = detector(decode=lambda outputs: made)
    with pytest.raises(ConfigurationError, match=f"detector 'scenes': expected .*{got}"):
        await handle.one(np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ({}, [0, 0, 32, 64]),
        ({"normalized": True}, [0, 0, 64, 128]),
        ({"image_size": (128, 64)}, [0, 0, 32, 32]),
        ({"image_size": (128, 64), "normalized": True}, [0, 0, 64, 128]),
    ],
)
async def test_candidates_say_what_their_boxes_are_in(candidates, expected):
    """A 64 x 128 image lies in the middle half of a canvas of 64 x 64."""
    side = 1 if "normalized" in candidates else 32
    box = np.array([[0, 0, side, side]], np.float32)

    def decode(outputs):
        return [Candidates(box, np.ones(1, np.float32), np.zeros(1, np.int64), **candidates)]

    found = await detector(decode=decode).one(np.zeros((128, 64), np.uint8))
    assert found.boxes.tolist() == [expected]
    assert (found.height, found.width) == (128, 64)


async def test_outputs_to_read_are_chosen_by_name():
    served = spec(IMAGES, [("BOXES", "FP32", (-1, -1, 6)), ("OTHER", "FP32", (-1, 7, 6))])
    handle = detector(served, outputs=["BOXES"])
    await handle.one(np.zeros((8, 8), np.uint8))
    assert handle.sent[0].outputs == ("BOXES",)
    both = detector(served, lambda call: {**bright(call), "OTHER": np.zeros((1, 7, 6), "f4")})
    with pytest.raises(
        ConfigurationError, match=r"several outputs are: 'BOXES', 'OTHER'; say .*outputs="
    ):
        await both.one(np.zeros((8, 8), np.uint8))


async def test_shapes_that_fit_no_decoder_are_refused_before_anything_is_sent():
    handle = detector(spec(IMAGES, [("OUT", "FP32", (-1, 256, 3))]))
    with pytest.raises(ConfigurationError, match=r"no decoder fits.*'OUT' FP32 \[batch, 256, 3\]"):
        await handle.one(np.zeros((8, 8), np.uint8))
    assert handle.sent == []


@pytest.mark.parametrize(
    ("served", "model", "count", "expected"),
    [
        (YOLO, anchors, 4, "3 labels, one for each class .*, got 4"),
        (YOLO, anchors, 2, "3 labels, one for each class .*, got 2"),
        (LISTED, bright, 2, "labels for all classes, also for class 2 that .*, got 2 labels"),
    ],
)
async def test_labels_that_do_not_fit_the_classes_are_an_error(served, model, count, expected):
    handle = detector(served, model, labels=list("abcdefgh"[:count]))
    with pytest.raises(ConfigurationError, match=f"detector 'scenes': expected {expected}"):
        await handle.one(scene(64, 64, (16, 16, 48, 48)))


# --- options ---


async def waiting(outputs):
    return outputs


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"decode": "yolov9"}, 'decode is "auto", "yolov5", "yolov8"'),
        ({"decode": "yolov9"}, "or a function, not 'yolov9'"),
        ({"layout": "CHW"}, 'layout is "NCHW" or "NHWC"'),
        ({"image_size": (0, 64)}, "image_size is"),
        ({"image_size": (64,)}, "image_size is"),
        ({"image_sise": 32}, "did you mean 'image_size'?"),
        ({"score_threshold": "0.5"}, "score_threshold is"),
        ({"max_detections": "3"}, "max_detections is"),
        ({"outputs": "OUT"}, "outputs is a list of names"),
        ({"outputs": []}, "outputs is a list of names"),
        ({"outputs": {"box": "OUT"}}, "by boxes, classes, count, logits, output, scores, not by"),
        ({"score_threshold": 1.5}, "score_threshold is"),
        ({"score_threshold": {"a": 1.5}}, "score_threshold is"),
        ({"score_threshold": {0.5: 0.5}}, "score_threshold is"),
        ({"class_offset": -1}, "class_offset is"),
        ({"class_agnostic": "yes"}, "class_agnostic is"),
        ({"iou_threshold": "off"}, "iou_threshold is"),
        ({"score_threshold": float("nan")}, "score_threshold is"),
        ({"iou_threshold": -0.1}, "iou_threshold is"),
        ({"max_detections": 0}, "max_detections is"),
        ({"labels": b"abc"}, "labels is a list of strings"),
        ({"iou_threshold": np.array([0.4, 0.5])}, "iou_threshold is"),
        ({"max_detections": True}, "max_detections is"),
        ({"class_offset": True}, "class_offset is"),
        ({"decode": waiting}, "decode is a plain function, not an async one"),
        (
            {"score_threshold": {3: 0.5}, "labels": ["a", "b", "c"]},
            "score_threshold is given for class 3, but there are 3 labels",
        ),
        ({"score_threshold": {-1: 0.5}, "labels": ["a"]}, "for class -1, but there are 1 labels"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, rule):
    with pytest.raises(ConfigurationError) as caught:
        detector(**options)
    assert str(caught.value).startswith("detector 'scenes': ")
    assert rule in str(caught.value)


async def test_wrong_images_are_refused_before_anything_is_sent():
    handle = detector()
    with pytest.raises(
        InvalidInputError, match=r"model 'scenes', input 'IMAGE': image 0: expected"
    ):
        await handle([np.zeros((4, 4, 5), np.uint8)])
    with pytest.raises(InvalidInputError, match="empty batch"):
        await handle([])
    assert handle.sent == []


async def test_a_model_reloaded_with_another_size_gets_that_size():
    handle = detector()
    await handle.one(np.zeros((8, 8), np.uint8))
    handle._catalog.served = spec([("IMAGE", "FP32", (-1, 3, 32, 32))], LISTED.outputs)
    handle._catalog.forget("scenes")
    await handle.one(np.zeros((8, 8), np.uint8))
    assert handle.sent[1].inputs[0].shape == (1, 3, 32, 32)


async def test_an_answer_with_other_rows_is_an_error():
    handle = detector(model=lambda call: {"BOXES": np.zeros((3, 2, 6), np.float32)})
    with pytest.raises(
        ProtocolError, match=r"output 'BOXES': expected 1 rows, got shape \[3, 2, 6\]"
    ):
        await handle.one(np.zeros((8, 8), np.uint8))


async def test_a_model_without_a_batch_axis_of_its_own_takes_images_all_the_same():
    served = spec(
        [("IMAGE", "FP32", (1, 3, 64, 64))], [("BOXES", "FP32", (1, -1, 6))], max_batch_size=0
    )
    handle = detector(served)
    found = await handle.one(scene(64, 64, (16, 16, 48, 48)))
    assert found.boxes.tolist() == [[16, 16, 48, 48]]
    assert handle.sent[0].rows == 0
    with pytest.raises(InvalidInputError, match=r"expected 1 row\(s\) a call.* got 2"):
        await handle([np.zeros((8, 8), np.uint8)] * 2)


# --- threads and time ---


async def test_long_work_runs_in_another_thread_before_and_after(monkeypatch):
    threads = []

    def spy(owner, name):
        function = getattr(owner, name)

        def watched(*arguments, **options):
            threads.append(threading.get_ident())
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    spy(Canvas, "render")
    spy(Reading, "detections")
    here = threading.get_ident()
    handle = detector(model=listed(*[A] * 30_000), decode="end2end")
    await handle([np.zeros((1500, 1500, 3), np.uint8)])
    assert len(threads) == 2
    assert here not in threads
    threads.clear()
    await detector().one(np.zeros((32, 32), np.uint8))
    assert threads == [here, here]


async def test_time_that_runs_out_during_preparation_names_that_stage():
    big = [np.zeros((2000, 2000, 3), np.uint8)] * 50
    handle = detector()
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError) as caught:
        await handle(big, timeout_s=0.01)
    assert caught.value.stage == "encode"
    assert caught.value.model == "scenes"
    assert time.monotonic() - started < 1  # an image at most, not all fifty
    assert handle.sent == []
