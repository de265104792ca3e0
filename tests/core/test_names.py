"""Files of names: one a line, as editors on any system write them."""

import pytest

from tritonasync.core.names import read_names


def written(tmp_path, content):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"ant\nbee\ncat", ("ant", "bee", "cat")),
        (b"ant\r\nbee\r\n", ("ant", "bee")),
        (b"\xef\xbb\xbfant\nbee\n", ("ant", "bee")),
        (b" ant \n\tbee\n", ("ant", "bee")),
        (b"ant\n\ncat\n\n\n", ("ant", "", "cat")),
        (b"traffic: light\n", ("traffic: light",)),
        ("bière\n".encode(), ("bière",)),
        (b"", ()),
        (b"\n\n", ()),
    ],
    ids=["plain", "windows", "mark", "blanks", "empty-lines", "colon", "umlaut", "empty", "blank"],
)
def test_a_line_is_a_name(tmp_path, content, names):
    assert read_names(written(tmp_path, content)) == names


def test_other_encodings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"labels\.txt is not UTF-8"):
        read_names(written(tmp_path, "bière".encode("latin-1")))


def test_what_is_no_list_of_names_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("tritonasync.core.names.MAX_NBYTES", 8)
    assert read_names(written(tmp_path, b"12345678")) == ("12345678",)
    with pytest.raises(ValueError, match="is larger than 8 bytes"):
        read_names(written(tmp_path, b"123456789"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_names(tmp_path / "none.txt")
