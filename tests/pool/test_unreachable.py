"""Servers that are not there, or do not answer, and what the error says."""

import asyncio
import socket

import numpy as np
import pytest

from tritonasync import TritonPool
from tritonasync.core.errors import DeadlineExceededError, ServerUnreachableError

pytestmark = [pytest.mark.anyio, pytest.mark.server]

ROW = np.ones((1, 16), np.float32)


async def test_a_host_that_does_not_exist():
    async with TritonPool("nosuchhost.invalid:8001", timeout_s=20) as pool:
        with pytest.raises(ServerUnreachableError, match=r"nosuchhost\.invalid.*address right"):
            await pool.model("ident")(INPUT0=ROW)


async def test_a_first_call_names_the_stage_that_used_up_its_time(server):
    async def hang():
        await asyncio.Event().wait()
        return {}

    async with TritonPool(server.grpc_url, headers=hang, timeout_s=0.2) as pool:
        with pytest.raises(DeadlineExceededError) as caught:
            await pool.model("ident")(INPUT0=ROW)
        assert caught.value.stage == "headers"
        assert not caught.value.may_have_executed
    async with TritonPool(server.grpc_url) as pool:
        await pool.model("ident")(INPUT0=ROW)
        with pytest.raises(DeadlineExceededError) as caught:
            await pool.model("ident")(INPUT0=ROW, timeout_s=0)
        assert caught.value.stage == "queue"
        assert "nothing was sent" in str(caught.value)


async def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"127.0.0.1:{closed.getsockname()[1]}"
    async with TritonPool(url) as pool:
        with pytest.raises(ServerUnreachableError, match="is the server running"):
            await pool.model("ident")(INPUT0=ROW)


async def test_a_port_that_speaks_http(server):
    url = server.http_url.removeprefix("http://")
    async with TritonPool(url, timeout_s=10) as pool:
        with pytest.raises(ServerUnreachableError, match="8001"):
            await pool.model("ident")(INPUT0=ROW)


async def test_a_server_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with TritonPool(f"127.0.0.1:{silent.getsockname()[1]}") as pool:
            with pytest.raises(DeadlineExceededError) as caught:
                await pool.model("ident")(INPUT0=ROW, timeout_s=0.3)
            assert caught.value.stage == "connect"
            pool._close_timeout_s = 0.1
            with pytest.warns(ResourceWarning):
                await pool.aclose()
