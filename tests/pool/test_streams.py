"""Which way calls take to the real server: by themselves, or on streams."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tritonasync import StreamPolicy, TritonPool
from tritonasync.core.errors import InvalidRequestError, ModelFailedError
from tritonasync.core.values import Call, InputTensor

pytestmark = [pytest.mark.anyio, pytest.mark.server]

ROW = np.arange(16, dtype=np.float32)
PAUSE_S = 0.2


@pytest.fixture
async def connect(server):
    """Open a pool on the shared server, and leave that its rest afterwards.

    It does not bear requests of decoupled and of other models on streams at the same time.
    """
    yield lambda transport, **options: TritonPool(
        server.grpc_url, batching=None, transport=transport, **options
    )
    await asyncio.sleep(PAUSE_S)


async def test_answers_are_the_same_either_way(connect):
    inputs = {"INPUT0": np.array([[b"", b"\x00\xff"], ["grüße".encode(), b"x" * 300]], object)}
    for transport in ("unary", "stream"):
        async with connect(transport) as pool:
            row = await pool.model("ident").one(INPUT0=ROW)
            np.testing.assert_array_equal(row["OUTPUT0"], ROW)
            assert row["OUTPUT0"].flags.writeable is False
            words = await pool.model("bytes_ident")({"INPUT0": inputs["INPUT0"][:, :1]})
            assert words["OUTPUT0"].tolist() == inputs["INPUT0"][:, :1].tolist()
            assert (
                await pool.model("ident")(INPUT0=ROW[None], request_id="mine")
            ).request_id == "mine"
            assert bool(pool.statistics().endpoints[0].streams) is (transport == "stream")
        await asyncio.sleep(PAUSE_S)


@pytest.mark.parametrize("transport", ["unary", "stream"])
async def test_errors_are_the_same_either_way(connect, transport):
    async with connect(transport) as pool:
        with pytest.raises(ModelFailedError) as failed:
            await pool.model("faulty")(INPUT0=np.full((1, 1), -1, np.float32))
        assert failed.value.may_have_executed
        tensor = InputTensor("INPUT0", "FP32", (1, 3), (np.zeros((1, 3), np.float32),))
        with pytest.raises(InvalidRequestError, match="unexpected shape"):
            await pool._gate.infer(Call("ident", "", (tensor,), 1))
        (endpoint,) = pool.statistics().endpoints
        np.testing.assert_array_equal((await pool.model("ident").one(INPUT0=ROW))["OUTPUT0"], ROW)
        assert pool.statistics().endpoints[0].streams == endpoint.streams


async def test_large_messages_go_on_streams_and_come_back(connect):
    rows = np.random.default_rng(0).random((256, 16), np.float32)
    async with connect("stream", streams=StreamPolicy(max_streams=1)) as pool:
        model = pool.model("every_type")
        large = np.random.default_rng(0).random((4096, 1024), np.float32)  # 16 MiB
        back, *small = await asyncio.gather(
            model({"IN_FP32": large}), *[pool.model("ident")(INPUT0=rows) for _ in range(20)]
        )
        np.testing.assert_array_equal(back["OUT_FP32"], large)
        for answer in small:
            np.testing.assert_array_equal(answer["OUTPUT0"], rows)


async def test_a_server_with_decoupled_models_gets_calls_by_themselves(connect):
    async with connect("auto") as pool:
        model = pool.model("ident")
        for _ in range(300):
            await model.one(INPUT0=ROW)
        async with asyncio.timeout(20):
            while "decoupled" not in pool.statistics().endpoints[0].choices[0].why:
                await asyncio.sleep(0.01)
        for _ in range(300):
            await model.one(INPUT0=ROW)
        (endpoint,) = pool.statistics().endpoints
        assert endpoint.streams == 0
        assert endpoint.choices[0].using == "unary"
