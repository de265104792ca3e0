"""Micro-batching through the whole stack, on the real server."""

import asyncio

import numpy as np
import pytest

from tritonasync import (
    BatchPolicy,
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
    PoolClosedError,
    QueueFullError,
    TritonPool,
)

pytestmark = [pytest.mark.anyio, pytest.mark.server]


def rows(count: int) -> np.ndarray:
    return np.arange(count * 16, dtype=np.float32).reshape(count, 16)


def value(number: float) -> np.ndarray:
    return np.array([number], np.float32)


def batching(pool, model: str):
    return next(s for s in pool.statistics().batching if s.model == model)


async def executions(pool, model: str) -> int:
    (statistics,) = await pool.admin.statistics(model)
    return statistics.execution_count


async def settled(pool, model: str, inferences: int) -> int:
    """Return executions, once the server has counted so many rows: it counts after it answers."""
    for _ in range(500):
        (statistics,) = await pool.admin.statistics(model)
        if statistics.inference_count >= inferences:
            return statistics.execution_count
        await asyncio.sleep(0.01)
    raise AssertionError(f"{statistics.inference_count} of {inferences} rows counted")


async def test_concurrent_items_are_one_execution_on_the_server(pool):
    model = pool.model("ident")
    await model.one({"INPUT0": rows(1)[0]})
    (before,) = await pool.admin.statistics("ident")
    given = rows(200)
    answers = await asyncio.gather(*[model.one({"INPUT0": row}) for row in given])
    for row, answer in zip(given, answers, strict=True):
        np.testing.assert_array_equal(answer["OUTPUT0"], row)
        assert answer["OUTPUT0"].shape == (16,)
    executed = await settled(pool, "ident", before.inference_count + 200)
    assert executed - before.execution_count == 1
    assert batching(pool, "ident").batch_rows[256] == 1


async def test_without_a_policy_each_call_goes_alone(server):
    async with TritonPool(server.grpc_url, batching=None) as pool:
        model = pool.model("ident")
        before = await executions(pool, "ident")
        (counted,) = await pool.admin.statistics("ident")
        await asyncio.gather(*[model.one({"INPUT0": row}) for row in rows(20)])
        assert await settled(pool, "ident", counted.inference_count + 20) - before == 20
        assert pool.statistics().batching == ()


async def test_every_caller_gets_its_own_row_again_and_again(pool):
    model = pool.model("ident")
    given = rows(600)

    async def caller(row):
        for _ in range(8):
            outputs = await model.one({"INPUT0": row})
            assert (outputs["OUTPUT0"] == row).all()

    await asyncio.gather(*map(caller, given))
    statistics = batching(pool, "ident")
    assert statistics.rows == 4800
    assert statistics.mean_rows > 50
    assert statistics.rows_in_flight == statistics.queued_rows == statistics.batches_in_flight == 0
    assert pool.statistics().in_flight == 0


async def test_items_batches_and_handles_share_requests(pool):
    given = rows(40)
    calls = [
        pool.model("ident")({"INPUT0": given[:10]}),
        *[pool.model("ident").one(INPUT0=row) for row in given[10:20]],
        pool.encoder("ident")(given[20:30]),
        *[pool.encoder("ident").one(row) for row in given[30:]],
    ]
    await pool.model("ident").spec()
    first, *items = await asyncio.gather(*calls)
    np.testing.assert_array_equal(first["OUTPUT0"], given[:10])
    np.testing.assert_array_equal([item["OUTPUT0"] for item in items[:10]], given[10:20])
    np.testing.assert_array_equal(items[10], given[20:30])
    np.testing.assert_array_equal(items[11:], given[30:])
    assert dict(batching(pool, "ident").batch_rows) == {64: 1}, "33 to 64 rows, in one request"


async def test_a_call_above_the_limit_is_split_and_joined(server):
    async with TritonPool(server.grpc_url, batching=BatchPolicy(max_rows=64)) as pool:
        given = rows(1000)
        outputs = await pool.model("ident")({"INPUT0": given})
        np.testing.assert_array_equal(outputs["OUTPUT0"], given)
        assert max(batching(pool, "ident").batch_rows) == 64


async def test_one_bad_row_fails_alone(pool):
    model = pool.model("faulty")
    numbers = [1.0, 2.0, -3.0, 4.0, 5.0, 6.0, -7.0, 8.0]
    answers = await asyncio.gather(
        *[model.one({"INPUT0": value(number)}) for number in numbers], return_exceptions=True
    )
    for number, answer in zip(numbers, answers, strict=True):
        if number < 0:
            assert isinstance(answer, ModelFailedError)
            assert f"negative value {number:g}" in str(answer)
        else:
            assert answer["OUTPUT0"] == [number]
    assert batching(pool, "faulty").halved_batches == 5


async def test_other_dtypes_and_shapes_harm_no_neighbour(pool):
    model = pool.model("ident")
    await model.one({"INPUT0": rows(1)[0]})
    good = rows(8)
    odd = [np.arange(16, dtype=np.float16), [float(n) for n in range(16)], np.zeros(15, np.float32)]
    answers = await asyncio.gather(
        *[model.one({"INPUT0": row}) for row in [*good[:4], *odd, *good[4:]]],
        return_exceptions=True,
    )
    np.testing.assert_array_equal([answer["OUTPUT0"] for answer in answers[:4] + answers[7:]], good)
    for answer in answers[4:6]:
        np.testing.assert_array_equal(answer["OUTPUT0"], np.arange(16))
    assert isinstance(answers[6], InvalidInputError)


async def test_a_cancelled_caller_and_a_late_one_harm_no_neighbour(pool):
    model = pool.model("slow_batch")
    await model.one({"INPUT0": value(0)})
    calls = [asyncio.create_task(model.one({"INPUT0": value(n)})) for n in range(60)]
    late = [asyncio.create_task(model.one({"INPUT0": value(n)}, timeout_s=0.03)) for n in range(9)]
    await asyncio.sleep(0.01)
    for call in calls[::3]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 3:
            assert answer["OUTPUT0"] == [number]
        else:
            assert isinstance(answer, asyncio.CancelledError)
    errors = await asyncio.gather(*late, return_exceptions=True)
    assert all(isinstance(error, DeadlineExceededError) for error in errors)
    assert {error.stage for error in errors} <= {"queue", "server"}
    assert {error.timeout_s for error in errors} == {0.03}
    statistics = batching(pool, "slow_batch")
    assert statistics.cancelled_rows > 0
    assert statistics.expired_rows > 0
    assert statistics.queued_rows == 0


async def test_a_full_queue_refuses_at_once(server):
    policy = BatchPolicy(max_inflight=1, max_queued_rows=20)
    async with TritonPool(server.grpc_url, batching=policy) as pool:
        model = pool.model("slow_batch")
        await model.one({"INPUT0": value(0)})
        answers = await asyncio.gather(
            *[model.one({"INPUT0": value(n)}) for n in range(30)], return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, QueueFullError)]
        assert len(refused) == 10
        assert "max_queued_rows" in str(refused[0])
        assert "20 rows wait" in str(refused[0])
        assert [answer["OUTPUT0"][0] for answer in answers[:20]] == list(range(20))
        assert batching(pool, "slow_batch").rejected_rows == 10
        assert (await model.one({"INPUT0": value(7)}))["OUTPUT0"] == [7]


async def test_closing_lets_what_waits_finish(server):
    async with TritonPool(server.grpc_url, batching=BatchPolicy(max_inflight=1)) as pool:
        model = pool.model("slow_batch")
        await model.one({"INPUT0": value(0)})
        calls = [asyncio.create_task(model.one({"INPUT0": value(n)})) for n in range(40)]
        await asyncio.sleep(0.005)
    assert [(await call)["OUTPUT0"][0] for call in calls] == list(range(40))


async def test_closing_in_a_hurry_tells_those_who_wait(server):
    policy = BatchPolicy(max_inflight=1)
    pool = TritonPool(server.grpc_url, batching=policy, close_timeout_s=0.03)
    async with pool:
        model = pool.model("slow_batch")
        await model.one({"INPUT0": value(0)})
        calls = [asyncio.create_task(model.one({"INPUT0": value(n)})) for n in range(40)]
        await asyncio.sleep(0.005)
        # What is out is torn down below, which 2.51 survives for one call.
        with pytest.warns(ResourceWarning, match="torn down"):
            await pool.aclose()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    closed = [answer for answer in answers if isinstance(answer, PoolClosedError)]
    assert len(closed) >= 16
    assert "waited for a batch" in str(closed[-1])
    with pytest.raises(PoolClosedError):
        await model.one({"INPUT0": value(1)})


async def test_lingering_gathers_what_comes_in_time(server):
    async with TritonPool(server.grpc_url, batching=BatchPolicy(linger_s=0.05)) as pool:
        model = pool.model("ident")
        await model.spec()
        calls = []
        for row in rows(6):
            calls.append(asyncio.create_task(model.one({"INPUT0": row})))
            await asyncio.sleep(0.002)
        await asyncio.gather(*calls)
        assert dict(batching(pool, "ident").batch_rows) == {8: 1}


async def test_a_row_beyond_the_byte_limit_goes_alone(server):
    policy = BatchPolicy(max_nbytes=100)
    async with TritonPool(server.grpc_url, batching=policy) as pool:
        model = pool.model("ident")
        given = rows(5)
        await model.spec()
        answers = await asyncio.gather(*[model.one({"INPUT0": row}) for row in given])
        np.testing.assert_array_equal([answer["OUTPUT0"] for answer in answers], given)
        assert dict(batching(pool, "ident").batch_rows) == {1: 5}


async def test_bad_calls_are_refused_and_leave_nothing_behind(pool):
    model = pool.model("ident")
    with pytest.raises(InvalidInputError, match="empty batch"):
        await model({"INPUT0": rows(0)})
    with pytest.raises(DeadlineExceededError):
        await model.one({"INPUT0": rows(1)[0]}, timeout_s=0)
    assert pool.statistics().in_flight == 0


async def test_strings_of_any_length_share_a_batch(pool):
    model = pool.model("bytes_ident")
    (name,) = [tensor.name for tensor in (await model.spec()).inputs]
    given = [[b"x" * n] for n in range(50)]
    answers = await asyncio.gather(*[model.one({name: strings}) for strings in given])
    assert [list(next(iter(answer.values()))) for answer in answers] == given


async def test_ids_reach_the_server_alone(pool):
    model = pool.model("ident")
    answers = await asyncio.gather(
        *[model.one({"INPUT0": row}, request_id=f"call-{n}") for n, row in enumerate(rows(4))]
    )
    assert [answer.request_id for answer in answers] == [f"call-{n}" for n in range(4)]


async def test_callers_are_counted_whichever_way_they_come(pool):
    model = pool.model("slow_batch")
    await model.one({"INPUT0": value(0)})
    assert pool.statistics().in_flight == 0
    lone = asyncio.create_task(model.one({"INPUT0": value(0)}))
    await asyncio.sleep(0.005)
    assert pool.statistics().in_flight == 1
    calls = [asyncio.create_task(model.one({"INPUT0": value(n)})) for n in range(20)]
    calls += [asyncio.create_task(model({"INPUT0": value(n)[None]})) for n in range(5)]
    await asyncio.sleep(0.005)
    calls[3].cancel()
    await asyncio.sleep(0)
    assert pool.statistics().in_flight == 25
    await asyncio.gather(lone, *calls, return_exceptions=True)
    assert pool.statistics().in_flight == 0


@pytest.mark.parametrize("queued", [1, 100, 256])
async def test_a_call_is_never_refused_for_its_size(server, queued):
    async with TritonPool(server.grpc_url, batching=BatchPolicy(max_queued_rows=queued)) as pool:
        given = rows(1000 if queued > 1 else 20)
        outputs = await pool.model("ident")({"INPUT0": given})
        np.testing.assert_array_equal(outputs["OUTPUT0"], given)
