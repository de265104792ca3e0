"""Which rows leave together: under any order of events, without a loop and without a clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.batching.fakes import call
from tritonasync.batching.accumulator import Accumulator, Limits
from tritonasync.batching.group import Group, halves
from tritonasync.batching.key import BatchKey, key_of

KEYS = (
    BatchKey((("A", "INT64", (1,)),), (), ()),
    BatchKey((("A", "INT64", (4,)),), (), ()),
    BatchKey((("A", "BYTES", (1,)),), (), ()),
)


@dataclass(eq=False)
class Ticket:
    """One who waits, and what it came with."""

    key: BatchKey
    rows: int
    nbytes: int
    at: float
    deadline: float
    number: int = field(default_factory=count().__next__)
    gone: bool = False


def gone(ticket):
    return ticket.gone


def group(key=KEYS[0], tickets=1, *, rows=1, nbytes=None, at=0.0, deadline=math.inf):
    each = key.row_nbytes
    nbytes = rows * each if each is not None else nbytes or rows
    made = [Ticket(key, rows, nbytes, at, deadline) for _ in range(tickets)]
    return Group(
        made,
        [[np.array(ticket.number) for ticket in made]],
        rows_each=rows,
        nbytes_each=nbytes,
        entered_at=at,
        deadline_at=deadline,
        timeout_s=1.0,
    )


def accumulator(rows=8, nbytes=1 << 20, linger_s=0.0, queued_rows=1000):
    return Accumulator(Limits(rows, nbytes, linger_s, queued_rows), gone)


def enter(waiting, *groups, key=KEYS[0]):
    for entering in groups:
        waiting.enter(waiting.queue(key), entering)


def tickets_in(groups):
    """All tickets in their order, if each group is what it says and has its tickets' arrays."""
    found = []
    for one in groups:
        assert one.tickets
        assert one.rows == sum(ticket.rows for ticket in one.tickets)
        assert one.nbytes == sum(ticket.nbytes for ticket in one.tickets)
        assert [int(array) for array in one.columns[0]] == [t.number for t in one.tickets]
        for ticket in one.tickets:
            assert (one.rows_each, one.nbytes_each) == (ticket.rows, ticket.nbytes)
            assert (one.entered_at, one.deadline_at) == (ticket.at, ticket.deadline)
        found += one.tickets
    return found


def rows_of(tickets):
    return sum(ticket.rows for ticket in tickets)


def nbytes_of(tickets):
    return sum(ticket.nbytes for ticket in tickets)


limits_of = st.builds(
    Limits,
    rows=st.integers(1, 9),
    nbytes=st.integers(1, 200),
    linger_s=st.sampled_from([0.0, 1.0, 3.0]),
    queued_rows=st.just(1000),
)
arrivals = st.lists(
    st.tuples(
        st.one_of(st.just(1), st.integers(1, 6)),  # tickets of a group
        st.one_of(st.just(1), st.integers(1, 12)),  # rows each
        st.integers(1, 120),  # bytes each, where rows differ in them
        st.sampled_from([math.inf, 0.5, 1.0, 2.0, 4.0]),  # time left
    ),
    min_size=1,
    max_size=8,
)


class Waiting(RuleBasedStateMachine):
    """Compares an accumulator with plain lists of who waits."""

    @initialize(limits=limits_of)
    def begin(self, limits):
        self.now = 0.0
        self.accumulator = Accumulator(limits, gone)
        self.queues = {key: [] for key in KEYS}
        self.late = []
        self.cancelled = 0
        self.overtaken = {key: [] for key in KEYS}

    @rule(key=st.sampled_from(KEYS), given=arrivals)
    def enter(self, key, given):
        for tickets, rows, nbytes, left in given:
            one = group(
                key, tickets, rows=rows, nbytes=nbytes, at=self.now, deadline=self.now + left
            )
            self.accumulator.enter(self.accumulator.queue(key), one)
            self.queues[key] += one.tickets

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 2.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(data=st.data())
    def some_leave(self, data):
        waiting = [ticket for tickets in self.queues.values() for ticket in tickets]
        if waiting:
            for left in data.draw(st.lists(st.sampled_from(waiting), max_size=6)):
                left.gone = True

    @rule(limits=limits_of)
    def limits_change(self, limits):
        self.accumulator.limits = limits

    @rule()
    def take(self):
        ready = {key for key in KEYS if self._may_leave(key)}
        before = {key: list(tickets) for key, tickets in self.queues.items()}
        departure = self.accumulator.take(self.now)
        removed = {key: self._removed(key) for key in KEYS}
        if departure is None:
            assert not ready
            batch, key = [], None
        else:
            batch, key = tickets_in(departure.groups), departure.key
            self._check_batch(batch, removed[key], before[key])
        for tickets in removed.values():
            self._check_dropped([ticket for ticket in tickets if ticket not in batch])
        self._check_turns(key, ready)

    @rule()
    def clear_away(self):
        self.accumulator.clear_away(self.now)
        for key, tickets in self.queues.items():
            self.queues[key] = [ticket for ticket in tickets if self._is_there(ticket)]
            self._check_dropped([ticket for ticket in tickets if not self._is_there(ticket)])
            self.overtaken[key] = []

    @rule()
    def drain(self):
        assert self._by_queue(self.accumulator.drain()) == self.queues
        self.queues = {key: [] for key in KEYS}
        self.overtaken = {key: [] for key in KEYS}

    @rule()
    def everything_leaves_once_aged(self):
        self.now += self.accumulator.limits.linger_s
        while departure := self.accumulator.take(self.now):
            assert departure.groups
        for key in KEYS:
            self._removed(key)
            self.overtaken[key] = []
        assert not any(self.queues.values())
        self.late = tickets_in(self.accumulator.late)
        self.cancelled = self.accumulator.cancelled_rows

    @invariant()
    def who_waits_waits_in_order(self):
        assert self._by_queue(self.accumulator.groups()) == self.queues
        assert self.accumulator.rows == sum(map(rows_of, self.queues.values()))

    @invariant()
    def the_late_are_told_of_once(self):
        late = tickets_in(self.accumulator.late)
        assert sorted(t.number for t in late) == sorted(t.number for t in self.late)
        assert self.accumulator.cancelled_rows == self.cancelled

    def _by_queue(self, groups):
        found = {key: [] for key in KEYS}
        for ticket in tickets_in(groups):
            found[ticket.key].append(ticket)
        return found

    def _is_there(self, ticket):
        return not ticket.gone and ticket.deadline > self.now

    def _is_due(self, tickets):
        """Whether a batch of them is full (those who left take up room until their turn) or old."""
        limits = self.accumulator.limits
        return bool(tickets) and (
            rows_of(tickets) >= limits.rows
            or nbytes_of(tickets) >= limits.nbytes
            or tickets[0].at + limits.linger_s <= self.now
        )

    def _may_leave(self, key):
        """Whether a batch is there even when those who are not there any more do not count."""
        return self._is_due([ticket for ticket in self.queues[key] if self._is_there(ticket)])

    def _removed(self, key):
        """Take from the model what is no longer in the queue: some from its front."""
        kept = self._by_queue(self.accumulator.groups())[key]
        split = len(self.queues[key]) - len(kept)
        removed, self.queues[key] = self.queues[key][:split], self.queues[key][split:]
        return removed

    def _check_batch(self, batch, removed, before):
        limits = self.accumulator.limits
        assert batch == [ticket for ticket in removed if self._is_there(ticket)]
        if len(batch) > 1:
            assert rows_of(batch) <= limits.rows
            assert nbytes_of(batch) <= limits.nbytes
        if batch == removed:
            assert self._is_due(before)
            more = before[: len(removed) + 1]
            if len(more) > len(removed):  # as many as fit
                assert rows_of(more) > limits.rows or nbytes_of(more) > limits.nbytes

    def _check_dropped(self, dropped):
        assert not any(map(self._is_there, dropped))
        self.late += [ticket for ticket in dropped if not ticket.gone]
        self.cancelled += rows_of([ticket for ticket in dropped if ticket.gone])

    def _check_turns(self, taken, ready):
        for key in KEYS:
            if key is taken or key not in ready:
                self.overtaken[key] = []
            else:
                assert taken not in self.overtaken[key], "it had its turn twice meanwhile"
                self.overtaken[key].append(taken)


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def taken(waiting, now=0.0):
    """All that may leave: the tickets of each batch."""
    batches = []
    while departure := waiting.take(now):
        batches.append(tickets_in(departure.groups))
    return batches


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=20),
    st.integers(0, 8),
)
def test_no_row_is_lost_doubled_or_moved(counts, limit):
    waiting = accumulator(rows=limit)
    groups = [group(tickets=tickets, rows=rows) for tickets, rows in counts]
    enter(waiting, *groups)
    batches = taken(waiting)
    assert [ticket for batch in batches for ticket in batch] == tickets_in(groups)
    assert waiting.rows == 0


def test_a_row_beyond_the_byte_limit_leaves_alone():
    waiting = accumulator(nbytes=100)
    sizes = (10, 20, 500, 60, 30, 30)
    enter(waiting, *[group(KEYS[2], nbytes=nbytes) for nbytes in sizes], key=KEYS[2])
    assert [[t.nbytes for t in batch] for batch in taken(waiting)] == [
        [10, 20],
        [500],
        [60, 30],
        [30],
    ]


def test_rows_that_alone_are_beyond_the_byte_limit_leave_one_by_one():
    waiting = accumulator(nbytes=7)
    enter(waiting, group(KEYS[1], 3), key=KEYS[1])
    assert [len(batch) for batch in taken(waiting)] == [1, 1, 1]


def test_rows_of_no_bytes_are_limited_by_their_number():
    waiting = accumulator(rows=4, nbytes=100)
    empty = BatchKey((("A", "INT64", (0,)),), (), ())
    enter(waiting, group(empty, 6), key=empty)
    assert [len(batch) for batch in taken(waiting)] == [4, 2]


@pytest.mark.timeout(5)
def test_a_limit_of_no_rows_still_lets_rows_leave():
    """So it is after the model was loaded anew without a batch axis, while rows wait."""
    waiting = accumulator(rows=0)
    enter(waiting, group(tickets=2), group())
    assert [len(batch) for batch in taken(waiting)] == [1, 1, 1]


@pytest.mark.parametrize(("now", "leaves"), [(0.9, False), (1.0, True)])
def test_a_batch_with_room_waits_for_its_age(now, leaves):
    waiting = accumulator(linger_s=1.0)
    enter(waiting, group(at=0.0), group(at=0.8))
    assert waiting.due_at() == 1.0
    assert (waiting.take(now) is not None) == leaves


def test_a_full_batch_does_not_wait_for_its_age_and_the_rest_does():
    waiting = accumulator(rows=4, linger_s=1.0)
    enter(waiting, group(tickets=6))
    assert waiting.due_at() == -math.inf
    assert [len(batch) for batch in taken(waiting, 0.1)] == [4]
    assert waiting.due_at() == 1.0


def test_nothing_is_due_where_nothing_waits():
    assert accumulator(linger_s=1.0).due_at() == math.inf


def test_queues_take_turns():
    waiting = accumulator(rows=2)
    for key in (KEYS[0], KEYS[1]):
        enter(waiting, group(key, 6), key=key)
    waiting.take(0.0)
    enter(waiting, group(KEYS[2]), key=KEYS[2])
    order = [KEYS.index(batch[0].key) for batch in taken(waiting)]
    assert order == [1, 0, 2, 1, 0, 1]


def test_room_is_for_the_rows_of_all_queues_together():
    waiting = accumulator(queued_rows=10)
    enter(waiting, group(rows=3))
    enter(waiting, group(KEYS[1], rows=5), key=KEYS[1])
    assert waiting.has_room(2)
    assert not waiting.has_room(3)


def kind(number):
    return key_of(call(1, parameters=(("user", number),)))


def test_empty_queues_do_not_pile_up():
    waiting = accumulator()
    for number in range(1000):
        enter(waiting, group(), key=kind(number))
        assert waiting.take(0.0) is not None
    assert len(waiting._queues) < 100


def test_a_queue_that_is_kept_can_be_entered_after_many_others_came_and_went():
    waiting = accumulator()
    mine = waiting.queue(KEYS[1])
    for number in range(200):
        waiting.queue(kind(number))
    waiting.enter(mine, group(KEYS[1]))
    assert waiting.take(0.0).key == KEYS[1]


def test_rows_of_very_many_kinds_do_not_cost_more_each():
    class Kind:
        row_nbytes = 8
        hashed = 0

        def __hash__(self):
            Kind.hashed += 1
            return id(self)

    waiting = accumulator(queued_rows=10_000)
    for _ in range(2000):
        enter(waiting, group(), key=Kind())
    assert Kind.hashed < 20 * 2000


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_halves_are_halves(counts, data):
    groups = [group(tickets=tickets) for tickets in counts]
    for ticket in (everyone := [t for one in groups for t in one.tickets]):
        ticket.gone = data.draw(st.booleans())
    here = [ticket for ticket in everyone if not ticket.gone]
    front, rest = halves([one.without(gone) for one in groups])
    first, second = ([t for one in half for t in one.tickets] for half in (front, rest))
    assert first + second == here
    assert len(first) == len(here) // 2
    assert tickets_in([one for one in (*front, *rest) if one.tickets]) == here
