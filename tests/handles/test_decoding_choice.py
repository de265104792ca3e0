"""Telling by names and shapes which decoder reads which outputs, or saying why none does."""

from __future__ import annotations

import pytest

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.values import TensorSpec
from tritonasync.handles.vision.decoding.choice import CHOICES, FAMILIES, choose
from tritonasync.handles.vision.decoding.family import Known


def tensors(shapes):
    """Outputs by name: FP32, or INT32 where the shape is in a tuple with the type."""
    return [
        TensorSpec(name, *(shape if isinstance(shape[0], str) else ("FP32", shape)))
        for name, shape in shapes.items()
    ]


def chosen(shapes, name="auto", **known):
    reader = choose(name, tensors(shapes), Known(**known), model="net")
    return reader.family.name, dict(reader.roles)


def refusal(shapes, name="auto", **known):
    with pytest.raises(ConfigurationError) as caught:
        choose(name, tensors(shapes), Known(**known), model="net")
    assert caught.value.model == "net"
    return str(caught.value)


def single(shape, *, name="auto", **known):
    name, roles = chosen({"OUT": shape}, name, **known)
    assert roles == {"output": "OUT"}
    return name


VGA = {"size": (640, 640)}


@pytest.mark.parametrize(
    ("shape", "known", "decoder"),
    [
        ((1, 84, 8400), {}, "yolov8"),
        ((1, 14, 256), {}, "yolov8"),
        ((-1, 5, 8400), {}, "yolov8"),
        ((-1, 84, -1), {}, "yolov8"),
        ((1, 8400, 84), {"labels": 80}, "yolov8"),
        ((1, 8400, 6), {"labels": 2}, "yolov8"),
        ((1, 25200, 85), VGA, "yolov5"),
        ((1, 25200, 6), VGA, "yolov5"),
        ((1, 102000, 85), {"size": (1280, 1280)}, "yolov5"),
        ((1, 6000, 85), {"size": (640, 640)} | {"labels": 80}, "yolov5"),
        ((1, 8400, 85), {"labels": 80}, "yolov5"),
        ((1, 25200, 6), {"labels": 1}, "yolov5"),
        ((1, 300, 6), {}, "end2end"),
        ((1, 300, 6), VGA, "end2end"),
        ((1, 5, 6), {}, "end2end"),
        ((1, 0, 6), {}, "end2end"),
        ((-1, -1, 6), {}, "end2end"),
        ((1, 8, 6), {}, "end2end"),
        ((-1, 7), {"batched": False}, "flat"),
        ((0, 7), {"batched": False}, "flat"),
    ],
)
def test_one_output_is_told_by_its_shape_and_what_else_is_known(shape, known, decoder):
    assert single(shape, **known) == decoder


@pytest.mark.parametrize(
    ("shape", "known"),
    [
        ((1, 8400, 84), {}),
        ((1, 8400, 85), {}),
        ((1, 8400, 84), VGA),
        ((1, 8400, 84), {"labels": 7}),
    ],
)
def test_rows_of_anchors_that_may_be_of_two_families_are_not_guessed(shape, known):
    message = refusal({"OUT": shape}, **known)
    assert message.startswith(
        f"model 'net': several decoders fit its outputs 'OUT' FP32 [batch, {shape[1]}, {shape[2]}]"
    )
    assert message.endswith("Say which by decode='yolov5' or decode='yolov8'")


def test_many_rows_of_six_may_be_of_three_families():
    message = refusal({"OUT": (1, 5000, 6)})
    assert "decode='yolov5' or decode='yolov8' or decode='end2end'" in message


FOUR = {
    "num_dets": ("INT32", (-1, 1)),
    "det_boxes": (-1, 100, 4),
    "det_scores": (-1, 100),
    "det_classes": ("INT32", (-1, 100)),
}
TENSORFLOW = {
    "detection_boxes": (1, 100, 4),
    "detection_classes": (1, 100),
    "detection_scores": (1, 100),
    "num_detections": (1,),
}
MORE_OF_TENSORFLOW = {
    "raw_detection_boxes": (1, 1917, 4),
    "raw_detection_scores": (1, 1917, 91),
    "detection_multiclass_scores": (1, 100, 91),
    "detection_anchor_indices": (1, 100),
}


@pytest.mark.parametrize(
    ("shapes", "decoder"),
    [
        (FOUR, "efficientnms"),
        (
            {
                "num_dets": (-1, 1),
                "bboxes": (-1, 100, 4),
                "scores": (-1, 100),
                "labels": ("INT32", (-1, 100)),
            },
            "efficientnms",
        ),
        (TENSORFLOW, "ssd"),
        ({f"{name}:0": shape for name, shape in TENSORFLOW.items()}, "ssd"),
        (TENSORFLOW | MORE_OF_TENSORFLOW, "ssd"),
        (TENSORFLOW | {"detection_multiclass_scores": (1, 100, 91)}, "ssd"),
        ({name: s for name, s in TENSORFLOW.items() if name != "num_detections"}, "ssd"),
    ],
)
def test_detections_in_several_outputs_are_told_by_name(shapes, decoder):
    name, roles = chosen(shapes)
    assert name == decoder
    assert [list(shapes).index(roles[role]) for role in ("boxes", "scores", "classes")]
    assert "boxes" in roles["boxes"]
    assert "scores" in roles["scores"]
    assert "classes" in roles["classes"] or roles["classes"] == "labels"
    assert ("count" in roles) == any("num" in output for output in shapes)


def test_the_plugins_outputs_have_a_count():
    shapes = {"boxes": (1, 100, 4), "scores": (1, 100), "labels": ("INT32", (1, 100))}
    assert "'efficientnms' reads" in refusal(shapes)
    assert "but no output is the count [N, 1]" in refusal(shapes)
    assert chosen(shapes, "efficientnms")[1] == {
        "boxes": "boxes",
        "scores": "scores",
        "classes": "labels",
    }


def test_outputs_of_tensorflows_names_and_the_plugins_types_may_be_of_either():
    """So the plugin's README calls its outputs; NVIDIA's EfficientDet has other coordinates."""
    kinds = {"detection_classes": ("INT32", (1, 100)), "num_detections": ("INT32", (1, 1))}
    assert "decode='efficientnms' or decode='ssd'" in refusal(TENSORFLOW | kinds)
    for name in ("efficientnms", "ssd"):
        assert chosen(TENSORFLOW | kinds, name)[1]["count"] == "num_detections"
    for one in kinds:
        assert chosen(TENSORFLOW | {one: kinds[one]})[0] == "ssd"


def test_unnamed_outputs_are_told_apart_by_type_but_not_whose_they_are():
    shapes = dict(zip("ABCD", FOUR.values(), strict=True))
    assert "decode='efficientnms' or decode='ssd'" in refusal(shapes)
    roles = {"count": "A", "boxes": "B", "scores": "C", "classes": "D"}
    assert chosen(shapes, "ssd") == ("ssd", roles)


def test_unnamed_outputs_of_one_type_need_the_user_to_say_which_is_which():
    shapes = {"A": (1, 100, 4), "B": (1, 100), "C": (1, 100), "D": (1,)}
    assert 'outputs={"boxes": …, "scores": …, "classes": …, "count": …}' in refusal(shapes, "ssd")
    roles = {"boxes": "A", "scores": "C", "classes": "B", "count": "D"}
    assert chosen(shapes, "ssd", roles=roles) == ("ssd", roles)
    few = {"boxes": "A", "scores": "C", "classes": "B"}
    assert chosen(shapes, "efficientnms", roles=few) == ("efficientnms", few)
    assert "decode='efficientnms' or decode='ssd'" in refusal(shapes, roles=roles)


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ({"boxes": "B", "scores": "C", "classes": "D"}, "no one output is the boxes"),
        ({"boxes": "A", "scores": "E", "classes": "B"}, "'E' is not the scores [N, M]"),
        ({"boxes": "A", "scores": "C"}, "no output is seen to be the classes"),
        (
            {"boxes": "A", "logits": "C"},
            "it reads boxes, scores, classes, count, not logits",
        ),
    ],
)
def test_what_the_user_says_must_fit(roles, reason):
    shapes = {"A": (1, 100, 4), "B": (1, 100), "C": (1, 100), "D": (1,), "E": (1, 99)}
    assert reason in refusal(shapes, "ssd", roles=roles)


QUERIES = {"logits": (-1, 100, 92), "pred_boxes": (-1, 100, 4)}


@pytest.mark.parametrize(("labels", "decoder"), [(91, "detr"), (92, "rtdetr")])
def test_labels_tell_detr_from_rtdetr(labels, decoder):
    roles = {"boxes": "pred_boxes", "logits": "logits"}
    assert chosen(QUERIES, labels=labels) == (decoder, roles)
    assert "decode='detr' or decode='rtdetr'" in refusal(QUERIES)
    assert chosen(QUERIES, decoder) == (decoder, roles)
    unnamed = {"A": (-1, 100, 92), "B": (-1, 100, 4)}
    assert chosen(unnamed, labels=labels) == (decoder, {"boxes": "B", "logits": "A"})


def test_the_one_output_that_fits_is_taken():
    shapes = {"HEAD": (1, 3, 80, 80, 85), "BOXES": (1, 84, 8400), "COUNT": (1, 1)}
    assert chosen(shapes) == ("yolov8", {"output": "BOXES"})
    assert chosen(shapes, "yolov8") == ("yolov8", {"output": "BOXES"})
    heads = {"OUT": (1, 25200, 85), "A": (1, 3, 80, 80, 85), "B": (1, 3, 40, 40, 85)}
    assert chosen(heads, size=(640, 640)) == ("yolov5", {"output": "OUT"})


def test_a_decoder_asked_for_by_name_takes_any_number_of_anchors():
    assert single((1, 84, 20), name="yolov8") == "yolov8"
    assert single((1, 20, 84), name="yolov8") == "yolov8"
    assert single((1, 84, 6), name="end2end") == "end2end"
    assert single((1, 5000, 6), name="end2end") == "end2end"
    assert single((1, 10, 9), name="yolov5") == "yolov5"


@pytest.mark.parametrize(
    ("decoder", "shapes", "reason"),
    [
        ("end2end", {"OUT": (1, 84, 8400)}, "but no output is [N, M, 6]"),
        ("yolov8", {"OUT": (1, 4, 8400)}, "but no output is [N, 4 + C, A] or [N, A, 4 + C]"),
        ("yolov5", {"OUT": (1, 8400, 5)}, "but no output is [N, A, 5 + C]"),
        ("flat", {"OUT": (-1, 7)}, "a model whose max_batch_size is 0"),
        ("yolov8", {"A": (1, 84, 8400), "B": (1, 84, 8400)}, "several outputs are: 'A', 'B'"),
        ("efficientnms", {"OUT": (1, 84, 8400)}, "but no one output is the boxes [N, M, 4]"),
        ("detr", {"A": (1, 9, 92), "B": (1, 10, 4)}, "but no two outputs are seen to be"),
        ("detr", {"logits": (1, 9, 92), "dets": (1, 10, 4)}, "'logits' and 'dets' are not the"),
    ],
)
def test_a_decoder_asked_for_that_does_not_fit_says_why(decoder, shapes, reason):
    message = refusal(shapes, decoder)
    assert message.startswith(f"model 'net': the decoder {decoder!r} does not fit its outputs '")
    assert f"Tried: {decoder!r} reads {FAMILIES[decoder].wants}, but" in message
    assert reason in message
    assert message.endswith("Give a function as decode=…")


def test_outputs_that_fit_no_decoder_are_listed_with_all_that_were_tried():
    message = refusal({"MAP": (-1, 17, 64, 48), "SIZE": ("INT32", (-1, 2))})
    assert message.startswith(
        "model 'net': no decoder fits its outputs 'MAP' FP32 [batch, 17, 64, 48]; "
        "'SIZE' INT32 [batch, 2]. Tried: 'yolov5' reads [N, A, 5 + C]"
    )
    for name in CHOICES[1:]:
        assert f"{name!r} reads {FAMILIES[name].wants}, but " in message
    assert "decode=…" in message


def test_raw_scores_beside_boxes_are_no_anchors():
    message = refusal({"boxes": (1, 8400, 4), "scores": (1, 8400, 80)}, labels=7)
    assert "but boxes have an output of their own" in message
    assert "'detr'" in message


@pytest.mark.parametrize("rows", [(1, 116, 8400), (1, 25200, 117), (1, 300, 38)])
def test_rows_beside_masks_are_not_taken_for_boxes_alone(rows):
    shapes = {"rows": rows, "protos": (1, 32, 160, 160)}
    message = refusal(shapes)
    assert "no decoder fits" in message
    assert "'protos' is for masks, whose numbers are behind the class scores" in message
    assert chosen(shapes, "yolov8")[0] == "yolov8"  # who says so is believed
