import pytest

from benchmarks.clients.protocol import (
    Failure,
    Hello,
    Message,
    Order,
    Outcome,
    ProtocolError,
    from_line,
    to_line,
)

OUTCOME = Outcome(1024, 1.5, 0.5, (None, 2.0), 60.5, 64, 1, "oh", {"stall_ms": 3.0})


@pytest.mark.parametrize(
    "message",
    [
        Order("rows-1", 1.5, rate=100.0, seed=3, prepare=True),
        Hello({"grpcio": "1.85"}),
        OUTCOME,
        Failure("it said:\n«no»"),
    ],
)
def test_a_message_is_one_line_and_comes_back_as_it_was(message: Message):
    line = to_line(message)
    assert line.count(b"\n") == 1
    assert from_line(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"Warning: something\n",
        b"[]\n",
        b"{}\n",
        b'{"Order": {}}\n',
        b'{"Order": 3}\n',
        b'{"Nothing": {}}\n',
        b'{"Order": {}, "Hello": {}}\n',
        b"\xff\n",
    ],
)
def test_a_line_of_anything_else_is_refused(line: bytes):
    with pytest.raises(ProtocolError):
        from_line(line)
