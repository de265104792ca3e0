"""Classifiers of images, and those with an architecture's own steps."""

from __future__ import annotations

import numpy as np
import pytest

from tests.handles.fakes import spec, tensor
from tests.handles.test_classifier import LOGITS, classifier
from tritonasync.core.errors import ConfigurationError
from tritonasync.core.values import TensorSpec
from tritonasync.handles.architecture import Plug
from tritonasync.handles.classifications import Classifications

pytestmark = pytest.mark.anyio

# --- images ---

CHANNELS_LAST = TensorSpec("IMAGE", "FP32", (-1, 4, 6, 3), layout="NHWC")


def mean_colour(call):
    return {"LOGITS": tensor(call, "IMAGE").mean(axis=(1, 2))}


@pytest.fixture
def colours():
    served = spec([CHANNELS_LAST], [("LOGITS", "FP32", (-1, 3))], name="colours")
    return lambda **options: classifier(served, mean_colour, activation="none", **options)


GREEN = np.zeros((40, 60, 3), np.uint8) + np.array([51, 204, 0], np.uint8)


async def test_an_image_is_stretched_to_the_model(colours):
    result = await colours().one(GREEN)
    np.testing.assert_allclose(result.scores, [0.2, 0.8, 0.0], atol=1e-6)


async def test_images_of_several_sizes_share_a_batch(colours):
    handle = colours(labels=["red", "green", "blue"])
    result = await handle(iter([GREEN, GREEN[::2, :, ::-1]]))
    assert result.labels == ("green", "green")
    assert handle.sent[0].inputs[0].shape == (2, 4, 6, 3)


async def test_a_tensor_of_the_models_shape_goes_as_it_is(colours):
    handle = colours()
    item = np.full((4, 6, 3), 7, np.float32)
    for result in (await handle.one(item), (await handle(item[None]))[0]):
        assert result.scores.tolist() == [7, 7, 7]
    assert np.shares_memory(handle.sent[0].inputs[0].parts[0], item)


async def test_with_an_image_option_it_is_an_image(colours):
    item = np.full((4, 6, 3), 0.5, np.float32)
    result = await colours(scaling="symmetric").one(item)
    np.testing.assert_allclose(result.scores, [0, 0, 0], atol=1e-6)


async def test_a_large_image_is_prepared_beside_the_event_loop(colours):
    large = np.repeat(np.repeat(GREEN, 40, 0), 40, 1)
    result = await colours().one(large)
    np.testing.assert_allclose(result.scores, [0.2, 0.8, 0.0], atol=1e-6)


async def test_image_options_for_a_model_of_no_images_are_refused():
    with pytest.raises(ConfigurationError, match="model 'digits': expected an input for images"):
        await classifier(scaling="imagenet")(LOGITS)


# --- what an architecture gives ---


def plugged(postprocess, **options):
    plug = Plug("architecture 'mine'", lambda items: {"X": np.stack(items)}, postprocess)
    return classifier(plug=plug, **options)


async def test_an_architectures_scores_get_labels_and_choice():
    handle = plugged(lambda outputs: outputs["LOGITS"] * 2.0, labels=list("abcd"), top_k=2)
    result = await handle(list(LOGITS))
    np.testing.assert_array_equal(result.scores, LOGITS * 2)  # no activation: these are scores
    assert result.scores.dtype == np.float32
    assert result.labels == ("b", "a")
    assert len(result[0].predictions) == 2
    assert (result.model, result.version) == ("digits", "1")
    assert (await handle.one(LOGITS[0])).label == "b"


async def test_an_architecture_may_give_the_results_themselves():
    made = Classifications(LOGITS[:, :2], ("no", "yes"))
    result = await plugged(lambda outputs: made, top_k=1)(list(LOGITS))
    assert result.labels == ("yes", "no")
    assert (result.model, result.choice.top_k) == ("digits", 1)
    result = await plugged(lambda outputs: [made[1], made[0]])(list(LOGITS))
    assert result.labels == ("no", "yes")


@pytest.mark.parametrize(
    ("made", "got"),
    [
        (None, "NoneType as object []"),
        ("cat", "str as <U3 []"),
        (np.zeros((3, 4)), "float64 [3, 4]"),
        (np.zeros((2, 0)), "float64 [2, 0]"),
        (np.zeros(2), "ndarray as float64 [2]"),
        ([["a"], ["b"]], "list as <U1 [2, 1]"),
        ([[1, 2], [3]], "list ("),
        (Classifications(LOGITS[:1], tuple("abcd")), "Classifications of 1 rows"),
        (list(Classifications(LOGITS[:1], tuple("abcd"))), "1 of Classification"),
        (
            [Classifications(LOGITS, tuple("abcd"))[0], Classifications(LOGITS, tuple("efgh"))[0]],
            "2 of Classification with different classes",
        ),
    ],
)
async def test_what_is_no_result_is_refused(made, got):
    with pytest.raises(ConfigurationError) as caught:
        await plugged(lambda outputs: made)(list(LOGITS))
    assert str(caught.value).startswith(
        "classifier 'digits': expected the postprocess of architecture 'mine' to return "
        f"Classifications or scores [2, C] (one row for each item), got {got}"
    )


async def test_an_architectures_scores_must_have_as_many_classes_as_labels():
    with pytest.raises(ConfigurationError, match="expected 4 labels, .* got 3"):
        await plugged(lambda outputs: outputs["LOGITS"], labels=list("abc"))(list(LOGITS))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
async def test_an_item_for_an_input_of_free_size_is_a_tensor(dtype):
    """It looks like a batch of grey images as well; what it is is what it was given as."""
    served = spec([("X", "FP32", (-1, -1, -1, 3))], [("Y", "FP32", (-1, 4))])
    handle = classifier(served, lambda call: {"Y": np.eye(1, 4, dtype=np.float32)})
    await handle.one(np.zeros((5, 7, 3), dtype))
    assert handle.sent[0].inputs[0].shape == (1, 5, 7, 3)
