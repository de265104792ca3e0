"""What ``pool.admin`` asks, on the real server."""

import asyncio
import shutil
import socket

import numpy as np
import pytest

from tritonasync import TritonPool
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    ModelNotFoundError,
    ModelNotReadyError,
    PoolClosedError,
    ServerNotReadyError,
    ServerUnreachableError,
)
from tritonasync.serving import EmbeddedTriton

pytestmark = [pytest.mark.anyio, pytest.mark.server]


async def test_liveness_and_readiness(pool):
    assert await pool.admin.live() is True
    assert await pool.admin.ready() is True
    assert await pool.admin.ready("ident") is True
    assert await pool.admin.ready("ident", "1") is True
    assert await pool.admin.ready("ident", "7") is False
    assert await pool.admin.ready("nobody") is False
    await pool.admin.wait_until_ready("ident", timeout_s=5)


async def test_server_metadata(pool):
    metadata = await pool.admin.server_metadata()
    assert metadata.name == "triton"
    assert metadata.version == "2.51.0"
    assert "model_repository" in metadata.extensions


async def test_a_models_signature(pool):
    spec = await pool.admin.metadata("two_inputs")
    assert spec.name == "two_inputs"
    assert spec.versions == ("1",)
    assert spec.max_batch_size == 8
    assert spec.batched
    assert [(t.name, t.datatype, t.shape) for t in spec.inputs] == [
        ("A", "FP32", (-1, 4)),
        ("B", "INT32", (-1, 1)),
    ]
    assert [t.name for t in spec.outputs] == ["SUM", "DIFF"]
    assert not spec.decoupled
    assert not spec.stateful


async def test_what_only_the_configuration_tells(pool):
    assert (await pool.admin.metadata("repeat")).decoupled
    assert (await pool.admin.metadata("accumulate")).stateful
    assert all(tensor.optional for tensor in (await pool.admin.metadata("every_type")).inputs)
    assert not (await pool.admin.metadata("no_batch")).batched


async def test_a_models_configuration(pool):
    config = await pool.admin.config("classify4")
    assert config.backend == "python"
    assert config.max_batch_size == 8
    assert config.label_files == {"SCORES": "labels.txt"}
    assert config.document["name"] == "classify4"
    assert (await pool.admin.config("small_queue")).dynamic_batching
    assert (await pool.admin.config("accumulate")).stateful
    assert (await pool.admin.config("repeat")).decoupled


async def test_the_index(pool):
    index = {entry.name: entry for entry in await pool.admin.index()}
    assert index["ident"].ready
    assert index["ident"].version == "1"
    assert {entry.name for entry in await pool.admin.index(ready_only=True)} <= set(index)


async def test_statistics_count_rows_and_batches(pool):
    def of(statistics):
        (entry,) = statistics
        return entry

    before = of(await pool.admin.statistics("two_inputs"))
    await pool.model("two_inputs")(A=np.zeros((5, 4), np.float32), B=np.zeros((5, 1), np.int32))
    async with asyncio.timeout(10):  # the server counts a moment after it has answered
        after = before
        while after.success.count == before.success.count:
            await asyncio.sleep(0.01)
            after = of(await pool.admin.statistics("two_inputs"))
    assert after.inference_count - before.inference_count == 5
    assert after.execution_count - before.execution_count == 1
    assert after.success.count - before.success.count == 1
    assert after.compute_infer.mean_s > 0
    assert after.mean_batch_size > 1
    assert 5 in {batch.batch_size for batch in after.batches}
    assert len(await pool.admin.statistics()) > 5


async def test_statistics_of_an_unknown_model(pool):
    with pytest.raises(ModelNotFoundError):
        await pool.admin.statistics("nobody")


async def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"127.0.0.1:{closed.getsockname()[1]}"
    async with TritonPool(url) as pool:
        assert await pool.admin.live() is False
        assert await pool.admin.ready() is False
        assert await pool.admin.ready("ident") is False
        with pytest.raises(ServerUnreachableError, match=url):
            await pool.admin.index()
        with pytest.raises(DeadlineExceededError, match="not ready within 0.3 s") as caught:
            await pool.admin.wait_until_ready(timeout_s=0.3)
        assert isinstance(caught.value.__cause__, ServerUnreachableError)


async def test_an_unknown_model_is_not_waited_for(pool):
    with pytest.raises(ModelNotFoundError, match="no model 'nobody', only: .*ident"):
        await pool.admin.wait_until_ready("nobody", timeout_s=30)


async def test_a_server_that_is_not_ready():
    # Strict readiness is false for as long as one model failed; the others answer all the same.
    async with (
        EmbeddedTriton(["tests/models", "tests/broken_models"], exit_on_error=False) as triton,
        TritonPool(triton.grpc_url) as pool,
    ):
        assert await pool.admin.live() is True
        assert await pool.admin.ready() is False
        with pytest.raises(DeadlineExceededError, match="not ready within 0.3 s") as caught:
            await pool.admin.wait_until_ready(timeout_s=0.3)
        assert isinstance(caught.value.__cause__, ServerNotReadyError)
        with pytest.raises(ModelNotReadyError, match="raises"):
            await pool.model("raises")(X=np.ones((1, 1), np.float32))
        assert await pool.model("ident")(INPUT0=np.ones((1, 16), np.float32))


async def test_a_server_that_starts_late_is_waited_for():
    with EmbeddedTriton("tests/models") as triton:
        async with TritonPool(triton.grpc_url) as pool:
            assert await pool.admin.live()
            await asyncio.to_thread(triton.stop)
            waiting = asyncio.create_task(pool.admin.wait_until_ready("ident", timeout_s=60))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            await asyncio.to_thread(triton.start)
            await waiting
            row = np.ones((1, 16), np.float32)
            np.testing.assert_array_equal((await pool.model("ident")(INPUT0=row))["OUTPUT0"], row)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"config": {"a": object()}}, "config cannot be written as JSON"),
        ({"config": "{}", "files": {"1/model.py": "text"}}, "file '1/model.py' is given as bytes"),
    ],
)
async def test_what_cannot_be_loaded_is_refused(pool, options, says):
    with pytest.raises(ConfigurationError, match=says):
        await pool.admin.load("ident", **options)


async def test_a_closed_pool_refuses():
    pool = TritonPool("localhost:1")
    with pytest.raises(PoolClosedError, match="async with"):
        await pool.admin.live()


async def test_loading_shows_a_changed_signature(tmp_path):
    for name in ("ident", "two_inputs"):
        shutil.copytree(f"tests/models/{name}", tmp_path / name)
    async with (
        EmbeddedTriton(tmp_path, model_control="explicit", load_models=["ident"]) as triton,
        TritonPool(triton.grpc_url) as pool,
    ):
        model = pool.model("ident")
        await model(INPUT0=np.ones((1, 16), np.float32))
        config = tmp_path / "ident" / "config.pbtxt"
        config.write_text(config.read_text().replace("16", "8"))
        await pool.admin.load("ident")
        await model(INPUT0=np.ones((1, 8), np.float32))
        override = {
            "backend": "python",
            "max_batch_size": 2,
            "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [3]}],
            "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [3]}],
        }
        await pool.admin.load("ident", config=override)
        assert (await model.spec()).max_batch_size == 2
        await model(INPUT0=np.ones((1, 3), np.float32))
        await pool.admin.load("ident")  # nothing changed on disk: the override stays
        assert (await model.spec()).max_batch_size == 2
        await pool.admin.unload("ident")
        await pool.admin.load("ident")
        assert (await model.spec()).max_batch_size == 256
        source = (tmp_path / "ident/1/model.py").read_bytes()
        await pool.admin.load("ident", config=override, files={"7/model.py": source})
        assert (await model.spec()).versions == ("7",)
        await pool.admin.unload("ident")
        assert not await pool.admin.ready("ident")
