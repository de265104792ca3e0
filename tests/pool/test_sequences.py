"""Sequences on the real server: state, slots, ids, and what becomes of them when a server goes."""

import asyncio
import contextlib
import math
import time
from itertools import accumulate

import anyio
import numpy as np
import pytest

from tests.conftest import TESTS
from tritonasync import BatchPolicy, TritonPool
from tritonasync.core.errors import (
    InvalidInputError,
    InvalidRequestError,
    ModelFailedError,
    PoolClosedError,
    SequenceLostError,
    SequenceNotFoundError,
    UsageError,
)
from tritonasync.serving import EmbeddedTriton

pytestmark = [pytest.mark.anyio, pytest.mark.server]

ZERO = {"VALUE": [[0]]}


def own_server():
    return EmbeddedTriton(
        TESTS / "models",
        model_control="explicit",
        load_models=["accumulate", "accumulate_oldest"],
        metrics=False,
    )


@pytest.fixture(scope="module")
def two_servers():
    with own_server() as one, own_server() as other:
        yield one, other


def total(outputs):
    return outputs["TOTAL"].item()


async def run(sequence, values):
    """Sum up in a sequence; return what the server gave at each step."""
    async with sequence:
        return [total(await sequence.one(VALUE=[value])) for value in values]


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["auto", "unary", "stream"])
@pytest.mark.parametrize("name", ["accumulate", "accumulate_oldest"])
@pytest.mark.parametrize("kind", [int, str])
async def test_more_sequences_than_slots_have_their_own_state(two_servers, name, kind, transport):
    """Those that wait for one of the four slots of ``accumulate`` hold up none that has one."""
    url = two_servers[0].grpc_url
    async with TritonPool(url, transport=transport, timeout_s=10) as pool:
        model = pool.model(name)
        values = {kind(number): range(number, number + 8) for number in range(1, 41)}
        totals = await asyncio.gather(
            *[run(model.sequence(number, closing=ZERO), values[number]) for number in values]
        )
        assert totals == [list(accumulate(steps)) for steps in values.values()]
        assert pool.statistics().routing.sequences == 0


async def test_a_sequence_has_a_stream_of_its_own_until_its_end(two_servers):
    async with TritonPool(two_servers[0].grpc_url, transport="stream") as pool:
        model = pool.model("accumulate_oldest")
        async with model.sequence(closing=ZERO) as one, model.sequence(closing=ZERO) as other:
            for step in (1, 2, 3):
                assert [total(await seq.one(VALUE=[1])) for seq in (one, other)] == [step, step]
                assert pool.statistics().endpoints[0].streams == 2
        async with asyncio.timeout(5):
            while pool.statistics().endpoints[0].streams:
                await asyncio.sleep(0.01)


async def test_without_batching_the_same_holds(server):
    async with TritonPool(server.grpc_url, batching=None) as pool:
        model = pool.model("accumulate_oldest")
        runs = [run(model.sequence(closing=ZERO), range(start, 20)) for start in range(10)]
        totals = await asyncio.gather(*runs)
    assert totals == [list(accumulate(range(start, 20))) for start in range(10)]


async def test_a_model_that_asks_for_strings_gets_them(pool):
    model = pool.model("accumulate_strings")
    async with model.sequence(closing={"VALUE": [0]}) as sequence:
        for step in (1, 2, 3):
            outputs = await sequence(VALUE=[1])
            assert outputs["TOTAL"].tolist() == [step]
            assert outputs["ID"].tolist() == [sequence.id.encode()]


@pytest.mark.parametrize("number", [-1, 2**63 - 1, -(2**63), "é\n b", "x" * 128])
async def test_the_server_takes_the_ids_that_are_not_refused_here(pool, number):
    async with pool.model("accumulate_oldest").sequence(number, closing=ZERO) as sequence:
        assert [total(await sequence.one(VALUE=[step])) for step in (1, 2)] == [1, 3]


async def test_an_id_that_the_server_cuts_short_is_refused(pool):
    """It would take "a\\0b" and "a\\0c" for one sequence."""
    with pytest.raises(InvalidInputError, match="NUL"):
        pool.model("accumulate_oldest").sequence("a\0b")


@pytest.mark.parametrize("transport", ["unary", "stream"])
async def test_a_sequence_that_cannot_be_closed_is_not_remembered(two_servers, transport):
    urls = [server.grpc_url for server in two_servers]
    async with TritonPool(urls, transport=transport) as pool:
        for number in (1, "one"):
            async with pool.model("accumulate_oldest").sequence(number) as sequence:
                await sequence.one(VALUE=[1])
                assert pool.statistics().routing.sequences == 1
            assert pool.statistics().routing.sequences == 0


@pytest.mark.parametrize("closing", [None, ZERO])
async def test_a_sequence_that_is_left_after_its_pool_was_closed_says_so_if_it_was_to_be_closed(
    two_servers, closing
):
    expected = contextlib.nullcontext() if closing is None else pytest.raises(PoolClosedError)
    async with TritonPool(two_servers[0].grpc_url) as pool:
        with expected:
            async with pool.model("accumulate_oldest").sequence(closing=closing) as sequence:
                await sequence.one(VALUE=[1])
                await pool.aclose()


@pytest.mark.parametrize("number", [2**63, 0, "", "x" * 129])
async def test_the_server_refuses_the_ids_that_are_refused_here(pool, number):
    model = pool.model("accumulate_oldest")
    with pytest.raises(InvalidInputError):
        model.sequence(number)
    parameters = {"sequence_id": number, "sequence_start": True, "sequence_end": True}
    with pytest.raises(Exception, match="correlation ID|sequence_id"):
        await model.one(VALUE=[1], parameters=parameters)


async def test_a_model_that_raises_leaves_the_state_as_it_was(pool):
    async with pool.model("accumulate_oldest").sequence(closing=ZERO) as sequence:
        await sequence.one(VALUE=[1])
        with pytest.raises(ModelFailedError, match="negative value -5"):
            await sequence.one(VALUE=[-5])
        with pytest.raises(InvalidRequestError, match="batch-size 1"):
            await sequence(VALUE=[[1], [2]])
        assert total(await sequence.one(VALUE=[2])) == 3


async def test_a_source_of_steps(pool):
    async with pool.model("accumulate").sequence() as sequence:
        source = ({"VALUE": [value]} for value in (1, 2, 3))
        answers = [total(out) async for out in sequence.map(source, item=True, end=True)]
    assert answers == [1, 3, 6]
    assert pool.statistics().routing.sequences == 0


async def test_a_model_without_sequences_is_refused(pool):
    with pytest.raises(UsageError, match=r"'ident' takes no sequences.*sequence_batching"):
        async with pool.model("ident").sequence():
            pytest.fail("entered")


@pytest.mark.parametrize(
    ("name", "ids", "idle_s"),
    [
        ("accumulate", "any", 60.0),
        ("accumulate_strings", "string", 30.0),
        ("ident", "any", math.inf),
    ],
)
async def test_the_signature_says_what_ids_a_model_asks_for_and_how_long_it_waits(
    pool, name, ids, idle_s
):
    spec = await pool.model(name).spec()
    assert (spec.stateful, spec.sequence_ids, spec.sequence_idle_s) == (
        name != "ident",
        ids,
        idle_s,
    )


# --- many responses -------------------------------------------------------------------------------


async def test_a_decoupled_model_counts_on_where_its_sequence_was(pool):
    model = pool.model("accumulate_decoupled")
    with anyio.fail_after(20):
        for _ in range(3):
            async with model.sequence(closing={"VALUE": [0]}) as sequence:
                counted = [
                    [total(out) async for out in sequence.stream(VALUE=[value])]
                    for value in (3, 0, 2)
                ]
                assert counted == [[1, 2, 3], [], [4, 5]]
    assert pool.statistics().routing.sequences == 0


async def test_a_decoupled_sequence_that_is_left_in_the_middle_of_its_responses_is_closed(pool):
    model = pool.model("accumulate_decoupled")
    async with model.sequence(closing={"VALUE": [0]}) as sequence:
        async with sequence.stream(VALUE=[50]) as responses:
            assert total(await anext(responses)) == 1
        assert [total(out) async for out in sequence.stream(VALUE=[1])] == [51]
    assert pool.statistics().routing.sequences == 0


async def test_plain_steps_may_be_streams_as_well(pool):
    async with pool.model("accumulate_oldest").sequence(closing=ZERO) as sequence:
        await sequence.one(VALUE=[1])
        assert [total(out) async for out in sequence.stream(VALUE=[[2]])] == [3]


# --- slots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "closing", "end"),
    [
        ("accumulate", ZERO, False),
        ("accumulate", None, True),
        ("accumulate_optional", None, False),
    ],
)
async def test_a_closed_sequence_frees_its_slot(pool, name, closing, end):
    """With few slots, and an idle time of 30 s or more, the next would wait for long."""
    model = pool.model(name, idempotent=False)
    with anyio.fail_after(10):
        for _ in range(12):
            async with model.sequence(closing=closing) as sequence:
                await sequence.one(VALUE=[1])
                assert total(await sequence.one(VALUE=[1], end=end)) == 2


async def test_a_sequence_frees_its_slot_when_its_block_is_cancelled(pool):
    model = pool.model("accumulate_optional")

    async def use(begun):
        async with model.sequence() as sequence:
            await sequence.one(VALUE=[1])
            begun.set()
            await asyncio.Event().wait()

    with anyio.fail_after(10):
        for _ in range(6):
            begun = asyncio.Event()
            task = asyncio.create_task(use(begun))
            await begun.wait()
            task.cancel()
            await asyncio.wait({task})


async def test_an_idle_sequence_frees_its_slot(pool):
    model = pool.model("accumulate_optional")
    with anyio.fail_after(10):
        async with (
            model.sequence(idle_timeout_s=0.1) as one,
            model.sequence(idle_timeout_s=0.1) as other,
            model.sequence() as third,
        ):
            await one.one(VALUE=[1])
            await other.one(VALUE=[1])
            assert total(await third.one(VALUE=[1])) == 1  # it has to wait for a slot
            with pytest.raises(SequenceLostError, match="idle_timeout_s"):
                await one.one(VALUE=[1])


# --- what goes wrong ------------------------------------------------------------------------------


async def test_a_sequence_that_the_server_has_forgotten_is_lost(pool):
    async with pool.model("accumulate_oldest").sequence(11) as sequence:
        await sequence.one(VALUE=[1])
        await pool.model("accumulate_oldest").one(
            VALUE=[0], parameters={"sequence_id": 11, "sequence_end": True}
        )  # somebody else ends it
        with pytest.raises(SequenceLostError, match="sequence 11 is lost") as caught:
            await sequence.one(VALUE=[1])
    assert isinstance(caught.value.__cause__, SequenceNotFoundError | SequenceLostError)


async def test_a_restarted_server_has_lost_its_sequences(tmp_path):
    with own_server() as server:
        async with TritonPool(server.grpc_url, timeout_s=60) as pool:
            model = pool.model("accumulate_oldest")
            async with model.sequence() as sequence:
                await sequence.one(VALUE=[1])
                await asyncio.to_thread(server.restart)
                with pytest.raises(SequenceLostError):
                    await sequence.one(VALUE=[1])
                sent = pool.statistics().endpoints[0].succeeded
                with pytest.raises(SequenceLostError):
                    await sequence.one(VALUE=[1])
                assert pool.statistics().endpoints[0].succeeded == sent
            async with model.sequence(closing=ZERO) as sequence:
                assert total(await sequence.one(VALUE=[5])) == 5


@pytest.mark.parametrize("batching", [BatchPolicy(), None], ids=["batched", "alone"])
async def test_of_two_servers_each_has_the_state_of_its_own(two_servers, batching):
    urls = [server.grpc_url for server in two_servers]
    async with TritonPool(urls, batching=batching) as pool:
        model = pool.model("accumulate_oldest")
        runs = [run(model.sequence(closing=ZERO), range(start, start + 6)) for start in range(40)]
        totals = await asyncio.gather(*runs)
        assert totals == [list(accumulate(range(start, start + 6))) for start in range(40)]
        routing = pool.statistics().routing
        assert all(endpoint.attempts > 40 for endpoint in routing.endpoints)
        assert routing.sequences == 0


@contextlib.asynccontextmanager
async def on_both(pool):
    """Sequences of one step, as many as it takes for each of two endpoints to have some."""
    model = pool.model("accumulate_oldest")
    async with contextlib.AsyncExitStack() as stack:
        sequences = []
        # One attempt may be the question for the signature.
        while min([endpoint.attempts for endpoint in pool.statistics().routing.endpoints]) < 2:
            sequences.append(await stack.enter_async_context(model.sequence(closing=ZERO)))
            await sequences[-1].one(VALUE=[1])
        yield sequences


async def test_a_sequence_whose_endpoint_was_removed_is_lost_and_the_others_are_not(two_servers):
    urls = [server.grpc_url for server in two_servers]
    async with TritonPool(urls, batching=None) as pool, on_both(pool) as sequences:
        await pool.remove_endpoint(urls[0], timeout_s=0.1)
        outcomes = []
        for sequence in sequences:
            try:
                outcomes.append(total(await sequence.one(VALUE=[1])))
            except SequenceLostError:
                outcomes.append("lost")
        assert set(outcomes) == {2, "lost"}


async def test_removing_an_endpoint_waits_for_sequences_that_end(two_servers):
    urls = [server.grpc_url for server in two_servers]
    async with TritonPool(urls) as pool:
        async with on_both(pool) as sequences:
            removal = asyncio.create_task(pool.remove_endpoint(urls[0], timeout_s=30))
            await asyncio.sleep(0.05)
            assert not removal.done()
            assert {total(await sequence.one(VALUE=[1])) for sequence in sequences} == {2}
        began = time.monotonic()
        await removal
        assert time.monotonic() - began < 10


async def test_steps_of_many_tasks_keep_their_order(pool):
    async with pool.model("accumulate").sequence(closing=ZERO) as sequence:
        values = np.arange(1, 30, dtype=np.int32)[:, None]
        answers = await asyncio.gather(*[sequence.one(VALUE=value) for value in values])
    assert [total(outputs) for outputs in answers] == list(accumulate(range(1, 30)))
