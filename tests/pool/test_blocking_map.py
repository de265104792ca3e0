"""Very many items through a plain loop: read here, run in the pool's loop."""

import asyncio
import gc
import threading
import time
import weakref

import pytest

from tritonasync import TritonPool
from tritonasync.blocking_bulk import blocking_map
from tritonasync.core.errors import InvalidInputError, PoolClosedError, UsageError
from tritonasync.facade import Facade
from tritonasync.handles.flow.bulk import Failed, Mappable
from tritonasync.loop_thread import LoopThread


class Pool:
    async def open(self):
        pass

    async def aclose(self):
        pass


class Doubler(Mappable):
    """Doubles; what it cannot do is negative, what it never ends is over 1000."""

    def __init__(self):
        self.begun, self.cancelled, self.threads = [], [], set()
        self.out = self.most = 0

    def __repr__(self):
        return "<Doubler>"

    async def one(self, item, /, *, timeout_s=None):
        self.begun.append(item)
        self.threads.add(threading.current_thread().name)
        self.out += 1
        self.most = max(self.most, self.out)
        try:
            await asyncio.sleep(0.0005 * (item % 3))
            if item > 1000:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            self.out -= 1
        if item < 0:
            raise ValueError(f"no {item}")
        return item * 2


class Face(Facade):
    map = blocking_map


@pytest.fixture
def thread():
    thread = LoopThread(Pool())
    thread.open()
    yield thread
    thread.close()


@pytest.fixture
def doubler():
    return Doubler()


@pytest.fixture
def face(thread, doubler):
    return Face(thread, doubler)


def until(condition):
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


@pytest.mark.parametrize("ordered", [True, False])
def test_every_item_has_its_result_and_the_source_is_read_here(face, doubler, ordered):
    readers = set()

    def items():
        for item in range(500):
            readers.add(threading.current_thread())
            yield item

    results = list(face.map(items(), ordered=ordered, max_in_flight=20))
    assert (results if ordered else sorted(results)) == [2 * item for item in range(500)]
    assert readers == {threading.current_thread()}
    assert doubler.threads == {"tritonasync"}
    assert 2 <= doubler.most <= 20


def test_a_slow_consumer_stops_the_reading(face):
    read = 0

    def items():
        nonlocal read
        for item in range(1000):
            read += 1
            yield item % 3

    with face.map(items(), max_in_flight=5) as results:
        for taken, _ in enumerate(results):
            assert read <= taken + 10
            if taken == 50:
                break


def test_results_come_while_a_slow_source_is_read(face):
    def items():
        for item in range(4):
            time.sleep(0.03)
            yield item

    began = time.monotonic()
    results = face.map(items(), max_in_flight=100)
    assert next(results) == 0
    assert time.monotonic() - began < 0.09  # and not after all have been read
    assert list(results) == [2, 4, 6]


def test_errors_are_raised_in_their_turn_or_collected(face):
    results = face.map([1, -2, 3])
    assert next(results) == 2
    with pytest.raises(ValueError, match="no -2"):
        next(results)
    assert list(results) == []
    assert results.progress.resume_key == 0
    one, failed, three = face.map([1, -2, 3], errors="collect", key=str)
    assert (one, three) == (2, 6)
    assert isinstance(failed, Failed)
    assert (failed.key, failed.item) == ("-2", -2)


def test_an_error_of_the_source_comes_after_the_rest(face):
    def items():
        yield 1
        raise OSError("the disk")

    results = face.map(items())
    assert next(results) == 2
    with pytest.raises(OSError, match="the disk"):
        next(results)


def test_going_on_pairs_and_progress(face):
    told = []
    results = face.map(range(1000), key=str, start_after="990", progress=told.append).keyed()
    assert dict(results) == {str(item): 2 * item for item in range(991, 1000)}
    assert told[-1].resume_key == "999"
    assert (told[-1].done, told[-1].total) == (9, 9)
    with pytest.raises(UsageError, match="before the first"):
        results.keyed()
    with pytest.raises(InvalidInputError, match="the key of none of the 2 items"):
        list(face.map([1, 2], start_after=7))


@pytest.mark.parametrize("way", ["break", "with", "close"])
def test_leaving_cancels_what_is_out(face, doubler, way):
    items = [1, *range(1001, 1100)]
    results = face.map(items, max_in_flight=10)
    gone = weakref.ref(results)
    assert next(results) == 2
    if way == "with":
        with results:
            pass
    elif way == "close":
        results.close()
        results.close()
        assert list(results) == []
    del results
    assert gone() is None
    gc.collect()
    until(lambda: doubler.out == 0)
    assert len(doubler.cancelled) == len(doubler.begun) - 1


def test_two_threads_may_not_take_results_at_once(face):
    reading, go_on = threading.Event(), threading.Event()

    def source():
        yield 1
        reading.set()
        go_on.wait(10)

    results = face.map(source())
    first = []
    thread = threading.Thread(target=lambda: first.extend(results))
    thread.start()
    assert reading.wait(10)
    with pytest.raises(UsageError, match="another thread takes the next result"):
        next(results)
    go_on.set()
    thread.join()
    assert first == [2]


def test_async_sources_are_refused(face):
    async def items():
        yield 1

    source = items()
    with pytest.raises(InvalidInputError, match="async iterables are for the pool with an event"):
        face.map(source)


def test_when_the_pool_is_closed_the_loop_is_told(thread, face):
    results = face.map([1, *range(1001, 1010)], max_in_flight=4)
    assert next(results) == 2
    thread.close()
    with pytest.raises(PoolClosedError):
        next(results)
    assert list(results) == []


@pytest.mark.server
def test_on_the_real_server(server):
    with TritonPool.blocking(server.grpc_url) as pool:
        items = ({"INPUT0": [float(item)] * 16} for item in range(300))
        results = pool.model("ident").map(items)
        firsts = [float(out["OUTPUT0"][0]) for out in results]
        assert firsts == list(range(300))
        assert results.progress.done == 300
