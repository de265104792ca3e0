"""The pool without an event loop: the same calls, threads, Ctrl-C, forks, the program's end."""

import asyncio
import contextvars
import gc
import inspect
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from tritonasync import (
    Admin,
    Classifier,
    Detector,
    Encoder,
    Generator,
    ModelHandle,
    ResponseStream,
    TritonPool,
)
from tritonasync.blocking import (
    BlockingAdmin,
    BlockingClassifier,
    BlockingDetector,
    BlockingEncoder,
    BlockingGenerator,
    BlockingModel,
    BlockingPool,
    BlockingSequence,
    BlockingStream,
)
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
    PoolClosedError,
    WrongContextError,
)
from tritonasync.handles.sequence import SequenceHandle

ROW = np.ones((1, 16), np.float32)
THREAD = "tritonasync"

FAKE = """
import asyncio, os, signal, threading, time
from tritonasync.blocking import BlockingPool

class Slow:
    def __init__(self, closing_s):
        self.closing_s = closing_s
    async def open(self): pass
    async def aclose(self): await asyncio.sleep(self.closing_s)
"""


class FakePool:
    """An asynchronous pool that says what is done to it; ``index`` is what a test wants to run."""

    def __init__(self, *, opening=None, closing=None):
        self.said = []
        self.opening, self.closing = opening, closing
        self.admin = self

    async def open(self):
        self.said.append("open")
        if self.opening:
            raise self.opening

    async def aclose(self):
        self.said.append("aclose")
        if self.closing:
            raise self.closing

    async def index(self, function):
        return await function()

    def statistics(self):
        return threading.current_thread().name


def run_program(program, *options):
    return subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, timeout=60
    )


def loop_threads():
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def until(condition):
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def delay(ms):
    return np.full((1, 1), ms, np.float32)


@pytest.fixture
def pool(server):
    with TritonPool.blocking(server.grpc_url) as pool:
        yield pool


# --- the same as the asynchronous pool -----------------------------------------------------------


@pytest.mark.server
def test_each_kind_of_handle_answers_as_its_asynchronous_one(server, pool):
    scores, item = np.array([[0, 9, 0, 0], [0, 0, 0, 9]], np.float32), np.ones(16, np.float32)

    async def ask():
        async with TritonPool(server.grpc_url) as pool:
            model, classifier = pool.model("ident"), pool.classifier("classify4")
            encoder = pool.encoder("ident", normalize=True)
            return (
                (await model({"INPUT0": ROW}, outputs=["OUTPUT0"], request_id="x"))["OUTPUT0"],
                (await model.one(INPUT0=item))["OUTPUT0"],
                (await classifier(scores)).scores,
                (await classifier.one(scores[0])).scores,
                await encoder(ROW),
                await encoder.one(item),
            )

    model, classifier = pool.model("ident"), pool.classifier("classify4")
    encoder = pool.encoder("ident", normalize=True)
    got = (
        model({"INPUT0": ROW}, outputs=["OUTPUT0"], request_id="x")["OUTPUT0"],
        model.one(INPUT0=item)["OUTPUT0"],
        classifier(scores).scores,
        classifier.one(scores[0]).scores,
        encoder(ROW),
        encoder.one(item),
    )
    for ours, theirs in zip(got, asyncio.run(ask()), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert model.spec(timeout_s=5).name == model.name == "ident"
    assert (model.version, pool.model("ident", "1").version) == ("", "1")
    assert "ident" in repr(model)
    with pytest.raises(ConfigurationError, match="ident"):
        pool.detector("ident")(np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.server
def test_what_can_be_asked_of_a_server(server, pool):
    admin = pool.admin
    admin.wait_until_ready("ident", timeout_s=10)
    assert admin.endpoints == (server.grpc_url,)
    here = admin.at(server.grpc_url)
    assert admin.live()
    assert here.ready("ident")
    assert here.server_metadata().name == "triton"
    assert here.metadata("ident").name == here.config("ident").name == "ident"
    assert "ident" in {entry.name for entry in here.index(ready_only=True)}
    assert here.statistics("ident")
    with pytest.raises(ConfigurationError, match="no endpoint"):
        admin.at("elsewhere:1")


@pytest.mark.server
def test_endpoints_come_and_go(server):
    with TritonPool.blocking(server.grpc_url) as pool:
        pool.add_endpoint("localhost:1")
        assert pool.admin.endpoints == (server.grpc_url, "localhost:1")
        pool.remove_endpoint("localhost:1", timeout_s=1)
        assert pool.admin.endpoints == (server.grpc_url,)


FACES = [
    (BlockingModel, ModelHandle),
    (BlockingClassifier, Classifier),
    (BlockingDetector, Detector),
    (BlockingEncoder, Encoder),
    (BlockingGenerator, Generator),
    (BlockingStream, ResponseStream),
    (BlockingSequence, SequenceHandle),
    (BlockingAdmin, Admin),
    (BlockingPool, TritonPool),
]
RENAMED = {"open": "open", "aclose": "close", "blocking": None}


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_") or name == "__call__"}


@pytest.mark.parametrize(("face", "behind"), FACES)
def test_no_method_is_missing_and_each_has_the_signature_and_docstring(face, behind):
    for name in public(behind):
        if isinstance(inspect.getattr_static(behind, name), property):
            assert isinstance(inspect.getattr_static(face, name), property)
        elif name not in RENAMED:
            ours, theirs = getattr(face, name), getattr(behind, name)
            assert not inspect.iscoroutinefunction(ours)
            generic = {(BlockingAdmin, "at"), (BlockingPool, "create")}  # or of another result
            if name != "map" and (face, name) not in generic:
                assert inspect.signature(ours) == inspect.signature(theirs), name
            shorter = face in (BlockingPool, BlockingAdmin) or name == "map"
            assert ours.__doc__ == theirs.__doc__ or shorter
            assert ours.__doc__[:20] == theirs.__doc__[:20]
        elif RENAMED[name]:
            assert hasattr(face, RENAMED[name])


@pytest.mark.parametrize("options", [{"timeout_s": -1}, {"channels": 0}, {"timeout_s": math.nan}])
def test_options_that_make_no_sense_are_refused_at_once(options):
    with pytest.raises(ConfigurationError):
        TritonPool.blocking("localhost:8001", **options)
    assert not loop_threads()


# --- opening and closing -------------------------------------------------------------------------


@pytest.mark.server
def test_before_opening_and_after_closing_calls_are_refused(server):
    pool = TritonPool.blocking(server.grpc_url)
    model = pool.model("ident")
    with pytest.raises(PoolClosedError, match=r"with TritonPool\.blocking"):
        model(INPUT0=ROW)
    assert pool.statistics().endpoints == ()
    assert "new" in repr(pool)
    with pool:
        assert "open" in repr(pool)
        model(INPUT0=ROW)
        with pytest.raises(PoolClosedError, match="open already"):
            pool.open()
    for call in (lambda: model(INPUT0=ROW), pool.admin.live, pool.open):
        with pytest.raises(PoolClosedError, match="closed"):
            call()
    pool.close()
    assert "closed" in repr(pool)
    assert pool.statistics().endpoints[0].succeeded
    assert not loop_threads()


def test_a_pool_closed_before_it_was_opened_stays_closed():
    fake = FakePool()
    pool = BlockingPool(fake)
    pool.close()
    with pytest.raises(PoolClosedError, match="closed already"):
        pool.open()
    assert fake.said == []


def test_what_opening_raises_is_raised_and_no_thread_is_left():
    fake = FakePool(opening=OSError("no"))
    pool = BlockingPool(fake)
    with pytest.raises(OSError, match="no"):
        pool.open()
    with pytest.raises(PoolClosedError, match="closed already"):
        pool.open()
    pool.close()
    assert fake.said == ["open"]
    assert not loop_threads()


def test_what_closing_raises_is_raised_once():
    pool = BlockingPool(FakePool(closing=OSError("no"))).open()
    with pytest.raises(OSError, match="no"):
        pool.close()
    pool.close()
    assert not loop_threads()


@pytest.mark.server
def test_closing_waits_for_calls_of_other_threads(server):
    with ThreadPoolExecutor() as threads:
        with TritonPool.blocking(server.grpc_url) as pool:
            slow = pool.model("slow")
            slow(DELAY_MS=delay(0))
            call = threads.submit(slow, DELAY_MS=delay(500))
            until(lambda: pool.statistics().in_flight)
        assert pool.statistics().endpoints[0].in_flight == 0
        assert call.result()["WAITED_MS"] == 500


def test_a_dropped_pool_warns_and_ends_its_thread_without_being_waited_for():
    fake = FakePool()
    pools = [BlockingPool(fake).open()]
    with pytest.warns(ResourceWarning, match=r"unclosed <BlockingPool of .*close\(\)"):
        pools.clear()
    until(lambda: not loop_threads())
    assert fake.said == ["open", "aclose"]


def test_a_closed_or_unopened_pool_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with BlockingPool(FakePool()):
            pass
        BlockingPool(FakePool())
        gc.collect()


def test_calls_that_race_with_closing_end():
    """Each is answered or refused; none waits for a loop that has ended."""

    async def nothing():
        await asyncio.sleep(0)

    def hammer(admin, begun):
        for calls in range(100_000):
            try:
                admin.index(nothing)
            except PoolClosedError:
                return calls
            begun.set()
        raise AssertionError("never refused")

    with ThreadPoolExecutor(8) as threads:
        for _ in range(100):
            pool, begun = BlockingPool(FakePool()).open(), threading.Event()
            calls = [threads.submit(hammer, pool.admin, begun) for _ in range(8)]
            begun.wait()
            pool.close()
            for call in calls:
                call.result(timeout=10)
    assert not loop_threads()


def test_a_call_that_outlives_the_pool_is_refused():
    """Such as one that the pool does not count among those in flight."""
    begun = threading.Event()

    async def forever():
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor() as threads:
        with BlockingPool(FakePool()) as pool:
            call = threads.submit(pool.admin.index, forever)
            begun.wait()
        with pytest.raises(PoolClosedError, match="closed while the call was out"):
            call.result(timeout=10)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_call_submitted_when_the_loop_had_stopped_looking_is_refused(monkeypatch, when):
    """It is neither run nor cancelled by the loop, so that nobody would wake its caller."""
    pool = BlockingPool(FakePool()).open()

    def lose(*_):
        monkeypatch.undo()
        if when == "before":
            pool.close()
        else:
            threading.Timer(0.2, pool.close).start()
        return Future()

    monkeypatch.setattr(pool._thread._portal, "start_task_soon", lose)
    with pytest.raises(PoolClosedError, match="closed"):
        pool.admin.index(asyncio.sleep)
    pool.close()


def test_a_call_submitted_to_a_closed_loop_is_refused(monkeypatch):
    pool = BlockingPool(FakePool()).open()
    submit = pool._thread._portal.start_task_soon

    def late(*submitted):
        monkeypatch.undo()
        pool.close()
        return submit(*submitted)

    monkeypatch.setattr(pool._thread._portal, "start_task_soon", late)
    with pytest.raises(PoolClosedError, match="closed"):
        pool.admin.index(asyncio.sleep)


# --- threads -------------------------------------------------------------------------------------


@pytest.mark.server
def test_rows_of_many_threads_share_batches_and_each_gets_its_own(pool):
    model, each = pool.model("slow_batch"), 20
    model.one(INPUT0=np.zeros(1, np.float32))
    (before,) = pool.statistics().batching

    def ask(thread):
        for call in range(each):
            value = np.array([thread * 1000 + call], np.float32)
            np.testing.assert_array_equal(model.one(INPUT0=value)["OUTPUT0"], value)

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(ask, range(32)))
    (after,) = pool.statistics().batching
    assert after.rows - before.rows == 32 * each
    assert (after.rows - before.rows) / (after.batches - before.batches) > 4


@pytest.mark.server
def test_an_error_shows_the_callers_line(pool):
    with pytest.raises(InvalidInputError, match="INPUT0") as caught:
        pool.model("ident")(X=ROW)  # the caller's line
    text = "".join(traceback.format_exception(caught.value))
    assert "# the caller's line" in text
    assert "signature.py" in text  # and where it was raised


@pytest.mark.server
def test_an_error_is_each_threads_own(pool):
    """Even if one failing batch carried the rows of all."""
    model, barrier = pool.model("faulty"), threading.Barrier(16)

    def ask(_):
        barrier.wait()
        try:
            model.one(INPUT0=np.array([-1], np.float32))
        except ModelFailedError as error:
            return error

    with ThreadPoolExecutor(16) as threads:
        errors = list(threads.map(ask, range(16)))
    assert all(errors)
    assert len({id(error) for error in errors}) == 16
    assert len({id(error.__traceback__) for error in errors}) == 16


def test_an_error_is_gone_with_its_handler():
    """What a traceback holds, such as the caller's arrays, does not wait for the collector."""

    class OwnError(Exception):
        pass

    async def fail():
        raise OwnError

    with BlockingPool(FakePool()) as pool:
        gc.collect()
        gc.disable()
        try:
            try:
                pool.admin.index(fail)
            except OwnError as error:
                gone = weakref.ref(error)
            until(lambda: gone() is None)
        finally:
            gc.enable()


def test_context_variables_come_along():
    who = contextvars.ContextVar("who")

    async def ask():
        return who.get()

    with BlockingPool(FakePool()) as pool:
        who.set("me")
        assert pool.admin.index(ask) == "me"


def test_statistics_are_read_where_they_are_written():
    pool, here = BlockingPool(FakePool()), threading.current_thread().name
    assert pool.statistics() == here
    with pool:
        assert pool.statistics() == THREAD
    assert pool.statistics() == here


@pytest.mark.server
def test_deadlines_hold(pool):
    slow = pool.model("slow")
    slow(DELAY_MS=delay(0))
    with pytest.raises(DeadlineExceededError):
        slow(DELAY_MS=delay(300), timeout_s=0.05)


# --- where it is called from ---------------------------------------------------------------------


@pytest.mark.server
def test_a_notebook_may_call_it_from_its_running_event_loop(server):
    async def cell():
        with TritonPool.blocking(server.grpc_url) as pool:
            return pool.model("ident")(INPUT0=ROW)["OUTPUT0"]

    np.testing.assert_array_equal(asyncio.run(cell()), ROW)


@pytest.mark.server
def test_two_pools_at_once(server):
    with (
        TritonPool.blocking(server.grpc_url) as first,
        TritonPool.blocking(server.grpc_url) as second,
        ThreadPoolExecutor(8) as threads,
    ):
        models = [first.model("ident"), second.model("ident")] * 50
        for answer in threads.map(lambda model: model(INPUT0=ROW), models):
            np.testing.assert_array_equal(answer["OUTPUT0"], ROW)


@pytest.mark.server
def test_the_pools_own_thread_is_refused_and_does_not_wait_for_itself(server):
    said = []

    def headers():
        for use in (lambda: pool.model("ident")(INPUT0=ROW), pool.statistics, pool.close):
            with pytest.raises(WrongContextError, match="wait for itself") as caught:
                use()
            said.append(caught.value)
        return {}

    with TritonPool.blocking(server.grpc_url, headers=headers) as pool:
        pool.model("ident")(INPUT0=ROW)
    assert len(said) >= 3


@pytest.mark.server
def test_a_forked_child_is_refused(pool):
    def child(pipe):
        try:
            for use in (lambda: pool.model("ident")(INPUT0=ROW), pool.close, pool.open):
                try:
                    use()
                except WrongContextError as error:
                    pipe.send(str(error))
        finally:
            pipe.close()
            os._exit(0)

    pool.model("ident")(INPUT0=ROW)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        process.start()
    theirs.close()
    for _ in range(3):
        assert ours.poll(20)
        assert "forked" in ours.recv()
    process.join(10)
    pool.model("ident")(INPUT0=ROW)  # the parent's goes on


# --- Ctrl-C and the interpreter's end ------------------------------------------------------------


@pytest.mark.server
def test_ctrl_c_leaves_the_call_and_the_pool_is_still_good(server):
    program = f"""
import os, signal, threading, time, numpy as np
from tritonasync import TritonPool

row = np.ones((1, 16), np.float32)
with TritonPool.blocking({server.grpc_url!r}) as pool:
    slow = pool.model("slow")
    slow(DELAY_MS=np.zeros((1, 1), np.float32))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    try:
        slow(DELAY_MS=np.full((1, 1), 4000, np.float32))
    except KeyboardInterrupt:
        print("interrupted", time.monotonic() - began < 3)
    assert (pool.model("ident")(INPUT0=row)["OUTPUT0"] == row).all()
    while not pool.statistics().endpoints[0].abandoned:
        time.sleep(0.001)
print(pool.statistics().endpoints[0], time.monotonic() - began > 3.5)
"""
    done = run_program(program, "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")
    assert "interrupted True" in done.stdout
    assert "in_flight=0" in done.stdout
    assert "abandoned=1" in done.stdout
    assert "failed=0" in done.stdout
    assert done.stdout.endswith("True\n")  # closing waited for the call


def test_ctrl_c_while_closing_ends_the_waiting_also_at_exit():
    program = f"""{FAKE}
pool = BlockingPool(Slow(50)).open()
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    pool.close()
except KeyboardInterrupt:
    print("interrupted")
"""
    began = time.monotonic()
    done = run_program(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)", "import sys; sys.exit()"])
def test_a_program_that_ends_with_an_open_pool_closes_it_and_says_so(ending):
    program = f"""{FAKE}
import atexit
atexit.register(lambda: print("closed", pool._inner.closing_s, not threading.enumerate()[1:]))
pool = BlockingPool(Slow(0.3)).open()
{ending}
"""
    done = run_program(program, "-W", "always::ResourceWarning")
    assert done.returncode == 0
    assert done.stdout == "closed 0.3 True\n"
    assert done.stderr.count("ResourceWarning: unclosed <BlockingPool of") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.server
def test_a_program_that_ends_waits_for_what_its_threads_have_out(server):
    """A connection that is dropped with calls out can crash the server."""
    program = f"""
import atexit, threading, time, numpy as np
from tritonasync import TritonPool

atexit.register(lambda: print(pool.statistics().endpoints[0]))
pool = TritonPool.blocking({server.grpc_url!r}).open()
slow = pool.model("slow")
slow(DELAY_MS=np.zeros((1, 1), np.float32))
ask = lambda: slow(DELAY_MS=np.full((1, 1), 1000, np.float32))
threading.Thread(target=ask, daemon=True).start()
while not pool.statistics().endpoints[0].in_flight:
    time.sleep(0.001)
"""
    done = run_program(program, "-W", "ignore")
    assert (done.returncode, done.stderr) == (0, "")
    assert "in_flight=0" in done.stdout
    assert "failed=0, abandoned=0" in done.stdout


def test_a_forked_child_ends_without_closing_the_parents_pool():
    program = f"""{FAKE}
pool = BlockingPool(Slow(0)).open()
child = os.fork()
if not child:
    del pool
    raise SystemExit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
pool.close()
"""
    done = run_program(program, "-W", "ignore::DeprecationWarning", "-W", "always::ResourceWarning")
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


# --- types ---------------------------------------------------------------------------------------

TYPES = """
from typing import assert_type

import numpy as np

from tritonasync import (
    BlockingStream, Classification, Classifications, ModelSpec, Outputs, TritonPool
)
from tritonasync.blocking import BlockingClassifier, BlockingPool, BlockingSequence
from tritonasync.core.reports import IndexEntry

row = np.ones((1, 16), np.float32)
with TritonPool.blocking("a:1", channels=2) as pool:
    assert_type(pool, BlockingPool)
    classifier = pool.classifier("digits", labels=["a", "b"])
    assert_type(classifier, BlockingClassifier)
    assert_type(classifier(row), Classifications)
    assert_type(classifier.one(row[0], timeout_s=1), Classification)
    assert_type(classifier.spec(), ModelSpec)
    assert_type(pool.model("ident")(INPUT0=row), Outputs)
    assert_type(pool.admin.at("a:1").index(ready_only=True), list[IndexEntry])
    assert_type(pool.remove_endpoint("a:1", timeout_s=1), None)
    assert_type(pool.model("repeat").stream(COUNT=[3]), BlockingStream[Outputs])
    assert_type(next(pool.generator("tokens")("x")), str)
    assert_type(pool.generator("tokens").text("x", timeout_s=1), str)
    with pool.model("repeat").stream(COUNT=[3]) as responses:
        assert_type([out for out in responses], list[Outputs])
    with pool.model("sum").sequence("one") as sequence:
        assert_type(sequence, BlockingSequence)
        assert_type(sequence.one(X=[1]), Outputs)

    TritonPool.blocking("a:1", channels="2")  # type: ignore[arg-type]
    TritonPool.blocking(1)  # type: ignore[arg-type]
    pool.classifier("digits", labels=3)  # type: ignore[arg-type]
    pool.classifier("digits", label="a")  # type: ignore[call-arg]
    pool.encoder("digits", normalize=row)  # type: ignore[arg-type]
    classifier(row, 1.0)  # type: ignore[call-arg]
    classifier.one(row, timeout_s="1")  # type: ignore[arg-type]
    pool.model("ident").one(row, parameters=3)  # type: ignore[arg-type]
    pool.admin.index(True)  # type: ignore[call-arg]
    pool.generator("tokens")(3)  # type: ignore[arg-type]
    pool.generator("tokens", cumulative="no")  # type: ignore[arg-type]
    pool.model("repeat").stream(COUNT=[3], idle_timeout_s="1")  # type: ignore[arg-type]
    pool.model("sum").sequence(1.5)  # type: ignore[arg-type]
    classifier(row).nothing  # type: ignore[attr-defined]
"""


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_wrong_calls_fail_type_checking(checker, tmp_path):
    """Right ones pass; an ignored line without an error would fail, too."""
    pytest.importorskip(checker)
    program = tmp_path / "program.py"
    options = {"mypy": ["--strict"], "pyright": ["--pythonpath", sys.executable]}
    rules = "# pyright: reportUnnecessaryTypeIgnoreComment=true, reportUnusedExpression=false\n"
    program.write_text(rules + TYPES)
    done = subprocess.run(
        [sys.executable, "-m", checker, *options[checker], program],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
