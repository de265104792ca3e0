"""Decoders on synthetic outputs made of known boxes, by the inverse of what the decoder does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import TensorSpec
from tritonasync.handles.vision.decoding.choice import FAMILIES, Reader
from tritonasync.handles.vision.decoding.family import Known

SIDE = 64
CLASSES = 5


@st.composite
def objects(draw, most=4):
    """Boxes in whole pixels, each with a class and a score of its own."""
    count = draw(st.integers(0, most))
    near = draw(
        st.lists(st.tuples(*[st.integers(0, SIDE - 2)] * 2), min_size=count, max_size=count)
    )
    boxes = [
        (left, top, draw(st.integers(left + 1, SIDE)), draw(st.integers(top + 1, SIDE)))
        for left, top in near
    ]
    classes = draw(st.lists(st.integers(0, CLASSES - 1), min_size=count, max_size=count))
    scores = draw(
        st.lists(st.integers(30, 99), min_size=count, max_size=count, unique=True).map(
            lambda found: [share / 100 for share in found]
        )
    )
    return sorted(zip(scores, classes, boxes, strict=True))


def centres(boxes, scale=1):
    left, top, right, bottom = np.reshape(boxes, (-1, 4)).astype(np.float32).T / scale
    return np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], axis=1)


def anchors_v8(found):
    """Twelve anchors, the objects' among them, each with two classes that are less likely."""
    rows = np.zeros((12, 4 + CLASSES), np.float32)
    rows[:, 4:] = 0.01
    for place, (score, kind, box) in enumerate(found):
        rows[3 + 2 * place, :4] = centres([box])
        rows[3 + 2 * place, 4 + (kind + 1) % CLASSES] = score / 2
        rows[3 + 2 * place, 4 + kind] = score
    return rows


def v8(batch):
    return {"output": np.stack([anchors_v8(found).T for found in batch])}


def v8_transposed(batch):
    return {"output": np.stack([anchors_v8(found) for found in batch])}


def v5(batch):
    """Objectness times class score is the score; objectness alone is more."""
    output = np.zeros((len(batch), 12, 5 + CLASSES), np.float32)
    for image, found in zip(output, batch, strict=True):
        image[0] = [5, 5, 4, 4, 0.9, *[0.1] * CLASSES]  # there is something, but what?
        image[1] = [5, 5, 4, 4, 0.05, *[0.99] * CLASSES]  # it is surely one of all, but is it?
        for place, (score, kind, box) in enumerate(found):
            image[3 + 2 * place] = [*centres([box])[0], 0.995, *[0.1] * CLASSES]
            image[3 + 2 * place, 5 + kind] = score / 0.995
    return {"output": output}


def end2end(batch):
    output = np.zeros((len(batch), 10, 6), np.float32)
    output[:, 7] = [1, 1, 2, 2, 0.04, 1]
    for image, found in zip(output, batch, strict=True):
        for place, (score, kind, box) in enumerate(found):
            image[place] = [*box, score, kind]
    return {"output": output}


def flat(batch):
    rows = [
        [image, *box, kind, score]
        for image, found in enumerate(batch)
        for score, kind, box in found
    ]
    return {"output": np.array(rows[::-1], np.float32).reshape(-1, 7)}


def listed(batch, *, first=0, floats=False):
    """What is behind the count is garbage."""
    count, most = len(batch), 6
    tensors = {
        "boxes": np.full((count, most, 4), 7, np.float32),
        "scores": np.full((count, most), 0.97, np.float32),
        "classes": np.full((count, most), 3, np.float32 if floats else np.int32),
        "count": np.array([len(found) for found in batch], np.float32 if floats else np.int32),
    }
    for image, found in enumerate(batch):
        for place, (score, kind, box) in enumerate(found):
            tensors["boxes"][image, place] = box
            tensors["scores"][image, place] = score
            tensors["classes"][image, place] = kind + first
    return tensors


def plugin(batch):
    tensors = listed(batch)
    return {**tensors, "count": tensors["count"][:, None]}


def ssd(batch):
    tensors = listed(batch, first=1, floats=True)
    return {**tensors, "boxes": tensors["boxes"][..., [1, 0, 3, 2]] / SIDE}


def ssd_without_count(batch):
    tensors = ssd(batch)
    for image, found in enumerate(batch):
        tensors["scores"][image, len(found) :] = 0
    del tensors["count"]
    return tensors


def queries(batch, logits_of, background):
    width = CLASSES + (1 if background else 0)
    boxes = np.full((len(batch), 6, 4), 0.5, np.float32)
    shares = np.full((len(batch), 6, width), 0.001, np.float32)
    if background:
        shares[..., -1] = 1 - 0.001 * CLASSES
    for image, found in enumerate(batch):
        for place, (score, kind, box) in enumerate(found):
            boxes[image, place] = centres([box], SIDE)[0]
            shares[image, place, kind] = score
            if background:
                shares[image, place, -1] = 1 - score - 0.001 * (CLASSES - 1)
    return {"boxes": boxes, "logits": logits_of(shares).astype(np.float32)}


def detr(batch):
    return queries(batch, lambda shares: np.log(np.maximum(shares, 1e-6)) + 3, background=True)


def rtdetr(batch):
    return queries(batch, lambda shares: np.log(shares / (1 - shares)), background=False)


OUTPUTS = {
    "v8": ("yolov8", v8),
    "v8 transposed": ("yolov8", v8_transposed),
    "v5": ("yolov5", v5),
    "end2end": ("end2end", end2end),
    "flat": ("flat", flat),
    "plugin": ("efficientnms", plugin),
    "ssd": ("ssd", ssd),
    "ssd without count": ("ssd", ssd_without_count),
    "detr": ("detr", detr),
    "rtdetr": ("rtdetr", rtdetr),
}


def decoded(name, tensors, rows, floor=0.2):
    reader = Reader(FAMILIES[name], {role: role for role in tensors}, "net")
    return reader.decode(tensors, floor, rows)


@pytest.mark.parametrize("kind", OUTPUTS)
@given(batch=st.lists(objects(), min_size=1, max_size=3))
def test_known_boxes_come_back(kind, batch):
    name, make = OUTPUTS[kind]
    family = FAMILIES[name]
    results = decoded(name, make(batch), len(batch))
    assert len(results) == len(batch)
    for found, expected in zip(results, batch, strict=True):
        order = np.argsort(found.scores)
        boxes = found.boxes[order] * (SIDE if found.normalized else 1)
        assert found.class_ids[order].tolist() == [c + family.first_class for _, c, _ in expected]
        np.testing.assert_allclose(found.scores[order], [s for s, _, _ in expected], rtol=2e-3)
        np.testing.assert_allclose(boxes, np.reshape([b for *_, b in expected], (-1, 4)), atol=1e-3)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_inverse_fits_the_family_by_its_shapes(kind):
    name, make = OUTPUTS[kind]
    batch = [[(0.5, 1, (1, 2, 30, 40))]]
    outputs = [
        TensorSpec(role, "FP32" if array.dtype == np.float32 else "INT32", array.shape)
        for role, array in make(batch).items()
    ]
    roles = {role: role for role in make(batch)}
    known = Known(asked=True, batched=name != "flat", roles={} if len(roles) == 1 else roles)
    assert FAMILIES[name].fit(outputs, known) == {
        role if len(roles) > 1 else "output": role for role in roles
    }


@pytest.mark.parametrize("kind", OUTPUTS)
def test_nan_and_infinity_are_no_crash(kind):
    name, make = OUTPUTS[kind]
    for value in (np.nan, np.inf, -np.inf):
        tensors = {
            role: np.full_like(array, value) if array.dtype == np.float32 else array
            for role, array in make([[(0.5, 1, (1, 2, 30, 40))]]).items()
        }
        if name == "flat":
            tensors["output"][:, 0] = 0
        for found in decoded(name, tensors, 1):
            assert found.class_ids.dtype == np.int64
            assert found.boxes.shape == (len(found.scores), 4)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_nothing_is_above_the_highest_floor(kind):
    name, make = OUTPUTS[kind]
    (found,) = decoded(name, make([[(0.5, 1, (1, 2, 30, 40))]]), 1, floor=1)
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.class_ids.shape == (0,)


def test_rows_of_images_that_there_are_none_of_are_an_error():
    rows = flat([[(0.5, 1, (1, 2, 30, 40))]] * 3)
    with pytest.raises(ProtocolError, match=r"model 'net': expected image numbers from 0 to 1 .*2"):
        decoded("flat", rows, 2)


@pytest.mark.parametrize(
    ("name", "make", "score"), [("yolov5", v5, (0, 3, 6)), ("yolov8", v8, (0, 5, 3))]
)
def test_what_cannot_be_scores_is_an_error(name, make, score):
    tensors = make([[(0.5, 1, (1, 2, 30, 40))]])
    for value in (1.01, np.nan, np.inf):  # by rounding; dropped later on
        tensors["output"][score] = value
        decoded(name, tensors, 1)
    tensors["output"][score] = 412  # the place of a joint
    with pytest.raises(ProtocolError, match=r"model 'net': expected class scores .*, got 4\d\d"):
        decoded(name, tensors, 1)


def test_each_likely_class_of_a_query_of_rtdetr_counts():
    logits = np.array([[[2, -9, 1]]], np.float32)
    (found,) = decoded("rtdetr", {"logits": logits, "boxes": np.full((1, 1, 4), 0.5, "f4")}, 1)
    assert found.class_ids.tolist() == [0, 2]
    assert found.boxes.shape == (2, 4)


def test_no_object_is_no_class_of_detr():
    logits = np.array([[[0.0, 0.1, 9.0], [9.0, 0.0, 0.0]]], np.float32)
    (found,) = decoded("detr", {"logits": logits, "boxes": np.full((1, 2, 4), 0.5, "f4")}, 1, 0)
    assert found.class_ids.tolist() == [1, 0]
    assert found.scores[0] < 0.001 < 0.99 < found.scores[1]


def test_a_count_below_none_or_beyond_the_rows_is_no_crash():
    tensors = plugin([[(0.5, 1, (1, 2, 30, 40))]])
    for count, expected in ((-1, 0), (100, 6)):
        (found,) = decoded("efficientnms", {**tensors, "count": np.array([[count]])}, 1)
        assert len(found.scores) == expected
