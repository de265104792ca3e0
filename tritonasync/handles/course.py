"""Where a sequence is in its course: which step may come next, and what a failed one means.

Owns: the phases of a sequence and the flags of its steps; which errors say that its state is gone;
what an id and an end flag may be. Pure. Refuses to know: calls, time, who waits for whom.

Invariants: the first step that may have run carries the start flag, and no step after it does; once
a sequence has ended, was lost or was left, no step comes any more, but for one that closes it.
"""

from __future__ import annotations

import operator
import secrets
from enum import Enum
from typing import Final, SupportsIndex

import numpy as np

from tritonasync.core.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    InvalidInputError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelUnhealthyError,
    SequenceLostError,
    SequenceNotFoundError,
    ServerNotReadyError,
    ServerUnreachableError,
    TritonError,
    UsageError,
)
from tritonasync.core.values import SequenceStep

MAX_ID_NBYTES: Final = 128
"""The most bytes of a string for an id: "string correlation ID cannot be longer than 128"."""

_GONE: Final = (
    SequenceLostError,
    SequenceNotFoundError,
    ConnectionLostError,
    ServerUnreachableError,
    ServerNotReadyError,
    ModelNotReadyError,
    ModelNotFoundError,
    ModelUnhealthyError,
)
"""After these the state is gone, or nobody knows which steps it has seen."""


class Phase(Enum):
    """Where a sequence is; the value is what is said of one that takes no step there."""

    NEW = "was not entered: async with model.sequence() as sequence"
    READY = "waits for its first step"
    UNDERWAY = "has begun"
    ENDED = "has ended, with the step that carried end=True"
    LOST = "is lost"
    LEFT = "is over, since its block was left: make another one by model.sequence()"


class Course:
    """The course of one sequence.

    Args:
        model: The model's name, for messages.

    Attributes:
        id: The sequence's id; ``None`` until :meth:`enter`.
        phase: Where it is.
    """

    __slots__ = ("_closed", "_model", "_why", "id", "phase")

    def __init__(self, model: str) -> None:
        self._model = model
        self._why = ""
        self._closed = False
        self.id: int | str | None = None
        self.phase: Phase = Phase.NEW

    def enter(self, number: int | str) -> None:
        """Take note of the id, and wait for the first step.

        Raises:
            UsageError: It was entered before.
        """
        if self.phase is not Phase.NEW:
            raise self._refuse(
                "was entered before, and a sequence is used once: make another one by "
                "model.sequence()"
            )
        self.id = number
        self.phase = Phase.READY

    def step(self, *, end: bool) -> SequenceStep:
        """Return the flags of the step that comes next.

        Raises:
            SequenceLostError: The sequence is lost.
            UsageError: It was not entered, has ended, or was left.
        """
        if self.phase is Phase.LOST:
            raise self._lost()
        if self.id is None or self.phase not in {Phase.READY, Phase.UNDERWAY}:
            raise self._refuse(self.phase.value)
        return SequenceStep(self.id, start=self.phase is Phase.READY, end=end)

    def answered(self, step: SequenceStep) -> None:
        """Take note that a step was answered."""
        if self.phase in {Phase.READY, Phase.UNDERWAY}:
            self.phase = Phase.ENDED if step.end else Phase.UNDERWAY

    def failed(self, step: SequenceStep, error: BaseException) -> SequenceLostError | None:
        """Take note that a step failed, or its caller left.

        Returns:
            What to raise from the error where it says that the sequence is lost; ``None`` if the
            error speaks for itself.
        """
        if self.phase not in {Phase.READY, Phase.UNDERWAY}:
            return self._lost_already(error)
        if step.start:
            if _may_have_run(error):
                self.lose(f"its first step may have run or not: {_cause(error)}")
        elif isinstance(error, _GONE):
            self.lose(_cause(error))
            return self._lost(error.endpoint)
        elif step.end and _was_tried(error):
            self.phase = Phase.ENDED
        return None

    def lose(self, why: str) -> None:
        """Take no step any more; ``why`` is for the error."""
        self.phase = Phase.LOST
        self._why = why

    def broke(self, error: TritonError) -> SequenceLostError | None:
        """Take note that the responses to a step broke off after the first.

        Returns:
            As :meth:`failed` does.
        """
        if self.phase is not Phase.UNDERWAY or not isinstance(error, _GONE):
            return self._lost_already(error)
        self.lose(_cause(error))
        return self._lost(error.endpoint)

    def leave(self) -> tuple[SequenceStep | None, bool]:
        """Take no step any more, but for the one that closes the sequence.

        Returns:
            The step that frees what the server keeps, if it may keep something, and whether that
            step is to succeed: for what is lost it is a mere try.
        """
        phase, self.phase = self.phase, Phase.LEFT
        return self._closing(phase), phase is Phase.UNDERWAY

    def expire(self, why: str) -> SequenceStep | None:
        """Be lost, for nobody goes on with it; return the step that closes it, as :meth:`leave`."""
        phase = self.phase
        if phase in {Phase.READY, Phase.UNDERWAY}:
            self.lose(why)
            self._closed = True
        return self._closing(phase) if phase is Phase.UNDERWAY else None

    def _closing(self, phase: Phase) -> SequenceStep | None:
        if self.id is None or phase not in {Phase.UNDERWAY, Phase.LOST}:
            return None
        return None if self._closed and phase is Phase.LOST else SequenceStep(self.id, end=True)

    def _lost_already(self, error: BaseException) -> SequenceLostError | None:
        """Return what to raise from an error that comes when the sequence is lost already.

        What lost it may end many steps at once: each caller is told the same.
        """
        if self.phase is not Phase.LOST or not isinstance(error, _GONE):
            return None
        return self._lost(error.endpoint)

    def unclosed(self, error: TritonError) -> SequenceLostError | None:
        """Return what to raise from the error of the closing step; ``None`` for that error."""
        return self._lost(error.endpoint, _cause(error)) if isinstance(error, _GONE) else None

    def _lost(self, endpoint: str | None = None, why: str = "") -> SequenceLostError:
        return SequenceLostError(
            f"model {self._model!r}, sequence {self.id!r} is lost, and its state with it: begin a "
            f"new one ({why or self._why})",
            model=self._model,
            endpoint=endpoint,
        )

    def _refuse(self, reason: str) -> UsageError:
        number = "" if self.id is None else f" {self.id!r}"
        return UsageError(
            f"model {self._model!r}: the sequence{number} {reason}", model=self._model
        )


def _may_have_run(error: BaseException) -> bool:
    """Return whether the model may have run; a caller who left may have left after the sending."""
    if isinstance(error, TritonError):
        return error.may_have_executed
    return not isinstance(error, Exception)  # an exception of another kind: from making the arrays


def _was_tried(error: BaseException) -> bool:
    """Return whether a step was sent, or came close: the endpoint is not remembered after that."""
    if isinstance(error, DeadlineExceededError):
        return error.stage not in {"queue", "metadata"}
    if isinstance(error, TritonError):
        return not isinstance(error, UsageError)
    return not isinstance(error, Exception)


def _cause(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- options -------------------------------------------------------------------------------------


def check_end(model: str, end: object) -> bool:
    """Return whether a step is the last, by Python's bool or numpy's.

    Raises:
        InvalidInputError: It is neither.
    """
    if not _is_bool(end):
        raise InvalidInputError(f"model {model!r}: end is True or False, not {end!r}", model=model)
    return bool(end)


def check_id(model: str, number: object) -> int | str:
    """Return an id, and refuse what servers refuse or take for another one (seen on 2.51).

    Raises:
        InvalidInputError: It is 0, empty, too long or too large, neither a whole number nor a
            string, or a string with a NUL character in it.
    """
    taken = number if isinstance(number, str) else _whole_number(number)
    if taken is None:
        fault = "is a whole number or a string"
    else:
        fault = _fault_of_text(taken) if isinstance(taken, str) else _fault_of_number(taken)
    if taken is None or fault:
        raise InvalidInputError(
            f"model {model!r}: a sequence's id {fault}, not {number!r}", model=model
        )
    return taken


def _is_bool(value: object) -> bool:
    return isinstance(value, bool | np.bool_)


def _whole_number(value: object) -> int | None:
    """Return a whole number of any kind, numpy's as well; ``None`` for what is none."""
    if _is_bool(value) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array of others
        return None


def _fault_of_text(text: str) -> str:
    if not text:
        return "is not empty, which means none"
    if "\0" in text:  # two that begin alike would share one state
        return "has no NUL character, where the server ends it"
    try:
        fits = len(text.encode()) <= MAX_ID_NBYTES
    except UnicodeEncodeError:
        return "can be sent as UTF-8"
    return "" if fits else f"is at most {MAX_ID_NBYTES} bytes long"


def _fault_of_number(number: int) -> str:
    if not number:
        return "is not 0, which means none"
    return "" if -(2**63) <= number < 2**63 else "fits 64 bits with a sign"


def make_id(*, text: bool) -> int | str:
    """Return an id that nobody else has.

    A string is 128 bytes long: the server gives strings to a model that asks for them
    (``CONTROL_SEQUENCE_CORRID`` of ``TYPE_STRING``) in a tensor of 128 bytes and their length
    before it, and what a shorter one leaves is taken for more strings, and refused (seen on 2.51).
    """
    return secrets.token_hex(MAX_ID_NBYTES // 2) if text else 1 + secrets.randbelow(2**63 - 1)
