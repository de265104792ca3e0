"""A call that was sent is seen to its end; its caller may leave at any time."""

import asyncio
import gc
import math
import socket
import time
import warnings

import grpc
import pytest

from tests.transport.scripted import Gated, RefusalError, ScriptedServer, echo, make_endpoint
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    ConfigurationError,
    ConnectionLostError,
    DeadlineExceededError,
    ModelNotFoundError,
    PoolClosedError,
    ServerUnreachableError,
)
from tritonasync.transport.channel import HeaderSupply
from tritonasync.transport.endpoint import RPC_GRACE_S

pytestmark = pytest.mark.anyio


async def test_bytes_go_out_and_come_back_unchanged():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        assert await endpoint.exchange("ModelInfer", b"\x00\xff" * 9, NEVER) == b"\x00\xff" * 9
        assert endpoint.statistics().succeeded == 1
        assert endpoint.statistics().in_flight == 0
        await endpoint.aclose(NEVER)


async def test_an_expired_caller_is_let_go_and_the_call_goes_on():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        with pytest.raises(DeadlineExceededError) as caught:
            await endpoint.exchange("ModelInfer", b"x", Deadline.after(0.2), model="m")
        assert caught.value.stage == "server"
        assert caught.value.timeout_s == 0.2
        assert "model 'm'" in str(caught.value)
        assert endpoint.statistics().in_flight == 1
        gated.go.set()
        await endpoint.aclose(NEVER)
        assert server.cancelled == 0
        assert endpoint.statistics().abandoned == 1
        assert endpoint.statistics().succeeded == 1


@pytest.mark.parametrize("turns", range(6))
async def test_a_caller_cancelled_at_any_turn_never_cancels_the_call(turns):
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        await endpoint.link.lanes.current[0].channel.channel_ready()
        caller = asyncio.create_task(endpoint.exchange("ModelInfer", b"x", Deadline.after(9)))
        for _ in range(turns):
            await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gated.go.set()
        await endpoint.aclose(NEVER)
        assert server.cancelled == 0
        # Cancelled before its first step it has sent nothing; afterwards it is seen to its end.
        assert endpoint.statistics().succeeded == (1 if turns else 0)
        assert endpoint.statistics().abandoned == (1 if turns else 0)


async def test_a_caller_cancelled_while_its_answer_arrives_harms_nobody():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        for turns in range(40):
            caller = asyncio.create_task(endpoint.exchange("ModelInfer", b"x", Deadline.after(9)))
            neighbour = asyncio.create_task(endpoint.exchange("ModelInfer", b"y", NEVER))
            for _ in range(turns):
                await asyncio.sleep(0)
            caller.cancel()
            await asyncio.wait({caller})
            assert await neighbour == b"y"
        await endpoint.aclose(NEVER)
        assert server.cancelled == 0


async def test_the_deadline_given_to_grpc_lies_far_beyond_the_callers():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        await endpoint.exchange("ModelInfer", b"", Deadline.after(5))
        await endpoint.exchange("ModelInfer", b"", NEVER)
        assert server.time_remaining[0] == pytest.approx(5 + RPC_GRACE_S, abs=2)
        assert math.isfinite(server.time_remaining[1])
        assert server.time_remaining[1] > 80_000
        await endpoint.aclose(NEVER)


async def test_a_deadline_that_has_passed_sends_nothing():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        with pytest.raises(DeadlineExceededError):
            await endpoint.exchange("ModelInfer", b"", Deadline.after(0))
        assert server.received == []
        await endpoint.aclose(NEVER)


async def test_a_server_that_does_not_greet_uses_up_the_time_in_stage_connect():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = make_endpoint(f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(DeadlineExceededError) as caught:
            await endpoint.exchange("ModelInfer", b"", Deadline.after(0.2))
        assert caught.value.stage == "connect"
    await endpoint.aclose(NEVER)


async def test_a_port_where_nobody_listens_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    endpoint = make_endpoint(f"127.0.0.1:{port}")
    with pytest.raises(ServerUnreachableError, match=f"127.0.0.1:{port}.*is the server running"):
        await endpoint.exchange("ModelInfer", b"", Deadline.after(5))
    assert endpoint.statistics().failed == 1
    await endpoint.aclose(NEVER)


async def test_a_status_becomes_an_error_with_its_cause():
    async def refuse(message):
        raise RefusalError(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found")

    async with ScriptedServer(ModelInfer=refuse) as server:
        endpoint = make_endpoint(server.target)
        with pytest.raises(ModelNotFoundError) as caught:
            await endpoint.exchange("ModelInfer", b"", NEVER, model="m")
        assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)
        assert caught.value.endpoint == server.target
        await endpoint.aclose(NEVER)


async def test_a_server_that_goes_away_loses_the_call():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        caller = asyncio.create_task(endpoint.exchange("ModelInfer", b"", Deadline.after(9)))
        await gated.arrived.acquire()
    with pytest.raises(ConnectionLostError):
        await caller
    await endpoint.aclose(NEVER)


async def test_closing_waits_for_abandoned_calls_and_refuses_new_ones():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        with pytest.raises(DeadlineExceededError):
            await endpoint.exchange("ModelInfer", b"", Deadline.after(0.1))
        closing = asyncio.create_task(endpoint.aclose(Deadline.after(9)))
        await asyncio.sleep(0.05)
        assert not closing.done()
        with pytest.raises(PoolClosedError, match="closed"):
            await endpoint.exchange("ModelInfer", b"", NEVER)
        gated.go.set()
        await closing
        assert server.cancelled == 0
        assert endpoint.statistics().in_flight == 0


async def test_closing_tears_down_with_a_warning_what_outlives_its_time():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target)
        caller = asyncio.create_task(endpoint.exchange("ModelInfer", b"", NEVER))
        await gated.arrived.acquire()
        with pytest.warns(ResourceWarning, match="1 calls were still out"):
            await endpoint.aclose(Deadline.after(0.1))
        with pytest.raises(ConnectionLostError):
            await caller


async def test_no_task_is_left_and_no_error_goes_unseen():
    before = asyncio.all_tasks()
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        for timeout_s in (0.0001, 0.001, 9):
            await asyncio.gather(
                *(
                    endpoint.exchange("ModelInfer", b"", Deadline.after(timeout_s))
                    for _ in range(20)
                ),
                return_exceptions=True,
            )
        await endpoint.aclose(NEVER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert {task for task in asyncio.all_tasks() - before if "serv" not in repr(task)} == set()


async def test_several_channels_share_the_calls_that_are_out():
    gated = Gated()
    async with ScriptedServer(ModelInfer=gated) as server:
        endpoint = make_endpoint(server.target, channels=3)
        callers = [
            asyncio.create_task(endpoint.exchange("ModelInfer", b"", NEVER)) for _ in range(9)
        ]
        for _ in range(9):
            await gated.arrived.acquire()
        assert [lane.in_flight for lane in endpoint.link.lanes.current] == [3, 3, 3]
        gated.go.set()
        await asyncio.gather(*callers)
        await endpoint.aclose(NEVER)


async def test_headers_and_protocol_keys_go_with_each_call():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(
            server.target, headers={"authorization": "Bearer x"}, protocol_keys={"Admin": "secret"}
        )
        await endpoint.exchange("ModelInfer", b"", NEVER)
        metadata = server.received[0][2]
        assert metadata["authorization"] == "Bearer x"
        assert metadata["triton-grpc-protocol-admin"] == "secret"
        await endpoint.aclose(NEVER)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_gives_headers_anew_for_each_call(is_async):
    count = 0

    def supply():
        nonlocal count
        count += 1
        return {"x-token": str(count)}

    async def supply_later():
        await asyncio.sleep(0)
        return supply()

    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target, headers=supply_later if is_async else supply)
        for _ in range(2):
            await endpoint.exchange("ModelInfer", b"", Deadline.after(9))
        assert [metadata["x-token"] for _, _, metadata in server.received] == ["1", "2"]
        await endpoint.aclose(NEVER)


async def test_a_function_for_headers_that_hangs_meets_the_deadline():
    async def hang():
        await asyncio.Event().wait()
        return {}

    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target, headers=hang)
        began = time.monotonic()
        with pytest.raises(DeadlineExceededError) as caught:
            await endpoint.exchange("ModelInfer", b"", Deadline.after(0.1))
        assert caught.value.stage == "headers"
        assert time.monotonic() - began < 5
        assert server.received == []
        await endpoint.aclose(NEVER)


@pytest.mark.parametrize("kind", [TimeoutError, RuntimeError, asyncio.CancelledError])
async def test_a_functions_own_error_is_the_cause_of_ours(kind):
    async def fail():
        raise kind("the token service is slow")

    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target, headers=fail)
        with pytest.raises(ConfigurationError, match="token service") as caught:
            await endpoint.exchange("ModelInfer", b"", Deadline.after(9))
        assert isinstance(caught.value.__cause__, kind)
        await endpoint.aclose(NEVER)


@pytest.mark.parametrize(
    "headers",
    [
        None,
        ["a"],
        {"x": 5},
        {"Upper": "x"},
        {"a b": "x"},
        {"grpc-timeout": "1S"},
        {"x-bin": "x"},
        {"x": "é"},
        {"x": "\n"},
    ],
)
async def test_a_header_that_is_not_allowed_is_refused(headers):
    with pytest.raises(ConfigurationError, match="header"):
        HeaderSupply(headers, {})
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target, headers=lambda: headers)
        with pytest.raises(ConfigurationError, match="header"):
            await endpoint.exchange("ModelInfer", b"", NEVER)
        await endpoint.aclose(NEVER)


async def test_every_call_is_counted_once_whenever_its_caller_leaves():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(server.target)
        await endpoint.exchange("ModelInfer", b"", NEVER)
        for turns in range(60):
            caller = asyncio.create_task(
                endpoint.exchange("ModelInfer", b"", Deadline.after(0.0005 * (turns % 7) + 0.0001))
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            caller.cancel()
            await asyncio.wait({caller})
        await endpoint.aclose(Deadline.after(9))
        statistics = endpoint.statistics()
        assert statistics.succeeded == len(server.received)
        assert statistics.failed == statistics.in_flight == 0
        assert statistics.abandoned < statistics.succeeded
        assert server.cancelled == 0
