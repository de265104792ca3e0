"""Where names of classes come from, and which source counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor, whole
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConfigurationError, DeadlineExceededError
from tritonasync.core.values import Reply, TensorSpec
from tritonasync.handles.architecture import Plug
from tritonasync.handles.binding import bind_one
from tritonasync.handles.classifier import Classifier
from tritonasync.handles.labels import LabelSource
from tritonasync.handles.signature import signature_of

pytestmark = pytest.mark.anyio

SCORES = TensorSpec("SCORES", "FP32", (-1, 4), label_filename="labels.txt")
PETS = spec([("X", "FP32", (-1, 4))], [SCORES], name="pets")
ROWS = np.array([[0, 3, 1, -1], [2, 0, 0, 0]], np.float32)
NAMES = ("ant", "bee", "cat", "dog")


def classifier(served=PETS, names=NAMES, **options):
    catalog = FakeCatalog(served)
    catalog.class_names = names
    handle = Classifier(
        served.name,
        "",
        FakeInvoker(lambda call: {"SCORES": tensor(call, "X")}),
        catalog,
        timeout_s=30.0,
        activation="none",
        **options,
    )
    return handle, catalog


def source(labels=None, names=(), **options):
    catalog = FakeCatalog(PETS)
    catalog.class_names = names
    return LabelSource("classifier 'pets'", labels, catalog, model="pets", **options), catalog


@pytest.fixture
def binding():
    return bind_one(signature_of(PETS, "safe"), None, None)


# --- names that come with the model ---


async def test_the_server_is_asked_once_with_one_row_of_the_callers():
    handle, catalog = classifier()
    rows = ROWS.copy()
    assert (await handle(rows)).labels == ("bee", "ant")
    assert (await handle.one(ROWS[0])).label == "bee"
    assert catalog.asking
    (question,) = catalog.questions
    assert (question.output, question.classes) == ("SCORES", 4)
    call = question.call
    assert (call.model, call.version, call.rows, call.idempotent) == ("pets", "", 1, True)
    np.testing.assert_array_equal(whole(call.inputs[0]), ROWS[:1])
    assert call.inputs[0].shape == (1, 4)
    assert not np.shares_memory(call.inputs[0].parts[0], rows)  # the question may outlive the call


async def test_a_renewed_signature_has_its_names_asked_for_again():
    handle, catalog = classifier()
    await handle(ROWS)
    catalog.forget("pets")
    catalog.class_names = ("a", "b", "c", "d")
    assert (await handle(ROWS)).labels == ("b", "a")


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ((), ("0", "1", "2", "3")),
        (("ant", "", "cat"), ("ant", "1", "cat", "3")),
        ((*NAMES, "eel"), NAMES),
    ],
)
async def test_missing_names_are_numbers_and_those_beyond_the_classes_are_left_out(names, classes):
    handle, catalog = classifier(names=names)
    for _ in range(2):
        assert (await handle(ROWS)).classes == classes
    assert len(catalog.questions) == 1


async def test_a_row_with_nan_scores_is_not_asked_with():
    handle, catalog = classifier()
    rows = ROWS.copy()
    rows[0, 0] = np.nan
    assert (await handle(rows[:1])).labels == ("1",)
    assert (await handle(rows)).labels == ("bee", "ant")
    assert catalog.questions[0] is None
    np.testing.assert_array_equal(whole(catalog.questions[1].call.inputs[0]), rows[1:])


async def test_a_model_without_a_batch_axis_of_its_own_is_asked_without_rows():
    served = spec([("X", "FP32", (-1, 4))], [SCORES], name="pets", max_batch_size=0)
    handle, catalog = classifier(served)
    assert (await handle(ROWS)).labels == ("bee", "ant")
    assert catalog.questions[0].call.rows == 0
    assert catalog.questions[0].call.inputs[0].shape == (1, 4)


async def test_a_model_without_an_axis_for_a_batch_is_asked_with_the_whole_item():
    output = TensorSpec("SCORES", "FP32", (4,), label_filename="labels.txt")
    handle, catalog = classifier(
        spec([("X", "FP32", (4,))], [output], name="pets", max_batch_size=0)
    )
    assert (await handle.one(ROWS[0])).label == "bee"
    (question,) = catalog.questions
    assert (question.call.rows, question.classes) == (0, 4)
    (given,) = question.call.inputs
    assert given.shape == (4,)
    np.testing.assert_array_equal(given.parts[0], ROWS[0])
    assert given.parts[0].base is None  # a copy: the caller may change its own


async def test_nobody_is_asked_where_there_is_no_label_file():
    handle, catalog = classifier(spec([("X", "FP32", (-1, 4))], [("SCORES", "FP32", (-1, 4))]))
    assert (await handle(ROWS)).labels == ("1", "0")
    assert catalog.questions == []


async def test_a_source_that_may_not_ask_has_what_is_in_the_folder(binding):
    labels, catalog = source(names=NAMES)
    assert labels.lacks(binding)
    await labels.learn(binding, NEVER)
    assert (labels.names, labels.of(2)) == (None, ("0", "1"))
    catalog.in_folder = True
    await labels.learn(binding, NEVER)
    assert (labels.names, labels.of(2), labels.of(3)) == (NAMES, NAMES[:2], NAMES[:3])
    assert not labels.lacks(binding)
    assert not catalog.asking
    tensors, _ = binding.tensors(ROWS, item=False)
    await labels.learn(binding, NEVER, inputs=tensors, reply=Reply("pets", "1", {"SCORES": ROWS}))
    assert catalog.questions == [None, None, None]


async def test_a_model_that_was_reloaded_without_a_label_file_has_numbers(binding):
    labels, catalog = source(names=NAMES)
    catalog.in_folder = True
    await labels.learn(binding, NEVER)
    bare = spec([("X", "FP32", (-1, 4))], [("SCORES", "FP32", (-1, 4))], name="pets")
    assert not labels.lacks(bind_one(signature_of(bare, "safe"), None, None))
    assert labels.names is None


# --- names that the user gave ---


@pytest.mark.parametrize("given", [list(NAMES), NAMES, np.array(NAMES)])
async def test_a_list_always_counts(given):
    handle, catalog = classifier(labels=given, names=("a", "b", "c", "d"))
    assert (await handle(ROWS)).classes == NAMES
    assert catalog.questions == []


@pytest.mark.parametrize("given", [[], {"ant": 1}, {"ant", "bee"}, b"names.txt", 4, ["ant", 1], ""])
def test_what_is_neither_names_nor_a_path_is_refused(given):
    with pytest.raises(
        ConfigurationError, match=r"classifier 'pets': labels is a list of strings, .*, not "
    ):
        source(given)


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfant\r\n  b ee \r\n\r\nd\xc3\xb8g\r\n\r\n")
    return path


@pytest.mark.parametrize("kind", [str, Path])
async def test_a_file_is_read_with_the_first_call(file, kind):
    handle, catalog = classifier(labels=kind(file))
    assert (await handle(ROWS)).classes == ("ant", "b ee", "2", "døg")
    file.unlink()
    assert (await handle.one(ROWS[0])).label == "b ee"
    assert catalog.questions == []


async def test_a_file_is_read_once_whoever_begins_with_it(file, monkeypatch, binding):
    reads = []
    names = "tritonasync.handles.labels._names_in"
    monkeypatch.setattr(names, lambda path, subject: reads.append(path) or NAMES)
    labels, _ = source(file)
    await asyncio.gather(*[labels.learn(binding, NEVER) for _ in range(20)])
    assert labels.given == NAMES
    assert reads == [file]


async def test_a_caller_without_time_leaves_the_file_to_others(file, binding):
    labels, _ = source(file)
    with pytest.raises(DeadlineExceededError):
        await labels.learn(binding, Deadline.after(0))
    assert labels.lacks(binding)
    await labels.learn(binding, NEVER)
    assert not labels.lacks(binding)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"is no file that can be read: .*No such file.*one name a line"),
        (b"\xff\xfe", r"is no file that can be read: .* is not UTF-8"),
        (b"\n \n", r"there are no labels in '.*names\.txt'"),
        (b"a\nb\nc", r"expected 4 labels, one for each class .*, got 3 in '.*names\.txt'"),
        (b"a\nb\nc\nd\ne", r"expected 4 labels, one for each class .*, got 5 in '.*names\.txt'"),
    ],
)
async def test_a_file_that_is_not_of_such_names_is_refused(file, content, reason):
    file.unlink() if content is None else file.write_bytes(content)
    handle, _ = classifier(labels=file)
    with pytest.raises(ConfigurationError, match=f"classifier 'pets': .*{reason}"):
        await handle(ROWS)


async def test_a_folder_is_no_file_of_names(tmp_path):
    handle, _ = classifier(labels=tmp_path)
    with pytest.raises(ConfigurationError, match="is no file that can be read: .*directory"):
        await handle(ROWS)


# --- an architecture's scores ---


async def test_an_architectures_scores_are_named_as_well():
    plug = Plug(
        "architecture 'mine'", lambda items: {"X": np.stack(items)}, lambda out: out["SCORES"]
    )
    handle, catalog = classifier(plug=plug)
    assert (await handle(list(ROWS))).labels == ("bee", "ant")
    assert (await handle(list(ROWS))).labels == ("bee", "ant")
    (question,) = catalog.questions
    np.testing.assert_array_equal(whole(question.call.inputs[0]), ROWS[:1])
