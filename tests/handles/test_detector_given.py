"""What detectors are given by users besides images: architectures, labels, tensors, names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tritonasync.core.errors import ConfigurationError, InvalidInputError, ProtocolError
from tritonasync.core.values import TensorSpec
from tritonasync.handles.architecture import Plug, Preprocessed
from tritonasync.handles.detector import Candidates, Detector
from tritonasync.handles.vision.detections import Detections

pytestmark = pytest.mark.anyio

IMAGES = [("IMAGE", "FP32", (-1, 3, 64, 64))]
BLACK = np.zeros((64, 64), np.uint8)


def detector(outputs, answer, /, *, inputs=IMAGES, batch=8, **options):
    invoker = FakeInvoker(lambda call: answer)
    served = spec(inputs, outputs, name="net", max_batch_size=batch)
    handle = Detector("net", "", invoker, FakeCatalog(served), timeout_s=30.0, **options)
    handle.sent = invoker.calls
    return handle


def one_anchor(width, classes):
    """One anchor of many is of the last class; rows of anchors, or columns if there are fewer."""
    rows = np.zeros((1, 40, width), np.float32)
    rows[0, 3] = [32, 32, 20, 10, *[0.9] * (width - 4 - classes), *[0] * (classes - 1), 0.95]
    return rows


# --- architectures ---

CORNERS = [("CORNERS", "FP32", (-1, 1, 4))]
CORNER = {"CORNERS": np.array([[[10, 20, 30, 40]]], np.float32)}


def plugged(postprocess, *, preprocess=None, **options):
    plug = Plug(
        "architecture 'mine'",
        preprocess or (lambda images: {"IMAGE": np.zeros((len(images), 3, 64, 64), np.float32)}),
        postprocess,
    )
    return detector(CORNERS, CORNER, plug=plug, **options)


def candidates(boxes, **options):
    count = len(boxes)
    return Candidates(
        np.array(boxes, np.float32), np.linspace(0.9, 0.5, count), np.arange(count), **options
    )


async def test_an_architectures_detections_are_taken_as_they_are():
    made = Detections(
        np.array([[1, 2, 3, 4]], np.float32),
        np.array([0.01], np.float32),
        np.array([7]),
        ("mine",),
        height=5,
        width=6,
    )
    assert await plugged(lambda outputs: [made]).one(BLACK) is made


async def test_an_architectures_candidates_are_in_the_image_that_they_name():
    def postprocess(outputs, sizes):
        boxes = outputs["CORNERS"][0]
        return [candidates([*boxes, *boxes, [0, 0, 500, 500]], image_size=sizes[0])]

    handle = plugged(
        postprocess,
        preprocess=lambda images: Preprocessed(
            {"IMAGE": np.zeros((1, 3, 64, 64), np.float32)}, [image.shape for image in images]
        ),
        labels=["a", "b", "c"],
        class_agnostic=True,
        score_threshold={"c": 0.1},
    )
    found = await handle.one(np.zeros((300, 200), np.uint8))
    assert found.boxes.tolist() == [[10, 20, 30, 40], [0, 0, 200, 300]]
    assert found.labels == ("a", "c")
    assert (found.height, found.width) == (300, 200)


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (
            [candidates([[1, 2, 3, 4]])],
            r"Candidates of postprocess to be in an image of image_size=\(height, width\), got "
            "image_size=None",
        ),
        ([{"boxes": []}], "postprocess to give Detections or Candidates, got dict"),
        ([], "postprocess to give a list of one for each image, 1 in all, got 0"),
        (candidates([]), "postprocess to give a list of one for each image, .*got Candidates"),
    ],
)
async def test_what_an_architecture_gives_besides_is_refused(made, fault):
    with pytest.raises(ConfigurationError, match=f"detector 'net': expected .*{fault}") as caught:
        await plugged(lambda outputs: made).one(BLACK)
    assert caught.value.model == "net"


async def test_an_architecture_that_reads_the_outputs_itself_needs_no_decoder():
    plug = Plug(
        "architecture 'mine'", None, lambda outputs: [candidates([[1, 2, 3, 4]], image_size=(9, 9))]
    )
    found = await detector(CORNERS, CORNER, plug=plug).one(BLACK)
    assert found.boxes.tolist() == [[1, 2, 3, 4]]


# --- labels ---

V8 = [("RAW", "FP32", (-1, 7, 40))]


async def test_labels_may_be_in_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    answer = {"RAW": one_anchor(7, 3).transpose(0, 2, 1)}
    handle = detector(V8, answer, labels=tmp_path / "names.txt")
    assert (await handle.one(BLACK)).labels == ("cat",)
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(ConfigurationError, match=r"expected 3 labels.*, got 2 in '.*names\.txt'"):
        await detector(V8, answer, labels=str(tmp_path / "names.txt")).one(BLACK)


async def test_labels_in_a_file_tell_decoders_apart(tmp_path):
    """Rows of eight: three classes of YOLOv5, or four of YOLOv8."""
    answer = {"RAW": one_anchor(8, 3)}
    for names, expected in (("ant\nbee\ncat", 0.95 * 0.9), ("ant\nbee\ncat\ndog", 0.95)):
        (tmp_path / "names.txt").write_text(names)
        handle = detector(
            [("RAW", "FP32", (-1, 40, 8))], answer, labels=str(tmp_path / "names.txt")
        )
        found = await handle.one(BLACK)
        assert found.scores.tolist() == pytest.approx([expected])


async def test_names_that_come_with_the_model_may_lack():
    outputs = [TensorSpec("RAW", "FP32", (-1, 7, 40), label_filename="labels.txt")]
    handle = detector(outputs, {"RAW": one_anchor(7, 3).transpose(0, 2, 1)})
    for names, label in (
        (("ant", "bee", "cat", "dog"), "cat"),
        (("ant", "bee", ""), "2"),
        (("ant",), "2"),
    ):
        handle._labels._found = names
        handle._labels.lacks = lambda binding: False
        assert (await handle.one(BLACK)).labels == (label,)


# --- candidates that are none ---

BOX = np.array([[1, 2, 3, 4]], np.float32)


class OnGpu:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("use .cpu() first")


@pytest.mark.parametrize(
    ("given", "options", "got"),
    [
        ((BOX, np.float32(0.9), [0]), {}, r"got \[1, 4\], \[\] and \[1\]"),
        ((BOX, [0.9, 0.8], [0, 0]), {}, r"got \[1, 4\], \[2\] and \[2\]"),
        ((None, None, None), {}, "of numbers"),
        (([[1, 2], [3]], [0.9], [0]), {}, "of numbers: .*inhomogeneous"),
        ((BOX, ["high"], [0]), {}, "of numbers: could not convert string"),
        ((BOX, [0.9], ["cat"]), {}, "of numbers"),
        ((OnGpu(), [0.9], [0]), {}, r"of numbers: use \.cpu\(\) first"),
        ((BOX, [0.9], [0]), {"image_size": (0, 9)}, r"image_size=.*got \(0, 9\)"),
        ((BOX, [0.9], [0]), {"image_size": 9}, "image_size=.*got 9"),
        ((BOX, [0.9], [0]), {"image_size": (9, 9, 3)}, r"image_size=.*got \(9, 9, 3\)"),
    ],
)
async def test_candidates_that_do_not_fit_one_another_are_refused(given, options, got):
    handle = detector(CORNERS, CORNER, decode=lambda outputs: [Candidates(*given, **options)])
    with pytest.raises(
        ConfigurationError, match=f"detector 'net': expected candidates with .*{got}"
    ):
        await handle.one(BLACK)


async def test_candidates_may_be_in_any_numbers():
    def decode(outputs):
        sizes = (np.int64(9), np.int64(9))
        return [Candidates([(1, 2, 3, 4)], [np.float64(0.9)], np.array([True]), image_size=sizes)]

    found = await detector(CORNERS, CORNER, decode=decode).one(BLACK)
    assert (found.boxes.tolist(), found.class_ids.tolist()) == ([[1, 2, 3, 4]], [1])
    assert json.loads(json.dumps(found.to_dict()))["height"] == 9


# --- several outputs, and rows ---


async def test_the_user_says_which_output_is_which():
    outputs = [("A", "FP32", (-1, 2, 4)), *[(name, "FP32", (-1, 2)) for name in "BCD"]]
    answer = {
        "A": np.array([[[10, 20, 30, 40], [1, 2, 3, 4]]], np.float32),
        "B": np.array([[1, 2]], np.float32),
        "C": np.array([[0.75, 0.1]], np.float32),
    }
    roles = {"boxes": "A", "classes": "B", "scores": "C"}
    handle = detector(outputs, answer, outputs=roles, decode="efficientnms")
    found = await handle.one(BLACK)
    assert found.boxes.tolist() == [[10, 20, 30, 40]]
    assert (found.scores.tolist(), found.class_ids.tolist()) == ([0.75], [1])
    assert handle.sent[0].outputs == ("A", "B", "C")


async def test_outputs_of_free_size_are_told_anew_when_they_differ():
    answer = {"OUT": np.zeros((1, 300, 6), np.float32)}
    handle = detector([("OUT", "FP32", (-1, -1, 6))], answer)
    assert len(await handle.one(BLACK)) == 0
    answer["OUT"] = np.zeros((1, 5000, 6), np.float32)
    with pytest.raises(ConfigurationError, match=r"several decoders fit .*\[batch, 5000, 6\]"):
        await handle.one(BLACK)


async def test_outputs_that_are_not_read_may_have_any_shape():
    outputs = [("RAW", "FP32", (-1, 7, 40)), ("HEAD", "FP32", (-1, 3, 2, 2, 8))]
    answer = {
        "RAW": one_anchor(7, 3).transpose(0, 2, 1),
        "HEAD": np.zeros((9, 3, 2, 2, 8), np.float32),
    }
    assert len(await detector(outputs, answer).one(BLACK)) == 1


async def test_an_output_that_is_not_in_the_reply_is_an_error():
    with pytest.raises(ProtocolError, match="output 'RAW': expected 1 rows, got no such output"):
        await detector(V8, {}).one(BLACK)


async def test_rows_that_name_their_image_are_given_back_to_it():
    rows = np.array(
        [[2, 1, 2, 3, 4, 0, 0.9], [0, 5, 6, 7, 8, 1, 0.8], [2, 9, 9, 20, 20, 2, 0.7]], np.float32
    )
    handle = detector([("OUT", "FP32", (-1, 7))], {"OUT": rows}, batch=0)
    results = await handle([BLACK] * 4)
    assert [found.class_ids.tolist() for found in results] == [[1], [], [0, 2], []]
    assert results[0].boxes.tolist() == [[5, 6, 7, 8]]
    assert handle.sent[0].rows == 0


async def test_a_function_may_read_rows_of_any_number_of_a_model_without_a_batch_axis():
    rows = np.zeros((3, 5), np.float32)
    handle = detector(
        [("OUT", "FP32", (-1, 5))],
        {"OUT": rows},
        batch=0,
        decode=lambda outputs: [candidates([[1, 2, 3, 4]] * len(outputs["OUT"]))] * 2,
        iou_threshold=None,
    )
    assert [len(found) for found in await handle([BLACK] * 2)] == [3, 3]


async def test_rows_of_another_image_are_an_error():
    rows = np.array([[1, 10, 20, 30, 40, 0, 0.9]], np.float32)
    handle = detector(
        [("OUT", "FP32", (-1, 7))],
        {"OUT": rows},
        inputs=[("IMAGE", "FP32", (-1, 3, 64, 64))],
        batch=0,
    )
    with pytest.raises(ProtocolError, match="model 'net': expected image numbers from 0 to 0 .*1"):
        await handle.one(BLACK)


async def test_rows_of_images_need_a_model_without_a_batch_axis():
    with pytest.raises(ConfigurationError, match="'flat' .*a model whose max_batch_size is 0"):
        await detector([("OUT", "FP32", (-1, 7))], {}).one(BLACK)


# --- tensors and images ---


async def test_an_array_of_the_models_own_shape_goes_as_it_is():
    tensors = np.random.default_rng(0).random((2, 3, 64, 64)) * 9 - 4  # float64
    handle = detector(V8, {"RAW": np.repeat(one_anchor(7, 3).transpose(0, 2, 1), 2, 0)})
    for batch in (tensors, list(tensors)):
        found, _ = await handle(batch)
        np.testing.assert_array_equal(tensor(handle.sent[-1], "IMAGE"), tensors.astype(np.float32))
        assert found.boxes.tolist() == [[22, 27, 42, 37]]
        assert (found.height, found.width) == (64, 64)


async def test_image_options_are_those_of_images():
    handle = detector(
        V8, {"RAW": one_anchor(7, 3).transpose(0, 2, 1)}, resize="stretch", scaling="symmetric"
    )
    found = await handle.one(np.zeros((128, 32), np.uint8))
    assert np.unique(tensor(handle.sent[0], "IMAGE")).tolist() == [-1]
    assert found.boxes.tolist() == [[11, 54, 21, 74]]


@pytest.mark.parametrize("images", [np.zeros((64, 64, 3), np.uint8), 7, "no/such/file.png"])
async def test_one_image_where_several_are_expected_is_refused(images):
    with pytest.raises(InvalidInputError, match=r"model 'net', input 'IMAGE': expected a list of"):
        await detector(V8, {})(images)


async def test_any_iterable_of_images_is_a_batch():
    answer = {"RAW": np.repeat(one_anchor(7, 3).transpose(0, 2, 1), 2, 0)}
    for batch in ((BLACK, BLACK), {1: BLACK, 2: BLACK}.values(), iter([BLACK, BLACK])):
        assert len(await detector(V8, answer)(batch)) == 2


async def test_an_empty_batch_is_refused():
    for batch in ([], (), iter(())):
        with pytest.raises(InvalidInputError, match="empty batch"):
            await detector(V8, {})(batch)
