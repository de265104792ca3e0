"""The pipe to a client's process, with processes that do what they are told by a line of Python."""

import os
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.child import Child, ChildError
from benchmarks.clients.protocol import Order

ROOT = Path(__file__).parents[2]
PRELUDE = """
import sys
from benchmarks.clients.protocol import *
def say(message):
    sys.stdout.buffer.write(to_line(message)); sys.stdout.buffer.flush()
def hear():
    return from_line(sys.stdin.buffer.readline())
"""
GREETING = "say(Hello({'it': '1'}))\n"


def child(program: str) -> Child:
    code = PRELUDE + textwrap.dedent(program)
    return Child([sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}, ROOT)


def test_orders_are_answered_in_turn():
    running = child(
        GREETING
        + "for _ in range(2):\n    order = hear()\n"
        + "    say(Outcome(order.seed, 1.0, 0.5, (1.0,), 2.0, 3))\n"
    )
    assert running.versions == {"it": "1"}
    assert [running.carry_out(Order("w", 0.1, seed=seed)).rows for seed in (7, 9)] == [7, 9]
    running.close()


def test_a_client_that_cannot_connect_says_why():
    with pytest.raises(ChildError, match="^ImportError: no such thing$"):
        child("say(Failure('ImportError: no such thing'))")


def test_a_client_that_dies_at_once_leaves_its_last_words():
    with pytest.raises(ChildError, match="ZeroDivisionError"):
        child("1 / 0")


def test_a_client_that_dies_in_a_round_leaves_its_last_words():
    running = child(GREETING + "hear(); sys.exit('out of memory')")
    with pytest.raises(ChildError, match="out of memory"):
        running.carry_out(Order("w", 0.1))
    running.close()


def test_an_order_to_a_client_that_has_ended_fails():
    running = child(GREETING)
    for _ in range(2):  # the first may still get into the pipe
        with pytest.raises(ChildError, match="it ended"):
            running.carry_out(Order("w", 0.1))
    running.close()


def test_a_failed_order_leaves_the_client_usable():
    running = child(
        GREETING + "hear(); say(Failure('not now'))\n"
        "hear(); say(Outcome(1, 1.0, 0.5, (1.0,), 2.0, 3))\n"
    )
    with pytest.raises(ChildError, match="^not now$"):
        running.carry_out(Order("w", 0.1))
    assert running.carry_out(Order("w", 0.1)).rows == 1
    running.close()


def test_what_is_no_message_is_refused():
    with pytest.raises(ChildError, match="not a message"):
        child("print('hello', flush=True)")
    with pytest.raises(ChildError, match="expected its greeting"):
        child("say(Outcome(1, 1.0, 0.5, (1.0,), 2.0, 3))")


def test_patience_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.child.GRACE_S", 0.1)
    running = child(GREETING + "hear(); hear()")
    with pytest.raises(ChildError, match="no answer in time"):
        running.carry_out(Order("w", 0.1))
    running.close()


def test_a_client_that_does_not_end_is_killed():
    running = child(GREETING + "import time\nwhile True: time.sleep(60)")
    running.close(patience_s=0.1)
    running.close()
