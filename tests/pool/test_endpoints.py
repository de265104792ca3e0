"""A pool of several endpoints, as a user meets it. Two names of one server are two endpoints."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys

import numpy as np
import psutil
import pytest

from tritonasync import EndpointSpec, HealthPolicy, RetryPolicy, TritonPool
from tritonasync.core.errors import (
    ConfigurationError,
    ModelNotFoundError,
    PoolClosedError,
    ServerUnreachableError,
)
from tritonasync.core.near import is_near

pytestmark = [pytest.mark.anyio]

ROW = np.ones((1, 16), np.float32)


@pytest.fixture
def urls(server):
    return [server.grpc_url, server.grpc_url.replace("127.0.0.1", "localhost")]


WRONG = [
    ([], "list of URLs is empty"),
    (["a:8001", "b:8001", " a:8001"], "given twice: a:8001"),
    (["a:8001", "nonsense"], "'nonsense' is no gRPC target"),
    ([EndpointSpec("http://a:8000")], "scheme 'http'"),
    (("a:8001", 7), "one URL, a string, is wanted, not 7"),
    (7, "a URL or a list of URLs is wanted, not 7"),
    ({"a:8001"}, "a URL or a list of URLs is wanted"),
]


@pytest.mark.parametrize(("given", "says"), WRONG)
def test_urls_that_make_no_sense_are_refused_at_once(given, says):
    with pytest.raises(ConfigurationError, match=says):
        TritonPool(given)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2", True])
def test_a_weight_is_a_number_above_0(weight):
    with pytest.raises(ConfigurationError, match=r"EndpointSpec: weight is above 0"):
        EndpointSpec("a:8001", weight=weight)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retry": None}, r"RetryPolicy\(attempts=1\) retries nothing"),
        ({"retry": 3}, "retry must be a RetryPolicy, not 3"),
        ({"health": None}, "health must be a HealthPolicy"),
        ({"channels": 0}, "channels must be 1 or more"),
        ({"channels": True}, "channels must be 1 or more"),
        ({"tls": "ca.pem"}, "tls must be a TlsConfig"),
        ({"batching": 8}, "batching must be a BatchPolicy"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, says):
    with pytest.raises(ConfigurationError, match=says):
        TritonPool("a:8001", **options)


async def test_calls_are_spread_and_counted(urls):
    async with TritonPool(urls, batching=None) as pool:
        assert repr(pool) == f"<TritonPool {urls[0]}, {urls[1]} open>"
        model = pool.model("ident")
        await asyncio.gather(*[model(INPUT0=ROW) for _ in range(200)])
        statistics = pool.statistics()
        assert [endpoint.target for endpoint in statistics.endpoints] == urls
        assert all(endpoint.succeeded > 20 for endpoint in statistics.endpoints)
        assert {health.state for health in statistics.routing.endpoints} == {"healthy"}
        assert statistics.routing.retries == 0


async def test_calls_follow_the_weights(urls):
    specs = [EndpointSpec(urls[0], weight=3), urls[1]]
    async with TritonPool(specs, batching=None) as pool:
        model = pool.model("ident")
        await model.spec()
        for _ in range(10):
            await asyncio.gather(*[model(INPUT0=ROW) for _ in range(40)])
        heavy, light = pool.statistics().routing.endpoints
        assert (heavy.weight, heavy.share) == (3, 3)
        assert (light.weight, light.share) == (1, 1)
        assert heavy.attempts + light.attempts >= 400
        assert 2 < heavy.attempts / light.attempts < 4.5


@pytest.fixture
def far(server):
    """A name of the shared server that says nothing of this machine's loopback interface."""
    name, port = socket.gethostname(), server.grpc_url.rpartition(":")[2]
    try:
        if is_near(f"{name}:{port}") or socket.gethostbyname(name) != "127.0.0.1":
            pytest.skip("this machine's own name does not lead to 127.0.0.1")
    except OSError:
        pytest.skip("this machine's own name leads nowhere")
    return f"{name}:{port}"


async def attempts_of_two_hundred_calls(urls, **options):
    async with TritonPool(urls, batching=None, **options) as pool:
        model = pool.model("ident")
        for _ in range(10):
            await asyncio.gather(*[model(INPUT0=ROW) for _ in range(20)])
        return [endpoint.attempts for endpoint in pool.statistics().routing.endpoints]


async def test_endpoints_on_this_machine_come_first_if_wanted(server, far):
    urls = [far, server.grpc_url]
    of_far, of_near = await attempts_of_two_hundred_calls(urls, prefer_loopback=True)
    assert of_far == 0
    assert of_near >= 200
    assert min(await attempts_of_two_hundred_calls(urls)) > 20


async def test_endpoints_on_this_machine_come_first_only_while_one_of_them_is_well(far):
    of_near, of_far = await attempts_of_two_hundred_calls(
        ["127.0.0.1:1", far], prefer_loopback=True
    )
    assert of_near > 0
    assert of_far >= 200


async def test_an_endpoint_that_is_not_there_costs_no_caller_an_error(urls):
    async with TritonPool([urls[0], "127.0.0.1:1"]) as pool:
        model = pool.model("ident")
        for _ in range(20):
            answers = await asyncio.gather(*[model.one(INPUT0=ROW[0]) for _ in range(8)])
            assert all((answer["OUTPUT0"] == 1).all() for answer in answers)
        assert pool.statistics().routing.endpoints[1].state == "ejected"


async def test_if_nobody_is_there_the_error_says_where_it_was_tried():
    async with TritonPool(["127.0.0.1:1", "127.0.0.1:2"]) as pool:
        with pytest.raises(ServerUnreachableError) as caught:
            await pool.model("ident")(INPUT0=ROW, timeout_s=10)
    assert {attempt.endpoint for attempt in caught.value.attempts} == {"127.0.0.1:1", "127.0.0.1:2"}
    assert "4 attempts: 127.0.0.1:" in str(caught.value)


async def test_no_retries_if_none_are_wanted():
    async with TritonPool("127.0.0.1:1", retry=RetryPolicy(attempts=1)) as pool:
        with pytest.raises(ServerUnreachableError) as caught:
            await pool.model("ident")(INPUT0=ROW, timeout_s=10)
    assert caught.value.attempts == ()


async def test_a_model_that_nobody_has_is_looked_for_everywhere(urls):
    async with TritonPool(urls) as pool:
        with pytest.raises(ModelNotFoundError) as caught:
            await pool.model("nobody")(X=ROW)
    assert [attempt.endpoint for attempt in caught.value.attempts] in (urls, urls[::-1])


async def test_endpoints_are_added_and_removed(urls):
    first, second = urls
    async with TritonPool(first) as pool:
        await pool.add_endpoint(EndpointSpec(second, weight=2))
        assert pool.admin.endpoints == tuple(urls)
        await pool.remove_endpoint(f" {first} ")
        assert pool.admin.endpoints == (second,)
        assert repr(pool) == f"<TritonPool {second} open>"
        await pool.model("ident")(INPUT0=ROW)
        with pytest.raises(ConfigurationError, match="last endpoint"):
            await pool.remove_endpoint(second)
        with pytest.raises(ConfigurationError, match="already"):
            await pool.add_endpoint(second)
        with pytest.raises(ConfigurationError, match=f"no endpoint of this pool, only: {second}"):
            await pool.remove_endpoint(first)
        with pytest.raises(ConfigurationError, match="no gRPC target"):
            await pool.add_endpoint("nonsense")
        await pool.add_endpoint(first)  # what was removed may come back
        await pool.model("ident")(INPUT0=ROW)
    for change in (pool.add_endpoint, pool.remove_endpoint):
        with pytest.raises(PoolClosedError):
            await change(first)
    with pytest.raises(PoolClosedError):
        await TritonPool(first).add_endpoint(second)


async def out_on_each(pool, rows):
    """Wait until so many rows of calls that were just made are out on each endpoint."""
    async with asyncio.timeout(10):
        while {e.rows_in_flight for e in pool.statistics().routing.endpoints} != {rows}:
            await asyncio.sleep(0.005)


async def slow_calls(pool, count, ms):
    """Make calls that take so long, and return when they are out, as many on each endpoint."""
    slow = pool.model("slow")
    await slow.spec()  # which is asked for by a call of its own, that would count as out
    delay = np.full((1, 1), ms, np.float32)
    calls = [asyncio.ensure_future(slow(DELAY_MS=delay)) for _ in range(count)]
    await out_on_each(pool, count // 2)
    assert not any(call.done() for call in calls)
    return calls


def connections_to(url):
    """This process' open connections to a server."""
    port = int(url.rpartition(":")[2])
    return [
        each
        for each in psutil.Process().net_connections(kind="tcp")
        if each.raddr and each.raddr.port == port and each.status == psutil.CONN_ESTABLISHED
    ]


async def until_connections_to(url, count):
    """Wait until so many connections are open: gRPC closes a moment after it was told to."""
    async with asyncio.timeout(10):
        while len(connections_to(url)) != count:
            await asyncio.sleep(0.01)


@pytest.fixture
async def unconnected(urls):
    """Wait for the end of connections that earlier tests' pools had."""
    gc.collect()  # an error that a test caught may hold its call, and that the connection
    await until_connections_to(urls[0], 0)


async def test_removing_waits_for_calls_that_are_out(urls):
    async with TritonPool(urls, batching=None) as pool:
        calls = await slow_calls(pool, 2, ms=300)
        await pool.remove_endpoint(urls[0])
        assert sum(call.done() for call in calls) >= 1
        await asyncio.gather(*calls)


async def test_an_endpoint_that_was_removed_has_no_connection_any_more(urls, unconnected):
    async with TritonPool(urls, batching=None) as pool:
        await asyncio.gather(*await slow_calls(pool, 2, ms=200))
        assert len(connections_to(urls[0])) == 2
        await pool.remove_endpoint(urls[0])
        await until_connections_to(urls[0], 1)
        await pool.model("ident")(INPUT0=ROW)
        assert len(connections_to(urls[0])) == 1
    await until_connections_to(urls[0], 0)


async def cancelled_removal(pool, url):
    removing = asyncio.ensure_future(pool.remove_endpoint(url))
    await asyncio.sleep(0)  # it waits for the calls
    removing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removing


async def test_a_removal_that_is_cancelled_leaves_the_endpoint_removed_and_nothing_open(
    urls, unconnected
):
    async with TritonPool(urls, batching=None) as pool:
        calls = await slow_calls(pool, 4, ms=300)
        await cancelled_removal(pool, urls[0])
        assert not any(call.done() for call in calls)
        assert pool.admin.endpoints == (urls[1],)
        with pytest.raises(ConfigurationError, match="still being removed"):
            await pool.add_endpoint(urls[0])
        await asyncio.gather(*calls)
        await until_connections_to(urls[0], 1)
        await pool.add_endpoint(urls[0])
        await pool.model("ident")(INPUT0=ROW)
    await until_connections_to(urls[0], 0)


async def test_closing_the_pool_closes_what_a_cancelled_removal_left(urls, unconnected):
    async with TritonPool(urls, batching=None) as pool:
        calls = await slow_calls(pool, 4, ms=300)
        await cancelled_removal(pool, urls[0])
    assert all(call.done() and not call.exception() for call in calls)
    await until_connections_to(urls[0], 0)


async def test_the_administration_of_several_speaks_for_all_or_asks_for_one(urls):
    async with TritonPool([*urls, "127.0.0.1:1"]) as pool:
        assert not await pool.admin.live()
        assert not await pool.admin.ready()
        assert not await pool.admin.ready("ident")
        await pool.remove_endpoint("127.0.0.1:1")
        assert await pool.admin.live()
        assert await pool.admin.ready()
        assert await pool.admin.ready("ident")
        assert not await pool.admin.ready("nobody")
        await pool.admin.wait_until_ready("ident", timeout_s=10)
        for ask in (pool.admin.index, pool.admin.statistics, pool.admin.server_metadata):
            with pytest.raises(ConfigurationError, match=rf"ask one of.*{ask.__name__}\(…\)"):
                await ask()
        with pytest.raises(ConfigurationError, match="metadata may differ"):
            await pool.admin.metadata("ident")
        one = pool.admin.at(urls[1])
        assert one.endpoints == (urls[1],)
        assert (await one.server_metadata()).name == "triton"
        assert (await one.metadata("ident")).name == "ident"
        with pytest.raises(ConfigurationError, match="no endpoint of this pool"):
            pool.admin.at("127.0.0.1:1")
        await pool.remove_endpoint(urls[1])
        with pytest.raises(ConfigurationError, match="no endpoint of this pool"):
            await one.live()
        assert (await pool.admin.index())[0].name


async def test_a_signature_is_asked_of_an_endpoint_that_answers(urls):
    health = HealthPolicy(probe_interval_s=None)
    async with TritonPool(["127.0.0.1:1", urls[0]], health=health) as pool:
        for _ in range(5):
            pool._stages.catalog.forget("ident")
            assert (await pool.model("ident").spec()).name == "ident"


def test_an_xds_target_without_a_bootstrap_file_fails_with_its_name():
    program = """
import asyncio
from tritonasync import TritonPool
from tritonasync.core.errors import TransportError

async def main():
    async with TritonPool("xds:///triton") as pool:
        try:
            await pool.model("ident").spec(timeout_s=5)
        except TransportError as error:
            print(error)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "xds:///triton" in done.stdout, done
