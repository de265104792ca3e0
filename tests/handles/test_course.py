"""The course of a sequence: flags, losses, ids; compared with a plain account of what was sent."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.core.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelUnhealthyError,
    ProtocolError,
    QueueFullError,
    SequenceLostError,
    SequenceNotFoundError,
    ServerNotReadyError,
    ServerUnreachableError,
    UsageError,
)
from tritonasync.core.values import SequenceStep
from tritonasync.handles.course import Course, Phase, check_end, check_id, make_id


def answered(kind):
    return kind("no", code="INTERNAL", details="no")


def late(stage):
    return DeadlineExceededError("late", stage=stage, timeout_s=1.0)


GONE = [
    SequenceLostError("gone"),
    ConnectionLostError("broke", endpoint="a:1"),
    ServerUnreachableError("nobody"),
    *map(
        answered,
        [
            SequenceNotFoundError,
            ServerNotReadyError,
            ModelNotReadyError,
            ModelNotFoundError,
            ModelUnhealthyError,
        ],
    ),
]
NOT_GONE = [
    answered(ModelFailedError),
    answered(QueueFullError),
    late("server"),
    late("queue"),
    InvalidInputError("wrong"),
    ProtocolError("garbled"),
    ValueError("from an array"),
    asyncio.CancelledError(),
]
RAN_OR_NOT = [
    answered(ModelFailedError),
    ConnectionLostError("broke"),
    late("server"),
    late("connect"),
    ProtocolError("garbled"),
    asyncio.CancelledError(),
]
UNSENT = {"queue", "metadata"}
DID_NOT_RUN = [
    ServerUnreachableError("nobody"),
    answered(QueueFullError),
    answered(ModelNotReadyError),
    late("queue"),
    late("metadata"),
    InvalidInputError("wrong"),
    ValueError("from an array"),
]


def begun(steps=1):
    course = Course("net")
    course.enter(7)
    for _ in range(steps):
        course.answered(course.step(end=False))
    return course


def test_the_first_step_alone_carries_the_start_flag():
    course = begun(0)
    flags = []
    for end in (False, False, True):
        step = course.step(end=end)
        course.answered(step)
        flags.append((step.id, step.start, step.end))
    assert flags == [(7, True, False), (7, False, False), (7, False, True)]


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_what_says_that_the_state_is_gone_loses_the_sequence(error):
    course = begun()
    lost = course.failed(course.step(end=False), error)
    assert isinstance(lost, SequenceLostError)
    assert f"7 is lost, and its state with it: begin a new one ({type(error).__name__}" in str(lost)
    assert (lost.model, lost.endpoint) == ("net", error.endpoint)
    with pytest.raises(SequenceLostError, match=f"sequence 7 is lost.*{type(error).__name__}"):
        course.step(end=False)


@pytest.mark.parametrize("error", NOT_GONE, ids=lambda error: type(error).__name__)
def test_after_any_other_failure_the_sequence_goes_on(error):
    course = begun()
    assert course.failed(course.step(end=False), error) is None
    assert course.step(end=False) == SequenceStep(7)


@pytest.mark.parametrize("error", RAN_OR_NOT, ids=lambda error: type(error).__name__)
def test_a_first_step_that_may_have_run_loses_the_sequence_and_keeps_its_own_error(error):
    course = begun(0)
    assert course.failed(course.step(end=False), error) is None
    with pytest.raises(SequenceLostError, match=f"first step may have.*{type(error).__name__}"):
        course.step(end=False)
    assert course.leave() == (SequenceStep(7, end=True), False)


@pytest.mark.parametrize("error", DID_NOT_RUN, ids=lambda error: type(error).__name__)
def test_after_a_first_step_that_did_not_run_the_next_is_the_first(error):
    course = begun(0)
    assert course.failed(course.step(end=False), error) is None
    assert course.step(end=False) == SequenceStep(7, start=True)
    assert course.leave() == (None, False)


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (InvalidInputError("wrong"), False),
        (late("queue"), False),
        (ValueError("from an array"), False),
        (late("server"), True),
        (answered(ModelFailedError), True),
        (asyncio.CancelledError(), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_last_step_that_was_tried_ends_the_sequence_whatever_came_of_it(error, ended):
    course = begun()
    assert course.failed(course.step(end=True), error) is None
    if ended:
        with pytest.raises(UsageError, match="sequence 7 has ended, with the step that carried"):
            course.step(end=False)
        assert course.leave() == (None, False)
    else:
        assert course.step(end=False) == SequenceStep(7)


@pytest.mark.parametrize("phase", [Phase.NEW, Phase.ENDED, Phase.LEFT])
def test_no_step_is_taken_before_the_beginning_nor_after_the_end(phase):
    course = begun()
    course.phase = phase
    with pytest.raises(UsageError) as caught:
        course.step(end=False)
    assert phase.value in str(caught.value)
    assert "model 'net': the sequence 7" in str(caught.value)


def test_what_is_said_late_of_a_sequence_that_was_left_changes_nothing():
    course = begun()
    step = course.step(end=False)
    assert course.leave() == (SequenceStep(7, end=True), True)
    course.answered(step)
    assert course.failed(step, ConnectionLostError("broke")) is None
    assert course.broke(ConnectionLostError("broke")) is None
    assert course.phase is Phase.LEFT
    assert course.leave() == (None, False)


def test_responses_that_break_off_lose_the_sequence_if_its_state_is_gone():
    course = begun()
    assert course.broke(answered(ModelFailedError)) is None
    assert course.phase is Phase.UNDERWAY
    assert isinstance(course.broke(ConnectionLostError("broke")), SequenceLostError)
    assert course.phase is Phase.LOST


def test_all_who_were_out_when_a_sequence_was_lost_are_told_that_it_is():
    course = begun()
    step = course.step(end=False)
    course.broke(ConnectionLostError("broke"))
    for error in GONE:
        for lost in (course.broke(error), course.failed(step, error)):
            assert isinstance(lost, SequenceLostError)
            assert lost.endpoint == error.endpoint
            assert "ConnectionLostError: broke" in str(lost)  # what was first
    assert course.broke(answered(ModelFailedError)) is None
    assert course.failed(step, answered(ModelFailedError)) is None


def test_a_sequence_that_expired_is_closed_once():
    course = begun()
    assert course.expire("idle") == SequenceStep(7, end=True)
    with pytest.raises(SequenceLostError, match=r"\(idle\)"):
        course.step(end=False)
    assert course.expire("idle") is None
    assert course.leave() == (None, False)


def test_one_without_a_step_expires_without_closing():
    course = begun(0)
    assert course.expire("idle") is None
    assert course.leave() == (None, False)


@pytest.mark.parametrize("error", [GONE[1], NOT_GONE[0]])
def test_a_closing_that_failed_of_a_loss_says_so(error):
    course = begun()
    course.leave()
    unclosed = course.unclosed(error)
    assert (unclosed is not None) == (error is GONE[1])
    assert unclosed is None or "ConnectionLostError: broke" in str(unclosed)


OUTCOMES = st.sampled_from([None, *GONE, *NOT_GONE, *RAN_OR_NOT, *DID_NOT_RUN])


@given(st.lists(st.tuples(st.booleans(), OUTCOMES), max_size=12))
def test_a_state_is_begun_once_and_never_used_after_its_end_or_loss(steps):
    course, alive, over = begun(0), False, False
    for end, error in steps:
        if over:
            with pytest.raises((SequenceLostError, UsageError)):
                course.step(end=end)
            continue
        step = course.step(end=end)
        assert step == SequenceStep(7, start=not alive, end=end)
        if error is None:
            course.answered(step)
            alive, over = True, end
            continue
        course.failed(step, error)
        if alive:
            unsent = isinstance(error, UsageError | ValueError)
            over = isinstance(error, tuple(map(type, GONE)))
            over = over or (end and not unsent and getattr(error, "stage", "") not in UNSENT)
        else:
            over = getattr(error, "may_have_executed", isinstance(error, asyncio.CancelledError))
    closing, must = course.leave()
    assert must == (alive and not over)
    assert closing in {None, SequenceStep(7, end=True)}
    assert closing is not None or not must


# --- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, -1, 2**63 - 1, -(2**63), "a", "0", "x" * 128, "é" * 64])
def test_ids_that_servers_take(number):
    assert check_id("net", number) == number


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint64])
def test_numpys_whole_numbers_are_ids(kind):
    number = check_id("net", kind(5))
    assert (number, type(number)) == (5, int)


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("kind", [bool, np.bool_])
def test_the_end_is_told_by_a_bool(kind, end):
    assert check_end("net", kind(end)) is end


@pytest.mark.parametrize("end", [0, 1, None, "no", np.int64(1), np.array([True])])
def test_the_end_is_told_by_nothing_else(end):
    with pytest.raises(InvalidInputError, match="model 'net': end is True or False, not"):
        check_end("net", end)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (0, "is not 0, which means none, not 0"),
        ("", "is not empty, which means none, not ''"),
        (True, "is a whole number or a string, not True"),
        (np.True_, "is a whole number or a string, not np.True_"),
        (np.float32(2), "is a whole number or a string, not np.float32"),
        (b"a", "is a whole number or a string, not b'a'"),
        (np.uint64(2**63), "fits 64 bits with a sign"),
        ("a\0b", "has no NUL character, where the server ends it, not 'a.x00b'"),
        ("\0", "has no NUL character"),
        (1.5, "is a whole number or a string, not 1.5"),
        (None, "is a whole number or a string, not None"),
        (2**63, "fits 64 bits with a sign"),
        (-(2**63) - 1, "fits 64 bits with a sign"),
        ("x" * 129, "is at most 128 bytes long"),
        ("é" * 65, "is at most 128 bytes long"),
        ("\ud800", "can be sent as UTF-8"),
    ],
)
def test_ids_that_servers_refuse(number, says):
    with pytest.raises(InvalidInputError, match=f"model 'net': a sequence's id {says}"):
        check_id("net", number)


@pytest.mark.parametrize("text", [False, True])
def test_made_ids_are_taken_and_differ(text):
    made = [make_id(text=text) for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {type(number) for number in made} == {str if text else int}
    for number in made:
        check_id("net", number)
        assert len(number) == 128 if text else number > 0
