"""When slots are looked at that a device may still be at work on."""

from __future__ import annotations

import pytest

from tritonasync.core.errors import DeviceError
from tritonasync.memory import draining
from tritonasync.memory.draining import BUSY_S, LEAST_PAUSE_S, MOST_PAUSE_S, Draining


class Handle:
    cancelled = False

    def cancel(self):
        self.cancelled = True


class Loop:
    """Runs what it was asked to when told, and its clock stands still otherwise."""

    def __init__(self):
        self.now = 50.0
        self.pauses = []
        self.due = None

    def call_soon(self, call, *args):
        return self.call_later(0.0, call, *args)

    def call_later(self, delay_s, call, *args):
        assert self.due is None or self.due[0].cancelled, "two looks are due"
        handle = Handle()
        self.due = (handle, delay_s, call, args)
        return handle

    def run(self):
        handle, delay_s, call, args = self.due
        assert not handle.cancelled
        self.due = None
        self.now += delay_s
        self.pauses.append(delay_s)
        call(*args)


class Work:
    def __init__(self, outcome=False):
        self.outcome = outcome
        self.asked = 0

    def done(self):
        self.asked += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Stand:
    def __init__(self):
        self.loop = Loop()
        self.freed, self.lost = [], []
        self.hurry = False
        self.draining = Draining(
            self.freed.append,
            lambda lease, error: self.lost.append((lease, error)),
            lambda: self.hurry,
        )

    def add(self, lease, *work):
        self.draining.add(lease, list(work), self.loop)


@pytest.fixture
def stand(monkeypatch):
    stand = Stand()
    monkeypatch.setattr(draining.time, "monotonic", lambda: stand.loop.now)
    return stand


def test_a_slot_is_free_when_all_of_its_work_is_done(stand):
    first, second = Work(), Work()
    stand.add("lease", first, second)
    stand.loop.run()
    second.outcome = True
    stand.loop.run()
    assert stand.freed == []
    first.outcome = True
    stand.loop.run()
    assert stand.freed == ["lease"]
    assert second.asked == 2  # not again when it was done
    assert len(stand.draining) == 0
    assert stand.loop.due is None  # nobody looks at nothing


def test_a_slot_whose_work_failed_is_lost_with_the_error(stand):
    error = DeviceError("gone")
    stand.add("lease", Work(True), Work(error))
    stand.loop.run()
    assert stand.lost == [("lease", error)]
    assert stand.freed == []
    assert stand.loop.due is None


def test_one_that_never_ends_holds_up_no_other(stand):
    stand.add("stuck", Work())
    quick = Work()
    stand.add("quick", quick)
    quick.outcome = True
    stand.loop.run()
    assert stand.freed == ["quick"]
    assert len(stand.draining) == 1


def test_it_looks_in_each_turn_at_first_and_ever_more_seldom_then(stand):
    stand.add("lease", Work())
    stand.loop.run()
    stand.loop.now += BUSY_S / 2
    stand.loop.run()
    stand.loop.now += BUSY_S
    for _ in range(12):
        stand.loop.run()
    assert stand.loop.pauses[:3] == [0, 0, 0]
    pauses = stand.loop.pauses[3:]
    assert pauses[0] == LEAST_PAUSE_S
    assert pauses[:4] == [LEAST_PAUSE_S * factor for factor in (1, 2, 4, 8)]
    assert pauses[-2:] == [MOST_PAUSE_S, MOST_PAUSE_S]


def test_it_looks_often_while_somebody_waits(stand):
    stand.hurry = True
    stand.add("lease", Work())
    stand.loop.run()
    stand.loop.now += BUSY_S
    for _ in range(10):
        stand.loop.run()
    assert set(stand.loop.pauses[2:]) == {LEAST_PAUSE_S}


@pytest.mark.parametrize("occasion", ["another slot", "somebody waits"])
def test_after_long_pauses_it_looks_at_once_on(stand, occasion):
    stand.add("lease", Work())
    stand.loop.run()
    stand.loop.now += BUSY_S
    for _ in range(10):
        stand.loop.run()
    if occasion == "another slot":
        stand.add("other", Work())
    else:
        stand.draining.hasten()
    stand.loop.pauses.clear()
    stand.loop.run()
    stand.loop.run()
    stand.loop.now += BUSY_S
    stand.loop.run()
    stand.loop.run()
    assert stand.loop.pauses == [0, 0, 0, LEAST_PAUSE_S]


def test_there_is_nothing_to_hasten_where_nothing_drains(stand):
    stand.draining.hasten()
    assert stand.loop.due is None
    done = Work(True)
    stand.add("lease", done)
    stand.loop.run()
    stand.draining.hasten()
    assert stand.loop.due is None


def test_looking_out_of_turn_tells_whether_there_was_something(stand):
    work = Work()
    stand.add("lease", work)
    assert not stand.draining.poll()
    work.outcome = True
    assert stand.draining.poll()
    assert stand.freed == ["lease"]
    stand.loop.run()
    assert stand.freed == ["lease"]


def test_closing_loses_what_is_not_done_and_looks_no_more(stand):
    stand.add("lease", Work())
    stand.draining.close()
    assert stand.lost == [("lease", None)]
    assert stand.loop.due[0].cancelled
    assert len(stand.draining) == 0
