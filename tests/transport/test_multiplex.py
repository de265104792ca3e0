"""The requests of one stream: the table line by line, and any interleaving beside a naive model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tritonasync.transport.multiplex import Event, Multiplex, Request, State, Verdict

A, B = ("a", ""), ("b", "1")

WAITED_FOR = (State.QUEUED, State.OUT)

STEPS = {
    (State.QUEUED, Event.SENDING): (State.OUT, Verdict.NOTHING),
    (State.QUEUED, Event.LEAVING): (State.OVER, Verdict.WITHDRAW),
    (State.QUEUED, Event.BREAK): (State.OVER, Verdict.NOT_SENT),
    (State.OUT, Event.RESPONSE): (State.OUT, Verdict.DELIVER),
    (State.OUT, Event.LAST): (State.OVER, Verdict.FINISH),
    (State.OUT, Event.REFUSAL): (State.OVER, Verdict.FAIL),
    (State.OUT, Event.FAILURE): (State.LEFT, Verdict.FAIL),
    (State.OUT, Event.LEAVING): (State.LEFT, Verdict.NOTHING),
    (State.OUT, Event.BREAK): (State.OVER, Verdict.LOST),
    (State.LEFT, Event.LAST): (State.OVER, Verdict.NOTHING),
    (State.LEFT, Event.REFUSAL): (State.OVER, Verdict.NOTHING),
    (State.LEFT, Event.BREAK): (State.OVER, Verdict.NOTHING),
}

WAY_TO = {
    State.QUEUED: (),
    State.OUT: (Event.SENDING,),
    State.LEFT: (Event.SENDING, Event.LEAVING),
    State.OVER: (Event.SENDING, Event.LAST),
}


def made(
    requests: Multiplex[str], name="1", state=State.QUEUED, *, model=A, ordered=True
) -> Request[str]:
    """A request that is in a state."""
    request = Request(name, model, ordered, f"who waits for {name}")
    requests.add(request)
    for event in WAY_TO[state]:
        requests.note(request, event)
    assert request.state is state
    return request


def counted(requests: Multiplex[str]) -> tuple[int, int, int]:
    return len(requests), requests.waited_for, requests.left


COUNTS = {
    State.QUEUED: (1, 1, 0),
    State.OUT: (1, 1, 0),
    State.LEFT: (1, 0, 1),
    State.OVER: (0, 0, 0),
}


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(("state", "event"), [*product(State, Event)])
def test_each_line_of_the_table_and_what_is_in_none_changes_nothing(state, event, ordered):
    requests = Multiplex[str]()
    request = made(requests, state=state, ordered=ordered)
    assert counted(requests) == COUNTS[state]
    after, verdict = STEPS.get((state, event), (state, Verdict.NOTHING))
    assert requests.note(request, event) is verdict
    assert request.state is after
    assert counted(requests) == COUNTS[after]
    assert ("1" in requests) is (after is not State.OVER)
    assert requests.held_up_by_others(B) is (ordered and after is not State.OVER)


# --- what was asked about ------------------------------------------------------------------------


def test_a_message_about_a_request_that_is_over_or_never_was_is_a_stray():
    requests = Multiplex[str]()
    request = made(requests, state=State.OUT)
    assert requests.find("1") is request
    assert requests.strays == 0
    requests.note(request, Event.LAST)
    assert requests.find("1") is None
    assert requests.find("never made") is None
    assert requests.strays == 2


def test_what_follows_an_error_of_the_models_own_is_dropped_until_the_end():
    requests = Multiplex[str]()
    request = made(requests, state=State.OUT)
    assert requests.note(request, Event.FAILURE) is Verdict.FAIL
    for event in (Event.RESPONSE, Event.FAILURE, Event.LEAVING, Event.LAST):
        assert requests.find("1") is request
        assert requests.note(request, event) is Verdict.NOTHING
    assert counted(requests) == (0, 0, 0)


def test_the_oldest_is_the_first_of_those_that_are_not_over():
    requests = Multiplex[str]()
    assert requests.oldest() is None
    first, second = (made(requests, name, State.OUT) for name in "12")
    assert requests.oldest() is first
    requests.note(first, Event.LEAVING)
    assert requests.oldest() is first  # the server is still at it
    requests.note(first, Event.LAST)
    assert requests.oldest() is second


def test_requests_may_end_while_they_are_looked_through():
    requests = Multiplex[str]()
    for name in "123":
        made(requests, name, State.OUT)
    for request in requests:
        requests.note(request, Event.LAST)
    assert counted(requests) == (0, 0, 0)


# --- who has no room -----------------------------------------------------------------------------


def test_one_who_is_full_is_a_crowd_and_only_all_of_them_hold_the_stream():
    requests = Multiplex[str]()
    first, second = (made(requests, name, State.OUT) for name in "12")
    assert (requests.crowded, requests.held) == (False, False)
    requests.fill(first, full=True)
    assert (requests.crowded, requests.held) == (True, False)
    requests.fill(second, full=True)
    assert (requests.crowded, requests.held) == (True, True)
    requests.fill(second, full=True)
    requests.fill(second, full=False)
    assert (requests.crowded, requests.held) == (True, False)
    made(requests, "3")
    requests.fill(second, full=True)
    assert (requests.crowded, requests.held) == (True, False)  # the third has room


def test_a_stream_on_which_nobody_waits_is_not_held():
    requests = Multiplex[str]()
    assert not requests.held
    request = made(requests, state=State.OUT)
    requests.fill(request, full=True)
    requests.note(request, Event.LEAVING)
    assert (requests.crowded, requests.held) == (False, False)


@pytest.mark.parametrize("event", [Event.LAST, Event.REFUSAL, Event.FAILURE, Event.LEAVING])
def test_who_is_full_and_gone_crowds_nobody(event):
    requests = Multiplex[str]()
    gone, other = (made(requests, name, State.OUT) for name in "12")
    requests.fill(gone, full=True)
    requests.fill(other, full=True)
    requests.note(gone, event)
    assert (requests.crowded, requests.held) == (True, True)
    requests.fill(other, full=False)
    assert (requests.crowded, requests.held) == (False, False)


@pytest.mark.parametrize("state", [State.QUEUED, State.LEFT, State.OVER])
def test_room_is_counted_only_of_those_who_wait_for_what_was_sent(state):
    # The last response may fill who waits: he is no longer on the stream when that is told.
    requests = Multiplex[str]()
    request = made(requests, state=state)
    requests.fill(request, full=True)
    assert (requests.crowded, requests.held) == (False, False)
    requests.fill(request, full=False)
    made(requests, "2")
    assert (requests.crowded, requests.held) == (False, False)


# --- who waits for whom --------------------------------------------------------------------------


def test_an_answer_in_turn_waits_for_other_models_and_not_for_its_own():
    requests = Multiplex[str]()
    assert not requests.held_up_by_others(A)
    request = made(requests, state=State.OUT)
    made(requests, "2", State.OUT)
    assert not requests.held_up_by_others(A)
    assert requests.held_up_by_others(B)
    assert requests.held_up_by_others(("a", "1"))  # another version is another model
    requests.note(request, Event.LAST)
    assert requests.held_up_by_others(B)


def test_what_is_answered_at_once_holds_nobody_up():
    requests = Multiplex[str]()
    made(requests, state=State.OUT, ordered=False)
    assert not requests.held_up_by_others(B)


def test_a_request_that_nobody_waits_for_still_holds_up_the_others():
    requests = Multiplex[str]()
    request = made(requests, state=State.LEFT)
    assert requests.held_up_by_others(B)
    requests.note(request, Event.LAST)
    assert not requests.held_up_by_others(B)


# --- the end -------------------------------------------------------------------------------------


def test_a_break_tells_each_who_waits_whether_it_was_sent():
    requests = Multiplex[str]()
    queued, out, left = (
        made(requests, state.name, state) for state in (State.QUEUED, State.OUT, State.LEFT)
    )
    assert requests.end() == [(queued.sink, Verdict.NOT_SENT), (out.sink, Verdict.LOST)]
    assert left.state is State.OVER
    assert counted(requests) == (0, 0, 0)
    assert requests.end() == []


# --- any interleaving ----------------------------------------------------------------------------


@dataclass(eq=False)
class Fate:
    """What a request should be like, said in other words than the table's.

    Attributes:
        request: The one under test.
        sent: Whether it was sent.
        waited: Whether somebody waits.
        alive: Whether something may still come of it.
        full: Whether who waits has no room.
        ends: How often who waits was told of an end, or left.
    """

    request: Request[str]
    sent: bool = False
    waited: bool = True
    alive: bool = True
    full: bool = False
    ends: int = 0

    def part(self) -> None:
        self.waited, self.full = False, False
        self.ends += 1

    def end(self, verdict: Verdict) -> Verdict:
        """Nothing more comes; return what who waits is told, if somebody does."""
        waited, self.alive = self.waited, False
        if waited:
            self.part()
        return verdict if waited else Verdict.NOTHING

    def comes(self, event: Event) -> Verdict:
        if not self.sent or not self.alive:
            return Verdict.NOTHING
        if event is Event.LAST:
            return self.end(Verdict.FINISH)
        if event is Event.REFUSAL:
            return self.end(Verdict.FAIL)
        if not self.waited:
            return Verdict.NOTHING
        if event is Event.FAILURE:
            self.part()
            return Verdict.FAIL
        return Verdict.DELIVER

    def leave(self) -> Verdict:
        if not self.waited:
            return Verdict.NOTHING
        self.part()
        self.alive = self.sent
        return Verdict.NOTHING if self.sent else Verdict.WITHDRAW


MODELS = st.sampled_from([A, B, ("a", "2")])
MESSAGES = st.sampled_from([Event.RESPONSE, Event.LAST, Event.REFUSAL, Event.FAILURE])


class Interleavings(RuleBasedStateMachine):
    """All that can happen to a stream, in any order, as sensible or not."""

    @initialize()
    def begin(self):
        self.requests = Multiplex[str]()
        self.fates: list[Fate] = []
        self.names = count()
        self.strays = 0

    @property
    def alive(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.alive]

    @rule(model=MODELS, ordered=st.booleans())
    def add(self, model, ordered):
        name = str(next(self.names))
        request = Request(name, model, ordered, f"who waits for {name}")
        self.requests.add(request)
        self.fates.append(Fate(request))

    def any_of(self, data) -> Fate:
        return data.draw(st.sampled_from(self.fates))

    @precondition(lambda self: self.fates)
    @rule(data=st.data())
    def send(self, data):
        fate = self.any_of(data)
        assert self.requests.note(fate.request, Event.SENDING) is Verdict.NOTHING
        fate.sent |= fate.alive

    @rule()
    def send_all(self):
        for fate in self.fates:
            self.requests.note(fate.request, Event.SENDING)
            fate.sent |= fate.alive

    @precondition(lambda self: self.fates)
    @rule(data=st.data(), event=MESSAGES)
    def message(self, data, event):
        fate = self.any_of(data)
        found = self.requests.find(fate.request.id)
        assert found is (fate.request if fate.alive else None)
        self.strays += found is None
        # Whoever kept hold of a request that is over changes nothing by it, either.
        assert self.requests.note(fate.request, event) is fate.comes(event)

    @rule(name=st.sampled_from(["", "x", "-1"]))
    def stray(self, name):
        assert self.requests.find(name) is None
        self.strays += 1

    @precondition(lambda self: self.fates)
    @rule(data=st.data())
    def leave(self, data):
        fate = self.any_of(data)
        assert self.requests.note(fate.request, Event.LEAVING) is fate.leave()

    @precondition(lambda self: self.fates)
    @rule(data=st.data(), full=st.booleans())
    def fill(self, data, full):
        fate = self.any_of(data)
        self.requests.fill(fate.request, full=full)
        fate.full = full and fate.waited and fate.sent

    @rule(full=st.booleans())
    def fill_all(self, full):
        for fate in self.fates:
            self.requests.fill(fate.request, full=full)
            fate.full = full and fate.waited and fate.sent

    @rule()
    def stream_breaks(self):
        told = [
            (fate.request.sink, fate.end(Verdict.LOST if fate.sent else Verdict.NOT_SENT))
            for fate in self.alive
        ]
        assert self.requests.end() == [pair for pair in told if pair[1] is not Verdict.NOTHING]
        assert counted(self.requests) == (0, 0, 0)

    @invariant()
    def the_counts_are_those_of_counting_anew(self):
        requests, alive = self.requests, self.alive
        waited = [fate for fate in alive if fate.waited]
        assert counted(requests) == (len(alive), len(waited), len(alive) - len(waited))
        assert requests.strays == self.strays
        assert requests.crowded is any(fate.full for fate in waited)
        assert requests.held is (bool(waited) and all(fate.full for fate in waited))

    @invariant()
    def the_requests_are_those_that_are_not_over_in_the_order_in_which_they_came(self):
        alive = [fate.request for fate in self.alive]
        assert list(self.requests) == alive
        assert self.requests.oldest() is (alive[0] if alive else None)
        for fate in self.fates:
            assert (fate.request.id in self.requests) is fate.alive
            assert (fate.request.state is State.OVER) is not fate.alive
            assert (fate.request.state in WAITED_FOR) is fate.waited

    @invariant()
    def who_is_held_up_is_found_by_looking_at_all(self):
        for model in (A, B, ("a", "2"), ("c", "")):
            others = [r for f in self.alive if (r := f.request).ordered and r.model != model]
            assert self.requests.held_up_by_others(model) is bool(others)

    @invariant()
    def nobody_is_told_of_an_end_twice(self):
        assert all(fate.ends == (not fate.waited) for fate in self.fates)

    def teardown(self):
        if hasattr(self, "requests"):
            self.stream_breaks()
            assert [fate.ends for fate in self.fates] == [1] * len(self.fates)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
