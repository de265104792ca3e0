"""Calls are cancelled on the server only where its version is known to live through it."""

import asyncio

import grpc
import pytest

from tests.faults.proxy import FaultProxy
from tests.transport.scripted import (
    Gated,
    RefusalError,
    ScriptedServer,
    echo,
    make_endpoint,
    of_version,
)
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConnectionLostError, DeadlineExceededError
from tritonasync.transport.channel import open_channels
from tritonasync.transport.lanes import Lanes
from tritonasync.transport.versions import UNKNOWN, ServerFeatures

pytestmark = pytest.mark.anyio


async def eventually(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


async def never_cancelled(server):
    """Give a cancellation the time that it would need to arrive."""
    await asyncio.sleep(0.1)
    assert server.cancelled == 0


async def known(endpoint, version):
    await endpoint.exchange("ServerReady", b"", Deadline.after(20))
    await eventually(lambda: endpoint.link.server_version == version)


def scripted(gated, version=None, *, at="127.0.0.1:0"):
    methods = {"ModelInfer": gated, "ServerReady": echo}
    if version is not None:
        methods["ServerMetadata"] = of_version(version) if isinstance(version, str) else version
    return ScriptedServer(at, **methods)


async def leave_one_by_cancelling(endpoint, gated):
    caller = asyncio.create_task(endpoint.exchange("ModelInfer", b"", NEVER))
    await gated.arrived.acquire()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def leave_one_by_deadline(endpoint, gated):
    with pytest.raises(DeadlineExceededError):
        await endpoint.exchange("ModelInfer", b"", Deadline.after(0.1))
    await gated.arrived.acquire()


LEAVING = [leave_one_by_cancelling, leave_one_by_deadline]


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("version", ["2.51.0", "2.58.0", "2.59.0dev", "r25.06"])
async def test_below_2_59_a_call_that_is_left_goes_on(version, leave):
    gated = Gated()
    async with scripted(gated, version) as server:
        endpoint = make_endpoint(server.target, cancel_on_server=True)
        await known(endpoint, version)
        await leave(endpoint, gated)
        await never_cancelled(server)
        assert endpoint.statistics().in_flight == 1
        gated.go.set()
        await endpoint.aclose(NEVER)
        assert server.cancelled == 0
        assert endpoint.statistics().abandoned == 1


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("version", ["2.59.0", "2.60.0"])
async def test_from_2_59_on_a_call_that_is_left_is_cancelled(version, leave):
    gated = Gated()
    async with scripted(gated, version) as server:
        endpoint = make_endpoint(server.target, cancel_on_server=True)
        await known(endpoint, version)
        assert endpoint.link.features == ServerFeatures.of(version)
        await leave(endpoint, gated)
        await eventually(lambda: server.cancelled == 1)
        statistics = endpoint.statistics()
        assert (statistics.in_flight, statistics.abandoned) == (0, 1)
        await endpoint.aclose(NEVER)
        assert endpoint.statistics().failed == 1


@pytest.mark.parametrize("leave", LEAVING)
async def test_nothing_is_asked_or_cancelled_unasked(leave):
    gated = Gated()
    async with scripted(gated, "2.60.0") as server:
        endpoint = make_endpoint(server.target)
        await endpoint.exchange("ServerReady", b"", NEVER)
        await leave(endpoint, gated)
        await never_cancelled(server)
        gated.go.set()
        await endpoint.aclose(NEVER)
        assert server.count("ServerMetadata") == 0
        assert endpoint.link.server_version is None
        assert endpoint.link.features == UNKNOWN


async def test_a_cancelled_call_harms_no_neighbour():
    gated = Gated()
    async with scripted(gated, "2.60.0") as server:
        endpoint = make_endpoint(server.target, cancel_on_server=True)
        await known(endpoint, "2.60.0")
        neighbour = asyncio.create_task(endpoint.exchange("ModelInfer", b"y", NEVER))
        await gated.arrived.acquire()
        await leave_one_by_cancelling(endpoint, gated)
        await eventually(lambda: server.cancelled == 1)
        gated.go.set()
        assert await neighbour == b"y"
        await endpoint.aclose(NEVER)


async def test_a_caller_that_is_let_go_does_not_cancel():
    gated = Gated()
    async with scripted(gated, "2.60.0") as server:
        endpoint = make_endpoint(server.target, cancel_on_server=True)
        await known(endpoint, "2.60.0")
        caller = asyncio.create_task(endpoint.exchange("ModelInfer", b"", NEVER, repeatable=True))
        await gated.arrived.acquire()
        endpoint.let_go("a test")
        with pytest.raises(ConnectionLostError):
            await caller
        await never_cancelled(server)
        gated.go.set()
        await endpoint.aclose(NEVER)


@pytest.mark.parametrize("leave", LEAVING)
async def test_while_the_version_is_on_its_way_nothing_is_cancelled_and_nobody_waits_for_it(leave):
    gated, version = Gated(), Gated()
    async with scripted(gated, version) as server:
        endpoint = make_endpoint(server.target, cancel_on_server=True)
        await endpoint.exchange("ServerReady", b"", NEVER)
        await version.arrived.acquire()
        await leave(endpoint, gated)
        await never_cancelled(server)
        gated.go.set()
        version.go.set()
        await endpoint.aclose(NEVER)


async def refuse(message):
    raise RefusalError(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header")


@pytest.mark.parametrize("answer", [refuse, of_version(""), echo], ids=["refused", "empty", "odd"])
async def test_without_a_version_nothing_is_cancelled(answer):
    async def odd(message):
        return b"\xff\xff\xff"

    gated = Gated()
    async with scripted(gated, odd if answer is echo else answer) as server:
        endpoint = make_endpoint(server.target, cancel_on_server=True)
        await endpoint.exchange("ServerReady", b"", NEVER)
        await eventually(lambda: server.count("ServerMetadata") == 1)
        await eventually(lambda: endpoint.statistics().in_flight == 0)
        await leave_one_by_cancelling(endpoint, gated)
        await never_cancelled(server)
        gated.go.set()
        await endpoint.aclose(NEVER)


async def test_a_server_that_comes_back_older_is_asked_anew_and_spared():
    gated = Gated()
    async with scripted(gated, "2.60.0") as server:
        endpoint = make_endpoint(server.target, cancel_on_server=True)
        await known(endpoint, "2.60.0")
        await endpoint.exchange("ServerReady", b"", NEVER)
    await eventually(lambda: not endpoint.link.lanes.current[0].connected())
    async with scripted(gated, "2.51.0", at=server.target) as older:
        # Cancelled before anything was answered by the new server.
        await leave_one_by_cancelling(endpoint, gated)
        assert endpoint.link.server_version is None
        await known(endpoint, "2.51.0")
        assert older.count("ServerMetadata") == 1
        await leave_one_by_cancelling(endpoint, gated)
        await never_cancelled(older)
        gated.go.set()
        await endpoint.aclose(NEVER)
        assert older.cancelled == 0


async def test_a_server_that_comes_back_newer_may_be_cancelled_on():
    gated = Gated()
    async with scripted(gated, "2.51.0") as server:
        endpoint = make_endpoint(server.target, cancel_on_server=True)
        await known(endpoint, "2.51.0")
    await eventually(lambda: not endpoint.link.lanes.current[0].connected())
    async with scripted(gated, "2.60.0", at=server.target) as newer:
        await known(endpoint, "2.60.0")
        await leave_one_by_cancelling(endpoint, gated)
        await eventually(lambda: newer.cancelled == 1)
        await endpoint.aclose(NEVER)


async def test_each_channel_has_a_version_of_its_own():
    gated = Gated()
    async with scripted(gated, "2.60.0") as server:
        endpoint = make_endpoint(server.target, channels=2, cancel_on_server=True)
        await known(endpoint, "2.60.0")
        first = asyncio.create_task(endpoint.exchange("ModelInfer", b"", NEVER))
        await gated.arrived.acquire()
        # The second goes out on the other channel, whose server is not known yet.
        await leave_one_by_cancelling(endpoint, gated)
        await never_cancelled(server)
        assert endpoint.link.server_version is None
        gated.go.set()
        await first
        await eventually(lambda: endpoint.link.server_version == "2.60.0")
        asked_on = [peer for name, peer in server.came_by if name == "ServerMetadata"]
        assert len(asked_on) == len({*asked_on}) == 2
        await endpoint.aclose(NEVER)


async def test_channels_that_lead_to_different_versions_have_none_in_common():
    lanes = Lanes(open_channels("127.0.0.1:1", count=2, tls=None))
    for lane, version in zip(lanes.current, ("2.60.0", "2.51.0"), strict=True):
        lane.add_method("ServerReady")
        lane.learn(version, 1)
    assert lanes.version is None
    lanes.current[1].learn("2.60.0", 1)
    assert lanes.version == "2.60.0"
    await lanes.aclose()


async def test_the_version_is_asked_for_anew_on_fresh_channels():
    gated = Gated()
    async with scripted(gated, "2.60.0") as server:
        endpoint = make_endpoint(server.target, cancel_on_server=True)
        await known(endpoint, "2.60.0")
        endpoint.let_go("a test")
        assert endpoint.link.server_version is None
        await known(endpoint, "2.60.0")
        assert server.count("ServerMetadata") == 2
        await endpoint.aclose(NEVER)


async def test_closing_while_the_version_is_on_its_way_waits_for_the_call_and_leaves_no_task():
    gated, version = Gated(), Gated()
    async with scripted(gated, version) as server:
        before = asyncio.all_tasks()
        endpoint = make_endpoint(server.target, cancel_on_server=True)
        await endpoint.exchange("ServerReady", b"", NEVER)
        await version.arrived.acquire()
        closing = asyncio.create_task(endpoint.aclose(Deadline.after(9)))
        await asyncio.wait({closing}, timeout=0.1)
        assert not closing.done()
        version.go.set()
        await closing
        assert server.cancelled == 0
        left = {task for task in asyncio.all_tasks() - before if "serv" not in repr(task)}
        assert left == set()


async def test_a_call_on_the_old_connection_is_not_taken_for_one_on_the_new_server():
    gated, old_version, new_version = Gated(), Gated(), Gated()

    async def late_version(message):
        await old_version(message)
        return await of_version("2.60.0")(message)

    async def later_version(message):
        await new_version(message)
        return await of_version("2.60.0")(message)

    async with (
        scripted(gated, late_version) as old,
        scripted(echo, later_version) as new,
        FaultProxy(old.target) as proxy,
    ):
        endpoint = make_endpoint(proxy.url, cancel_on_server=True)
        await endpoint.exchange("ServerReady", b"", NEVER)
        await old_version.arrived.acquire()
        caller = asyncio.create_task(endpoint.exchange("ModelInfer", b"", NEVER))
        await gated.arrived.acquire()
        proxy.upstream = new.target
        proxy.goaway()
        await eventually(lambda: not endpoint.link.lanes.current[0].connected())
        await endpoint.exchange("ServerReady", b"", Deadline.after(20))
        await new_version.arrived.acquire()
        # The old server's answer says nothing of the new one,
        answered = endpoint.statistics().succeeded
        old_version.go.set()
        await eventually(lambda: endpoint.statistics().succeeded == answered + 1)
        await asyncio.sleep(0)
        assert endpoint.link.server_version is None
        # nor the new one's of the old.
        new_version.go.set()
        await eventually(lambda: endpoint.link.server_version == "2.60.0")
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await never_cancelled(old)
        gated.go.set()
        await endpoint.aclose(NEVER)


async def test_behind_a_name_of_many_servers_nothing_is_cancelled():
    gated = Gated()
    async with scripted(gated, "2.60.0") as server:
        endpoint = make_endpoint(f"dns:{server.target}", cancel_on_server=True)
        await known(endpoint, "2.60.0")
        await leave_one_by_cancelling(endpoint, gated)
        await never_cancelled(server)
        gated.go.set()
        await endpoint.aclose(NEVER)


async def test_closing_does_not_wait_for_headers_of_a_question():
    asked = asyncio.Semaphore(0)

    async def headers():
        asked.release()
        if server.received:
            await asyncio.Event().wait()
        return {}

    async with scripted(Gated(), "2.60.0") as server:
        endpoint = make_endpoint(server.target, headers=headers, cancel_on_server=True)
        await endpoint.exchange("ServerReady", b"", NEVER)
        for _ in range(2):
            await asked.acquire()
        async with asyncio.timeout(10):
            await endpoint.aclose(NEVER)
