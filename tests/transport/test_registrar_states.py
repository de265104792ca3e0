"""How one region stands with a server: the table, and the sentences about refusals."""

import asyncio

import pytest

from tests.transport.scripted_regions import FakeLease, FakeRegion
from tritonasync.core.errors import (
    AccessDeniedError,
    InvalidRequestError,
    RegionExistsError,
    RegionInvalidError,
    UnsupportedError,
)
from tritonasync.transport.registration import (
    TRANSITIONS,
    Event,
    Registration,
    State,
    refusal_of,
)


@pytest.fixture
def registration():
    return Registration(FakeRegion("ta-1"))


@pytest.mark.parametrize("state", State)
def test_every_state_has_its_row_and_a_way_back_to_absent(state):
    seen, left = {state}, [state]
    while left:
        for after in TRANSITIONS[left.pop()].values():
            if after not in seen:
                seen.add(after)
                left.append(after)
    assert State.ABSENT in seen


@pytest.mark.parametrize("state", [state for state in State if state is not State.ASKING])
def test_a_doubt_may_come_at_any_time_but_in_a_question(state):
    assert TRANSITIONS[state][Event.DOUBT] in {State.ABSENT, State.DOUBTED, State.LEAVING}


def test_only_a_question_makes_a_name_known():
    ways = {
        (state, event)
        for state, row in TRANSITIONS.items()
        for event, after in row.items()
        if after is State.KNOWN
    }
    assert ways == {(State.ASKING, Event.ACCEPT)}


def test_a_region_that_leaves_is_over_by_the_servers_word_only():
    assert {*TRANSITIONS[State.LEAVING]} == {
        Event.MISS,
        Event.DOUBT,
        Event.WITHDRAW,
    }
    assert TRANSITIONS[State.LEAVING][Event.MISS] is State.ABSENT
    assert TRANSITIONS[State.LEAVING][Event.DOUBT] is State.LEAVING


def test_what_the_table_does_not_have_is_a_defect(registration):
    with pytest.raises(RuntimeError, match="'ta-1': ACCEPT while ABSENT"):
        registration.apply(Event.ACCEPT)
    assert registration.state is State.ABSENT


@pytest.mark.parametrize("state", State)
def test_what_may_be_asked(registration, state):
    registration.state = state
    assert registration.may_be_asked is (state in {State.ABSENT, State.ASKING, State.DOUBTED})
    registration.closing = True
    assert not registration.may_be_asked


@pytest.mark.anyio
async def test_it_is_gone_when_no_name_is_there_nor_may_come(registration):
    assert registration.gone
    registration.name = "ta-1.1"
    assert not registration.gone
    registration.name = None
    registration.question = asyncio.ensure_future(asyncio.sleep(0))
    assert not registration.gone
    await registration.question


def test_each_retired_part_is_confirmed_once(registration):
    leases = [FakeLease(), FakeLease()]
    registration.retired += leases
    registration.confirm()
    registration.confirm()
    assert [lease.confirmed for lease in leases] == [1, 1]


def server_error(kind, code, details):
    return kind("…", code=code, details=details)


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("system", server_error(UnsupportedError, "UNIMPLEMENTED", "off"), "--allow-client-shm=tr"),
        ("cuda", server_error(UnsupportedError, "UNIMPLEMENTED", "off"), "--allow-client-shm=true"),
        ("system", server_error(RegionInvalidError, "INTERNAL", "Unable to open"), "--ipc=host"),
        ("system", server_error(RegionInvalidError, "INTERNAL", "Unable to open"), "same user"),
        ("cuda", server_error(RegionInvalidError, "INVALID_ARGUMENT", "invalid args"), "same GPU"),
        ("cuda", server_error(RegionInvalidError, "INVALID_ARGUMENT", "no GPU"), "--pid=host"),
        ("system", server_error(InvalidRequestError, "INVALID_ARGUMENT", "reserved"), "/dev/shm"),
        ("cuda", server_error(AccessDeniedError, "UNAVAILABLE", "restricted"), "protocol_keys"),
        ("system", server_error(RegionExistsError, "ALREADY_EXISTS", "manager"), "taken"),
    ],
)
def test_a_refusal_says_what_to_do_and_what_the_server_said(kind, error, says):
    sentence = refusal_of(kind, error)
    assert says in sentence
    assert sentence.endswith(f"({error.details})")
