"""Streams, texts and sequences without an event loop."""

import gc
import inspect
import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.handles.fakes import END, FakeInvoker
from tritonasync import TritonPool
from tritonasync.blocking import BlockingSequence, BlockingStream
from tritonasync.blocking_handles import _flagged
from tritonasync.core.errors import (
    InvalidInputError,
    ModelFailedError,
    PoolClosedError,
    UsageError,
    WrongContextError,
)
from tritonasync.core.values import Reply
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.sequence import SequenceHandle
from tritonasync.handles.stream import ResponseStream
from tritonasync.loop_thread import LoopThread

PROMPT = "the song of the river"


class NoPool:
    async def open(self):
        pass

    async def aclose(self):
        pass


@pytest.fixture
def thread():
    thread = LoopThread(NoPool())
    thread.open()
    yield thread
    thread.close()


@pytest.fixture
def invoker(thread):
    return FakeInvoker()


def stream_of(thread, invoker):
    """A stream of the replies that the invoker's responses are told."""

    async def begin():
        responses = invoker.stream(None)
        return responses, await anext(responses, None)

    return BlockingStream(thread, ResponseStream("net", begin, lambda reply: reply.request_id))


def reply(text):
    return Reply("net", "1", {}, text)


def until(condition):
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


@pytest.fixture
def pool(server):
    with TritonPool.blocking(server.grpc_url) as pool:
        yield pool


# --- streams ---


def test_a_plain_loop_gets_what_the_stream_gives(thread, invoker):
    invoker.script = [reply("a"), reply("b"), END]
    stream = stream_of(thread, invoker)
    assert "new" in repr(stream)
    assert list(stream) == ["a", "b"]
    assert list(stream) == []


def test_an_error_comes_after_what_came_before_it(thread, invoker):
    invoker.script = [reply("a"), ModelFailedError("no", code="INTERNAL", details="no")]
    stream = stream_of(thread, invoker)
    assert next(stream) == "a"
    with pytest.raises(ModelFailedError):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize("how", ["break", "with", "close"])
def test_leaving_lets_go(thread, invoker, how):
    invoker.script = [reply("a"), reply("b")]
    stream = stream_of(thread, invoker)
    if how == "with":
        with stream as responses:
            assert next(responses) == "a"
    elif how == "close":
        assert next(stream) == "a"
        stream.close()
        stream.close()
    else:
        for text in stream:
            assert text == "a"
            break
        del stream
    until(lambda: invoker.streams[0].left == 1)


def test_another_thread_may_close_it_and_no_other_may_wait(thread, invoker):
    stream = stream_of(thread, invoker)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(list, stream)
        until(lambda: invoker.streams)
        with pytest.raises(UsageError, match="another task is waiting"):
            next(stream)
        stream.close()
        assert waiting.result(timeout=30) == []


def test_it_may_be_closed_and_dropped_after_its_pool():
    thread, invoker = LoopThread(NoPool()), FakeInvoker(script=[reply("a")])
    thread.open()
    stream = stream_of(thread, invoker)
    assert next(stream) == "a"
    thread.close()
    with pytest.raises(PoolClosedError):
        next(stream)
    stream.close()
    del stream
    gc.collect()


def test_ctrl_c_between_responses_leaves_the_stream_usable(thread, invoker):
    invoker.script = [reply("a")]
    stream = stream_of(thread, invoker)
    assert next(stream) == "a"

    def interrupt():
        until(lambda: "waiting" in repr(stream))
        os.kill(os.getpid(), signal.SIGINT)

    hand = threading.Thread(target=interrupt)
    hand.start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    hand.join()
    until(lambda: "waiting" not in repr(stream))
    thread.call(tell, invoker, reply("b"), END)
    assert list(stream) == ["b"]


async def tell(invoker, *items):
    invoker.streams[0].tell(*items)


@pytest.mark.server
def test_responses_of_a_real_server(pool):
    repeat = pool.model("repeat")
    assert [out["INDEX"].item() for out in repeat.stream(COUNT=[3])] == [0, 1, 2]
    with repeat.stream({"COUNT": [3]}, timeout_s=20) as responses:
        assert next(responses)["INDEX"].item() == 0
    assert list(responses) == []
    with pytest.raises(ModelFailedError, match="negative count"):
        list(repeat.stream(COUNT=[-1]))


@pytest.mark.server
def test_texts_of_a_real_server(pool):
    tokens = pool.generator("tokens", inputs={"MAX_TOKENS": 40})
    pieces = list(tokens(PROMPT))
    assert "".join(pieces) == tokens.text(PROMPT, STREAM=False)
    assert len(pieces) > 10


@pytest.mark.server
def test_the_pools_own_thread_is_refused(pool):
    stream, caught = pool.model("repeat").stream(COUNT=[1]), []

    async def inside():
        try:
            next(stream)
        except WrongContextError as error:
            caught.append(error)

    pool._thread.call(inside)
    assert caught


# --- sequences ---


@pytest.mark.server
def test_a_sequence_keeps_its_state(pool):
    model = pool.model("accumulate")
    with model.sequence(closing={"VALUE": [[0]]}) as sequence:
        assert isinstance(sequence, BlockingSequence)
        assert isinstance(sequence.id, int)
        assert sequence({"VALUE": [[3]]})["TOTAL"].tolist() == [[3]]
        assert sequence.one(VALUE=[4])["TOTAL"].tolist() == [7]
        assert [out["TOTAL"].item() for out in sequence.stream(VALUE=[[5]])] == [12]
    with pytest.raises(UsageError, match="over"):
        sequence.one(VALUE=[1])


@pytest.mark.server
@pytest.mark.parametrize("item", [False, True])
def test_a_source_is_mapped_in_the_callers_thread(pool, item):
    seen = []

    def source():
        for value in (1, 2, 3):
            seen.append(threading.current_thread())
            yield {"VALUE": [value] if item else [[value]]}

    with pool.model("accumulate").sequence() as sequence:
        totals = [out["TOTAL"].item() for out in sequence.map(source(), end=True, item=item)]
        assert totals == [1, 3, 6]
        assert set(seen) == {threading.current_thread()}
        with pytest.raises(UsageError):
            sequence.one(VALUE=[1])  # the last one ended it


@pytest.mark.server
def test_a_body_that_raises_is_not_hidden_by_the_closing(pool):
    def body(sequence):
        with sequence:
            sequence.one(VALUE=[1])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body(pool.model("accumulate").sequence(closing={"VALUE": [[0]]}))


class Closed:
    """A sequence whose pool is closed when its block is left."""

    def __init__(self, error=None):
        self.error = error

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        raise self.error


@pytest.mark.parametrize("when", ["before", "inside"])
def test_the_error_of_a_block_is_not_hidden_by_a_closed_pool(when):
    thread = LoopThread(NoPool())
    thread.open()

    def body(error):
        with BlockingSequence(thread, Closed(PoolClosedError("closed"))):
            if when == "before":
                thread.close()
            if error is not None:
                raise error

    with pytest.raises(ZeroDivisionError):
        body(ZeroDivisionError())
    if when == "inside":
        with pytest.raises(PoolClosedError):
            body(None)
    thread.close()


def test_a_sequence_left_after_its_pool_says_so(thread):
    with pytest.raises(PoolClosedError):  # noqa: SIM117
        with BlockingSequence(thread, Closed()):
            thread.close()


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("end", [False, True])
def test_what_a_source_gave_before_it_raised_is_given_out(count, end):
    def source():
        yield from range(count)
        raise ZeroDivisionError

    given = []
    with pytest.raises(ZeroDivisionError):
        given.extend(_flagged(source(), end=end))  # which takes them one by one
    assert given == [(number, False) for number in range(count)]


@pytest.mark.parametrize("options", [{"source": 5}, {"source": [], "end": "no"}])
def test_a_source_or_end_that_makes_no_sense_is_refused_in_words(thread, options):
    model = ModelHandle("net", "", None, None, timeout_s=None)
    sequence = BlockingSequence(thread, model.sequence())
    with pytest.raises(InvalidInputError, match="model 'net': (expected an iterable|end is True)"):
        list(sequence.map(**options))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_last_item_of_a_source_is_known_to_be(count):
    items = [{"VALUE": number} for number in range(count)]
    assert list(_flagged(items, end=False)) == [(item, False) for item in items]
    flags = [False] * (count - 1) + [True]
    assert list(_flagged(iter(items), end=True)) == list(zip(items, flags, strict=False))


def test_a_source_is_read_an_item_ahead_only_where_the_last_one_is_told():
    for end, read in ((False, 1), (True, 2)):
        numbers = itertools.count()
        next(_flagged(({"VALUE": number} for number in numbers), end=end))
        assert next(numbers) == read


def test_mapping_takes_the_options_of_the_asynchronous_one():
    ours = inspect.signature(BlockingSequence.map).parameters
    theirs = inspect.signature(SequenceHandle.map).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]
