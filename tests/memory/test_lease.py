"""A slot's states, its bounds, and who holds it until when."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.memory.heap import HeapMemory
from tritonasync.core.ports import Block
from tritonasync.memory.lease import TRANSITIONS, Lease, LeaseEvent, LeaseState, Lessor
from tritonasync.testing.scripted import ScriptedMemory

BYTE = np.dtype(np.uint8)
FLOAT = np.dtype(np.float32)
SIZE = 1024


class Books(Lessor):
    """Writes down what leases tell it."""

    def __init__(self):
        super().__init__()
        self.gone = []
        self.copies = []
        self.woken = 0

    def let_go(self, lease):
        self.gone.append(lease)

    def note_copy(self, nbytes):
        self.copies.append(nbytes)

    def wake(self):
        self.woken += 1

    def read(self):
        while self.notes:
            self.notes.popleft()()


@pytest.fixture
def books():
    return Books()


def lease_on(books, *, nbytes=SIZE, offset=512, memory=None):
    region = (memory or HeapMemory()).create(4096)
    return Lease(books, Block(region, offset, max(256, -(-nbytes // 256) * 256)), nbytes, "net IN")


def in_state(books, state, **options):
    """A lease that got there by what is allowed; draining is not free yet."""
    lease = lease_on(books, **options)
    assert lease.state is LeaseState.FILLING
    steps = {
        LeaseState.FILLING: [],
        LeaseState.READY: [lease.filled],
        LeaseState.INFLIGHT: [lease.filled, lease.sent],
        LeaseState.LEASED: [lease.filled, lease.sent, lease.landed],
        LeaseState.RETIRED: [lease.filled, lease.sent, lease.lost],
        LeaseState.DRAINING: [lease.release],
        LeaseState.FREE: [lease.release, lease.drained],
    }[state]
    for step in steps:
        step()
    assert lease.state is state
    return lease


# --- the table -----------------------------------------------------------------------------------


def test_the_table_is_what_the_design_says():
    s, e = LeaseState, LeaseEvent
    assert TRANSITIONS == {
        (s.FREE, e.TAKE): s.FILLING,
        (s.FILLING, e.FILL): s.READY,
        (s.LEASED, e.FILL): s.READY,
        (s.READY, e.SEND): s.INFLIGHT,
        (s.INFLIGHT, e.SEND): s.INFLIGHT,
        (s.LEASED, e.SEND): s.INFLIGHT,
        (s.INFLIGHT, e.LAND): s.LEASED,
        (s.INFLIGHT, e.LOSE): s.RETIRED,
        (s.RETIRED, e.CONFIRM): s.LEASED,
        (s.FILLING, e.RELEASE): s.DRAINING,
        (s.READY, e.RELEASE): s.DRAINING,
        (s.LEASED, e.RELEASE): s.DRAINING,
        (s.DRAINING, e.DRAIN): s.FREE,
    }


ACTIONS = {
    LeaseEvent.FILL: Lease.filled,
    LeaseEvent.SEND: Lease.sent,
    LeaseEvent.LAND: Lease.landed,
    LeaseEvent.LOSE: Lease.lost,
    LeaseEvent.CONFIRM: Lease.confirm,
    LeaseEvent.DRAIN: Lease.drained,
}


@pytest.mark.parametrize(("state", "event"), [*itertools.product(LeaseState, ACTIONS)])
def test_what_is_not_in_the_table_is_a_mistake_that_changes_nothing(books, state, event):
    lease = in_state(books, state)
    if (state, event) in TRANSITIONS:
        ACTIONS[event](lease)
        assert lease.state is TRANSITIONS[state, event]
        return
    before = (lease.flights, lease.strays)
    with pytest.raises(RuntimeError, match=f"net IN: {event.name} .* that is {state}$"):
        ACTIONS[event](lease)
    assert lease.state is state
    assert (lease.flights, lease.strays) == before


# --- whatever happens ----------------------------------------------------------------------------


class AnyLife(RuleBasedStateMachine):
    """Tells a lease whatever may come in whatever order, and keeps books of its own."""

    @initialize()
    def take(self):
        self.books = Books()
        self.lease = lease_on(self.books)
        self.flights = self.strays = 0
        self.views = []
        self.released = self.filled = self.gone = False

    @precondition(lambda self: not self.gone)
    @rule()
    def fill(self):
        if not (self.flights or self.strays or self.filled):
            self.lease.filled()
            self.filled = True

    @precondition(lambda self: not self.gone)
    @rule()
    def send(self):
        leased = self.lease.state is LeaseState.LEASED
        if (self.filled or self.flights or leased) and (self.flights or not self.strays):
            self.lease.sent()
            self.flights += 1
            self.filled = False

    @precondition(lambda self: self.flights)
    @rule(answered=st.booleans())
    def end_flight(self, answered):
        (self.lease.landed if answered else self.lease.lost)()
        self.flights -= 1
        self.strays += not answered

    @precondition(lambda self: self.strays)
    @rule()
    def confirm(self):
        self.lease.confirm()
        self.strays -= 1

    @precondition(lambda self: not self.gone)
    @rule(writable=st.booleans())
    def view(self, writable):
        if writable and (self.flights or self.strays):
            with pytest.raises(RuntimeError):
                self.lease.view(0, (4,), BYTE, writable=True)
            return
        # A chain: only the last array of it is kept.
        self.views.append(self.lease.view(0, (8, 4), BYTE, writable=writable)[2:].T[1:])

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def drop_view(self, data):
        del self.views[data.draw(st.integers(0, len(self.views) - 1))]

    @rule()
    def release(self):
        self.lease.release()
        self.released = True

    @rule()
    def write(self):
        own = not (self.flights or self.strays or self.filled or self.released or self.gone)
        if own:
            self.lease.write(4, [np.arange(3, dtype=np.uint8)])
        else:
            with pytest.raises(RuntimeError, match="is not to be written"):
                self.lease.write(4, [np.arange(3, dtype=np.uint8)])

    @invariant()
    def it_is_let_go_once_and_only_when_nobody_holds_it(self):
        self.books.read()
        held = self.flights or self.strays or self.views or not self.released
        assert self.books.gone == ([] if held else [self.lease])
        self.gone = not held
        assert (self.lease.state is LeaseState.DRAINING) == self.gone
        assert (self.lease.flights, self.lease.strays) == (self.flights, self.strays)
        assert self.lease.views == len(self.views)
        assert self.lease.released == self.released

    @invariant()
    def its_state_tells_who_is_at_it(self):
        if self.flights:
            assert self.lease.state is LeaseState.INFLIGHT
        elif self.strays:
            assert self.lease.state is LeaseState.RETIRED


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(deadline=None, max_examples=150, stateful_step_count=30)


# --- flights -------------------------------------------------------------------------------------


def test_an_answer_does_not_free_what_another_attempt_may_still_write(books):
    lease = in_state(books, LeaseState.INFLIGHT)
    lease.sent()
    lease.lost()
    assert lease.state is LeaseState.INFLIGHT
    lease.landed()
    assert lease.state is LeaseState.RETIRED
    lease.release()
    assert books.gone == []
    lease.confirm()
    assert books.gone == [lease]


def test_each_stray_is_confirmed_on_its_own(books):
    lease = in_state(books, LeaseState.INFLIGHT)
    lease.sent()
    lease.lost()
    lease.lost()
    lease.confirm()
    assert lease.state is LeaseState.RETIRED
    lease.confirm()
    assert lease.state is LeaseState.LEASED


def test_a_stray_may_be_confirmed_while_another_attempt_is_out(books):
    lease = in_state(books, LeaseState.INFLIGHT)
    lease.sent()
    lease.lost()
    lease.confirm()
    assert lease.state is LeaseState.INFLIGHT
    lease.landed()
    assert lease.state is LeaseState.LEASED


@pytest.mark.parametrize("state", [LeaseState.INFLIGHT, LeaseState.RETIRED])
def test_a_release_is_remembered_until_the_server_is_done(books, state):
    lease = in_state(books, state)
    lease.release()
    lease.release()
    assert lease.released
    assert books.gone == []
    (lease.landed if state is LeaseState.INFLIGHT else lease.confirm)()
    assert books.gone == [lease]


# --- views ---------------------------------------------------------------------------------------


def test_a_view_of_a_view_holds_the_slot(books):
    lease = in_state(books, LeaseState.LEASED)
    row = lease.view(0, (4, 4), FLOAT)[1].reshape(2, 2)
    lease.release()
    books.read()
    assert books.gone == []
    del row
    assert books.gone == []  # nothing but a note was left
    books.read()
    assert books.gone == [lease]


def test_views_of_different_chains_hold_it_each(books):
    lease = in_state(books, LeaseState.LEASED)
    views = [lease.view(0, (4,), FLOAT) for _ in range(3)]
    lease.release()
    while views:
        assert lease.views == len(views)
        assert books.gone == []
        views.pop()
        books.read()
    assert books.gone == [lease]


def test_a_view_that_could_not_be_made_holds_nothing(books):
    lease = in_state(books, LeaseState.LEASED)
    with pytest.raises(ValueError, match="objects"):
        lease.view(0, (1,), np.dtype(object))
    lease.release()
    books.read()
    assert lease.views == 0
    assert books.gone == [lease]


def test_a_view_that_dies_in_a_cycle_and_another_thread_leaves_a_note_there(books):
    lease = in_state(books, LeaseState.LEASED)
    knot = [lease.view(0, (4,), FLOAT)]
    knot.append(knot)
    lease.release()
    del knot
    books.wanted = True
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    assert books.gone == []
    assert books.woken == 1
    books.read()
    assert books.gone == [lease]


def test_nobody_is_woken_where_nobody_waits(books):
    lease = in_state(books, LeaseState.LEASED)
    lease.view(0, (4,), FLOAT)
    assert (len(books.notes), books.woken) == (1, 0)


def test_views_see_the_bytes_at_their_place(books):
    lease = lease_on(books)
    lease.view(0, (SIZE,), BYTE, writable=True)[...] = 0
    lease.write(8, [np.arange(3, dtype=np.float32), np.full(2, 9, np.float32)])
    assert lease.view(8, (5,), FLOAT).tolist() == [0, 1, 2, 9, 9]
    assert lease.region.view(512 + 8, (5,), FLOAT, None, writable=False).tolist() == [0, 1, 2, 9, 9]
    assert lease.view(0, (2,), FLOAT).tolist() == [0, 0]


def test_views_are_read_only_unless_asked_for(books):
    lease = lease_on(books)
    assert not lease.view(0, (2,), FLOAT).flags.writeable
    assert lease.view(0, (2,), FLOAT, writable=True).flags.writeable


@pytest.mark.parametrize("state", LeaseState)
def test_it_is_viewed_for_writing_only_while_no_server_is_at_it(books, state):
    lease = in_state(books, state)
    if state in {LeaseState.FILLING, LeaseState.READY, LeaseState.LEASED}:
        lease.view(0, (2,), FLOAT, writable=True)
        return
    with pytest.raises(RuntimeError, match=f"{state}.*viewed for writing"):
        lease.view(0, (2,), FLOAT, writable=True)


@pytest.mark.parametrize("state", [LeaseState.DRAINING, LeaseState.FREE])
def test_it_is_not_viewed_after_it_was_let_go(books, state):
    lease = in_state(books, state)
    with pytest.raises(RuntimeError, match="released is not to be viewed"):
        lease.view(0, (2,), FLOAT)
    assert lease.views == 0


# --- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "count"), [(0, 101), (4, 97), (100, 1), (-4, 1), (99, 2), (1 << 40, 0)]
)
def test_nothing_beyond_what_was_asked_for_is_reached(books, at, count):
    lease = lease_on(books, nbytes=100)
    assert lease.block.nbytes == 256
    with pytest.raises(ValueError, match="slot of 100"):
        lease.view(at, (count,), BYTE)
    with pytest.raises(ValueError, match="slot of 100"):
        lease.write(at, [np.zeros(count, np.uint8)])
    assert books.copies == []
    assert lease.views == 0


@pytest.mark.parametrize(("at", "count"), [(0, 100), (99, 1), (100, 0), (0, 0)])
def test_all_of_what_was_asked_for_is_reached(books, at, count):
    lease = lease_on(books, nbytes=100)
    assert lease.view(at, (count,), BYTE).shape == (count,)
    lease.write(at, [np.zeros(count, np.uint8)])
    assert books.copies == [count]


def test_the_parts_of_a_write_count_together(books):
    lease = lease_on(books, nbytes=100)
    with pytest.raises(ValueError, match="101 bytes at 0"):
        lease.write(0, [np.zeros(51, np.uint8), np.zeros(50, np.uint8)])


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", LeaseState)
def test_it_is_written_only_by_its_holder_and_before_it_is_said_to_be_filled(books, state):
    lease = in_state(books, state)
    part = np.zeros(4, np.uint8)
    if state in {LeaseState.FILLING, LeaseState.LEASED}:
        lease.write(0, [part])
        assert books.copies == [4]
        return
    with pytest.raises(RuntimeError, match=f"{state}.*is not to be written"):
        lease.write(0, [part])
    assert books.copies == []


def test_it_is_not_written_after_its_release_though_views_hold_it(books):
    lease = lease_on(books)
    view = lease.view(0, (2,), FLOAT)
    lease.release()
    with pytest.raises(RuntimeError, match="was released"):
        lease.write(0, [np.zeros(4, np.uint8)])
    del view


def test_a_lent_slot_is_written_and_sent_again(books):
    lease = in_state(books, LeaseState.LEASED)
    for _ in range(3):
        lease.write(0, [np.zeros(4, np.uint8)])
        lease.filled()
        lease.sent()
        lease.landed()
    assert lease.state is LeaseState.LEASED


class SlowRegion:
    """Stops in the middle of a write until the test lets it go on."""

    def __init__(self, region):
        self.inner = region
        self.name = region.name
        self.began = threading.Event()
        self.go_on = threading.Event()

    def write(self, offset, parts):
        self.began.set()
        assert self.go_on.wait(10)
        return self.inner.write(offset, parts)


@pytest.mark.parametrize("from_thread", [False, True])
def test_a_slot_is_not_let_go_while_a_worker_thread_writes_into_it(books, from_thread):
    region = SlowRegion(HeapMemory().create(4096))
    lease = Lease(books, Block(region, 0, SIZE), SIZE, "net IN")
    writer = threading.Thread(target=lease.write, args=(0, [np.zeros(4, np.uint8)]))
    writer.start()
    assert region.began.wait(10)
    if from_thread:
        releaser = threading.Thread(target=lease.release)
        releaser.start()
        releaser.join()
    else:
        lease.release()
    books.read()
    assert books.gone == []
    region.go_on.set()
    writer.join()
    assert books.gone == []
    books.read()
    assert books.gone == [lease]


def test_a_write_that_failed_holds_nothing(books):
    lease = lease_on(books)
    with pytest.raises(ValueError, match="objects"):
        lease.write(0, [np.array([None])])
    lease.release()
    assert books.gone == [lease]


def test_a_release_in_another_thread_is_left_to_the_lessors(books):
    lease = in_state(books, LeaseState.LEASED)
    books.wanted = True
    thread = threading.Thread(target=lease.release)
    thread.start()
    thread.join()
    assert lease.released
    assert books.gone == []
    assert books.woken == 1
    books.read()
    assert books.gone == [lease]


def test_what_was_enqueued_is_remembered_until_it_is_said_to_be_there(books):
    memory = ScriptedMemory()
    lease = lease_on(books, memory=memory)
    first = lease.write(0, [np.zeros(4, np.uint8)])
    second = lease.write(4, [np.zeros(4, np.uint8)])
    assert lease.pending == [first, second]
    memory.complete_all()
    lease.filled()
    assert lease.pending == []


# --- looks ---------------------------------------------------------------------------------------


def test_it_shows_what_it_is(books):
    lease = in_state(books, LeaseState.INFLIGHT)
    assert (lease.offset, lease.nbytes, lease.purpose, lease.flights) == (512, SIZE, "net IN", 1)
    text = repr(lease)
    for part in ("net IN", "1024 B at 512", lease.region.name, "inflight", "flights=1"):
        assert part in text


def test_a_lease_that_was_let_go_is_garbage_at_once(books):
    lease = in_state(books, LeaseState.LEASED)
    view = lease.view(0, (2,), FLOAT)
    lease.release()
    del view
    books.read()
    books.gone.clear()
    watched = weakref.ref(lease.block.region)
    gc.disable()
    try:
        del lease
        assert watched() is None
    finally:
        gc.enable()
