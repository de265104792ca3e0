"""Tokenizers from files, folders and objects: read once, off the event loop."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from tests.handles.words import (
    CLS,
    PAD,
    SEP,
    tokenizers,
    words,
    words_tokenizer,
    write_folder,
)
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    MissingExtraError,
)
from tritonasync.handles.text import tokenizer as module
from tritonasync.handles.text.tokenizer import check_source, tokenizer_of

pytestmark = pytest.mark.anyio


async def loaded(source):
    return await tokenizer_of(source, NEVER, "net")


@pytest.fixture
def reads(monkeypatch):
    """The files read, each with the thread that did it."""
    seen = []
    original = module._tokenizer_in

    def watched(file, model):
        seen.append((file, threading.current_thread()))
        return original(file, model)

    monkeypatch.setattr(module, "_tokenizer_in", watched)
    return seen


async def test_a_file_is_read_once_and_in_another_thread(tmp_path, reads):
    folder = write_folder(tmp_path)
    path = folder / "tokenizer.json"
    first, *others = await asyncio.gather(*[loaded(path) for _ in range(50)])
    assert all(other is first for other in others)
    assert await loaded(str(path)) is first
    ((file, thread),) = reads
    assert file == path
    assert thread is not threading.main_thread()


async def test_a_relative_path_is_the_same_file(tmp_path, monkeypatch, reads):
    write_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert await loaded("tokenizer.json") is await loaded(tmp_path / "tokenizer.json")
    assert len(reads) == 1


async def test_other_event_loops_share_it(tmp_path, reads):
    folder = write_folder(tmp_path)
    results = await asyncio.gather(
        *[asyncio.to_thread(asyncio.run, loaded(folder)) for _ in range(4)], loaded(folder)
    )
    assert len({id(result) for result in results}) == 1
    assert len(reads) == 1


async def test_an_object_is_copied_once(tmp_path):
    own = words_tokenizer()
    first = await loaded(own)
    assert first.tokenizer is not own
    assert await loaded(own) is first
    assert await loaded(words_tokenizer()) is not first


async def test_objects_are_remembered_up_to_a_number():
    own = words_tokenizer()
    first = await loaded(own)
    for _ in range(20):
        await loaded(words_tokenizer())
    assert len(module._copies) <= 16
    assert await loaded(own) is not first


@pytest.mark.parametrize(
    ("files", "length", "source"),
    [
        ({}, None, ""),
        ({"tokenizer_config": {"model_max_length": 12}}, 12, "model_max_length in "),
        ({"tokenizer_config": {"model_max_length": 1e30}}, None, ""),
        ({"tokenizer_config": {"model_max_length": 10**30}}, None, ""),
        (
            {
                "tokenizer_config": {"model_max_length": 512},
                "sentence_bert_config": {"max_seq_length": 256},
            },
            256,
            "max_seq_length in ",
        ),
        ({"sentence_bert_config": {"max_seq_length": None}}, None, ""),
    ],
)
async def test_a_folder_tells_the_most_tokens(tmp_path, files, length, source):
    ready = await loaded(write_folder(tmp_path, **files))
    assert ready.max_length == length
    assert length is None or ready.max_length_source.startswith(source)


async def test_the_files_own_truncation_and_padding_are_noted_and_taken_off(tmp_path):
    padded = words_tokenizer(pad=False)
    padded.enable_padding(length=30, pad_id=9, pad_token="w9")
    padded.enable_truncation(20, direction="left")
    ready = await loaded(write_folder(tmp_path, padded) / "tokenizer.json")
    assert (ready.pad_id, ready.max_length, ready.cut_from) == (9, 20, "left")
    assert ready.max_length_source.startswith("truncation in ")
    (tokens,) = ready.tokens([words(40)], NEVER, "net")
    assert len(tokens.ids) == 42
    assert list(ready.cut(words(40), 5).ids) == [CLS, *range(41, 44), SEP]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config": {"pad_token": "w5"}}, 5),
        ({"tokenizer_config": {"pad_token": {"content": "w6", "lstrip": False}}}, 6),
        ({"special_tokens_map": {"pad_token": "w7"}}, 7),
        (
            {
                "special_tokens_map": {"pad_token": "w7"},
                "tokenizer_config": {"pad_token": "w5", "truncation_side": "left"},
            },
            5,
        ),
        ({"tokenizer_config": {"pad_token": None}}, PAD),
        ({}, PAD),
    ],
)
async def test_a_folder_tells_the_padding_token(tmp_path, files, expected):
    ready = await loaded(write_folder(tmp_path, **files))
    assert ready.pad_id == expected
    left = "truncation_side" in files.get("tokenizer_config", {})
    assert ready.cut_from == ("left" if left else "right")


async def test_a_tokenizer_without_a_padding_token_has_none():
    assert (await loaded(words_tokenizer(pad=False))).pad_id is None


async def test_a_text_is_cut_to_the_length_with_its_special_tokens():
    ready = await loaded(words_tokenizer())
    assert list(ready.cut(words(9), 4).ids) == [CLS, 4, 5, SEP]
    assert list(ready.cut(words(9), 4).types) == [0] * 4
    assert list((await loaded(words_tokenizer(special=False))).cut(words(9), 4).ids) == [4, 5, 6, 7]


# --- what goes wrong ---------------------------------------------------------------------------


async def test_a_path_without_a_tokenizer_says_what_is_there(tmp_path):
    (tmp_path / "vocab.txt").touch()
    expected = (
        "expected a tokenizer in '.*tokenizer.json', found no such file; the folder has vocab.t"
    )
    with pytest.raises(ConfigurationError, match=expected):
        await loaded(tmp_path)
    with pytest.raises(ConfigurationError, match="found no such file, nor its folder"):
        await loaded(tmp_path / "nowhere" / "tokenizer.json")


async def test_a_path_that_cannot_be_looked_at_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ConfigurationError, match="expected a tokenizer in '.*', found a folder"):
        await loaded(tmp_path)
    content = (write_folder(tmp_path / "words") / "tokenizer.json").read_text()
    expected = "'.{100,200}…' cannot be read: File name too long; give the path of a tokenizer.j"
    with pytest.raises(ConfigurationError, match=expected):
        await loaded(content)


async def test_what_is_no_tokenizer_is_refused_and_read_again_later(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match="model 'net': '.*' cannot be read as a token"):
        await loaded(tmp_path)
    write_folder(tmp_path)
    assert (await loaded(tmp_path)).pad_id == PAD


async def test_a_broken_file_beside_it_is_named(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="'.*_config.json' cannot be read as JSON"):
        await loaded(folder)


async def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    folder = write_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tritonasync\[text\]'"):
        await loaded(folder)


async def test_whoever_waits_for_the_file_has_a_deadline(tmp_path, monkeypatch):
    folder = write_folder(tmp_path)
    release = threading.Event()
    original = module._tokenizer_in

    def slow(file, model):
        assert release.wait(30)
        return original(file, model)

    monkeypatch.setattr(module, "_tokenizer_in", slow)
    first = asyncio.create_task(loaded(folder))
    await asyncio.sleep(0)
    try:
        with pytest.raises(DeadlineExceededError, match="stage 'encode'"):
            await tokenizer_of(folder, Deadline.after(0.02), "net")
    finally:
        release.set()
    assert (await first).pad_id == PAD


def test_only_paths_and_tokenizers_are_sources(tmp_path):
    check_source(tmp_path, "net")
    check_source(words_tokenizer(), "net")
    assert tokenizers is not None
    with pytest.raises(ConfigurationError, match="model 'net': tokenizer is the path of a "):
        check_source(b"tokenizer.json", "net")
    with pytest.raises(ConfigurationError, match="model 'net': tokenizer is an empty path"):
        check_source("", "net")
