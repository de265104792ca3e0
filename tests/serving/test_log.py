"""The end of a log, as error messages show it."""

from pathlib import Path

from tritonasync.serving.log import summary, tail


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert tail(tmp_path / "none.log", 5) == []


def test_the_tail_is_the_last_lines_without_tables_and_blank_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\n+----+\n| x  |\n\ntwo\nthree\n")
    assert tail(log, 2) == ["two", "three"]
    assert tail(log, 9) == ["one", "two", "three"]
    assert tail(log, 0) == ["three"]


def test_a_long_line_is_cut_and_bytes_that_are_no_text_are_survived(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff" + b"x" * 2000 + b"\n")
    (line,) = tail(log, 1)
    assert len(line) == 501
    assert line.endswith("…")


def test_of_a_huge_log_only_whole_lines_of_its_end_are_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number:06}\n" for number in range(100_000)))
    lines = tail(log, 10**6)
    assert lines[-1] == "line 099999"
    assert all(len(line) == len("line 000000") for line in lines)
    assert 10_000 < len(lines) < 100_000


def test_the_reason_of_a_failure_is_shown_although_chatter_follows_it() -> None:
    lines = [
        'E1120 23:52:40.8 1 server.cc:241] "CudaDriverHelper has not been initialized."',
        'I1120 23:52:40.8 1 model_lifecycle.cc:472] "loading: x:1"',
        "E1120 23:52:40.8 1 model_lifecycle.cc:642] \"failed to load 'x'\"",
        "  a traceback's line",
        *[f'I1120 23:52:4{n}.8 1 server.cc:1] "chatter {n}"' for n in range(9)],
        "error: creating server",
    ]
    shown = summary(lines, complaints=5, last=3)
    assert shown == [*lines[2:4], *lines[-3:]]
