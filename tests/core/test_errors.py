import copy
import pickle
import re
import traceback
from dataclasses import FrozenInstanceError

import pytest

from tritonasync.core import errors
from tritonasync.core.errors import (
    Attempt,
    DeadlineExceededError,
    MissingExtraError,
    ServerError,
    TritonError,
)

ATTEMPTS = (
    Attempt("host:1", 0.0, 0.5, "ConnectionLostError", "the connection broke"),
    Attempt("host:2", 0.25, 0.125, "QueueFullError", "the queue is full", hedge=True),
)

CLASSES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TritonError)
]


def drawn_tree() -> dict[str, tuple[str, str | None]]:
    """Class -> (its parent in the docstring's drawing, the builtin named beside it)."""
    tree: dict[str, tuple[str, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^ {4}([│├└─ ]*)(\w+Error)\b\s*(?:\((\w+)\))?", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            tree[match[2]] = (path[depth - 1] if depth else "Exception", match[3])
    return tree


def make(kind: type[TritonError]) -> TritonError:
    if issubclass(kind, MissingExtraError):
        return kind("pillow", extra="images", purpose="Detector")
    fields: dict[str, object] = {"model": "m", "endpoint": "host:1"}
    if issubclass(kind, ServerError):
        fields |= {"code": "INTERNAL", "details": "server's words"}
    if issubclass(kind, DeadlineExceededError):
        fields |= {"stage": "server", "timeout_s": 1.5}
    return kind("what went wrong", **fields)


def test_the_drawing_has_every_class_under_its_parent():
    tree = drawn_tree()
    assert set(tree) == {kind.__name__ for kind in CLASSES}
    for kind in CLASSES:
        parent, builtin = tree[kind.__name__]
        assert kind.__bases__[0].__name__ == parent
        assert [base.__name__ for base in kind.__bases__[1:]] == ([builtin] if builtin else [])


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "twin_of", [TritonError.copy, copy.copy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_a_twin_is_equal_in_all_but_identity(kind, twin_of):
    error = make(kind)
    twin = twin_of(error)
    assert type(twin) is kind
    assert twin is not error
    assert twin.args == error.args
    assert vars(twin) == vars(error)
    assert str(twin) == str(error) == error.message


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "twin_of", [TritonError.copy, copy.copy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_a_twin_knows_what_was_tried(kind, twin_of):
    error = make(kind)
    error.attempts = ATTEMPTS
    twin = twin_of(error)
    assert twin.attempts == ATTEMPTS
    assert vars(twin) == vars(error)
    assert str(twin) == str(error) != error.message


def test_what_was_tried_belongs_to_one_error():
    error = make(ServerError)
    twin = error.copy()
    twin.attempts = ATTEMPTS
    assert error.attempts == TritonError.attempts == ()
    assert str(error) == error.message


def test_an_error_says_what_was_tried_in_order():
    error = make(errors.QueueFullError)
    assert str(error) == "what went wrong"
    error.attempts = ATTEMPTS
    assert str(error) == (
        "what went wrong [2 attempts: host:1: ConnectionLostError; host:2: QueueFullError]"
    )
    assert (error.message, error.args) == ("what went wrong", ("what went wrong",))


def test_an_attempt_is_a_value():
    attempt = Attempt("host:1", 0.0, 0.5, "ConnectionLostError", "the connection broke")
    assert attempt == ATTEMPTS[0] == pickle.loads(pickle.dumps(attempt))
    assert (attempt.hedge, ATTEMPTS[1].hedge) == (False, True)
    with pytest.raises(FrozenInstanceError):
        attempt.hedge = True


def test_a_copy_has_the_cause_and_a_traceback_of_its_own():
    try:
        raise make(ServerError) from KeyError("cause")
    except ServerError as error:
        caught = error
    twin = caught.copy()
    assert twin.__cause__ is caught.__cause__
    assert twin.__traceback__ is None
    with pytest.raises(ServerError):
        raise twin
    assert len(traceback.extract_tb(caught.__traceback__)) == 1


def test_an_error_is_also_pythons_own_kind_of_it():
    with pytest.raises(TimeoutError):
        raise make(errors.DeadlineExceededError)
    with pytest.raises(ConnectionError):
        raise make(errors.ConnectionLostError)
    with pytest.raises(ValueError, match="what went wrong"):
        raise make(errors.InvalidInputError)
    with pytest.raises(ImportError):
        raise make(errors.MissingExtraError)


def test_a_missing_extra_says_how_to_install_it():
    error = make(MissingExtraError)
    assert str(error) == (
        "Detector needs pillow, which is not installed: pip install 'tritonasync[images]'"
    )
    assert (error.package, error.extra) == ("pillow", "images")


def test_what_certainly_did_not_run_is_not_said_to_have_run():
    never_ran = {
        kind
        for kind in CLASSES
        if issubclass(kind, (errors.UsageError, errors.ServerUnreachableError))
    }
    assert not any(kind.may_have_executed for kind in never_ran)


def test_retrying_is_for_what_may_succeed_the_next_time():
    assert {kind.__name__ for kind in CLASSES if kind.retriable} == {
        "ServerUnreachableError",
        "ConnectionLostError",
        "ModelNotReadyError",
        "QueueFullError",
        "ServerNotReadyError",
        "RegionNotFoundError",
    }
