"""Thousands of requests on the streams of real servers, which live through all that callers do.

No two pools are open here at a time that would put requests of decoupled and of other models on
streams of one server: it does not bear them together.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from anyio import to_thread

from tritonasync import HealthPolicy, RetryPolicy, StreamPolicy, TritonPool
from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    ServerError,
    TritonError,
)
from tritonasync.core.values import Call, InputTensor
from tritonasync.serving import EmbeddedTriton

pytestmark = [pytest.mark.anyio, pytest.mark.server]

ONE = StreamPolicy(max_streams=1, share_decoupled=True)
ALONE = {"retry": RetryPolicy(attempts=1), "health": HealthPolicy(probe_interval_s=None)}
AT_ONCE = 200
PAUSE_S = 0.2
"""Between requests of decoupled models and others on streams: the server puts its records away."""


def serve(*models: str) -> EmbeddedTriton:
    return EmbeddedTriton(
        "tests/models", model_control="explicit", load_models=models, metrics=False
    )


@pytest.fixture(scope="module")
def throwaway() -> Iterator[EmbeddedTriton]:
    with serve("ident", "repeat", "tokens") as triton:
        yield triton


@pytest.fixture
async def connect(throwaway):
    """Open a pool on the server; afterwards the server must live, and have its rest."""

    def open_pool(**options) -> TritonPool:
        options = {"batching": None, "transport": "stream", "close_timeout_s": 60, **options}
        return TritonPool(throwaway.grpc_url, **options)

    yield open_pool
    assert throwaway.running, throwaway.log_tail()
    await asyncio.sleep(PAUSE_S)


# --- requests, good and bad ones -----------------------------------------------------------------


def ident(number: int, *, model: str = "ident", width: int = 16, **options) -> Call:
    row = np.full((1, width), number, np.float32)
    return Call(model, "", (InputTensor("INPUT0", "FP32", row.shape, (row,)),), 1, **options)


def repeat(count: int, *, model: str = "repeat", **options) -> Call:
    counts = np.array([count], np.int32)
    tensor = InputTensor("COUNT", "INT32", (1,), (counts,))
    return Call(model, "", (tensor,), decoupled=True, **options)


async def echoes(pool: TritonPool, number: int) -> None:
    answer = await pool._gate.infer(ident(number))
    np.testing.assert_array_equal(answer.outputs["OUTPUT0"], np.full((1, 16), number, np.float32))


async def counts(pool: TritonPool, count: int, **options) -> None:
    got = [out async for out in pool._gate.stream(repeat(count, **options))]
    assert [int(out.outputs["INDEX"][0]) for out in got] == list(range(count))


async def refused(kind: type[ServerError], responses) -> None:
    with pytest.raises(kind):
        await responses


async def misshapen(pool: TritonPool, number: int) -> None:
    await refused(InvalidRequestError, pool._gate.infer(ident(number, width=3)))


async def unknown(pool: TritonPool, number: int) -> None:
    await refused(ModelNotFoundError, pool._gate.infer(ident(number, model="no_such")))


async def failing(pool: TritonPool, number: int) -> None:
    del number
    await refused(ModelFailedError, collected(pool._gate.stream(repeat(-1))))


async def unknown_stream(pool: TritonPool, number: int) -> None:
    del number
    responses = pool._gate.stream(repeat(3, model="no_such"))
    await refused(ModelNotFoundError, collected(responses))


async def collected(responses) -> list:
    return [response async for response in responses]


def plain(number: int) -> Callable:
    return misshapen if number % 40 == 7 else unknown if number % 40 == 27 else echoes


def decoupled(number: int) -> Callable:
    return failing if number % 40 == 8 else unknown_stream if number % 40 == 28 else _counts_few


async def _counts_few(pool: TritonPool, number: int) -> None:
    await counts(pool, number % 4)


async def run_all(jobs: list[Callable]) -> None:
    """Run so many jobs at once, until all are done."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    await asyncio.gather(*[work() for _ in range(AT_ONCE)])


async def ask(pool: TritonPool, kinds: list[Callable]) -> None:
    await run_all([lambda n=n, kind=kind: kind(n)(pool, n) for n, kind in enumerate(kinds)])


async def test_ten_thousand_plain_requests_on_one_stream_with_bad_ones_between(connect):
    async with connect(streams=ONE) as pool:
        await ask(pool, [plain] * 10_000)
        (endpoint,) = pool.statistics().endpoints
        assert (endpoint.streams, endpoint.succeeded) == (1, 9_500)
        assert endpoint.failed == 500


async def test_ten_thousand_decoupled_requests_with_bad_ones_between(connect):
    async with connect(streams=ONE) as pool:
        await ask(pool, [decoupled] * 10_000)
        (endpoint,) = pool.statistics().endpoints
        assert endpoint.streams == 2, "one for the model that is there, and one for the other"
        assert (endpoint.succeeded, endpoint.failed) == (9_500, 500)


async def test_ten_thousand_requests_of_both_kinds_through_one_pool(connect):
    chance = random.Random(1)
    kinds = [plain] * 1_000 + [chance.choice([plain, decoupled]) for _ in range(9_000)]
    async with connect() as pool:
        await ask(pool, kinds)
        (endpoint,) = pool.statistics().endpoints
        assert endpoint.succeeded + endpoint.failed == 10_000
        assert 450 < endpoint.failed < 550


# --- many, and slow ones -------------------------------------------------------------------------


async def test_a_thousand_token_streams_at_once(connect):
    prompts = ["the cat", "of the sea", "🎵", "der Fluß"]
    async with connect() as pool:
        model = pool.model("tokens")

        async def text(prompt: str, *, stream: bool) -> tuple[int, bytes]:
            responses = model.stream(PROMPT=[prompt], MAX_TOKENS=[12], STREAM=[stream])
            parts = [out["TEXT"].item() async for out in responses]
            return len(parts), b"".join(parts)

        whole = [(await text(prompt, stream=False))[1] for prompt in prompts]
        got = await asyncio.gather(*[text(prompts[n % 4], stream=True) for n in range(1_000)])
        assert got == [(12, whole[n % 4]) for n in range(1_000)]
        async with asyncio.timeout(5):
            while pool.statistics().endpoints[0].streams > 64:
                await asyncio.sleep(0.01)


async def test_one_who_stops_reading_holds_up_nobody_and_misses_nothing(connect):
    async with connect() as pool:
        slow = pool._gate.stream(repeat(10_000))
        await anext(slow)
        await run_all([lambda: counts(pool, 5)] * 1_000)
        assert len(await collected(slow)) == 9_999
        assert pool.statistics().endpoints[0].failed == 0


# --- abandoned -----------------------------------------------------------------------------------


async def abandon(
    pool: TritonPool, call: Callable[..., Call], chance: random.Random
) -> Counter[type[BaseException]]:
    """Give up a hundred requests: some late, some at once, some after the first response."""
    loop = asyncio.get_running_loop()
    tasks = []
    for n in range(100):
        deadline = Deadline.after(chance.uniform(0.0005, 0.005) if n % 2 else 30)
        asked = call(5, deadline=deadline)
        if asked.decoupled:
            tasks.append(asyncio.ensure_future(some(pool, asked, n % 3)))
        else:
            tasks.append(asyncio.create_task(pool._gate.infer(asked)))
        if n % 4 == 0:
            loop.call_later(chance.uniform(0, 0.004), tasks[-1].cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return Counter(type(result) for result in results if isinstance(result, BaseException))


async def some(pool: TritonPool, call: Call, count: int) -> None:
    responses = pool._gate.stream(call)
    try:
        for _ in range(count):
            await anext(responses)
    finally:
        responses.leave()


async def until_quiet(pool: TritonPool) -> None:
    async with asyncio.timeout(60):
        while any(endpoint.in_flight for endpoint in pool.statistics().endpoints):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("call", [ident, repeat])
async def test_requests_given_up_by_the_thousand_leave_the_server_alive(connect, call):
    chance = random.Random(1)
    given_up: Counter[type[BaseException]] = Counter()
    async with connect() as pool:
        for part in range(60):
            given_up += await abandon(pool, call, chance)
            if part % 20 == 19:
                await until_quiet(pool)
        await until_quiet(pool)
        assert set(given_up) <= {DeadlineExceededError, asyncio.CancelledError}
        assert given_up[DeadlineExceededError] > 200
        assert given_up[asyncio.CancelledError] > 200
        (endpoint,) = pool.statistics().endpoints
        assert endpoint.failed == 0
        assert endpoint.abandoned > 300
        await (echoes(pool, 3) if call is ident else counts(pool, 3))


# --- servers die, go down, load anew -------------------------------------------------------------


async def test_a_server_that_is_killed_ends_what_flows_and_the_rest_is_asked_of_another():
    with serve("tokens") as dying, serve("tokens") as living:
        async with TritonPool([dying.grpc_url, living.grpc_url], batching=None) as pool:
            model = pool.model("tokens")

            def stream(count: int, delay_ms: float):
                options = {"MAX_TOKENS": [count], "STREAM": [True], "DELAY_MS": [delay_ms]}
                return model.stream({"PROMPT": ["x"], **options})

            flowing = [stream(20, 60) for _ in range(20)]
            first = [await anext(one) for one in flowing]
            assert len(first) == 20
            waiting = [asyncio.create_task(collected(stream(3, 600))) for _ in range(20)]
            await asyncio.sleep(0.15)
            await to_thread.run_sync(dying.kill)
            ends = await asyncio.gather(*[rest(one) for one in flowing])
            broken = [count for count, error in ends if error is not None]
            assert 0 < len(broken) < 20
            assert {type(error) for _, error in ends} == {type(None), ConnectionLostError}
            assert all(1 <= count < 19 for count in broken), "what came before is given out"
            assert all(count == 19 for count, error in ends if error is None)
            answers = await asyncio.gather(*waiting)
            assert [len(answer) for answer in answers] == [3] * 20


async def rest(responses) -> tuple[int, TritonError | None]:
    """Read what comes; return how many came, and the error at the end."""
    count = 0
    try:
        async for _ in responses:
            count += 1
    except TritonError as error:
        return count, error
    return count, None


async def test_a_server_that_goes_down_is_not_held_up_by_open_streams():
    """It waits for the end of each, for 30 s; without new ones on them it need not."""
    with serve("repeat") as triton:
        # Nobody else to go to, and no word of readiness: it is the streams that notice.
        async with TritonPool(triton.grpc_url, batching=None, **ALONE) as pool:
            errors: Counter = Counter()
            stop = asyncio.Event()

            async def call_on() -> None:
                while not stop.is_set():
                    try:
                        await counts(pool, 5)
                    except TritonError as error:
                        errors[type(error)] += 1
                        await asyncio.sleep(0.05)

            callers = [asyncio.create_task(call_on()) for _ in range(20)]
            await asyncio.sleep(0.5)
            assert not errors
            began = time.monotonic()
            os.kill(triton.pid, signal.SIGTERM)
            async with asyncio.timeout(20):
                while triton.running:
                    await asyncio.sleep(0.05)
            assert time.monotonic() - began < 10
            stop.set()
            await asyncio.gather(*callers)
            assert errors[ModelNotReadyError]


async def test_a_server_lives_whose_decoupled_model_is_unloaded_under_load():
    """It dies of refusals beside responses on one stream: each request has one to itself."""
    with serve("repeat") as triton:
        async with TritonPool(triton.grpc_url, batching=None, **ALONE) as pool:
            outcomes: Counter = Counter()
            stop = asyncio.Event()

            async def call_on() -> None:
                while not stop.is_set():
                    try:
                        await counts(pool, 5)
                        outcomes["answered"] += 1
                    except (ModelNotReadyError, ModelNotFoundError) as error:
                        outcomes[type(error)] += 1
                        await asyncio.sleep(0.01)

            callers = [asyncio.create_task(call_on()) for _ in range(100)]
            for _ in range(3):
                await asyncio.sleep(0.3)
                await pool.admin.unload("repeat", timeout_s=20)
                await asyncio.sleep(0.1)
                await pool.admin.load("repeat", timeout_s=20)
            before = outcomes["answered"]
            async with asyncio.timeout(20):
                while outcomes["answered"] < before + 200:
                    await asyncio.sleep(0.01)
            stop.set()
            await asyncio.gather(*callers)
            assert len(outcomes) > 1, "some were refused, or nothing was seen"
        assert triton.running, triton.log_tail()


async def test_a_model_that_is_loaded_anew_under_streams_fails_none(throwaway, connect):
    async with connect() as pool:
        config = dict((await pool.admin.config("repeat")).document)
        done = 0

        async def call_on() -> None:
            nonlocal done
            while not stop.is_set():
                await counts(pool, 5)
                done += 1

        stop = asyncio.Event()
        callers = [asyncio.create_task(call_on()) for _ in range(50)]
        for generation in ("1", "2"):
            await asyncio.sleep(0.2)
            before = done
            config["parameters"] = {"generation": {"string_value": generation}}
            await pool.admin.load("repeat", config=config)
            await asyncio.sleep(0.2)
            assert done > before
        stop.set()
        await asyncio.gather(*callers)
        assert pool.statistics().endpoints[0].failed == 0
