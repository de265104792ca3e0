"""Streams of responses and texts through the whole stack, on the real server."""

import asyncio
import gc
import time

import numpy as np
import pytest

from tritonasync import ResponseStream, TritonPool
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
    ModelNotFoundError,
    PoolClosedError,
    ResponseOverflowError,
    UsageError,
)
from tritonasync.core.policies import StreamPolicy

pytestmark = [pytest.mark.anyio, pytest.mark.server]

PROMPT = "the song of the river"


@pytest.fixture
def repeat(pool):
    return pool.model("repeat")


@pytest.fixture
def tokens(pool):
    return pool.generator("tokens")


async def indices(stream):
    return [output["INDEX"].item() async for output in stream]


async def collect(stream, into):
    async for item in stream:
        into.append(item)


async def drop_all_but_first(stream):
    first = None
    async for output in stream:
        first = output
        break
    return first


# --- responses ---


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
async def test_as_many_responses_as_the_model_gives(repeat, count):
    assert await indices(repeat.stream({"COUNT": [count]})) == list(range(count))


async def test_a_plain_model_gives_one_response(pool):
    rows = np.arange(32, dtype=np.float32).reshape(2, 16)
    (output,) = [output async for output in pool.model("ident").stream(INPUT0=rows)]
    np.testing.assert_array_equal(output["OUTPUT0"], rows)


async def test_options_reach_the_server(pool):
    a, b = np.full((3, 4), 5, np.float32), np.full((3, 1), 2, np.int32)
    stream = pool.model("two_inputs").stream(A=a, B=b, outputs=["DIFF"], request_id="mine")
    (output,) = [output async for output in stream]
    assert list(output) == ["DIFF"]
    assert output.request_id == "mine"


async def test_an_error_comes_after_the_responses_before_it(pool):
    stream = pool.model("tokens").stream(PROMPT=["x"], MAX_TOKENS=[-3], STREAM=[True])
    got = []
    with pytest.raises(ModelFailedError, match="out of words after 3 tokens"):
        await collect(stream, got)
    assert len(got) == 3
    assert await anext(stream, None) is None


async def test_what_does_not_fit_is_refused_before_it_is_sent(pool, repeat):
    with pytest.raises(InvalidInputError, match="COUNT"):
        await indices(repeat.stream(COUNT=[0.5]))
    with pytest.raises(InvalidInputError, match="one request takes"):
        await indices(pool.model("slow_batch").stream(INPUT0=np.ones((9, 1), np.float32)))
    with pytest.raises(ModelNotFoundError):
        await indices(pool.model("no_such").stream(COUNT=[1]))


async def test_a_call_of_a_decoupled_model_names_the_stream(repeat):
    with pytest.raises(UsageError, match=r"decoupled.*\.stream\("):
        await repeat(COUNT=[1])


async def test_a_thousand_streams_at_once_each_get_their_own(repeat):
    counts = [number % 7 for number in range(1000)]
    got = await asyncio.gather(*[indices(repeat.stream(COUNT=[count])) for count in counts])
    assert got == [list(range(count)) for count in counts]


# --- time ---


async def test_the_first_response_has_timeout_s(tokens):
    with pytest.raises(DeadlineExceededError) as caught:
        await tokens.text(PROMPT, MAX_TOKENS=2, DELAY_MS=2000, timeout_s=0.2)
    assert caught.value.stage in {"metadata", "server"}


async def test_each_later_response_has_idle_timeout_s(tokens):
    got = []
    with pytest.raises(DeadlineExceededError) as caught:
        await collect(
            tokens(PROMPT, MAX_TOKENS=5, DELAY_MS=300, timeout_s=20, idle_timeout_s=0.01), got
        )
    assert caught.value.stage == "responses"
    assert caught.value.timeout_s == 0.01
    assert got


async def test_time_is_for_each_response_and_not_for_all(tokens):
    text = await tokens.text(PROMPT, MAX_TOKENS=20, DELAY_MS=100, timeout_s=1.9)  # 2 s at least
    assert text


# --- leaving ---


async def test_leaving_frees_all_and_leaves_the_server_alive(repeat):
    for _ in range(200):
        assert (await drop_all_but_first(repeat.stream(COUNT=[50])))["INDEX"] == [0]
    assert await indices(repeat.stream(COUNT=[3])) == [0, 1, 2]


async def test_a_task_that_is_cancelled_in_its_loop_lets_go(pool, tokens):
    got = []
    task = asyncio.ensure_future(collect(tokens(PROMPT, MAX_TOKENS=300, DELAY_MS=2), got))
    while not got:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await tokens.text(PROMPT, MAX_TOKENS=3)
    assert pool.statistics().in_flight == 0


@pytest.mark.parametrize("later", [False, True])
async def test_closing_ends_who_waits_at_once(tokens, later):
    stream = tokens(PROMPT, MAX_TOKENS=2, DELAY_MS=2000)
    if later:
        await anext(stream)
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0.3)  # however far it has come by then
    began = time.monotonic()
    await stream.aclose()
    assert await waiting is None
    assert time.monotonic() - began < 1


async def test_waiting_for_a_later_response_may_be_cut_short_and_taken_up_again(tokens):
    whole = await tokens.text(PROMPT, MAX_TOKENS=30)
    stream, got = tokens(PROMPT, MAX_TOKENS=30, DELAY_MS=20), []
    got.append(await anext(stream))
    cut = 0
    while (piece := await within(stream, 0.005)) != "":
        if piece is None:
            cut += 1
        else:
            got.append(piece)
    assert cut
    assert "".join(got) == whole


async def within(stream, seconds):
    """The next piece, ``None`` if it takes too long, an empty one at the end."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(stream, "")
    except TimeoutError:
        return None


async def test_a_stream_left_open_does_not_keep_the_pool_open(server):
    async with TritonPool(server.grpc_url, close_timeout_s=20) as pool:
        stream = pool.model("repeat").stream(COUNT=[20])
        await anext(stream)
    got = await rest_or_refusal(stream)
    assert got in ([], PoolClosedError) or got == list(range(1, 20))


async def rest_or_refusal(stream):
    try:
        return await indices(stream)
    except PoolClosedError:
        return PoolClosedError


async def test_streams_before_and_after_the_pool_are_refused(server):
    pool = TritonPool(server.grpc_url)
    repeat = pool.model("repeat")
    with pytest.raises(PoolClosedError):
        await indices(repeat.stream(COUNT=[1]))
    async with pool:
        assert await indices(repeat.stream(COUNT=[1])) == [0]
        unused = repeat.stream(COUNT=[1])
    with pytest.raises(PoolClosedError):
        await indices(unused)


async def test_a_slow_loop_gets_everything_and_holds_up_nobody(pool, repeat):
    stream = repeat.stream(COUNT=[3000])
    assert (await anext(stream))["INDEX"] == [0]
    for _ in range(20):  # all that comes meanwhile is kept, or held back on the server
        await pool.model("ident")(INPUT0=np.ones((1, 16), np.float32), timeout_s=10)
        assert await indices(repeat.stream(COUNT=[3], timeout_s=10)) == [0, 1, 2]
    assert await indices(stream) == list(range(1, 3000))


async def test_a_loop_that_falls_too_far_behind_is_told_after_what_was_kept(server):
    little = StreamPolicy(max_streams=1, max_buffered=4, max_overrun=8, share_decoupled=True)
    async with TritonPool(server.grpc_url, streams=little) as pool:
        repeat = pool.model("repeat")
        stream, got = repeat.stream(COUNT=[2000]), []
        assert (await anext(stream))["INDEX"] == [0]
        for _ in range(50):
            assert await indices(repeat.stream(COUNT=[3])) == [0, 1, 2]
        with pytest.raises(ResponseOverflowError, match="model 'repeat' .* not read"):
            await collect(stream, got)
        assert [output["INDEX"].item() for output in got] == list(range(1, len(got) + 1))
        assert got
        assert await anext(stream, None) is None


async def test_no_stream_is_left_to_the_garbage_collector(repeat):
    def streams():
        return sum(issubclass(type(each), ResponseStream) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = streams()
        await indices(repeat.stream(COUNT=[3]))
        await drop_all_but_first(repeat.stream(COUNT=[3]))
        with pytest.raises(ModelFailedError):
            await indices(repeat.stream(COUNT=[-1]))
        assert streams() == before
    finally:
        gc.enable()


# --- text ---


async def test_a_text_in_pieces_is_the_text_in_one(tokens):
    whole = await tokens.text(PROMPT, MAX_TOKENS=200, STREAM=False)
    pieces = []
    await collect(tokens(PROMPT, MAX_TOKENS=200), pieces)
    assert "".join(pieces) == whole
    assert 100 < len(pieces) < 200  # of 200 tokens, of which some end within a character
    assert not any("\ufffd" in piece for piece in pieces)
    assert "猫" in whole


async def test_a_model_that_never_streams_gives_its_text_in_one(pool):
    echo = pool.generator("bytes_ident")
    assert [piece async for piece in echo("grüße")] == ["grüße"]


async def test_a_model_without_text_is_no_generator(pool):
    with pytest.raises(ConfigurationError, match="'ident' has no input of BYTES"):
        await pool.generator("ident").text("x")


async def test_many_texts_at_once(tokens):
    prompts = [f"{word} {number}" for number, word in enumerate(PROMPT.split() * 20)]
    wholes = [await tokens.text(prompt, STREAM=False) for prompt in prompts]
    texts = await asyncio.gather(*[tokens.text(prompt) for prompt in prompts])
    assert texts == wholes


async def test_inputs_of_every_call_are_the_handle_s(pool):
    brief = pool.generator("tokens", inputs={"MAX_TOKENS": 1})
    assert len(await brief.text(PROMPT)) < len(await brief.text(PROMPT, MAX_TOKENS=9))
