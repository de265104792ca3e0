"""The books of a map: order, room, keys, counts, under any order of results."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.core.errors import ConfigurationError, InvalidInputError
from tritonasync.handles.flow.ledger import WINDOW, Failed, Ledger


def ledger(**options):
    given = {
        "ordered": True,
        "max_in_flight": 4,
        "errors": "raise",
        "key": None,
        "start_after": None,
        "total": None,
    }
    return Ledger("map of it", **given | options)


def finish(book, entry, *, error=None):
    entry.value, entry.error = (None, error) if error else (f"r{entry.index}", None)
    book.finish(entry)


@given(
    st.data(),
    st.booleans(),
    st.sampled_from(["raise", "collect"]),
    st.integers(0, 30),
    st.integers(1, 5),
    st.integers(-1, 30),
)
def test_whatever_comes_when_nothing_is_lost_doubled_or_out_of_bounds(
    data, ordered, errors, total, most, start
):
    """One action after the other, in any order; the books must hold at every point."""
    start = start if 0 <= start < total else -1
    book = ledger(
        ordered=ordered,
        max_in_flight=most,
        errors=errors,
        key=lambda item: f"k{item}",
        start_after=None if start < 0 else f"k{start}",
        total=total,
    )
    failing = data.draw(st.sets(st.integers(0, max(0, total - 1))), label="failing")
    source = iter(range(total))
    out, given_out, finished, raised = [], [], [], None
    while not book.over and raised is None:
        actions = ["read"] * (book.room > 0) + ["finish"] * bool(out) + ["take"]
        match data.draw(st.sampled_from(actions)):
            case "read":
                item = next(source, None)
                if item is None:
                    book.close()
                elif (entry := book.read(item)) is not None:
                    out.append(entry)
            case "finish":
                entry = out.pop(data.draw(st.integers(0, len(out) - 1)))
                finished.append(entry.index)
                finish(book, entry, error=ValueError() if entry.index in failing else None)
            case "take":
                ready = book.ready
                entry = book.take()
                assert ready == (entry is not None or book.over)
                if entry is not None and entry.error is not None and errors == "raise":
                    raised = entry.index
                elif entry is not None:
                    given_out.append(entry.index)
        # Bounds.
        assert len(out) == book.in_flight <= most
        begun = set(given_out) | {entry.index for entry in out} | set(finished)
        assert len(begun) - len(given_out) <= WINDOW * most
        # The mark: everything up to it was given out, and the next one was not.
        progress = book.progress(2.0)
        mark = start if progress.resume_key is None else int(progress.resume_key[1:])
        assert set(range(start + 1, mark + 1)) <= set(given_out)
        assert mark + 1 not in given_out
        assert progress.done == len(given_out)
        assert progress.rate == len(given_out) / 2
        if not book.skipping:
            assert progress.total == total - start - 1
    assert len(set(given_out)) == len(given_out)
    if ordered:
        assert given_out == list(range(start + 1, start + 1 + len(given_out)))
    else:
        assert given_out == [index for index in finished if index in given_out]
    if raised is None:
        assert sorted(given_out) == list(range(start + 1, total))
        assert book.progress(1).failed == len(failing & set(given_out))
        assert book.resume_key == (f"k{total - 1}" if total else None)
    else:
        assert raised in failing
        assert errors == "raise"
        assert book.room == 0


def test_no_more_is_read_than_a_window_while_the_first_is_not_done():
    book = ledger(max_in_flight=3)
    first = book.read("a")
    read = [first]
    while book.room:
        entry = book.read("x")
        read.append(entry)
        finish(book, entry)
    assert len(read) == 6
    finish(book, first)
    assert book.room == 0  # the results wait to be taken
    assert book.take() is first
    assert book.room == 1


def test_unordered_no_more_is_read_than_a_window_while_nobody_takes():
    book = ledger(max_in_flight=3, ordered=False)
    while book.room:
        finish(book, book.read("x"))
    assert book.in_flight == 0
    assert book.take() is not None
    assert book.room == 1


def test_an_unordered_mark_waits_for_the_oldest():
    book = ledger(ordered=False)
    first, second, third = (book.read(item) for item in "abc")
    finish(book, third)
    finish(book, second)
    assert book.take() is third
    assert book.take() is second
    assert book.resume_key is None
    finish(book, first)
    assert book.take() is first
    assert book.resume_key == 2


def test_after_an_error_nothing_is_read_and_what_came_before_is_given_out_first():
    book = ledger()
    first, second, third = (book.read(item) for item in "abc")
    finish(book, second, error=ValueError())
    assert book.room == 0
    assert book.take() is None
    finish(book, third)
    finish(book, first)
    assert book.take() is first
    assert book.take() is second
    assert book.resume_key == 0  # the one that failed is still to be done


def test_the_input_of_what_is_done_is_let_go_but_not_of_what_failed():
    book = ledger(errors="collect")
    good, bad = book.read("good"), book.read("bad")
    finish(book, good)
    finish(book, bad, error=ValueError())
    assert (good.item, bad.item) == (None, "bad")


def test_skipping_gives_nothing_until_the_key_and_counts_indices_on():
    book = ledger(key=str.upper, start_after="B", total=4)
    assert [book.read(item) for item in "ab"] == [None, None]
    entry = book.read("c")
    assert (entry.index, entry.key, entry.before) == (2, "C", "B")
    assert book.progress(0).total == 2
    assert book.progress(0).resume_key == "B"


def test_a_key_that_never_comes_is_told_at_the_end():
    book = ledger(start_after=7)
    assert [book.read(item) for item in "abc"] == [None] * 3
    book.close()
    assert book.over
    error = book.take_source_error()
    assert isinstance(error, InvalidInputError)
    assert str(error) == (
        "map of it: start_after=7 is the key of none of the 3 items of the source; expected the "
        "resume_key of a run over the same items, with the same key function"
    )
    assert book.resume_key == 7
    assert book.take_source_error() is None


def test_a_key_that_cannot_be_made_ends_the_source():
    book = ledger(key=lambda item: 1 // item)
    one = book.read(1)
    assert book.read(0) is None
    assert (book.room, book.over) == (0, False)
    finish(book, one)
    assert book.take() is one
    assert book.over
    assert isinstance(book.take_source_error(), ZeroDivisionError)


async def later(item):
    return item


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ordered": 1}, "ordered is True or False, not 1"),
        ({"errors": "ignore"}, "errors is 'raise' or 'collect', not 'ignore'"),
        ({"max_in_flight": 0}, "max_in_flight is a whole number from 1 on, not 0"),
        ({"max_in_flight": True}, "max_in_flight is a whole number from 1 on, not True"),
        ({"key": "name"}, "key is a plain function that gives the key of an item, not 'name'"),
        ({"key": later}, f"key is a plain function that gives the key of an item, not {later!r}"),
    ],
    ids=["ordered", "errors", "none", "a-bool", "key-str", "key-async"],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigurationError) as caught:
        ledger(**options)
    assert str(caught.value) == f"map of it: {message}"


def test_a_failure_says_which_item():
    failed = Failed("b.png", 1, "item", ValueError())
    assert "b.png" in repr(failed)
