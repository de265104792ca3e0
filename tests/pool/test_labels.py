"""Names of classes, layouts and reloads, on the real server."""

import asyncio
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tritonasync import Candidates, TritonPool
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidInputError,
)
from tritonasync.core.values import Call, ClassQuestion, InputTensor
from tritonasync.serving import EmbeddedTriton

pytestmark = [pytest.mark.anyio, pytest.mark.server]

ROWS = np.array([[0, 9, 0, 0], [0, 0, 0, 9]], np.float32)
GREEN = np.zeros((40, 60, 3), np.uint8) + np.array([10, 200, 30], np.uint8)
NAMED = ("red", "green: go", "2", "brightest", "4")
"""What the label file of ``colours`` says; numbers for the empty line and the missing one."""


async def counted(pool, model, least=0):
    """How many rows the server has run of a model; it may count a row after it has answered."""
    for _ in range(200):
        (report,) = await pool.admin.statistics(model)
        if report.inference_count >= least:
            break
        await asyncio.sleep(0.01)
    return report.inference_count


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A repository that may be changed, and a server on it."""
    repository = tmp_path_factory.mktemp("own")
    for model in ("classify4", "colours", "ident", "ident_image"):
        shutil.copytree(f"tests/models/{model}", repository / model)
    with EmbeddedTriton(repository, model_control="explicit", load_models=("*",)) as server:
        yield repository, server


# --- signatures ---


async def test_a_signature_has_layouts_and_label_files(pool):
    spec = await pool.model("colours").spec()
    assert spec.inputs[0].layout == "NHWC"
    labels = {output.name: output.label_filename for output in spec.outputs}
    assert labels == {"NAMES": "labels.txt", "SCORES": "labels.txt", "TINTS": ""}
    plain = await pool.model("two_inputs").spec()
    assert {tensor.layout for tensor in plain.inputs} == {None}
    assert {output.label_filename for output in plain.outputs} == {""}


async def test_the_only_output_of_scores_is_found_among_others(pool):
    result = await pool.classifier("colours", activation="none").one(GREEN)
    assert result.scores.shape == (5,)
    np.testing.assert_allclose(result.scores, np.array([10, 200, 30, 200, 10]) / 255, atol=1e-6)


# --- names from the server ---


async def test_the_server_names_the_classes_and_is_asked_once(pool):
    before = await counted(pool, "classify4")
    handles = [pool.classifier("classify4") for _ in range(20)]
    results = await asyncio.gather(*[handle(ROWS) for handle in handles])
    assert {result.labels for result in results} == {("bee", "dog")}
    assert results[0].classes == ("ant", "bee", "cat", "dog")
    assert (await pool.classifier("classify4").one(ROWS[1])).label == "dog"
    expected = before + 20 * 2 + 1 + 1
    assert await counted(pool, "classify4", expected) == expected


async def test_names_have_colons_and_missing_ones_are_numbers(pool):
    result = await pool.classifier("colours").one(GREEN)
    assert result.classes == NAMED
    assert result.label == "green: go"


async def test_a_list_of_the_users_asks_nothing(pool):
    before = await counted(pool, "classify4")
    result = await pool.classifier("classify4", labels=["a", "b", "c", "d"])(ROWS)
    assert result.labels == ("b", "d")
    expected = before + 2
    assert await counted(pool, "classify4", expected) == expected


async def test_a_file_of_the_users(pool, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("ä\nb\nc\nd\n", encoding="utf-8")
    assert (await pool.classifier("classify4", labels=path)(ROWS)).labels == ("b", "d")
    assert (await pool.classifier("classify4", labels=str(path)).one([9, 0, 0, 0])).label == "ä"


@pytest.mark.parametrize("count", [3, 5])
async def test_a_file_of_another_length_than_the_classes_is_refused(pool, tmp_path, count):
    path = tmp_path / "names.txt"
    path.write_text("x\n" * count)
    with pytest.raises(
        ConfigurationError,
        match=rf"classifier 'classify4': expected 4 labels, .*got {count} in '.*names\.txt'",
    ):
        await pool.classifier("classify4", labels=path)(ROWS)


async def test_a_model_without_a_label_file_is_not_asked(pool):
    before = await counted(pool, "ident")
    result = await pool.classifier("ident").one(np.arange(16, dtype=np.float32))
    assert result.label == "15"
    expected = before + 1
    assert await counted(pool, "ident", expected) == expected


async def test_nan_is_not_what_a_server_is_asked_with(pool):
    spoilt = ROWS.copy()
    spoilt[0, 2] = np.nan
    async with TritonPool(pool._targets()[0]) as fresh:
        classifier = fresh.classifier("classify4")
        assert (await classifier(spoilt[:1])).labels == ("0",)  # softmax of a NaN is all NaN
        assert (await classifier(spoilt)).labels == ("ant", "dog")


async def test_the_servers_own_folder_is_read_instead_of_asking(server, triton_repository):
    async with TritonPool(server.grpc_url, model_repository=triton_repository) as pool:
        before = await counted(pool, "colours")
        result = await pool.classifier("colours").one(GREEN)
        assert result.classes == NAMED
        expected = before + 1
        assert await counted(pool, "colours", expected) == expected


async def test_another_folder_without_the_file_leaves_it_to_the_server(server, tmp_path):
    async with TritonPool(server.grpc_url, model_repository=tmp_path) as pool:
        assert (await pool.classifier("classify4")(ROWS)).labels == ("bee", "dog")


async def test_a_model_without_an_axis_for_a_batch_is_named_and_takes_one_item(own):
    scores = {"data_type": "TYPE_FP32", "dims": [4]}
    config = {
        "name": "classify4",
        "backend": "python",
        "max_batch_size": 0,
        "input": [{"name": "INPUT0", **scores}],
        "output": [{"name": "SCORES", **scores, "label_filename": "labels.txt"}],
    }
    repository, server = own
    labels = repository / "classify4" / "labels.txt"
    before = labels.read_bytes()
    labels.write_bytes("\ufeffant\r\nbee\r\ncat\r\ndog".encode())
    async with TritonPool(server.grpc_url) as pool:
        try:
            await pool.admin.load("classify4", config=json.dumps(config))
            classifier = pool.classifier("classify4")
            answers = await asyncio.gather(*[classifier.one(row) for row in ROWS])
            assert [answer.label for answer in answers] == ["bee", "dog"]
            assert answers[0].classes == ("ant", "bee", "cat", "dog")
            assert (await classifier(ROWS[:1])).labels == ("bee",)
            assert [answer.label async for answer in classifier.map(ROWS)] == ["bee", "dog"]
            with pytest.raises(InvalidInputError, match="expected one item a call, .* got 2"):
                await classifier(ROWS)
        finally:
            labels.write_bytes(before)
            await pool.admin.load("classify4")


# --- questions that must not be asked ---


async def test_a_server_is_never_asked_to_rank_strings(own):
    """It would die of it (SIGFPE)."""
    async with TritonPool(own[1].grpc_url) as pool:
        spec = await pool.model("colours").spec()
        names = spec.outputs[0]
        tensor = InputTensor("IMAGE", "FP32", (1, 4, 6, 3), (np.zeros((1, 4, 6, 3), np.float32),))
        question = ClassQuestion(Call("colours", "", (tensor,), 1), "NAMES", 5)
        assert await pool._gate.labels(spec, names, question, NEVER) == ()
        assert await pool.admin.live()
        assert await pool._gate.labels(
            spec, spec.outputs[1], replace(question, output="SCORES"), NEVER
        )


async def test_a_caller_whose_time_is_up_leaves_the_question_to_others(own):
    repository, server = own  # as other tests may have left them
    (repository / "classify4" / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    async with TritonPool(server.grpc_url) as pool:
        await pool.admin.load("classify4")
        spec = await pool.model("classify4").spec()
        tensor = InputTensor("INPUT0", "FP32", (1, 4), (ROWS[:1],))
        question = ClassQuestion(Call("classify4", "", (tensor,), 1), "SCORES", 4)
        ask = [spec, spec.outputs[0], question]
        patient = asyncio.create_task(pool._gate.labels(*ask, NEVER))
        with pytest.raises(DeadlineExceededError) as caught:
            await pool._gate.labels(*ask, Deadline.after(0))
        assert caught.value.stage in {"metadata", "connect"}
        assert await patient == ("ant", "bee", "cat", "dog")


# --- reloads ---


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("local", [True, False])
async def test_a_reload_renews_the_names(own, local):
    repository, server = own
    labels = repository / "classify4" / "labels.txt"
    labels.write_text("ant\nbee\ncat\ndog\n")
    here = repository if local else None
    async with TritonPool(server.grpc_url, model_repository=here) as pool:
        await pool.admin.load("classify4")
        classifier = pool.classifier("classify4")
        assert (await classifier(ROWS)).labels == ("bee", "dog")
        labels.write_text("ape\nboa\ncow\ndoe\n")
        await pool.admin.load("classify4")
        assert (await classifier(ROWS)).labels == ("boa", "doe")


async def test_a_reload_behind_the_pools_back_renews_shape_and_names(own):
    repository, server = own
    config, labels = (repository / "classify4" / name for name in ("config.pbtxt", "labels.txt"))
    labels.write_text("ant\nbee\ncat\ndog\n")
    async with TritonPool(server.grpc_url) as pool, TritonPool(server.grpc_url) as other:
        await other.admin.load("classify4")
        classifier = pool.classifier("classify4")
        assert (await classifier(ROWS)).labels == ("bee", "dog")
        try:
            edit(config, "dims: [ 4 ]", "dims: [ 3 ]")
            labels.write_text("x\ny\nz\n")
            await other.admin.load("classify4")
            assert (await classifier(ROWS[:, 1:])).labels == ("x", "z")
        finally:
            edit(config, "dims: [ 3 ]", "dims: [ 4 ]")


async def test_a_list_that_a_reload_made_too_short_is_refused(own):
    repository, server = own
    config = repository / "classify4" / "config.pbtxt"
    (repository / "classify4" / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    async with TritonPool(server.grpc_url) as pool:
        await pool.admin.load("classify4")
        classifier = pool.classifier("classify4", labels=["a", "b", "c", "d"])
        await classifier(ROWS)
        try:
            edit(config, "dims: [ 4 ]", "dims: [ 5 ]")
            await pool.admin.load("classify4")
            with pytest.raises(ConfigurationError, match="expected 5 labels, .* got 4"):
                await classifier(np.zeros((1, 5), np.float32))
        finally:
            edit(config, "dims: [ 5 ]", "dims: [ 4 ]")


def echo(model, dims):
    tensor = {"data_type": "TYPE_FP32", "dims": dims}
    return json.dumps(
        {
            "name": model,
            "backend": "python",
            "max_batch_size": 8,
            "input": [{"name": "INPUT0", **tensor}],
            "output": [{"name": "OUTPUT0", **tensor}],
        }
    )


def whole_canvas(outputs):
    """One box of the whole input for each image."""
    height, width = outputs["OUTPUT0"].shape[2:]
    box = np.array([[0, 0, width, height]], np.float32)
    return [Candidates(box, np.ones(1, np.float32), np.zeros(1, np.int64))] * len(
        outputs["OUTPUT0"]
    )


def model_handle(pool):
    return pool.model("ident").one


def classifier(pool):
    return pool.classifier("ident").one


def encoder(pool):
    return pool.encoder("ident").one


@pytest.mark.parametrize("handle", [model_handle, classifier, encoder])
async def test_a_new_shape_is_picked_up_by_handles_of_all_kinds(own, handle):
    _, server = own
    async with TritonPool(server.grpc_url) as pool, TritonPool(server.grpc_url) as other:
        call = handle(pool)
        for axis in (16, 5):
            await other.admin.load("ident", config=echo("ident", [axis]))
            item = np.arange(axis, dtype=np.float32)
            result = await call({"INPUT0": item} if handle is model_handle else item)
            if handle is model_handle:
                np.testing.assert_array_equal(result["OUTPUT0"], item)
            else:
                scores = result.scores if handle is classifier else result
                assert scores.shape == (axis,)


async def test_a_detector_renders_for_the_new_shape(own):
    _, server = own
    seen = []

    def decode(outputs):
        seen.append(outputs["OUTPUT0"].shape)
        return whole_canvas(outputs)

    async with TritonPool(server.grpc_url) as pool:
        detector = pool.detector("ident_image", decode=decode)
        for size in (32, 64):
            await pool.admin.load("ident_image", config=echo("ident_image", [3, size, size]))
            (found,) = await detector.one(np.zeros((50, 100, 3), np.uint8))
            np.testing.assert_allclose(found.box, [0, 0, 100, 50], atol=1e-3)
    assert seen == [(1, 3, 32, 32), (1, 3, 64, 64)]


# --- the option model_repository ---


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere/models", "model_repository is no folder on this machine: 'nowhere/models'"),
        (__file__, "model_repository is no folder on this machine: "),
        ("", "model_repository is no folder on this machine: ''"),
        (7, "model_repository must be the path of a folder, not 7"),
    ],
)
def test_a_repository_that_is_no_folder_is_refused(path, reason):
    with pytest.raises(ConfigurationError) as caught:
        TritonPool("localhost:8001", model_repository=path)
    assert str(caught.value).startswith(reason)
