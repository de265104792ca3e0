"""Pins of sequences, compared with a plain table; and what parameters say about a sequence."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.core.values import Call, SequenceStep
from tritonasync.routing.affinity import Pins, key_of, sequence_of

IDLE_S = 5
MOST = 4


def key(number):
    return ("model", "", number)


class Table:
    """What pins should do, done by looking at all of them each time."""

    def __init__(self):
        self.rows = []  # [key, member, last use], the longest idle first

    def drop(self, unwanted):
        gone = [row for row in self.rows if unwanted(row)]
        self.rows = [row for row in self.rows if not unwanted(row)]
        return gone

    def expire(self, now):
        self.drop(lambda row: now - row[2] >= IDLE_S)

    def find(self, wanted, now):
        self.expire(now)
        found = self.drop(lambda row: row[0] == wanted)
        self.rows += [[found_key, member, now] for found_key, member, _ in found]
        return found[0][1] if found else None

    def pin(self, pinned, member, now):
        self.expire(now)
        self.drop(lambda row: row[0] == pinned)
        self.rows.append([pinned, member, now])
        self.rows = self.rows[-MOST:]


KEYS = st.integers(1, 7).map(key)
MEMBERS = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("find"), KEYS),
        st.tuples(st.just("pin"), KEYS, MEMBERS),
        st.tuples(st.just("pin"), KEYS, MEMBERS),
        st.tuples(st.just("release"), KEYS),
        st.tuples(st.just("lost"), MEMBERS),
        st.tuples(st.just("expire")),
        st.tuples(st.just("wait"), st.integers(1, IDLE_S + 1)),
    ),
    max_size=40,
)


@given(STEPS)
def test_pins_do_what_a_table_does_that_looks_at_all_of_them(steps):
    pins, table, now = Pins(idle_s=IDLE_S, most=MOST), Table(), 100
    for step, *args in steps:
        if step == "wait":
            now += args[0]
        elif step == "release":
            pins.release(*args)
            table.drop(lambda row, args=args: row[0] == args[0])
        elif step == "lost":
            gone = table.drop(lambda row, args=args: row[1] == args[0])
            assert pins.lost(*args) == len(gone)
        else:
            assert getattr(pins, step)(*args, now) == getattr(table, step)(*args, now)
        assert len(pins) == len(table.rows) <= MOST
        for member in "abc":
            assert pins.count(member) == [row[1] for row in table.rows].count(member)


def test_a_sequence_stays_with_its_member_while_it_is_used():
    pins = Pins(idle_s=10.0)
    pins.pin(key(1), "a", 0.0)
    for now in range(9, 100, 9):
        assert pins.find(key(1), float(now)) == "a"
    assert pins.find(key(1), 99.0 + 10.0) is None


def test_an_unknown_sequence_has_no_member():
    pins = Pins()
    assert pins.find(key(1), 0.0) is None
    pins.release(key(1))
    assert pins.lost("a") == 0
    assert len(pins) == pins.count("a") == 0


@pytest.mark.parametrize("other", [("other", "", 1), ("model", "2", 1), ("model", "", "1")])
def test_model_version_and_the_kind_of_the_id_tell_sequences_apart(other):
    pins = Pins()
    pins.pin(key(1), "a", 0.0)
    assert pins.find(other, 0.0) is None
    pins.pin(other, "b", 0.0)
    assert (pins.find(key(1), 0.0), pins.find(other, 0.0)) == ("a", "b")


def test_over_the_most_the_longest_idle_goes():
    pins = Pins(most=2)
    pins.pin(key(1), "a", 0.0)
    pins.pin(key(2), "b", 1.0)
    pins.find(key(1), 2.0)
    pins.pin(key(3), "c", 3.0)
    assert [pins.find(key(number), 3.0) for number in (1, 2, 3)] == ["a", None, "c"]
    assert pins.count("b") == 0


def test_idle_sequences_of_a_draining_member_can_be_dropped_without_traffic():
    pins = Pins(idle_s=10.0)
    pins.pin(key(1), "a", 0.0)
    pins.pin(key(2), "a", 5.0)
    pins.expire(9.9)
    assert pins.count("a") == 2
    pins.expire(10.0)
    assert pins.count("a") == 1


@pytest.mark.parametrize(
    "forget",
    [
        lambda pins, member: pins.lost(member),
        lambda pins, member: pins.release(key(1)),
        lambda pins, member: pins.pin(key(1), "another", 1.0),
        lambda pins, member: pins.expire(1e9),
    ],
)
def test_a_member_without_sequences_is_not_kept_alive(forget):
    class Member:
        pass

    pins, member = Pins(), Member()
    pins.pin(key(1), member, 0.0)
    forget(pins, member)
    gone = weakref.ref(member)
    del member
    gc.collect()
    assert gone() is None


# --- what a call says ----------------------------------------------------------------------------


def call(**parameters):
    return Call("model", "3", (), parameters=tuple(parameters.items()))


@pytest.mark.parametrize("sequence", [1, -1, 1 << 63, "a", "0"])
def test_a_call_with_a_sequence_id_belongs_to_that_sequence(sequence):
    made = call(sequence_id=sequence)
    step = sequence_of(made)
    assert step == SequenceStep(sequence, start=False, end=False)
    assert type(step.id) is type(sequence)
    assert key_of(made, step) == ("model", "3", sequence)


def test_a_call_that_is_a_step_says_so_itself():
    step = SequenceStep(7, start=True)
    assert sequence_of(Call("model", "3", (), sequence=step)) is step


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("end", [False, True])
def test_start_and_end_are_told_apart(start, end):
    flags = {"sequence_start": start, "sequence_end": end}
    step = SequenceStep(7, start=start, end=end)
    assert sequence_of(call(**flags, sequence_id=7)) == step
    assert sequence_of(call(priority=1, sequence_id=7, **flags)) == step


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"priority": 1},
        {"sequence_start": True, "sequence_end": True},
        {"sequence_id": 0, "sequence_start": True},
        {"sequence_id": "", "sequence_start": True},
        {"sequence_id": True},
        {"sequence_id": False},
        {"sequence_id": 1.5},
    ],
)
def test_other_calls_belong_to_no_sequence(parameters):
    assert sequence_of(call(**parameters)) is None


@pytest.mark.parametrize("flag", [1, "true", 0.5])
def test_a_flag_that_the_server_refuses_is_no_flag(flag):
    parameters = {"sequence_id": 7, "sequence_start": flag, "sequence_end": flag}
    assert sequence_of(call(**parameters)) == SequenceStep(7)
